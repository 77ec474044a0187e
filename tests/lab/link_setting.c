/* Settings of a link as text: what --link, --host and the command `set` take.
 *
 * Holds nothing. Every number is bounded here, so that nothing behind has to fear an absurd one. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "tests/lab/line.h"

#define RATE_LEAST  1000.0 /* bit/s: at less, one packet takes 12 s */
#define RATE_MOST   1e12
#define DELAY_MOST  60e9 /* ns */
#define QUEUE_MOST  ((uint64_t)1 << 30)
#define SETTING_MAX 512 /* bytes of text */

/* A decimal number and where it ends; false if there is none. No sign, no exponent, no locale. */
static bool take_number(const char **text, double *out)
{
    const char *at = *text;
    double value = 0, unit = 1;
    bool any = false;

    for (; *at >= '0' && *at <= '9'; at++, any = true)
        value = value * 10 + (*at - '0');
    if (*at == '.') {
        for (at++; *at >= '0' && *at <= '9'; at++, any = true)
            value += (*at - '0') * (unit /= 10);
    }
    *text = at;
    *out = value;
    return any;
}

/* The factor of the unit at `text`, which must be all that is there; 0 if it is unknown. */
struct unit {
    const char *name;
    double factor;
};
static double unit_of(const char *text, const struct unit *units)
{
    for (; units->name != NULL; units++) {
        if (strcmp(text, units->name) == 0)
            return units->factor;
    }
    return 0;
}

static const char *parse_rate(const char *text, uint64_t *rate)
{
    static const struct unit units[] = {
        {"bit", 1}, {"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {NULL, 0}};
    double value;

    if (strcmp(text, "0") == 0 || strcmp(text, "none") == 0) {
        *rate = 0;
        return NULL;
    }
    if (!take_number(&text, &value) || (value *= unit_of(text, units)) == 0)
        return "a rate is a number with bit, kbit, mbit or gbit, or 0 for no limit";
    if (value < RATE_LEAST || value > RATE_MOST)
        return "a rate is from 1kbit to 1000gbit, or 0 for no limit";
    *rate = (uint64_t)value;
    return NULL;
}

static const char *parse_delay(const char *text, int64_t *delay)
{
    static const struct unit units[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {NULL, 0}};
    double value, unit;

    if (strcmp(text, "0") == 0) {
        *delay = 0;
        return NULL;
    }
    if (!take_number(&text, &value) || (unit = unit_of(text, units)) == 0)
        return "a delay is a number with us, ms or s";
    if (value * unit > DELAY_MOST)
        return "a delay is at most 60s";
    *delay = (int64_t)(value * unit);
    return NULL;
}

static const char *parse_queue(const char *text, uint64_t *queue)
{
    size_t length = strlen(text);
    char digits[24];
    uint64_t value;

    if (strcmp(text, "auto") == 0) {
        *queue = 0;
        return NULL;
    }
    if (length > 1 && length < sizeof digits && text[length - 1] == 'p') {
        memcpy(digits, text, length - 1);
        digits[length - 1] = '\0';
        if (!number_parse(digits, 1, QUEUE_MOST / LINE_MTU, &value))
            return "a queue in packets is from 1p to 715827p";
        *queue = value * LINE_MTU;
        return NULL;
    }
    if (!bytes_parse(text, &value) || value < LINE_MTU || value > QUEUE_MOST)
        return "a queue is bytes (64K, 1M) from 1500 to 1G, packets (50p), or auto";
    *queue = value;
    return NULL;
}

static const char *parse_loss(const char *text, double *loss)
{
    static const struct unit units[] = {{"", 1}, {"%", 0.01}, {NULL, 0}};
    double value, unit;

    if (!take_number(&text, &value) || (unit = unit_of(text, units)) == 0 || value * unit > 1)
        return "a loss is from 0 to 1, or from 0% to 100%";
    *loss = value * unit;
    return NULL;
}

static const char *parse_dial(const char *text, bool *closed)
{
    if (strcmp(text, "yes") != 0 && strcmp(text, "no") != 0)
        return "dial is yes or no";
    *closed = strcmp(text, "no") == 0;
    return NULL;
}

static const char *apply(const char *key, const char *value, struct link_setting *to)
{
    const char *fault;

    if (strcmp(key, "up") == 0)
        return parse_rate(value, &to->up.rate);
    if (strcmp(key, "down") == 0)
        return parse_rate(value, &to->down.rate);
    if (strcmp(key, "delay-up") == 0)
        return parse_delay(value, &to->up.delay_ns);
    if (strcmp(key, "delay-down") == 0)
        return parse_delay(value, &to->down.delay_ns);
    if (strcmp(key, "queue-up") == 0)
        return parse_queue(value, &to->up.queue);
    if (strcmp(key, "queue-down") == 0)
        return parse_queue(value, &to->down.queue);
    if (strcmp(key, "loss-up") == 0)
        return parse_loss(value, &to->up.loss);
    if (strcmp(key, "loss-down") == 0)
        return parse_loss(value, &to->down.loss);
    if (strcmp(key, "dial") == 0)
        return parse_dial(value, &to->closed);

    if (strcmp(key, "rate") == 0) {
        fault = parse_rate(value, &to->up.rate);
        to->down.rate = to->up.rate;
    } else if (strcmp(key, "delay") == 0) {
        fault = parse_delay(value, &to->up.delay_ns);
        to->down.delay_ns = to->up.delay_ns;
    } else if (strcmp(key, "queue") == 0) {
        fault = parse_queue(value, &to->up.queue);
        to->down.queue = to->up.queue;
    } else if (strcmp(key, "loss") == 0) {
        fault = parse_loss(value, &to->up.loss);
        to->down.loss = to->up.loss;
    } else {
        fault =
            "a setting is one of up, down, rate, delay, queue, loss (these three also with -up or "
            "-down) and dial, as in up=20mbit,delay=5ms";
    }
    return fault;
}

const char *link_setting_parse(const char *text, struct link_setting *setting)
{
    struct link_setting next = *setting;
    char copy[SETTING_MAX], *rest = copy, *word;

    if (strlen(text) >= sizeof copy)
        return "too long a setting";
    memcpy(copy, text, strlen(text) + 1);
    while ((word = strsep(&rest, ",")) != NULL) {
        char *equals = strchr(word, '=');
        const char *fault;

        if (equals == NULL)
            return "a setting is KEY=VALUE[,KEY=VALUE...], as in up=20mbit,delay=5ms";
        *equals = '\0';
        fault = apply(word, equals + 1, &next);
        if (fault != NULL)
            return fault;
    }
    *setting = next;
    return NULL;
}

char *line_rate_format(char *out, uint64_t rate)
{
    double value = (double)rate;

    if (rate == 0)
        snprintf(out, LINE_TEXT_MAX, "no limit");
    else if (rate >= UINT64_C(1000000000))
        snprintf(out, LINE_TEXT_MAX, "%.4g Gbit/s", value / 1e9);
    else if (rate >= UINT64_C(1000000))
        snprintf(out, LINE_TEXT_MAX, "%.4g Mbit/s", value / 1e6);
    else
        snprintf(out, LINE_TEXT_MAX, "%.4g kbit/s", value / 1e3);
    return out;
}
