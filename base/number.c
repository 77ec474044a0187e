/* Numbers as people write and read them: digits only, no locale, no sign, no silent overflow.
 *
 * The one place where text becomes a number. Any thread; holds nothing. */
#include "base/number.h"

#include <stdio.h>
#include <string.h>

#define DURATION_MAX (UINT64_C(10) * 365 * 86400) /* ten years: more is a slip of the finger */

/* Reads the digits at *text, of which there must be one, and moves *text behind them. */
static bool take_digits(const char **text, uint64_t *out)
{
    const char *at = *text;
    uint64_t value = 0;

    if (*at < '0' || *at > '9')
        return false;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (__builtin_mul_overflow(value, UINT64_C(10), &value) ||
            __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
            return false;
    }
    *text = at;
    *out = value;
    return true;
}

bool number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    uint64_t value;

    if (!take_digits(&text, &value) || *text != '\0' || value < min || value > max)
        return false;
    *out = value;
    return true;
}

bool duration_parse(const char *text, uint64_t *seconds)
{
    uint64_t value, unit = 1;

    if (!take_digits(&text, &value))
        return false;
    switch (*text) {
    case 's':
        text++;
        break;
    case 'm':
        unit = 60;
        text++;
        break;
    case 'h':
        unit = 3600;
        text++;
        break;
    case 'd':
        unit = 86400;
        text++;
        break;
    default:
        break;
    }
    if (*text != '\0' || value > DURATION_MAX / unit)
        return false;
    *seconds = value * unit;
    return true;
}

/* The shift of a unit's letter, 0 for none. */
static unsigned unit_shift(char letter)
{
    static const char letters[] = "KMGTPE";
    const char *found = letter == '\0' ? NULL : strchr(letters, letter & ~0x20);

    return found == NULL ? 0 : 10 * (unsigned)(found - letters + 1);
}

/* Reads ".5" as `value` tenths ("scale" 10); digits behind the ninth are dropped. */
static bool take_fraction(const char **text, uint64_t *value, uint64_t *scale)
{
    const char *at = *text + 1;

    *value = 0;
    *scale = 1;
    if (*at < '0' || *at > '9')
        return false;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (*scale < UINT64_C(1000000000)) {
            *value = *value * 10 + (uint64_t)(*at - '0');
            *scale *= 10;
        }
    }
    *text = at;
    return true;
}

bool bytes_parse(const char *text, uint64_t *bytes)
{
    uint64_t whole, part = 0, scale = 1;
    unsigned __int128 total;
    unsigned shift;

    if (!take_digits(&text, &whole))
        return false;
    if (*text == '.' && !take_fraction(&text, &part, &scale))
        return false;
    if (*text == ' ' && text[1] != '\0') /* as bytes_format writes it */
        text++;
    shift = unit_shift(*text);
    if (shift > 0)
        text++;
    else if (scale > 1)
        return false; /* half a byte */
    if (shift > 0 && text[0] == 'i' && text[1] == 'B')
        text += 2;
    else if (*text == 'B')
        text++;
    if (text[0] == '/' && text[1] == 's')
        text += 2;
    total = ((unsigned __int128)whole << shift) + (((unsigned __int128)part << shift) / scale);
    if (*text != '\0' || total > UINT64_MAX)
        return false;
    *bytes = (uint64_t)total;
    return true;
}

char *bytes_format(char *out, uint64_t bytes)
{
    static const char letters[] = "KMGTPE";
    unsigned __int128 tenths, whole;
    unsigned unit = 1;

    if (bytes < 1024) {
        snprintf(out, NUMBER_TEXT_MAX, "%u B", (unsigned)bytes);
        return out;
    }
    /* The first unit in which the rounded number stays under 1024. */
    for (;; unit++) {
        unsigned __int128 size = (unsigned __int128)1 << (10 * unit);

        tenths = ((unsigned __int128)bytes * 10 + size / 2) / size;
        whole = ((unsigned __int128)bytes + size / 2) / size;
        if (whole < 1024)
            break;
    }
    if (tenths < 100)
        snprintf(out, NUMBER_TEXT_MAX, "%u.%u %ciB", (unsigned)(tenths / 10),
                 (unsigned)(tenths % 10), letters[unit - 1]);
    else
        snprintf(out, NUMBER_TEXT_MAX, "%u %ciB", (unsigned)whole, letters[unit - 1]);
    return out;
}

char *duration_format(char *out, uint64_t seconds)
{
    if (seconds < 60)
        snprintf(out, NUMBER_TEXT_MAX, "%us", (unsigned)seconds);
    else if (seconds < 3600)
        snprintf(out, NUMBER_TEXT_MAX, "%um %02us", (unsigned)(seconds / 60),
                 (unsigned)(seconds % 60));
    else if (seconds < 86400)
        snprintf(out, NUMBER_TEXT_MAX, "%uh %02um", (unsigned)(seconds / 3600),
                 (unsigned)(seconds / 60 % 60));
    else
        snprintf(out, NUMBER_TEXT_MAX, "%llud %uh", (unsigned long long)(seconds / 86400),
                 (unsigned)(seconds / 3600 % 24));
    return out;
}
