/* Accounts from outside: user (for admins), devices, audit.
 *
 * The tracker judges who may; what is printed of other members is escaped on its way. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hex.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/number.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "proto/message.h"
#include "tools/account.h"
#include "tools/call.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define TYPE(name)   TRACKER__TRACKER_TYPE__TRACKER_##name
#define DEVICE_BYTES 16 /* of a device's number, see tracker.proto */

/* --- user list, show ----------------------------------------------------------------------------- */

static Tracker__UsersAre *ask_users(struct client *client, const struct ctl *ctl, const char *after,
                                    const char *name)
{
    Tracker__Users message = TRACKER__USERS__INIT;
    const struct call call = {TYPE(USERS), &message.base, TYPE(USERS_ARE),
                              &tracker__users_are__descriptor};

    message.after = message_text(after);
    message.name = message_text(name);
    return (Tracker__UsersAre *)call_tracker(client, ctl, &call);
}

static const char *state_of(const Tracker__Account *user)
{
    if (user->deleted)
        return "deleted";
    if (user->disabled)
        return "disabled";
    return user->waiting ? "not verified" : "good";
}

static void user_row(struct table *table, const Tracker__Account *user)
{
    char when[64];

    account_format_time(when, sizeof when, user->created);
    table_row(table);
    table_cell(table, "%s", user->name);
    table_cell(table, "%s", user->admin ? "admin" : "");
    table_cell(table, "%s", state_of(user));
    table_cell(table, "%s", user->email);
    table_cell(table, "%s", *user->email == '\0' ? "" : user->email_verified ? "yes" : "no");
    table_cell(table, "%s", user->second_factor ? "yes" : "no");
    table_cell(table, "%s", when);
}

/* All pages; false: the reason has been said. */
static bool list_users(struct client *client, const struct ctl *ctl, struct table *table,
                       json_t *list)
{
    char after[ACCOUNT_BYTES_MAX + 1] = "";
    bool more = true;

    while (more) {
        Tracker__UsersAre *page = ask_users(client, ctl, after, "");
        if (page == NULL)
            return false;
        for (size_t i = 0; i < page->n_users; i++) {
            user_row(table, page->users[i]);
            json_array_append_new(list, json_from_message(&page->users[i]->base));
            snprintf(after, sizeof after, "%s", page->users[i]->name);
        }
        more = page->more && page->n_users > 0;
        call_free(&page->base);
    }
    return true;
}

static int user_list(struct client *client, const struct ctl *ctl)
{
    static const struct table_column columns[] = {
        {"ACCOUNT", TABLE_LEFT}, {"ROLE", TABLE_LEFT},     {"STATE", TABLE_LEFT},
        {"E-MAIL", TABLE_LEFT},  {"VERIFIED", TABLE_LEFT}, {"SECOND FACTOR", TABLE_LEFT},
        {"CREATED", TABLE_LEFT}, {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);
    json_t *list = json_array();
    bool good = list_users(client, ctl, table, list);

    if (good && ctl->json)
        json_print(json_pack("{s:O}", "users", list), true);
    else if (good)
        table_print(table, stdout, terminal_width(STDOUT_FILENO));
    json_decref(list);
    table_free(table);
    return good ? CTL_DONE : CTL_FAILED;
}

static void print_devices(Tracker__Device *const *devices, size_t count, const char *own)
{
    static const struct table_column columns[] = {
        {"DEVICE", TABLE_LEFT},    {"MACHINE", TABLE_GIVES_WAY}, {"SINCE", TABLE_LEFT},
        {"LAST SEEN", TABLE_LEFT}, {"STATE", TABLE_LEFT},        {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);
    char when[64], id[2 * DEVICE_BYTES + 1];

    for (size_t i = 0; i < count; i++) {
        const Tracker__Device *device = devices[i];
        if (device->id.len != DEVICE_BYTES)
            continue;
        hex_encode(id, device->id.data, DEVICE_BYTES);
        table_row(table);
        table_cell(table, "%.16s%s", id, strcmp(id, own) == 0 ? " (this one)" : "");
        table_cell(table, "%s", device->machine);
        account_format_time(when, sizeof when, device->created);
        table_cell(table, "%s", when);
        account_format_time(when, sizeof when, device->last_seen);
        table_cell(table, "%s", device->connected ? "now" : when);
        table_cell(table, "%s",
                   device->logged_out  ? "logged out"
                   : device->connected ? "connected"
                                       : "logged in");
    }
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

static void print_user(const Tracker__Account *user)
{
    char when[64];
    char *email = text_escape(user->email), *name = text_escape(user->name);

    account_format_time(when, sizeof when, user->created);
    printf("%-14s%s%s\n", "account", name, user->admin ? " (admin)" : "");
    printf("%-14s%s\n", "state", state_of(user));
    printf("%-14s%s%s\n", "e-mail", *email == '\0' ? "none" : email,
           *email == '\0'         ? ""
           : user->email_verified ? " (verified)"
                                  : " (not verified)");
    if (user->second_factor)
        printf("%-14son, %" PRIu32 " recovery codes left\n", "second factor", user->recovery_codes);
    else
        printf("%-14soff\n", "second factor");
    printf("%-14s%" PRIu64 " of %" PRIu64 "\n", "entries", user->entries, user->quota);
    printf("%-14s%s\n", "created", when);
    if (user->n_devices > 0)
        putchar('\n');
    print_devices(user->devices, user->n_devices, "");
    free(email);
    free(name);
}

static int user_show(struct client *client, const struct ctl *ctl)
{
    Tracker__UsersAre *answer = ask_users(client, ctl, "", ctl->arguments[1]);
    bool good = answer != NULL && answer->n_users == 1;

    if (good && ctl->json)
        json_print(json_from_message(&answer->users[0]->base), true);
    else if (good)
        print_user(answer->users[0]);
    call_free((ProtobufCMessage *)answer);
    return good ? CTL_DONE : CTL_FAILED;
}

/* --- user disable, enable, ... --------------------------------------------------------------------- */

static int user_change(struct client *client, const struct ctl *ctl, Tracker__UserAct act,
                       const char *said)
{
    Tracker__UserChange message = TRACKER__USER_CHANGE__INIT;

    message.name = ctl->arguments[1];
    message.act = act;
    return ctl_finish(ctl, call_done(client, ctl, TYPE(USER_CHANGE), &message.base), said);
}

static int user_disable(struct client *client, const struct ctl *ctl)
{
    return user_change(client, ctl, TRACKER__USER_ACT__USER_DISABLE,
                       "The account is disabled: its certificates are void, its links end.");
}

static int user_enable(struct client *client, const struct ctl *ctl)
{
    return user_change(client, ctl, TRACKER__USER_ACT__USER_ENABLE,
                       "The account is enabled: its devices may log in again.");
}

static int user_delete(struct client *client, const struct ctl *ctl)
{
    return user_change(client, ctl, TRACKER__USER_ACT__USER_DELETE,
                       "The account is deleted. Its files stay; 'p2pctl user transfer' gives them "
                       "to another one.");
}

static int user_totp_off(struct client *client, const struct ctl *ctl)
{
    return user_change(client, ctl, TRACKER__USER_ACT__USER_TOTP_OFF,
                       "The account has no second factor any more.");
}

static int user_admin(struct client *client, const struct ctl *ctl)
{
    bool on = strcmp(ctl->arguments[2], "on") == 0;

    if (!on && strcmp(ctl->arguments[2], "off") != 0) {
        log_error("'%s' is neither 'on' nor 'off'", ctl->arguments[2]);
        return CTL_WRONG_USAGE;
    }
    return user_change(
        client, ctl, on ? TRACKER__USER_ACT__USER_ADMIN_ON : TRACKER__USER_ACT__USER_ADMIN_OFF,
        on ? "The account is an admin's now." : "The account is not an admin's any more.");
}

static int user_quota(struct client *client, const struct ctl *ctl)
{
    Tracker__UserChange message = TRACKER__USER_CHANGE__INIT;

    message.name = ctl->arguments[1];
    message.act = TRACKER__USER_ACT__USER_QUOTA;
    if (strcmp(ctl->arguments[2], "default") != 0 &&
        !number_parse(ctl->arguments[2], 1, LIMIT_ENTRIES, &message.quota)) {
        log_error("'%s' is neither a number from 1 to %u nor 'default'", ctl->arguments[2],
                  LIMIT_ENTRIES);
        return CTL_WRONG_USAGE;
    }
    return ctl_finish(ctl, call_done(client, ctl, TYPE(USER_CHANGE), &message.base),
                      "The account may have so many files, directories and links.");
}

static int user_transfer(struct client *client, const struct ctl *ctl)
{
    Tracker__Transfer message = TRACKER__TRANSFER__INIT;
    const struct call call = {TYPE(TRANSFER), &message.base, TYPE(TRANSFERRED),
                              &tracker__transferred__descriptor};

    message.from = ctl->arguments[1];
    message.to = ctl->arguments[2];
    Tracker__Transferred *answer = (Tracker__Transferred *)call_tracker(client, ctl, &call);
    bool good = answer != NULL;
    if (good && ctl->json)
        json_print(json_from_message(&answer->base), true);
    else if (good)
        printf("%" PRIu64 " files, directories and links have a new owner.\n", answer->entries);
    call_free((ProtobufCMessage *)answer);
    return good ? CTL_DONE : CTL_FAILED;
}

static const struct user_verb {
    const char *name;
    int arguments; /* behind it */
    const char *usage;
    int (*run)(struct client *, const struct ctl *);
} user_verbs[] = {
    {"list", 0, "list", user_list},
    {"show", 1, "show NAME", user_show},
    {"disable", 1, "disable NAME", user_disable},
    {"enable", 1, "enable NAME", user_enable},
    {"delete", 1, "delete NAME", user_delete},
    {"admin", 2, "admin NAME on|off", user_admin},
    {"totp-off", 1, "totp-off NAME", user_totp_off},
    {"quota", 2, "quota NAME N|default", user_quota},
    {"transfer", 2, "transfer FROM TO", user_transfer},
};
#define USER_VERBS (sizeof user_verbs / sizeof *user_verbs)

int user_verb(const struct ctl *ctl)
{
    const struct user_verb *verb = NULL;

    for (size_t i = 0; i < USER_VERBS; i++)
        if (strcmp(user_verbs[i].name, ctl->arguments[0]) == 0)
            verb = &user_verbs[i];
    if (verb == NULL) {
        log_error("'user' knows list, show, disable, enable, delete, admin, totp-off, quota and "
                  "transfer, but not '%s'",
                  ctl->arguments[0]);
        return CTL_WRONG_USAGE;
    }
    if (ctl->argument_count != 1 + verb->arguments) {
        log_error("usage: p2pctl user %s", verb->usage);
        return CTL_WRONG_USAGE;
    }
    for (int i = 1; i < ctl->argument_count && i <= (verb->run == user_transfer ? 2 : 1); i++)
        if (account_name_fault(ctl->arguments[i]) != NULL) {
            char *clean = text_escape(ctl->arguments[i]);
            log_error("'%s' is no account's name: it %s", clean,
                      account_name_fault(ctl->arguments[i]));
            free(clean);
            return CTL_WRONG_USAGE;
        }
    struct client *client = account_open(ctl);
    int status = client == NULL ? CTL_FAILED : verb->run(client, ctl);
    client_free(client);
    return status;
}

/* --- devices ------------------------------------------------------------------------------------------ */

/* This device's number, malloc'ed. */
static char *own_device(struct client *client)
{
    Local__Whoami message = LOCAL__WHOAMI__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_WHOAMI,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_ACCOUNT,
        .answer = &local__account__descriptor,
        .timeout_ns = LIMIT_CTL_ANSWER_NS,
    };
    struct client_fault fault;
    const Local__Account *account = client_request(client, &request, &fault);

    return xstrdup(account == NULL ? "" : account->device);
}

static int devices_show(struct client *client, const struct ctl *ctl)
{
    Tracker__Whoami message = TRACKER__WHOAMI__INIT;
    const struct call call = {TYPE(WHOAMI), &message.base, TYPE(ACCOUNT),
                              &tracker__account__descriptor};
    Tracker__Account *account = (Tracker__Account *)call_tracker(client, ctl, &call);

    if (account == NULL)
        return CTL_FAILED;
    char *own = own_device(client);
    if (ctl->json) {
        json_t *list = json_array();
        for (size_t i = 0; i < account->n_devices; i++)
            json_array_append_new(list, json_from_message(&account->devices[i]->base));
        json_print(json_pack("{s:o}", "devices", list), true);
    } else {
        print_devices(account->devices, account->n_devices, own);
    }
    free(own);
    call_free(&account->base);
    return CTL_DONE;
}

/* The beginning of a device's number as bytes; an odd last digit does not do. */
static bool parse_device(const char *text, uint8_t id[DEVICE_BYTES], size_t *size)
{
    *size = strlen(text) / 2;
    if (*size > 0 && *size <= DEVICE_BYTES && strlen(text) % 2 == 0 && hex_decode(id, *size, text))
        return true;
    log_error("'%s' is not a device's number as 'p2pctl devices' shows it", text);
    return false;
}

int user_devices(const struct ctl *ctl)
{
    Tracker__DeviceRemove message = TRACKER__DEVICE_REMOVE__INIT;
    uint8_t id[DEVICE_BYTES];
    bool removes = ctl->argument_count > 0;

    if (removes && (strcmp(ctl->arguments[0], "remove") != 0 || ctl->argument_count != 2)) {
        log_error("usage: p2pctl devices [remove DEVICE]");
        return CTL_WRONG_USAGE;
    }
    if (removes && !parse_device(ctl->arguments[1], id, &message.id.len))
        return CTL_WRONG_USAGE;
    message.id.data = id;
    struct client *client = account_open(ctl);
    int status = CTL_FAILED;
    if (client != NULL && removes)
        status = ctl_finish(ctl, call_done(client, ctl, TYPE(DEVICE_REMOVE), &message.base),
                            "The device is logged out: its certificate is void, its links end. "
                            "If it was stolen, change the password as well.");
    else if (client != NULL)
        status = devices_show(client, ctl);
    client_free(client);
    return status;
}

/* --- audit ------------------------------------------------------------------------------------------------ */

#define AUDIT_USUAL 100
#define AUDIT_MOST  200000

static Tracker__AuditIs *ask_audit(struct client *client, const struct ctl *ctl, uint64_t before,
                                   uint64_t left)
{
    Tracker__Audit message = TRACKER__AUDIT__INIT;
    const struct call call = {TYPE(AUDIT), &message.base, TYPE(AUDIT_IS),
                              &tracker__audit_is__descriptor};

    message.before = before;
    message.since = ctl->since;
    message.account = message_text(ctl->account != NULL ? ctl->account : "");
    message.count = left < LIMIT_AUDIT_ROWS ? (uint32_t)left : LIMIT_AUDIT_ROWS;
    return (Tracker__AuditIs *)call_tracker(client, ctl, &call);
}

static void event_row(struct table *table, const json_t *event)
{
    char when[64];
    static const char *const columns[] = {"what", "account", "by", "source", "device", "detail"};

    account_format_time(when, sizeof when, json_integer_value(json_object_get(event, "time")));
    table_row(table);
    table_cell(table, "%s", when);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        const char *text = json_string_value(json_object_get(event, columns[i]));
        if (i == 1 && *text == '\0')
            text = "(p2ptracker)"; /* its own command, on its machine */
        table_cell(table, i == 4 ? "%.16s" : "%s", text);
    }
}

static void print_events(const json_t *events)
{
    static const struct table_column columns[] = {
        {"TIME", TABLE_LEFT},        {"EVENT", TABLE_LEFT}, {"ACCOUNT", TABLE_LEFT},
        {"BY", TABLE_LEFT},          {"FROM", TABLE_LEFT},  {"DEVICE", TABLE_LEFT},
        {"DETAIL", TABLE_GIVES_WAY}, {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);

    for (size_t i = 0; i < json_array_size(events); i++)
        event_row(table, json_array_get(events, i));
    if (table_rows(table) == 0)
        puts("Nothing.");
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

/* The newest `most` events, the oldest of them first. NULL: the reason has been said. */
static json_t *gather_events(struct client *client, const struct ctl *ctl, uint64_t most)
{
    json_t *events = json_array();
    uint64_t before = 0;
    bool more = true;

    while (more && json_array_size(events) < most) {
        Tracker__AuditIs *page = ask_audit(client, ctl, before, most - json_array_size(events));
        if (page == NULL) {
            json_decref(events);
            return NULL;
        }
        for (size_t i = 0; i < page->n_events; i++) {
            json_array_append_new(events, json_from_message(&page->events[i]->base));
            before = page->events[i]->number;
        }
        more = page->more && page->n_events > 0;
        call_free(&page->base);
    }
    json_t *sorted = json_array();
    for (size_t i = json_array_size(events); i > 0; i--)
        json_array_append(sorted, json_array_get(events, i - 1));
    json_decref(events);
    return sorted;
}

int user_audit(const struct ctl *ctl)
{
    struct client *client = account_open(ctl);
    uint64_t most = ctl->count > 0 ? ctl->count : ctl->since != 0 ? AUDIT_MOST : AUDIT_USUAL;

    if (client == NULL)
        return CTL_FAILED;
    json_t *events = gather_events(client, ctl, most);
    client_free(client);
    if (events == NULL)
        return CTL_FAILED;
    if (ctl->json)
        json_print(json_pack("{s:O}", "events", events), true);
    else
        print_events(events);
    json_decref(events);
    return CTL_DONE;
}
