/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading JSON in place. Records and offsets must come out as they went in, and a tree whose
 * numbers are doubles damages integers over 2^53; so values stay slices of the text they came in.
 * Text that is no JSON finds nothing and never reads past its end.
 */
#ifndef SPOOLCTL_JSON_VIEW_H
#define SPOOLCTL_JSON_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_view {
    const char *text; /* NULL: absent */
    size_t size;
};

/* The one value in text, without the blanks around it; absent if it isn't one. */
struct json_view view_of(const char *text, size_t size);

/* A member of an object, absent where there is none (or it is no object). */
struct json_view view_member(struct json_view object, const char *key);

/* The next element of an array; *at starts at 0. False at the end. */
bool view_element(struct json_view array, size_t *at, struct json_view *element);

/* What stands between the brackets. */
struct json_view view_inside(struct json_view container);

/* A string decoded, a number or word as it stands, "" for null and absent. malloc'd; NULL: no
   memory. */
char *view_text(struct json_view value);

uint64_t view_u64(struct json_view value);  /* 0 where it is none */
double view_double(struct json_view value); /* 0 where it is none */
bool view_true(struct json_view value);
bool view_is(struct json_view value, const char *word); /* this very text, as "null" */

#endif
