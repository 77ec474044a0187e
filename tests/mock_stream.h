/* A stream whose other end is the test: input is a buffer that is handed out in chunks, output goes
 * to a buffer with as much room as the test allows. Events are what the test calls. For one file of
 * tests or one fuzz target. */
#ifndef TESTS_MOCK_STREAM_H
#define TESTS_MOCK_STREAM_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/stream.h"

struct mock_stream {
    struct stream stream;
    const struct stream_events *events;
    void *arg;
    /* Input: `in` of in_size bytes, handed out up to `chunk` at a time; then the end or
     * STREAM_AGAIN. */
    const uint8_t *in;
    size_t in_size, in_at, chunk;
    bool at_end;
    bool endless; /* input starts over */
    bool stutter; /* every other read says STREAM_AGAIN */
    /* Output: `room` bytes are taken in all. Kept only if `out` is not NULL. */
    uint8_t *out;
    size_t out_size, out_room, room;
    bool flush_again;
    /* What happened. */
    unsigned reads, writes, flushes, resumes;
    size_t largest_read;
    bool destroyed;
};

static inline ssize_t mock_read(struct stream *stream, void *to, size_t size)
{
    struct mock_stream *mock = (struct mock_stream *)stream;
    mock->reads++;
    if (mock->stutter && mock->reads % 2 == 0)
        return STREAM_AGAIN;
    if (mock->in_at == mock->in_size && mock->endless)
        mock->in_at = 0;
    if (mock->in_at == mock->in_size)
        return mock->at_end ? 0 : STREAM_AGAIN;
    size_t n = mock->in_size - mock->in_at;
    if (n > size)
        n = size;
    if (mock->chunk != 0 && n > mock->chunk)
        n = mock->chunk;
    memcpy(to, mock->in + mock->in_at, n);
    mock->in_at += n;
    if (n > mock->largest_read)
        mock->largest_read = n;
    return (ssize_t)n;
}

static inline ssize_t mock_write(struct stream *stream, const void *from, size_t size)
{
    struct mock_stream *mock = (struct mock_stream *)stream;
    mock->writes++;
    if (mock->room == 0)
        return STREAM_AGAIN;
    size_t n = size < mock->room ? size : mock->room;
    mock->room -= n;
    if (mock->out != NULL) {
        if (mock->out_size + n > mock->out_room)
            abort();
        memcpy(mock->out + mock->out_size, from, n);
    }
    mock->out_size += n;
    return (ssize_t)n;
}

static inline int mock_flush(struct stream *stream)
{
    struct mock_stream *mock = (struct mock_stream *)stream;
    mock->flushes++;
    return mock->flush_again ? STREAM_AGAIN : 0;
}

static inline void mock_set_events(struct stream *stream, const struct stream_events *events,
                                   void *arg)
{
    struct mock_stream *mock = (struct mock_stream *)stream;
    mock->events = events;
    mock->arg = arg;
}

static inline void mock_resume(struct stream *stream)
{
    ((struct mock_stream *)stream)->resumes++;
}

static inline void mock_destroy(struct stream *stream)
{
    ((struct mock_stream *)stream)->destroyed = true;
}

static inline struct stream *mock_init(struct mock_stream *mock)
{
    static const struct stream_class class = {
        .read = mock_read,
        .write = mock_write,
        .flush = mock_flush,
        .set_events = mock_set_events,
        .resume = mock_resume,
        .destroy = mock_destroy,
    };
    memset(mock, 0, sizeof *mock);
    mock->stream.class = &class;
    return &mock->stream;
}

#endif
