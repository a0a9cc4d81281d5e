/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner against two oracles, a plain validator of RFC 8259 written here and cJSON, on random
 * texts and random damage to them; and records at the very end of readable memory.
 */
#include "decode_fixture.h"

#include <cjson/cJSON.h>
#include <sys/mman.h>
#include <unistd.h>

#include "codec/json.h"

static uint32_t seed = 12345;

static uint32_t roll(uint32_t sides)
{
    seed = seed * 1664525 + 1013904223;
    return (uint32_t)(((uint64_t)seed * sides) >> 32);
}

/* ---- the grammar, read plainly ---- */

struct plain {
    const char *p, *end;
};

static void plain_blank(struct plain *t)
{
    while (t->p < t->end && (*t->p == ' ' || *t->p == '\t' || *t->p == '\n' || *t->p == '\r'))
        t->p++;
}

static bool plain_byte(struct plain *t, char c)
{
    if (t->p == t->end || *t->p != c)
        return false;
    t->p++;
    return true;
}

static bool plain_digits(struct plain *t)
{
    const char *start = t->p;
    while (t->p < t->end && *t->p >= '0' && *t->p <= '9')
        t->p++;
    return t->p > start;
}

static bool plain_string(struct plain *t)
{
    if (!plain_byte(t, '"'))
        return false;
    while (t->p < t->end) {
        unsigned char c = (unsigned char)*t->p++;
        if (c == '"')
            return true;
        if (c < 0x20)
            return false;
        if (c != '\\')
            continue;
        if (t->p == t->end)
            return false;
        c = (unsigned char)*t->p++;
        if (c == 'u') {
            for (int i = 0; i < 4; i++)
                if (t->p == t->end || !*t->p || !strchr("0123456789abcdefABCDEF", *t->p++))
                    return false;
        } else if (!c || !strchr("\"\\/bfnrt", c)) {
            return false;
        }
    }
    return false;
}

static bool plain_number(struct plain *t)
{
    plain_byte(t, '-');
    if (!plain_byte(t, '0') && !plain_digits(t))
        return false;
    if (plain_byte(t, '.') && !plain_digits(t))
        return false;
    if (plain_byte(t, 'e') || plain_byte(t, 'E')) {
        if (!plain_byte(t, '+'))
            plain_byte(t, '-');
        return plain_digits(t);
    }
    return true;
}

static bool plain_value(struct plain *t, int depth)
{
    plain_blank(t);
    if (t->p == t->end)
        return false;
    if (*t->p == '{' || *t->p == '[') {
        bool object = *t->p == '{';
        char close = object ? '}' : ']';
        if (depth >= LIMIT_JSON_DEPTH)
            return false;
        t->p++;
        plain_blank(t);
        if (plain_byte(t, close))
            return true;
        for (;;) {
            plain_blank(t);
            if (object) {
                if (!plain_string(t))
                    return false;
                plain_blank(t);
                if (!plain_byte(t, ':'))
                    return false;
            }
            if (!plain_value(t, depth + 1))
                return false;
            plain_blank(t);
            if (plain_byte(t, close))
                return true;
            if (!plain_byte(t, ','))
                return false;
        }
    }
    if (*t->p == '"')
        return plain_string(t);
    for (int i = 0; i < 3; i++) {
        const char *word = i == 0 ? "true" : i == 1 ? "false" : "null";
        if ((size_t)(t->end - t->p) >= strlen(word) && memcmp(t->p, word, strlen(word)) == 0) {
            t->p += strlen(word);
            return true;
        }
    }
    return plain_number(t);
}

/* ---- random texts ---- */

static void put(char **at, const char *text)
{
    size_t n = strlen(text);
    memcpy(*at, text, n);
    *at += n;
}

static void random_blank(char **at)
{
    static const char *blanks[] = {"", "", "", "", " ", "\n", "\t \r"};
    put(at, blanks[roll(7)]);
}

static void random_string(char **at)
{
    static const char *parts[] = {"a",        "Zz9",     "\\n",
                                  "\\\"",     "\\\\",    "\\u00e9",
                                  "\xc3\xa9", "\\u20AC", "\\ud83d\\ude00",
                                  "\\/",      "\\b",     "a string of some length, ",
                                  "'",        "{}[],:"};
    put(at, "\"");
    for (uint32_t n = roll(8); n; n--)
        put(at, parts[roll(14)]);
    put(at, "\"");
}

static void random_number(char **at)
{
    static const char *parts[] = {"0",
                                  "-0",
                                  "7",
                                  "-31",
                                  "123456789",
                                  "0.5",
                                  "-2.25e3",
                                  "1e-7",
                                  "12345678901234567890",
                                  "9.87654321E+20"};
    put(at, parts[roll(10)]);
}

static void random_value(char **at, int depth)
{
    uint32_t kind = roll(depth > 4 ? 5 : 8);

    random_blank(at);
    if (kind == 0) {
        put(at, "true");
    } else if (kind == 1) {
        put(at, "false");
    } else if (kind == 2) {
        put(at, "null");
    } else if (kind == 3) {
        random_number(at);
    } else if (kind <= 5) {
        random_string(at);
    } else {
        bool object = kind == 6;
        uint32_t n = roll(4);
        put(at, object ? "{" : "[");
        for (uint32_t i = 0; i < n; i++) {
            if (i)
                put(at, ",");
            if (object) {
                random_blank(at);
                random_string(at);
                random_blank(at);
                put(at, ":");
            }
            random_value(at, depth + 1);
        }
        random_blank(at);
        put(at, object ? "}" : "]");
    }
    random_blank(at);
}

static void damage(char *text, size_t *n)
{
    static const char bytes[] = "{}[]\",:\\ue0123tn-+.\n\x01 ";

    for (uint32_t times = roll(3); times && *n > 1; times--) {
        size_t at = roll((uint32_t)*n);
        switch (roll(4)) {
        case 0:
            text[at] = bytes[roll(sizeof(bytes) - 1)];
            break;
        case 1:
            memmove(text + at, text + at + 1, *n - at - 1);
            (*n)--;
            break;
        case 2:
            memmove(text + at + 1, text + at, *n - at);
            text[at] = bytes[roll(sizeof(bytes) - 1)];
            (*n)++;
            break;
        default:
            *n = at + 1;
        }
    }
}

static bool skip_accepts(const char *text, size_t n)
{
    struct refusal why = {0};
    uint8_t *copy = malloc(n ? n : 1);
    struct scan s = {.p = copy, .begin = copy, .end = copy + n, .why = &why};
    bool ok;

    memcpy(copy, text, n);
    ok = json_skip(&s) == SPOOL_OK && json_blank(s.p, s.end) == s.end;
    free(copy);
    return ok;
}

static void test_skip_is_the_grammar(void **state)
{
    static char text[1 << 20];
    int good = 0, bad = 0;

    (void)state;
    for (int i = 0; i < 60000; i++) {
        char *at = text;
        size_t n;
        struct plain plain;
        bool expected, ours;
        random_value(&at, 0);
        n = (size_t)(at - text);
        damage(text, &n);
        plain = (struct plain){text, text + n};
        expected = plain_value(&plain, 0);
        plain_blank(&plain);
        expected = expected && plain.p == plain.end;
        ours = skip_accepts(text, n);
        if (ours != expected)
            fail_msg("%.*s: %s", (int)n, text, ours ? "accepted" : "refused");
        if (ours) {
            cJSON *tree = cJSON_ParseWithLength(text, n);
            /* cJSON alone refuses lone surrogates in escapes */
            if (!tree && !strstr(text, "\\ud") && !strstr(text, "\\uD"))
                fail_msg("cJSON refuses %.*s", (int)n, text);
            cJSON_Delete(tree);
        }
        good += ours;
        bad += !ours;
    }
    assert_true(good > 10000 && bad > 10000);
}

/* Values: random members, read by the decoder and by cJSON. */
static void test_values_as_cjson(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "s", .type = "Nullable(String)"},
        {.name = "f", .type = "Nullable(Float64)"},
        {.name = "t", .type = "Array(String)"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = 3};
    static char text[1 << 16];
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    for (int i = 0; i < 30000; i++) {
        char *at = text;
        cJSON *tree;
        struct buf want;
        const cJSON *item;
        put(&at, "{");
        random_blank(&at);
        put(&at, "\"s\":");
        random_blank(&at);
        random_string(&at);
        random_blank(&at);
        put(&at, ",\"zz\":");
        random_value(&at, 2);
        put(&at, ",\"f\":");
        random_number(&at);
        random_blank(&at);
        put(&at, ",\"t\":[");
        for (uint32_t k = roll(4); k; k--) {
            random_blank(&at);
            random_string(&at);
            random_blank(&at);
            put(&at, k > 1 ? "," : "");
        }
        put(&at, "]}");
        *at = 0;
        tree = cJSON_Parse(text);
        assert_non_null(tree);
        buf_init(&want, MIB);
        item = cJSON_GetObjectItemCaseSensitive(tree, "s");
        render_bytes(&want, (const uint8_t *)item->valuestring, strlen(item->valuestring));
        buf_printf(&want, " | %.17g | [", cJSON_GetObjectItemCaseSensitive(tree, "f")->valuedouble);
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(tree, "t"))
        {
            buf_append_str(&want, item->prev && item->prev->next ? ",'" : "'");
            render_bytes(&want, (const uint8_t *)item->valuestring, strlen(item->valuestring));
            buf_put_u8(&want, '\'');
        }
        buf_put_u8(&want, ']');
        assert_int_equal(fixture_row(&f, text), SPOOL_OK);
        assert_string_equal(fixture_text(&f), buf_cstr(&want));
        buf_free(&want);
        cJSON_Delete(tree);
    }
    fixture_close(&f);
}

/* ---- the end of memory ---- */

static const struct column_wish every_kind[] = {
    {.name = "i", .type = "Int64"},
    {.name = "u", .type = "UInt8"},
    {.name = "f", .type = "Float64"},
    {.name = "g", .type = "Float32"},
    {.name = "s", .type = "String"},
    {.name = "x", .type = "FixedString(20)"},
    {.name = "b", .type = "Bool"},
    {.name = "t", .type = "DateTime64(3)"},
    {.name = "d", .type = "Date"},
    {.name = "e", .type = "Enum8('one' = 1)"},
    {.name = "id", .type = "UUID"},
    {.name = "a", .type = "Array(Nullable(Int32))"},
    {.name = "n", .type = "Decimal(18,4)"},
    {.name = "k", .type = "UInt8", .from = "o.k"},
    {.name = "r", .type = "String", .from = "$rest"},
};

static const char *const edge_records[] = {
    "{\"i\":-123456789012,\"u\":7}",
    "{\"f\":12.345}",
    "{\"f\":-0.12345678901234567890e-3}",
    "{\"g\":1.1,\"f\":1}",
    "{\"s\":\"0123456789abcdef0123456789abcdef\"}",
    "{\"s\":\"short\",\"x\":\"esc\\u00e9\\n\"}",
    "{\"s\":{\"raw\":[1,2,\"3\",null,true,{}]},\"zz\":\"a\\\"b\"}",
    "{\"b\":true,\"b2\":false,\"b3\":null}",
    "{\"t\":\"2026-11-23T10:11:12.345Z\"}",
    "{\"t\":\"2026-11-23 10:11:12\"}",
    "{\"t\":\"2026-11-23T10:11:12.3456789+02:00\",\"d\":\"2026-11-23\"}",
    "{\"e\":\"one\",\"id\":\"00112233-4455-6677-8899-aabbccddeeff\"}",
    "{\"a\":[1,null,-3,\"4\"],\"n\":-12.3400}",
    "{\"o\":{\"q\":1,\"k\":2},\"i\":\"5\"}",
    "{ \"i\" : 1 , \"u\" : 2 , \"f\" : 3 , \"s\" : \"x\" } ",
};

#define EDGE_RECORDS (sizeof(edge_records) / sizeof(edge_records[0]))

/* Every record and every beginning of it, so that its last byte is the last one readable. */
static void test_end_of_memory(void **state)
{
    struct schema_options options = {.wishes = every_kind,
                                     .wish_count = sizeof(every_kind) / sizeof(every_kind[0])};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct fixture f;
    int whole = 0;

    (void)state;
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + page, page, PROT_NONE), 0);
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    for (int round = 0; round < 3; round++)
        for (size_t i = 0; i < EDGE_RECORDS; i++) {
            size_t size = strlen(edge_records[i]);
            for (size_t n = 0; n <= size; n++) {
                struct record record = {.data = map + page - n, .size = n, .timestamp_ms = -1};
                int status;
                memcpy(map + page - n, edge_records[i], n);
                status = decoder_row(f.decoder, &record, &f.why);
                if (n == size && status != SPOOL_OK)
                    fail_msg("%s: %s", edge_records[i], f.why.reason);
                if (n < size && status == SPOOL_OK) /* only a blank was cut off */
                    assert_int_equal(edge_records[i][n], ' ');
                whole += status == SPOOL_OK;
            }
        }
    assert_true(whole >= (int)(3 * EDGE_RECORDS));
    buf_reset(&f.raw);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    fixture_close(&f);
    munmap(map, 2 * page);
}

/* Strings of every length around the chunk size, with every special byte at every place. */
static void test_string_lengths(void **state)
{
    static const struct column_wish wish = {.name = "s", .type = "String"};
    struct schema_options options = {.wishes = &wish, .wish_count = 1};
    static const char *const specials[] = {"\\\"", "\\n", "\\u0041", "\x01", "\xff"};
    static const char *const means[] = {"\"", "\n", "A", "\x01", "\xff"};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    for (int length = 0; length < 300; length += length < 70 ? 1 : 29)
        for (int at = 0; at <= length; at += length < 70 ? 1 : 13)
            for (int k = 0; k < 5; k++) {
                char json[6000], want[6000];
                struct cursor c;
                const uint8_t *text = NULL;
                size_t n = 0, tail = k == 0 ? 5000 : 0;
                snprintf(json, sizeof(json), "{\"s\":\"%.*s%s%.*s\"}%*s", at,
                         "................................................................"
                         "................................................................"
                         "................................................................"
                         "................................................................"
                         "................................................................",
                         specials[k], length - at,
                         "----------------------------------------------------------------"
                         "----------------------------------------------------------------"
                         "----------------------------------------------------------------"
                         "----------------------------------------------------------------"
                         "----------------------------------------------------------------",
                         (int)tail, "");
                memset(want, '.', (size_t)at);
                want[at] = means[k][0];
                memset(want + at + 1, '-', (size_t)(length - at));
                assert_int_equal(fixture_row(&f, json), SPOOL_OK);
                buf_reset(&f.raw);
                assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
                c = cursor_over(f.raw.data + 2 + 2 + 7, f.raw.len - 11);
                assert_int_equal(cursor_string(&c, &text, &n), SPOOL_OK);
                assert_int_equal(n, length + 1);
                assert_memory_equal(text, want, n);
                assert_int_equal(cursor_left(&c), 0);
            }
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_skip_is_the_grammar),
        cmocka_unit_test(test_values_as_cjson),
        cmocka_unit_test(test_end_of_memory),
        cmocka_unit_test(test_string_lengths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
