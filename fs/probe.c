/* Hello and Welcome over a blocking socket: so that `p2pfs` in a terminal says at once, in one line, why there is nothing
 * to mount. Everything later is client.c's, on its own connection. */
#include "fs/probe.h"

#include "base/home.h"
#include "base/mem.h"
#include "base/spawn.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/local.pb-c.h"
#include "proto/message.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* A connected socket, or -errno. */
static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval wait = {.tv_sec = LIMIT_HELLO_NS / NS_PER_S};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), error;

    if (fd < 0)
        return -errno;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof(wait));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    error = errno;
    close(fd);
    return -error;
}

static int send_hello(int fd)
{
    uint8_t bytes[FRAME_HEADER_SIZE + 64];
    Local__Hello hello = LOCAL__HELLO__INIT;
    struct frame frame = {.type = LOCAL__LOCAL_TYPE__LOCAL_HELLO, .id = 1};
    size_t size;

    hello.version = 1;
    hello.program = LOCAL__PROGRAM__PROGRAM_CTL; /* not a mount yet */
    size = local__hello__pack(&hello, bytes + FRAME_HEADER_SIZE);
    frame.message_size = (uint32_t)size;
    frame_encode(bytes, &frame);
    size += FRAME_HEADER_SIZE;
    return send(fd, bytes, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

/* NULL if all is well, else what is not. */
static const char *take_welcome(int fd)
{
    uint8_t header[FRAME_HEADER_SIZE], *bytes;
    struct frame frame;
    struct message_arena arena;
    const Local__Welcome *welcome;
    const char *fault = NULL;

    if (recv(fd, header, sizeof(header), MSG_WAITALL) != (ssize_t)sizeof(header))
        return "p2pd does not answer";
    if (frame_decode(&frame, header, LIMIT_STRANGER_FRAME) != NULL || frame.payload_size != 0)
        return "p2pd answers nonsense";
    bytes = malloc(frame.message_size + 1);
    if (bytes == NULL)
        return "no memory";
    if (recv(fd, bytes, frame.message_size, MSG_WAITALL) != (ssize_t)frame.message_size)
        fault = "p2pd does not answer";
    else if (frame.type != LOCAL__LOCAL_TYPE__LOCAL_WELCOME)
        fault = "p2pd is of another version";
    if (fault == NULL) {
        welcome = message_unpack(&arena, &local__welcome__descriptor, bytes, frame.message_size);
        if (welcome == NULL)
            fault = "p2pd answers nonsense";
        else if (welcome->version != 1)
            fault = "p2pd is of another version";
        else if (*welcome->account == '\0')
            fault = "not logged in: run p2pctl register, or login, URL NAME";
        message_done(&arena);
    }
    free(bytes);
    return fault;
}

int probe_daemon(const char *home, char *why, size_t why_size)
{
    char *path = home_socket(home);
    const char *fault;
    int fd = connect_to(path);

    if (fd == -ENOENT || fd == -ECONNREFUSED) {
        if (access(home, F_OK) != 0) {
            snprintf(why, why_size,
                     "not logged in: run p2pctl register, or login, URL NAME (there is no %s)",
                     home);
            free(path);
            return -1;
        }
        if (daemon_start(home, why, why_size) != 0) {
            free(path);
            return -1;
        }
        fd = connect_to(path);
    }
    if (fd < 0) {
        snprintf(why, why_size, "cannot connect to %s: %s", path, strerror(-fd));
        free(path);
        return -1;
    }
    fault = send_hello(fd) != 0 ? "p2pd does not listen" : take_welcome(fd);
    if (fault != NULL)
        snprintf(why, why_size, "%s", fault);
    close(fd);
    free(path);
    return fault == NULL ? 0 : -1;
}
