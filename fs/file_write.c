/* Writing: the gate, the queue of turns, working files and sealing.
 *
 *            WriteBegin            Opened
 *   SEALED ─────────────▶ BEGINNING ─────▶ WORKING ──┐ writes, through the gate
 *     ▲                       │ error        ▲  │◀───┘
 *     ├───────────────────────┘              │  │ Seal, once no writer is inside
 *     └────────── Attr ──── SEALING ◀────────┼──┘
 *                              └─── error ───┘
 *
 * FUSE workers write to the working file without asking anybody as long as the gate is open: the file is WORKING and no
 * turn waits. Everything else (a write that finds the gate closed, a truncation, the FLUSH of a close) takes its turn
 * here, in order, on the client's thread.
 *
 *   W1  The gate is open only in WORKING with no turn waiting.
 *   W2  Seal is sent only when the gate is closed and no worker is inside: after it the file is the store's, and
 *       nobody may ever write to it again.
 *   W3  `dirty` is set before the bytes are written and cleared when Seal is sent; set again if sealing failed.
 *   W4  Of every byte that changed, by a write, a hole or a new size, the daemon is told before Seal: it hashes behind the
 *       writer, keeps the hashes of what a new version begins with, and would seal those of the old bytes.
 *   W5  Where a Seal was sent and no answer came (p2pd is gone for longer than we wait) the file may be the store's: the
 *       gate stays closed, and whatever wants to change it has to wait until a Seal is answered. */
#include "fs/file_internal.h"

#include "base/check.h"
#include "base/mem.h"
#include "fs/client.h"
#include "fs/fs.h"
#include "fs/times.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/param.h>
#include <unistd.h>

#define TELL_WROTE (1u << 20) /* bytes written before the daemon hears of it */
#define NS         1000000000

/* --- FUSE workers ---------------------------------------------------------------------------------------- */

void file_touch(struct file *f)
{
    if (!f->fs->passthrough)
        return; /* the kernel keeps the time, and sends it */
    clock_gettime(CLOCK_REALTIME, &f->st.st_mtim);
    f->set_mtime = true;
}

struct content *file_begin_write(struct file *f)
{
    struct content *content = NULL;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (f->gate) {
        f->writers++;
        f->dirty = true;
        file_touch(f);
        content = content_share(f->content);
    }
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return content;
}

struct wrote_mail {
    struct mail mail;
    struct file *file;
    bool advance; /* the last writer has gone */
};

static void tell_wrote(struct file *f);

static void deliver_wrote(struct mail *mail, void *owner)
{
    struct file *f = ((struct wrote_mail *)mail)->file;
    bool advance = ((struct wrote_mail *)mail)->advance;

    free(mail);
    tell_wrote(f);
    if (advance)
        file_advance(f);
}

/* Under the file's lock. */
static void note_wrote(struct file *f, uint64_t from, uint64_t to)
{
    unsigned last = f->wrote_count - 1;

    if (from == to)
        return;
    if (f->wrote_count > 0 && from == f->wrote[last].to) {
        f->wrote[last].to = to;
    } else if (f->wrote_count < FILE_WROTE) {
        f->wrote[f->wrote_count].from = from;
        f->wrote[f->wrote_count++].to = to;
    } else {
        f->wrote[last].from = MIN(f->wrote[last].from, from);
        f->wrote[last].to = MAX(f->wrote[last].to, to);
    }
}

/* Of a write that failed half way what may have come into the file. */
static uint64_t write_reached(const struct content *content, uint64_t offset, uint64_t size,
                              int result)
{
    if (result == 0)
        return size;

    int64_t end = content_size(content);
    return end <= (int64_t)offset ? 0 : MIN(size, (uint64_t)end - offset);
}

void file_end_write(struct file *f, struct content *content, uint64_t offset, uint64_t size,
                    int result)
{
    uint64_t reached = write_reached(content, offset, size, result);
    bool tell, advance;

    content_release(content);
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    note_wrote(f, offset, offset + reached);
    tell = !f->telling && (f->wrote_count > 1 || (f->wrote_count == 1 &&
                                                  f->wrote[0].to - f->wrote[0].from >= TELL_WROTE));
    if (tell)
        f->telling = true;
    CHECK(f->writers > 0);
    advance = --f->writers == 0 && f->gate_watch;
    if (advance)
        f->gate_watch = false;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    if (tell || advance) { /* the handle that wrote is open until we answer: the file lives */
        struct wrote_mail *m = xcalloc(1, sizeof(*m));

        m->mail.deliver = deliver_wrote;
        m->file = f;
        m->advance = advance;
        loop_post(client_loop(f->fs->client), &m->mail);
    }
}

bool file_has_no_writer(struct file *f)
{
    bool calm;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    calm = f->writable == 0;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return calm;
}

bool file_is_unsealed(struct file *f)
{
    bool unsealed;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    unsealed = f->unsealed;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return unsealed;
}

void file_set_unsealed(struct file *f, bool unsealed)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    f->unsealed = unsealed;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

bool file_is_dirty(struct file *f)
{
    bool dirty;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    dirty = f->dirty || !f->calm;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return dirty;
}

/* --- the client's thread: steps to the daemon ------------------------------------------------------------ */

static bool is_dirty(struct file *f)
{
    bool dirty;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    dirty = f->dirty;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return dirty;
}

static void set_dirty(struct file *f, bool dirty)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    if (dirty)
        file_touch(f);
    f->dirty = dirty;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

/* The turn that is waiting for a step gets its error; whoever is behind it tries again. */
static void fail_turn(struct file *f, int error)
{
    struct request *r = TAILQ_FIRST(&f->turns);

    if (r != NULL)
        request_finish(r, error);
}

static void on_begun(struct request *r, struct answer *a)
{
    struct file *f = r->file;
    const Local__Opened *opened = a->message;

    f->pending--;
    f->busy++;
    f->state = FILE_SEALED;
    if (a->error == 0 && (!opened->working || a->fds[0] < 0))
        a->error = EIO;
    if (a->error == 0) {
        int error;

        file_install(f, file_content_of(a, &error));
        f->state = FILE_WORKING;
        f->number = opened->number;
        file_set_unsealed(f, true);
        f->seal_failed = f->doubt = false;
    } else {
        fail_turn(f, a->error);
    }
    f->busy--;
    file_advance(f);
}

static void begin(struct file *f, const struct request *for_turn)
{
    struct request *r = request_new(f->fs, NULL, LOCAL__LOCAL_TYPE__LOCAL_WRITE_BEGIN, on_begun);
    int64_t size = content_size(f->content);
    uint64_t keep = size > 0 ? (uint64_t)size : 0;

    if (for_turn->turn == TURN_EMPTY)
        keep = 0;
    else if (for_turn->turn == TURN_TRUNCATE && for_turn->size < keep)
        keep = for_turn->size;
    r->message.begin = (Local__WriteBegin)LOCAL__WRITE_BEGIN__INIT;
    r->message.begin.ino = f->ino;
    r->message.begin.size = keep;
    r->file = f;
    r->keep = true;
    r->patience = PATIENCE_SLOW;
    CHECK(f->passed == 0);
    f->edited = true;
    f->pending++;
    f->state = FILE_BEGINNING;
    request_begin(r);
}

static void on_sealed(struct request *r, struct answer *a)
{
    struct file *f = r->file;

    f->pending--;
    f->busy++;
    if (a->error == ENOENT) { /* removed while it was written: nothing is left to publish */
        f->nameless = true;
        a->error = 0;
    }
    if (a->error == 0) {
        f->state = FILE_SEALED;
        file_set_unsealed(f, false);
        f->doubt = false;
        f->set_mtime = false;
        file_set_attr(f, a->message);
        times_changed(f->fs->times, f->ino);
        fs_changed(f->fs);
    } else {
        f->state = FILE_WORKING;
        f->seal_failed = true;
        f->doubt = a->packed == NULL && (r->again || f->doubt);
        CHECK(pthread_mutex_lock(&f->lock) == 0);
        f->dirty = true;
        CHECK(pthread_mutex_unlock(&f->lock) == 0);
        fail_turn(f, a->error);
    }
    f->busy--;
    file_advance(f);
}

static void tell(struct file *f, uint64_t offset, uint64_t size)
{
    if (size > 0)
        client_notice_now(f->fs->client, LOCAL__LOCAL_TYPE__LOCAL_WROTE, f->ino, 0, offset, size,
                          false);
}

/* All that writers have left to be told: ranges are noted before their writer is counted out, so none comes behind Seal. */
static void tell_wrote(struct file *f)
{
    typeof(f->wrote) wrote;
    unsigned count;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    count = f->wrote_count;
    memcpy(wrote, f->wrote, sizeof(wrote));
    f->wrote_count = 0;
    f->telling = false;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    for (unsigned i = 0; i < count; i++)
        tell(f, wrote[i].from, wrote[i].to - wrote[i].from);
}

static void seal(struct file *f)
{
    struct request *r = request_new(f->fs, NULL, LOCAL__LOCAL_TYPE__LOCAL_SEAL, on_sealed);
    int64_t size = content_size(f->content);

    tell_wrote(f);
    set_dirty(f, false);
    r->message.seal = (Local__Seal)LOCAL__SEAL__INIT;
    r->message.seal.ino = f->ino;
    r->message.seal.number = f->number;
    r->message.seal.size = size > 0 ? (uint64_t)size : 0;
    r->message.seal.set_mtime = f->set_mtime;
    if (f->set_mtime)
        r->message.seal.mtime = (int64_t)f->st.st_mtim.tv_sec * NS + f->st.st_mtim.tv_nsec;
    r->file = f;
    r->keep = true;
    r->patience = PATIENCE_SLOW;
    f->pending++;
    f->state = FILE_SEALING;
    request_begin(r);
}

/* --- turns ----------------------------------------------------------------------------------------------- */

/* True if a worker is inside; it will call file_advance when it leaves. */
static bool wait_for_writers(struct file *f)
{
    bool inside;

    CHECK(pthread_mutex_lock(&f->lock) == 0);
    inside = f->writers > 0;
    f->gate_watch = inside;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
    return inside;
}

/* To that size; what was cut off comes back as zeros, if it does. */
static int set_size(struct file *f, uint64_t size)
{
    int64_t old = content_size(f->content);

    int result;

    set_dirty(f, true);
    if (size > INT64_MAX)
        return -EFBIG;
    result = content_set_size(f->content, size);
    if (result != 0)
        return result;
    if (old > (int64_t)size)
        tell(f, size, (uint64_t)old - size);
    return 0;
}

static int carry_out(struct file *f, struct request *r)
{
    int result = 0;

    switch (r->turn) {
    case TURN_WRITE:
        set_dirty(f, true);
        result = content_write(f->content, r->data, r->data_size, r->offset);
        tell(f, r->offset, write_reached(f->content, r->offset, r->data_size, result));
        break;
    case TURN_TRUNCATE:
        result = set_size(f, r->size);
        break;
    case TURN_EMPTY:
        if (content_size(f->content) > 0)
            result = set_size(f, 0);
        break;
    default:
        CHECK(r->turn == TURN_ALLOCATE);
        set_dirty(f, true);
        result = content_allocate(f->content, r->flags, r->offset, r->size);
        if ((r->flags & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0)
            tell(f, r->offset, r->size); /* also after an error: it may have come half way */
        break;
    }
    return -result;
}

/* False if the first turn has to wait. */
static bool take_turn(struct file *f, struct request *r)
{
    if (r->turn == TURN_AGAIN) {
        request_unqueue(r);
        r->turn = TURN_NONE;
        r->had_turn = true;
        r->start(r);
        return true;
    }
    if (r->turn == TURN_SEAL) {
        bool last = r->req == NULL;

        if (f->state == FILE_SEALED || !(is_dirty(f) || (last && f->unsealed))) {
            request_finish(r, 0);
            return true;
        }
        if (!wait_for_writers(f))
            seal(f);
        return false;
    }
    if (f->state == FILE_SEALED && !f->nameless) {
        begin(f, r);
        return false;
    }
    if (f->doubt) { /* W5 */
        seal(f);
        return false;
    }
    if (r->turn == TURN_TRUNCATE && wait_for_writers(f))
        return false;
    {
        int error = carry_out(f, r);

        if (error == 0 && r->turn == TURN_TRUNCATE && f->handles == 0)
            r->turn =
                TURN_SEAL; /* truncate(2) of a file that nobody has open ends with its publication */
        else
            request_finish(r, error);
    }
    return true;
}

static void set_gate(struct file *f, bool open, bool calm)
{
    CHECK(pthread_mutex_lock(&f->lock) == 0);
    f->gate = open;
    f->calm = calm;
    CHECK(pthread_mutex_unlock(&f->lock) == 0);
}

static bool is_settled(const struct file *f)
{
    return f->state == FILE_SEALED || f->state == FILE_WORKING;
}

void file_advance(struct file *f)
{
    struct request *r;

    f->busy++;
    if (!is_settled(f) || !TAILQ_EMPTY(&f->turns))
        set_gate(f, false, false);
    while (f->state != FILE_OPENING && (r = TAILQ_FIRST(&f->opens)) != NULL) {
        request_unqueue(r);
        if ((r->flags & O_ACCMODE) != O_RDONLY && file_is_passed(f)) {
            file_renew(r);
        } else if ((r->flags & O_TRUNC) != 0 && (r->flags & O_ACCMODE) != O_RDONLY &&
                   content_size(f->content) != 0) {
            r->turn = TURN_EMPTY;
            request_queue(r, &f->turns);
            set_gate(f, false, false);
        } else {
            request_finish(r, 0);
        }
    }
    while (f->busy == 1 && is_settled(f) && (r = TAILQ_FIRST(&f->turns)) != NULL)
        if (!take_turn(f, r))
            break;
    if (is_settled(f) && TAILQ_EMPTY(&f->turns))
        set_gate(f, f->state == FILE_WORKING && !f->doubt, true);
    if (--f->busy == 0)
        file_settle(f);
}

void file_take_turn(struct file *f, struct request *r, enum request_turn turn)
{
    r->turn = turn;
    request_queue(r, &f->turns);
    file_advance(f);
}
