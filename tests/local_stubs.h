/* What the local module calls in modules that a test or a fuzz target leaves out, where both want the same: answers that
 * know nothing. `d` is the daemon; what a test wants to see or to answer itself it defines itself. For one file. */
#ifndef TESTS_LOCAL_STUBS_H
#define TESTS_LOCAL_STUBS_H

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/home.h"
#include "base/mem.h"
#include "daemon/daemon.h"
#include "daemon/download.h"
#include "daemon/local.h"
#include "daemon/session.h"
#include "daemon/upload.h"

static struct daemon d;

/* The home of the daemon under test. */
static void remove_tree(const char *path)
{
    DIR *directory = opendir(path);
    struct dirent *e;
    while (directory != NULL && (e = readdir(directory)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        char *child = home_path(path, e->d_name);
        if (unlink(child) != 0)
            remove_tree(child);
        free(child);
    }
    if (directory != NULL)
        closedir(directory);
    rmdir(path);
}

void session_catalogue_at(struct session *s, const uint8_t generation[16], uint64_t seq)
{
}

void account_request_free(struct account_request *r)
{
    free(r->url);
    free(r->name);
    free(r->email);
    free(r->password);
    free(r->new_password);
    free(r->code);
    free(r->call);
    free(r);
}

void account_answer_free(struct account_answer *a)
{
    free(a->text);
    free(a->url);
    free(a->swarm);
    free(a->name);
    free(a->device);
    free(a->call);
    free(a);
}

void download_status_free(struct download_status *s)
{
    free(s->files);
    free(s->links);
    free(s);
}

void upload_ask_status(struct upload *u, void *cookie)
{
    struct upload_status *s = xcalloc(1, sizeof *s);
    s->cookie = cookie;
    local_upload_status(d.local, s);
}

void upload_limits_changed(struct upload *u)
{
    (void)u;
}

void download_limits_changed(struct download *u)
{
    (void)u;
}

void upload_status_free(struct upload_status *s)
{
    free(s->links);
    free(s->files);
    free(s);
}

#endif
