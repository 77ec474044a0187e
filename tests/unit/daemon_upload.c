/* daemon/upload.h: the real thread on loopback, with real TLS, a real store and workers; the
 * fetchers are scripts (tests/swarm_help.h). What upload calls in other modules is defined here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "base/loop.h"
#include "base/mem.h"
#include "base/stream.h"
#include "base/workers.h"
#include "crypto/ticket.h"
#include "daemon/credentials.h"
#include "daemon/download.h"
#include "daemon/local.h"
#include "daemon/revocations.h"
#include "daemon/upload.h"
#include "proto/bans.h"
#include "proto/peer.pb-c.h"
#include "tests/store_help.h"
#include "tests/swarm_help.h"

#define FILE_BYTES   (UINT64_C(24) << 20)
#define SMALL_BYTES  (UINT64_C(40000))

#define HELLO        PEER__PEER_TYPE__PEER_HELLO
#define OPENED       PEER__PEER_TYPE__PEER_OPENED
#define HAVE         PEER__PEER_TYPE__PEER_HAVE
#define BLOCK        PEER__PEER_TYPE__PEER_BLOCK
#define REJECT       PEER__PEER_TYPE__PEER_REJECT
#define HASHES       PEER__PEER_TYPE__PEER_HASHES
#define PONG         PEER__PEER_TYPE__PEER_PONG
#define GOODBYE      PEER__PEER_TYPE__PEER_GOODBYE
#define BACKGROUND   PEER__URGENCY__URGENCY_BACKGROUND
#define DEMAND       PEER__URGENCY__URGENCY_DEMAND
#define LAYER_PIECES PEER__LAYER__LAYER_PIECES
#define LAYER_BLOCKS PEER__LAYER__LAYER_BLOCKS

/* --- what all tests share --- */

static struct key *ca_key, *our_key, *anna_key, *bert_key;
static struct certificate *ca, *foreign_ca, *our_certificate, *anna, *bert, *foreign;
static struct made big, small;
static struct loop *download_thread;

static char *directory;
static struct daemon d;
static struct upload *upload;
static struct content *big_content, *small_content;

static atomic_uint adopted;
static size_t adopted_hello;
static struct upload_status *status;
static sem_t status_came;

/* --- the other modules --- */

struct adoption {
    struct mail mail;
    struct stream *stream;
};

static void deliver_adoption(struct mail *mail, void *owner)
{
    (void)owner;
    stream_free(((struct adoption *)mail)->stream);
    free(mail);
    adopted++;
}

void download_adopt(struct download *download, struct stream *stream, uint8_t *hello, size_t size)
{
    struct adoption *mail = xcalloc(1, sizeof *mail);

    (void)download;
    adopted_hello = size;
    free(hello);
    mail->mail.deliver = deliver_adoption;
    mail->stream = stream;
    loop_post(download_thread, &mail->mail);
}

struct loop *download_loop(struct download *download)
{
    (void)download;
    return download_thread;
}

void local_upload_status(struct local *local, struct upload_status *came)
{
    (void)local;
    status = came;
    sem_post(&status_came);
}

static struct upload_status *ask_status(void)
{
    upload_ask_status(upload, NULL);
    while (sem_wait(&status_came) != 0)
        ;
    return status;
}

static unsigned count_links(void)
{
    struct upload_status *s = ask_status();
    unsigned count = (unsigned)s->link_count;

    upload_status_free(s);
    return count;
}

/* --- set up and tear down --- */

static int set_up_all(void **state)
{
    const char *fault = "";

    (void)state;
    ca_key = swarm_key();
    our_key = swarm_key();
    anna_key = swarm_key();
    bert_key = swarm_key();
    ca = ca_create(ca_key, "lab", &fault);
    foreign_ca = ca_create(bert_key, "lab", &fault);
    our_certificate = swarm_device(ca, ca_key, our_key, "uma", SWARM_DAY_S);
    anna = swarm_device(ca, ca_key, anna_key, "anna", SWARM_DAY_S);
    bert = swarm_device(ca, ca_key, bert_key, "bert", SWARM_DAY_S);
    foreign = swarm_device(foreign_ca, bert_key, anna_key, "anna", SWARM_DAY_S);
    big = help_make(FILE_BYTES, 1);
    small = help_make(SMALL_BYTES, 2);
    sem_init(&status_came, 0, 0);
    download_thread = loop_new("download");
    loop_start(download_thread);
    return 0;
}

static int tear_down_all(void **state)
{
    (void)state;
    loop_stop(download_thread);
    loop_join(download_thread);
    loop_free(download_thread);
    help_unmake(&big);
    help_unmake(&small);
    sem_destroy(&status_came);
    struct certificate *certificates[] = {ca, foreign_ca, our_certificate, anna, bert, foreign};
    struct key *keys[] = {ca_key, our_key, anna_key, bert_key};
    for (size_t i = 0; i < sizeof certificates / sizeof certificates[0]; i++)
        certificate_free(certificates[i]);
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        key_free(keys[i]);
    return 0;
}

static void holding_changed(void *arg, struct content *content, uint64_t first, uint32_t count,
                            bool present)
{
    (void)arg, (void)first, (void)count, (void)present;
    upload_holding_changed(upload, content);
}

#define TRACKER_TIME 5000000

static const uint8_t ticket_key_here[TICKET_KEY_SIZE] = "the tracker's word for this one";

/* Anna's ticket; root NULL: for every content. */
static void make_ticket(uint8_t out[TICKET_SIZE], const uint8_t *root, uint64_t epoch, int64_t end)
{
    static const uint8_t whole[HASH_SIZE];
    struct certificate_subject subject;
    struct ticket ticket = {.epoch = epoch, .end = end};

    assert_true(certificate_subject(anna, &subject));
    ticket_make(ticket_key_here, subject.device, root == NULL ? whole : root, &ticket, out);
}

static struct credentials *credentials(void)
{
    const char *fault = "";
    struct swarm_url url = {.host = "127.0.0.1", .port = 1};

    certificate_fingerprint(ca, url.ca);
    struct credentials *made = credentials_new(NULL, &url, our_key, our_certificate, ca, &fault);
    assert_non_null(made);
    return made;
}

/* `closed`: the contents are in the store and not in its memory, so that opening one takes a job. */
static void begin(uint64_t rate, bool closed)
{
    const char *fault = "";
    static char listen[] = "127.0.0.1:0";

    directory = help_begin();
    memset(&d, 0, sizeof d);
    d.home = directory;
    d.revocations = revocations_open(directory);
    d.settings.listen = listen;
    d.settings.rate_up = rate;
    d.store = help_open(directory);
    d.bans = bans_new();
    d.workers = workers_new("worker", 2);
    d.handshakes = workers_new("handshake", 2);
    d.accepts = workers_new_meek("accept", 2);
    big_content = help_fill(d.store, &big);
    small_content = help_fill(d.store, &small);
    if (closed) {
        content_release(big_content);
        content_release(small_content);
        big_content = small_content = NULL;
        store_close(d.store);
        d.store = help_open(directory);
    }
    upload = upload_new(&d, &fault);
    if (upload == NULL)
        fail_msg("%s", fault);
    store_on_change(d.store, holding_changed, NULL);
    adopted = 0;
    upload_start(upload);
    upload_credentials(upload, credentials());
    upload_ticket_key(upload, ticket_key_here, TRACKER_TIME);
}

static void finish(void)
{
    upload_stop(upload);
    workers_drain(d.handshakes);
    workers_drain(d.accepts);
    workers_drain(d.workers);
    upload_free(upload);
    revocations_close(d.revocations);
    workers_free(d.handshakes);
    workers_free(d.accepts);
    bans_free(d.bans);
    workers_free(d.workers);
    if (big_content != NULL) {
        content_release(big_content);
        content_release(small_content);
    }
    store_close(d.store);
    help_end(directory);
}

static int set_up(void **state)
{
    (void)state;
    begin(0, false);
    return 0;
}

static int set_up_closed(void **state)
{
    (void)state;
    begin(0, true);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    finish();
    return 0;
}

/* --- a fetcher --- */

static void send_hello(struct wire *w, Peer__Role role)
{
    Peer__Hello hello = PEER__HELLO__INIT;
    char agent[] = "test";

    hello.version = 1;
    hello.oldest = 1;
    hello.role = role;
    hello.agent = agent;
    assert_true(wire_send(w, HELLO, &hello.base));
}

static void expect_hello(struct wire *w)
{
    assert_int_equal(wire_next(w), HELLO);
    Peer__Hello *hello = wire_message(w, &peer__hello__descriptor);
    assert_int_equal(hello->role, PEER__ROLE__ROLE_SERVER);
    assert_int_equal(hello->version, 1);
    peer__hello__free_unpacked(hello, NULL);
}

/* A link of anna's whose kernel takes in little, so that what overtakes what is the server's doing. */
static void fetcher(struct wire *w)
{
    wire_init(w, anna, anna_key, NULL);
    assert_true(wire_shake(w, wire_tcp(upload_port(upload), 64 << 10), false));
    send_hello(w, PEER__ROLE__ROLE_FETCHER);
    expect_hello(w);
}

static void send_open_with(struct wire *w, uint32_t file, const uint8_t *root, uint64_t size,
                           uint8_t *ticket)
{
    Peer__Open open = PEER__OPEN__INIT;
    uint8_t copy[HASH_SIZE];

    open.ticket.data = ticket;
    open.ticket.len = ticket == NULL ? 0 : TICKET_SIZE;

    memcpy(copy, root, HASH_SIZE);
    open.file = file;
    open.root.data = copy;
    open.root.len = HASH_SIZE;
    open.size = size;
    assert_true(wire_send(w, PEER__PEER_TYPE__PEER_OPEN, &open.base));
}

static void send_open(struct wire *w, uint32_t file, const uint8_t *root, uint64_t size)
{
    uint8_t ticket[TICKET_SIZE];

    make_ticket(ticket, root, 10, TRACKER_TIME + 600);
    send_open_with(w, file, root, size, ticket);
}

static void open_file(struct wire *w, uint32_t file, const struct made *made, bool complete)
{
    send_open(w, file, made->root, made->g.size);
    assert_int_equal(wire_next(w), OPENED);
    Peer__Opened *opened = wire_message(w, &peer__opened__descriptor);
    assert_int_equal(opened->file, file);
    assert_int_equal(opened->complete, complete);
    assert_int_equal(w->frame.payload_size, complete ? 0 : bitmap_bytes(made->g.pieces));
    peer__opened__free_unpacked(opened, NULL);
}

static void request(struct wire *w, uint32_t file, uint64_t block, uint32_t count,
                    Peer__Urgency urgency)
{
    Peer__Request ask = PEER__REQUEST__INIT;

    ask.file = file;
    ask.block = block;
    ask.count = count;
    ask.urgency = urgency;
    assert_true(wire_send(w, PEER__PEER_TYPE__PEER_REQUEST, &ask.base));
}

static void ask_hashes(struct wire *w, uint32_t file, Peer__Layer layer, uint64_t first,
                       uint32_t count)
{
    Peer__HashRequest ask = PEER__HASH_REQUEST__INIT;

    ask.file = file;
    ask.layer = layer;
    ask.first = first;
    ask.count = count;
    assert_true(wire_send(w, PEER__PEER_TYPE__PEER_HASH_REQUEST, &ask.base));
}

static void send_ping(struct wire *w)
{
    Peer__Ping ping = PEER__PING__INIT;

    ping.nonce = 77;
    assert_true(wire_send(w, PEER__PEER_TYPE__PEER_PING, &ping.base));
}

/* The block in hand, which must be right. */
static uint64_t block_here(struct wire *w, const struct made *made)
{
    Peer__Block *block = wire_message(w, &peer__block__descriptor);
    uint64_t number = block->block;

    assert_true(number < made->g.blocks);
    assert_int_equal(w->frame.payload_size, geometry_block_size(&made->g, number));
    assert_memory_equal(w->payload, made->data + number * BLOCK_SIZE, w->frame.payload_size);
    peer__block__free_unpacked(block, NULL);
    return number;
}

static void expect_block(struct wire *w, const struct made *made, uint64_t number)
{
    assert_int_equal(wire_next(w), BLOCK);
    assert_int_equal(block_here(w, made), number);
}

/* Blocks [first, first + count), each once; workers that read at the same time may change places. */
static void expect_blocks(struct wire *w, const struct made *made, uint64_t first, uint32_t count)
{
    bool *seen = xcalloc(count, sizeof *seen);

    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(wire_next(w), BLOCK);
        uint64_t at = block_here(w, made) - first;
        assert_true(at < count && !seen[at]);
        seen[at] = true;
    }
    free(seen);
}

struct refusal {
    uint64_t block;
    uint32_t file, count;
    Peer__Reason reason;
    bool hashes;
};

static struct refusal refusal_here(struct wire *w)
{
    Peer__Reject *reject = wire_message(w, &peer__reject__descriptor);
    struct refusal r = {reject->block, reject->file, reject->count, reject->reason, reject->hashes};

    peer__reject__free_unpacked(reject, NULL);
    return r;
}

static void expect_refusal(struct wire *w, Peer__Reason reason)
{
    assert_int_equal(wire_next(w), REJECT);
    assert_int_equal(refusal_here(w).reason, reason);
}

static void expect_goodbye(struct wire *w, Peer__Farewell code)
{
    int type;

    while ((type = wire_next(w)) != GOODBYE)
        assert_true(type > 0);
    Peer__Goodbye *bye = wire_message(w, &peer__goodbye__descriptor);
    assert_int_equal(bye->code, code);
    peer__goodbye__free_unpacked(bye, NULL);
    while ((type = wire_next(w)) > 0) /* what was under way */
        ;
    assert_int_equal(type, WIRE_ENDED);
}

static void expect_pong(struct wire *w)
{
    send_ping(w);
    assert_int_equal(wire_next(w), PONG);
}

/* --- files --- */

static void a_complete_file_opens_and_its_blocks_come_in_order(void **state)
{
    struct wire w;

    (void)state;
    fetcher(&w);
    open_file(&w, 7, &big, true);
    request(&w, 7, 0, 1024, BACKGROUND);
    request(&w, 7, 1024, (uint32_t)big.g.blocks - 1024, BACKGROUND);
    expect_blocks(&w, &big, 0, (uint32_t)big.g.blocks);
    /* One not yet open in the store's memory, and with a short last block. */
    open_file(&w, 8, &small, true);
    request(&w, 8, 0, 3, DEMAND);
    expect_blocks(&w, &small, 0, 3);
    expect_pong(&w);
    wire_free(&w);
    WAIT_FOR(count_links() == 0);
}

static void of_an_incomplete_file_it_tells_what_is_there_and_what_comes(void **state)
{
    struct made part = help_make(4 << 20, 3);
    struct content *content = help_get(d.store, &part, true);
    struct wire w;

    (void)state;
    help_set_hashes(content, &part);
    assert_int_equal(help_put(content, &part, 16, 16), 0); /* piece 1 */
    fetcher(&w);
    open_file(&w, 1, &part, false);
    assert_int_equal(w.payload[0], 0x40);
    assert_int_equal(w.payload[1], 0);
    request(&w, 1, 14, 4, BACKGROUND);
    assert_int_equal(wire_next(&w), REJECT);
    struct refusal r = refusal_here(&w);
    assert_int_equal(r.reason, PEER__REASON__REASON_NO_BLOCK);
    assert_int_equal(r.block, 14);
    assert_int_equal(r.count, 2);
    expect_block(&w, &part, 16);
    expect_block(&w, &part, 17);

    assert_int_equal(help_put(content, &part, 32, 16), 0);
    assert_int_equal(help_put(content, &part, 240, 16), 0);
    uint32_t told = 0;
    while (told < 32) { /* parts, sixteen of which make a piece */
        assert_int_equal(wire_next(&w), HAVE);
        Peer__Have *have = wire_message(&w, &peer__have__descriptor);
        assert_false(have->complete);
        for (size_t i = 0; i < have->n_pieces; i++)
            assert_true(have->pieces[i] == 2 || have->pieces[i] == 15);
        for (size_t i = 0; i < have->n_parts; i++)
            assert_true(have->parts[i] / 16 == 2 || have->parts[i] / 16 == 15);
        told += (uint32_t)(16 * have->n_pieces + have->n_parts);
        peer__have__free_unpacked(have, NULL);
    }
    for (uint32_t piece = 0; piece < 16; piece++)
        if (!content_has_piece(content, piece))
            assert_int_equal(help_put(content, &part, 16 * piece, 16), 0);
    for (bool complete = false; !complete;) {
        assert_int_equal(wire_next(&w), HAVE);
        Peer__Have *have = wire_message(&w, &peer__have__descriptor);
        complete = have->complete;
        peer__have__free_unpacked(have, NULL);
    }
    expect_pong(&w);
    wire_free(&w);
    content_release(content);
    help_unmake(&part);
}

static void expect_parts(struct wire *w, uint32_t first, uint32_t last)
{
    assert_int_equal(wire_next(w), HAVE);
    Peer__Have *have = wire_message(w, &peer__have__descriptor);
    assert_int_equal(have->n_pieces, 0);
    assert_int_equal(have->n_parts, last - first + 1);
    for (uint32_t i = first; i <= last; i++)
        assert_int_equal(have->parts[i - first], i);
    peer__have__free_unpacked(have, NULL);
}

static void parts_of_a_piece_are_told_of_before_it_is_whole(void **state)
{
    struct made part = help_make(4 << 20, 78);
    struct content *content = help_get(d.store, &part, true);
    struct wire w;

    (void)state;
    help_set_hashes(content, &part);
    assert_int_equal(help_put(content, &part, 20, 7), 0);
    fetcher(&w);
    open_file(&w, 1, &part, false);
    assert_int_equal(w.payload[0], 0);
    expect_parts(&w, 20, 26);
    request(&w, 1, 20, 2, BACKGROUND);
    expect_block(&w, &part, 20);
    expect_block(&w, &part, 21);
    assert_int_equal(help_put(content, &part, 27, 1), 0);
    expect_parts(&w, 27, 27);
    wire_free(&w);
    content_release(content);
    help_unmake(&part);
}

static void what_is_not_here_or_of_another_size_is_not_opened(void **state)
{
    struct wire w;
    uint8_t unknown[HASH_SIZE] = {1, 2, 3};

    (void)state;
    fetcher(&w);
    send_open(&w, 1, unknown, 1000);
    expect_refusal(&w, PEER__REASON__REASON_NO_FILE);
    send_open(&w, 1, big.root, big.g.size - 1);
    expect_refusal(&w, PEER__REASON__REASON_SIZE);
    request(&w, 1, 0, 1, DEMAND);
    expect_refusal(&w, PEER__REASON__REASON_NO_FILE);
    open_file(&w, 1, &big, true); /* the number is free again */
    wire_free(&w);
}

/* --- tickets --- */

static void show_ticket(struct wire *w, uint32_t file, bool whole, uint8_t *ticket)
{
    Peer__Ticket message = PEER__TICKET__INIT;

    message.file = file;
    message.whole = whole;
    message.ticket.data = ticket;
    message.ticket.len = TICKET_SIZE;
    assert_true(wire_send(w, PEER__PEER_TYPE__PEER_TICKET, &message.base));
}

/* The answer to an Open with that ticket, as bytes. */
static size_t answer_to(struct wire *w, const uint8_t *root, uint64_t size, uint8_t *ticket,
                        uint8_t out[64])
{
    send_open_with(w, 3, root, size, ticket);
    assert_int_equal(wire_next(w), REJECT);
    assert_true(w->frame.message_size <= 64);
    memcpy(out, w->message, w->frame.message_size);
    return w->frame.message_size;
}

static void without_a_right_a_file_that_is_here_is_as_unknown_as_any(void **state)
{
    struct wire w;
    uint8_t unknown[HASH_SIZE] = {1, 2, 3}, ticket[TICKET_SIZE], other[TICKET_SIZE];
    uint8_t known_answer[64], unknown_answer[64];

    (void)state;
    fetcher(&w);
    make_ticket(other, small.root, 10, TRACKER_TIME + 600); /* another file's */
    for (unsigned i = 0; i < 5; i++) {
        uint8_t *shown = i == 0 ? NULL : i == 1 ? other : ticket;
        make_ticket(ticket, big.root, 10, i == 2 ? TRACKER_TIME - 60 : TRACKER_TIME + 600);
        if (i > 2)
            ticket[i == 3 ? 31 : 12] ^= 1; /* a wrong MAC, and a later end */
        size_t size = answer_to(&w, big.root, big.g.size, shown, known_answer);
        assert_int_equal(answer_to(&w, unknown, big.g.size, shown, unknown_answer), size);
        assert_memory_equal(known_answer, unknown_answer, size);
        /* Nor does the size tell. */
        assert_int_equal(answer_to(&w, big.root, big.g.size + 1, shown, unknown_answer), size);
        assert_memory_equal(known_answer, unknown_answer, size);
    }
    open_file(&w, 3, &big, true);
    wire_free(&w);
}

static void a_ticket_for_everything_opens_everything(void **state)
{
    struct wire w;
    uint8_t ticket[TICKET_SIZE];

    (void)state;
    fetcher(&w);
    make_ticket(ticket, NULL, 10, TRACKER_TIME + 600);
    show_ticket(&w, 0, true, ticket);
    send_open_with(&w, 1, big.root, big.g.size, NULL);
    assert_int_equal(wire_next(&w), OPENED);
    send_open_with(&w, 2, small.root, small.g.size, NULL);
    assert_int_equal(wire_next(&w), OPENED);
    wire_free(&w);
}

/* Frames up to the Reject of all of that file; what comes in between is let by. */
static void await_end_of(struct wire *w, uint32_t file)
{
    for (;;) {
        int type = wire_next(w);
        assert_true(type >= 0 || type == WIRE_SILENT); /* the test's own time limit ends it */
        if (type != REJECT)
            continue;
        struct refusal r = refusal_here(w);
        if (r.file == file && r.count == 0 && !r.hashes) {
            assert_int_equal(r.reason, PEER__REASON__REASON_NO_FILE);
            return;
        }
    }
}

static void a_right_that_was_taken_ends_the_file_at_once(void **state)
{
    struct wire w;
    uint8_t again[TICKET_SIZE];

    (void)state;
    fetcher(&w);
    open_file(&w, 1, &big, true);
    open_file(&w, 2, &small, true);
    make_ticket(again, small.root, 11, TRACKER_TIME + 600);
    show_ticket(&w, 2, false, again);
    expect_pong(&w);
    request(&w, 1, 0, 64, BACKGROUND);
    upload_barred(upload, "anna", 11, (const uint8_t(*)[HASH_SIZE])big.root, 1);
    await_end_of(&w, 1);
    /* Her old tickets open nothing any more; the other file lives on with a new one. */
    send_open(&w, 4, small.root, small.g.size);
    await_end_of(&w, 4);
    send_open_with(&w, 5, small.root, small.g.size, again);
    request(&w, 2, 0, 1, DEMAND);
    int type;
    while ((type = wire_next(&w)) !=
           OPENED) /* what was asked of the first file may still be answered */
        assert_true(type == BLOCK || (type == REJECT && refusal_here(&w).file == 1));
    wire_free(&w);
}

static void who_shows_no_new_ticket_loses_the_file_after_the_grace(void **state)
{
    struct wire w, other;
    uint8_t again[TICKET_SIZE];

    (void)state;
    fetcher(&w);
    fetcher(&other);
    open_file(&w, 1, &big, true);
    open_file(&w, 2, &small, true);
    make_ticket(again, small.root, 12, TRACKER_TIME + 600);
    show_ticket(&w, 2, false, again);
    expect_pong(&w);
    upload_barred(upload, "bert", 50, NULL, 0); /* concerns nobody here */
    upload_barred(upload, "", 12, NULL, 0);
    await_end_of(&w, 1);
    request(&w, 2, 0, 1, DEMAND);
    expect_block(&w, &small, 0);
    wire_free(&w);
    wire_free(&other);
}

static void a_ticket_ends_by_itself(void **state)
{
    struct wire w;
    uint8_t ticket[TICKET_SIZE];

    (void)state;
    fetcher(&w);
    make_ticket(ticket, NULL, 10, TRACKER_TIME + 600);
    show_ticket(&w, 0, true, ticket);
    send_open_with(&w, 1, big.root, big.g.size, NULL);
    assert_int_equal(wire_next(&w), OPENED);
    upload_ticket_key(upload, ticket_key_here, TRACKER_TIME + 601); /* so late is it there */
    await_end_of(&w, 1);
    wire_free(&w);
}

static void expect_hashes(struct wire *w, const uint8_t *right, uint32_t count);

/* No job runs between hold_workers and the unlocking of `held_back`. */
static pthread_mutex_t held_back = PTHREAD_MUTEX_INITIALIZER;

static void wait_for_lock(struct job *job)
{
    pthread_mutex_lock(&held_back);
    pthread_mutex_unlock(&held_back);
    free(job);
}

static void hold_workers(void)
{
    pthread_mutex_lock(&held_back);
    for (int i = 0; i < 8; i++) {
        struct job *job = xcalloc(1, sizeof *job);
        job->run = wait_for_lock;
        workers_post(d.workers, job, true);
    }
}

static void what_is_asked_for_along_with_an_open_is_answered_behind_it(void **state)
{
    Peer__Cancel cancel = PEER__CANCEL__INIT;
    struct wire w;

    (void)state;
    fetcher(&w);
    hold_workers();
    send_open(&w, 1, big.root, big.g.size);
    ask_hashes(&w, 1, LAYER_PIECES, 0, big.g.pieces);
    request(&w, 1, 3, 20, DEMAND);
    cancel.file = 1;
    cancel.block = 5;
    cancel.count = 100;
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base));
    expect_pong(&w);
    pthread_mutex_unlock(&held_back);
    assert_int_equal(wire_next(&w), OPENED);
    expect_hashes(&w, big.layer, big.g.pieces);
    expect_blocks(&w, &big, 3, 2);
    expect_pong(&w);
    /* A number that is closed before it was open takes its requests along. */
    Peer__Close close_it = PEER__CLOSE__INIT;
    close_it.file = 2;
    hold_workers();
    send_open(&w, 2, small.root, small.g.size);
    request(&w, 2, 0, 2, DEMAND);
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CLOSE, &close_it.base));
    send_open(&w, 2, small.root, small.g.size);
    request(&w, 2, 2, 1, DEMAND);
    expect_pong(&w);
    pthread_mutex_unlock(&held_back);
    assert_int_equal(wire_next(&w), OPENED);
    expect_block(&w, &small, 2);
    expect_pong(&w);
    wire_free(&w);
}

static void what_is_asked_for_along_with_an_open_is_bounded_and_checked(void **state)
{
    uint8_t unknown[HASH_SIZE] = {9};
    struct wire w;
    int type;

    (void)state;
    fetcher(&w);
    hold_workers();
    send_open(&w, 1, unknown, UINT64_C(1) << 40);
    for (unsigned i = 0; i < 2 * LIMIT_QUEUED_BLOCKS / LIMIT_REQUEST_BLOCKS; i++)
        request(&w, 1, i * LIMIT_REQUEST_BLOCKS, LIMIT_REQUEST_BLOCKS, DEMAND);
    for (unsigned i = 0; i < 200; i++)
        ask_hashes(&w, 1, LAYER_PIECES, 0, 1);
    send_ping(&w);
    while ((type = wire_next(&w)) == REJECT)
        ;
    assert_int_equal(type, PONG);
    pthread_mutex_unlock(&held_back);
    /* With the first file's refusal its requests have gone, and there is room for others. */
    expect_refusal(&w, PEER__REASON__REASON_NO_FILE);
    send_open(&w, 2, big.root, big.g.size);
    request(&w, 2, big.g.blocks - 1, 2, DEMAND); /* behind its end, which is not known yet */
    while (wire_next(&w) > 0)
        ;
    WAIT_FOR(count_links() == 0);
    wire_free(&w);
}

static void files_opened_and_closed_at_once_do_not_pile_up(void **state)
{
    Peer__Close close_it = PEER__CLOSE__INIT;
    struct wire w;

    (void)state;
    fetcher(&w);
    close_it.file = 5;
    for (uint32_t i = 0; i < 3000; i++) {
        uint8_t unknown[HASH_SIZE] = {1, (uint8_t)i, (uint8_t)(i >> 8)};
        send_open(&w, 5, unknown, 1000);
        assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CLOSE, &close_it.base));
        assert_true(workers_backlog(d.workers) < 20);
    }
    send_open(&w, 6, big.root, big.g.size);
    int type;
    while ((type = wire_next(&w)) == REJECT)
        ;
    assert_int_equal(type, OPENED);
    expect_pong(&w);
    wire_free(&w);
}

static void too_many_open_files_are_refused(void **state)
{
    struct wire w;
    unsigned opened = 0, refused = 0;

    (void)state;
    fetcher(&w);
    for (uint32_t i = 0; i < LIMIT_OPEN_FILES + 5; i++) {
        send_open(&w, i, small.root, small.g.size);
        int type = wire_next(&w);
        if (type == OPENED)
            opened++;
        else if (type == REJECT && refusal_here(&w).reason == PEER__REASON__REASON_BUSY)
            refused++;
    }
    assert_int_equal(opened, LIMIT_OPEN_FILES);
    assert_int_equal(refused, 5);
    request(&w, LIMIT_OPEN_FILES - 1, 1, 1, BACKGROUND);
    expect_block(&w, &small, 1);
    struct upload_status *s = ask_status();
    assert_int_equal(s->link_count, 1);
    assert_string_equal(s->links[0].account, "anna");
    assert_int_equal(s->links[0].files, LIMIT_OPEN_FILES);
    assert_int_equal(s->file_count, 1);
    upload_status_free(s);
    wire_free(&w);
}

/* All links of an account share what it may have open; what each of many would get, a new one gets all the same. */
static void an_accounts_links_share_what_may_be_open(void **state)
{
    struct wire w[LIMIT_PEER_LINKS_DEVICE], other;
    const uint32_t part = LIMIT_OPEN_FILES_ACCOUNT / LIMIT_PEER_LINKS_ACCOUNT;
    struct certificate *second = swarm_device(ca, ca_key, bert_key, "anna", SWARM_DAY_S);

    (void)state;
    _Static_assert(LIMIT_PEER_LINKS_DEVICE * LIMIT_OPEN_FILES >= LIMIT_OPEN_FILES_ACCOUNT, "fills");
    for (unsigned l = 0; l < LIMIT_PEER_LINKS_DEVICE; l++) {
        fetcher(&w[l]);
        for (uint32_t i = 0; i < LIMIT_OPEN_FILES; i++) {
            send_open(&w[l], i, small.root, small.g.size);
            assert_int_equal(wire_next(&w[l]), OPENED);
        }
    }
    struct certificate *first = anna;
    anna = second; /* tickets are for it */
    wire_init(&other, second, bert_key, NULL);
    assert_true(wire_shake(&other, wire_tcp(upload_port(upload), 64 << 10), false));
    send_hello(&other, PEER__ROLE__ROLE_FETCHER);
    expect_hello(&other);
    for (uint32_t i = 0; i < part + 3; i++) {
        send_open(&other, i, small.root, small.g.size);
        assert_int_equal(wire_next(&other), i < part ? OPENED : REJECT);
    }
    anna = first;
    assert_int_equal(refusal_here(&other).reason, PEER__REASON__REASON_BUSY);
    wire_free(&other);
    for (unsigned l = 0; l < LIMIT_PEER_LINKS_DEVICE; l++)
        wire_free(&w[l]);
    certificate_free(second);
}

/* --- order --- */

static void demanded_blocks_overtake_the_rest(void **state)
{
    struct wire w;
    unsigned before = 0;

    (void)state;
    fetcher(&w);
    open_file(&w, 1, &big, true);
    request(&w, 1, 0, 1024, BACKGROUND);
    usleep(300000);
    request(&w, 1, 1500, 2, DEMAND);
    request(&w, 1, 900, 1, DEMAND); /* already queued: raised, and sent once */
    bool seen[1536] = {false};
    unsigned demanded = 0;
    for (unsigned i = 0; i < 1024 + 2; i++) {
        assert_int_equal(wire_next(&w), BLOCK);
        uint64_t number = block_here(&w, &big);
        assert_false(seen[number]);
        seen[number] = true;
        demanded += number == 900 || number == 1500 || number == 1501;
        before += demanded < 3;
    }
    assert_true(before < 200); /* what kernel and TLS held by then */
    expect_pong(&w);
    wire_free(&w);
}

static void a_demand_does_not_wait_behind_hashes_that_are_not_read(void **state)
{
    struct wire w;
    unsigned hashes = 0;

    (void)state;
    fetcher(&w);
    open_file(&w, 1, &big, true);
    for (unsigned i = 0; i < 900; i++)
        ask_hashes(&w, 1, LAYER_PIECES, 0, big.g.pieces);
    usleep(200000);
    request(&w, 1, 5, 1, DEMAND);
    usleep(200000);
    for (bool here = false; !here || hashes < 900;) {
        int type = wire_next(&w);
        if (type == BLOCK)
            here = block_here(&w, &big) == 5;
        else
            hashes += type == HASHES || type == REJECT;
        assert_true(type > 0);
    }
    wire_free(&w);
}

static unsigned blocks_until_quiet(struct wire *w)
{
    unsigned blocks = 0;
    int type;

    wire_patience(w, NS_PER_S);
    while ((type = wire_next(w)) > 0)
        blocks += type == BLOCK;
    assert_int_equal(type, WIRE_SILENT);
    wire_patience(w, SWARM_PATIENCE);
    return blocks;
}

static void cancelled_blocks_do_not_come(void **state)
{
    Peer__Cancel cancel = PEER__CANCEL__INIT;
    struct wire w;

    (void)state;
    fetcher(&w);
    open_file(&w, 1, &big, true);
    request(&w, 1, 0, 1024, BACKGROUND);
    cancel.file = 1;
    cancel.block = 10;
    cancel.count = 2000; /* more than was asked for is no harm */
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base));
    cancel.block = UINT64_MAX;
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base));
    assert_in_range(blocks_until_quiet(&w), 10, 300);
    request(&w, 1, 1023, 1, BACKGROUND); /* and can be asked for again */
    expect_block(&w, &big, 1023);
    /* Closing withdraws all. */
    request(&w, 1, 0, 1024, BACKGROUND);
    Peer__Close close_it = PEER__CLOSE__INIT;
    close_it.file = 1;
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CLOSE, &close_it.base));
    assert_in_range(blocks_until_quiet(&w), 0, 300);
    expect_pong(&w);
    wire_free(&w);
}

static void who_asks_back_is_told_which_blocks_will_not_come(void **state)
{
    Peer__Cancel cancel = PEER__CANCEL__INIT;
    unsigned blocks = 0, told = 0;
    struct wire w;

    (void)state;
    fetcher(&w);
    open_file(&w, 1, &big, true);
    request(&w, 1, 0, 1024, BACKGROUND);
    cancel.file = 1;
    cancel.count = 1024;
    cancel.tell = true;
    assert_true(wire_send(&w, PEER__PEER_TYPE__PEER_CANCEL, &cancel.base));
    while (blocks + told < 1024) {
        int type = wire_next(&w);

        if (type == REJECT) {
            Peer__Reject *reject = wire_message(&w, &peer__reject__descriptor);

            assert_int_equal(reject->reason, PEER__REASON__REASON_WITHDRAWN);
            told += reject->count;
            peer__reject__free_unpacked(reject, NULL);
        } else {
            assert_int_equal(type, BLOCK);
            blocks++;
        }
    }
    assert_int_equal(blocks + told, 1024);
    assert_in_range(told, 700, 1024);
    expect_pong(&w); /* and that was all */
    wire_free(&w);
}

/* --- hashes --- */

static void expect_hashes(struct wire *w, const uint8_t *right, uint32_t count)
{
    assert_int_equal(wire_next(w), HASHES);
    Peer__Hashes *hashes = wire_message(w, &peer__hashes__descriptor);
    assert_int_equal(hashes->count, count);
    assert_int_equal(w->frame.payload_size, count * HASH_SIZE);
    assert_memory_equal(w->payload, right, count * HASH_SIZE);
    peer__hashes__free_unpacked(hashes, NULL);
}

static void hashes_of_both_layers_are_the_trees(void **state)
{
    struct made part = help_make(1 << 20, 4);
    struct content *content = help_get(d.store, &part, true);
    struct wire w;

    (void)state;
    assert_int_equal(content_set_piece_layer(content, part.layer), 0);
    assert_int_equal(content_set_leaves(content, 1, part.leaves + 16 * HASH_SIZE), 0);
    fetcher(&w);
    open_file(&w, 1, &big, true);
    ask_hashes(&w, 1, LAYER_PIECES, 3, big.g.pieces - 3);
    expect_hashes(&w, big.layer + 3 * HASH_SIZE, big.g.pieces - 3);
    ask_hashes(&w, 1, LAYER_BLOCKS, 35, 5);
    expect_hashes(&w, big.leaves + 35 * HASH_SIZE, 5);
    open_file(&w, 2, &part, false);
    ask_hashes(&w, 2, LAYER_BLOCKS, 16, 16);
    expect_hashes(&w, part.leaves + 16 * HASH_SIZE, 16);
    ask_hashes(&w, 2, LAYER_BLOCKS, 0, 16);
    assert_int_equal(wire_next(&w), REJECT);
    struct refusal r = refusal_here(&w);
    assert_true(r.hashes);
    assert_int_equal(r.reason, PEER__REASON__REASON_NO_BLOCK);
    ask_hashes(&w, 3, LAYER_BLOCKS, 0, 16);
    expect_refusal(&w, PEER__REASON__REASON_NO_FILE);
    ask_hashes(&w, 1, LAYER_BLOCKS, 15, 2); /* of two pieces */
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_PROTOCOL);
    wire_free(&w);
    content_release(content);
    help_unmake(&part);
}

static void a_damaged_block_is_refused_alone_and_the_link_goes_on(void **state)
{
    struct wire w;
    unsigned blocks = 0, corrupt = 0;

    (void)state;
    assert_int_equal(store_sync(d.store), 0);
    help_damage(directory, &big, "data", 6 * BLOCK_SIZE + 100, 0x5a, 3);
    fetcher(&w);
    open_file(&w, 1, &big, true);
    request(&w, 1, 0, 32, BACKGROUND);
    for (unsigned i = 0; i < 32; i++) {
        int type = wire_next(&w);
        if (type == REJECT) {
            struct refusal r = refusal_here(&w);
            assert_int_equal(r.block, 6);
            assert_int_equal(r.count, 1);
            assert_int_equal(r.reason, PEER__REASON__REASON_CORRUPT);
            corrupt++;
        } else {
            assert_int_equal(type, BLOCK);
            assert_int_not_equal(block_here(&w, &big), 6);
            blocks++;
        }
    }
    assert_int_equal(corrupt, 1);
    request(&w, 1, 6, 1, DEMAND);
    expect_refusal(&w, PEER__REASON__REASON_NO_BLOCK);
    expect_pong(&w);
    wire_free(&w);
}

/* --- limits --- */

static void more_than_a_full_queue_is_refused(void **state)
{
    struct wire w;
    unsigned asked = 0, blocks = 0, refused = 0;

    (void)state;
    fetcher(&w);
    for (uint32_t file = 1; file <= 5; file++)
        open_file(&w, file, &big, true);
    for (uint32_t file = 1; file <= 5; file++) {
        for (uint32_t at = 0; at < big.g.blocks; at += 512, asked += 512)
            request(&w, file, at, 512, BACKGROUND);
    }
    while (blocks + refused < asked) {
        int type = wire_next(&w);
        if (type == BLOCK) {
            blocks++;
        } else {
            assert_int_equal(type, REJECT);
            struct refusal r = refusal_here(&w);
            assert_int_equal(r.reason, PEER__REASON__REASON_BUSY);
            refused += r.count;
        }
    }
    assert_in_range(blocks, LIMIT_QUEUED_BLOCKS - 512, asked - 1);
    expect_pong(&w);
    wire_free(&w);
}

static void expect_end_for(unsigned type, uint32_t file, uint64_t block, uint32_t count,
                           int urgency)
{
    struct wire w;
    Peer__Request ask = PEER__REQUEST__INIT;

    fetcher(&w);
    open_file(&w, 1, &big, true);
    ask.file = file;
    ask.block = block;
    ask.count = count;
    ask.urgency = (Peer__Urgency)urgency;
    assert_true(wire_send(&w, type, &ask.base));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_PROTOCOL);
    wire_free(&w);
    WAIT_FOR(count_links() == 0);
}

/* Anna, who may go on. */
static void forgiven_end_for(unsigned type, uint32_t file, uint64_t block, uint32_t count,
                             int urgency)
{
    uint8_t device[DEVICE_ID_SIZE];

    key_device_id(anna_key, device);
    expect_end_for(type, file, block, count, urgency);
    bans_lift(d.bans, device);
}

static void whoever_breaks_the_protocol_is_told_so_and_left(void **state)
{
    const unsigned ask = PEER__PEER_TYPE__PEER_REQUEST;
    struct wire w;

    (void)state;
    forgiven_end_for(ask, 1, 0, 0, 0);
    forgiven_end_for(ask, 1, 0, LIMIT_REQUEST_BLOCKS + 1, 0);
    forgiven_end_for(ask, 1, big.g.blocks - 1, 2, 0);
    forgiven_end_for(ask, 1, UINT64_MAX, 1, 0);
    forgiven_end_for(ask, 1, 0, 1, 3);
    forgiven_end_for(ask, 1, 0, 1, -1);
    forgiven_end_for(999, 1, 0, 1, 0);
    forgiven_end_for(PEER__PEER_TYPE__PEER_OPEN, 1, 0, 0, 0);
    fetcher(&w);
    assert_true(wire_send_raw(&w, (struct frame){.message_size = 3, .type = (uint16_t)ask},
                              "\xff\xff\xff"));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_PROTOCOL);
    wire_free(&w);
    WAIT_FOR(count_links() == 0);
}

static void whoever_breaks_it_time_and_again_is_banned(void **state)
{
    const unsigned ask = PEER__PEER_TYPE__PEER_REQUEST;
    struct ban ban;
    struct wire w, other;

    (void)state;
    for (unsigned i = 1; i < LIMIT_STRIKES; i++)
        expect_end_for(ask, 1, 0, 0, 0);
    assert_int_equal(bans_list(d.bans, clock_now(), &ban, 1), 0);
    fetcher(&other); /* a second link of hers, which did nothing */
    fetcher(&w);
    assert_true(wire_send_raw(&w, (struct frame){.message_size = 3, .type = (uint16_t)ask},
                              "\xff\xff\xff"));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_PROTOCOL);
    expect_goodbye(&other, PEER__FAREWELL__FAREWELL_BANNED);
    wire_free(&w);
    wire_free(&other);
    assert_int_equal(bans_list(d.bans, clock_now(), &ban, 1), 1);
    assert_string_equal(ban.account, "anna");
    assert_string_equal(ban.why, "broke the protocol: a malformed Request");
    wire_init(&w, anna, anna_key, NULL);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 64 << 10), false));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_BANNED);
    wire_free(&w);
    /* Others are served. */
    wire_init(&w, bert, bert_key, NULL);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 64 << 10), false));
    send_hello(&w, PEER__ROLE__ROLE_FETCHER);
    expect_hello(&w);
    wire_free(&w);
}

static void what_may_be_skipped_is_skipped(void **state)
{
    struct wire w;
    uint8_t header[FRAME_HEADER_SIZE];
    const struct frame unknown = {
        .type = 4711, .flags = FRAME_MAY_SKIP, .message_size = 3, .payload_size = 2};

    (void)state;
    fetcher(&w);
    frame_encode(header, &unknown);
    assert_true(wire_write(&w, header, sizeof header));
    assert_true(wire_write(&w, "abcde", 5));
    expect_pong(&w);
    wire_free(&w);
}

static void who_does_not_read_costs_little_and_harms_nobody(void **state)
{
    struct wire slow, other;

    (void)state;
    fetcher(&slow);
    open_file(&slow, 1, &big, true);
    request(&slow, 1, 0, 1024, BACKGROUND);
    request(&slow, 1, 1024, 512, DEMAND);
    fetcher(&other);
    open_file(&other, 1, &big, true);
    request(&other, 1, 0, 1024, BACKGROUND);
    expect_blocks(&other, &big, 0, 1024);
    struct upload_status *s = ask_status();
    assert_int_equal(s->link_count, 2);
    uint64_t least = s->links[0].total < s->links[1].total ? s->links[0].total : s->links[1].total;
    assert_in_range(least, BLOCK_SIZE, 10 << 20); /* kernel's buffers, 1 MiB + 512 KiB of ours */
    upload_status_free(s);
    wire_free(&other);
    unsigned blocks = 0;
    while (blocks < 1536) { /* and when it reads, all is there */
        assert_int_equal(wire_next(&slow), BLOCK);
        block_here(&slow, &big);
        blocks++;
    }
    wire_free(&slow);
}

/* --- who may come --- */

static void strangers_are_not_served(void **state)
{
    struct wire w;

    (void)state;
    wire_init(&w, NULL, NULL, NULL);
    if (wire_shake(&w, wire_tcp(upload_port(upload), 0), false))
        assert_int_equal(wire_next(&w), WIRE_ENDED);
    wire_free(&w);
    wire_init(&w, foreign, anna_key, NULL);
    if (wire_shake(&w, wire_tcp(upload_port(upload), 0), false))
        assert_int_equal(wire_next(&w), WIRE_ENDED);
    wire_free(&w);
    assert_int_equal(count_links(), 0);
}

static void a_first_message_that_is_no_hello_ends_it(void **state)
{
    struct wire w;
    Peer__Hello hello = PEER__HELLO__INIT;

    (void)state;
    wire_init(&w, anna, anna_key, NULL);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 0), false));
    send_ping(&w);
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_PROTOCOL);
    wire_hang_up(&w);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 0), false));
    hello.version = 3;
    hello.oldest = 2;
    hello.role = PEER__ROLE__ROLE_FETCHER;
    assert_true(wire_send(&w, HELLO, &hello.base));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_VERSION);
    wire_hang_up(&w);
    /* Larger than any Hello: refused before memory is taken. */
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 0), false));
    uint8_t header[FRAME_HEADER_SIZE];
    frame_encode(header, &(struct frame){.message_size = 60000, .type = HELLO});
    assert_true(wire_write(&w, header, sizeof header));
    assert_int_equal(wire_next(&w), WIRE_ENDED);
    wire_free(&w);
}

static void a_revoked_device_loses_its_links_and_gets_no_new_ones(void **state)
{
    struct wire w, half, other;
    struct certificate_subject subject;

    (void)state;
    assert_true(certificate_subject(anna, &subject));
    fetcher(&w);
    /* One that has shaken hands and not yet said Hello. */
    wire_init(&half, anna, anna_key, NULL);
    assert_true(wire_shake(&half, wire_tcp(upload_port(upload), 0), false));
    wire_init(&other, bert, bert_key, NULL);
    assert_true(wire_shake(&other, wire_tcp(upload_port(upload), 0), false));
    send_hello(&other, PEER__ROLE__ROLE_FETCHER);
    expect_hello(&other);
    usleep(200000);
    revocations_add(d.revocations, subject.device, clock_wall() / NS_PER_S + 1);
    upload_revoked(upload, subject.device);
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_REVOKED);
    send_hello(&half, PEER__ROLE__ROLE_FETCHER);
    expect_goodbye(&half, PEER__FAREWELL__FAREWELL_REVOKED);
    wire_hang_up(&w);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 0), false));
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_REVOKED);
    wire_free(&w);
    wire_free(&half);
    expect_pong(&other);
    wire_free(&other);
    /* With a certificate that was issued later it may come. */
    usleep(2100000);
    struct certificate *before = anna;
    anna = swarm_device(ca, ca_key, anna_key, "anna", SWARM_DAY_S);
    fetcher(&w);
    expect_pong(&w);
    wire_free(&w);
    certificate_free(before);
}

static void one_device_has_a_few_links(void **state)
{
    struct wire w[LIMIT_PEER_LINKS_DEVICE + 1];

    (void)state;
    for (unsigned i = 0; i < LIMIT_PEER_LINKS_DEVICE; i++)
        fetcher(&w[i]);
    struct wire *more = &w[LIMIT_PEER_LINKS_DEVICE];
    wire_init(more, anna, anna_key, NULL);
    assert_true(wire_shake(more, wire_tcp(upload_port(upload), 0), false));
    expect_goodbye(more, PEER__FAREWELL__FAREWELL_BUSY);
    for (unsigned i = 0; i <= LIMIT_PEER_LINKS_DEVICE; i++)
        wire_free(&w[i]);
}

static void after_logging_out_nobody_is_served(void **state)
{
    struct wire w;

    (void)state;
    fetcher(&w);
    upload_credentials(upload, credentials()); /* renewed: links stay */
    expect_pong(&w);
    upload_credentials(upload, NULL);
    expect_goodbye(&w, PEER__FAREWELL__FAREWELL_STOPPING);
    wire_hang_up(&w);
    int fd = wire_tcp(upload_port(upload), 0);
    char byte;
    assert_true(read(fd, &byte, 1) <= 0);
    close(fd);
    wire_free(&w);
}

static void handshakes_that_do_not_go_on_are_few(void **state)
{
    int fds[LIMIT_HALF_OPEN_SOURCE + 3];
    char byte;
    struct wire w;

    (void)state;
    for (unsigned i = 0; i < LIMIT_HALF_OPEN_SOURCE; i++)
        fds[i] = wire_tcp(upload_port(upload), 0);
    usleep(100000);
    for (unsigned i = LIMIT_HALF_OPEN_SOURCE; i < LIMIT_HALF_OPEN_SOURCE + 3; i++) {
        fds[i] = wire_tcp(upload_port(upload), 0);
        assert_true(read(fds[i], &byte, 1) <= 0); /* closed at once */
    }
    for (unsigned i = 0; i < LIMIT_HALF_OPEN_SOURCE + 3; i++)
        close(fds[i]);
    usleep(200000);
    fetcher(&w);
    wire_free(&w);
}

/* --- the other way round --- */

static void a_server_who_dials_is_handed_over(void **state)
{
    struct wire w;

    (void)state;
    wire_init(&w, anna, anna_key, NULL);
    assert_true(wire_shake(&w, wire_tcp(upload_port(upload), 0), false));
    send_hello(&w, PEER__ROLE__ROLE_SERVER);
    assert_int_equal(wire_next(&w), WIRE_ENDED);
    WAIT_FOR(adopted == 1);
    assert_true(adopted_hello > 4);
    assert_int_equal(count_links(), 0);
    wire_free(&w);
}

static char **address_list(const char *first, const char *second)
{
    char **list = xcalloc(3, sizeof *list);

    list[0] = xstrdup(first);
    list[1] = second == NULL ? NULL : xstrdup(second);
    return list;
}

static void who_cannot_dial_us_is_dialled(void **state)
{
    struct wire w;
    struct certificate_subject subject;
    uint16_t wrong_port = 0, port = 0;
    int wrong = wire_listen(&wrong_port), listener = wire_listen(&port);
    char *wrong_text = xasprintf("127.0.0.1:%u", wrong_port);
    char *text = xasprintf("127.0.0.1:%u", port);

    (void)state;
    assert_true(certificate_subject(anna, &subject));
    /* Another device answers at the first address: the second is tried. */
    upload_dial_back(upload, subject.device, address_list(wrong_text, text));
    wire_init(&w, bert, bert_key, ca);
    int fd = wire_await(wrong, SWARM_PATIENCE);
    assert_true(fd >= 0);
    if (wire_shake(&w, fd, true))
        assert_int_equal(wire_next(&w), WIRE_ENDED);
    wire_free(&w);
    wire_init(&w, anna, anna_key, ca);
    fd = wire_await(listener, SWARM_PATIENCE);
    assert_true(fd >= 0);
    assert_true(wire_shake(&w, fd, true));
    expect_hello(&w);
    send_hello(&w, PEER__ROLE__ROLE_FETCHER);
    open_file(&w, 1, &small, true);
    request(&w, 1, 0, 1, DEMAND);
    expect_block(&w, &small, 0);
    wire_free(&w);
    /* Nonsense harms nobody. */
    upload_dial_back(upload, subject.device, address_list("example.org:1", "127.0.0.1:0"));
    upload_dial_back(upload, subject.device, address_list("", NULL));
    /* While it is being dialled it is not dialled again. */
    upload_dial_back(upload, subject.device, address_list(text, NULL));
    upload_dial_back(upload, subject.device, address_list(text, NULL));
    int first = wire_await(listener, SWARM_PATIENCE);
    assert_true(first >= 0);
    assert_int_equal(wire_await(listener, NS_PER_S / 2), -1);
    close(first);
    close(wrong);
    close(listener);
    free(wrong_text);
    free(text);
    WAIT_FOR(count_links() == 0);
}

/* --- rate --- */

#define RATE         (UINT64_C(4) << 20)
#define RATED_BLOCKS 256 /* 4 MiB each of two links */

struct rated {
    struct wire w;
    pthread_t thread;
    atomic_uint blocks;
};

static void *read_rated(void *arg)
{
    struct rated *r = arg;

    while (r->blocks < RATED_BLOCKS && wire_next(&r->w) == BLOCK)
        r->blocks++;
    return NULL;
}

static void a_rate_limit_is_kept_and_shared(void **state)
{
    static struct rated first,
        second; /* not on the stack: a failed test leaves it to the threads */

    (void)state;
    fetcher(&first.w);
    fetcher(&second.w);
    open_file(&first.w, 1, &big, true);
    open_file(&second.w, 1, &big, true);
    int64_t start = clock_now();
    request(&first.w, 1, 0, RATED_BLOCKS, BACKGROUND);
    request(&second.w, 1, 0, RATED_BLOCKS, BACKGROUND);
    assert_int_equal(pthread_create(&first.thread, NULL, read_rated, &first), 0);
    assert_int_equal(pthread_create(&second.thread, NULL, read_rated, &second), 0);
    WAIT_FOR(first.blocks == RATED_BLOCKS || second.blocks == RATED_BLOCKS);
    unsigned less = first.blocks < second.blocks ? first.blocks : second.blocks;
    if (less <= RATED_BLOCKS / 4)
        fail_msg("%u blocks of %u", less, RATED_BLOCKS);
    pthread_join(first.thread, NULL);
    pthread_join(second.thread, NULL);
    assert_int_equal(first.blocks, RATED_BLOCKS);
    assert_int_equal(second.blocks, RATED_BLOCKS);
    double seconds = (double)(clock_now() - start) / (double)NS_PER_S;
    assert_true(seconds > 1.2 && seconds < 10); /* 2 s */
    wire_free(&first.w);
    wire_free(&second.w);
}

static void small_requests_use_up_what_they_take(void **state)
{
    struct wire w;

    (void)state;
    fetcher(&w);
    for (uint32_t file = 0; file < 64; file++)
        open_file(&w, file, &small, true);
    int64_t start = clock_now();
    for (uint32_t file = 0; file < 64; file++)
        request(&w, file, 0, 1, BACKGROUND);
    for (unsigned i = 0; i < 64; i++)
        assert_int_equal(wire_next(&w), BLOCK);
    assert_true(clock_now() - start < 3 * NS_PER_S); /* 1 MiB, a quarter of a second */
    wire_free(&w);
}

static int set_up_rated(void **state)
{
    (void)state;
    begin(RATE, false);
    return 0;
}

/* --- the end --- */

static void it_stops_with_links_and_jobs_under_way(void **state)
{
    struct wire deaf, w, half;

    (void)state;
    begin(0, false);
    fetcher(&deaf);
    open_file(&deaf, 1, &big, true);
    request(&deaf, 1, 0, 1024, BACKGROUND);
    fetcher(&w);
    wire_init(&half, bert, bert_key, NULL);
    half.fd = wire_tcp(upload_port(upload), 0);
    open_file(&w, 1, &big, true);
    for (uint64_t i = 0; i < 64; i++) {
        uint8_t unknown[HASH_SIZE] = {9, (uint8_t)i};
        request(&w, 1, 16 * i, 1, DEMAND);
        ask_hashes(&w, 1, LAYER_BLOCKS, 16 * i, 16);
        send_open(&w, 100 + (uint32_t)i, unknown, 5);
    }
    int64_t start = clock_now();
    finish();
    assert_true(clock_now() - start < 10 * NS_PER_S);
    /* A fetcher that reads nothing meanwhile may not get the last word; the link ends all the same. */
    while (wire_next(&w) > 0)
        ;
    wire_free(&w);
    wire_free(&deaf);
    wire_free(&half);
}

static void it_keeps_its_port_over_a_restart(void **state)
{
    const char *fault = "";

    (void)state;
    begin(0, false);
    upload_stop(upload);
    workers_drain(d.workers);
    uint16_t port = upload_port(upload);
    upload_free(upload);
    upload = upload_new(&d, &fault);
    assert_non_null(upload);
    assert_int_equal(upload_port(upload), port);
    /* A port that was asked for and is in use is said so. */
    char listen[32];
    snprintf(listen, sizeof listen, "127.0.0.1:%u", port);
    d.settings.listen = listen;
    assert_null(upload_new(&d, &fault));
    assert_non_null(strstr(fault, "in use"));
    upload_start(upload);
    finish();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_complete_file_opens_and_its_blocks_come_in_order),
        TEST(of_an_incomplete_file_it_tells_what_is_there_and_what_comes),
        TEST(parts_of_a_piece_are_told_of_before_it_is_whole),
        TEST(what_is_not_here_or_of_another_size_is_not_opened),
        TEST(without_a_right_a_file_that_is_here_is_as_unknown_as_any),
        TEST(a_ticket_for_everything_opens_everything),
        TEST(a_right_that_was_taken_ends_the_file_at_once),
        TEST(who_shows_no_new_ticket_loses_the_file_after_the_grace),
        TEST(a_ticket_ends_by_itself),
        cmocka_unit_test_setup_teardown(what_is_asked_for_along_with_an_open_is_answered_behind_it,
                                        set_up_closed, tear_down),
        cmocka_unit_test_setup_teardown(what_is_asked_for_along_with_an_open_is_bounded_and_checked,
                                        set_up_closed, tear_down),
        TEST(files_opened_and_closed_at_once_do_not_pile_up),
        TEST(too_many_open_files_are_refused),
        TEST(an_accounts_links_share_what_may_be_open),
        TEST(demanded_blocks_overtake_the_rest),
        TEST(a_demand_does_not_wait_behind_hashes_that_are_not_read),
        TEST(cancelled_blocks_do_not_come),
        TEST(who_asks_back_is_told_which_blocks_will_not_come),
        TEST(hashes_of_both_layers_are_the_trees),
        TEST(a_damaged_block_is_refused_alone_and_the_link_goes_on),
        TEST(more_than_a_full_queue_is_refused),
        TEST(whoever_breaks_the_protocol_is_told_so_and_left),
        TEST(whoever_breaks_it_time_and_again_is_banned),
        TEST(what_may_be_skipped_is_skipped),
        TEST(who_does_not_read_costs_little_and_harms_nobody),
        TEST(strangers_are_not_served),
        TEST(a_first_message_that_is_no_hello_ends_it),
        TEST(a_revoked_device_loses_its_links_and_gets_no_new_ones),
        TEST(one_device_has_a_few_links),
        TEST(after_logging_out_nobody_is_served),
        TEST(handshakes_that_do_not_go_on_are_few),
        TEST(a_server_who_dials_is_handed_over),
        TEST(who_cannot_dial_us_is_dialled),
        cmocka_unit_test_setup_teardown(a_rate_limit_is_kept_and_shared, set_up_rated, tear_down),
        cmocka_unit_test_setup_teardown(small_requests_use_up_what_they_take, set_up_rated,
                                        tear_down),
        cmocka_unit_test(it_stops_with_links_and_jobs_under_way),
        cmocka_unit_test(it_keeps_its_port_over_a_restart),
    };
    return cmocka_run_group_tests_name("upload", tests, set_up_all, tear_down_all);
}
