/* A process that holds keys, passwords or others' data keeps them to itself. */
#ifndef BASE_SECRECY_H
#define BASE_SECRECY_H

/* From now on this process leaves no core file, and other processes of the same user can neither trace it nor read its
 * memory and environment under /proc (PR_SET_DUMPABLE; not in a build with a sanitizer, which traces itself). Before
 * there are threads. */
void secrecy_begin(void);

#endif
