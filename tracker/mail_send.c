/* Handing a mail over: to a mail server by SMTP (libcurl, with STARTTLS or TLS), or to a sendmail command.
 *
 * Owns the check of everything that reaches either of them: libcurl passes CR and LF in addresses through to the server,
 * so an address that could hold them is refused here, whoever gave it. Blocks for at most SEND_SECONDS: for a thread
 * that has nothing else to do. What was refused with 55x for this address is refused for good, everything else is tried
 * again. */
#include "tracker/mail.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/swarm_url.h"
#include "proto/limits.h"

#define CONNECT_SECONDS 20
#define SEND_SECONDS    90
#define ARGUMENTS_MAX   16
#define PASSWORD_MAX    1024

extern char **environ;

bool mail_address_is_sound(const char *address)
{
    const char *at = strchr(address, '@');
    if (strlen(address) > LIMIT_EMAIL || at == NULL || at == address || at[1] == '\0' ||
        strchr(at + 1, '@') != NULL || address[0] == '-')
        return false;
    for (const char *c = address; *c != '\0'; c++)
        if (*c < 0x21 || *c > 0x7e || strchr("<>()[],;:\\\"", *c) != NULL)
            return false;
    return true;
}

/* --- settings ---------------------------------------------------------------------------------------- */

static bool is_loopback(const char *host)
{
    return strcmp(host, "localhost") == 0 || strcmp(host, "::1") == 0 ||
           strncmp(host, "127.", 4) == 0;
}

static char *server_fault(const struct mail_settings *s)
{
    char host[SWARM_HOST_MAX + 1];
    uint16_t port;
    bool tls = strncmp(s->server, "smtps://", 8) == 0;
    if (!tls && strncmp(s->server, "smtp://", 7) != 0)
        return xasprintf("the mail server must be smtp://HOST:PORT or smtps://HOST:PORT");
    if (!host_port_parse(s->server + (tls ? 8 : 7), tls ? 465 : 587, host, &port) ||
        host[0] == '\0')
        return xasprintf("%s names no mail server", s->server);
    if (s->plain && (tls || !is_loopback(host)))
        return xasprintf("mail without TLS is for a server on this machine only, not for %s",
                         s->server);
    return NULL;
}

char *mail_settings_fault(const struct mail_settings *s, bool *configured)
{
    *configured = s->server != NULL || s->command != NULL;
    if (!*configured)
        return NULL;
    if (s->server != NULL && s->command != NULL)
        return xasprintf("mail goes either to a server or to a command, not to both");
    if (s->from == NULL || !mail_address_is_sound(s->from))
        return xasprintf("mail needs an address that it comes from (from in [mail])");
    if ((s->user == NULL) != (s->password_file == NULL))
        return xasprintf("user and password-file of the mail server belong together");
    return s->server == NULL ? NULL : server_fault(s);
}

static char *copy(const char *text)
{
    return text == NULL ? NULL : xstrdup(text);
}

void mail_settings_copy(struct mail_settings *to, const struct mail_settings *from)
{
    *to = *from;
    to->server = copy(from->server);
    to->command = copy(from->command);
    to->from = copy(from->from);
    to->user = copy(from->user);
    to->password_file = copy(from->password_file);
    to->ca_file = copy(from->ca_file);
}

void mail_settings_clear(struct mail_settings *s)
{
    free(s->server);
    free(s->command);
    free(s->from);
    free(s->user);
    free(s->password_file);
    free(s->ca_file);
    *s = (struct mail_settings){0};
}

/* --- SMTP ---------------------------------------------------------------------------------------------- */

struct reading {
    const char *at;
    size_t left;
    const atomic_bool *stop;
};

static size_t read_more(char *to, size_t size, size_t count, void *arg)
{
    struct reading *r = arg;
    size_t take = size * count < r->left ? size * count : r->left;
    memcpy(to, r->at, take);
    r->at += take;
    r->left -= take;
    return take;
}

static int look_for_stop(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct reading *r = arg;
    return atomic_load(r->stop) ? 1 : 0;
}

/* The first line of the password file, in a buffer that is to be wiped; NULL: said in `why`. */
static char *read_password(const char *path, size_t *size, char *why, size_t why_size)
{
    char *data = NULL;
    int error = file_read(path, PASSWORD_MAX, true, &data, size);
    if (error != 0) {
        snprintf(why, why_size, "%s: %s", path,
                 error == -EPERM ? "others may read it" : strerror(-error));
        return NULL;
    }
    data[strcspn(data, "\r\n")] = '\0';
    return data;
}

static void set_options(CURL *curl, const struct mail_settings *s, struct reading *reading,
                        char *problem)
{
    char *from = xasprintf("<%s>", s->from);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "smtp,smtps");
    curl_easy_setopt(curl, CURLOPT_URL, s->server);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_USE_SSL, (long)(s->plain ? CURLUSESSL_NONE : CURLUSESSL_ALL));
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (s->ca_file != NULL)
        curl_easy_setopt(curl, CURLOPT_CAINFO, s->ca_file);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_SECONDS);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)SEND_SECONDS);
    curl_easy_setopt(curl, CURLOPT_MAIL_FROM, from);
    curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(curl, CURLOPT_READFUNCTION, read_more);
    curl_easy_setopt(curl, CURLOPT_READDATA, reading);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, look_for_stop);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, reading);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, problem);
    free(from);
}

static enum mail_result send_smtp(const struct mail_settings *s, const char *to, const char *text,
                                  size_t size, const atomic_bool *stop, char *why, size_t why_size)
{
    struct reading reading = {.at = text, .left = size, .stop = stop};
    char problem[CURL_ERROR_SIZE] = "", *password = NULL, *bracketed = NULL;
    size_t password_size = 0;
    enum mail_result result = MAIL_LATER;
    CURL *curl = curl_easy_init();
    if (curl == NULL)
        return MAIL_LATER;
    set_options(curl, s, &reading, problem);
    if (s->user != NULL) {
        password = read_password(s->password_file, &password_size, why, why_size);
        if (password == NULL)
            goto done;
        curl_easy_setopt(curl, CURLOPT_USERNAME, s->user);
        curl_easy_setopt(curl, CURLOPT_PASSWORD, password);
    }
    bracketed = xasprintf("<%s>", to);
    struct curl_slist *recipients = curl_slist_append(NULL, bracketed);
    curl_easy_setopt(curl, CURLOPT_MAIL_RCPT, recipients);
    CURLcode code = curl_easy_perform(curl);
    long answer = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer);
    if (code == CURLE_OK)
        result = MAIL_SENT;
    else if (answer >= 550 && answer <= 559 && code != CURLE_LOGIN_DENIED)
        result = MAIL_REFUSED;
    if (code != CURLE_OK)
        snprintf(why, why_size, "%s", problem[0] != '\0' ? problem : curl_easy_strerror(code));
    curl_slist_free_all(recipients);
done:
    file_free_secret(password, password_size);
    curl_easy_cleanup(curl);
    free(bracketed);
    return result;
}

/* --- a command ----------------------------------------------------------------------------------------- */

/* Splits the command at blanks, the address behind it: no shell sees either. */
static bool split(char *command, char *to, char **arguments)
{
    size_t count = 0;
    char *rest = command, *word;
    while ((word = strsep(&rest, " \t")) != NULL && count + 2 < ARGUMENTS_MAX)
        if (word[0] != '\0')
            arguments[count++] = word;
    arguments[count] = to;
    arguments[count + 1] = NULL;
    return count > 0 && word == NULL;
}

/* The program with our pipe as its standard input; its own end is *fd. */
static pid_t spawn(char **arguments, int *fd)
{
    int ends[2];
    pid_t child = -1;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t signals;
    if (pipe2(ends, O_CLOEXEC) != 0)
        return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_init(&attributes);
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes, &signals);
    sigaddset(&signals, SIGPIPE);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    if (posix_spawn(&child, arguments[0], &actions, &attributes, arguments, environ) != 0)
        child = -1;
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    close(ends[0]);
    *fd = ends[1];
    if (child < 0)
        close(ends[1]);
    return child;
}

static bool write_all(int fd, const char *text, size_t size, int64_t until, const atomic_bool *stop)
{
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (size > 0 && clock_now() < until && !atomic_load(stop)) {
        struct pollfd writable = {.fd = fd, .events = POLLOUT};
        poll(&writable, 1, 200);
        ssize_t written = write(fd, text, size);
        if (written < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (written > 0) {
            text += written;
            size -= (size_t)written;
        }
    }
    return size == 0;
}

/* Its exit status; -1: it took too long, and was killed. */
static int await(pid_t child, int64_t until, const atomic_bool *stop)
{
    for (;;) {
        int status = 0;
        pid_t ended = waitpid(child, &status, WNOHANG);
        if (ended == child)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        if (ended < 0 && errno != EINTR)
            return -1;
        if (clock_now() >= until || atomic_load(stop))
            break;
        poll(NULL, 0, 20);
    }
    kill(child, SIGKILL);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    return -1;
}

static enum mail_result send_command(const struct mail_settings *s, const char *to,
                                     const char *text, size_t size, const atomic_bool *stop,
                                     char *why, size_t why_size)
{
    char *arguments[ARGUMENTS_MAX], *command = xstrdup(s->command), *address = xstrdup(to);
    int64_t until = clock_now() + SEND_SECONDS * NS_PER_S;
    int fd, status = -1;
    pid_t child = split(command, address, arguments) ? spawn(arguments, &fd) : -1;
    if (child < 0) {
        snprintf(why, why_size, "cannot run %s", s->command);
    } else {
        bool written = write_all(fd, text, size, until, stop);
        close(fd);
        status = await(child, until, stop);
        if (!written)
            status = -1;
        snprintf(why, why_size, "%s ended with %d", arguments[0], status);
    }
    free(command);
    free(address);
    return status == 0 ? MAIL_SENT : MAIL_LATER;
}

enum mail_result mail_send(const struct mail_settings *s, const char *to, const char *text,
                           size_t size, const atomic_bool *stop, char *why, size_t why_size)
{
    snprintf(why, why_size, "the mail library cannot be used");
    if (!mail_address_is_sound(to)) {
        snprintf(why, why_size, "the address is not a good one");
        return MAIL_REFUSED;
    }
    return s->command != NULL ? send_command(s, to, text, size, stop, why, why_size)
                              : send_smtp(s, to, text, size, stop, why, why_size);
}
