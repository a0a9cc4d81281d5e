/* SPDX-License-Identifier: Apache-2.0 */
/* What the decoder's tests share: a schema from column wishes, a row, its columns as text. */
#ifndef TESTS_DECODE_FIXTURE_H
#define TESTS_DECODE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/tzfile.h"
#include "codec/datetime.h"
#include "codec/decode.h"

struct fixture {
    struct schema *schema;
    struct decoder *decoder;
    struct refusal why;
    struct buf raw;  /* the finished block */
    struct buf text; /* its rendering */
};

#define FIXTURE_MAX (64 * MIB)

/* SPOOL_E_UNSUPPORTED if the schema can't be native. */
static inline int fixture_open(struct fixture *f, const struct schema_options *options)
{
    struct server_version server = {26, 7, 0};
    struct spool_error error = {0};
    struct buf problems;
    int status;

    memset(f, 0, sizeof(*f));
    buf_init(&f->raw, FIXTURE_MAX);
    buf_init(&f->text, FIXTURE_MAX);
    buf_init(&problems, MIB);
    status = schema_from_wishes(options, server, "UTC", &f->schema, &problems);
    if (status != SPOOL_OK) {
        fprintf(stderr, "%s\n", buf_cstr(&problems));
        buf_free(&problems);
        return status;
    }
    buf_free(&problems);
    if (options->format != FORMAT_JSON && f->schema->format != FORMAT_NATIVE)
        return SPOOL_E_UNSUPPORTED;
    status = decoder_create(f->schema, FIXTURE_MAX, &f->decoder, &error);
    if (status != SPOOL_OK)
        fprintf(stderr, "%s\n", error.text);
    else
        assert_int_equal(
            decoder_begin(f->decoder, &(struct record_place){"origin-1", "topic-1", 3}), SPOOL_OK);
    return status;
}

static inline void fixture_close(struct fixture *f)
{
    decoder_free(f->decoder);
    schema_free(f->schema);
    buf_free(&f->raw);
    buf_free(&f->text);
}

/* The record is copied to a block of its own size, so that the sanitizer sees any over-read. */
static inline int fixture_row_bytes(struct fixture *f, const void *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    struct record record = {.data = copy,
                            .size = size,
                            .offset = 42,
                            .timestamp_ms = 1795437296789,
                            .received_ms = 1795437297001};
    int status;

    assert_non_null(copy);
    memcpy(copy, data, size);
    memset(&f->why, 0, sizeof(f->why));
    status = decoder_row(f->decoder, &record, &f->why);
    free(copy);
    if (status == SPOOL_E_REFUSED) {
        assert_int_not_equal(f->why.code, 0);
        assert_true(f->why.reason[0] != 0);
        assert_true(f->why.position <= size);
    }
    return status;
}

static inline int fixture_row(struct fixture *f, const char *json)
{
    return fixture_row_bytes(f, json, strlen(json));
}

/* ---- a block as text, one column after the other, as TabSeparated prints values ---- */

static inline void render_bytes(struct buf *out, const uint8_t *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const char *from = "\b\f\r\n\t\\'", *to = "bfrnt\\'";
        const char *hit = s[i] ? strchr(from, s[i]) : NULL;
        if (hit)
            buf_printf(out, "\\%c", to[hit - from]);
        else if (!s[i])
            buf_append(out, "\\0", 2);
        else if (s[i] < 0x20 || s[i] > 0x7e)
            buf_printf(out, "\\x%02x", s[i]);
        else
            buf_put_u8(out, s[i]);
    }
}

static inline void render_decimal(struct buf *out, unsigned __int128 v, bool negative,
                                  unsigned scale)
{
    char digits[64];
    unsigned n = 0, zeros = 0;

    do {
        digits[n++] = (char)('0' + (int)(v % 10));
        v /= 10;
    } while (v || n <= scale);
    while (zeros < scale && digits[zeros] == '0')
        zeros++;
    if (negative)
        buf_put_u8(out, '-');
    for (unsigned i = n; i-- > zeros;) {
        buf_put_u8(out, (uint8_t)digits[i]);
        if (i == scale && i > zeros)
            buf_put_u8(out, '.');
    }
}

static inline void render_date(struct buf *out, int64_t days)
{
    int year, month, day;
    civil_from_days(days, &year, &month, &day);
    buf_printf(out, "%04d-%02d-%02d", year, month, day);
}

static inline void render_time(struct buf *out, const struct type *type, int64_t ticks,
                               unsigned scale)
{
    struct tz_zone *zone = NULL;
    int64_t unit = 1, s, fraction, days;

    for (unsigned i = 0; i < scale; i++)
        unit *= 10;
    s = ticks / unit - (ticks % unit < 0);
    fraction = ticks - s * unit;
    assert_int_equal(tz_zone_load(type->timezone ? type->timezone : "UTC", &zone, NULL), SPOOL_OK);
    s += tz_zone_offset(zone, s);
    tz_zone_free(zone);
    days = s / 86400 - (s % 86400 < 0);
    s -= days * 86400;
    render_date(out, days);
    buf_printf(out, " %02d:%02d:%02d", (int)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    if (scale)
        buf_printf(out, ".%0*lld", (int)scale, (long long)fraction);
}

static inline int64_t render_le(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n && i < 8; i++)
        v |= (uint64_t)p[i] << (8 * i);
    if (n < 8 && (p[n - 1] & 0x80))
        v |= ~0ull << (8 * n);
    return (int64_t)v;
}

/* A number of 16 or 32 bytes divided by 10^scale. */
static inline void render_wide(struct buf *out, const uint8_t *p, size_t n, bool is_signed,
                               unsigned scale)
{
    uint8_t le[32] = {0};
    char digits[96];
    bool negative = is_signed && p[n - 1] >> 7, more = true;
    unsigned count = 0, zeros = 0, carry = negative;

    for (size_t i = 0; i < n; i++) {
        unsigned v = negative ? (unsigned)(uint8_t)~p[i] + carry : p[i];
        le[i] = (uint8_t)v;
        carry = v >> 8;
    }
    while (more || count <= scale) {
        unsigned rest = 0;
        more = false;
        for (size_t i = n; i-- > 0;) {
            rest = rest << 8 | le[i];
            le[i] = (uint8_t)(rest / 10);
            rest %= 10;
            more |= le[i] != 0;
        }
        digits[count++] = (char)('0' + (int)rest);
    }
    while (zeros < scale && digits[zeros] == '0')
        zeros++;
    if (negative)
        buf_put_u8(out, '-');
    for (unsigned i = count; i-- > zeros;) {
        buf_put_u8(out, (uint8_t)digits[i]);
        if (i == scale && i > zeros)
            buf_put_u8(out, '.');
    }
}

/* One value of fixed width. quoted: inside an array. */
static inline void render_fixed(struct buf *out, const struct type *t, const uint8_t *p,
                                bool quoted)
{
    size_t n = t->width;
    int64_t v = render_le(p, n);
    uint64_t u = n < 8 ? (uint64_t)v & ((1ull << (8 * n)) - 1) : (uint64_t)v;
    const char *quote = quoted ? "'" : "";
    char ip[64];

    switch (t->kind) {
    case TYPE_INT8:
    case TYPE_INT16:
    case TYPE_INT32:
    case TYPE_INT64:
    case TYPE_INTERVAL:
        buf_printf(out, "%lld", (long long)v);
        return;
    case TYPE_UINT8:
    case TYPE_UINT16:
    case TYPE_UINT32:
    case TYPE_UINT64:
        buf_printf(out, "%llu", (unsigned long long)u);
        return;
    case TYPE_INT128:
    case TYPE_INT256:
    case TYPE_UINT128:
    case TYPE_UINT256:
        render_wide(out, p, n, t->kind == TYPE_INT128 || t->kind == TYPE_INT256, 0);
        return;
    case TYPE_TIME:
    case TYPE_TIME64: {
        int64_t unit = 1, size = v < 0 ? -v : v;
        for (unsigned i = 0; i < t->scale; i++)
            unit *= 10;
        buf_printf(out, "%s%s%02lld:%02d:%02d", quote, v < 0 ? "-" : "",
                   (long long)(size / unit / 3600), (int)(size / unit / 60 % 60),
                   (int)(size / unit % 60));
        if (t->scale)
            buf_printf(out, ".%0*lld", (int)t->scale, (long long)(size % unit));
        buf_append_str(out, quote);
        return;
    }
    case TYPE_BFLOAT16:
    case TYPE_FLOAT32: {
        uint32_t bits = t->kind == TYPE_BFLOAT16 ? (uint32_t)u << 16 : (uint32_t)u;
        float f;
        memcpy(&f, &bits, 4);
        buf_printf(out, "%.9g", (double)f);
        return;
    }
    case TYPE_FLOAT64: {
        double d;
        memcpy(&d, p, 8);
        buf_printf(out, "%.17g", d);
        return;
    }
    case TYPE_BOOL:
        assert_true(u <= 1);
        buf_append_str(out, u ? "true" : "false");
        return;
    case TYPE_DATE:
        buf_append_str(out, quote);
        render_date(out, (int64_t)u);
        buf_append_str(out, quote);
        return;
    case TYPE_DATE32:
        buf_append_str(out, quote);
        render_date(out, v);
        buf_append_str(out, quote);
        return;
    case TYPE_DATETIME:
    case TYPE_DATETIME64:
        buf_append_str(out, quote);
        render_time(out, t, t->kind == TYPE_DATETIME ? (int64_t)u : v,
                    t->kind == TYPE_DATETIME ? 0 : t->scale);
        buf_append_str(out, quote);
        return;
    case TYPE_ENUM8:
    case TYPE_ENUM16:
        for (size_t i = 0; i < t->member_count; i++)
            if (t->members[i].value == v) {
                buf_append_str(out, quote);
                render_bytes(out, (const uint8_t *)t->members[i].name, t->members[i].name_size);
                buf_append_str(out, quote);
                return;
            }
        fail_msg("%lld is no member", (long long)v);
        return;
    case TYPE_UUID:
        for (int i = 0; i < 16; i++) {
            static const int order[] = {7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8};
            if (i == 4 || i == 6 || i == 8 || i == 10)
                buf_put_u8(out, '-');
            buf_printf(out, "%02x", p[order[i]]);
        }
        return;
    case TYPE_DECIMAL: {
        __int128 d = v;
        if (n == 32) {
            render_wide(out, p, n, true, t->scale);
            return;
        }
        if (n == 16) {
            unsigned __int128 wide = (uint64_t)render_le(p + 8, 8);
            d = (__int128)(wide << 64 | (uint64_t)v);
        }
        render_decimal(out, d < 0 ? 0 - (unsigned __int128)d : (unsigned __int128)d, d < 0,
                       t->scale);
        return;
    }
    case TYPE_IPV4:
        buf_printf(out, "%d.%d.%d.%d", p[3], p[2], p[1], p[0]);
        return;
    case TYPE_IPV6:
        snprintf(ip, sizeof(ip), "%s", "");
        for (int i = 0; i < 16; i += 2)
            buf_printf(out, "%s%x", i ? ":" : "", p[i] << 8 | p[i + 1]);
        return;
    case TYPE_FIXED_STRING:
        buf_append_str(out, quote);
        render_bytes(out, p, n);
        buf_append_str(out, quote);
        return;
    default:
        fail_msg("no rendering for kind %d", (int)t->kind);
    }
}

static inline void render_column(struct cursor *c, const struct type *wire,
                                 const struct type *shown, size_t rows, struct buf *out,
                                 bool quoted);

static inline struct buf *render_cells(size_t n)
{
    struct buf *cells = calloc(n ? n : 1, sizeof(*cells));
    for (size_t i = 0; i < n; i++)
        buf_init(&cells[i], FIXTURE_MAX);
    return cells;
}

/* Appends it and is rid of it. */
static inline void render_move(struct buf *out, struct buf *cell)
{
    buf_append(out, cell->data, cell->len);
    buf_free(cell);
}

/* Tuples, and Variants behind their version. */
static inline void render_elements(struct cursor *c, const struct type *wire,
                                   const struct type *shown, size_t rows, struct buf *out)
{
    const uint8_t *members = NULL;
    bool variant = wire->kind == TYPE_VARIANT;

    if (variant)
        assert_int_equal(cursor_bytes(c, rows, &members), SPOOL_OK);
    for (size_t i = 0; i < rows; i++)
        if (!variant)
            buf_put_u8(&out[i], '(');
        else if (members[i] == 255)
            buf_append_str(&out[i], "\\N");
    for (size_t e = 0; e < wire->child_count; e++) {
        size_t n = 0, at = 0;
        struct buf *cells;
        for (size_t i = 0; i < rows; i++)
            n += !variant || members[i] == e;
        cells = render_cells(n);
        render_column(c, wire->children[e],
                      shown->kind == TYPE_DYNAMIC ? wire->children[e] : shown->children[e], n,
                      cells, !variant);
        for (size_t i = 0; i < rows; i++) {
            if (variant && members[i] != e)
                continue;
            if (!variant && e)
                buf_put_u8(&out[i], ',');
            render_move(&out[i], &cells[at++]);
        }
        free(cells);
    }
    for (size_t i = 0; i < rows && !variant; i++)
        buf_put_u8(&out[i], ')');
}

static inline void render_list(struct cursor *c, const struct type *wire, const struct type *shown,
                               size_t rows, struct buf *out)
{
    bool map = wire->kind == TYPE_MAP;
    const uint8_t *ends = NULL;
    uint64_t total, from = 0;
    struct buf *items, *values = NULL;

    assert_int_equal(cursor_bytes(c, rows * 8, &ends), SPOOL_OK);
    total = rows ? (uint64_t)render_le(ends + 8 * (rows - 1), 8) : 0;
    items = render_cells(total);
    if (wire->kind == TYPE_NESTED)
        render_elements(c, wire, shown, total, items);
    else
        render_column(c, wire->children[0], shown->children[0], total, items, true);
    if (map) {
        values = render_cells(total);
        render_column(c, wire->children[1], shown->children[1], total, values, true);
    }
    for (size_t i = 0; i < rows; i++) {
        uint64_t to = (uint64_t)render_le(ends + 8 * i, 8);
        buf_put_u8(&out[i], map ? '{' : '[');
        for (uint64_t k = from; k < to; k++) {
            if (k > from)
                buf_put_u8(&out[i], ',');
            render_move(&out[i], &items[k]);
            if (map)
                buf_put_u8(&out[i], ':');
            if (map)
                render_move(&out[i], &values[k]);
        }
        buf_put_u8(&out[i], map ? '}' : ']');
        from = to;
    }
    free(items);
    free(values);
}

/* rows values of wire type t at *c into out[i]. shown: the table's own type. */
static inline void render_column(struct cursor *c, const struct type *wire,
                                 const struct type *shown, size_t rows, struct buf *out,
                                 bool quoted)
{
    const uint8_t *p = NULL;

    while (shown->kind == TYPE_LOW_CARDINALITY || shown->kind == TYPE_SIMPLE_AGGREGATE)
        shown = shown->children[0];
    if (wire->kind == TYPE_NULLABLE) {
        const uint8_t *nulls = NULL;
        struct buf *inner = calloc(rows ? rows : 1, sizeof(*inner));
        assert_int_equal(cursor_bytes(c, rows, &nulls), SPOOL_OK);
        for (size_t i = 0; i < rows; i++)
            buf_init(&inner[i], FIXTURE_MAX);
        render_column(c, wire->children[0],
                      shown->kind == TYPE_NULLABLE ? shown->children[0] : shown, rows, inner,
                      quoted);
        for (size_t i = 0; i < rows; i++) {
            if (nulls[i])
                buf_append_str(&out[i], quoted ? "NULL" : "\\N");
            else
                buf_append(&out[i], inner[i].data, inner[i].len);
            buf_free(&inner[i]);
        }
        free(inner);
        return;
    }
    if (type_is_list(wire->kind)) {
        render_list(c, wire, shown, rows, out);
        return;
    }
    if (wire->child_count) {
        render_elements(c, wire, shown, rows, out);
        return;
    }
    for (size_t i = 0; i < rows; i++) {
        if (wire->kind == TYPE_STRING) {
            size_t n = 0;
            assert_int_equal(cursor_string(c, &p, &n), SPOOL_OK);
            if (quoted)
                buf_put_u8(&out[i], '\'');
            render_bytes(&out[i], p, n);
            if (quoted)
                buf_put_u8(&out[i], '\'');
        } else {
            assert_int_equal(cursor_bytes(c, wire->width, &p), SPOOL_OK);
            render_fixed(&out[i], shown, p, quoted);
        }
    }
}

/*
 * Finishes the block and gives its rows: values separated by " | ", rows by " || ". Checks the
 * head of the block against the schema on the way, and decoder_raw_bytes.
 */
static inline const char *fixture_text(struct fixture *f)
{
    size_t promised = decoder_raw_bytes(f->decoder);
    uint32_t expected = decoder_rows(f->decoder);
    struct cursor c;
    uint64_t columns = 0, rows = 0;
    struct buf *cells;

    buf_reset(&f->raw);
    buf_reset(&f->text);
    assert_int_equal(decoder_finish(f->decoder, &f->raw), SPOOL_OK);
    assert_int_equal(decoder_rows(f->decoder), 0);
    if (!expected) {
        assert_int_equal(f->raw.len, 0);
        return "";
    }
    assert_true(f->raw.len <= promised && promised - f->raw.len < 16);
    c = cursor_over(f->raw.data, f->raw.len);
    assert_int_equal(cursor_varuint(&c, &columns), SPOOL_OK);
    assert_int_equal(cursor_varuint(&c, &rows), SPOOL_OK);
    assert_int_equal(columns, f->schema->count);
    assert_int_equal(rows, expected);
    cells = calloc(rows * columns, sizeof(*cells));
    for (size_t i = 0; i < rows * columns; i++)
        buf_init(&cells[i], FIXTURE_MAX);
    for (size_t i = 0; i < columns; i++) {
        const struct schema_column *column = &f->schema->columns[i];
        const uint8_t *name = NULL;
        size_t n = 0;
        struct type *wire = NULL;
        assert_int_equal(cursor_string(&c, &name, &n), SPOOL_OK);
        assert_int_equal(n, strlen(column->name));
        assert_memory_equal(name, column->name, n);
        assert_int_equal(cursor_string(&c, &name, &n), SPOOL_OK);
        assert_int_equal(type_parse((const char *)name, n, &wire, NULL), SPOOL_OK);
        assert_true(type_equal(wire, column->wire));
        if (wire->kind == TYPE_VARIANT)
            assert_int_equal(cursor_bytes(&c, 8, &name), SPOOL_OK);
        render_column(&c, wire, column->type, rows, cells + i * rows, false);
        type_free(wire);
    }
    assert_int_equal(cursor_left(&c), 0);
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < columns; i++) {
            struct buf *cell = &cells[i * rows + r];
            if (i || r)
                buf_append_str(&f->text, i ? " | " : " || ");
            buf_append(&f->text, cell->data, cell->len);
            buf_free(cell);
        }
    free(cells);
    return buf_cstr(&f->text);
}

#endif
