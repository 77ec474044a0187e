/* Owns password records: Argon2id with today's cost, verification at constant cost, when to
 * upgrade.
 *
 * Leaves to the caller: which thread (a worker: 20 MiB and 25 ms a call), how many at once, where
 * records are kept. A record is a PHC string: $argon2id$v=19$m=KIB,t=PASSES,p=LANES$SALT$HASH. A
 * record comes from our own database; yet its cost is bounded here, so that a damaged one cannot
 * take all memory. */
#include "crypto/password.h"

#include <argon2.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "crypto/random.h"

#define MEMORY_KIB 19456 /* with 2 passes: the OWASP floor for Argon2id */
#define PASSES     2
#define PARALLEL   1
#define SALT_SIZE  16
#define HASH_BYTES 32

/* What a record may ask for at most. */
#define MEMORY_KIB_MAX (256u * 1024)
#define PASSES_MAX     16
#define PARALLEL_MAX   4

bool password_hash(char *record, const char *password, size_t size)
{
    uint8_t salt[SALT_SIZE];
    record[0] = '\0';
    if (size > PASSWORD_BYTES_MAX)
        return false;
    random_bytes(salt, sizeof salt);
    return argon2id_hash_encoded(PASSES, MEMORY_KIB, PARALLEL, password, size, salt, sizeof salt,
                                 HASH_BYTES, record, PASSWORD_RECORD_MAX) == ARGON2_OK;
}

/* A record of today's cost that no password is known for; takes the place of an account's that does
 * not exist. */
static char dummy[PASSWORD_RECORD_MAX];
static void make_dummy(void)
{
    char secret[SALT_SIZE + 1];
    random_code(secret, SALT_SIZE);
    if (!password_hash(dummy, secret, SALT_SIZE))
        dummy[0] = '\0';
    secret_wipe(secret, sizeof secret);
}

struct cost {
    unsigned version, memory, passes, parallel;
};

static bool cost_of(const char *record, struct cost *cost)
{
    int end = 0;
    size_t length = strnlen(record, PASSWORD_RECORD_MAX);
    if (length >= PASSWORD_RECORD_MAX)
        return false;
    /* widths keep each number within an unsigned */
    if (sscanf(record, "$argon2id$v=%3u$m=%9u,t=%9u,p=%9u$%n", &cost->version, &cost->memory,
               &cost->passes, &cost->parallel, &end) != 4 ||
        end == 0)
        return false;
    return cost->memory <= MEMORY_KIB_MAX && cost->passes <= PASSES_MAX &&
           cost->parallel <= PARALLEL_MAX;
}

bool password_verify(const char *record, const char *password, size_t size, bool *upgrade)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct cost cost = {0};
    bool known;

    if (upgrade != NULL)
        *upgrade = false;
    pthread_once(&once, make_dummy);
    known = record != NULL && size <= PASSWORD_BYTES_MAX && cost_of(record, &cost);
    if (!known) {
        (void)argon2id_verify(dummy, "", 0);
        return false;
    }
    if (argon2id_verify(record, password, size) != ARGON2_OK)
        return false;
    if (upgrade != NULL)
        *upgrade = cost.version < ARGON2_VERSION_NUMBER || cost.memory < MEMORY_KIB ||
                   cost.passes < PASSES || cost.parallel < PARALLEL;
    return true;
}
