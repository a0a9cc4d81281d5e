/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/reencode.h"

#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/native.h"
#include "codec/schema_int.h"

struct reencoder {
    const struct schema *from;
    struct schema *to;     /* the new schema, fed by keys that are names of old columns */
    const int *taken_from; /* by column of to: the old column; -1: none. Owned */
    struct decoder *decoder;
    struct native_block *block; /* of the opened block, Native */
    const uint8_t *lines;       /* of the opened block, JSON: from the line of next_line on */
    size_t lines_size;
    uint64_t next_line;
    struct buf record;
};

static bool has_clock(const struct type *type)
{
    if (type->kind == TYPE_DATETIME || type->kind == TYPE_DATETIME64)
        return true;
    for (size_t i = 0; i < type->child_count; i++)
        if (has_clock(type->children[i]))
            return true;
    return false;
}

/* JSON lines may hold a time as a number of seconds or ticks: only the same kind reads it alike. */
static bool line_reads_alike(const struct type *from, const struct type *to)
{
    const struct type *a = schema_core_type(from), *b = schema_core_type(to);

    return !has_clock(from) || type_equal(from, to) ||
           (a->kind == b->kind && a->child_count == 0 && a->scale == b->scale);
}

static bool same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* Where one key feeds several old columns, the one of the new one's name is meant. */
static int find_by_source(const struct schema *from, const struct schema_column *c)
{
    int found = -1;

    for (size_t i = 0; i < from->count; i++) {
        const struct schema_column *old = &from->columns[i];
        if (old->source != c->source || !same_text(old->path, c->path) ||
            !same_text(old->literal, c->literal))
            continue;
        if (found < 0 || strcmp(old->name, c->name) == 0)
            found = (int)i;
    }
    return found;
}

static int find_by_name(const struct schema *from, const char *name)
{
    for (size_t i = 0; i < from->count; i++)
        if (strcmp(from->columns[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* Known without the old columns. */
static bool is_given(const struct schema_column *c)
{
    return c->source == SOURCE_TOPIC || c->source == SOURCE_PARTITION ||
           c->source == SOURCE_OFFSET || c->source == SOURCE_ORIGIN || c->source == SOURCE_CONSTANT;
}

/* Which old column each new one takes; by name only what nothing takes by its source. */
static void match_columns(const struct schema *from, const struct schema *to, int *taken_from)
{
    for (size_t i = 0; i < to->count; i++)
        taken_from[i] = is_given(&to->columns[i]) ? -1 : find_by_source(from, &to->columns[i]);
    for (size_t i = 0; i < to->count; i++) {
        int found = find_by_name(from, to->columns[i].name);
        if (taken_from[i] >= 0 || is_given(&to->columns[i]))
            continue;
        for (size_t k = 0; k < to->count && found >= 0; k++)
            if (taken_from[k] == found)
                found = -1;
        taken_from[i] = found;
    }
}

bool reencoder_takes(const struct schema *from, const struct schema *to, size_t column)
{
    int *taken_from = calloc(to->count ? to->count : 1, sizeof(*taken_from));
    bool takes = false;

    if (!taken_from)
        return true;
    match_columns(from, to, taken_from);
    for (size_t i = 0; i < to->count && !takes; i++)
        takes =
            taken_from[i] == (int)column ||
            (is_given(&to->columns[i]) && to->columns[i].source == from->columns[column].source);
    free(taken_from);
    return takes;
}

/* A key that no old column has the name of. */
static int put_absent_key(const struct schema *from, struct buf *key)
{
    int status = buf_append_str(key, "absent");

    while (status == SPOOL_OK && buf_cstr(key) && find_by_name(from, (char *)key->data) >= 0)
        status = buf_put_u8(key, '_');
    return status;
}

static int set_path(struct schema_column *c, const struct schema *from, int taken_from)
{
    struct buf path;
    const char *text;
    int status;

    buf_init(&path, LIMIT_SCHEMA_BYTES);
    status = taken_from >= 0 ? schema_path_escape(from->columns[taken_from].name, &path)
                             : put_absent_key(from, &path);
    text = status == SPOOL_OK ? buf_cstr(&path) : NULL;
    if (!text) {
        buf_free(&path);
        return status == SPOOL_OK ? SPOOL_E_NOMEM : status;
    }
    free(c->path);
    c->path = (char *)path.data;
    c->source = SOURCE_KEY;
    return SPOOL_OK;
}

int reencoder_check(const struct schema *from, const struct schema *to, struct spool_error *error)
{
    int *taken_from = calloc(to->count ? to->count : 1, sizeof(*taken_from));
    int status = SPOOL_OK;

    if (!taken_from)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    match_columns(from, to, taken_from);
    for (size_t i = 0; i < to->count && from->format == FORMAT_JSON && status == SPOOL_OK; i++) {
        const struct schema_column *c = &to->columns[i];
        const struct schema_column *old = taken_from[i] < 0 ? NULL : &from->columns[taken_from[i]];
        if (old && !old->unchecked && !line_reads_alike(old->type, c->type))
            status = spool_error_set(error, SPOOL_E_UNSUPPORTED,
                                     "column %s: JSON lines hold the times of %s as numbers, "
                                     "which %s would read otherwise",
                                     c->name, old->type->text, c->type->text);
    }
    free(taken_from);
    return status;
}

int reencoder_create(const struct schema *from, const struct schema *to, size_t max_raw_bytes,
                     struct reencoder **out, struct spool_error *error)
{
    struct reencoder *r = calloc(1, sizeof(*r));
    int *taken_from = calloc(to->count ? to->count : 1, sizeof(*taken_from));
    int status = SPOOL_E_NOMEM;

    *out = NULL;
    if (!r || !taken_from)
        goto done;
    r->from = from;
    buf_init(&r->record, 2 * LIMIT_BLOCK_BYTES);
    status = reencoder_check(from, to, error);
    if (status == SPOOL_OK)
        status = schema_copy(to, &r->to);
    if (status != SPOOL_OK)
        goto done;
    match_columns(from, r->to, taken_from);
    r->to->unknown_keys = UNKNOWN_IGNORE;
    r->to->schema_registry_framing = false;
    for (size_t i = 0; i < r->to->count && status == SPOOL_OK; i++)
        if (taken_from[i] >= 0 || r->to->columns[i].source == SOURCE_KEY)
            status = set_path(&r->to->columns[i], from, taken_from[i]);
    if (status == SPOOL_OK)
        status = decoder_create(r->to, max_raw_bytes, &r->decoder, error);
done:
    if (status == SPOOL_OK) {
        r->taken_from = taken_from;
        *out = r;
        return SPOOL_OK;
    }
    free(taken_from);
    reencoder_free(r);
    if (status == SPOOL_E_NOMEM)
        spool_error_set(error, status, "out of memory");
    return status;
}

void reencoder_free(struct reencoder *r)
{
    if (!r)
        return;
    native_block_free(r->block);
    decoder_free(r->decoder);
    schema_free(r->to);
    free((void *)(uintptr_t)r->taken_from);
    buf_free(&r->record);
    free(r);
}

/* Whether the old column becomes a time again, and so may not lose what its zone's clock changes
   make double. */
static bool becomes_a_time(const struct reencoder *r, size_t column)
{
    for (size_t i = 0; i < r->to->count; i++)
        if (r->taken_from[i] == (int)column && has_clock(r->to->columns[i].type))
            return true;
    return false;
}

int reencoder_open(struct reencoder *r, const void *raw, size_t size,
                   const struct record_place *place, struct spool_error *error)
{
    int status;

    native_block_free(r->block);
    r->block = NULL;
    r->lines = raw;
    r->lines_size = size;
    r->next_line = 0;
    status = decoder_begin(r->decoder, place);
    if (status != SPOOL_OK)
        return spool_error_set(error, status, "%s", spool_strerror(status));
    if (r->from->format == FORMAT_JSON)
        return SPOOL_OK;
    status = native_block_open(raw, size, &r->block, error);
    if (status != SPOOL_OK)
        return status;
    native_block_set_exact(r->block, r->from);
    if (r->from->server_timezone)
        (void)native_block_set_timezone(r->block, r->from->server_timezone, NULL);
    for (size_t i = 0; i < r->from->count; i++)
        if (becomes_a_time(r, i))
            native_block_set_utc(r->block, r->from->columns[i].name);
    return SPOOL_OK;
}

static int take_line(struct reencoder *r, uint64_t row)
{
    size_t start = 0, length = 0;
    int status = json_block_line(r->lines, r->lines_size, row - r->next_line, &start, &length);

    if (status != SPOOL_OK)
        return status == SPOOL_E_NOT_FOUND ? SPOOL_E_CORRUPT : status;
    status = buf_append(&r->record, r->lines + start, length);
    length += start;
    if (length < r->lines_size)
        length++; /* the newline */
    r->lines += length;
    r->lines_size -= length;
    r->next_line = row + 1;
    return status;
}

int reencoder_row(struct reencoder *r, uint64_t row, int64_t offset, int64_t received_ms,
                  struct refusal *why)
{
    struct record record = {.offset = offset, .timestamp_ms = -1, .received_ms = received_ms};
    int status = SPOOL_OK;

    /* A row that found no room is asked for again, and is here already. */
    if (r->from->format != FORMAT_JSON || row >= r->next_line) {
        buf_reset(&r->record);
        status = r->from->format == FORMAT_JSON
                     ? take_line(r, row)
                     : native_block_row_json(r->block, row, &r->record, NULL);
    }
    if (status != SPOOL_OK)
        return status;
    record.data = r->record.data;
    record.size = r->record.len;
    return decoder_row(r->decoder, &record, why);
}

const struct buf *reencoder_record(const struct reencoder *r)
{
    return &r->record;
}

uint32_t reencoder_rows(const struct reencoder *r)
{
    return decoder_rows(r->decoder);
}

int reencoder_finish(struct reencoder *r, struct buf *raw)
{
    return decoder_finish(r->decoder, raw);
}
