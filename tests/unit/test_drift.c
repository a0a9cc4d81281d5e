/* SPDX-License-Identifier: Apache-2.0 */
/* Which partition keys let equal rows fall elsewhere when they are inserted again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "pipeline/drift.h"

#define COLUMN(n, kind, expression)                                                                \
    {                                                                                              \
        .name = (char *)(uintptr_t)n, .type = (char *)(uintptr_t) "UInt64",                        \
        .default_kind = (char *)(uintptr_t)kind,                                                   \
        .default_expression = (char *)(uintptr_t)expression                                        \
    }

static struct table_column columns[] = {
    COLUMN("id", "", ""),
    COLUMN("ts", "", ""),
    COLUMN("at", "DEFAULT", "now()"),
    COLUMN("day", "DEFAULT", "toDate(ts)"),
    COLUMN("today", "MATERIALIZED", "toDate(at)"),
    COLUMN("shard", "MATERIALIZED", "rand() % 4"),
    COLUMN("word", "DEFAULT", "concat(\'now()\', \'it\\\'s\')"),
    COLUMN("number", "DEFAULT", "7"),
    COLUMN("odd name", "DEFAULT", "generateUUIDv4()"),
    COLUMN("sure", "DEFAULT", "now()"),
    COLUMN("self", "MATERIALIZED", "self + 1"),
};

static const char *drift(const char *key)
{
    static char name[256];
    static struct schema_column sent[] = {
        {.name = (char *)(uintptr_t) "id"},
        {.name = (char *)(uintptr_t) "at", .default_by_server = true},
        {.name = (char *)(uintptr_t) "sure", .default_by_server = true, .required = true},
    };
    const struct schema schema = {.columns = sent, .count = sizeof(sent) / sizeof(sent[0])};
    const struct table_description table = {.partition_key = (char *)(uintptr_t)key,
                                            .columns = columns,
                                            .column_count = sizeof(columns) / sizeof(columns[0])};

    return partition_drift(&table, &schema, name, sizeof(name));
}

static void test_steady(void **state)
{
    static const char *const keys[] = {"",
                                       "id",
                                       "toYYYYMM(ts)",
                                       "(toMonday(ts), id % 16)",
                                       "day",
                                       "intDiv(id, 1000000)",
                                       "word",
                                       "number",
                                       "toStartOfInterval(ts, toIntervalDay(1))",
                                       "sure",
                                       "if(id IN (1, 2), 'now()', '')",
                                       "cityHash64(id) % 8",
                                       "1e3",
                                       "tuple()"};

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (drift(keys[i]))
            fail_msg("%s: %s", keys[i], drift(keys[i]));
}

static void test_drifting(void **state)
{
    static const char *const keys[][2] = {
        {"at", "at"},
        {"toYYYYMMDD(at)", "at"},
        {"(id % 2, today)", "today"},
        {"shard", "shard"},
        {"`odd name`", "odd name"},
        {"today()", "today"},
        {"dictGet('d', 'region', id)", "dictGet"},
        {"self", "self"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const char *name = drift(keys[i][0]);
        if (!name || strcmp(name, keys[i][1]) != 0)
            fail_msg("%s: %s", keys[i][0], name ? name : "steady");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steady),
                                       cmocka_unit_test(test_drifting)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
