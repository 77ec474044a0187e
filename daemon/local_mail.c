/* What other threads tell the local one: blocks that came, the session's news, answers of download and upload.
 *
 * Owns the mail and the posting functions that local.h promises to any thread. Leaves what the news mean to the other local_*.c
 * files. Changes of contents come by the thousand, so they are gathered under a mutex (held for a few instructions) and one mail
 * is under way for all of them. */
#include "daemon/local_private.h"

#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/mem.h"
#include "daemon/download.h"
#include "daemon/session.h"
#include "daemon/upload.h"

/* How long incomplete contents gather before mounts hear that more of them is here. */
#define STIR_NS (NS_PER_S / 2)

/* --- blocks that came ------------------------------------------------------------------------- */

void local_stir(void *arg)
{
    struct local *l = arg;
    struct root_item *item, *next;

    HASH_ITER(hh, l->stirred, item, next) {
        HASH_DEL(l->stirred, item);
        const struct node *node = NULL;
        while ((node = catalogue_with_root(l->catalogue, item->root, node)) != NULL)
            push_invalid(l, node->ino, 0, NULL);
        free(item);
    }
    local_after(l);
}

static void stir_one(struct local *l, struct content *content)
{
    struct root_item *item;
    const struct node *node = NULL;

    if (content_complete(content)) {
        while ((node = catalogue_with_root(l->catalogue, content_root(content), node)) != NULL)
            push_invalid(l, node->ino, 0, NULL);
        return;
    }
    HASH_FIND(hh, l->stirred, content_root(content), HASH_SIZE, item);
    if (item != NULL)
        return;
    item = xcalloc(1, sizeof *item);
    memcpy(item->root, content_root(content), HASH_SIZE);
    HASH_ADD(hh, l->stirred, root, HASH_SIZE, item);
    if (!l->stopped && !timer_pending(l->stir_timer))
        timer_set(l->stir_timer, STIR_NS);
}

static void deliver_changed(struct mail *mail, void *owner)
{
    struct local *l = owner;

    free(mail);
    CHECK(pthread_mutex_lock(&l->lock) == 0);
    struct content **changed = l->changed;
    size_t count = l->changed_count;
    l->changed = NULL;
    l->changed_count = l->changed_room = 0;
    l->changed_posted = false;
    CHECK(pthread_mutex_unlock(&l->lock) == 0);
    for (size_t i = 0; i < count; i++) {
        if (!l->stopped)
            stir_one(l, changed[i]);
        content_release(changed[i]);
    }
    free(changed);
    if (!l->stopped)
        evict_look(l->evict);
    local_after(l);
}

/* Called for each write to the store: so it posts mail only if none is under way. */
void local_holding_changed(struct local *l, struct content *content)
{
    struct mail *mail = NULL;
    bool known = false;

    CHECK(pthread_mutex_lock(&l->lock) == 0);
    for (size_t i = l->changed_count; i > 0 && i + 64 > l->changed_count && !known; i--)
        known = l->changed[i - 1] == content;
    if (!known) {
        if (l->changed_count == l->changed_room) {
            l->changed_room = l->changed_room == 0 ? 16 : 2 * l->changed_room;
            l->changed = xrealloc(l->changed, l->changed_room * sizeof(struct content *));
        }
        l->changed[l->changed_count++] = content_share(content);
    }
    if (!l->changed_posted) {
        mail = xcalloc(1, sizeof *mail);
        mail->deliver = deliver_changed;
        l->changed_posted = true;
    }
    CHECK(pthread_mutex_unlock(&l->lock) == 0);
    if (mail != NULL)
        loop_post(l->loop, mail);
}

/* --- mail from the session -------------------------------------------------------------------- */

struct local_mail {
    struct mail mail;
    enum session_state state;
    unsigned epoch;
    char *trouble, *account, *swarm;
    Tracker__Changes *changes;
    Tracker__Results *results;
    struct account_answer *answer;
    struct session_answer *asked;
    struct known_keys *keys;
    Tracker__Health *health;
    void *cookie;
    int error;
    uint64_t request;
    uint8_t root[HASH_SIZE];
    struct download_status *down;
    struct upload_status *up;
};

static struct local_mail *mail_new(void (*deliver)(struct mail *, void *))
{
    struct local_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver;
    return mail;
}

static void deliver_state(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;
    bool was_visible = local_is_visible(l), changed = l->state != mail->state;

    l->state = mail->state;
    free(l->trouble);
    l->trouble = mail->trouble;
    if (mail->swarm != NULL) {
        free(l->swarm_name);
        l->swarm_name = mail->swarm;
    }
    catalogue_set_account(l->catalogue, l->state == SESSION_LOGGED_OUT ? ""
                                        : mail->account != NULL        ? mail->account
                                                                : catalogue_account(l->catalogue));
    free(mail->account);
    if (was_visible != local_is_visible(l))
        push_all_names(l);
    l->epoch = mail->epoch;
    if (l->state == SESSION_CONNECTED)
        catalogue_resend(l->catalogue, changed);
    if (changed && !l->stopped)
        ctl_ask_self(l);
    free(mail);
    local_after(l);
}

void local_session_state(struct local *l, enum session_state state, unsigned epoch, char *trouble,
                         char *account, char *swarm)
{
    struct local_mail *mail = mail_new(deliver_state);

    mail->state = state;
    mail->epoch = epoch;
    mail->trouble = trouble;
    mail->account = account;
    mail->swarm = swarm;
    loop_post(l->loop, &mail->mail);
}

static void deliver_trouble(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    free(l->trouble);
    l->trouble = mail->trouble;
    free(mail);
}

void local_tracker_trouble(struct local *l, char *trouble)
{
    struct local_mail *mail = mail_new(deliver_trouble);

    mail->trouble = trouble;
    loop_post(l->loop, &mail->mail);
}

static void deliver_changes(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    catalogue_changes(l->catalogue, mail->changes, clock_wall());
    ctl_account_look(l, clock_now());
    tracker__changes__free_unpacked(mail->changes, NULL);
    free(mail);
    local_after(l);
}

void local_changes(struct local *l, Tracker__Changes *changes)
{
    struct local_mail *mail = mail_new(deliver_changes);

    mail->changes = changes;
    loop_post(l->loop, &mail->mail);
}

static void deliver_results(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    catalogue_results(l->catalogue, mail->results, clock_wall());
    tracker__results__free_unpacked(mail->results, NULL);
    free(mail);
    local_after(l);
}

void local_results(struct local *l, Tracker__Results *results)
{
    struct local_mail *mail = mail_new(deliver_results);

    mail->results = results;
    loop_post(l->loop, &mail->mail);
}

static void deliver_account(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    ctl_account_answer(l, mail->answer);
    free(mail);
    local_after(l);
}

void local_account_answer(struct local *l, struct account_answer *answer)
{
    struct local_mail *mail = mail_new(deliver_account);

    mail->answer = answer;
    loop_post(l->loop, &mail->mail);
}

static void deliver_keys(struct mail *raw, void *owner)
{
    struct local_mail *mail = (struct local_mail *)raw;

    access_keys_known(owner, mail->keys);
    free(mail);
}

void local_keys(struct local *l, struct known_keys *keys)
{
    struct local_mail *mail = mail_new(deliver_keys);

    mail->keys = keys;
    loop_post(l->loop, &mail->mail);
}

static void deliver_suspicions(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    l->entries_refused = (uint32_t)mail->request;
    l->keys_unexpected = (uint32_t)mail->error;
    free(mail);
}

void local_suspicions(struct local *l, uint32_t refused, uint32_t unexpected)
{
    struct local_mail *mail = mail_new(deliver_suspicions);

    mail->request = refused;
    mail->error = (int)unexpected;
    loop_post(l->loop, &mail->mail);
}

static void deliver_asked(struct mail *raw, void *owner)
{
    struct local_mail *mail = (struct local_mail *)raw;

    access_answer(owner, mail->asked);
    free(mail);
}

void local_asked(struct local *l, struct session_answer *answer)
{
    struct local_mail *mail = mail_new(deliver_asked);

    mail->asked = answer;
    loop_post(l->loop, &mail->mail);
}

static void deliver_health(struct mail *raw, void *owner)
{
    struct local_mail *mail = (struct local_mail *)raw;

    health_answer(owner, mail->cookie, mail->error, mail->health);
    free(mail);
}

void local_health_answer(struct local *l, void *cookie, int error, Tracker__Health *health)
{
    struct local_mail *mail = mail_new(deliver_health);

    mail->cookie = cookie;
    mail->error = error;
    mail->health = health;
    loop_post(l->loop, &mail->mail);
}

struct granted_mail {
    struct mail mail;
    void *cookie;
    int error;
    uint8_t *granted;
};

static void deliver_granted(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct granted_mail *mail = (struct granted_mail *)raw;

    evict_granted(l->evict, mail->cookie, mail->error, mail->granted);
    free(mail);
    local_after(l);
}

void local_release_answer(struct local *l, void *cookie, int error, uint8_t *granted)
{
    struct granted_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_granted;
    mail->cookie = cookie;
    mail->error = error;
    mail->granted = granted;
    loop_post(l->loop, &mail->mail);
}

/* --- mail from download and upload ------------------------------------------------------------ */

static void deliver_demand(struct mail *raw, void *owner)
{
    struct local_mail *mail = (struct local_mail *)raw;

    io_demand_done(owner, mail->request, mail->error);
    free(mail);
}

void local_demand_done(struct local *l, uint64_t request, int error)
{
    struct local_mail *mail = mail_new(deliver_demand);

    mail->request = request;
    mail->error = error;
    loop_post(l->loop, &mail->mail);
}

static void deliver_complete(struct mail *raw, void *owner)
{
    struct local *l = owner;
    struct local_mail *mail = (struct local_mail *)raw;

    if (!l->stopped)
        fetch_complete(l, mail->root, mail->error);
    free(mail);
    local_after(l);
}

void local_content_complete(struct local *l, const uint8_t root[HASH_SIZE], int error)
{
    struct local_mail *mail = mail_new(deliver_complete);

    memcpy(mail->root, root, HASH_SIZE);
    mail->error = error;
    loop_post(l->loop, &mail->mail);
}

static void deliver_status(struct mail *raw, void *owner)
{
    struct local_mail *mail = (struct local_mail *)raw;

    if (mail->down != NULL)
        ctl_gathered_down(owner, mail->down);
    else
        ctl_gathered_up(owner, mail->up);
    free(mail);
}

void local_download_status(struct local *l, struct download_status *status)
{
    struct local_mail *mail = mail_new(deliver_status);

    mail->down = status;
    loop_post(l->loop, &mail->mail);
}

void local_upload_status(struct local *l, struct upload_status *status)
{
    struct local_mail *mail = mail_new(deliver_status);

    mail->up = status;
    loop_post(l->loop, &mail->mail);
}
