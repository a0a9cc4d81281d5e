/* SPDX-License-Identifier: Apache-2.0 */
/* Values of an opened block as JSON. All bounds were checked when it was opened. */
#include <arpa/inet.h>
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "codec/datetime.h"
#include "codec/json.h"
#include "codec/native_int.h"

#define SECONDS_A_DAY     86400
#define ZONED_SECONDS_MAX 400000000000 /* beyond the year 9999, where no clock is */

/* ---- numbers --------------------------------------------------------------------------------- */

static bool is_signed(enum type_kind kind)
{
    return (kind >= TYPE_INT8 && kind <= TYPE_INT256) || kind == TYPE_ENUM8 ||
           kind == TYPE_ENUM16 || kind == TYPE_DATE32 || kind == TYPE_DATETIME64 ||
           kind == TYPE_TIME || kind == TYPE_TIME64 || kind == TYPE_DECIMAL;
}

/* A value of up to 64 bits, its sign extended where its kind has one. */
static int64_t small_integer(const struct native_node *node, uint64_t row)
{
    uint64_t v = native_number(node->data, node->width, row);
    unsigned unused = (unsigned)(64 - 8 * node->width);

    if (is_signed(node->type->kind) && unused > 0)
        return (int64_t)(v << unused) >> unused;
    return (int64_t)v;
}

#define WORDS_MAX  8  /* of 32 bits */
#define DIGITS_MAX 78 /* of 2^256 - 1 */

/* The decimal digits of width little-endian bytes, without a sign, in text; returns how many. */
static size_t digits_of(const uint8_t *from, size_t width, bool has_sign, bool *negative,
                        char text[DIGITS_MAX + 1])
{
    uint32_t words[WORDS_MAX] = {0};
    size_t count = width / 4, n = 0;
    char reversed[DIGITS_MAX + 9];

    assert(width % 4 == 0 && count <= WORDS_MAX);
    for (size_t i = 0; i < count; i++)
        words[i] = (uint32_t)native_number(from, 4, i);
    *negative = has_sign && words[count - 1] >> 31;
    for (size_t i = 0, carry = 1; *negative && i < count; i++) {
        words[i] = ~words[i] + (uint32_t)carry;
        carry = carry && words[i] == 0;
    }
    while (count > 0) {
        uint64_t rest = 0;
        for (size_t i = count; i-- > 0;) {
            uint64_t part = rest << 32 | words[i];
            words[i] = (uint32_t)(part / 1000000000);
            rest = part % 1000000000;
        }
        for (unsigned i = 0; i < 9; i++, rest /= 10)
            reversed[n++] = (char)('0' + rest % 10);
        while (count > 0 && words[count - 1] == 0)
            count--;
    }
    while (n > 1 && reversed[n - 1] == '0')
        n--;
    assert(n <= DIGITS_MAX);
    for (size_t i = 0; i < n; i++)
        text[i] = reversed[n - 1 - i];
    text[n] = 0;
    return n;
}

/* The number divided by 10^scale, without trailing zeros behind the point. */
static int put_big(struct buf *out, const struct native_node *node, uint64_t row, unsigned scale)
{
    char text[DIGITS_MAX + 1];
    bool negative = false;
    size_t n = digits_of(node->data + row * node->width, node->width, is_signed(node->type->kind),
                         &negative, text);
    size_t whole = n > scale ? n - scale : 0, last = n;
    int status = SPOOL_OK;

    while (last > whole && text[last - 1] == '0')
        last--;
    if (negative)
        status = buf_put_u8(out, '-');
    if (status == SPOOL_OK)
        status = whole ? buf_append(out, text, whole) : buf_put_u8(out, '0');
    if (status != SPOOL_OK || last == whole)
        return status;
    status = buf_put_u8(out, '.');
    for (size_t i = n; i < scale && status == SPOOL_OK; i++)
        status = buf_put_u8(out, '0');
    return status == SPOOL_OK ? buf_append(out, text + whole, last - whole) : status;
}

/* The shortest text that reads back as the same number. */
static int put_float(struct buf *out, double v, bool narrow)
{
    char text[40];

    if (!isfinite(v))
        return buf_append_str(out, isnan(v) ? "\"nan\"" : v < 0 ? "\"-inf\"" : "\"inf\"");
    for (int digits = narrow ? 6 : 15;; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (digits == (narrow ? 9 : 17) ||
            (narrow ? (double)strtof(text, NULL) == v : strtod(text, NULL) == v))
            return buf_append_str(out, text);
    }
}

static int put_float_bits(struct buf *out, const struct native_node *node, uint64_t row)
{
    uint64_t bits = native_number(node->data, node->width, row);
    uint32_t narrow = (uint32_t)(node->width == 2 ? bits << 16 : bits);
    double wide;
    float f;

    if (node->width == 8) {
        memcpy(&wide, &bits, sizeof(wide));
        return put_float(out, wide, false);
    }
    memcpy(&f, &narrow, sizeof(f));
    return put_float(out, (double)f, true);
}

/* ---- dates and times ------------------------------------------------------------------------- */

/* Quotient and remainder, rounded down. */
static int64_t divide_down(int64_t v, int64_t by, int64_t *rest)
{
    int64_t quotient = v / by;

    *rest = v % by;
    if (*rest < 0) {
        *rest += by;
        quotient--;
    }
    return quotient;
}

/* A day outside the calendar, which no server writes, is shown as its number. */
static int put_date(struct buf *out, int64_t days)
{
    int year, month, day;

    if (days < civil_days(YEAR_MIN, 1, 1) || days > civil_days(YEAR_MAX, 12, 31))
        return buf_printf(out, "day %lld", (long long)days);
    civil_from_days(days, &year, &month, &day);
    return buf_printf(out, "%04d-%02d-%02d", year, month, day);
}

static int put_clock(struct buf *out, int64_t seconds)
{
    return buf_printf(out, "%02lld:%02d:%02d", (long long)(seconds / 3600),
                      (int)(seconds / 60 % 60), (int)(seconds % 60));
}

static int64_t ticks_a_second(unsigned scale)
{
    int64_t ticks = 1;

    while (scale-- > 0)
        ticks *= 10;
    return ticks;
}

static int put_fraction(struct buf *out, int64_t fraction, unsigned scale)
{
    return scale ? buf_printf(out, ".%0*lld", (int)scale, (long long)fraction) : SPOOL_OK;
}

static int put_datetime(struct buf *out, const struct native_node *node, uint64_t row)
{
    unsigned scale = node->type->scale;
    int64_t fraction = 0, second_of_day = 0, days, seconds;
    int status;

    seconds = divide_down(small_integer(node, row), ticks_a_second(scale), &fraction);
    if (node->zone && seconds > -ZONED_SECONDS_MAX && seconds < ZONED_SECONDS_MAX)
        seconds += tz_zone_offset(node->zone, seconds);
    days = divide_down(seconds, SECONDS_A_DAY, &second_of_day);
    status = buf_put_u8(out, '"');
    if (status == SPOOL_OK)
        status = put_date(out, days);
    if (status == SPOOL_OK)
        status = buf_put_u8(out, ' ');
    if (status == SPOOL_OK)
        status = put_clock(out, second_of_day);
    if (status == SPOOL_OK)
        status = put_fraction(out, fraction, scale);
    return status == SPOOL_OK ? buf_append_str(out, node->zone_unknown ? "Z\"" : "\"") : status;
}

/* Time and Time64: a duration with a sign in front of all of it. */
static int put_time(struct buf *out, const struct native_node *node, uint64_t row)
{
    unsigned scale = node->type->scale;
    int64_t ticks = small_integer(node, row);
    /* The magnitude of the smallest number is no int64_t. */
    uint64_t size = ticks < 0 ? -(uint64_t)ticks : (uint64_t)ticks;
    uint64_t unit = (uint64_t)ticks_a_second(scale);
    int status = buf_append_str(out, ticks < 0 ? "\"-" : "\"");

    if (status == SPOOL_OK)
        status = put_clock(out, (int64_t)(size / unit));
    if (status == SPOOL_OK)
        status = put_fraction(out, (int64_t)(size % unit), scale);
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
}

static int put_day(struct buf *out, const struct native_node *node, uint64_t row)
{
    int status = buf_put_u8(out, '"');

    if (status == SPOOL_OK)
        status = put_date(out, small_integer(node, row));
    return status == SPOOL_OK ? buf_put_u8(out, '"') : status;
}

/* ---- other scalars --------------------------------------------------------------------------- */

static int put_uuid(struct buf *out, const uint8_t *raw)
{
    uint64_t high = native_number(raw, 8, 0), low = native_number(raw, 8, 1);

    return buf_printf(out, "\"%08llx-%04llx-%04llx-%04llx-%012llx\"",
                      (unsigned long long)(high >> 32), (unsigned long long)(high >> 16 & 0xffff),
                      (unsigned long long)(high & 0xffff), (unsigned long long)(low >> 48),
                      (unsigned long long)(low & 0xffffffffffff));
}

static int put_ipv6(struct buf *out, const uint8_t *raw)
{
    char text[INET6_ADDRSTRLEN];

    if (!inet_ntop(AF_INET6, raw, text, sizeof(text)))
        return SPOOL_E_CORRUPT;
    return buf_printf(out, "\"%s\"", text);
}

/* Whether the text is one value by RFC 8259. */
static bool is_json(const uint8_t *text, size_t size)
{
    struct refusal why;
    struct scan s = {.p = text, .begin = text, .end = text + size, .why = &why};

    return size > 0 && json_skip(&s) == SPOOL_OK && s.p == s.end;
}

/* A number that is no member is shown as it is: it tells what is wrong. */
static int put_enum(struct buf *out, const struct native_node *node, uint64_t row)
{
    int64_t value = small_integer(node, row);
    size_t low = 0, high = node->type->member_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct type_enum_member *m = &node->type->members[middle];
        if (m->value == value)
            return buf_put_json_string(out, m->name, m->name_size);
        if (m->value < value)
            low = middle + 1;
        else
            high = middle;
    }
    return buf_printf(out, "%lld", (long long)value);
}

static int put_text(struct buf *out, const struct native_node *node, const uint8_t *text,
                    size_t size)
{
    if (node->object && is_json(text, size))
        return buf_append(out, text, size);
    return node->exact ? buf_put_json_bytes(out, text, size) : buf_put_json_string(out, text, size);
}

static int put_string(struct buf *out, const struct native_node *node, uint64_t row)
{
    size_t from = node->positions[row];
    struct cursor in = cursor_over(node->data + from, node->positions[row + 1] - from);
    const uint8_t *text = NULL;
    size_t size = 0;
    int status = cursor_string(&in, &text, &size);

    assert(status == SPOOL_OK);
    return status == SPOOL_OK ? put_text(out, node, text, size) : status;
}

static int put_fixed_string(struct buf *out, const struct native_node *node, uint64_t row)
{
    const uint8_t *text = node->data + row * node->width;
    size_t size = node->width;

    while (size > 0 && text[size - 1] == 0)
        size--;
    return put_text(out, node, text, size);
}

/* ---- composites ------------------------------------------------------------------------------ */

/* The elements of a Tuple or of one entry of a Nested: an object where they have names. */
static int put_elements(struct buf *out, const struct native_node *node, uint64_t row)
{
    bool named = node->child_count > 0 && node->type->child_names[0];
    int status = buf_put_u8(out, named ? '{' : '[');

    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++) {
        if (i)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK && named) {
            const char *name = node->type->child_names[i];
            status = buf_put_json_string(out, name, strlen(name));
            if (status == SPOOL_OK)
                status = buf_put_u8(out, ':');
        }
        if (status == SPOOL_OK)
            status = native_json_value(&node->children[i], row, out);
    }
    return status == SPOOL_OK ? buf_put_u8(out, named ? '}' : ']') : status;
}

/* A Map's key: JSON has only strings there, so what is none is quoted as it stands. */
static int put_key(struct buf *out, const struct native_node *node, uint64_t row)
{
    size_t start = out->len;
    struct buf text;
    int status = native_json_value(node, row, out);

    if (status != SPOOL_OK || out->data[start] == '"')
        return status;
    buf_init(&text, out->max);
    status = buf_append(&text, out->data + start, out->len - start);
    out->len = start;
    if (status == SPOOL_OK)
        status = buf_put_json_string(out, text.data, text.len);
    buf_free(&text);
    return status;
}

static int put_list(struct buf *out, const struct native_node *node, uint64_t row)
{
    uint64_t start = native_list_start(node, row), end = native_list_start(node, row + 1);
    bool map = node->type->kind == TYPE_MAP;
    int status = buf_put_u8(out, map ? '{' : '[');

    for (uint64_t i = start; i < end && status == SPOOL_OK; i++) {
        if (i > start)
            status = buf_put_u8(out, ',');
        if (status != SPOOL_OK)
            break;
        if (map) {
            status = put_key(out, &node->children[0], i);
            if (status == SPOOL_OK)
                status = buf_put_u8(out, ':');
            if (status == SPOOL_OK)
                status = native_json_value(&node->children[1], i, out);
        } else if (node->type->kind == TYPE_NESTED) {
            status = put_elements(out, node, i);
        } else {
            status = native_json_value(&node->children[0], i, out);
        }
    }
    return status == SPOOL_OK ? buf_put_u8(out, map ? '}' : ']') : status;
}

static int put_low_cardinality(struct buf *out, const struct native_node *node, uint64_t row)
{
    uint64_t key = native_number(node->data, node->width, row);

    if (node->nullable_keys && key == 0)
        return buf_append_str(out, "null");
    return native_json_value(&node->children[0], key, out);
}

static int put_variant(struct buf *out, const struct native_node *node, uint64_t row)
{
    uint8_t member = node->data[row];
    const struct native_node *child = &node->children[member];
    enum type_kind kind;
    size_t start = out->len;
    int status;

    if (member == NATIVE_VARIANT_NULL)
        return buf_append_str(out, "null");
    status = native_json_value(child, node->positions[row], out);
    kind = child->type->kind;
    if (status != SPOOL_OK || !node->exact ||
        (kind != TYPE_FLOAT32 && kind != TYPE_FLOAT64 && kind != TYPE_BFLOAT16))
        return status;
    for (size_t i = start; i < out->len; i++)
        if (!memchr("-0123456789", out->data[i], 11))
            return SPOOL_OK;
    return buf_append_str(out, ".0");
}

int native_json_value(const struct native_node *node, uint64_t row, struct buf *out)
{
    const uint8_t *raw = node->data + row * node->width;

    assert(row < node->rows);
    switch (node->type->kind) {
    case TYPE_INT8:
    case TYPE_INT16:
    case TYPE_INT32:
    case TYPE_INT64:
    case TYPE_INTERVAL:
    case TYPE_UINT8:
    case TYPE_UINT16:
    case TYPE_UINT32:
        return buf_printf(out, "%lld", (long long)small_integer(node, row));
    case TYPE_UINT64:
        return buf_printf(out, "%llu", (unsigned long long)native_number(node->data, 8, row));
    case TYPE_INT128:
    case TYPE_INT256:
    case TYPE_UINT128:
    case TYPE_UINT256:
        return put_big(out, node, row, 0);
    case TYPE_DECIMAL:
        return put_big(out, node, row, node->type->scale);
    case TYPE_FLOAT32:
    case TYPE_FLOAT64:
    case TYPE_BFLOAT16:
        return put_float_bits(out, node, row);
    case TYPE_BOOL:
        return buf_append_str(out, *raw ? "true" : "false");
    case TYPE_STRING:
        return put_string(out, node, row);
    case TYPE_FIXED_STRING:
        return put_fixed_string(out, node, row);
    case TYPE_UUID:
        return put_uuid(out, raw);
    case TYPE_DATE:
    case TYPE_DATE32:
        return put_day(out, node, row);
    case TYPE_DATETIME:
    case TYPE_DATETIME64:
        return put_datetime(out, node, row);
    case TYPE_TIME:
    case TYPE_TIME64:
        return put_time(out, node, row);
    case TYPE_ENUM8:
    case TYPE_ENUM16:
        return put_enum(out, node, row);
    case TYPE_IPV4:
        return buf_printf(out, "\"%u.%u.%u.%u\"", raw[3], raw[2], raw[1], raw[0]);
    case TYPE_IPV6:
        return put_ipv6(out, raw);
    case TYPE_NULLABLE:
        if (*raw)
            return buf_append_str(out, "null");
        return native_json_value(&node->children[0], row, out);
    case TYPE_TUPLE:
    case TYPE_POINT:
        return put_elements(out, node, row);
    case TYPE_LOW_CARDINALITY:
        return put_low_cardinality(out, node, row);
    case TYPE_VARIANT:
        return put_variant(out, node, row);
    default:
        assert(type_is_list(node->type->kind));
        return put_list(out, node, row);
    }
}

/* ---- how values are shown -------------------------------------------------------------------- */

static void show_exact(struct native_node *node, const struct type *type)
{
    while (type &&
           (type->kind == TYPE_SIMPLE_AGGREGATE || type->kind == TYPE_NULLABLE ||
            type->kind == TYPE_LOW_CARDINALITY) &&
           type->kind != node->type->kind)
        type = type->children[0];
    node->exact = true;
    node->object = type && type->kind == TYPE_JSON && node->type->kind == TYPE_STRING;
    for (size_t i = 0; i < node->child_count; i++)
        show_exact(&node->children[i], type && i < type->child_count ? type->children[i] : NULL);
}

void native_block_set_exact(struct native_block *b, const struct schema *schema)
{
    for (; b; b = b->next)
        for (size_t i = 0; i < b->column_count; i++) {
            const struct type *type = NULL;
            for (size_t k = 0; k < schema->count && !type; k++)
                if (strcmp(schema->columns[k].name, b->columns[i].name) == 0)
                    type = schema->columns[k].type;
            show_exact(&b->columns[i].node, type);
        }
}

static void show_utc(struct native_node *node)
{
    if (node->type->kind == TYPE_DATETIME || node->type->kind == TYPE_DATETIME64) {
        node->zone = NULL;
        node->zone_unknown = true;
    }
    for (size_t i = 0; i < node->child_count; i++)
        show_utc(&node->children[i]);
}

void native_block_set_utc(struct native_block *b, const char *column)
{
    for (; b; b = b->next)
        for (size_t i = 0; i < b->column_count; i++)
            if (strcmp(b->columns[i].name, column) == 0)
                show_utc(&b->columns[i].node);
}

int native_block_row_json(const struct native_block *b, uint64_t row, struct buf *out,
                          struct spool_error *error)
{
    size_t start = out->len;
    int status;

    if (row >= native_block_rows(b))
        return spool_error_set(error, SPOOL_E_INVALID, "row %llu is not in a block of %llu",
                               (unsigned long long)row, (unsigned long long)native_block_rows(b));
    for (; row >= b->rows; b = b->next)
        row -= b->rows;
    status = buf_put_u8(out, '{');
    for (size_t i = 0; i < b->column_count && status == SPOOL_OK; i++) {
        const struct native_column *c = &b->columns[i];
        if (i)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK)
            status = buf_put_json_string(out, c->name, strlen(c->name));
        if (status == SPOOL_OK)
            status = buf_put_u8(out, ':');
        if (status == SPOOL_OK)
            status = native_json_value(&c->node, row, out);
    }
    if (status == SPOOL_OK)
        status = buf_put_u8(out, '}');
    if (status != SPOOL_OK) {
        out->len = start;
        return spool_error_set(error, status, "row %llu as JSON: %s", (unsigned long long)row,
                               spool_strerror(status));
    }
    return SPOOL_OK;
}
