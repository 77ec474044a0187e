/* One buffer for each thread, for what is read and handed to the kernel at once. */
#ifndef FS_BUFFER_H
#define FS_BUFFER_H

#include <stddef.h>

#define BUFFER_SIZE (1u << 20) /* the largest read that the kernel asks for */

/* Page-aligned memory of BUFFER_SIZE bytes, the calling thread's, freed when it ends. */
void *buffer_here(void);

#endif
