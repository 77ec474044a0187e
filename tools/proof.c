/* Who somebody is: e-mail address, a new password by mail, the second factor.
 *
 *   email set ADDR|none · send · verify [CODE]     reset [NAME]     totp enable · confirm · disable · recovery
 *
 * Codes and passwords come from a terminal or a file, are wiped when they were sent, and are printed only where that is
 * the point: a new second factor's secret, and recovery codes. Without a terminal the verbs that ask for a code that is
 * made on the way stop there and say how to go on. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/name.h"
#include "proto/limits.h"
#include "tools/account.h"
#include "tools/call.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define TYPE(name) TRACKER__TRACKER_TYPE__TRACKER_##name

static ProtobufCBinaryData bytes_of(struct secret *secret)
{
    return (ProtobufCBinaryData){.len = secret->size, .data = (uint8_t *)secret->bytes};
}

static bool has_terminal(void)
{
    return isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
}

/* A code that came by mail. */
static bool ask_mail_code(struct secret *out, const struct ctl *ctl)
{
    const struct secret_source source = {
        .file = ctl->code_file, .option = "--code-file", .prompt = "Code from the mail"};

    return secret_get(out, &source);
}

/* --- email ------------------------------------------------------------------------------------------- */

static int email_send(const struct ctl *ctl, struct client *client, Tracker__Email *message)
{
    const struct call call = {TYPE(EMAIL), &message->base, TYPE(EMAIL_IS),
                              &tracker__email_is__descriptor};
    Tracker__EmailIs *answer = (Tracker__EmailIs *)call_tracker(client, ctl, &call);
    bool good = answer != NULL;

    if (good && ctl->json)
        json_print(json_from_message(&answer->base), true);
    else if (good)
        puts(answer->sent ? "A code is on its way to the address: give it to 'p2pctl email verify'."
             : *message->email == '\0'
                 ? "The account has no e-mail address any more."
                 : "The address is set. This tracker sends no mail: it is not verified.");
    call_free((ProtobufCMessage *)answer);
    return good ? CTL_DONE : CTL_FAILED;
}

static int email_set(const struct ctl *ctl)
{
    Tracker__Email message = TRACKER__EMAIL__INIT;
    const char *address = ctl->arguments[1];
    char none[] = "";
    struct secret password;
    int status = CTL_FAILED;

    if (strcmp(address, "none") != 0 &&
        (strchr(address, '@') == NULL || strlen(address) > LIMIT_EMAIL)) {
        log_error("that is not an e-mail address (nor 'none')");
        return CTL_WRONG_USAGE;
    }
    message.email = strcmp(address, "none") == 0 ? none : ctl->arguments[1];
    struct client *client = account_open(ctl);
    if (client == NULL)
        return CTL_FAILED;
    if (account_ask_password(&password, ctl, "Password of", client_account(client), false)) {
        message.password = bytes_of(&password);
        status = email_send(ctl, client, &message);
        secret_clear(&password);
    }
    client_free(client);
    return status;
}

static int email_again(const struct ctl *ctl)
{
    Tracker__Email message = TRACKER__EMAIL__INIT;
    struct client *client = account_open(ctl);

    message.again = true;
    int status = client == NULL ? CTL_FAILED : email_send(ctl, client, &message);
    client_free(client);
    return status;
}

static int email_verify(const struct ctl *ctl)
{
    Tracker__Verify message = TRACKER__VERIFY__INIT;
    struct secret code = {.size = 0};
    bool good = false;

    if (ctl->argument_count < 2 && !ask_mail_code(&code, ctl))
        return CTL_FAILED;
    bool typed = ctl->argument_count >= 2 && !secret_hide(&code, ctl->arguments[1], 0);
    message.code = typed ? ctl->arguments[1] : code.bytes;
    struct client *client = ctl_open(ctl, true);
    if (client != NULL)
        good = call_done(client, ctl, TYPE(VERIFY), &message.base);
    secret_clear(&code);
    client_free(client);
    return ctl_finish(ctl, good, "The e-mail address is verified.");
}

int proof_email(const struct ctl *ctl)
{
    const char *act = ctl->arguments[0];

    if (strcmp(act, "set") == 0 && ctl->argument_count == 2)
        return email_set(ctl);
    if (strcmp(act, "send") == 0 && ctl->argument_count == 1)
        return email_again(ctl);
    if (strcmp(act, "verify") == 0)
        return email_verify(ctl);
    log_error("usage: p2pctl email set ADDR|none, or send, or verify [CODE]");
    return CTL_WRONG_USAGE;
}

/* --- reset ---------------------------------------------------------------------------------------------- */

static bool set_password(struct client *client, const struct ctl *ctl)
{
    Tracker__ResetSet message = TRACKER__RESET_SET__INIT;
    const struct secret_source source = {.file = ctl->new_password_file,
                                         .option = "--new-password-file",
                                         .prompt = "New password",
                                         .fresh = true};
    struct secret code, password;
    bool good = false;

    if (!ask_mail_code(&code, ctl))
        return false;
    if (secret_get(&password, &source)) {
        message.code = code.bytes;
        message.password = bytes_of(&password);
        good = call_done(client, ctl, TYPE(RESET_SET), &message.base);
        secret_clear(&password);
    }
    secret_clear(&code);
    return good;
}

static int reset(const struct ctl *ctl, struct client *client)
{
    Tracker__Reset message = TRACKER__RESET__INIT;
    char *name = xstrdup(ctl->argument_count > 0 ? ctl->arguments[0] : client_account(client));
    bool good = true;

    if (account_name_fault(name) != NULL) {
        log_error(*name == '\0' ? "nobody is logged in here: name the account"
                                : "that is no account's name");
        free(name);
        return CTL_WRONG_USAGE;
    }
    message.name = name;
    if (ctl->code_file == NULL)
        good = call_done(client, ctl, TYPE(RESET), &message.base);
    free(name);
    if (good && ctl->code_file == NULL)
        fprintf(
            ctl->json ? stderr : stdout,
            "If there is such an account and it has an e-mail address, a code is on its way.\n");
    if (good && ctl->code_file == NULL && !has_terminal()) {
        fprintf(ctl->json ? stderr : stdout, "Then: p2pctl reset --code-file FILE NAME\n");
        if (ctl->json)
            json_print(json_pack("{s:b, s:b}", "asked", 1, "done", 0), true);
        return CTL_DONE;
    }
    if (good)
        good = set_password(client, ctl);
    return ctl_finish(ctl, good,
                      "The password has been changed. All devices of this account have to log "
                      "in again.");
}

int proof_reset(const struct ctl *ctl)
{
    struct client *client = ctl_open(ctl, true);
    int status = client == NULL ? CTL_FAILED : reset(ctl, client);

    client_free(client);
    return status;
}

/* --- the second factor ------------------------------------------------------------------------------------ */

static Tracker__TotpIs *totp_ask(struct client *client, const struct ctl *ctl, Tracker__TotpAct act,
                                 struct secret *password, struct secret *code)
{
    Tracker__Totp message = TRACKER__TOTP__INIT;
    const struct call call = {TYPE(TOTP), &message.base, TYPE(TOTP_IS),
                              &tracker__totp_is__descriptor};

    message.act = act;
    if (password != NULL)
        message.password = bytes_of(password);
    if (code != NULL)
        message.code = code->bytes;
    return (Tracker__TotpIs *)call_tracker(client, ctl, &call);
}

static void print_recovery(const Tracker__TotpIs *answer, const char *said)
{
    puts(said);
    if (answer->n_recovery == 0)
        return;
    puts("Each of these codes stands for a code of the second factor once. Keep them where nobody "
         "else\nfinds them, and not on the device that makes the codes:\n");
    for (size_t i = 0; i < answer->n_recovery; i++) {
        char *clean = text_escape(answer->recovery[i]);
        printf("    %s\n", clean);
        free(clean);
    }
}

static int finish(const struct ctl *ctl, Tracker__TotpIs *answer, const char *said)
{
    int status = answer != NULL ? CTL_DONE : CTL_FAILED;

    if (answer != NULL && ctl->json)
        json_print(json_from_message(&answer->base), true);
    else if (answer != NULL)
        print_recovery(answer, said);
    call_free((ProtobufCMessage *)answer);
    return status;
}

static int totp_confirm(const struct ctl *ctl, struct client *client)
{
    struct secret code;
    Tracker__TotpIs *answer = NULL;

    if (account_ask_code(&code, ctl)) {
        answer = totp_ask(client, ctl, TRACKER__TOTP_ACT__TOTP_CONFIRM, NULL, &code);
        secret_clear(&code);
    }
    return finish(ctl, answer, "From now on a log in wants a code as well as the password.");
}

static void print_factor(const Tracker__TotpIs *answer)
{
    char *url = text_escape(answer->url), *secret = text_escape(answer->secret);

    printf("Give this to the authenticator:\n\n    %s\n\nor type in the secret: %s\n", url, secret);
    free(url);
    free(secret);
}

static int totp_enable(const struct ctl *ctl, struct client *client)
{
    struct secret password;
    Tracker__TotpIs *answer = NULL;

    if (account_ask_password(&password, ctl, "Password of", client_account(client), false)) {
        answer = totp_ask(client, ctl, TRACKER__TOTP_ACT__TOTP_BEGIN, &password, NULL);
        secret_clear(&password);
    }
    if (answer == NULL)
        return CTL_FAILED;
    if (ctl->json)
        json_print(json_from_message(&answer->base), true);
    else
        print_factor(answer);
    call_free(&answer->base);
    if (has_terminal() && !ctl->json)
        return totp_confirm(ctl, client);
    if (!ctl->json)
        puts("Then: p2pctl totp confirm");
    return CTL_DONE;
}

static int totp_with_both(const struct ctl *ctl, struct client *client, Tracker__TotpAct act,
                          const char *said)
{
    struct secret password, code;
    Tracker__TotpIs *answer = NULL;

    if (account_ask_password(&password, ctl, "Password of", client_account(client), false)) {
        if (account_ask_code(&code, ctl)) {
            answer = totp_ask(client, ctl, act, &password, &code);
            secret_clear(&code);
        }
        secret_clear(&password);
    }
    return finish(ctl, answer, said);
}

int proof_totp(const struct ctl *ctl)
{
    static const char *const acts[] = {"enable", "confirm", "disable", "recovery"};
    size_t act = 0;

    while (act < 4 && strcmp(acts[act], ctl->arguments[0]) != 0)
        act++;
    if (act == 4) {
        log_error("usage: p2pctl totp enable, confirm, disable or recovery");
        return CTL_WRONG_USAGE;
    }
    struct client *client = account_open(ctl);
    int status = CTL_FAILED;
    if (client == NULL)
        return status;
    if (act == 0)
        status = totp_enable(ctl, client);
    else if (act == 1)
        status = totp_confirm(ctl, client);
    else if (act == 2)
        status = totp_with_both(ctl, client, TRACKER__TOTP_ACT__TOTP_DISABLE,
                                "The account has no second factor any more.");
    else
        status = totp_with_both(ctl, client, TRACKER__TOTP_ACT__TOTP_RECOVERY,
                                "The old recovery codes are void.");
    client_free(client);
    return status;
}
