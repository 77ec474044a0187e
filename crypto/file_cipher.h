/* The bytes of one file, encrypted: reading and writing at any place.
 *
 * With a cipher of NULL every function here is the plain system call on a plain file, so that one path serves both. All who
 * read or write the bytes of the store come this way: p2pd, and p2pfs, which gets a file's key together with its descriptor
 * over the local socket (it runs as the same user, and may read those bytes anyway; so the daemon is not in the way of a
 * read, and may be restarted under it).
 *
 * On disk:
 *      0  8 bytes  "p2pseal1"
 *      8  32 bytes salt, random
 *     40  16 bytes check: tells a wrong master key, or a damaged header
 *     56  zero up to 4096
 *   4096  the content's bytes, AES-256-XTS, in data units of 4096 bytes numbered from 0
 * The two AES keys and the check are HKDF-SHA-256 of the master key, the salt, and "p2p store file".
 *
 * XTS encrypts each 16 bytes by themselves under a tweak that is their place, so 16 bytes are what a write replaces, and what a
 * disk that writes in sectors never tears: after a crash there are old bytes and new bytes as in a plain file, and what was
 * synced stays. A file therefore ends with whole 16 bytes, the unused ones zero before encryption, and its length tells its size:
 *   length = 4096 + (size rounded up to 16) + (size mod 16)
 * the last summand being that many zero bytes of no meaning. Thus one write moves bytes and size together, as it does in
 * a plain file. Sixteen zero bytes on the disk are a hole: they read as zeros (bytes that encrypt to that are met once in
 * 2^128).
 *
 * It hides what a file holds from who has the disk; it does not prove that nobody changed it. The hashes of a content do.
 *
 * Threads: any; a cipher never changes. Two writes, or a read and a write, that meet in the same 16 bytes must not run at
 * once: who lets that happen holds a lock around them. */
#ifndef CRYPTO_FILE_CIPHER_H
#define CRYPTO_FILE_CIPHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "crypto/store_key.h"

#define FILE_CIPHER_KEY    64   /* bytes of a file's key */
#define FILE_CIPHER_HEADER 4096 /* bytes before the content's */
#define FILE_CIPHER_UNIT   16

struct file_cipher;

/* For a new, empty file: a new salt, its header written. NULL with *error 0 if `key` is NULL (a plain file), with -errno if
 * it cannot be written. */
struct file_cipher *file_cipher_make(const struct store_key *key, int fd, int *error);
/* From a file's header. NULL with *error 0 if `key` is NULL, with -EBADMSG if the header is not one of this key, -errno. */
struct file_cipher *file_cipher_open(const struct store_key *key, int fd, int *error);
/* From what file_cipher_key gave. */
struct file_cipher *file_cipher_of_key(const uint8_t key[FILE_CIPHER_KEY]);
void file_cipher_key(const struct file_cipher *, uint8_t key[FILE_CIPHER_KEY]);
void file_cipher_free(struct file_cipher *); /* wipes; NULL is fine */

/* Where byte `offset` is in the file: for what is only told to the kernel (read ahead, write back, holes). */
static inline uint64_t file_cipher_at(const struct file_cipher *cipher, uint64_t offset)
{
    return cipher == NULL ? offset : offset + FILE_CIPHER_HEADER;
}
/* The file's length for this many bytes of content, and back; of an encrypted file or a plain one. */
uint64_t file_cipher_length(bool encrypted, uint64_t size);
uint64_t file_cipher_size(bool encrypted, uint64_t length);

/* As preadv2 of one buffer, with RWF_ flags, but -errno: the caller knows the size, and reads nothing behind it. Short reads
 * are possible; 0 is the end. */
ssize_t file_cipher_pread(const struct file_cipher *, int fd, void *to, size_t size,
                          uint64_t offset, int flags);
/* As file_pread_all and file_pwrite_all (base/file.h). */
int file_cipher_pread_all(const struct file_cipher *, int fd, void *to, size_t size,
                          uint64_t offset);
int file_cipher_pwrite_all(const struct file_cipher *, int fd, const void *from, size_t size,
                           uint64_t offset);
/* Writes buffers one after the other, using `vector` up, into a file that has its length already, `offset` at a multiple of 16:
 * the last 16 bytes are made full with zeros. Returns how many bytes came to the file; *error says why not all. */
uint64_t file_cipher_put(const struct file_cipher *, int fd, struct iovec *vector, int count,
                         uint64_t offset, int *error);
/* The content's size from now on; what is new reads as zeros. As ftruncate, but 0 or -errno. */
int file_cipher_truncate(const struct file_cipher *, int fd, uint64_t size);
/* As fallocate with mode 0, FALLOC_FL_KEEP_SIZE, _PUNCH_HOLE or _ZERO_RANGE, but 0 or -errno. */
int file_cipher_allocate(const struct file_cipher *, int fd, int mode, uint64_t offset,
                         uint64_t size);

#endif
