/* What /proc/self/mountinfo says of a mount of ours: unlike stat(2), asking it never waits for the mount. */
#ifndef FS_MOUNTINFO_H
#define FS_MOUNTINFO_H

#include <stdbool.h>

struct mountinfo {
    int id;
    unsigned major_number, minor_number;
};

/* True if a p2pfs is mounted, on top, at this absolute path. */
bool mountinfo_find(const char *path, struct mountinfo *);
/* True if anything is mounted at this absolute path. */
bool mountinfo_is_mounted(const char *path);
/* The same for one line; `escaped` is the path as the file writes it. 1: a p2pfs, 0: something else is mounted there,
 * -1: another path, or not such a line. */
int mountinfo_match(const char *line, const char *escaped, struct mountinfo *);

#endif
