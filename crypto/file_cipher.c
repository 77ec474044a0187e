/* Owns the bytes of an encrypted file: its header, keys, the step between bytes and their encryption, and between size and
 * length. Leaves the master key to store_key.c, and files, locks and syncing to the callers.
 *
 * A range of bytes is a run of units (16 bytes), of which the first and the last may be wanted in part. A part of a unit is
 * read, decrypted, changed, encrypted and written again with the rest of the range, in one write.
 *
 * Thread: any. Memory: 64 KiB while something is written, the stack for reading. */
#include "crypto/file_cipher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/check.h"
#include "base/file.h"
#include "base/mem.h"
#include "crypto/random.h"

#define CIPHER_MAGIC 0x66636970u
#define MAGIC        "p2pseal1"
#define MAGIC_SIZE   8
#define SALT_SIZE    32
#define CHECK_SIZE   16
#define SECTOR       4096 /* XTS data unit */
#define UNIT         FILE_CIPHER_UNIT
#define CHUNK        (64u << 10) /* encrypted and written at a time */

struct file_cipher {
    unsigned magic;
    uint8_t key[FILE_CIPHER_KEY];
};

static EVP_CIPHER *xts; /* found once: OpenSSL takes its time to find it */

static void find_xts(void)
{
    xts = EVP_CIPHER_fetch(NULL, "AES-256-XTS", NULL);
    CHECK(xts != NULL);
}

static uint64_t down(uint64_t offset)
{
    return offset & ~(uint64_t)(UNIT - 1);
}

static uint64_t up(uint64_t offset)
{
    return down(offset + UNIT - 1);
}

uint64_t file_cipher_length(bool encrypted, uint64_t size)
{
    return encrypted ? FILE_CIPHER_HEADER + up(size) + size % UNIT : size;
}

uint64_t file_cipher_size(bool encrypted, uint64_t length)
{
    if (!encrypted)
        return length;
    if (length < FILE_CIPHER_HEADER)
        return 0;
    length -= FILE_CIPHER_HEADER;
    return length % UNIT == 0 ? length : length < UNIT ? 0 : length - UNIT;
}

/* --- keys -------------------------------------------------------------------------------------------- */
struct file_cipher *file_cipher_of_key(const uint8_t key[FILE_CIPHER_KEY])
{
    struct file_cipher *cipher = xcalloc(1, sizeof *cipher);

    cipher->magic = CIPHER_MAGIC;
    memcpy(cipher->key, key, FILE_CIPHER_KEY);
    return cipher;
}

void file_cipher_key(const struct file_cipher *cipher, uint8_t key[FILE_CIPHER_KEY])
{
    CHECK_OBJECT(cipher, CIPHER_MAGIC);
    memcpy(key, cipher->key, FILE_CIPHER_KEY);
}

void file_cipher_free(struct file_cipher *cipher)
{
    if (cipher == NULL)
        return;
    CHECK_OBJECT(cipher, CIPHER_MAGIC);
    secret_wipe(cipher, sizeof *cipher);
    free(cipher);
}

/* The cipher that this salt gives, and what the header has to say for it. */
static struct file_cipher *derive(const struct store_key *key, const uint8_t salt[SALT_SIZE],
                                  uint8_t check[CHECK_SIZE])
{
    uint8_t bytes[FILE_CIPHER_KEY + CHECK_SIZE];

    store_key_derive(key, salt, SALT_SIZE, "p2p store file", bytes, sizeof bytes);
    struct file_cipher *cipher = file_cipher_of_key(bytes);
    memcpy(check, bytes + FILE_CIPHER_KEY, CHECK_SIZE);
    secret_wipe(bytes, sizeof bytes);
    return cipher;
}

struct file_cipher *file_cipher_make(const struct store_key *key, int fd, int *error)
{
    uint8_t header[FILE_CIPHER_HEADER] = {0};
    uint8_t *salt = header + MAGIC_SIZE;

    *error = 0;
    if (key == NULL)
        return NULL;
    memcpy(header, MAGIC, MAGIC_SIZE);
    random_bytes(salt, SALT_SIZE);
    struct file_cipher *cipher = derive(key, salt, salt + SALT_SIZE);
    *error = file_pwrite_all(fd, header, sizeof header, 0);
    if (*error == 0)
        return cipher;
    file_cipher_free(cipher);
    return NULL;
}

struct file_cipher *file_cipher_open(const struct store_key *key, int fd, int *error)
{
    uint8_t header[MAGIC_SIZE + SALT_SIZE + CHECK_SIZE], check[CHECK_SIZE];

    *error = 0;
    if (key == NULL)
        return NULL;
    *error = file_pread_all(fd, header, sizeof header, 0);
    if (*error == -ENODATA || (*error == 0 && memcmp(header, MAGIC, MAGIC_SIZE) != 0))
        *error = -EBADMSG;
    if (*error < 0)
        return NULL;
    struct file_cipher *cipher = derive(key, header + MAGIC_SIZE, check);
    if (memcmp(check, header + MAGIC_SIZE + SALT_SIZE, CHECK_SIZE) == 0)
        return cipher;
    *error = -EBADMSG;
    file_cipher_free(cipher);
    return NULL;
}

/* --- units ------------------------------------------------------------------------------------------- */
/* One XTS data unit, or its beginning, from `from` to `to`, which may be the same. */
static void crypt_sector(EVP_CIPHER_CTX *context, uint64_t sector, uint8_t *to, const uint8_t *from,
                         size_t size)
{
    uint8_t tweak[16] = {0};
    int written = 0;

    for (unsigned i = 0; i < 8; i++)
        tweak[i] = (uint8_t)(sector >> (8 * i));
    CHECK(EVP_CipherInit_ex2(context, NULL, NULL, tweak, -1, NULL) == 1);
    CHECK(EVP_CipherUpdate(context, to, &written, from, (int)size) == 1);
    CHECK((size_t)written == size);
}

static bool is_zero(const uint8_t *unit)
{
    uint64_t words[UNIT / 8];

    memcpy(words, unit, sizeof words);
    return (words[0] | words[1]) == 0;
}

/* Decrypts a sector in place; holes stay zero. */
static void open_sector(EVP_CIPHER_CTX *context, uint64_t sector, uint8_t *at, size_t size)
{
    bool hole[SECTOR / UNIT];
    size_t holes = 0, units = size / UNIT;

    for (size_t i = 0; i < units; i++)
        holes += hole[i] = is_zero(at + i * UNIT);
    if (holes == units)
        return;
    crypt_sector(context, sector, at, at, size);
    for (size_t i = 0; i < units && holes > 0; i++)
        if (hole[i])
            memset(at + i * UNIT, 0, UNIT);
}

/* Whole units at `offset`, a multiple of UNIT. What decrypts works in place (`from` is `to`). */
static void crypt_units(const struct file_cipher *cipher, bool encrypt, uint8_t *to,
                        const uint8_t *from, size_t size, uint64_t offset)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    uint8_t padded[SECTOR];

    CHECK_OBJECT(cipher, CIPHER_MAGIC);
    CHECK(pthread_once(&once, find_xts) == 0);
    CHECK(context != NULL &&
          EVP_CipherInit_ex2(context, xts, cipher->key, NULL, encrypt, NULL) == 1);
    for (size_t done = 0, step; done < size; done += step) {
        size_t before = (offset + done) % SECTOR;
        uint64_t sector = (offset + done) / SECTOR;
        uint8_t *at = to + done;

        step = size - done < SECTOR - before ? size - done : SECTOR - before;
        if (before > 0) { /* tweaks are counted from a sector's beginning */
            memset(padded, 0, before);
            memcpy(padded + before, from + done, step);
            if (encrypt)
                crypt_sector(context, sector, padded, padded, before + step);
            else
                open_sector(context, sector, padded, before + step);
            memcpy(at, padded + before, step);
        } else if (encrypt) {
            crypt_sector(context, sector, at, from + done, step);
        } else {
            open_sector(context, sector, at, step);
        }
    }
    EVP_CIPHER_CTX_free(context);
}

/* --- reading ----------------------------------------------------------------------------------------- */
static ssize_t read_once(int fd, void *to, size_t size, uint64_t at, int flags)
{
    struct iovec vector = {to, size};
    ssize_t n;

    while ((n = preadv2(fd, &vector, 1, (off_t)at, flags)) < 0 && errno == EINTR)
        ;
    return n < 0 ? -errno : n;
}

/* A part of one unit, at most `size` bytes from `offset`. */
static ssize_t read_part(const struct file_cipher *cipher, int fd, uint8_t *to, size_t size,
                         uint64_t offset, int flags)
{
    uint8_t unit[UNIT] = {0};
    size_t skip = offset % UNIT;
    ssize_t n = read_once(fd, unit, UNIT, file_cipher_at(cipher, down(offset)), flags);

    if (n <= 0)
        return n;
    if (n < UNIT) /* bytes of no meaning at the end, or a file that lost its end */
        return 0;
    crypt_units(cipher, false, unit, unit, UNIT, down(offset));
    size = size < UNIT - skip ? size : UNIT - skip;
    memcpy(to, unit + skip, size);
    return (ssize_t)size;
}

ssize_t file_cipher_pread(const struct file_cipher *cipher, int fd, void *to, size_t size,
                          uint64_t offset, int flags)
{
    size_t done = 0;
    ssize_t n = 0;

    if (cipher == NULL)
        return read_once(fd, to, size, offset, flags);
    while (done < size) {
        uint8_t *at = (uint8_t *)to + done;
        uint64_t from = offset + done;
        size_t units = down(size - done);

        if (from % UNIT != 0 || units == 0) {
            n = read_part(cipher, fd, at, size - done, from, flags);
        } else {
            n = read_once(fd, at, units, file_cipher_at(cipher, from), flags);
            if (n > 0)
                n = (ssize_t)down((uint64_t)n);
            if (n > 0)
                crypt_units(cipher, false, at, at, (size_t)n, from);
        }
        if (n <= 0)
            break;
        done += (size_t)n;
    }
    return done > 0 ? (ssize_t)done : n;
}

int file_cipher_pread_all(const struct file_cipher *cipher, int fd, void *to, size_t size,
                          uint64_t offset)
{
    if (cipher == NULL)
        return file_pread_all(fd, to, size, offset);
    for (size_t done = 0; done < size;) {
        ssize_t n =
            file_cipher_pread(cipher, fd, (uint8_t *)to + done, size - done, offset + done, 0);

        if (n <= 0)
            return n < 0 ? (int)n : -ENODATA;
        done += (size_t)n;
    }
    return 0;
}

/* --- writing ----------------------------------------------------------------------------------------- */
/* All of the vector, which it uses up. */
static uint64_t write_vector(int fd, struct iovec *vector, int count, uint64_t at, int *error)
{
    uint64_t done = 0;

    while (count > 0) {
        ssize_t n = pwritev(fd, vector, count, (off_t)(at + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            *error = n < 0 ? -errno : -EIO;
            return done;
        }
        done += (uint64_t)n;
        size_t left = (size_t)n;
        while (count > 0 && left >= vector->iov_len) {
            left -= vector->iov_len;
            vector++;
            count--;
        }
        if (left > 0) {
            vector->iov_base = (uint8_t *)vector->iov_base + left;
            vector->iov_len -= left;
        }
    }
    return done;
}

/* Whole units of one buffer's bytes, the last filled up with zeros; bytes that came to the file. */
static uint64_t put_buffer(const struct file_cipher *cipher, int fd, const struct iovec *from,
                           uint8_t *chunk, uint64_t offset, int *error)
{
    uint64_t done = 0;

    for (size_t step; done < from->iov_len && *error == 0; done += step) {
        const uint8_t *at = (const uint8_t *)from->iov_base + done;
        size_t whole;

        step = from->iov_len - done < CHUNK ? from->iov_len - done : CHUNK;
        whole = down(step);
        crypt_units(cipher, true, chunk, at, whole, offset + done);
        if (whole < step) {
            uint8_t unit[UNIT] = {0};

            memcpy(unit, at + whole, step - whole);
            crypt_units(cipher, true, chunk + whole, unit, UNIT, offset + done + whole);
        }
        *error = file_pwrite_all(fd, chunk, up(step), file_cipher_at(cipher, offset + done));
        if (*error < 0)
            return done;
    }
    return done;
}

uint64_t file_cipher_put(const struct file_cipher *cipher, int fd, struct iovec *vector, int count,
                         uint64_t offset, int *error)
{
    uint64_t done = 0;

    *error = 0;
    if (cipher == NULL)
        return write_vector(fd, vector, count, offset, error);
    CHECK(offset % UNIT == 0);
    uint8_t *chunk = malloc(CHUNK);
    if (chunk == NULL)
        *error = -ENOMEM;
    for (int i = 0; i < count && *error == 0; i++) {
        CHECK(i == count - 1 || vector[i].iov_len % UNIT == 0);
        done += put_buffer(cipher, fd, &vector[i], chunk, offset + done, error);
    }
    free(chunk);
    return done;
}

static int64_t size_of(int fd)
{
    struct stat status;

    return fstat(fd, &status) < 0 ? -errno
                                  : (int64_t)file_cipher_size(true, (uint64_t)status.st_size);
}

/* The unit at `offset`, decrypted; zeros if the file ends before it. */
static int read_unit(const struct file_cipher *cipher, int fd, uint8_t unit[UNIT], uint64_t offset)
{
    memset(unit, 0, UNIT);
    ssize_t n = read_part(cipher, fd, unit, UNIT, offset, 0);
    return n < 0 ? (int)n : 0;
}

/* What a write has to do, apart from the bytes. */
struct span {
    uint64_t first, end; /* units */
    uint8_t head[UNIT];  /* the first unit as it was, if the bytes begin inside */
    uint8_t tail[UNIT];  /* the last one, if they end inside */
    size_t spare;        /* bytes of no meaning behind the last unit, which is the file's last */
    uint64_t offset, to_end; /* of the bytes */
};

static int look_at_edges(const struct file_cipher *cipher, int fd, struct span *span)
{
    int result = 0;

    if (span->offset % UNIT != 0)
        result = read_unit(cipher, fd, span->head, span->first);
    if (result == 0 && span->to_end % UNIT != 0)
        result = read_unit(cipher, fd, span->tail, span->end - UNIT);
    return result;
}

/* The plain bytes of units [at, at + size) of the span. */
static void assemble(const struct span *span, uint8_t *chunk, size_t size, uint64_t at,
                     const uint8_t *from)
{
    uint64_t begin = at > span->offset ? at : span->offset;
    uint64_t end = at + size < span->to_end ? at + size : span->to_end;

    if (at < span->offset)
        memcpy(chunk, span->head, UNIT);
    if (at + size > span->to_end) {
        size_t kept = span->to_end % UNIT;

        memcpy(chunk + size - UNIT + kept, span->tail + kept, UNIT - kept);
    }
    memcpy(chunk + (begin - at), from + (begin - span->offset), (size_t)(end - begin));
}

static int write_span(const struct file_cipher *cipher, int fd, const struct span *span,
                      const uint8_t *from)
{
    uint8_t *chunk = malloc(CHUNK + UNIT);
    int result = chunk == NULL ? -ENOMEM : 0;

    for (uint64_t at = span->first, step; at < span->end && result == 0; at += step) {
        step = span->end - at < CHUNK ? span->end - at : CHUNK;
        size_t spare = at + step == span->end ? span->spare : 0;

        if (at >= span->offset && at + step <= span->to_end) {
            crypt_units(cipher, true, chunk, from + (at - span->offset), step, at);
        } else {
            assemble(span, chunk, step, at, from);
            crypt_units(cipher, true, chunk, chunk, step, at);
        }
        memset(chunk + step, 0, spare);
        result = file_pwrite_all(fd, chunk, step + spare, file_cipher_at(cipher, at));
    }
    free(chunk);
    return result;
}

int file_cipher_pwrite_all(const struct file_cipher *cipher, int fd, const void *from, size_t size,
                           uint64_t offset)
{
    struct span span = {.first = down(offset), .offset = offset, .to_end = offset + size};

    if (cipher == NULL || size == 0)
        return size == 0 ? 0 : file_pwrite_all(fd, from, size, offset);
    int64_t old = size_of(fd);
    if (old < 0)
        return (int)old;
    if (span.to_end > INT64_MAX - FILE_CIPHER_HEADER - 2 * UNIT)
        return -EFBIG;
    span.end = up(span.to_end);
    bool grows = span.to_end > (uint64_t)old;
    span.spare = grows ? span.to_end % UNIT : 0;
    int result = look_at_edges(cipher, fd, &span);
    if (result == 0)
        result = write_span(cipher, fd, &span, from);
    /* From inside the last unit to its end: the file has one byte or more too many now. */
    if (result == 0 && grows && span.spare == 0 && (uint64_t)old > span.to_end - UNIT &&
        ftruncate(fd, (off_t)file_cipher_length(true, span.to_end)) < 0)
        result = -errno;
    return result;
}

/* --- size and holes ---------------------------------------------------------------------------------- */
/* The size is inside a unit: the rest of it is zeros, and so is what follows. */
static int cut_unit(const struct file_cipher *cipher, int fd, uint64_t size)
{
    uint8_t unit[UNIT];
    uint64_t at = down(size);
    int result = read_unit(cipher, fd, unit, at);

    if (result < 0)
        return result;
    memset(unit + size % UNIT, 0, UNIT - size % UNIT);
    crypt_units(cipher, true, unit, unit, UNIT, at);
    result = file_pwrite_all(fd, unit, UNIT, file_cipher_at(cipher, at));
    if (result == 0 && ftruncate(fd, (off_t)file_cipher_at(cipher, at + UNIT)) < 0)
        result = -errno;
    return result;
}

int file_cipher_truncate(const struct file_cipher *cipher, int fd, uint64_t size)
{
    int result = 0;

    if (size > INT64_MAX - FILE_CIPHER_HEADER - 2 * UNIT)
        return -EFBIG;
    if (cipher != NULL) {
        int64_t old = size_of(fd);

        if (old < 0)
            return (int)old;
        if (size < (uint64_t)old && size % UNIT != 0)
            result = cut_unit(cipher, fd, size);
    }
    if (result == 0 && ftruncate(fd, (off_t)file_cipher_length(cipher != NULL, size)) < 0)
        result = -errno;
    return result;
}

/* Zeros in [offset, end), which lies within the content: whole units as `mode` says, parts of units by writing. */
static int clear(const struct file_cipher *cipher, int fd, int mode, uint64_t offset, uint64_t end)
{
    static const uint8_t zeros[UNIT];
    uint64_t first = up(offset), last = down(end);
    int result = 0;

    if (first > last) /* inside one unit */
        return file_cipher_pwrite_all(cipher, fd, zeros, end - offset, offset);
    if (first > offset)
        result = file_cipher_pwrite_all(cipher, fd, zeros, first - offset, offset);
    if (result == 0 && end > last)
        result = file_cipher_pwrite_all(cipher, fd, zeros, end - last, last);
    if (result == 0 && last > first &&
        fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)file_cipher_at(cipher, first),
                  (off_t)(last - first)) < 0)
        result = -errno;
    return result;
}

int file_cipher_allocate(const struct file_cipher *cipher, int fd, int mode, uint64_t offset,
                         uint64_t size)
{
    const int zero = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;

    if (cipher == NULL)
        return fallocate(fd, mode, (off_t)offset, (off_t)size) < 0 ? -errno : 0;
    if ((mode & ~(zero | FALLOC_FL_KEEP_SIZE)) != 0)
        return -EOPNOTSUPP;
    int64_t old = size_of(fd);
    if (old < 0)
        return (int)old;
    if (size == 0)
        return -EINVAL;
    if (offset > INT64_MAX || size > INT64_MAX - FILE_CIPHER_HEADER - 2 * UNIT - offset)
        return -EFBIG;
    uint64_t end = offset + size, within = end < (uint64_t)old ? end : (uint64_t)old;
    int result = 0;
    if ((mode & zero) == 0 || (mode & FALLOC_FL_ZERO_RANGE) != 0) /* room, before anything else */
        result = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)file_cipher_at(cipher, down(offset)),
                           (off_t)(up(end) + UNIT - down(offset))) < 0
                     ? -errno
                     : 0;
    if (result == 0 && (mode & zero) != 0 && offset < within)
        result = clear(cipher, fd, mode, offset, within);
    if (result == 0 && (mode & FALLOC_FL_KEEP_SIZE) == 0 && end > (uint64_t)old)
        result = file_cipher_truncate(cipher, fd, end);
    return result;
}
