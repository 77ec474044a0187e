/* Who may see and change which folder: rules, groups, and what follows from them.
 *
 * Pure: no input or output, no clock, no thread of its own; one thread. A mirror of the storage's rules and
 * directories, kept in step by whoever owns the feed (feed.c), so that each entry, peer and ticket can be judged at
 * once. What an operation of a member may do is judged by the same rules within its transaction (access_step,
 * storage_access.c).
 *
 * A rule says what an account, a group or everyone may do in a folder and in all below it: nothing, read, write,
 * or manage (write, and give rights). For each of these three kinds the rule on the nearest folder counts, going
 * up; an account whose own nearest rule says "nothing" has no access, whatever its groups have; else the best of
 * its own, its groups' and everyone's counts. Nothing anywhere is no access. A directory that may not be read but
 * has one below it that may is shown as well, with nothing else in it: else there would be no way to go there.
 *
 * Contents: a root may be seen by who may read a folder that has, or lately had (who has an old version open keeps
 * reading it), a file with it. */
#ifndef TRACKER_ACCESS_H
#define TRACKER_ACCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/name.h"
#include "crypto/merkle.h"
#include "proto/limits.h"

enum access_level { ACCESS_NONE, ACCESS_READ, ACCESS_WRITE, ACCESS_MANAGE };
enum access_kind { ACCESS_ACCOUNT = 1, ACCESS_GROUP = 2, ACCESS_EVERYONE = 3 };
#define ACCESS_ROOT_FOLDER 1

/* Judging one account in one folder: begin, step through the folders' rules from the folder up to the root, end.
 * Groups are numbered by whoever steps, below LIMIT_ACCOUNT_GROUPS; further ones are not heard. */
struct access_walk {
    uint8_t own, everyone; /* level + 1; 0: no rule met yet */
    uint8_t groups[LIMIT_ACCOUNT_GROUPS];
};
static inline void access_step(uint8_t *met, enum access_level level)
{
    if (*met == 0)
        *met = (uint8_t)(level + 1);
}
enum access_level access_end(const struct access_walk *);

struct access;
struct access_account; /* an account's name with its groups; lives as long as the access */

struct access *access_new(uint64_t seed);
void access_free(struct access *); /* NULL is fine */

/* --- rules and groups ----------------------------------------------------------------------------------- */
void access_rule_set(struct access *, uint64_t folder, enum access_kind, const char *who,
                     enum access_level);
void access_rule_clear(struct access *, uint64_t folder, enum access_kind, const char *who);
void access_group_join(struct access *, const char *group, const char *account);
void access_group_leave(struct access *, const char *group, const char *account);
/* With its rules. */
void access_group_drop(struct access *, const char *group);
/* The account is no more: its rules and memberships go. */
void access_account_drop(struct access *, const char *account);
/* Everyone may write everywhere, so nobody needs to be judged. */
bool access_is_plain(const struct access *);

/* --- folders and contents ------------------------------------------------------------------------------- */
/* Made, or moved to another parent. */
void access_folder_put(struct access *, uint64_t folder, uint64_t parent);
/* Removed, with its rules. What lately was in it is still judged by where it was. */
void access_folder_gone(struct access *, uint64_t folder);
bool access_folder_has_rules(const struct access *, uint64_t folder);
void access_content_add(struct access *, const uint8_t root[HASH_SIZE], uint64_t folder);
/* The file went; `lately`: who may read the folder may still see the content. */
void access_content_remove(struct access *, const uint8_t root[HASH_SIZE], uint64_t folder,
                           bool lately);

/* --- judging -------------------------------------------------------------------------------------------- */
/* Made if it is unknown. */
struct access_account *access_account(struct access *, const char *name);
enum access_level access_of(struct access *, struct access_account *, uint64_t folder);
/* The rules that count for the account in that folder. */
void access_walk_of(struct access *, struct access_account *, uint64_t folder,
                    struct access_walk *);
/* May the account see that the directory is there? */
bool access_shows(struct access *, struct access_account *, uint64_t folder);
bool access_content(struct access *, struct access_account *, const uint8_t root[HASH_SIZE]);
/* Whether any folder has, or lately had, this root. */
bool access_knows(const struct access *, const uint8_t root[HASH_SIZE]);
/* Is it a member of that group? */
bool access_is_in(struct access *, struct access_account *, const char *group);

#endif
