/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner alone: what json_skip takes is one value and nothing behind it is read; a string means the
 * same by each of the three ways to read it.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct buf scratch, out;

static struct scan scan_over(const uint8_t *data, size_t size, struct refusal *why)
{
    memset(why, 0, sizeof(*why));
    return (struct scan){
        .p = data, .begin = data, .end = data + size, .why = why, .scratch = &scratch};
}

static void check_skip(const uint8_t *data, size_t size)
{
    struct refusal why;
    struct scan s = scan_over(data, size, &why);
    int status;

    s.p = json_blank(s.p, s.end);
    if (s.p == s.end)
        return;
    status = json_skip(&s);
    assert(s.p >= data && s.p <= data + size);
    if (status == SPOOL_OK) {
        /* the value by itself is the same value */
        const uint8_t *start = json_blank(data, data + size);
        struct scan again = scan_over(start, (size_t)(s.p - start), &why);
        assert(json_skip(&again) == SPOOL_OK && again.p == again.end);
    } else {
        assert(status == SPOOL_E_REFUSED && why.code && why.reason[0] && why.position <= size);
    }
}

static void check_string(const uint8_t *data, size_t size)
{
    struct refusal why;
    struct scan a = scan_over(data, size, &why), b = a, c = a;
    const uint8_t *text;
    size_t n, appended;
    int status;

    if (size == 0 || data[0] != '"')
        return;
    status = json_string(&a, &text, &n);
    buf_reset(&out);
    assert(json_string_append(&b, &out, &appended) == status);
    if (status == SPOOL_OK) {
        assert(a.p == b.p && n == appended && n == out.len);
        assert(n == 0 || memcmp(text, out.data, n) == 0);
    }
    /* RFC 8259 takes half a surrogate, JSONEachRow does not; raw control characters the other way round */
    if (json_skip_string(&c) == SPOOL_OK && status == SPOOL_OK)
        assert(a.p == c.p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct refusal why;
    struct scan s;

    if (!out.max) {
        buf_init(&scratch, 16 * MIB);
        buf_init(&out, 16 * MIB);
    }
    check_skip(data, size);
    check_string(data, size);
    s = scan_over(data, size, &why);
    if (size)
        (void)json_skip_loose_number(&s);
    assert(s.p <= s.end);
    return 0;
}
