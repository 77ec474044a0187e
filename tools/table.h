/* Aligned columns.
 *
 * Cells are escaped on the way in. With a width given, the one column that may give way is cut until
 * the lines fit, but not below TABLE_LEAST columns. */
#ifndef TOOLS_TABLE_H
#define TOOLS_TABLE_H

#include <stddef.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 16
#define TABLE_LEAST       12

struct table;

struct table_column {
    const char *title;
    enum {
        TABLE_LEFT,
        TABLE_RIGHT,
        TABLE_GIVES_WAY
    } kind; /* the last: left, and cut at its start */
};

/* Columns end with one whose title is NULL; they must outlive the table. */
struct table *table_new(const struct table_column *columns);
void table_free(struct table *);
/* Begins a row; then one table_cell per column, from the left; those left out are empty. */
void table_row(struct table *);
void table_cell(struct table *, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A line of its own below the present row, indented. */
void table_note(struct table *, const char *text);
size_t table_rows(const struct table *);
/* Prints titles and rows; nothing if there are no rows. `width` 0: as wide as it gets. */
void table_print(const struct table *, FILE *to, size_t width);

#endif
