/* The device's key on disk: its passphrase.
 *
 * Owns the asking; a p2pd of its own, which ends with that, opens and replaces the file in one step. A
 * p2pd that runs goes on: it has the key in memory, and asks for a passphrase only when it is started. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/home.h"
#include "base/log.h"
#include "base/spawn.h"
#include "crypto/protection.h"
#include "tools/json.h"
#include "tools/secret.h"
#include "tools/verbs.h"

#define WHY_MAX 512

bool key_passphrase_get(const struct ctl *ctl, struct secret *out)
{
    const struct secret_source source = {
        .file = ctl->passphrase_file,
        .option = "--passphrase-file",
        .prompt = "Passphrase of the device's key",
    };

    return secret_get(out, &source);
}

/* 1 if the key's file needs a passphrase, 0 if not, or -errno. */
static int key_protection(const struct ctl *ctl)
{
    char *path = home_path(ctl->home, "device.key");
    int protected = protection_of_key(path);

    free(path);
    return protected;
}

/* The key of an encrypted store has the same passphrase, but outlives a device's key that was removed. */
static bool store_key_is_protected(const struct ctl *ctl)
{
    char *path = home_path(ctl->home, "store.key");
    int protected = protection_of_store_key(path);

    free(path);
    return protected == 1;
}

bool key_has_passphrase(const struct ctl *ctl)
{
    return key_protection(ctl) == 1 || store_key_is_protected(ctl);
}

/* Appends a passphrase and the end of its line. */
static void put_line(char *lines, size_t *size, const struct secret *secret)
{
    memcpy(lines + *size, secret->bytes, secret->size);
    *size += secret->size;
    lines[(*size)++] = '\n';
}

/* Asks for what is needed; false: the reason has been said. */
static bool ask(const struct ctl *ctl, bool protected, char *lines, size_t *size)
{
    const struct secret_source source = {
        .file = ctl->new_passphrase_file,
        .option = "--new-passphrase-file",
        .prompt = "New passphrase of the device's key",
        .fresh = true,
    };
    struct secret old = {.size = 0}, fresh = {.size = 0};
    bool good = !protected || key_passphrase_get(ctl, &old);

    good = good && (ctl->remove || secret_get(&fresh, &source));
    if (good) {
        put_line(lines, size, &old);
        put_line(lines, size, &fresh);
    }
    secret_clear(&old);
    secret_clear(&fresh);
    return good;
}

int key_passphrase(const struct ctl *ctl)
{
    char lines[2 * LIMIT_PASSWORD + 2], why[WHY_MAX];
    size_t size = 0;

    if (strcmp(ctl->arguments[0], "passphrase") != 0) {
        log_error("unknown command 'key %s'; see 'p2pctl key --help'", ctl->arguments[0]);
        return CTL_WRONG_USAGE;
    }
    int protected = key_protection(ctl);
    if (protected < 0) {
        log_error("%s/device.key: %s", ctl->home,
                  protected == -ENOENT ? "there is no key yet: register or log in first"
                                       : strerror(-protected));
        return CTL_FAILED;
    }
    bool good = ask(ctl, protected == 1 || store_key_is_protected(ctl), lines, &size);
    if (good && daemon_key_passphrase(ctl->home, lines, size, why, sizeof why) != 0) {
        log_error("%s", why);
        good = false;
    }
    explicit_bzero(lines, sizeof lines);
    if (good && ctl->json)
        json_print(json_pack("{s:b}", "protected", (int)!ctl->remove), true);
    else if (good)
        puts(ctl->remove ? "The device's key has no passphrase any more."
                         : "The device's key has its passphrase. 'p2pctl start' asks for it.");
    return good ? CTL_DONE : CTL_FAILED;
}
