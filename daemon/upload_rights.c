/* Who may have what: tickets held against the key that the tracker gave this server, and what makes them void.
 *
 * Owns the key, the epochs from which on tickets count, and the judgement over every Open: before this daemon says that
 * it has a content, the fetcher has shown a ticket for it (crypto/ticket.h), one for all contents on this link or one
 * for this root. Without one the answer is that of a root which nobody has heard of, and it is given before anybody
 * looks. Thread: "upload".
 *
 *   a file is open while its ticket is good: made in an epoch that counts, not ended. When the tracker says that the
 *   tickets of an account are void, the contents that it names end at once; all others have LIMIT_TICKET_GRACE_NS, in
 *   which who still may shows a new ticket. Away from the tracker, tickets end by themselves. */
#include "daemon/upload_link_private.h"

#include <string.h>

#include "base/log.h"
#include "base/mem.h"
#include "crypto/random.h"
#include "proto/message.h"

/* Longer than any ticket lives: after that nobody has one from before. */
#define BARRED_KEPT_NS (24 * 3600 * NS_PER_S)

static const uint8_t whole_root[HASH_SIZE];

/* The tracker's clock. */
static int64_t tracker_seconds(const struct upload *u)
{
    return clock_now() / NS_PER_S + u->tracker_ahead;
}

static struct barred *barred_of(const struct upload *u, const char *account)
{
    struct barred *barred;

    HASH_FIND_STR(u->barred, account, barred);
    return barred;
}

/* The oldest epoch of the account's tickets that counts; `settled`: with those still in their grace. */
static uint64_t least_epoch(const struct upload *u, const char *account, bool settled)
{
    const struct barred *all = barred_of(u, ""), *own = barred_of(u, account);
    int64_t before = clock_now() - (settled ? LIMIT_TICKET_GRACE_NS : 0);
    uint64_t least = 0;

    if (all != NULL)
        least = all->at <= before ? all->epoch : all->before;
    if (own != NULL && (own->at <= before ? own->epoch : own->before) > least)
        least = own->at <= before ? own->epoch : own->before;
    return least;
}

static bool is_good(const struct serve_link *link, const struct ticket *ticket, bool settled)
{
    return ticket->end > tracker_seconds(link->upload) &&
           ticket->epoch >= least_epoch(link->upload, link->remote.account, settled);
}

Peer__Reason serve_may_open(struct serve_link *link, const Peer__Open *m, struct served *f)
{
    const struct upload *u = link->upload;

    f->ticket = (struct ticket){0};
    if (!u->has_ticket_key)
        return PEER__REASON__REASON_BUSY; /* the tracker has not been heard since the start */
    if (is_good(link, &link->whole, false))
        return PEER__REASON__REASON_UNKNOWN;
    if (!ticket_open(u->ticket_key, link->remote.device, m->root.data, m->ticket.data,
                     m->ticket.len, &f->ticket) ||
        !is_good(link, &f->ticket, false))
        return PEER__REASON__REASON_NO_FILE;
    return PEER__REASON__REASON_UNKNOWN;
}

static void take_newer(struct ticket *to, const struct ticket *ticket)
{
    if (ticket->epoch > to->epoch || (ticket->epoch == to->epoch && ticket->end > to->end))
        *to = *ticket;
}

const char *serve_on_ticket(struct serve_link *link, const uint8_t *bytes, size_t size)
{
    struct message_arena arena;
    const Peer__Ticket *m = message_unpack(&arena, &peer__ticket__descriptor, bytes, size);
    const struct upload *u = link->upload;
    struct served *f = m == NULL || m->whole ? NULL : serve_file_of(link, m->file);
    struct ticket ticket;

    if (m != NULL && u->has_ticket_key && (m->whole || f != NULL) &&
        ticket_open(u->ticket_key, link->remote.device, m->whole ? whole_root : f->root,
                    m->ticket.data, m->ticket.len, &ticket))
        take_newer(m->whole ? &link->whole : &f->ticket, &ticket);
    message_done(&arena);
    return m == NULL ? "a malformed Ticket" : NULL;
}

/* The fetcher has lost the right to it. */
static void end_file(struct serve_link *link, struct served *f)
{
    uint32_t file = f->file;

    serve_file_free(link, f);
    serve_reject(link, (struct block_run){.file = file}, PEER__REASON__REASON_NO_FILE, false);
}

void serve_rights_tick(struct serve_link *link)
{
    struct served *f, *next;
    int64_t now = tracker_seconds(link->upload);
    uint64_t least = least_epoch(link->upload, link->remote.account, true);

    if (link->leaving || is_good(link, &link->whole, true))
        return;
    HASH_ITER(hh, link->files, f, next) {
        if (f->ticket.end <= now || f->ticket.epoch < least)
            end_file(link, f);
    }
}

/* --- what the tracker says ------------------------------------------------------------------------------ */

struct rights_mail {
    struct mail mail;
    uint8_t key[TICKET_KEY_SIZE];
    int64_t tracker_time;
    char account[ACCOUNT_BYTES_MAX + 1];
    uint64_t epoch;
    size_t count;
    uint8_t (*roots)[HASH_SIZE];
};

static void deliver_key(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct rights_mail *mail = (struct rights_mail *)raw;

    memcpy(u->ticket_key, mail->key, sizeof u->ticket_key);
    u->has_ticket_key = true;
    u->tracker_ahead = mail->tracker_time - clock_now() / NS_PER_S;
    secret_wipe(mail->key, sizeof mail->key);
    free(mail);
}

void upload_ticket_key(struct upload *u, const uint8_t key[TICKET_KEY_SIZE], int64_t tracker_time)
{
    struct rights_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_key;
    memcpy(mail->key, key, sizeof mail->key);
    mail->tracker_time = tracker_time;
    loop_post(u->loop, &mail->mail);
}

static void barred_prune(struct upload *u)
{
    struct barred *barred, *next;
    int64_t before = clock_now() - BARRED_KEPT_NS;

    HASH_ITER(hh, u->barred, barred, next) {
        if (barred->at < before || HASH_COUNT(u->barred) > LIMIT_BARRED) {
            HASH_DEL(u->barred, barred);
            free(barred);
        }
    }
}

static void bar(struct upload *u, const char *account, uint64_t epoch)
{
    struct barred *barred = barred_of(u, account);

    if (barred == NULL) {
        barred = xcalloc(1, sizeof *barred);
        snprintf(barred->account, sizeof barred->account, "%s", account);
        HASH_ADD_STR(u->barred, account, barred);
    } else if (epoch <= barred->epoch) {
        return; /* known: its grace goes on */
    } else if (clock_now() - barred->at >= LIMIT_TICKET_GRACE_NS) {
        barred->before = barred->epoch; /* that grace is over; else the one before counts on */
    }
    barred->epoch = epoch;
    barred->at = clock_now();
    HASH_DEL(u->barred, barred); /* the table is in the order of these times: barred_prune */
    HASH_ADD_STR(u->barred, account, barred);
}

static void end_content(struct upload *u, const struct rights_mail *mail, const uint8_t *root)
{
    struct serve_link *link;
    struct served *f, *next;

    for (link = u->links; link != NULL; link = link->next) {
        if (link->leaving ||
            (mail->account[0] != '\0' && strcmp(link->remote.account, mail->account) != 0))
            continue;
        HASH_ITER(hh, link->files, f, next) {
            if (memcmp(f->root, root, HASH_SIZE) == 0 && f->ticket.epoch < mail->epoch &&
                link->whole.epoch < mail->epoch)
                end_file(link, f);
        }
    }
}

static void deliver_barred(struct mail *raw, void *owner)
{
    struct upload *u = owner;
    struct rights_mail *mail = (struct rights_mail *)raw;

    bar(u, mail->account, mail->epoch);
    if (HASH_COUNT(u->barred) > LIMIT_BARRED)
        barred_prune(u);
    for (size_t i = 0; i < mail->count && !u->stopping; i++)
        end_content(u, mail, mail->roots[i]);
    free(mail->roots);
    free(mail);
}

void upload_barred(struct upload *u, const char *account, uint64_t epoch,
                   const uint8_t (*roots)[HASH_SIZE], size_t count)
{
    struct rights_mail *mail = xcalloc(1, sizeof *mail);

    mail->mail.deliver = deliver_barred;
    snprintf(mail->account, sizeof mail->account, "%s", account);
    mail->epoch = epoch;
    mail->count = count;
    mail->roots = count == 0 ? NULL : xmemdup(roots, count * sizeof *roots);
    loop_post(u->loop, &mail->mail);
}

void upload_rights_free(struct upload *u)
{
    struct barred *barred, *next;

    HASH_ITER(hh, u->barred, barred, next) {
        HASH_DEL(u->barred, barred);
        free(barred);
    }
    secret_wipe(u->ticket_key, sizeof u->ticket_key);
}
