/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every row of json-to-column.tsv (what ClickHouse 26.7's JSONEachRow makes of a value) through the
 * decoder. What differs on purpose stands in json-differences.tsv; any other difference fails, and
 * so does a row of that file that no longer differs.
 */
#include "decode_fixture.h"

#include <math.h>

#define CORPUS      "tests/data/json-to-column.tsv"
#define DIFFERENCES "tests/data/json-differences.tsv"
#define ROWS_MAX    1024

struct row {
    char *type, *json, *result;
    bool used;
};

static struct row differences[ROWS_MAX];
static size_t difference_count;

static char *field(char **line)
{
    char *start = *line, *tab = strchr(start, '\t');

    if (tab) {
        *tab = 0;
        *line = tab + 1;
    } else {
        *line = start + strlen(start);
    }
    return start;
}

static void load_differences(void)
{
    FILE *f = fopen(DIFFERENCES, "r");
    char *line = NULL;
    size_t room = 0;

    assert_non_null(f);
    while (getline(&line, &room, f) > 0) {
        char *at = line;
        line[strcspn(line, "\n")] = 0;
        if (line[0] == '#' || !line[0])
            continue;
        assert_true(difference_count < ROWS_MAX);
        differences[difference_count].type = strdup(field(&at));
        differences[difference_count].json = strdup(field(&at));
        differences[difference_count].result = strdup(field(&at));
        if (!*field(&at))
            fail_msg("%s: a row without a reason: %s", DIFFERENCES, line);
        difference_count++;
    }
    free(line);
    fclose(f);
}

static struct row *find_difference(const char *type, const char *json)
{
    for (size_t i = 0; i < difference_count; i++)
        if (strcmp(differences[i].type, type) == 0 && strcmp(differences[i].json, json) == 0)
            return &differences[i];
    return NULL;
}

/* \\ and \xHH of the table's JSON column */
static size_t unescape(const char *text, uint8_t *out)
{
    size_t n = 0;

    for (; *text; text++) {
        if (text[0] == '\\' && text[1] == '\\') {
            out[n++] = '\\';
            text++;
        } else if (text[0] == '\\' && text[1] == 'x') {
            char hex[3] = {text[2], text[3], 0};
            out[n++] = (uint8_t)strtoul(hex, NULL, 16);
            text += 3;
        } else {
            out[n++] = (uint8_t)*text;
        }
    }
    return n;
}

static bool is_float(const char *type)
{
    return strstr(type, "Float") && !strstr(type, "Array");
}

/* Floats are compared as numbers: how many digits are printed is not the decoder's. */
static bool same_result(const char *type, const char *expected, const char *got)
{
    double a, b;
    char *end;

    if (strcmp(expected, got) == 0)
        return true;
    if (!is_float(type) || strcmp(expected, "\\N") == 0 || strcmp(got, "\\N") == 0)
        return false;
    if (strstr(type, "BFloat16")) { /* printed with fewer digits than tell two apart */
        a = (double)strtof(expected, &end);
        b = (double)strtof(got, NULL);
        return *end == 0 && fabs(a - b) <= fabs(a) / 1000;
    }
    if (strstr(type, "Float32")) {
        a = (double)strtof(expected, &end);
        b = (double)strtof(got, NULL);
    } else {
        a = strtod(expected, &end);
        b = strtod(got, NULL);
    }
    return *end == 0 && signbit(a) == signbit(b) && (a == b || (isnan(a) && isnan(b)));
}

/* "::1" as the eight groups the fixture prints. */
static void expand_ipv6(const char *text, char *out, size_t room)
{
    static const char *const pairs[][2] = {
        {"2001:db8::1", "2001:db8:0:0:0:0:0:1"},
        {"::ffff:1.2.3.4", "0:0:0:0:0:ffff:102:304"},
        {"::", "0:0:0:0:0:0:0:0"},
    };
    snprintf(out, room, "%s", text);
    for (size_t i = 0; i < 3; i++)
        if (strcmp(text, pairs[i][0]) == 0)
            snprintf(out, room, "%s", pairs[i][1]);
}

static int failures;

static void judge(const char *type, const char *json, const char *expected, int status,
                  struct fixture *f, const char *text)
{
    struct row *difference = find_difference(type, json);
    char got[4096], wide[4096];
    bool same;

    if (status == SPOOL_OK)
        snprintf(got, sizeof(got), "%s", text);
    else
        snprintf(got, sizeof(got), "REFUSED %s", refusal_name(f->why.code));
    expand_ipv6(expected, wide, sizeof(wide));
    /* a JSON column goes as the text it came in: what the server makes of that is the server's */
    if (strncmp(type, "JSON", 4) == 0 && strncmp(expected, "ERROR", 5) != 0)
        snprintf(wide, sizeof(wide), "%s", strcmp(json, "null") == 0 ? "{}" : json);
    if (strncmp(expected, "ERROR", 5) == 0 || strcmp(expected, "UNREADABLE") == 0)
        same = status == SPOOL_E_REFUSED;
    else
        same = status == SPOOL_OK && same_result(type, wide, got);
    if (difference) {
        difference->used = true;
        if (same) {
            fprintf(stderr, "no difference any more: %s\t%s\n", type, json);
            failures++;
        } else if (strcmp(difference->result, got) != 0) {
            fprintf(stderr, "%s\t%s: %s, the differences say %s\n", type, json, got,
                    difference->result);
            failures++;
        }
    } else if (!same) {
        fprintf(stderr, "%s\t%s\t%s\twant %s (%s)\n", type, json, got, expected, f->why.reason);
        failures++;
    }
}

static bool try_value(const char *type, const char *json, const char *expected)
{
    struct column_wish wish = {.name = "c", .type = type};
    struct schema_options options = {.wishes = &wish, .wish_count = 1};
    struct fixture f;
    struct type *parsed = NULL;
    uint8_t record[4096] = "{\"c\":";
    size_t n = 5;
    int status;

    if (type_parse(type, strlen(type), &parsed, NULL) != SPOOL_OK)
        return false;
    type_free(parsed);
    status = fixture_open(&f, &options);
    if (status == SPOOL_E_UNSUPPORTED) {
        fixture_close(&f);
        return false;
    }
    assert_int_equal(status, SPOOL_OK);
    n += unescape(json, record + n);
    record[n++] = '}';
    status = fixture_row_bytes(&f, record, n);
    assert_true(status == SPOOL_OK || status == SPOOL_E_REFUSED);
    judge(type, json, expected, status, &f, status == SPOOL_OK ? fixture_text(&f) : "");
    if (status == SPOOL_E_REFUSED) {
        /* nothing stayed behind: a good row gives one row, and the refused one no bytes */
        struct buf alone;
        buf_init(&alone, FIXTURE_MAX);
        assert_int_equal(decoder_rows(f.decoder), 0);
        assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
        assert_int_equal(decoder_finish(f.decoder, &alone), SPOOL_OK);
        assert_int_equal(fixture_row_bytes(&f, record, n), SPOOL_E_REFUSED);
        assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
        assert_int_equal(fixture_row_bytes(&f, record, n), SPOOL_E_REFUSED);
        buf_reset(&f.raw);
        assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
        assert_int_equal(f.raw.len, alone.len);
        assert_memory_equal(f.raw.data, alone.data, alone.len);
        buf_free(&alone);
    }
    fixture_close(&f);
    return true;
}

#define ROW_ABND                                                                                   \
    "ROW(a UInt32 DEFAULT 7, b String DEFAULT concat('d', toString(a)), n Nullable(Int32), d "     \
    "DateTime DEFAULT toDateTime(100))"

/* The tables of the corpus. The server's part of b's DEFAULT is played here. */
static bool try_row(const char *type, const char *json, const char *expected)
{
    static const struct column_wish abnd[] = {
        {.name = "a", .type = "UInt32", .default_json = "7"},
        {.name = "b", .type = "String", .default_json = "\"<server>\""},
        {.name = "n", .type = "Nullable(Int32)"},
        {.name = "d", .type = "DateTime", .default_json = "100"},
    };
    static const struct column_wish nested[] = {
        {.name = "k", .type = "UInt8"},
        {.name = "n.a", .type = "Array(UInt8)"},
        {.name = "n.b", .type = "Array(String)"},
    };
    static const struct column_wish only_a[] = {{.name = "a", .type = "UInt8"}};
    struct schema_options options = {0};
    struct fixture f;
    uint8_t record[4096];
    char text[4096] = "";
    size_t n = unescape(json, record);
    int status;

    if (strcmp(type, ROW_ABND) == 0) {
        options.wishes = abnd;
        options.wish_count = 4;
    } else if (strncmp(type, "ROW(k ", 6) == 0) {
        options.wishes = nested;
        options.wish_count = 3;
    } else {
        options.wishes = only_a;
        options.wish_count = 1;
    }
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    status = fixture_row_bytes(&f, record, n);
    if (status == SPOOL_OK) {
        const char *got = fixture_text(&f);
        const char *mark = strstr(got, "<server>");
        long a = strtol(got, NULL, 10);
        if (mark)
            snprintf(text, sizeof(text), "%.*sd%ld%s", (int)(mark - got), got, a, mark + 8);
        else
            snprintf(text, sizeof(text), "%s", got);
    }
    judge(type, json, expected, status, &f, text);
    fixture_close(&f);
    return true;
}

static void test_corpus(void **state)
{
    FILE *f = fopen(CORPUS, "r");
    char *line = NULL;
    size_t room = 0, done = 0, skipped = 0;

    (void)state;
    assert_non_null(f);
    load_differences();
    while (getline(&line, &room, f) > 0) {
        char *at = line, *type, *json, *expected;
        line[strcspn(line, "\n")] = 0;
        if (line[0] == '#')
            continue;
        type = field(&at);
        json = field(&at);
        expected = field(&at);
        if (strncmp(type, "ROW(", 4) == 0 ? try_row(type, json, expected)
                                          : try_value(type, json, expected))
            done++;
        else
            skipped++;
    }
    free(line);
    fclose(f);
    for (size_t i = 0; i < difference_count; i++)
        if (!differences[i].used) {
            fprintf(stderr, "not in the corpus: %s\t%s\n", differences[i].type,
                    differences[i].json);
            failures++;
        }
    printf("%zu rows, %zu of types that go as JSON text, %zu intended differences\n", done, skipped,
           difference_count);
    for (size_t i = 0; i < difference_count; i++) {
        free(differences[i].type);
        free(differences[i].json);
        free(differences[i].result);
    }
    assert_int_equal(failures, 0);
    assert_int_equal(skipped, 0);
    assert_int_equal(done, 752);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_corpus)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
