/* Aligned columns.
 *
 * Cells are escaped on the way in. With a width given, columns that may go are left out, the last first, until the lines fit;
 * then the one column that may give way is cut, but not below TABLE_LEAST. */
#ifndef TOOLS_TABLE_H
#define TOOLS_TABLE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define TABLE_COLUMNS_MAX 16
#define TABLE_LEAST       12

struct table;

enum {
    TABLE_LEFT = 0,
    TABLE_RIGHT = 1,
    TABLE_GIVES_WAY = 2, /* left, and cut at its start */
    TABLE_MAY_GO = 4     /* besides: left out on a narrow terminal */
};
struct table_column {
    const char *title;
    unsigned kind;
};

/* Columns end with one whose title is NULL; they must outlive the table. */
struct table *table_new(const struct table_column *columns);
void table_free(struct table *);
/* Begins a row; then one table_cell per column, from the left; those left out are empty. */
void table_row(struct table *);
void table_cell(struct table *, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a number of which 0 needs no word. */
void table_count(struct table *, uint64_t);
/* A line of its own below the present row, indented. */
void table_note(struct table *, const char *text);
size_t table_rows(const struct table *);
/* Prints titles and rows; nothing if there are no rows. `width` 0: as wide as it gets. */
void table_print(const struct table *, FILE *to, size_t width);

#endif
