/* Text for terminals: names from the swarm are strangers' input, and columns are not bytes.
 *
 * Widths are wcwidth's; text_init chooses UTF-8 whatever the environment says, so that the same
 * names give the same output in a script. Any thread after that. */
#ifndef TOOLS_TEXT_H
#define TOOLS_TEXT_H

#include <stddef.h>
#include <stdio.h>

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

/* For texts of our own. Breaks lines so that they fit 80 columns; a line that begins with a blank stays as it is, others are
 * joined to paragraphs, which end where a blank line or such a line follows. */
void text_wrap(FILE *to, const char *text);
/* "  LEFT  RIGHT", RIGHT broken below itself; below LEFT if that has more than `width` columns. */
void text_columns(FILE *to, const char *left, size_t width, const char *right);

#endif
