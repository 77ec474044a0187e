/* Asking the tracker which pieces may be deleted here: those that another connected device holds.
 *
 * Owns the requests under way. Thread: "tracker". The tracker counts what it grants no longer as ours; so from the question
 * on until the pieces are gone nothing of that content is announced (session_announce_hold). If the connection ends in
 * between, nothing is granted; if it ends after the grant, the announce from scratch leaves the content out until
 * session_released. */
#include "daemon/session_internal.h"

#include <errno.h>

#include "base/bitmap.h"
#include "base/mem.h"
#include "daemon/local.h"

struct release {
    struct mail mail;
    struct session *session;
    uint8_t root[HASH_SIZE];
    uint64_t size;
    uint8_t *pieces;
    void *cookie;
};

static void give_answer(struct release *release, int error, uint8_t *granted)
{
    local_release_answer(release->session->daemon->local, release->cookie, error, granted);
    free(release->pieces);
    free(release);
}

static void answered(void *arg, const struct tracker_answer *answer)
{
    struct release *release = arg;
    uint32_t pieces = geometry_of(release->size).pieces;
    size_t bytes = bitmap_bytes(pieces);
    Tracker__Released *message = NULL;
    uint8_t *granted = NULL;

    if (answer->lost == NULL && answer->fault == NULL &&
        answer->type == TRACKER__TRACKER_TYPE__TRACKER_RELEASED)
        message = tracker__released__unpack(NULL, answer->size, answer->message);
    if (message != NULL && message->bitfield.len == bytes) {
        granted = xmalloc(bytes);
        if (!bitmap_from_wire(granted, message->bitfield.data, pieces)) {
            free(granted);
            granted = NULL;
        }
    }
    if (message != NULL)
        tracker__released__free_unpacked(message, NULL);
    give_answer(release, granted != NULL ? 0 : answer->lost != NULL ? ENOTCONN : EIO, granted);
}

static void deliver_release(struct mail *mail, void *owner)
{
    struct release *release = (struct release *)(void *)mail;
    struct session *s = owner;
    Tracker__Release ask = TRACKER__RELEASE__INIT;

    session_announce_hold(s, release->root, release->size);
    if (s->stopping || !tracker_link_is_up(s->link)) {
        give_answer(release, ENOTCONN, NULL);
        return;
    }
    ask.root.data = release->root;
    ask.root.len = HASH_SIZE;
    ask.size = release->size;
    if (release->pieces != NULL) {
        ask.bitfield.len = bitmap_bytes(geometry_of(release->size).pieces);
        ask.bitfield.data = xmalloc(ask.bitfield.len);
        bitmap_to_wire(ask.bitfield.data, release->pieces, ask.bitfield.len);
    }
    tracker_link_request(s->link, TRACKER__TRACKER_TYPE__TRACKER_RELEASE, &ask.base, answered,
                         release);
    free(ask.bitfield.data);
}

void session_release(struct session *s, const uint8_t root[HASH_SIZE], uint64_t size,
                     uint8_t *pieces, void *cookie)
{
    struct release *release = xcalloc(1, sizeof *release);

    release->mail.deliver = deliver_release;
    release->session = s;
    memcpy(release->root, root, HASH_SIZE);
    release->size = size;
    release->pieces = pieces;
    release->cookie = cookie;
    loop_post(s->loop, &release->mail);
}

struct released {
    struct mail mail;
    uint8_t root[HASH_SIZE];
    bool gone;
};

static void deliver_released(struct mail *mail, void *owner)
{
    struct released *released = (struct released *)(void *)mail;

    session_announce_go_on(owner, released->root, released->gone);
    free(released);
}

void session_released(struct session *s, const uint8_t root[HASH_SIZE], bool gone)
{
    struct released *released = xcalloc(1, sizeof *released);

    released->mail.deliver = deliver_released;
    memcpy(released->root, root, HASH_SIZE);
    released->gone = gone;
    loop_post(s->loop, &released->mail);
}
