/* tracker/storage*.c: opening, migration, damage, accounts, invites; the queue's group commit. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/mem.h"
#include "base/thread.h"
#include "tracker/storage.h"
#include "tracker/storage_queue.h"

static char dir[64];

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/storage-test-XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    char *command = xasprintf("rm -rf %s", dir);
    int status = system(command);
    free(command);
    return status;
}

static struct storage *open_good(enum storage_use use)
{
    char *fault = NULL;
    struct storage *storage = storage_open(dir, use, &fault);
    if (storage == NULL)
        fail_msg("%s", fault);
    return storage;
}

/* The sentence that opening fails with; malloc'ed. */
static char *open_fault(enum storage_use use)
{
    char *fault = NULL;
    struct storage *storage = storage_open(dir, use, &fault);
    assert_null(storage);
    assert_non_null(fault);
    return fault;
}

static void assert_fault(enum storage_use use, const char *part)
{
    char *fault = open_fault(use);
    if (strstr(fault, part) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", fault, part);
    free(fault);
}

/* Changes a database behind the program's back. */
static void tamper(const char *name, const char *sql)
{
    sqlite3 *db;
    char *path = xasprintf("%s/%s", dir, name);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    char *why = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK)
        fail_msg("%s", why);
    sqlite3_close(db);
    free(path);
}

static void overwrite(const char *name, off_t offset, size_t size)
{
    char *path = xasprintf("%s/%s", dir, name);
    uint8_t *junk = xmalloc(size);
    memset(junk, 0xa5, size);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, junk, size, offset), (ssize_t)size);
    close(fd);
    free(junk);
    free(path);
}

static struct storage_account account(const char *name)
{
    struct storage_account a = {.created = 1};
    snprintf(a.name, sizeof a.name, "%s", name);
    snprintf(a.password, sizeof a.password, "$argon2id$x");
    return a;
}

/* --- opening ------------------------------------------------------------------------------------------------- */

static void a_new_directory_gets_its_databases_and_a_generation(void **state)
{
    uint8_t first[STORAGE_GENERATION_SIZE], second[STORAGE_GENERATION_SIZE];
    struct storage *storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, false));
    assert_true(storage_is_new(storage));
    storage_generation(storage, first);
    assert_true(storage_commit(storage));
    storage_close(storage);
    storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, false));
    storage_generation(storage, second);
    assert_true(storage_commit(storage));
    assert_memory_equal(first, second, sizeof first);
    storage_close(storage);
}

static void a_command_does_not_create_anything(void **state)
{
    assert_fault(STORAGE_VISIT, "holds no tracker yet");
    char *path = xasprintf("%s/tracker.db", dir);
    assert_int_not_equal(access(path, F_OK), 0);
    free(path);
}

/* One of ann's, bob's and the tracker's own command each; then one for admins of each. */
static void put_invites(struct storage *storage)
{
    static const char *const by[] = {"ann", "bob", ""};
    struct storage_account bob = account("bob");
    assert_true(storage_account_add(storage, &bob));
    for (uint8_t i = 0; i < 6; i++) {
        struct storage_invite invite = {.hash = {i}, .admin = i >= 3, .uses = 1, .expires = 100};
        snprintf(invite.by, sizeof invite.by, "%s", by[i % 3]);
        storage_invite_add(storage, &invite);
    }
}

/* Bits. */
static unsigned invites_left(struct storage *storage)
{
    unsigned bits = 0;
    for (uint8_t i = 0; i < 6; i++) {
        uint8_t hash[32] = {i};
        struct storage_invite invite;
        bits |= (unsigned)storage_invite_get(storage, hash, 1, &invite) << i;
    }
    return bits;
}

static void invites_end_with_what_their_maker_may(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_account ann = account("ann");
    assert_true(storage_begin(storage, true));
    assert_true(storage_account_add(storage, &ann));
    put_invites(storage);
    assert_int_equal(invites_left(storage), 63);
    storage_invite_drop_of(storage, "ann", true);
    assert_int_equal(invites_left(storage), 63 - 8);
    storage_invite_drop_of(storage, "bob", false);
    assert_int_equal(invites_left(storage), 63 - 8 - 2 - 16);
    assert_int_equal(storage_account_count(storage), 2);
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static void what_strangers_do_pushes_out_nothing_else(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, true));
    storage_audit(storage, &(struct storage_event){.when = 1, .what = "login", .account = "ann"});
    for (unsigned i = 0; i < LIMIT_AUDIT_KEPT + 10; i++)
        storage_audit(storage, &(struct storage_event){.when = 1, .what = "reset-ask"});
    storage_audit_prune(storage);
    assert_int_equal(storage_audit_count(storage, "login"), 1);
    assert_int_equal(storage_audit_count(storage, "reset-ask"), LIMIT_AUDIT_REFUSED);
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static void an_older_schema_is_brought_up_and_keeps_its_rows(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_account ann = account("ann"), found;
    assert_true(storage_begin(storage, true));
    assert_true(storage_account_add(storage, &ann));
    put_invites(storage);
    assert_true(storage_commit(storage));
    storage_close(storage);
    tamper("tracker.db",
           "UPDATE account SET disabled = 1 WHERE name = 'bob';"
           "DROP TABLE entry; DROP TABLE op; DROP TRIGGER rule_account; DROP TABLE rule;"
           "DROP TABLE owned;"
           "DROP TABLE membership; DROP TABLE team; DROP TABLE renewal; DROP TABLE signer;"
           "DROP TABLE token; DROP TABLE mail; DROP TABLE recovery;"
           "ALTER TABLE account DROP COLUMN quota;"
           "ALTER TABLE account DROP COLUMN verified;"
           "ALTER TABLE account DROP COLUMN waiting;"
           "ALTER TABLE account DROP COLUMN deleted;"
           "ALTER TABLE account DROP COLUMN totp;"
           "ALTER TABLE account DROP COLUMN totp_on;"
           "ALTER TABLE account DROP COLUMN totp_step;"
           "DROP TABLE audit; PRAGMA user_version = 1;");
    assert_fault(STORAGE_VISIT, "older");
    storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, true));
    assert_true(storage_account_get(storage, "ann", &found));
    assert_int_equal(invites_left(storage), 1 + 4 + 32); /* hers, and those of the command */
    storage_audit(storage, &(struct storage_event){.when = 1, .what = "login", .account = "ann"});
    assert_int_equal(storage_audit_count(storage, "login"), 1);
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static void a_newer_database_is_left_alone(void **state)
{
    storage_close(open_good(STORAGE_SERVE));
    tamper("tracker.db", "PRAGMA user_version = 99;");
    assert_fault(STORAGE_SERVE, "newer p2ptracker");
    assert_fault(STORAGE_VISIT, "newer p2ptracker");
}

static void what_is_no_database_is_refused(void **state)
{
    overwrite("tracker.db", 0, 8192);
    assert_fault(STORAGE_SERVE, "not a database");
}

static void another_programs_database_is_refused(void **state)
{
    tamper("tracker.db", "CREATE TABLE t(x); PRAGMA user_version = 1;");
    assert_fault(STORAGE_SERVE, "not a tracker's");
}

static void a_damaged_database_stops_the_start(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, true));
    for (unsigned i = 0; i < 3000; i++) {
        char name[32];
        snprintf(name, sizeof name, "account-%u", i);
        struct storage_account a = account(name);
        assert_true(storage_account_add(storage, &a));
    }
    assert_true(storage_commit(storage));
    storage_close(storage);
    overwrite("tracker.db", 20 * 4096, 4096 * 4);
    assert_fault(STORAGE_SERVE, "damaged");
}

static void damaged_piece_maps_start_anew(void **state)
{
    storage_close(open_good(STORAGE_SERVE));
    overwrite("pieces.db", 0, 8192);
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_holding holding = {.device = {1}, .complete = true};
    assert_true(storage_holdings_write(storage, &holding, 1));
    storage_close(storage);
}

static void a_command_and_the_server_use_one_database(void **state)
{
    struct storage *server = open_good(STORAGE_SERVE);
    struct storage *command = open_good(STORAGE_VISIT);
    struct storage_invite invite = {.hash = {5}, .uses = 1, .expires = 100}, found;
    assert_true(storage_begin(command, true));
    storage_invite_add(command, &invite);
    assert_true(storage_commit(command));
    assert_true(storage_begin(server, true));
    assert_true(storage_invite_get(server, invite.hash, 50, &found));
    assert_true(storage_commit(server));
    storage_close(command);
    storage_close(server);
}

/* --- rows ------------------------------------------------------------------------------------------------------ */

static void a_name_is_taken_once(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_account ann = account("ann");
    assert_true(storage_begin(storage, true));
    assert_true(storage_account_add(storage, &ann));
    assert_false(storage_account_add(storage, &ann));
    assert_false(storage_failed(storage));
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static void an_invite_is_used_up_and_expires(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_invite invite = {.hash = {5}, .uses = 2, .expires = 100}, found;
    assert_true(storage_begin(storage, true));
    storage_invite_add(storage, &invite);
    assert_true(storage_invite_get(storage, invite.hash, 99, &found));
    assert_false(storage_invite_get(storage, invite.hash, 100, &found));
    storage_invite_use(storage, invite.hash);
    assert_true(storage_invite_get(storage, invite.hash, 50, &found));
    storage_invite_use(storage, invite.hash);
    assert_false(storage_invite_get(storage, invite.hash, 50, &found));
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static void audit_is_only_added_to(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    assert_true(storage_begin(storage, true));
    storage_audit(storage, &(struct storage_event){.when = 1, .what = "login", .account = "ann"});
    assert_true(storage_commit(storage));
    storage_close(storage);
    sqlite3 *db;
    char *path = xasprintf("%s/tracker.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_not_equal(sqlite3_exec(db, "DELETE FROM audit", NULL, NULL, NULL), SQLITE_OK);
    assert_int_not_equal(sqlite3_exec(db, "UPDATE audit SET what = ''", NULL, NULL, NULL),
                         SQLITE_OK);
    sqlite3_close(db);
    free(path);
}

static void what_was_undone_did_not_happen(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    struct storage_account ann = account("ann"), bob = account("bob"), found;
    struct storage_entry entry = {.parent = 1, .kind = 1, .name = "d"};
    assert_true(storage_begin(storage, true));
    assert_true(storage_mark(storage));
    assert_true(storage_account_add(storage, &ann));
    assert_true(storage_keep(storage));
    assert_true(storage_mark(storage));
    assert_true(storage_account_add(storage, &bob));
    storage_entry_add(storage, &entry);
    storage_undo(storage);
    assert_false(storage_failed(storage));
    assert_int_equal(storage_seq(storage), 0);
    assert_int_equal(storage_entry_count(storage), 0);
    assert_true(storage_commit(storage));
    assert_true(storage_begin(storage, false));
    assert_true(storage_account_get(storage, "ann", &found));
    assert_false(storage_account_get(storage, "bob", &found));
    assert_true(storage_commit(storage));
    storage_close(storage);
}

static unsigned rows;

static void count_holding(const struct storage_holding *holding, void *arg)
{
    rows++;
    assert_int_equal(holding->size, 77);
    assert_false(holding->complete);
    assert_int_equal(holding->map_size, 3);
    assert_memory_equal(holding->map, "\1\2\3", 3);
}

static void piece_maps_are_written_and_read(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    uint8_t map[3] = {1, 2, 3};
    struct storage_holding holdings[3] = {
        {.device = {1}, .root = {1}, .size = 77, .map = map, .map_size = 3},
        {.device = {2}, .root = {1}, .size = 77, .complete = true},
        {.device = {2}, .root = {1}, .size = 77, .dropped = true},
    };
    rows = 0;
    assert_true(storage_holdings_write(storage, holdings, 3));
    assert_true(storage_begin(storage, false));
    storage_holdings_each(storage, count_holding, NULL);
    assert_int_equal(rows, 1);
    assert_true(storage_commit(storage));
    storage_close(storage);
}

/* --- the queue --------------------------------------------------------------------------------------------------- */

enum { JOBS = 2000 };

struct test_job {
    struct storage_job job;
    unsigned number;
    bool bad; /* breaks a rule of the database */
};
static struct loop *home;
static unsigned came, failures;

static void job_run(struct storage_job *job, struct storage *storage)
{
    struct test_job *t = (struct test_job *)(void *)job;
    char name[32];
    snprintf(name, sizeof name, "account-%u", t->number);
    struct storage_account a = account(name);
    storage_account_add(storage, &a);
    if (t->bad) { /* a device of an account that is not there */
        struct storage_device device = {.id = {(uint8_t)t->number, 9}, .account = "nobody"};
        storage_device_put(storage, &device);
    }
}

static void job_done(struct storage_job *job)
{
    struct test_job *t = (struct test_job *)(void *)job;
    struct storage_account found;
    struct storage *visitor;
    char *fault;
    assert_int_equal(t->number, came);
    came++;
    failures += job->failed;
    assert_int_equal(job->failed, t->bad);
    if (t->number % 500 == 0) { /* it is in the file before the answer */
        char name[32];
        snprintf(name, sizeof name, "account-%u", t->number);
        visitor = storage_open(dir, STORAGE_VISIT, &fault);
        assert_non_null(visitor);
        assert_true(storage_begin(visitor, false));
        assert_int_equal(storage_account_get(visitor, name, &found), !t->bad);
        assert_true(storage_commit(visitor));
        storage_close(visitor);
    }
    free(t);
    if (came == JOBS)
        loop_stop(home);
}

static void jobs_come_back_in_order_after_a_common_commit(void **state)
{
    struct storage *storage = open_good(STORAGE_SERVE);
    unsigned long transactions, jobs;
    home = loop_new("home");
    came = failures = 0;
    struct storage_queue *queue = storage_queue_new(storage, home);
    for (unsigned i = 0; i < JOBS; i++) {
        struct test_job *t = xcalloc(1, sizeof *t);
        t->job = (struct storage_job){.run = job_run, .done = job_done, .writes = true};
        t->number = i;
        t->bad = i % 499 == 3;
        storage_queue_post(queue, &t->job);
    }
    loop_run(home);
    assert_int_equal(came, JOBS);
    storage_queue_counts(queue, &transactions, &jobs);
    assert_int_equal(jobs, JOBS);
    assert_true(transactions < JOBS / 4);
    storage_queue_free(queue);
    loop_free(home);
    storage_close(storage);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    log_init("test", LOG_LEVEL_ERROR, false);
    setenv("P2P_LOG", "error", 0);
    const struct CMUnitTest tests[] = {
        TEST(a_new_directory_gets_its_databases_and_a_generation),
        TEST(a_command_does_not_create_anything),
        TEST(an_older_schema_is_brought_up_and_keeps_its_rows),
        TEST(a_newer_database_is_left_alone),
        TEST(what_is_no_database_is_refused),
        TEST(another_programs_database_is_refused),
        TEST(a_damaged_database_stops_the_start),
        TEST(damaged_piece_maps_start_anew),
        TEST(a_command_and_the_server_use_one_database),
        TEST(a_name_is_taken_once),
        TEST(an_invite_is_used_up_and_expires),
        TEST(audit_is_only_added_to),
        TEST(what_strangers_do_pushes_out_nothing_else),
        TEST(invites_end_with_what_their_maker_may),
        TEST(what_was_undone_did_not_happen),
        TEST(piece_maps_are_written_and_read),
        TEST(jobs_come_back_in_order_after_a_common_commit),
    };
    return cmocka_run_group_tests_name("tracker_storage", tests, NULL, NULL);
}
