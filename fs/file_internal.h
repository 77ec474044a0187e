/* What file.c and file_write.c share. The client's thread. */
#ifndef FS_FILE_INTERNAL_H
#define FS_FILE_INTERNAL_H

#include "fs/file.h"

/* The content in an Opened: takes its descriptors; NULL and *error (an errno). */
struct content *file_content_of(struct answer *, int *error);
void file_set_attr(struct file *, const Local__Attr *); /* NULL is fine */
void file_install(struct file *, struct content *);     /* takes the reference over */
void handle_unpass(struct handle *);                    /* it goes */
void file_set_unsealed(struct file *, bool);
/* Under the lock: bytes or size changed just now. */
void file_touch(struct file *);
/* Lets go of the file if nothing needs it. */
void file_settle(struct file *);

#endif
