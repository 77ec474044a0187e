/* Whether this member's store is encrypted, and with what key.
 *
 *   HOME/store.key          the master key (crypto/store_key.h), under the passphrase of the device's key if that has one
 *   HOME/store/encryption   says that the files beside it are encrypted, and names the key without telling it
 *
 * The second file decides. It is made once, in a store that holds nothing yet, when p2pd.conf asks for encryption; from then on
 * the store is encrypted whatever p2pd.conf says. A store that holds plain files is not converted: p2pd does not start, so that
 * nobody believes to be protected who is not. Nor does it where a key lies beside an empty store that is not to be encrypted: a
 * disk may be missing. Nothing in the store is touched when the key is missing, is another one, or is not opened.
 *
 * Thread: one, before the store is opened. */
#ifndef DAEMON_ENCRYPTION_H
#define DAEMON_ENCRYPTION_H

#include <stdbool.h>
#include <stddef.h>

struct store_key;

/* Makes the store's directory if need be. False: it cannot be opened, and *fault (static) says why, as a whole sentence. Else
 * *key is the caller's; NULL: the store is plain. */
bool encryption_open(const char *home, bool wanted, struct store_key **key, const char **fault);

/* Before and after the device's key gets another passphrase (size 0: none): between the two the store's key opens with either.
 * The present passphrase is that of key_set_passphrase. *key is for the second, which is to be called in any case, and
 * frees it; NULL if the store has none. */
bool encryption_prepare_passphrase(const char *home, const void *fresh, size_t size,
                                   struct store_key **key, const char **fault);
bool encryption_settle_passphrase(const char *home, struct store_key *key, bool changed,
                                  const char **fault);

#endif
