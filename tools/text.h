/* Text for terminals: names from the swarm are strangers' input, and columns are not bytes.
 *
 * Widths are wcwidth's; text_init chooses UTF-8 whatever the environment says, so that the same
 * names give the same output in a script. Any thread after that. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stddef.h>

/* Once, before any of the others. */
void text_init(void);

/* The text without anything that a terminal would obey: control characters, bidirectional controls
 * and bytes that are no UTF-8 become \xNN. malloc'ed. */
char *text_escape(const char *text);

/* Columns that escaped text takes. */
size_t text_width(const char *text);

enum text_cut { TEXT_CUT_START, TEXT_CUT_END };

/* Escaped text in at most `width` columns: what does not fit is replaced by one "…" at its start
 * (for paths, whose end says most) or its end. malloc'ed. */
char *text_fit(const char *text, size_t width, enum text_cut cut);

/* The word of `words` (NULL-terminated) that `text` was most likely meant to be, or NULL if none
 * is near. */
const char *text_nearest(const char *text, const char *const *words);

#endif
