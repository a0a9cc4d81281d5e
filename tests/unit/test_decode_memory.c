/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every allocation fails once: the decoder answers SPOOL_E_NOMEM (or says what it could not make),
 * keeps what it had, and goes on when there is memory again.
 */
#include "decode_fixture.h"

static volatile long allocations_left = -1; /* -1: without limit */
static volatile long live;                  /* allocated and not freed */

#ifndef __SANITIZE_ADDRESS__
/* Taking the allocator's place is the sanitizer's own trick, so these stand only without it. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void __libc_free(void *old);

static bool allocation_fails(void)
{
    if (allocations_left < 0)
        return false;
    if (allocations_left == 0)
        return true;
    allocations_left--;
    return false;
}

void *malloc(size_t size)
{
    void *p = allocation_fails() ? NULL : __libc_malloc(size);
    live += p != NULL;
    return p;
}

void *calloc(size_t count, size_t size)
{
    void *p = allocation_fails() ? NULL : __libc_calloc(count, size);
    live += p != NULL;
    return p;
}

void *realloc(void *old, size_t size)
{
    void *p = allocation_fails() ? NULL : __libc_realloc(old, size);
    live += p != NULL && !old;
    return p;
}

void free(void *old)
{
    live -= old != NULL;
    __libc_free(old);
}
#endif

/* Not under the sanitizer nor valgrind, which puts its own allocator in front of these. */
static bool can_fail(void)
{
    void *volatile p;

    allocations_left = 0;
    p = malloc(1);
    allocations_left = -1;
    free(p);
    return p == NULL;
}

static const struct column_wish wishes[] = {
    {.name = "a", .type = "UInt32", .default_json = "7"},
    {.name = "s", .type = "Nullable(String)"},
    {.name = "t", .type = "DateTime64(3, 'Europe/Berlin')"},
    {.name = "v", .type = "Array(Array(String))", .from = "o.v"},
    {.name = "e", .type = "Enum8('x' = 1)"},
    {.name = "r", .type = "String", .from = "$rest"},
    {.name = "o", .type = "String", .from = "$origin"},
    {.name = "h", .type = "String", .from = "$headers"},
    {.name = "n", .type = "Tuple(a Int256, b Nullable(Decimal(50, 1)))"},
    {.name = "m", .type = "Map(String, Array(Time64(3)))"},
    {.name = "j", .type = "Array(JSON)"},
    {.name = "i", .type = "Array(Variant(Array(Int8), String))"},
    {.name = "l", .type = "Array(LowCardinality(Nullable(String)))"},
    {.name = "c", .type = "LowCardinality(String)", .default_json = "\"c\""},
};

/* LowCardinality has its own form there; what that server has not is not asked for either. */
static const struct server_version versions[] = {{26, 7, 0}, {18, 16, 1}};

static int open_for(struct fixture *f, size_t version)
{
    struct schema_options options = {.wishes = wishes,
                                     .wish_count = sizeof(wishes) / sizeof(wishes[0])};
    struct buf problems;
    int status = fixture_open(f, &options);

    if (status != SPOOL_OK || version == 0)
        return status;
    decoder_free(f->decoder);
    schema_free(f->schema);
    buf_init(&problems, MIB);
    status = schema_from_wishes(&options, versions[version], "UTC", &f->schema, &problems);
    buf_free(&problems);
    assert_int_equal(status, SPOOL_OK);
    status = decoder_create(f->schema, FIXTURE_MAX, &f->decoder, NULL);
    assert_int_equal(status, SPOOL_OK);
    return decoder_begin(f->decoder, &(struct record_place){"origin", "topic", 1});
}

static const char json[] =
    "{\"n\":{\"b\":1.5},\"m\":{\"k\":[\"1:02:03\"]},\"j\":[{\"a\":[{\"b\":1}]}],"
    "\"i\":[[1,2],\"x\"],\"l\":[\"x\",null,\"y\"],\"s\":\"esc\\n\",\"t\":\"2026-11-23 "
    "12:34:56\",\"zz\":[1],"
    "\"o\":{\"v\":[[\"p\",\"q\"],[]]},\"e\":\"\\u0078\"}";

static const struct record record = {
    .data = (const uint8_t *)json, .size = sizeof(json) - 1, .timestamp_ms = -1};

/* From nothing to a block; the first status that isn't OK. */
static int whole_life(const struct schema *schema, struct buf *raw)
{
    struct decoder *d = NULL;
    struct refusal why;
    struct spool_error error = {0};
    int status = decoder_create(schema, MIB, &d, &error);

    if (status != SPOOL_OK) {
        assert_null(d);
        assert_true(error.text[0] != 0);
        return status;
    }
    status = decoder_begin(d, &(struct record_place){"origin", "topic", 1});
    if (status == SPOOL_OK)
        status = decoder_row(d, &record, &why);
    if (status == SPOOL_OK)
        status = decoder_finish(d, raw);
    decoder_free(d);
    return status;
}

static void every_allocation(size_t version)
{
    struct fixture f;
    struct buf raw;
    int status = SPOOL_E_NOMEM;
    long n = 0;

    if (!can_fail())
        skip();
    assert_int_equal(open_for(&f, version), SPOOL_OK);
    for (; status != SPOOL_OK; n++) {
        long before = live;
        buf_init(&raw, MIB);
        allocations_left = n;
        status = whole_life(f.schema, &raw);
        allocations_left = -1;
        /* opening the zone's file is the C library's: it says I/O */
        assert_true(status == SPOOL_OK || status == SPOOL_E_NOMEM || status == SPOOL_E_IO);
        buf_free(&raw);
        assert_int_equal(live, before);
        assert_true(n < 1000);
    }
    assert_true(n > 40);
    fixture_close(&f);
}

static void test_every_allocation(void **state)
{
    (void)state;
    every_allocation(0);
}

static void test_every_allocation_old(void **state)
{
    (void)state;
    every_allocation(1);
}

/* A row that fails for want of memory leaves the block as it was. */
static void rows_go_on(size_t version)
{
    struct fixture f;
    int failed = 0;

    if (!can_fail())
        skip();
    assert_int_equal(open_for(&f, version), SPOOL_OK);
    for (int i = 0; i < 3000; i++) {
        uint32_t rows = decoder_rows(f.decoder);
        size_t bytes = decoder_raw_bytes(f.decoder);
        int status;
        allocations_left = i % 3;
        status = decoder_row(f.decoder, &record, &f.why);
        allocations_left = -1;
        if (status != SPOOL_OK) {
            assert_int_equal(status, SPOOL_E_NOMEM);
            assert_int_equal(decoder_rows(f.decoder), rows);
            assert_int_equal(decoder_raw_bytes(f.decoder), bytes);
            assert_int_equal(decoder_row(f.decoder, &record, &f.why), SPOOL_OK);
            failed++;
        }
        assert_int_equal(decoder_rows(f.decoder), rows + 1);
    }
    assert_true(failed > 5);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    fixture_close(&f);
}

static void test_rows_go_on(void **state)
{
    (void)state;
    rows_go_on(0);
}

static void test_rows_go_on_old(void **state)
{
    (void)state;
    rows_go_on(1);
}

/* Once its buffers have grown, the decoder asks for no memory, however many records come. */
static void no_allocation_per_record(size_t version)
{
    struct fixture f;

    if (!can_fail())
        skip();
    assert_int_equal(open_for(&f, version), SPOOL_OK);
    for (int block = 0; block < 4; block++) {
        for (int i = 0; i < 4000; i++) {
            allocations_left = block < 2 ? -1 : 0;
            int status = decoder_row(f.decoder, &record, &f.why);
            allocations_left = -1;
            assert_int_equal(status, SPOOL_OK);
        }
        buf_reset(&f.raw);
        assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    }
    fixture_close(&f);
}

static void test_no_allocation_per_record(void **state)
{
    (void)state;
    no_allocation_per_record(0);
}

static void test_no_allocation_per_record_old(void **state)
{
    (void)state;
    no_allocation_per_record(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_rows_go_on),
        cmocka_unit_test(test_every_allocation_old),
        cmocka_unit_test(test_rows_go_on_old),
        cmocka_unit_test(test_no_allocation_per_record),
        cmocka_unit_test(test_no_allocation_per_record_old),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
