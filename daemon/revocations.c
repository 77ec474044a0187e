/* Owns the table of revoked devices and its file: a line each, the device's number in hexadecimal and the moment before
 * which certificates are void.
 *
 * One mutex, held for a look-up or a copy, never while the file is written. Bounded: what is older than any certificate
 * lives goes, and of too many the oldest. Only the session's thread saves. */
#include "daemon/revocations.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <uthash.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"

/* notBefore lies this far back (crypto/identity.h). */
#define BACKDATED_S     3600
#define LONGEST_S       (366 * 86400) /* no certificate lives longer */
#define REVOCATIONS_MAX 65536
#define LINE_SIZE       (2 * DEVICE_ID_SIZE + 24)

struct revoked {
    uint8_t device[DEVICE_ID_SIZE];
    int64_t before;
    UT_hash_handle hh;
};

struct revocations {
    char *path;
    pthread_mutex_t lock; /* guards the following */
    struct revoked *devices;
    bool changed;
};

static void add(struct revocations *r, const uint8_t device[DEVICE_ID_SIZE], int64_t before)
{
    struct revoked *found;

    HASH_FIND(hh, r->devices, device, DEVICE_ID_SIZE, found);
    if (found == NULL) {
        if (HASH_COUNT(r->devices) >= REVOCATIONS_MAX) {
            found = r->devices; /* the one that was added first */
            HASH_DEL(r->devices, found);
        } else {
            found = xcalloc(1, sizeof *found);
        }
        found->before = 0;
        memcpy(found->device, device, DEVICE_ID_SIZE);
        HASH_ADD(hh, r->devices, device, DEVICE_ID_SIZE, found);
    }
    if (before > found->before) {
        found->before = before;
        r->changed = true;
    }
}

static void take_line(struct revocations *r, const char *line)
{
    uint8_t device[DEVICE_ID_SIZE];
    char id[2 * DEVICE_ID_SIZE + 1];
    int64_t before;

    if (sscanf(line, "%32s %" SCNd64, id, &before) == 2 && hex_decode(device, sizeof device, id) &&
        before > clock_wall() / NS_PER_S - LONGEST_S)
        add(r, device, before);
}

struct revocations *revocations_open(const char *home)
{
    struct revocations *r = xcalloc(1, sizeof *r);
    char *data = NULL;
    size_t size;

    r->path = home_path(home, "revoked");
    CHECK(pthread_mutex_init(&r->lock, NULL) == 0);
    int error = file_read(r->path, (size_t)REVOCATIONS_MAX * LINE_SIZE, false, &data, &size);
    if (error == 0) {
        char *rest = data, *line;
        while ((line = strsep(&rest, "\n")) != NULL)
            take_line(r, line);
    } else if (error != -ENOENT) {
        log_warning("%s: %s; the tracker tells it again", r->path, strerror(-error));
    }
    free(data);
    r->changed = false;
    return r;
}

void revocations_close(struct revocations *r)
{
    struct revoked *at, *next;

    if (r == NULL)
        return;
    HASH_ITER(hh, r->devices, at, next) {
        HASH_DEL(r->devices, at);
        free(at);
    }
    pthread_mutex_destroy(&r->lock);
    free(r->path);
    free(r);
}

void revocations_add(struct revocations *r, const uint8_t device[DEVICE_ID_SIZE], int64_t before)
{
    if (r == NULL)
        return;
    pthread_mutex_lock(&r->lock);
    add(r, device, before);
    pthread_mutex_unlock(&r->lock);
}

void revocations_save(struct revocations *r)
{
    if (r == NULL)
        return;
    pthread_mutex_lock(&r->lock);
    size_t room = (size_t)HASH_COUNT(r->devices) * LINE_SIZE + 1, size = 0;
    bool changed = r->changed;
    char *text = changed ? xmalloc(room) : NULL;
    for (const struct revoked *at = r->devices; changed && at != NULL; at = at->hh.next) {
        char id[2 * DEVICE_ID_SIZE + 1];
        hex_encode(id, at->device, sizeof at->device);
        size += (size_t)snprintf(text + size, room - size, "%s %" PRId64 "\n", id, at->before);
    }
    r->changed = false;
    pthread_mutex_unlock(&r->lock);
    if (!changed)
        return;
    int error = file_replace(r->path, text, size, 0600);
    if (error != 0)
        log_warning("%s: %s", r->path, strerror(-error));
    free(text);
}

bool revocations_void(struct revocations *r, const struct certificate_subject *subject)
{
    struct revoked *found;

    if (r == NULL)
        return false;
    pthread_mutex_lock(&r->lock);
    HASH_FIND(hh, r->devices, subject->device, DEVICE_ID_SIZE, found);
    bool is_void = found != NULL && subject->not_before + BACKDATED_S < found->before;
    pthread_mutex_unlock(&r->lock);
    return is_void;
}
