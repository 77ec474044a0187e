/* The rate limits' memory and their file.
 *
 * Owns struct limits. Leaves keeping them to the choker (what is sent) and the download thread (what is asked for). Threads: any;
 * the table is behind a mutex that is held for memory operations only; who changes a limit holds another while the file is replaced.
 *
 * The file is text, a line each: "up RATE", "down RATE" (only if set by p2pctl), "file ROOT UP DOWN". */
#include "daemon/limits.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/check.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/mem.h"

#define FILE_MOST (256u << 10)

struct limited {
    UT_hash_handle hh;
    uint8_t root[HASH_SIZE];
    struct rates rates;
};

struct limits {
    pthread_mutex_t
        setting; /* who changes them holds it while they go to the disk; taken before `lock` */
    pthread_mutex_t lock; /* memory only: threads of the network ask */
    char *path;
    struct rates all;
    bool set; /* by p2pctl, so it goes into the file */
    struct limited *files;
    uint32_t version;
};

static bool take_line(struct limits *limits, const char *line)
{
    char root[2 * HASH_SIZE + 1];
    struct limited *file;
    struct rates rates;

    if (sscanf(line, "up %" SCNu64, &rates.up) == 1) {
        limits->all.up = rates.up;
        return limits->set = true;
    }
    if (sscanf(line, "down %" SCNu64, &rates.down) == 1) {
        limits->all.down = rates.down;
        return limits->set = true;
    }
    if (sscanf(line, "file %64s %" SCNu64 " %" SCNu64, root, &rates.up, &rates.down) != 3 ||
        HASH_COUNT(limits->files) >= LIMITS_FILES)
        return false;
    file = xcalloc(1, sizeof(*file));
    file->rates = rates;
    if (!hex_decode(file->root, HASH_SIZE, root)) {
        free(file);
        return false;
    }
    HASH_ADD(hh, limits->files, root, HASH_SIZE, file);
    return true;
}

struct limits *limits_open(const char *home, struct rates start, const char **fault)
{
    struct limits *limits = xcalloc(1, sizeof(*limits));
    char *text = NULL, *line, *next;
    size_t size;
    int error;

    CHECK(pthread_mutex_init(&limits->setting, NULL) == 0);
    CHECK(pthread_mutex_init(&limits->lock, NULL) == 0);
    limits->path = home_path(home, "limits");
    limits->all = start;
    limits->version = 1;
    error = file_read(limits->path, FILE_MOST, false, &text, &size);
    if (error == -ENOENT)
        return limits;
    *fault = error != 0 ? "the file of rate limits (limits) cannot be read" : NULL;
    for (line = text; *fault == NULL && line != NULL && *line != '\0'; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        if (!take_line(limits, line))
            *fault =
                "the file of rate limits (limits) is damaged: remove it to go on without limits";
    }
    free(text);
    if (*fault == NULL)
        return limits;
    limits_free(limits);
    return NULL;
}

void limits_free(struct limits *limits)
{
    struct limited *file, *next;

    if (limits == NULL)
        return;
    HASH_ITER(hh, limits->files, file, next) {
        HASH_DEL(limits->files, file);
        free(file);
    }
    CHECK(pthread_mutex_destroy(&limits->lock) == 0);
    CHECK(pthread_mutex_destroy(&limits->setting) == 0);
    free(limits->path);
    free(limits);
}

static struct limited *find(struct limits *limits, const uint8_t root[HASH_SIZE])
{
    struct limited *file;

    HASH_FIND(hh, limits->files, root, HASH_SIZE, file);
    return file;
}

struct rates limits_of(struct limits *limits, const uint8_t root[HASH_SIZE])
{
    struct rates rates = {0, 0};
    const struct limited *file;

    if (limits == NULL)
        return rates;
    CHECK(pthread_mutex_lock(&limits->lock) == 0);
    if (root == NULL)
        rates = limits->all;
    else if ((file = find(limits, root)) != NULL)
        rates = file->rates;
    CHECK(pthread_mutex_unlock(&limits->lock) == 0);
    return rates;
}

uint32_t limits_version(const struct limits *limits)
{
    return limits == NULL ? 0 : __atomic_load_n(&limits->version, __ATOMIC_ACQUIRE);
}

/* Under `setting`: nobody else changes them. */
static int save(const struct limits *limits)
{
    const struct limited *file;
    size_t size = 0;
    char *text = NULL;
    FILE *to = open_memstream(&text, &size);
    int error;

    if (to == NULL)
        return -ENOMEM;
    if (limits->set)
        fprintf(to, "up %" PRIu64 "\ndown %" PRIu64 "\n", limits->all.up, limits->all.down);
    for (file = limits->files; file != NULL; file = file->hh.next) {
        char root[2 * HASH_SIZE + 1];

        hex_encode(root, file->root, HASH_SIZE);
        fprintf(to, "file %s %" PRIu64 " %" PRIu64 "\n", root, file->rates.up, file->rates.down);
    }
    error = fclose(to) == 0 ? file_replace(limits->path, text, size, 0600) : -ENOMEM;
    free(text);
    return error;
}

/* Puts it into the table; what was there before goes to *before. */
static int put(struct limits *limits, const uint8_t root[HASH_SIZE], struct rates rates,
               struct rates *before)
{
    struct limited *file = find(limits, root);

    *before = file != NULL ? file->rates : (struct rates){0, 0};
    if (rates.up == 0 && rates.down == 0) {
        if (file != NULL) {
            HASH_DEL(limits->files, file);
            free(file);
        }
        return 0;
    }
    if (file == NULL) {
        if (HASH_COUNT(limits->files) >= LIMITS_FILES)
            return -ENOSPC;
        file = xcalloc(1, sizeof(*file));
        memcpy(file->root, root, HASH_SIZE);
        HASH_ADD(hh, limits->files, root, HASH_SIZE, file);
    }
    file->rates = rates;
    return 0;
}

/* Into memory; what was there before goes to *before. */
static int apply(struct limits *limits, const uint8_t *root, struct rates rates, bool set,
                 struct rates *before)
{
    int error = 0;

    CHECK(pthread_mutex_lock(&limits->lock) == 0);
    if (root == NULL) {
        *before = limits->all;
        limits->all = rates;
        limits->set = set;
    } else {
        error = put(limits, root, rates, before);
    }
    CHECK(pthread_mutex_unlock(&limits->lock) == 0);
    return error;
}

int limits_set(struct limits *limits, const uint8_t root[HASH_SIZE], struct rates rates)
{
    struct rates before, ignored;

    CHECK(pthread_mutex_lock(&limits->setting) == 0);
    bool was_set = limits->set;
    int error = apply(limits, root, rates, true, &before);
    if (error == 0 && (error = save(limits)) != 0)
        (void)apply(limits, root, before, was_set, &ignored);
    if (error == 0)
        __atomic_add_fetch(&limits->version, 1, __ATOMIC_RELEASE);
    CHECK(pthread_mutex_unlock(&limits->setting) == 0);
    return error;
}
