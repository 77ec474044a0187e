/* One line of progress: percent, bar, bytes, rate, time left, peers, and what moves.
 *
 * Owns nothing. The line is put together from parts; with a width given the bar and then the name take
 * what is left, and what does not fit is cut. Any thread. */
#include "tools/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/number.h"
#include "tools/text.h"

#define BAR_LEAST 8
#define BAR_MOST  30
#define NAME_MOST 40

unsigned progress_percent(uint64_t have, uint64_t size)
{
    if (have >= size)
        return 100;
    double share = (double)have / (double)size;
    return share < 0.99 ? (unsigned)(share * 100.0) : 99;
}

/* "42%  1.2 GiB of 3.0 GiB  12 MiB/s  2m 05s left  5 peers" */
static char *figures(const Local__Progress *p)
{
    char size[NUMBER_TEXT_MAX], have[NUMBER_TEXT_MAX], rate[NUMBER_TEXT_MAX + 2],
        left[NUMBER_TEXT_MAX + 8] = "", time[NUMBER_TEXT_MAX], files[64] = "";
    uint64_t missing = p->size > p->have ? p->size - p->have : 0;

    bytes_format(size, p->size);
    bytes_format(have, p->have < p->size ? p->have : p->size);
    if (p->rate > 0) {
        snprintf(rate, sizeof rate, "  %s/s", bytes_format(time, p->rate));
        snprintf(left, sizeof left, "  %s left", duration_format(time, missing / p->rate + 1));
    } else {
        snprintf(rate, sizeof rate, "  stalled");
    }
    if (missing == 0)
        rate[0] = left[0] = '\0';
    if (p->files > 1)
        snprintf(files, sizeof files, "  %" PRIu32 " of %" PRIu32 " files", p->files_done,
                 p->files);
    return xasprintf("%s of %s%s%s%s  %" PRIu32 " peer%s", have, size, rate, left, files, p->peers,
                     p->peers == 1 ? "" : "s");
}

static void draw_bar(char *out, size_t width, unsigned percent)
{
    size_t filled = width * percent / 100;

    out[0] = '[';
    memset(out + 1, '#', filled);
    memset(out + 1 + filled, '.', width - filled);
    out[width + 1] = ']';
    out[width + 2] = '\0';
}

char *progress_line(const Local__Progress *p, size_t width)
{
    unsigned percent = progress_percent(p->have, p->size);
    char *numbers = figures(p), *name = text_escape(p->current), *line, *cut;
    char bar[BAR_MOST + 3] = "";

    if (width == 0) {
        line = xasprintf("%3u%%  %s%s%s", percent, numbers, *name != '\0' ? "  " : "", name);
    } else {
        size_t used = strlen("100%  ") + strlen(numbers);
        size_t spare = width > used ? width - used : 0;

        if (spare >= BAR_LEAST + 4) {
            size_t bar_width = spare - 4 > BAR_MOST ? BAR_MOST : spare - 4;
            draw_bar(bar, bar_width, percent);
            spare -= bar_width + 4;
        } else {
            spare = 0;
        }
        cut = text_fit(name, spare > 2 ? (spare - 2 < NAME_MOST ? spare - 2 : NAME_MOST) : 0,
                       TEXT_CUT_START);
        line = xasprintf("%3u%%  %s%s%s%s%s", percent, bar, *bar != '\0' ? "  " : "", numbers,
                         *cut != '\0' ? "  " : "", cut);
        free(cut);
        cut = text_fit(line, width, TEXT_CUT_END);
        free(line);
        line = cut;
    }
    free(numbers);
    free(name);
    return line;
}
