/* Text for terminals: escaping, widths, cutting, and the nearest of some words.
 *
 * Owns nothing; leaves columns to table.c. Any thread. */
#include "tools/text.h"

#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "base/mem.h"
#include "base/name.h"

#define ELLIPSIS "…"
/* A word that differs in more than this share of its letters was not meant. */
#define NEAR_SHARE 3
#define WORD_MAX   32

void text_init(void)
{
    (void)setlocale(LC_CTYPE, "C.UTF-8");
}

char *text_escape(const char *text)
{
    size_t left = strlen(text);
    char *out = xmalloc(4 * left + 1), *to = out;

    while (left > 0) {
        uint32_t code;
        size_t length = utf8_decode(text, left, &code);
        bool good = length > 0 && !utf8_is_control(code);

        if (length == 0)
            length = 1;
        if (good) {
            memcpy(to, text, length);
            to += length;
        } else {
            for (size_t i = 0; i < length; i++)
                to += snprintf(to, 5, "\\x%02x", (unsigned char)text[i]);
        }
        text += length;
        left -= length;
    }
    *to = '\0';
    return out;
}

/* The character at `text` (never at its end): its bytes and columns. */
static size_t next(const char *text, size_t *columns)
{
    uint32_t code;
    size_t length = utf8_decode(text, strlen(text), &code);
    int width = length > 0 ? wcwidth((wchar_t)code) : 1;

    *columns = width < 0 ? 1 : (size_t)width;
    return length > 0 ? length : 1;
}

size_t text_width(const char *text)
{
    size_t width = 0, columns;

    while (*text != '\0') {
        text += next(text, &columns);
        width += columns;
    }
    return width;
}

char *text_fit(const char *text, size_t width, enum text_cut cut)
{
    size_t full = text_width(text), columns, kept = 0;
    const char *at = text;

    if (full <= width)
        return xstrdup(text);
    if (width == 0)
        return xstrdup("");
    if (cut == TEXT_CUT_START) {
        while (*at != '\0' && full + 1 > width) {
            at += next(at, &columns);
            full -= columns;
        }
        /* Marks that belonged to a character that is gone. */
        while (*at != '\0') {
            size_t length = next(at, &columns);
            if (columns > 0)
                break;
            at += length;
        }
        return xasprintf("%s%s", ELLIPSIS, at);
    }
    while (*at != '\0') {
        size_t length = next(at, &columns);
        if (kept + columns + 1 > width)
            break;
        kept += columns;
        at += length;
    }
    return xasprintf("%.*s%s", (int)(at - text), text, ELLIPSIS);
}

/* Letters to insert, remove, change or swap with their neighbour (Damerau-Levenshtein, restricted). */
static size_t distance(const char *a, const char *b)
{
    size_t rows[3][WORD_MAX + 1], n = strlen(a), m = strlen(b);
    size_t *before = rows[0], *last = rows[1], *now = rows[2];

    if (n > WORD_MAX || m > WORD_MAX)
        return SIZE_MAX;
    for (size_t j = 0; j <= m; j++)
        last[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        size_t *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[m];
}

const char *text_nearest(const char *text, const char *const *words)
{
    const char *best = NULL;
    size_t least = SIZE_MAX;

    for (; *words != NULL; words++) {
        size_t longer = strlen(text) > strlen(*words) ? strlen(text) : strlen(*words);
        size_t d = distance(text, *words);
        bool begins = strlen(text) >= 2 && strncmp(text, *words, strlen(text)) == 0;

        if (begins)
            d = 0;
        if (d < least && (begins || d <= (longer + NEAR_SHARE - 1) / NEAR_SHARE)) {
            least = d;
            best = *words;
        }
    }
    return best;
}

#define HELP_WIDTH 79

/* Words of text[0..size), from column `at` on; further lines behind `indent` blanks. */
static void wrap_words(FILE *to, const char *text, size_t size, size_t at, size_t indent)
{
    const char *end = text + size;
    bool first = true;

    while (text < end) {
        size_t blanks = strspn(text, " \n"), length = strcspn(text += blanks, " \n");

        if (text >= end)
            break;
        if (!first && at + 1 + length > HELP_WIDTH) {
            fprintf(to, "\n%*s", (int)indent, "");
            at = indent;
        } else if (!first) {
            putc(' ', to);
            at++;
        }
        fwrite(text, 1, length, to);
        at += length;
        text += length;
        first = false;
    }
    putc('\n', to);
}

void text_wrap(FILE *to, const char *text)
{
    while (*text != '\0') {
        const char *end = strchrnul(text, '\n');

        while (*text != ' ' && *text != '\n' && *end == '\n' && end[1] != ' ' && end[1] != '\n' &&
               end[1] != '\0')
            end = strchrnul(end + 1, '\n');
        if (*text == ' ' || *text == '\n')
            fprintf(to, "%.*s\n", (int)(end - text), text);
        else
            wrap_words(to, text, (size_t)(end - text), 0, 0);
        text = *end == '\n' ? end + 1 : end;
    }
}

void text_columns(FILE *to, const char *left, size_t width, const char *right)
{
    if (strlen(left) > width)
        fprintf(to, "  %s\n%*s", left, (int)width + 4, "");
    else
        fprintf(to, "  %-*s  ", (int)width, left);
    wrap_words(to, right, strlen(right), width + 4, width + 4);
}
