/* Allocation of small things whose size no stranger chose: it succeeds or the process aborts.
 *
 * For anything whose size comes from outside use malloc, bounded by a limit, and handle NULL. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdarg.h>
#include <stddef.h>

/* Each returns zeroed (xcalloc) or uninitialised memory, never NULL; the caller frees it. */
void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t size);
void *xmemdup(const void *from, size_t size);
char *xstrdup(const char *text);
char *xasprintf(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
