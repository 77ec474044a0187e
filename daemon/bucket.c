/* The arithmetic of a rate limit. Owned by whoever limits: the choker for what is sent, the download thread for what is asked
 * for. Pure; no memory.
 *
 * B1  tokens <= most(rate) after each bucket_room. */
#include "daemon/bucket.h"

#include "crypto/merkle.h"

/* Two blocks at least, so that a slow rate can save up for one. */
static int64_t most(uint64_t rate)
{
    int64_t tokens = (int64_t)((double)rate * BUCKET_BURST / NS_PER_S);

    return tokens < 2 * BLOCK_SIZE ? 2 * BLOCK_SIZE : tokens;
}

void bucket_set(struct bucket *bucket, uint64_t rate, int64_t now)
{
    if (bucket->rate == rate)
        return;
    bucket->rate = rate;
    bucket->at = now;
    bucket->tokens = 0;
}

uint64_t bucket_room(struct bucket *bucket, int64_t now)
{
    double gained;

    if (bucket->rate == 0)
        return UINT64_MAX;
    gained = (double)bucket->rate * (double)(now - bucket->at) / (double)NS_PER_S;
    if (gained >= (double)(most(bucket->rate) - bucket->tokens)) {
        bucket->tokens = most(bucket->rate);
        bucket->at = now;
    } else if (gained >= 1) {
        /* Only the time that made whole tokens is used up, so that none is lost however often one looks. */
        bucket->tokens += (int64_t)gained;
        bucket->at += (int64_t)((double)(int64_t)gained * (double)NS_PER_S / (double)bucket->rate);
    }
    return bucket->tokens > 0 ? (uint64_t)bucket->tokens : 0;
}

void bucket_spend(struct bucket *bucket, uint64_t bytes)
{
    if (bucket->rate != 0)
        bucket->tokens -= (int64_t)bytes;
}

void bucket_refund(struct bucket *bucket, uint64_t bytes)
{
    if (bucket->rate != 0)
        bucket->tokens += (int64_t)bytes;
}

int64_t bucket_wait(const struct bucket *bucket, uint64_t bytes)
{
    int64_t lacking = (int64_t)bytes - bucket->tokens;

    if (bucket->rate == 0 || lacking <= 0)
        return 0;
    return (int64_t)((double)lacking * (double)NS_PER_S / (double)bucket->rate) + 1;
}
