/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cases of the JSON conformance suite by their names, with bytes of our own, twice: as a value
 * that lands in no column, where RFC 8259 decides, and as one for a column, where ClickHouse does.
 * Every other verdict is a line of json-suite-exceptions.tsv, and every line of it one.
 */
#include "decode_fixture.h"

#define SUITE      "tests/data/json-suite.tsv"
#define EXCEPTIONS "tests/data/json-suite-exceptions.tsv"
#define CASES      318
#define BYTES_MAX  16384
#define ROOM       512

static const char *const types[] = {"String", "Array(String)", "Map(String, String)", "Float64"};
#define TYPES (sizeof(types) / sizeof(types[0]))

static struct exception {
    char *name, *where;
    bool used;
} exceptions[ROOM];
static size_t exception_count;
static int failures;

static char *field(char **line)
{
    char *start = *line, *tab = strchr(start, '\t');

    *line = tab ? tab + 1 : start + strlen(start);
    if (tab)
        *tab = 0;
    return start;
}

static size_t unescape(const char *text, uint8_t *out)
{
    size_t n = 0;

    for (; *text; n++) {
        assert_true(n < BYTES_MAX);
        if (text[0] != '\\') {
            out[n] = (uint8_t)*text++;
        } else if (text[1] == 'x') {
            char hex[3] = {text[2], text[3], 0};
            out[n] = (uint8_t)strtoul(hex, NULL, 16);
            text += 4;
        } else {
            out[n] = '\\';
            text += 2;
        }
    }
    return n;
}

/* Calls `each` with every line of a file that is no comment. */
static void for_lines(const char *path, void (*each)(char *line))
{
    FILE *f = fopen(path, "r");
    char *line = NULL;
    size_t room = 0;

    assert_non_null(f);
    while (getline(&line, &room, f) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (line[0] != '#')
            each(line);
    }
    free(line);
    fclose(f);
}

static void add_exception(char *line)
{
    struct exception *e = &exceptions[exception_count++];

    assert_true(exception_count < ROOM);
    e->name = strdup(field(&line));
    e->where = strdup(field(&line));
    if (!*field(&line))
        fail_msg("%s: %s without a reason", EXCEPTIONS, e->name);
}

static bool take_exception(const char *name, const char *where)
{
    for (size_t i = 0; i < exception_count; i++)
        if (strcmp(exceptions[i].name, name) == 0 && strcmp(exceptions[i].where, where) == 0) {
            exceptions[i].used = true;
            return true;
        }
    return false;
}

/* Whether the record {"v": value} becomes a row. type NULL: nobody takes "v". */
static bool taken(const char *type, const uint8_t *value, size_t size, char *why, size_t why_size)
{
    static uint8_t record[BYTES_MAX + 16];
    struct column_wish wish = {.name = type ? "v" : "other", .type = type ? type : "UInt8"};
    struct schema_options options = {.wishes = &wish, .wish_count = 1};
    struct fixture f;
    int status;

    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    memcpy(record, "{\"v\":", 5);
    memcpy(record + 5, value, size);
    record[5 + size] = '}';
    status = fixture_row_bytes(&f, record, size + 6);
    assert_true(status == SPOOL_OK || status == SPOOL_E_REFUSED);
    snprintf(why, why_size, "%s", f.why.reason);
    fixture_close(&f);
    return status == SPOOL_OK;
}

static void judge(const char *name, const char *where, bool wanted, bool got, const char *why)
{
    if (wanted == got || take_exception(name, where))
        return;
    fprintf(stderr, "%s\t%s\t%s (%s)\n", name, where, got ? "is taken" : "is refused", why);
    failures++;
}

static size_t cases;

static void try_case(char *line)
{
    static uint8_t value[BYTES_MAX];
    const char *name = field(&line), *verdict = field(&line);
    size_t size = unescape(field(&line), value);
    char why[256];
    bool got;

    cases++;
    got = taken(NULL, value, size, why, sizeof(why));
    if (*verdict != 'i')
        judge(name, "-", *verdict == 'y', got, why);
    for (size_t i = 0; i < TYPES; i++) {
        const char *server = field(&line);
        assert_true(*server == 'y' || *server == 'n');
        got = taken(types[i], value, size, why, sizeof(why));
        judge(name, types[i], *server == 'y', got, why);
    }
}

static void test_suite(void **state)
{
    (void)state;
    for_lines(EXCEPTIONS, add_exception);
    for_lines(SUITE, try_case);
    assert_int_equal(cases, CASES);
    for (size_t i = 0; i < exception_count; i++) {
        if (!exceptions[i].used) {
            fprintf(stderr, "no exception any more: %s\t%s\n", exceptions[i].name,
                    exceptions[i].where);
            failures++;
        }
        free(exceptions[i].name);
        free(exceptions[i].where);
    }
    assert_int_equal(failures, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_suite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
