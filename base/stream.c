/* A stream's calls, handed to whatever carries it. */
#include "base/stream.h"

#include <stdint.h>

#include "base/check.h"

void stream_set_events(struct stream *stream, const struct stream_events *events, void *arg)
{
    CHECK(stream != NULL);
    stream->class->set_events(stream, events, arg);
}

ssize_t stream_read(struct stream *stream, void *to, size_t size)
{
    /* A read of nothing could not be told from the peer's end. */
    CHECK(stream != NULL && size > 0);
    return stream->class->read(stream, to, size);
}

ssize_t stream_write(struct stream *stream, const void *from, size_t size)
{
    CHECK(stream != NULL);
    return stream->class->write(stream, from, size);
}

size_t stream_room(struct stream *stream)
{
    CHECK(stream != NULL);
    return stream->class->room != NULL ? stream->class->room(stream) : SIZE_MAX;
}

int stream_flush(struct stream *stream)
{
    CHECK(stream != NULL);
    return stream->class->flush(stream);
}

void stream_resume(struct stream *stream)
{
    CHECK(stream != NULL);
    stream->class->resume(stream);
}

void stream_free(struct stream *stream)
{
    if (stream != NULL)
        stream->class->destroy(stream);
}
