/* p2pctl from the command line to the exit status, and what verbs begin and end with: a connection,
 * paths, the word that it is done.
 *
 * Owns the order of things: parse, find home, run the verb, make sure that what was printed arrived.
 * Main thread. */
#include "tools/ctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "tools/client.h"
#include "tools/json.h"
#include "tools/options.h"
#include "tools/path.h"
#include "tools/secret.h"
#include "tools/text.h"
#include "tools/verbs.h"

#define WHY_MAX 512

/* A full disk behind a redirection must not look like success. */
static int check_output(int status)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    log_error("standard output: %s", strerror(errno));
    return CTL_FAILED;
}

static int run_verb(struct ctl *ctl)
{
    ctl->home = home_find(ctl->home_option);
    if (ctl->home == NULL) {
        log_error("no home directory is known: give --home DIR or set P2P_HOME");
        return CTL_FAILED;
    }
    return ctl->verb->run(ctl);
}

int ctl_run(int argc, char **argv)
{
    struct ctl ctl = {0};
    int status = CTL_DONE;

    log_init("p2pctl", LOG_LEVEL_INFO, false);
    text_init();
    if (!options_parse(&ctl, argc, argv))
        status = CTL_WRONG_USAGE;
    else if (ctl.version)
        puts("p2pctl " P2P_VERSION);
    else if (ctl.help && ctl.verb != NULL)
        verb_help(ctl.verb, stdout);
    else if (ctl.help)
        verb_help_all(stdout);
    else
        status = run_verb(&ctl);
    free(ctl.home);
    free(ctl.arguments);
    return status == CTL_WRONG_USAGE ? status : check_output(status);
}

/* Asks for the passphrase of the device's key first, if it has one. */
static bool start_daemon(const struct ctl *ctl)
{
    bool protected = key_has_passphrase(ctl);
    char why[WHY_MAX];
    struct secret secret;

    if (protected && !key_passphrase_get(ctl, &secret))
        return false;
    int result = protected
                     ? daemon_start_with(ctl->home, secret.bytes, secret.size, why, sizeof why)
                     : daemon_start(ctl->home, why, sizeof why);
    if (protected)
        secret_clear(&secret);
    if (result != 0)
        log_error("p2pd can't be started: %s", why);
    return result == 0;
}

struct client *ctl_open(const struct ctl *ctl, bool start)
{
    struct client_fault fault;
    struct client *client = client_open(ctl->home, &fault);

    if (client == NULL && start && fault.absent) {
        if (!start_daemon(ctl))
            return NULL;
        client = client_open(ctl->home, &fault);
    }
    if (client == NULL)
        log_error("%s", fault.text);
    return client;
}

const void *ctl_ask(struct client *client, const struct client_request *request)
{
    struct client_fault fault;
    const void *answer = client_request(client, request, &fault);

    if (answer == NULL)
        log_error("%s", fault.text);
    return answer;
}

char **ctl_paths(const struct ctl *ctl)
{
    char **paths = xcalloc((size_t)ctl->argument_count + 1, sizeof *paths), *why = NULL;

    for (int i = 0; i < ctl->argument_count; i++) {
        paths[i] = path_resolve(ctl->arguments[i], &why);
        if (paths[i] == NULL) {
            log_error("%s", why);
            free(why);
            ctl_free_paths(ctl, paths);
            return NULL;
        }
    }
    return paths;
}

void ctl_free_paths(const struct ctl *ctl, char **paths)
{
    if (paths == NULL)
        return;
    for (int i = 0; i < ctl->argument_count; i++)
        free(paths[i]);
    free(paths);
}

int ctl_finish(const struct ctl *ctl, bool good, const char *said)
{
    if (!good)
        return CTL_FAILED;
    if (ctl->json)
        json_print(json_pack("{s:b}", "done", 1), true);
    else
        puts(said);
    return CTL_DONE;
}
