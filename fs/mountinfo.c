/* proc_pid_mountinfo(5): "ID PARENT MAJOR:MINOR ROOT PATH OPTIONS … - TYPE SOURCE SUPER". */
#include "fs/mountinfo.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Blanks and backslashes in octal. */
static void escape(char *out, size_t size, const char *path)
{
    size_t used = 0;

    for (; *path != '\0' && used + 5 < size; path++)
        if (*path == ' ' || *path == '\t' || *path == '\n' || *path == '\\')
            used += (size_t)snprintf(out + used, size - used, "\\%03o", (unsigned char)*path);
        else
            out[used++] = *path;
    out[used] = '\0';
}

int mountinfo_match(const char *line, const char *escaped, struct mountinfo *info)
{
    size_t length = strlen(escaped);
    int at = 0;

    if (sscanf(line, "%d %*d %u:%u %*s %n", &info->id, &info->major_number, &info->minor_number,
               &at) != 3 ||
        at == 0)
        return -1;
    if (strncmp(line + at, escaped, length) != 0 || line[at + length] != ' ')
        return -1;
    return strstr(line + at + length, " - fuse.p2pfs ") != NULL;
}

/* What mountinfo_match says of the mount on top. */
static int find(const char *path, struct mountinfo *info)
{
    char escaped[4 * PATH_MAX], *line = NULL;
    FILE *file = fopen("/proc/self/mountinfo", "re");
    struct mountinfo one;
    size_t room = 0;
    int found = -1;

    if (file == NULL)
        return -1;
    escape(escaped, sizeof(escaped), path);
    while (getline(&line, &room, file) > 0) {
        int match = mountinfo_match(line, escaped, &one);

        if (match >= 0) { /* the last one is on top */
            found = match;
            *info = one;
        }
    }
    free(line);
    fclose(file);
    return found;
}

bool mountinfo_find(const char *path, struct mountinfo *info)
{
    return find(path, info) == 1;
}

bool mountinfo_is_mounted(const char *path)
{
    struct mountinfo info;

    return find(path, &info) >= 0;
}
