/* Aligned columns: keeps the cells, measures them, prints them.
 *
 * Owns copies of all cells (escaped, so that a name can't reach the terminal) and of the notes. One
 * column at most gives way when a line does not fit. A column that is empty in all rows is left out,
 * so that what does not apply costs no space. Any thread, one at a time. */
#include "tools/table.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
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

/* Widths of the columns, 0 for one that is left out. */
static void measure(const struct table *t, size_t *widths, size_t width)
{
    size_t total = 0, gives_way = SIZE_MAX;

    for (size_t j = 0; j < t->column_count; j++) {
        widths[j] = 0;
        for (size_t i = 0; i < t->row_count; i++) {
            const char *cell = t->rows[i].cells[j];
            size_t wide = cell != NULL ? text_width(cell) : 0;
            if (wide > widths[j])
                widths[j] = wide;
        }
        if (widths[j] == 0)
            continue;
        if (text_width(t->columns[j].title) > widths[j])
            widths[j] = text_width(t->columns[j].title);
        if (t->columns[j].kind == TABLE_GIVES_WAY)
            gives_way = j;
        total += widths[j] + GAP;
    }
    total -= total > 0 ? GAP : 0;
    if (width > 0 && total > width && gives_way != SIZE_MAX) {
        size_t over = total - width, has = widths[gives_way];
        widths[gives_way] = has > over + TABLE_LEAST ? has - over
                            : has < TABLE_LEAST      ? has
                                                     : TABLE_LEAST;
    }
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
        if (t->columns[j].kind == TABLE_RIGHT)
            owed += pad;
        if (*text != '\0') {
            fprintf(to, "%*s%s", (int)owed, "", text);
            owed = 0;
        }
        if (t->columns[j].kind != TABLE_RIGHT)
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
