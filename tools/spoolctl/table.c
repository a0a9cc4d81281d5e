/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/limits.h"

#define PAGE_ROWS 500

/* Characters, not bytes: everything but UTF-8's continuation bytes. */
static size_t width_of(const char *text)
{
    size_t n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

void table_init(struct table *t, const char *const *titles, size_t columns)
{
    assert(columns > 0 && columns <= TABLE_COLUMNS_MAX);
    memset(t, 0, sizeof(*t));
    t->columns = columns;
    for (size_t i = 0; i < columns; i++) {
        t->right[i] = titles[i][0] == '>';
        t->titles[i] = titles[i] + t->right[i];
        t->widths[i] = width_of(t->titles[i]);
    }
    buf_init(&t->cells, 256 * MIB);
}

static void print_row(const struct table *t, const char *const *cells)
{
    for (size_t i = 0; i < t->columns; i++) {
        int fill = (int)(t->widths[i] - width_of(cells[i]));
        if (t->right[i])
            printf("%*s%s", fill, "", cells[i]);
        else if (i + 1 < t->columns)
            printf("%s%*s", cells[i], fill, "");
        else
            printf("%s", cells[i]);
        fputs(i + 1 < t->columns ? "  " : "\n", stdout);
    }
}

void table_flush(struct table *t)
{
    const char *cells[TABLE_COLUMNS_MAX];
    const char *at = (const char *)t->cells.data;
    size_t rows = t->cell_count / t->columns;

    if (!t->rows_printed && rows)
        print_row(t, t->titles);
    for (size_t row = 0; row < rows; row++) {
        for (size_t i = 0; i < t->columns; i++) {
            cells[i] = at;
            at += strlen(at) + 1;
        }
        print_row(t, cells);
    }
    t->rows_printed += rows;
    t->cell_count = 0;
    buf_reset(&t->cells);
}

static void end_cell(struct table *t, size_t start, int status)
{
    char *text;
    size_t width, column = t->cell_count % t->columns;

    if (status == SPOOL_OK)
        status = buf_put_u8(&t->cells, 0);
    if (status != SPOOL_OK) {
        fputs("spoolctl: out of memory\n", stderr);
        exit(1);
    }
    text = (char *)t->cells.data + start;
    text_make_harmless(text);
    width = width_of(text);
    if (width > t->widths[column])
        t->widths[column] = width;
    t->cell_count++;
    if (t->cell_count == PAGE_ROWS * t->columns)
        table_flush(t);
}

void table_cell(struct table *t, const char *format, ...)
{
    size_t start = t->cells.len;
    va_list args;
    int status;

    va_start(args, format);
    status = buf_vprintf(&t->cells, format, args);
    va_end(args);
    end_cell(t, start, status);
}

void table_json(struct table *t, struct json_view value)
{
    char *text;

    if (!value.text || view_is(value, "null")) {
        table_cell(t, "-");
        return;
    }
    text = view_text(value);
    table_cell(t, "%s", text ? text : "?");
    free(text);
}

void table_time(struct table *t, struct json_view value)
{
    char *text = view_text(value);

    if (text && strlen(text) >= 19 && text[10] == 'T')
        table_cell(t, "%.10s %.8sZ", text, text + 11);
    else
        table_json(t, value);
    free(text);
}

void table_end(struct table *t)
{
    assert(t->cell_count % t->columns == 0);
    table_flush(t);
    buf_free(&t->cells);
}

void text_make_harmless(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++) {
        bool c1 = c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f;
        if (*c < 0x20 || *c == 0x7f)
            *c = '?';
        else if (c1)
            c[0] = c[1] = '?';
    }
}

char *text_shown(struct json_view value)
{
    char *text = view_text(value);

    if (text)
        text_make_harmless(text);
    return text;
}

const char *text_bytes(uint64_t bytes, char out[TEXT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double v = (double)bytes;
    size_t unit = 0;

    while (v >= 1023.95 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        v /= 1024;
        unit++;
    }
    snprintf(out, TEXT_SIZE, unit ? "%.1f %s" : "%.0f %s", v, units[unit]);
    return out;
}

const char *text_age(double seconds, char out[TEXT_SIZE])
{
    unsigned long long s;

    if (!(seconds > 0)) {
        snprintf(out, TEXT_SIZE, "-");
        return out;
    }
    s = seconds < 1e15 ? (unsigned long long)seconds : 1000000000000000ull;
    if (s < 60)
        snprintf(out, TEXT_SIZE, "%.1fs", seconds);
    else if (s < 3600)
        snprintf(out, TEXT_SIZE, "%llum %02llus", s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, TEXT_SIZE, "%lluh %02llum", s / 3600, s / 60 % 60);
    else
        snprintf(out, TEXT_SIZE, "%llud %02lluh", s / 86400, s / 3600 % 24);
    return out;
}
