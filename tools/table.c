/* Aligned columns: keeps the cells, measures them, prints them.
 *
 * Owns copies of all cells (escaped, so that a name can't reach the terminal) and of the notes. Columns that may go and the
 * one that gives way make a line fit. A column that is empty in all rows is left out,
 * so that what does not apply costs no space. Any thread, one at a time. */
#include "tools/table.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/mem.h"
#include "tools/text.h"

#define GAP 2 /* blanks between columns */

struct row {
    char *cells[TABLE_COLUMNS_MAX]; /* NULL: empty */
    char *note;
};

struct table {
    const struct table_column *columns;
    size_t column_count;
    struct row *rows;
    size_t row_count, row_room;
    size_t next; /* column of the next cell */
};

struct table *table_new(const struct table_column *columns)
{
    struct table *t = xcalloc(1, sizeof *t);

    t->columns = columns;
    while (columns[t->column_count].title != NULL)
        t->column_count++;
    CHECK(t->column_count <= TABLE_COLUMNS_MAX);
    return t;
}

void table_free(struct table *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->row_count; i++) {
        for (size_t j = 0; j < t->column_count; j++)
            free(t->rows[i].cells[j]);
        free(t->rows[i].note);
    }
    free(t->rows);
    free(t);
}

void table_row(struct table *t)
{
    if (t->row_count == t->row_room) {
        t->row_room = t->row_room == 0 ? 16 : 2 * t->row_room;
        t->rows = xrealloc(t->rows, t->row_room * sizeof *t->rows);
    }
    memset(&t->rows[t->row_count++], 0, sizeof *t->rows);
    t->next = 0;
}

void table_cell(struct table *t, const char *format, ...)
{
    va_list arguments;
    char *text = NULL;

    CHECK(t->row_count > 0 && t->next < t->column_count);
    va_start(arguments, format);
    CHECK(vasprintf(&text, format, arguments) >= 0);
    va_end(arguments);
    if (*text != '\0')
        t->rows[t->row_count - 1].cells[t->next] = text_escape(text);
    t->next++;
    free(text);
}

void table_count(struct table *t, uint64_t count)
{
    if (count > 0)
        table_cell(t, "%" PRIu64, count);
    else
        table_cell(t, "%s", "");
}

void table_note(struct table *t, const char *text)
{
    struct row *row;

    CHECK(t->row_count > 0);
    row = &t->rows[t->row_count - 1];
    free(row->note);
    row->note = *text != '\0' ? text_escape(text) : NULL;
}

size_t table_rows(const struct table *t)
{
    return t->row_count;
}

/* Of a column with its title; 0 if it has nothing to say. */
static size_t width_of(const struct table *t, size_t column)
{
    size_t most = 0, title = text_width(t->columns[column].title);

    for (size_t i = 0; i < t->row_count; i++) {
        const char *cell = t->rows[i].cells[column];
        size_t wide = cell != NULL ? text_width(cell) : 0;
        if (wide > most)
            most = wide;
    }
    return most == 0 || most > title ? most : title;
}

/* Widths of the columns, 0 for one that is left out. */
static void measure(const struct table *t, size_t *widths, size_t width)
{
    size_t total = 0, spare = 0;

    for (size_t j = 0; j < t->column_count; j++) {
        widths[j] = width_of(t, j);
        total += widths[j] > 0 ? widths[j] + GAP : 0;
        if (t->columns[j].kind == TABLE_GIVES_WAY && widths[j] > TABLE_LEAST)
            spare = widths[j] - TABLE_LEAST;
    }
    total -= total > 0 ? GAP : 0;
    for (size_t j = t->column_count; width > 0 && j > 0 && total > width + spare; j--)
        if ((t->columns[j - 1].kind & TABLE_MAY_GO) != 0 && widths[j - 1] > 0) {
            total -= widths[j - 1] + GAP;
            widths[j - 1] = 0;
        }
    for (size_t j = 0; width > 0 && j < t->column_count && total > width; j++)
        if (t->columns[j].kind == TABLE_GIVES_WAY)
            widths[j] -= total - width < spare ? total - width : spare;
}

/* One line; blanks at its end are not printed. */
static void print_line(const struct table *t, const size_t *widths, char *const *cells, FILE *to)
{
    size_t owed = 0; /* blanks */
    bool first = true;

    for (size_t j = 0; j < t->column_count; j++) {
        if (widths[j] == 0)
            continue;
        char *text = text_fit(cells[j] != NULL ? cells[j] : "", widths[j], TEXT_CUT_START);
        size_t pad = widths[j] - text_width(text);

        owed += first ? 0 : GAP;
        first = false;
        bool right = (t->columns[j].kind & TABLE_RIGHT) != 0;
        if (right)
            owed += pad;
        if (*text != '\0') {
            fprintf(to, "%*s%s", (int)owed, "", text);
            owed = 0;
        }
        if (!right)
            owed += pad;
        free(text);
    }
    putc('\n', to);
}

void table_print(const struct table *t, FILE *to, size_t width)
{
    size_t widths[TABLE_COLUMNS_MAX];
    char *titles[TABLE_COLUMNS_MAX];

    if (t->row_count == 0)
        return;
    measure(t, widths, width);
    for (size_t j = 0; j < t->column_count; j++)
        titles[j] = xstrdup(t->columns[j].title);
    print_line(t, widths, titles, to);
    for (size_t j = 0; j < t->column_count; j++)
        free(titles[j]);
    for (size_t i = 0; i < t->row_count; i++) {
        print_line(t, widths, t->rows[i].cells, to);
        if (t->rows[i].note != NULL)
            fprintf(to, "    %s\n", t->rows[i].note);
    }
}
