/* Owns the decision whether the store is encrypted, the file that says so, and the place of its key. Leaves the key itself to
 * crypto/store_key.h and encrypting to crypto/file_cipher.h.
 *
 * E1  The key is durable before the store says that it is encrypted, and the store says so before it holds a file.
 * E2  Plain and encrypted files never stand in one store.
 *
 * Thread: the main one, before there are others. */
#include "daemon/encryption.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hex.h"
#include "base/home.h"
#include "base/log.h"
#include "base/mem.h"
#include "crypto/protection.h"
#include "crypto/store_key.h"

#define MARK      "p2p encrypted store, key "
#define MARK_SIZE (sizeof MARK - 1 + 2 * STORE_KEY_ID + 1) /* and a newline */

struct place {
    char *store, *key, *mark;
    bool has_key;
};

static char sentence[320];

static bool fail(const char **fault, const char *what, const char *why)
{
    snprintf(sentence, sizeof sentence, "%s%s; nothing in the store was touched", what, why);
    *fault = sentence;
    return false;
}

static void place_free(struct place *place)
{
    free(place->store);
    free(place->key);
    free(place->mark);
}

static struct place place_of(const char *home)
{
    struct place place = {.store = home_path(home, "store"), .key = home_path(home, "store.key")};

    place.mark = xasprintf("%s/encryption", place.store);
    place.has_key = access(place.key, F_OK) == 0 || errno != ENOENT; /* nothing takes its place */
    return place;
}

/* --- the mark ------------------------------------------------------------------------------------------- */

static void mark_of(const struct store_key *key, char mark[MARK_SIZE + 1])
{
    uint8_t id[STORE_KEY_ID];
    char digits[2 * STORE_KEY_ID + 1];

    store_key_id(key, id);
    hex_encode(digits, id, sizeof id);
    snprintf(mark, MARK_SIZE + 1, MARK "%s\n", digits);
}

static int write_mark(const struct place *place, const struct store_key *key)
{
    char mark[MARK_SIZE + 1];

    mark_of(key, mark);
    return file_replace(place->mark, mark, MARK_SIZE, 0600);
}

/* 1, 0 or -errno. */
static int folder_has_files(const char *store, const char *name)
{
    char *path = xasprintf("%s/%s", store, name);
    DIR *directory = opendir(path);
    int result = directory != NULL || errno == ENOENT ? 0 : -errno;
    const struct dirent *entry;

    while (directory != NULL && result == 0 && (entry = readdir(directory)) != NULL)
        result = strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    if (directory != NULL)
        closedir(directory);
    free(path);
    return result;
}

static int store_has_files(const char *store)
{
    int result = folder_has_files(store, "incoming");

    for (unsigned i = 0; i < 256 && result == 0; i++) {
        char name[3];
        snprintf(name, sizeof name, "%02x", i);
        result = folder_has_files(store, name);
    }
    return result;
}

/* --- opening -------------------------------------------------------------------------------------------- */

/* As the device's key is kept. */
static bool save_new(const struct place *place, const char *home, struct store_key *key,
                     const char **fault)
{
    char *device = home_path(home, "device.key");
    const struct store_key_way way = store_key_way_now(protection_of_key(device) == 1);

    free(device);
    return store_key_save(key, place->key, &way, fault);
}

/* The store says nothing. */
static bool open_unmarked(const struct place *place, const char *home, bool wanted,
                          struct store_key **key, const char **fault)
{
    int files = wanted || place->has_key ? store_has_files(place->store) : 0;
    const char *why;

    if (files < 0)
        return fail(fault, "the store's directory cannot be read: ", strerror(-files));
    if (files > 0 && place->has_key)
        return fail(fault, "store.key is there, but the store's file 'encryption' is missing", "");
    if (files > 0)
        return fail(fault,
                    "store encryption is asked for in p2pd.conf, but the store holds files that "
                    "are not encrypted: see STORE ENCRYPTION in p2pd(8)",
                    "");
    if (!wanted &&
        place->has_key) /* once it had files it would be taken for one that lost its mark */
        return fail(fault,
                    "store.key is there, but the store is empty, and p2pd.conf asks for no "
                    "encryption: move store.key away, too, if that is meant",
                    "");
    if (!wanted)
        return true;
    *key = place->has_key ? store_key_load(place->key, &why) : store_key_make();
    if (*key == NULL)
        return fail(fault, "store.key ", why);
    if (!place->has_key && !save_new(place, home, *key, &why))
        return fail(fault, "store.key ", why);
    int error = write_mark(place, *key);
    if (error < 0)
        return fail(fault, "the store cannot be made an encrypted one: ", strerror(-error));
    log_info("the store is encrypted from now on; without store.key nothing in it can be read");
    return true;
}

static bool open_marked(const struct place *place, const char *mark, size_t size,
                        struct store_key **key, const char **fault)
{
    char wanted[MARK_SIZE + 1];
    const char *why;

    if (!place->has_key)
        return fail(fault, "the store is encrypted, and its key is missing: ", place->key);
    *key = store_key_load(place->key, &why);
    if (*key == NULL)
        return fail(fault, "the store is encrypted, and its store.key ", why);
    mark_of(*key, wanted);
    if (size != MARK_SIZE || memcmp(mark, wanted, MARK_SIZE) != 0)
        return fail(fault, "the store is encrypted with another key than ", place->key);
    if (!store_key_tidy(*key, place->key, &why))
        log_warning("store.key %s", why);
    return true;
}

bool encryption_open(const char *home, bool wanted, struct store_key **key, const char **fault)
{
    struct place place = place_of(home);
    char *mark;
    size_t size;
    bool good;

    *key = NULL;
    int error = file_private_dir(place.store);
    if (error == 0)
        error = file_read(place.mark, 4 * MARK_SIZE, true, &mark, &size);
    if (error == 0) {
        good = open_marked(&place, mark, size, key, fault);
        if (good && !wanted)
            log_info("the store is encrypted, and stays so");
        file_free_secret(mark, size);
    } else if (error == -ENOENT) {
        good = open_unmarked(&place, home, wanted, key, fault);
    } else {
        good = fail(fault, "the store's file 'encryption' cannot be read: ",
                    error == -EPERM ? "others can read or write it" : strerror(-error));
    }
    if (!good) {
        store_key_free(*key);
        *key = NULL;
    }
    place_free(&place);
    return good;
}

/* --- another passphrase --------------------------------------------------------------------------------- */

bool encryption_prepare_passphrase(const char *home, const void *fresh, size_t size,
                                   struct store_key **key, const char **fault)
{
    const struct store_key_way way = {size > 0 ? fresh : NULL, size};
    struct place place = place_of(home);

    *key = place.has_key ? store_key_load(place.key, fault) : NULL;
    bool good = !place.has_key || (*key != NULL && store_key_add_way(*key, place.key, &way, fault));
    place_free(&place);
    return good;
}

bool encryption_settle_passphrase(const char *home, struct store_key *key, bool changed,
                                  const char **fault)
{
    struct place place = place_of(home);
    bool good = key == NULL || !changed || store_key_settle(key, place.key, fault);

    store_key_free(key);
    place_free(&place);
    return good;
}
