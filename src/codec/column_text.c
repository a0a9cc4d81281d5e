/* SPDX-License-Identifier: Apache-2.0 */
/* String, FixedString, UUID, Enum, IPv4 and IPv6. */
#include <stdlib.h>
#include <string.h>

#include "base/json_escape.h"
#include "codec/column.h"
#include "codec/number.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define SHORT_TEXT_BYTES 4096 /* records up to here are copied while they are scanned */

/* ---- String ---- */

static unsigned varuint_size(uint64_t n)
{
    unsigned size = 1;

    while (n >= 0x80) {
        n >>= 7;
        size++;
    }
    return size;
}

static void put_varuint(uint8_t *to, uint64_t n)
{
    while (n >= 0x80) {
        *to++ = (uint8_t)(n | 0x80);
        n >>= 7;
    }
    *to = (uint8_t)n;
}

int column_put_string(struct column *c, const void *data, size_t n)
{
    unsigned head = varuint_size(n);
    int status = column_reserve(c, n + head);

    if (status != SPOOL_OK)
        return status;
    put_varuint(c->data.data + c->data.len, n);
    if (n)
        memcpy(c->data.data + c->data.len + head, data, n);
    c->data.len += n + head;
    return SPOOL_OK;
}

/* Numbers, true, false, arrays and objects are kept as their text. */
static int string_raw(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p;
    int status;

    if (*s->p == '-' || is_digit(*s->p))
        status = json_skip_loose_number(s);
    else
        status = json_skip(s);
    return status == SPOOL_OK ? column_put_string(c, start, (size_t)(s->p - start)) : status;
}

/* The general way, in two passes: find out where and how long, then copy. */
static int string_long(struct column *c, struct scan *s)
{
    const uint8_t *data;
    size_t size;
    int status = json_string(s, &data, &size);

    return status == SPOOL_OK ? column_put_string(c, data, size) : status;
}

/*
 * Copies 16 bytes at a time while looking for the quote, behind one byte kept for the length;
 * longer strings than 127 bytes are moved for the bytes their length needs.
 */
static const uint8_t *append_string(struct column *c, struct scan *s, const uint8_t *p)
{
    const uint8_t *end = s->end;
    uint8_t *start, *to;
    size_t n;

    if (unlikely(*p != '"'))
        goto other;
    n = (size_t)(end - p);
    if (unlikely(n > SHORT_TEXT_BYTES || column_reserve(c, n + 8) != SPOOL_OK))
        goto other; /* the string may be shorter than the record's rest */
    s->p = p;
    p++;
    start = c->data.data + c->data.len + 1;
    to = start;
    while (end - p >= JSON_CHUNK) {
        unsigned i = json_chunk(p, to, false);
        p += i;
        to += i;
        if (likely(i < JSON_CHUNK))
            goto found;
    }
    while (p < end && *p != '"' && *p != '\\')
        *to++ = *p++;
    if (unlikely(p == end))
        return scan_done(s, string_long(c, s));
found:
    if (unlikely(*p != '"'))
        return scan_done(s, string_long(c, s));
    n = (size_t)(to - start);
    if (likely(n < 0x80)) {
        start[-1] = (uint8_t)n;
        c->data.len += n + 1;
    } else {
        unsigned head = varuint_size(n);
        memmove(start - 1 + head, start, n);
        put_varuint(start - 1, n);
        c->data.len += n + head;
    }
    return p + 1;
other:
    s->p = p;
    return scan_done(s, *p == '"' ? string_long(c, s) : string_raw(c, s));
}

/* ---- FixedString ---- */

static int fixed_put(struct column *c, const uint8_t *data, size_t n, struct scan *s,
                     const uint8_t *at)
{
    int status;

    if (n > c->width)
        return scan_refuse_at(s, at, REFUSAL_TOO_LONG, "%zu bytes do not fit %s", n,
                              column_type_text(c));
    status = column_reserve(c, c->width);
    if (status != SPOOL_OK)
        return status;
    if (n)
        memcpy(c->data.data + c->data.len, data, n);
    memset(c->data.data + c->data.len + n, 0, c->width - n);
    c->data.len += c->width;
    return SPOOL_OK;
}

static int take_text(struct column *c, struct scan *s, const uint8_t **data, size_t *size)
{
    if (*s->p != '"')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes a string", column_type_text(c));
    return c->kind == TYPE_FIXED_STRING ? json_string(s, data, size)
                                        : json_plain_string(s, data, size);
}

static int fixed_string_value(struct column *c, struct scan *s)
{
    const uint8_t *data, *at = s->p;
    size_t size;
    int status = take_text(c, s, &data, &size);

    return status == SPOOL_OK ? fixed_put(c, data, size, s, at) : status;
}

static const uint8_t *append_fixed_string(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, fixed_string_value(c, s));
}

bool column_takes_bytes(const struct column *c)
{
    enum type_kind kind = column_value_node(c)->kind;

    return kind == TYPE_STRING || kind == TYPE_FIXED_STRING;
}

int column_append_bytes(struct column *c, const void *data, size_t n, struct scan *s)
{
    struct column *to = c->form == FORM_LOW_CARDINALITY ? c->children[0] : c;
    int status;

    if (to->kind == TYPE_STRING)
        status = column_put_string(to, data, n);
    else
        status = fixed_put(to, data, n, s, s->p);
    if (status != SPOOL_OK)
        return status;
    return c->form == FORM_LOW_CARDINALITY ? low_cardinality_intern(c) : column_append_not_null(c);
}

/* ---- UUID ---- */

/* 36 characters with dashes or 32 without; two numbers, high half first, each little endian. */
static int uuid_value(struct column *c, struct scan *s)
{
    const uint8_t *text, *at = s->p;
    uint64_t half[2] = {0, 0};
    unsigned nibbles = 0;
    size_t size;
    int status = take_text(c, s, &text, &size);
    bool ok = size == 36 || size == 32;

    if (status != SPOOL_OK)
        return status;
    for (size_t i = 0; ok && i < size; i++) {
        bool dash = size == 36 && (i == 8 || i == 13 || i == 18 || i == 23);
        int v = dash ? 0 : hex_digit(text[i]);
        if (dash) {
            ok = text[i] == '-';
            continue;
        }
        ok = v >= 0;
        half[nibbles / 16] = half[nibbles / 16] << 4 | (uint64_t)(v & 15);
        nibbles++;
    }
    if (!ok)
        return scan_refuse_at(s, at, REFUSAL_TEXT, "the text is not a UUID");
    status = column_put(c, half[0], 8);
    return status == SPOOL_OK ? column_put(c, half[1], 8) : status;
}

static const uint8_t *append_uuid(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, uuid_value(c, s));
}

/* ---- Enum ---- */

static uint32_t name_hash(const uint8_t *name, size_t n)
{
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ name[i]) * 16777619u;
    return h ^ h >> 15;
}

int enum_index_create(struct enum_index *index, const struct type *type)
{
    uint32_t size = 4;

    if (type->member_count == 0 || type->member_count >= UINT16_MAX)
        return SPOOL_E_UNSUPPORTED;
    while (size < type->member_count * 2)
        size *= 2;
    index->type = type;
    index->mask = size - 1;
    index->slots = calloc(size, sizeof(*index->slots));
    if (!index->slots)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < type->member_count; i++) {
        uint32_t at = name_hash((const uint8_t *)type->members[i].name, type->members[i].name_size);
        while (index->slots[at & index->mask])
            at++;
        index->slots[at & index->mask] = (uint16_t)(i + 1);
    }
    return SPOOL_OK;
}

static const struct type_enum_member *enum_by_name(const struct enum_index *index,
                                                   const uint8_t *name, size_t n)
{
    uint32_t at = name_hash(name, n);

    for (;; at++) {
        uint16_t slot = index->slots[at & index->mask];
        const struct type_enum_member *member;
        if (!slot)
            return NULL;
        member = &index->type->members[slot - 1];
        if (member->name_size == n && memcmp(member->name, name, n) == 0)
            return member;
    }
}

/* [+-]digits that are a member's number. */
static const struct type_enum_member *enum_by_number(const struct type *type, const uint8_t *text,
                                                     size_t n)
{
    const uint8_t *p = text, *end = text + n, *first;
    bool negative = false, overflow;
    uint64_t magnitude;
    size_t low = 0, high = type->member_count;
    int64_t v;

    if (p < end && (*p == '-' || *p == '+'))
        negative = *p++ == '-';
    first = p;
    p = number_digits(p, end, &magnitude, &overflow);
    if (p == first || p != end || overflow || magnitude > 32768)
        return NULL;
    v = negative ? -(int64_t)magnitude : (int64_t)magnitude;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (type->members[middle].value == v)
            return &type->members[middle];
        if (type->members[middle].value < v)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int enum_value(struct column *c, struct scan *s)
{
    const struct type_enum_member *member;
    const uint8_t *text, *at = s->p;
    size_t size;
    int status;

    if (*s->p == '"') {
        status = json_string(s, &text, &size);
        if (status != SPOOL_OK)
            return status;
        member = enum_by_name(&c->members, text, size);
        if (!member)
            member = enum_by_number(c->type, text, size);
    } else if (*s->p == '-' || is_digit(*s->p)) {
        status = json_skip_loose_number(s);
        if (status != SPOOL_OK)
            return status;
        member = enum_by_number(c->type, at, (size_t)(s->p - at));
    } else {
        return scan_refuse(s, REFUSAL_TYPE, "an Enum takes a member's name or number");
    }
    if (!member)
        return scan_refuse_at(s, at, REFUSAL_ENUM, "the value is no member of the Enum");
    return column_put(c, (uint64_t)(int64_t)member->value, c->width);
}

static const uint8_t *append_enum(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, enum_value(c, s));
}

/* ---- addresses ---- */

/* a.b.c.d, decimal, each 0..255 of up to three digits; NULL if it is none. */
static const uint8_t *ipv4_scan(const uint8_t *p, const uint8_t *end, uint8_t octets[4])
{
    for (int i = 0; i < 4; i++) {
        unsigned v = 0, n = 0;
        if (i && (p == end || *p++ != '.'))
            return NULL;
        while (p < end && is_digit(*p) && n < 3) {
            v = v * 10 + (unsigned)(*p++ - '0');
            n++;
        }
        if (n == 0 || v > 255)
            return NULL;
        octets[i] = (uint8_t)v;
    }
    return p;
}

static int ipv4_value(struct column *c, struct scan *s)
{
    const uint8_t *text, *at = s->p;
    uint8_t o[4];
    size_t size;
    int status = take_text(c, s, &text, &size);

    if (status != SPOOL_OK)
        return status;
    if (ipv4_scan(text, text + size, o) != text + size)
        return scan_refuse_at(s, at, REFUSAL_TEXT, "the text is not an IPv4 address");
    return column_put(c, (uint64_t)o[0] << 24 | (uint64_t)o[1] << 16 | (uint64_t)o[2] << 8 | o[3],
                      4);
}

static const uint8_t *append_ipv4(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, ipv4_value(c, s));
}

/* RFC 4291 section 2.2: groups of up to four hex digits, one "::", an IPv4 tail. */
static bool ipv6_scan(const uint8_t *p, const uint8_t *end, uint8_t out[16])
{
    uint8_t head[16];
    int n = 0, gap = -1;

    if (end - p >= 2 && p[0] == ':' && p[1] == ':') {
        gap = 0;
        p += 2;
    }
    while (p < end) {
        unsigned v = 0, digits = 0;
        uint8_t v4[4];
        if (n <= 12 && ipv4_scan(p, end, v4) == end) {
            memcpy(head + n, v4, 4);
            n += 4;
            p = end;
            break;
        }
        while (p < end && digits < 4 && hex_digit(*p) >= 0) {
            v = v << 4 | (unsigned)hex_digit(*p++);
            digits++;
        }
        if (digits == 0 || n > 14)
            return false;
        head[n++] = (uint8_t)(v >> 8);
        head[n++] = (uint8_t)v;
        if (p == end)
            break;
        if (*p++ != ':' || p == end)
            return false;
        if (*p == ':') {
            if (gap >= 0)
                return false;
            gap = n;
            p++;
        }
    }
    if (gap < 0 ? n != 16 : n > 14)
        return false;
    memset(out, 0, 16);
    if (gap < 0)
        gap = n;
    memcpy(out, head, (size_t)gap);
    memcpy(out + 16 - (n - gap), head + gap, (size_t)(n - gap));
    return true;
}

static int ipv6_value(struct column *c, struct scan *s)
{
    const uint8_t *text, *at = s->p;
    uint8_t address[16], v4[4];
    size_t size;
    int status = take_text(c, s, &text, &size);

    if (status != SPOOL_OK)
        return status;
    /* JSONEachRow looks for a group of hex digits first: 01.2.3.4 is an address to an IPv4 alone */
    if (ipv4_scan(text, text + size, v4) == text + size && !(text[0] == '0' && text[1] != '.')) {
        memset(address, 0, 10);
        memset(address + 10, 0xff, 2);
        memcpy(address + 12, v4, 4);
    } else if (!ipv6_scan(text, text + size, address)) {
        return scan_refuse_at(s, at, REFUSAL_TEXT, "the text is not an IPv6 address");
    }
    status = column_reserve(c, 16);
    if (status != SPOOL_OK)
        return status;
    memcpy(c->data.data + c->data.len, address, 16);
    c->data.len += 16;
    return SPOOL_OK;
}

static const uint8_t *append_ipv6(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, ipv6_value(c, s));
}

bool column_set_text(struct column *c)
{
    switch (c->kind) {
    case TYPE_STRING:
        c->append = append_string;
        return true;
    case TYPE_FIXED_STRING:
        c->append = append_fixed_string;
        return true;
    case TYPE_UUID:
        c->append = append_uuid;
        return true;
    case TYPE_ENUM8:
    case TYPE_ENUM16:
        c->append = append_enum;
        return true;
    case TYPE_IPV4:
        c->append = append_ipv4;
        return true;
    case TYPE_IPV6:
        c->append = append_ipv6;
        return true;
    default:
        return false;
    }
}
