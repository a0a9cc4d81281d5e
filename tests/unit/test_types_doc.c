/* SPDX-License-Identifier: Apache-2.0 */
/*
 * docs/types.md against the code: each wire form it names is the one chosen, every type name the
 * parser knows has a row, and every intended difference is in its list.
 */
#include "codec/type_int.h"
#include "decode_fixture.h"

#define PAGE        "docs/types.md"
#define DIFFERENCES "tests/data/json-differences.tsv"
#define RULES       "tests/data/json-difference-rules.tsv"
#define CELLS       5

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char *text = NULL;
    size_t room = 0;

    assert_non_null(f);
    assert_true(getdelim(&text, &room, 0, f) > 0);
    fclose(f);
    return text;
}

/* The wire type that a server of that version gets, in backticks; "refused" where it gets none. */
static void wire_for(const char *type, uint32_t major, char *out, size_t room)
{
    struct column_wish wish = {.name = "c", .type = type};
    struct schema_options options = {.wishes = &wish, .wish_count = 1, .format = FORMAT_NATIVE};
    struct server_version server = {major, 1, 0};
    struct schema *schema = NULL;
    struct buf text;

    buf_init(&text, MIB);
    snprintf(out, room, "refused");
    if (schema_from_wishes(&options, server, "UTC", &schema, &text) == SPOOL_OK) {
        buf_reset(&text);
        assert_int_equal(type_format(schema->columns[0].wire, &text), SPOOL_OK);
        snprintf(out, room, "`%s`", buf_cstr(&text));
    }
    schema_free(schema);
    buf_free(&text);
}

/* "| a | b |" into its cells. */
static size_t split(char *line, char *cells[CELLS])
{
    size_t n = 0;

    for (char *at = line + 2, *end; n < CELLS && (end = strstr(at, "|")) != NULL; at = end + 1) {
        while (*at == ' ')
            at++;
        cells[n++] = at;
        *end = 0;
        for (char *tail = end; tail > at && tail[-1] == ' ';)
            *--tail = 0;
    }
    return n;
}

static void test_wire_forms(void **state)
{
    char *page = read_file(PAGE), *end = strstr(page, "\n## Other names"), *line, *rest;
    bool known[128] = {false};
    size_t rows = 0;

    (void)state;
    assert_non_null(end);
    *end = 0;
    for (line = strtok_r(page, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *cells[CELLS], type[128], wire[256];
        size_t name;
        if (strncmp(line, "| `", 3) != 0)
            continue;
        assert_int_equal(split(line, cells), CELLS);
        snprintf(type, sizeof(type), "%.*s", (int)strlen(cells[0]) - 2, cells[0] + 1);
        assert_true(cells[1][0] != 0);
        wire_for(type, 26, wire, sizeof(wire));
        assert_string_equal(cells[2], wire);
        wire_for(type, 18, wire, sizeof(wire));
        if (strcmp(cells[3], "\xe2\x80\x94") != 0)
            assert_string_equal(cells[3], wire);
        name = strcspn(type, "(");
        for (size_t i = 0; i < type_names_count; i++)
            if (strlen(type_names[i].name) == name && memcmp(type_names[i].name, type, name) == 0)
                known[i] = true;
        rows++;
    }
    assert_true(rows >= type_names_count);
    for (size_t i = 0; i < type_names_count; i++)
        if (!known[i])
            fail_msg(PAGE " has no row for %s", type_names[i].name);
    free(page);
}

/* The canonical name of a type, in a buffer of its own. */
static void canonical(const char *text, struct buf *out)
{
    struct type *type = NULL;

    assert_int_equal(type_parse(text, strlen(text), &type, NULL), SPOOL_OK);
    buf_reset(out);
    assert_int_equal(type_format(type, out), SPOOL_OK);
    assert_non_null(buf_cstr(out));
    type_free(type);
}

static bool listed(const char *list, const char *name, const char *sign)
{
    char text[64];

    snprintf(text, sizeof(text), "`%s%s`", name, sign);
    if (strstr(list, text))
        return true;
    snprintf(text, sizeof(text), "`%s%s(", name, sign);
    return strstr(list, text) != NULL;
}

/* Each name in the list stands for the type in its row, and every one that the parser knows is there. */
static void test_other_names(void **state)
{
    char *page = read_file(PAGE), *list = strstr(page, "\n## Other names"), *end, *line, *rest;
    size_t names = 0;
    struct buf type;

    (void)state;
    assert_non_null(list);
    end = strstr(list, "\n## Where");
    assert_non_null(end);
    *end = 0;
    for (size_t i = 0; i < type_aliases_count; i++) {
        const struct type_alias *a = &type_aliases[i];
        if (strcmp(a->name, "JSON") != 0 && !listed(list, a->name, ""))
            fail_msg(PAGE " does not list %s", a->name);
        if (a->when_unsigned &&
            !(listed(list, a->name, " SIGNED") && listed(list, a->name, " UNSIGNED")))
            fail_msg(PAGE " does not list %s SIGNED or UNSIGNED", a->name);
    }
    buf_init(&type, MIB);
    for (line = strtok_r(list, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *cells[CELLS], *name, *more;
        if (strncmp(line, "| `", 3) != 0)
            continue;
        assert_int_equal(split(line, cells), 2);
        for (name = strtok_r(cells[1], "`", &more); name; name = strtok_r(NULL, "`", &more)) {
            if (name[0] == ',' || name[0] == ' ')
                continue;
            canonical(name, &type);
            if (strncmp(cells[0] + 1, buf_cstr(&type), type.len) != 0 ||
                strcmp(cells[0] + 1 + type.len, "`") != 0)
                fail_msg(PAGE ": %s is %s, not %s", name, buf_cstr(&type), cells[0]);
            names++;
        }
    }
    assert_true(names >= type_aliases_count);
    buf_free(&type);
    free(page);
}

/* One line of the page holds both the reason and the type. */
static bool page_has(const char *page, const char *why, const char *type)
{
    const char *line = page;

    while ((line = strstr(line, why)) != NULL) {
        const char *stop = strchr(line, '\n'), *hit = strstr(line, type);
        if (stop && hit && hit < stop)
            return true;
        line++;
    }
    return false;
}

static void test_differences_are_listed(void **state)
{
    char *page = read_file(PAGE), *table = read_file(DIFFERENCES), *line, *rest;
    size_t rows = 0;

    (void)state;
    for (line = strtok_r(table, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *why = strrchr(line, '\t'), type[256];
        if (line[0] == '#')
            continue;
        assert_non_null(why);
        if (strncmp(line, "ROW(", 4) == 0)
            snprintf(type, sizeof(type), "a record");
        else
            snprintf(type, sizeof(type), "`%.*s`", (int)strcspn(line, "\t"), line);
        if (!page_has(page, why + 1, type))
            fail_msg(PAGE " does not say of %s: %s", type, why + 1);
        rows++;
    }
    assert_true(rows >= 80);
    free(page);
    free(table);
}

/* Each rule's reason stands in the list by rule, with its example's type in the same line. */
static void test_rules_are_listed(void **state)
{
    char *page = read_file(PAGE), *list = strstr(page, "\n## By rule");
    char *table = read_file(RULES), *line, *rest;
    size_t rows = 0;

    (void)state;
    assert_non_null(list);
    for (line = strtok_r(table, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *fields[7], type[256];
        if (line[0] == '#')
            continue;
        for (size_t i = 0; i < 7; i++) {
            fields[i] = strsep(&line, "\t");
            assert_non_null(fields[i]);
        }
        if (strcmp(fields[5], "-") == 0)
            snprintf(type, sizeof(type), "%s", "");
        else
            snprintf(type, sizeof(type), "`%s`", fields[5]);
        if (!page_has(list, fields[4], type))
            fail_msg(PAGE " does not say by rule of %s: %s", fields[5], fields[4]);
        rows++;
    }
    assert_true(rows >= 40);
    free(page);
    free(table);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wire_forms),
        cmocka_unit_test(test_other_names),
        cmocka_unit_test(test_differences_are_listed),
        cmocka_unit_test(test_rules_are_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
