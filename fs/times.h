/* Times that the catalogue does not keep: when an entry was last read by its own word (utimens), when anything of it
 * changed (its ctime), and when names in a directory changed. Known for what changed through this mount, or was pushed by the
 * daemon, since it was mounted; for everything else all three are the time of the content. The root directory is no entry of the
 * catalogue: its mode and times, where set, are this mount's own and end with it. Any thread. */
#ifndef FS_TIMES_H
#define FS_TIMES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct times;

struct times *times_new(void);
void times_free(struct times *);
/* Mode, times, name or bytes of the inode changed just now. */
void times_changed(struct times *, uint64_t ino);
/* Names in the directory changed just now. */
void times_names_changed(struct times *, uint64_t ino);
/* utimens: `atime` in ns, NULL: it was not set. `mtime`: that was set, and is the daemon's to tell from now on. */
void times_set(struct times *, uint64_t ino, const int64_t *atime, bool mtime);
/* chmod and utimens of the root directory, each NULL: it was not set. */
void times_set_root(struct times *, const mode_t *mode, const int64_t *mtime);
/* Puts what is known into an answer; st_mtim is there, st_ino and st_mode as well. */
void times_apply(struct times *, struct stat *);

#endif
