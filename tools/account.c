/* Accounts: register, login, logout, whoami, passwd, invite.
 *
 * p2pd does the talking with the tracker; what can be judged here (address, name, length of a
 * password) is judged before a password is asked for. Passwords are wiped as soon as they were sent. */
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "base/number.h"
#include "base/swarm_url.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "tools/account.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/secret.h"
#include "tools/table.h"
#include "tools/terminal.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define DAY_SECONDS 86400
#define INVITE      "invite="

/* --- register, login --------------------------------------------------------------------------- */

/* URL and NAME are what they should be. */
static bool check_arguments(const struct ctl *ctl)
{
    const char *url = ctl->arguments[0], *name = ctl->arguments[1], *fault = NULL;
    struct swarm_url parsed;

    if (!swarm_url_parse(&parsed, url, &fault)) {
        log_error("'%s' is not a swarm's address: %s", url, fault);
        return false;
    }
    fault = account_name_fault(name);
    if (fault != NULL) {
        log_error("the account name '%s' %s", name, fault);
        return false;
    }
    if (ctl->email != NULL &&
        (strchr(ctl->email, '@') == NULL || strlen(ctl->email) > LIMIT_EMAIL)) {
        log_error("'%s' is not an e-mail address", ctl->email);
        return false;
    }
    return true;
}

static void print_line(const char *title, const char *text)
{
    char *clean = text_escape(text);

    printf("%-12s%s\n", title, clean);
    free(clean);
}

/* The password for NAME. */
bool account_ask_password(struct secret *out, const struct ctl *ctl, const char *prompt_start,
                          const char *name, bool fresh)
{
    char *clean = text_escape(name), *prompt = xasprintf("%s %s", prompt_start, clean);
    const struct secret_source source = {
        .file = ctl->password_file,
        .option = "--password-file",
        .environment = true,
        .prompt = prompt,
        .fresh = fresh,
    };
    bool good = secret_get(out, &source);

    free(prompt);
    free(clean);
    return good;
}

bool account_ask_code(struct secret *out, const struct ctl *ctl)
{
    const char *file = ctl->totp_file != NULL ? ctl->totp_file : getenv("P2P_TOTP_FILE");
    const struct secret_source source = {
        .file = file, .option = "--totp-file", .prompt = "Code of the second factor"};

    return secret_get(out, &source);
}

static const Local__Account *send_credentials(struct client *client, const struct ctl *ctl,
                                              bool fresh, struct secret *password,
                                              struct secret *code, struct client_fault *fault)
{
    Local__Register enrol = LOCAL__REGISTER__INIT;
    Local__Login login = LOCAL__LOGIN__INIT;
    char none[] = "";
    struct client_request request = {
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_ACCOUNT,
        .answer = &local__account__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    ProtobufCBinaryData bytes = {.len = password->size, .data = (uint8_t *)password->bytes};
    char *email = ctl->email != NULL ? xstrdup(ctl->email) : NULL;

    if (fresh) {
        enrol.url = ctl->arguments[0];
        enrol.name = ctl->arguments[1];
        enrol.password = bytes;
        enrol.email = email != NULL ? email : none;
        request.type = LOCAL__LOCAL_TYPE__LOCAL_REGISTER;
        request.message = &enrol.base;
    } else {
        login.url = ctl->arguments[0];
        login.name = ctl->arguments[1];
        login.password = bytes;
        if (code != NULL)
            login.code = code->bytes;
        request.type = LOCAL__LOCAL_TYPE__LOCAL_LOGIN;
        request.message = &login.base;
    }
    const Local__Account *account = client_request(client, &request, fault);
    free(email);
    return account;
}

/* A log in that wants a code of the second factor is tried once more with one. */
static const Local__Account *send_until_good(struct client *client, const struct ctl *ctl,
                                             bool fresh, struct secret *password)
{
    struct client_fault fault;
    struct secret code;
    const Local__Account *account = send_credentials(client, ctl, fresh, password, NULL, &fault);
    bool said = false;

    if (account == NULL && fault.number == ENOKEY) {
        said = !account_ask_code(&code, ctl);
        if (!said)
            account = send_credentials(client, ctl, fresh, password, &code, &fault);
        secret_clear(&code);
    }
    if (account == NULL && !said)
        log_error("%s", fault.text);
    secret_clear(password);
    return account;
}

/* What everybody who just came wants to know next. */
static void print_welcome(const Local__Account *account, bool fresh)
{
    char *name = text_escape(account->name), *swarm = text_escape(account->swarm),
         *note = text_escape(account->note);

    if (*account->name == '\0') {
        printf("Registered. %c%s\n", note[0] - 'a' + 'A', note + 1);
        free(name);
        free(swarm);
        free(note);
        return;
    }
    printf("%s as %s%s%s\n", fresh ? "Registered and logged in" : "Logged in", name,
           *swarm != '\0' ? " at " : "", swarm);
    if (*note != '\0')
        printf("%s\n", note);
    if (isatty(STDOUT_FILENO))
        printf(
            "Next: make a directory and mount the swarm there: mkdir ~/swarm && p2pfs ~/swarm\n");
    free(name);
    free(swarm);
    free(note);
}

static int enter_at_url(const struct ctl *ctl, bool fresh)
{
    struct secret password;
    const Local__Account *account = NULL;

    if (!check_arguments(ctl))
        return CTL_WRONG_USAGE;
    struct client *client = ctl_open(ctl, true);
    if (client == NULL)
        return CTL_FAILED;
    if (fresh && *client_account(client) != '\0') {
        log_error("this device is logged in as %s; 'p2pctl logout' first", client_account(client));
    } else if (account_ask_password(&password, ctl, fresh ? "New password for" : "Password of",
                                    ctl->arguments[1], fresh)) {
        account = send_until_good(client, ctl, fresh, &password);
        if (account != NULL && ctl->json)
            json_print(json_from_message(&account->base), true);
        else if (account != NULL)
            print_welcome(account, fresh);
    }
    client_free(client);
    return account != NULL ? CTL_DONE : CTL_FAILED;
}

/* An address may hold an invite, and arguments are seen by others, for as long as a password is asked for and sent: one of "-" is
 * read, and of any other one the invite is hidden. */
static int enter(const struct ctl *ctl, bool fresh)
{
    const struct secret_source source = {.file = "-"};
    char *given = ctl->arguments[0], *invite = strstr(given, INVITE);
    struct secret line;

    if (strcmp(given, "-") == 0) {
        if (!secret_get(&line, &source))
            return CTL_FAILED;
    } else if (!secret_hide(&line, given,
                            invite == NULL ? SIZE_MAX
                                           : (size_t)(invite - given) + sizeof INVITE - 1)) {
        return enter_at_url(ctl, fresh);
    }
    ctl->arguments[0] = line.bytes;
    int status = enter_at_url(ctl, fresh);
    ctl->arguments[0] = given;
    secret_clear(&line);
    return status;
}

int account_register(const struct ctl *ctl)
{
    return enter(ctl, true);
}

int account_login(const struct ctl *ctl)
{
    return enter(ctl, false);
}

/* Connected to a p2pd where somebody is logged in, or NULL: the reason has been said. */
struct client *account_open(const struct ctl *ctl)
{
    struct client *client = ctl_open(ctl, false);

    if (client == NULL || *client_account(client) != '\0')
        return client;
    log_error(
        "nobody is logged in here; 'p2pctl register URL NAME' or 'p2pctl login URL NAME' first");
    client_free(client);
    return NULL;
}

/* --- requests that are answered with Done ------------------------------------------------------ */

int account_logout(const struct ctl *ctl)
{
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_LOGOUT,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    struct client *client = account_open(ctl);
    bool good = client != NULL && ctl_ask(client, &request) != NULL;

    client_free(client);
    return ctl_finish(
        ctl, good, "Logged out. What is stored here stays, and can be read again after a login.");
}

static bool send_passwords(struct client *client, const struct ctl *ctl, struct secret *old,
                           struct secret *fresh)
{
    Local__Password message = LOCAL__PASSWORD__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_PASSWORD,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_DONE,
        .answer = &local__done__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };

    message.old.data = (uint8_t *)old->bytes;
    message.old.len = old->size;
    message.new_.data = (uint8_t *)fresh->bytes;
    message.new_.len = fresh->size;
    message.logout_others = ctl->logout_others;
    return ctl_ask(client, &request) != NULL;
}

int account_passwd(const struct ctl *ctl)
{
    struct secret old, fresh;
    const struct secret_source new_source = {
        .file = ctl->new_password_file,
        .option = "--new-password-file",
        .prompt = "New password",
        .fresh = true,
    };
    struct client *client = account_open(ctl);
    bool good = false;

    if (client == NULL)
        return CTL_FAILED;
    if (account_ask_password(&old, ctl, "Present password of", client_account(client), false)) {
        if (secret_get(&fresh, &new_source)) {
            good = send_passwords(client, ctl, &old, &fresh);
            secret_clear(&fresh);
        }
        secret_clear(&old);
    }
    client_free(client);
    return ctl_finish(
        ctl, good,
        ctl->logout_others
            ? "The password has been changed. Other devices of this account have to log in again."
            : "The password has been changed. Other devices stay logged in ('p2pctl devices').");
}

/* --- whoami ------------------------------------------------------------------------------------ */

void account_format_time(char *out, size_t size, int64_t seconds)
{
    time_t when = (time_t)seconds;
    struct tm parts;

    if (seconds <= 0 || localtime_r(&when, &parts) == NULL ||
        strftime(out, size, "%Y-%m-%d %H:%M", &parts) == 0)
        snprintf(out, size, "unknown");
}

static void print_certificate(int64_t until)
{
    char when[64], left[NUMBER_TEXT_MAX];
    int64_t seconds = until - (int64_t)time(NULL);

    account_format_time(when, sizeof when, until);
    if (seconds > 0)
        printf("%-12sgood until %s (%s), renewed by itself\n", "certificate", when,
               duration_format(left, (uint64_t)seconds));
    else
        printf("%-12sended %s: it is renewed as soon as the tracker can be reached\n",
               "certificate", when);
}

static void print_devices(const Local__Account *account)
{
    static const struct table_column columns[] = {
        {"DEVICE", TABLE_LEFT},    {"MACHINE", TABLE_GIVES_WAY}, {"LAST SEEN", TABLE_LEFT},
        {"CONNECTED", TABLE_LEFT}, {NULL, TABLE_LEFT},
    };
    struct table *table = table_new(columns);
    char when[64];

    for (size_t i = 0; i < account->n_devices; i++) {
        const Local__Device *device = account->devices[i];

        account_format_time(when, sizeof when, device->last_seen);
        table_row(table);
        table_cell(table, "%.16s%s", device->id, device->this_one ? " (this one)" : "");
        table_cell(table, "%s", device->machine);
        table_cell(table, "%s", device->connected ? "now" : when);
        table_cell(table, "%s",
                   device->connected    ? "yes"
                   : device->logged_out ? "logged out"
                                        : "no");
    }
    if (table_rows(table) > 0)
        putchar('\n');
    table_print(table, stdout, terminal_width(STDOUT_FILENO));
    table_free(table);
}

static void print_account(const Local__Account *account, bool from_tracker)
{
    char *name = text_escape(account->name);

    printf("%-12s%s%s\n", "account", name, account->admin ? " (admin)" : "");
    if (*account->email != '\0') {
        char *email = xasprintf("%s (%s)", account->email,
                                account->email_verified ? "verified" : "not verified");
        print_line("e-mail", email);
        free(email);
    } else if (from_tracker)
        print_line("e-mail", "none");
    if (from_tracker)
        print_line("2nd factor", account->second_factor ? "on" : "off");
    if (*account->swarm != '\0')
        print_line("swarm", account->swarm);
    if (*account->url != '\0')
        print_line("address", account->url);
    if (*account->device != '\0')
        print_line("device", account->device);
    if (account->certificate_until != 0)
        print_certificate(account->certificate_until);
    if (*account->note != '\0')
        print_line("note", account->note);
    print_devices(account);
    free(name);
}

int account_whoami(const struct ctl *ctl)
{
    Local__Whoami message = LOCAL__WHOAMI__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_WHOAMI,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_ACCOUNT,
        .answer = &local__account__descriptor,
        .timeout_ns = ctl->tracker ? LIMIT_CTL_TRACKER_NS : LIMIT_CTL_ANSWER_NS,
    };
    struct client *client = account_open(ctl);
    int status = CTL_FAILED;

    if (client == NULL)
        return CTL_FAILED;
    message.ask_tracker = ctl->tracker;
    const Local__Account *account = ctl_ask(client, &request);
    if (account != NULL) {
        status = CTL_DONE;
        if (ctl->json)
            json_print(json_from_message(&account->base), true);
        else
            print_account(account, ctl->tracker);
    }
    client_free(client);
    return status;
}

/* --- invite ------------------------------------------------------------------------------------ */

int account_invite(const struct ctl *ctl)
{
    Local__Invite message = LOCAL__INVITE__INIT;
    const struct client_request request = {
        .type = LOCAL__LOCAL_TYPE__LOCAL_INVITE,
        .message = &message.base,
        .answer_type = LOCAL__LOCAL_TYPE__LOCAL_TEXT,
        .answer = &local__text__descriptor,
        .timeout_ns = LIMIT_CTL_TRACKER_NS,
    };
    struct client *client = account_open(ctl);

    if (client == NULL)
        return CTL_FAILED;
    message.admin = ctl->admin;
    message.uses = ctl->uses > 0 ? (uint32_t)ctl->uses : 1;
    message.lifetime = ctl->expires > 0 ? (uint32_t)ctl->expires : 7 * DAY_SECONDS;
    const Local__Text *answer = ctl_ask(client, &request);
    bool good = answer != NULL;
    if (good && ctl->json) {
        json_print(json_pack("{s:o, s:b, s:I, s:I}", "url", json_from_text(answer->text), "admin",
                             (int)message.admin, "uses", (json_int_t)message.uses, "lifetime",
                             (json_int_t)message.lifetime),
                   true);
    } else if (good) {
        char *clean = text_escape(answer->text);
        puts(clean);
        free(clean);
    }
    client_free(client);
    return good ? CTL_DONE : CTL_FAILED;
}
