/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aligned columns for people. Rows are held until a page is full, so the output of a long list
 * needs the memory of one page; later pages keep at least the widths of the earlier ones. Control
 * characters in cells are shown as '?': a record can't steer the terminal.
 */
#ifndef SPOOLCTL_TABLE_H
#define SPOOLCTL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "json_view.h"

#define TABLE_COLUMNS_MAX 16
#define TEXT_SIZE         24 /* of the small texts below */

struct table {
    size_t columns;
    const char *titles[TABLE_COLUMNS_MAX];
    bool right[TABLE_COLUMNS_MAX]; /* numbers stand on the right */
    size_t widths[TABLE_COLUMNS_MAX];
    struct buf cells; /* NUL-terminated, one after the other */
    size_t cell_count;
    size_t rows_printed;
};

/* A title that starts with ">" is right-aligned. The titles must live on. */
void table_init(struct table *t, const char *const *titles, size_t columns);
void table_cell(struct table *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void table_json(struct table *t, struct json_view value); /* decoded; "-" for null and absent */
void table_time(struct table *t, struct json_view value); /* a JSON time, to the second */
void table_flush(struct table *t);                        /* prints what is there so far */
void table_end(struct table *t);                          /* prints what is left, and frees */

/* Control characters become '?', in place. */
void text_make_harmless(char *text);
/* view_text, and harmless. */
char *text_shown(struct json_view value);
/* "17 B", "1.5 MiB" */
const char *text_bytes(uint64_t bytes, char out[TEXT_SIZE]);
/* "-" for none, "4.2s", "3m 12s", "2h 05m", "3d 04h" */
const char *text_age(double seconds, char out[TEXT_SIZE]);

#endif
