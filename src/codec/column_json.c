/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A column's values back to JSON, for tables that are fed by JSONEachRow. What is written is read
 * back to the very same value by every server: strings keep their bytes (valid UTF-8 or not),
 * floats are the shortest text that reads back, times of a zone with clock changes are numbers
 * (seconds for DateTime, ticks for DateTime64), for their local text would be ambiguous and depend
 * on the server's tz database; in UTC they are text.
 */
#include <arpa/inet.h>
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/column.h"
#include "codec/number.h"

void column_json_begin(struct column *c)
{
    c->shown = c->shown_nulls = 0;
    if (c->child)
        column_json_begin(c->child);
}

/* Unlike buf_put_json_string it leaves bytes that are no UTF-8 alone. */
static int put_string(struct buf *out, const uint8_t *data, size_t n)
{
    size_t from = 0;
    int status = buf_put_u8(out, '"');

    for (size_t i = 0; i < n && status == SPOOL_OK; i++) {
        uint8_t c = data[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        status = buf_append(out, data + from, i - from);
        from = i + 1;
        if (status == SPOOL_OK)
            status = c < 0x20 ? buf_printf(out, "\\u%04x", c) : buf_printf(out, "\\%c", c);
    }
    if (status == SPOOL_OK)
        status = buf_append(out, data + from, n - from);
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
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
    bool single = c->kind == TYPE_FLOAT32;
    uint64_t bits = value_at(p, c->width);
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

static int put_decimal(struct column *c, const uint8_t *p, struct buf *out)
{
    unsigned __int128 v = (unsigned __int128)(__int128)sign_extend(
        value_at(p, c->width < 8 ? c->width : 8), c->width < 8 ? c->width : 8);
    char text[64];
    size_t at = sizeof(text);
    bool negative;
    unsigned n = 0;

    if (c->width == 16)
        v = (unsigned __int128)value_at(p + 8, 8) << 64 | value_at(p, 8);
    negative = (__int128)v < 0;
    if (negative)
        v = 0 - v;
    do {
        if (n == c->scale && n)
            text[--at] = '.';
        text[--at] = (char)('0' + (int)(v % 10));
        v /= 10;
        n++;
    } while (v || n <= c->scale);
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
    int year, month, day, status;

    civil_from_days(days, &year, &month, &day);
    if (!c->clock.fixed || c->clock.offset_s || year < 1000 || year > YEAR_MAX)
        return buf_printf(out, "%lld", (long long)ticks);
    s -= days * 86400;
    status = buf_printf(out, "\"%04d-%02d-%02d %02d:%02d:%02d", year, month, day, (int)(s / 3600),
                        (int)(s / 60 % 60), (int)(s % 60));
    if (status == SPOOL_OK && scale)
        status = buf_printf(out, ".%0*lld", (int)scale, (long long)fraction);
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
}

static int put_enum(struct column *c, int64_t v, struct buf *out)
{
    for (size_t i = 0; i < c->type->member_count; i++)
        if (c->type->members[i].value == v)
            return put_string(out, (const uint8_t *)c->type->members[i].name,
                              c->type->members[i].name_size);
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
        return put_float(c, p, out);
    case TYPE_BOOL:
        return buf_append_str(out, v ? "true" : "false");
    case TYPE_FIXED_STRING:
        while (n && !p[n - 1])
            n--;
        return put_string(out, p, n);
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
        return put_decimal(c, p, out);
    case TYPE_IPV4:
    case TYPE_IPV6:
        return put_address(c, p, out);
    case TYPE_INT8:
    case TYPE_INT16:
    case TYPE_INT32:
    case TYPE_INT64:
        return buf_printf(out, "%lld", (long long)sign_extend(v, c->width));
    default:
        return buf_printf(out, "%llu", (unsigned long long)v);
    }
}

static int put_text(struct column *c, struct buf *out)
{
    struct cursor at = cursor_over(c->data.data + c->shown, c->data.len - c->shown);
    const uint8_t *text = NULL;
    size_t n = 0;
    int status = cursor_string(&at, &text, &n);

    assert(status == SPOOL_OK);
    c->shown = (size_t)(at.at - c->data.data);
    return put_string(out, text, n);
}

static int put_array(struct column *c, struct buf *out)
{
    uint64_t from = c->shown ? value_at(c->data.data + c->shown - 8, 8) : 0;
    uint64_t to = value_at(c->data.data + c->shown, 8);
    int status = buf_put_u8(out, '[');

    c->shown += 8;
    for (uint64_t i = from; i < to && status == SPOOL_OK; i++) {
        if (i > from)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK)
            status = column_json(c->child, out);
    }
    return status == SPOOL_OK ? buf_put_u8(out, ']') : status;
}

/* Values below a NULL are passed over by writing them and taking them back. */
int column_json(struct column *c, struct buf *out)
{
    bool is_null = c->wire_nullable && c->nulls.data[c->shown_nulls++];
    size_t start = out->len;
    int status;

    assert(c->shown < c->data.len);
    if (c->kind == TYPE_STRING) {
        status = put_text(c, out);
    } else if (c->kind == TYPE_ARRAY) {
        status = put_array(c, out);
    } else {
        status = put_fixed(c, c->data.data + c->shown, out);
        c->shown += c->width;
    }
    if (status != SPOOL_OK || !is_null)
        return status;
    out->len = start;
    return buf_append_str(out, "null");
}
