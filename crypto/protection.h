/* Whether the files of keys need a passphrase. Told by the form of the file alone: no key is opened, and nothing here needs
 * OpenSSL, so that a program that only asks people for passphrases does without it.
 *
 * Threads: any. 1 if it needs one, 0 if not, or -errno. */
#ifndef CRYPTO_PROTECTION_H
#define CRYPTO_PROTECTION_H

#define PROTECTION_FILE_MAX 32768 /* bytes of a key's file */

/* Of a device's key (crypto/identity.h). */
int protection_of_key(const char *path);
/* Of a store's (crypto/store_key.h). While its passphrase is changed: as it was before. */
int protection_of_store_key(const char *path);

#endif
