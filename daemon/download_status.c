/* What `p2pctl status` and `p2pctl peers` show of fetching: copies, made on the download thread.
 *
 * Owns nothing. The reader of the copy frees it (download_status_free), on any thread. */
#include "daemon/download_private.h"

#include "base/clock.h"
#include "base/mem.h"
#include "daemon/store.h"

static uint64_t smooth(uint64_t rate, uint64_t bytes, int64_t span)
{
    uint64_t fresh = (uint64_t)((double)bytes * NS_PER_S / (double)span);

    return rate == 0 ? fresh : (rate + fresh) / 2;
}

void status_measure(struct download *download, int64_t now)
{
    int64_t span = now - download->second;
    struct file *file, *next;
    struct link *link;

    if (span < NS_PER_S)
        return;
    download->second = now;
    download->rate = smooth(download->rate, download->total - download->total_before, span);
    download->total_before = download->total;
    HASH_ITER(hh, download->files, file, next) {
        file->rate = smooth(file->rate, file->bytes - file->bytes_before, span);
        file->bytes_before = file->bytes;
    }
    TAILQ_FOREACH(link, &download->links, entry) {
        link->rate = smooth(link->rate, link->bytes - link->bytes_before, span);
        link->bytes_before = link->bytes;
    }
    if (download->rate == 0)
        buffers_trim(download, BUFFERS_SPARE);
}

static void show_file(struct file *file, struct download_file_status *out)
{
    struct picker_counts counts;
    struct holding *holding;
    struct fetch *fetch;
    struct demand *demand;
    uint32_t known = 0;

    picker_count(file->picker, &counts);
    memcpy(out->root, file->root, HASH_SIZE);
    out->rate = file->rate;
    out->wanted_all = file->get || file->background;
    /* At least: it counts parts. */
    out->missing_pieces = (counts.missing_pieces + parts_ratio(file->geometry, &file->parts) - 1) /
                          parts_ratio(file->geometry, &file->parts);
    memcpy(out->gaps, counts.gaps, sizeof(out->gaps));
    out->gap_count = counts.gap_count;
    out->more_gaps = counts.more_gaps;
    LIST_FOREACH(fetch, &file->fetches, of_file)
    out->links += !fetch->refused;
    TAILQ_FOREACH(demand, &file->demands, of_file)
        out->waiting++;
    LIST_FOREACH(holding, &file->holdings, of_file)
    known++;
    out->holders = file->holders > known ? file->holders : known;
}

static uint64_t have_bytes(const struct device *device, const struct file *file)
{
    const struct fetch *fetch = device_fetch(device, file);
    uint64_t bytes;

    if (fetch == NULL || fetch->refused)
        return 0;
    bytes = (uint64_t)picker_source_pieces(fetch->source) * file->parts.piece_size;
    return bytes < file->geometry->size ? bytes : file->geometry->size;
}

static void show_device(const struct device *device, const struct file *file,
                        struct link_status *out)
{
    const struct link *link = device->link;

    snprintf(out->account, sizeof(out->account), "%s", device->account);
    memcpy(out->device, device->id, DEVICE_ID_SIZE);
    snprintf(out->address, sizeof(out->address), "%s",
             link != NULL                ? link->address
             : device->address_count > 0 ? device->addresses[0]
                                         : "");
    if (file != NULL)
        out->have_bytes = have_bytes(device, file);
    if (device->banned_until > clock_now()) {
        snprintf(out->state, sizeof(out->state), "banned: %s", device->ban);
    } else if (link == NULL) {
        snprintf(out->state, sizeof(out->state), "%s",
                 device->dialling > 0 ? "connecting" : "not connected");
    } else {
        snprintf(out->state, sizeof(out->state), "connected");
        out->rate = link->rate;
        out->total = link->bytes;
        out->rtt_us = (uint64_t)(pipeline_delay(&link->pipe) / NS_PER_US);
        out->files = link->fetch_count;
        out->queued = link->pipe.in_flight;
        out->choked = link->choked;
    }
}

/* With a file: those who hold some of it or were found out; without: all. */
static bool is_shown(const struct device *device, const struct file *file)
{
    const struct holding *holding;

    if (file == NULL || device->banned_until > clock_now())
        return true;
    LIST_FOREACH(holding, &device->holdings, of_device)
    {
        if (holding->file == file)
            return true;
    }
    return device_fetch(device, file) != NULL && !device_fetch(device, file)->refused;
}

struct download_status *status_make(struct download *download, const uint8_t *root, void *cookie)
{
    struct download_status *status = xcalloc(1, sizeof(*status));
    struct file *only = root != NULL ? file_of(download, root) : NULL, *file, *next;
    struct device *device, *next_device;

    status->cookie = cookie;
    status->files = xcalloc(HASH_COUNT(download->files) + 1, sizeof(*status->files));
    status->links = xcalloc(HASH_COUNT(download->devices) + 1, sizeof(*status->links));
    HASH_ITER(hh, download->files, file, next) {
        if (root == NULL || file == only)
            show_file(file, &status->files[status->file_count++]);
    }
    HASH_ITER(hh, download->devices, device, next_device) {
        if (root != NULL && only == NULL)
            break;
        if (is_shown(device, only))
            show_device(device, only, &status->links[status->link_count++]);
    }
    status->rate = download->rate;
    status->total = download->total;
    status->wasted = download->wasted;
    snprintf(status->store_trouble, sizeof(status->store_trouble), "%s", download->trouble);
    return status;
}

void download_status_free(struct download_status *status)
{
    if (status == NULL)
        return;
    free(status->files);
    free(status->links);
    free(status);
}
