/* What one open handle will read next: sequential detection and the read-ahead window, adaptive.
 *
 * Pure: no I/O, no clock. A handle is followed at up to READAHEAD_CURSORS places at once (a player
 * that takes sound and picture from two places, an archiver that reads the tail first). At each
 * place:
 *
 *   a window opens once more than a probe's worth was read in sequence there (at once, if the
 * handle has streamed before and has now jumped); it starts at the size asked, doubles with every
 * sequential read, is at most what is consumed in two seconds and never over 64 MiB. A jump
 * elsewhere closes the windows; they open again as they were if reading returns.
 *
 * So `file`, a thumbnail or a header read costs what was read. */
#ifndef DAEMON_READAHEAD_H
#define DAEMON_READAHEAD_H

#include <stdbool.h>
#include <stdint.h>

#define READAHEAD_CURSORS 3
#define READAHEAD_PROBE                                                                            \
    (UINT64_C(128) << 10) /* the kernel's own read-ahead around one small read */
#define READAHEAD_LEAST (UINT64_C(128) << 10)
#define READAHEAD_MOST  (UINT64_C(64) << 20)

struct readahead_cursor {
    bool used;
    bool awake;      /* its window is open */
    uint64_t next;   /* where sequential reading goes on */
    uint64_t run;    /* bytes read in sequence here */
    uint64_t window; /* bytes ahead of next; 0: none */
    int64_t last;    /* time of the last read here */
    int64_t since;   /* the rate is measured from here */
    uint64_t bytes;  /* read since then */
    double rate;     /* bytes a second, 0: unknown */
};

struct readahead {
    uint64_t size;       /* of the file */
    uint64_t sequential; /* bytes read in sequence, all cursors, ever */
    bool streamed;       /* one of the cursors went beyond a probe */
    struct readahead_cursor cursor[READAHEAD_CURSORS];
};

struct readahead_range {
    uint64_t offset, size; /* bytes; size may be 0 */
};

void readahead_init(struct readahead *, uint64_t file_size);
/* Bytes [offset, offset + size) were read, or are being waited for. True if a window changed. */
bool readahead_read(struct readahead *, uint64_t offset, uint64_t size, int64_t now);
/* The open windows, most recently read first; returns how many. */
unsigned readahead_windows(const struct readahead *, struct readahead_range out[READAHEAD_CURSORS]);
/* True once the file is really being read, not probed: more than 16 MiB in sequence, or more than a
 * quarter of it and of what probes read. */
bool readahead_is_reading(const struct readahead *);

#endif
