/* A process that holds keys, passwords or others' data keeps them to itself. */
#ifndef BASE_SECRECY_H
#define BASE_SECRECY_H

#include <stdbool.h>
#include <stddef.h>

/* From now on this process leaves no core file, and other processes of the same user can neither trace it nor read its
 * memory and environment under /proc (PR_SET_DUMPABLE; not in a build with a sanitizer, which traces itself). Before
 * there are threads. */
void secrecy_begin(void);
/* Whether these files of a directory, where they are there, are this user's and nobody else can read or write them; says in
 * the log which is not, and how to mend it. */
bool secrecy_files(const char *directory, const char *const *names, size_t count);

#endif
