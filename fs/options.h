/* p2pfs's command line: its own form, and mount(8)'s for /etc/fstab ("p2pfs SOURCE MOUNTPOINT -o OPTIONS"). */
#ifndef FS_OPTIONS_H
#define FS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What the kernel does for large readers or small writers; it cannot do both for one mount. */
enum options_cache {
    CACHE_AUTO,        /* passthrough where kernel and rights allow it, else write-back */
    CACHE_PASSTHROUGH, /* the same, with a warning if it cannot be */
    CACHE_WRITEBACK,   /* writes are gathered in the kernel; complete files go through p2pfs */
};

struct options {
    char *mountpoint; /* as given */
    char *source;     /* what mount(8) and df call it: SOURCE or fsname=; NULL if not given */
    char *home;       /* --home or home=, NULL if not given */
    bool nonempty;    /* mounts over what is there */
    uint64_t wait;    /* seconds that a read waits for its blocks */
    bool foreground;  /* -f, and with -d */
    bool debug;       /* -d: libfuse's trace */
    bool help, version;
    bool allow_other;
    enum options_cache cache;
    char
        *pass; /* what libfuse gets to know, beside what every mount of ours has: "ro,noexec", "" */
};

#define OPTIONS_WAIT_DEFAULT 30
#define OPTIONS_WAIT_MAX     3600
#define OPTIONS_FAULT_MAX    256

/* Reads the arguments. False, and `fault` (OPTIONS_FAULT_MAX bytes) says what is wrong with them. options_done in
 * either case. */
bool options_parse(struct options *, int argc, char **argv, char *fault);
void options_done(struct options *);
/* The text behind --help, with an end of line. */
const char *options_usage(void);

#endif
