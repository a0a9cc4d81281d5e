/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A column's values back to JSON, for tables that are fed by JSONEachRow. What is written is read
 * back to the very same value by every server: strings keep their bytes (valid UTF-8 or not),
 * floats are the shortest text that reads back, times of a zone with clock changes are numbers
 * (seconds for DateTime, ticks for DateTime64), for their local text would be ambiguous and depend
 * on the server's tz database; in UTC they are text. So are all that are keys of a Map, where a number
 * would stand in quotes and be read by its length: with a Z, which every server with Maps reads.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/column.h"
#include "codec/number.h"
#include "codec/wide.h"

void column_json_begin(struct column *c)
{
    c->shown = c->shown_nulls = 0;
    for (size_t i = 0; i < c->child_count; i++)
        column_json_begin(c->children[i]);
}

static uint64_t value_at(const uint8_t *p, unsigned width)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < width; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static int64_t sign_extend(uint64_t v, unsigned width)
{
    if (width < 8 && v >> (8 * width - 1) & 1)
        v |= ~0ull << (8 * width);
    return (int64_t)v;
}

static int put_float(struct column *c, const uint8_t *p, struct buf *out)
{
    bool single = c->kind != TYPE_FLOAT64;
    uint64_t bits = value_at(p, c->width) << (c->kind == TYPE_BFLOAT16 ? 16 : 0);
    double value;
    char text[64];

    if (single) {
        uint32_t narrow = (uint32_t)bits;
        float f;
        memcpy(&f, &narrow, sizeof(f));
        value = (double)f;
    } else {
        memcpy(&value, &bits, sizeof(value));
    }
    if (isnan(value))
        return buf_append_str(out, "\"nan\"");
    if (isinf(value))
        return buf_append_str(out, value < 0 ? "\"-inf\"" : "\"inf\"");
    for (int digits = single ? 6 : 15;; digits++) {
        locale_t before = uselocale(c->c_locale);
        bool same;
        snprintf(text, sizeof(text), "%.*g", digits, value);
        same = single ? (double)strtof_l(text, NULL, c->c_locale) == value
                      : strtod_l(text, NULL, c->c_locale) == value;
        uselocale(before);
        if (same || digits == 17)
            return buf_append_str(out, text);
    }
}

/* A decimal, or a whole number of more than 64 bits (scale 0). */
static int put_digits(struct column *c, const uint8_t *p, bool is_signed, struct buf *out)
{
    char text[WIDE_DIGITS + 8];
    size_t at = sizeof(text);
    bool negative = is_signed && p[c->width - 1] >> 7;
    struct wide w;
    unsigned n = 0;

    memset(&w, negative ? 0xff : 0, sizeof(w));
    for (unsigned i = 0; i < c->width; i += 8)
        w.word[i / 8] = c->width < 8 ? (uint64_t)sign_extend(value_at(p, c->width), c->width)
                                     : value_at(p + i, 8);
    if (negative)
        wide_negate(&w);
    do {
        if (n == c->scale && n)
            text[--at] = '.';
        text[--at] = (char)('0' + (int)wide_pop(&w));
        n++;
    } while (!wide_is_zero(&w) || n <= c->scale);
    if (negative)
        text[--at] = '-';
    return buf_append(out, text + at, sizeof(text) - at);
}

static int put_date(struct buf *out, int64_t days)
{
    int year, month, day;

    civil_from_days(days, &year, &month, &day);
    return buf_printf(out, "\"%04d-%02d-%02d\"", year, month, day);
}

static int put_time(struct column *c, int64_t ticks, struct buf *out)
{
    unsigned scale = c->kind == TYPE_DATETIME ? 0 : c->scale;
    int64_t unit = (int64_t)number_ten_to[scale];
    int64_t s = ticks / unit - (ticks % unit < 0), fraction = ticks - s * unit;
    int64_t days = s / 86400 - (s % 86400 < 0);
    bool utc = c->clock.fixed && c->clock.offset_s == 0;
    int year, month, day, status;

    civil_from_days(days, &year, &month, &day);
    if (c->is_key ? year < YEAR_MIN || year > YEAR_MAX : !utc || year < 1000 || year > YEAR_MAX)
        return buf_printf(out, "%lld", (long long)ticks);
    s -= days * 86400;
    status = buf_printf(out, "\"%04d-%02d-%02d %02d:%02d:%02d", year, month, day, (int)(s / 3600),
                        (int)(s / 60 % 60), (int)(s % 60));
    if (status == SPOOL_OK && scale)
        status = buf_printf(out, ".%0*lld", (int)scale, (long long)fraction);
    if (status == SPOOL_OK && !utc)
        status = buf_put_u8(out, 'Z');
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
}

static int put_clock(struct column *c, int64_t ticks, struct buf *out)
{
    uint64_t unit = number_ten_to[c->scale];
    uint64_t size = ticks < 0 ? 0 - (uint64_t)ticks : (uint64_t)ticks, s = size / unit;
    int status = buf_printf(out, "\"%s%02d:%02d:%02d", ticks < 0 ? "-" : "", (int)(s / 3600),
                            (int)(s / 60 % 60), (int)(s % 60));

    if (status == SPOOL_OK && c->scale)
        status = buf_printf(out, ".%0*llu", (int)c->scale, (unsigned long long)(size % unit));
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
}

static int put_enum(struct column *c, int64_t v, struct buf *out)
{
    for (size_t i = 0; i < c->type->member_count; i++)
        if (c->type->members[i].value == v)
            return buf_put_json_bytes(out, c->type->members[i].name, c->type->members[i].name_size);
    return buf_printf(out, "%lld", (long long)v);
}

static int put_address(struct column *c, const uint8_t *p, struct buf *out)
{
    char text[INET6_ADDRSTRLEN];
    uint8_t v4[4] = {p[3], p[2], p[1], p[0]};

    if (c->kind == TYPE_IPV4)
        inet_ntop(AF_INET, v4, text, sizeof(text));
    else
        inet_ntop(AF_INET6, p, text, sizeof(text));
    return buf_printf(out, "\"%s\"", text);
}

static int put_fixed(struct column *c, const uint8_t *p, struct buf *out)
{
    uint64_t v = value_at(p, c->width < 8 ? c->width : 8);
    size_t n = c->width;

    switch (c->kind) {
    case TYPE_FLOAT32:
    case TYPE_FLOAT64:
    case TYPE_BFLOAT16:
        return put_float(c, p, out);
    case TYPE_BOOL:
        return buf_append_str(out, v ? "true" : "false");
    case TYPE_FIXED_STRING:
        while (n && !p[n - 1])
            n--;
        return buf_put_json_bytes(out, p, n);
    case TYPE_UUID:
        return buf_printf(out, "\"%08x-%04x-%04x-%04x-%012llx\"", (unsigned)(v >> 32),
                          (unsigned)(v >> 16) & 0xffff, (unsigned)v & 0xffff,
                          (unsigned)(value_at(p + 8, 8) >> 48),
                          (unsigned long long)(value_at(p + 8, 8) & 0xffffffffffffull));
    case TYPE_DATE:
        return put_date(out, (int64_t)v);
    case TYPE_DATE32:
        return put_date(out, sign_extend(v, c->width));
    case TYPE_DATETIME:
        return put_time(c, (int64_t)v, out);
    case TYPE_DATETIME64:
        return put_time(c, (int64_t)v, out);
    case TYPE_ENUM8:
    case TYPE_ENUM16:
        return put_enum(c, sign_extend(v, c->width), out);
    case TYPE_DECIMAL:
        return put_digits(c, p, true, out);
    case TYPE_INT128:
    case TYPE_INT256:
        return put_digits(c, p, true, out);
    case TYPE_UINT128:
    case TYPE_UINT256:
        return put_digits(c, p, false, out);
    case TYPE_TIME:
    case TYPE_TIME64:
        return put_clock(c, sign_extend(v, c->width), out);
    case TYPE_IPV4:
    case TYPE_IPV6:
        return put_address(c, p, out);
    case TYPE_INT8:
    case TYPE_INT16:
    case TYPE_INT32:
    case TYPE_INT64:
    case TYPE_INTERVAL:
        return buf_printf(out, "%lld", (long long)sign_extend(v, c->width));
    default:
        return buf_printf(out, "%llu", (unsigned long long)v);
    }
}

/* JSON's own text: on one line, as a line of JSONEachRow has to be. */
static int put_object_text(struct buf *out, const uint8_t *data, size_t n)
{
    size_t start = out->len;
    int status = buf_append(out, data, n);

    for (size_t i = start; status == SPOOL_OK && i < out->len; i++)
        if (out->data[i] == '\n' || out->data[i] == '\r')
            out->data[i] = ' ';
    return status;
}

static int put_text(struct column *c, struct buf *out)
{
    struct cursor at = cursor_over(c->data.data + c->shown, c->data.len - c->shown);
    const uint8_t *text = NULL;
    size_t n = 0;
    int status = cursor_string(&at, &text, &n);

    assert(status == SPOOL_OK);
    c->shown = (size_t)(at.at - c->data.data);
    return c->kind == TYPE_JSON ? put_object_text(out, text, n) : buf_put_json_bytes(out, text, n);
}

/* A key of a Map: JSON has only strings there. */
static int put_key(struct column *c, struct buf *out)
{
    size_t start = out->len;
    int status = buf_put_u8(out, '"');

    if (status == SPOOL_OK)
        status = column_json(c, out);
    if (status != SPOOL_OK)
        return status;
    if (out->data[start + 1] != '"')
        return buf_put_u8(out, '"');
    memmove(out->data + start, out->data + start + 1, out->len - start - 1);
    out->len--;
    return SPOOL_OK;
}

static int put_list(struct column *c, struct buf *out)
{
    uint64_t from = c->shown ? value_at(c->data.data + c->shown - 8, 8) : 0;
    uint64_t to = value_at(c->data.data + c->shown, 8);
    bool map = c->kind == TYPE_MAP;
    int status = buf_put_u8(out, map ? '{' : '[');

    c->shown += 8;
    for (uint64_t i = from; i < to && status == SPOOL_OK; i++) {
        if (i > from)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK && map)
            status = put_key(c->children[0], out);
        if (status == SPOOL_OK && map)
            status = buf_put_u8(out, ':');
        if (status == SPOOL_OK)
            status = column_json(c->children[map], out);
    }
    return status == SPOOL_OK ? buf_put_u8(out, map ? '}' : ']') : status;
}

static int put_elements(struct column *c, struct buf *out)
{
    bool named = c->name_sizes != NULL;
    int status = buf_put_u8(out, named ? '{' : '[');

    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++) {
        if (i)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK && named)
            status = buf_put_json_bytes(out, c->type->child_names[i], c->name_sizes[i]);
        if (status == SPOOL_OK && named)
            status = buf_put_u8(out, ':');
        if (status == SPOOL_OK)
            status = column_json(c->children[i], out);
    }
    c->shown += c->width;
    return status == SPOOL_OK ? buf_put_u8(out, named ? '}' : ']') : status;
}

/*
 * Values below a NULL are passed over by writing them and taking them back. LowCardinality's own form
 * and Variant are of Native blocks only.
 */
int column_json(struct column *c, struct buf *out)
{
    bool is_null = c->wire_nullable && c->nulls.data[c->shown_nulls++];
    size_t start = out->len;
    int status;

    assert(c->form != FORM_LOW_CARDINALITY && c->form != FORM_VARIANT);
    assert(c->form == FORM_TUPLE || c->shown < c->data.len);
    if (c->form == FORM_LIST) {
        status = put_list(c, out);
    } else if (c->form == FORM_TUPLE) {
        status = put_elements(c, out);
    } else if (c->width == 0) {
        status = put_text(c, out);
    } else {
        status = put_fixed(c, c->data.data + c->shown, out);
        c->shown += c->width;
    }
    if (status != SPOOL_OK || !is_null)
        return status;
    out->len = start;
    return buf_append_str(out, "null");
}
