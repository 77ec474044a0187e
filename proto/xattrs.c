/* Extended attributes of entries: judged, packed, changed.
 *
 * Owns nothing. Leaves who may set them to tracker and catalogue, what user.p2p.* says to p2pd. A list is protobuf-c's
 * structure, made by unpacking, so that one call frees it; lists are short (LIMIT_XATTRS), and searched from the front. */
#include "proto/xattrs.h"

#include <errno.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "base/name.h"
#include "proto/limits.h"

static bool begins_with(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

int xattr_name_fault(const char *name)
{
    size_t length = strlen(name);

    if (!begins_with(name, XATTR_PREFIX) || begins_with(name, XATTR_PREFIX_OWN))
        return -EOPNOTSUPP;
    if (length > LIMIT_XATTR_NAME)
        return -ERANGE;
    return length == strlen(XATTR_PREFIX) || !utf8_is_valid(name, length) ? -EINVAL : 0;
}

size_t xattrs_bytes(const Tracker__Xattrs *x)
{
    size_t bytes = 0;

    for (size_t i = 0; x != NULL && i < x->n_list; i++)
        bytes += strlen(x->list[i]->name) + x->list[i]->value.len;
    return bytes;
}

bool xattrs_are_sound(const Tracker__Xattrs *x)
{
    if (x == NULL)
        return true;
    if (x->n_list > LIMIT_XATTRS)
        return false;
    for (size_t i = 0; i < x->n_list; i++) {
        const Tracker__Xattr *one = x->list[i];
        bool good = one != NULL && xattr_name_fault(one->name) == 0 &&
                    one->value.len <= LIMIT_XATTR_VALUE &&
                    (i == 0 || strcmp(x->list[i - 1]->name, one->name) < 0);
        if (!good)
            return false;
    }
    return xattrs_bytes(x) <= LIMIT_XATTRS_BYTES;
}

const Tracker__Xattr *xattrs_find(const Tracker__Xattrs *x, const char *name)
{
    for (size_t i = 0; x != NULL && i < x->n_list; i++)
        if (strcmp(x->list[i]->name, name) == 0)
            return x->list[i];
    return NULL;
}

bool xattrs_are_equal(const Tracker__Xattrs *a, const Tracker__Xattrs *b)
{
    size_t count = a == NULL ? 0 : a->n_list;

    if (count != (b == NULL ? 0 : b->n_list))
        return false;
    for (size_t i = 0; i < count; i++) {
        const Tracker__Xattr *one = a->list[i], *other = b->list[i];
        bool same = strcmp(one->name, other->name) == 0 && one->value.len == other->value.len &&
                    (one->value.len == 0 ||
                     memcmp(one->value.data, other->value.data, one->value.len) == 0);
        if (!same)
            return false;
    }
    return true;
}

uint8_t *xattrs_pack(const Tracker__Xattrs *x, size_t *size)
{
    *size = 0;
    if (x == NULL || x->n_list == 0)
        return NULL;
    *size = tracker__xattrs__get_packed_size(x);
    uint8_t *packed = xmalloc(*size);
    tracker__xattrs__pack(x, packed);
    return packed;
}

Tracker__Xattrs *xattrs_unpack(const void *bytes, size_t size)
{
    Tracker__Xattrs *x = size == 0 ? NULL : tracker__xattrs__unpack(NULL, size, bytes);

    if (x != NULL && (x->n_list == 0 || !xattrs_are_sound(x))) {
        xattrs_free(x);
        return NULL;
    }
    return x;
}

Tracker__Xattrs *xattrs_copy(const Tracker__Xattrs *from)
{
    size_t size;
    uint8_t *packed = xattrs_pack(from, &size);

    if (packed == NULL)
        return NULL;
    Tracker__Xattrs *copy = tracker__xattrs__unpack(NULL, size, packed);
    CHECK(copy != NULL);
    free(packed);
    return copy;
}

void xattrs_free(Tracker__Xattrs *x)
{
    if (x != NULL)
        tracker__xattrs__free_unpacked(x, NULL);
}

static bool is_among(const char *name, char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return true;
    return false;
}

int xattrs_change(const Tracker__Xattrs *from, const Tracker__Xattrs *set, char *const *removed,
                  size_t removed_count, Tracker__Xattrs **out)
{
    size_t old_count = from == NULL ? 0 : from->n_list, new_count = set == NULL ? 0 : set->n_list;
    Tracker__Xattr **list = xcalloc(old_count + new_count + 1, sizeof(Tracker__Xattr *));
    Tracker__Xattrs merged = TRACKER__XATTRS__INIT;
    size_t i = 0, k = 0;

    merged.list = list;
    while (i < old_count || k < new_count) {
        int order = i == old_count   ? 1
                    : k == new_count ? -1
                                     : strcmp(from->list[i]->name, set->list[k]->name);
        Tracker__Xattr *one = order < 0 ? from->list[i] : set->list[k];
        i += order <= 0;
        k += order >= 0;
        if (!is_among(one->name, removed, removed_count))
            list[merged.n_list++] = one;
    }
    bool fits = merged.n_list <= LIMIT_XATTRS && xattrs_bytes(&merged) <= LIMIT_XATTRS_BYTES;
    *out = fits ? xattrs_copy(&merged) : NULL;
    free(list);
    return fits ? 0 : -ENOSPC;
}
