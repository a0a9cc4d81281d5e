/* SPDX-License-Identifier: Apache-2.0 */
/* The words of a question about a batch, and about its being refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/ask_int.h"
#include "sink/error_class.h"
#include "sink/sql_text.h"

const char *ask_column_of(const struct schema *schema, enum column_source source)
{
    for (size_t i = 0; i < schema->count; i++)
        if (schema->columns[i].source == source)
            return schema->columns[i].name;
    return NULL;
}

/* A column that holds a name. A FixedString is padded, in what the table says of it and, on old servers,
   where it is compared. */
static int put_name(const struct ask *a, struct buf *sql, const char *column)
{
    const struct table_description *t = batch_table(a->batch);
    bool padded = false;
    int status = SPOOL_OK;

    for (size_t i = 0; t && i < t->column_count; i++)
        padded = padded || (strcmp(t->columns[i].name, column) == 0 &&
                            strstr(t->columns[i].type, "FixedString"));
    if (padded)
        status = buf_append_str(sql, "toStringCutToZero(");
    if (status == SPOOL_OK)
        status = sql_identifier(sql, column);
    return status == SPOOL_OK && padded ? buf_append_str(sql, ")") : status;
}

/* From the origin's name, kafka/<topic>/<partition>; a topic's name holds no slash. */
static int put_topic_partition(const struct ask *a, struct buf *sql, const char *topic,
                               const char *partition, const char *name)
{
    const char *slash = strrchr(name, '/');
    char text[300];
    int status;

    if (strncmp(name, "kafka/", 6) != 0 || slash < name + 6)
        return SPOOL_E_INVALID;
    snprintf(text, sizeof(text), "%.*s", (int)(slash - name - 6), name + 6);
    status = put_name(a, sql, topic);
    if (status == SPOOL_OK)
        status = buf_append_str(sql, " = ");
    if (status == SPOOL_OK)
        status = sql_string(sql, text);
    if (status == SPOOL_OK)
        status = buf_append_str(sql, " AND ");
    if (status == SPOOL_OK)
        status = sql_identifier(sql, partition);
    return status == SPOOL_OK ? buf_printf(sql, " = %ld", strtol(slash + 1, NULL, 10)) : status;
}

/* The origin of a row as its number among those asked for, from 1 on: a name in each line would make the
   answer about a large batch longer than any that is read. */
static int put_number(const struct ask *a, struct buf *sql, const char *origin, const char *topic,
                      const char *partition)
{
    int status = buf_append_str(sql, "transform(");

#define PUT(call) status = status == SPOOL_OK ? (call) : status
    if (origin) {
        PUT(buf_append_str(sql, "toString("));
        PUT(put_name(a, sql, origin));
        PUT(buf_append_str(sql, ")"));
    } else {
        PUT(buf_append_str(sql, "concat('kafka/', toString("));
        PUT(put_name(a, sql, topic));
        PUT(buf_append_str(sql, "), '/', toString("));
        PUT(sql_identifier(sql, partition));
        PUT(buf_append_str(sql, "))"));
    }
    for (size_t i = 0; i < a->origin_count; i++) {
        PUT(buf_append_str(sql, i ? ", " : ", ["));
        PUT(sql_string(sql, a->origins[i].origin->name));
    }
    for (size_t i = 0; i < a->origin_count; i++)
        PUT(buf_printf(sql, "%s%zu", i ? ", " : "], [", i + 1));
    PUT(buf_append_str(sql, "], 0)"));
#undef PUT
    return status;
}

/* SELECT <origin's number>, <offset> FROM <table> WHERE (<origin 1> AND offset BETWEEN) OR ... */
int ask_statement(const struct ask *a, struct buf *sql)
{
    const struct stream_schema *ss = batch_schema(a->batch);
    const char *origin = ask_column_of(ss->schema, SOURCE_ORIGIN);
    const char *topic = ask_column_of(ss->schema, SOURCE_TOPIC);
    const char *partition = ask_column_of(ss->schema, SOURCE_PARTITION);
    const char *offset = ask_column_of(ss->schema, SOURCE_OFFSET);
    int status = buf_append_str(sql, "SELECT ");

#define PUT(call) status = status == SPOOL_OK ? (call) : status
    PUT(put_number(a, sql, origin, topic, partition));
    PUT(buf_append_str(sql, ", "));
    PUT(sql_identifier(sql, offset));
    PUT(buf_append_str(sql, " FROM "));
    PUT(buf_append_str(sql, ss->target->destination));
    PUT(buf_append_str(sql, " WHERE "));
    for (size_t i = 0; i < a->origin_count; i++) {
        const struct ask_origin *o = &a->origins[i];
        PUT(buf_append_str(sql, i ? " OR (" : "("));
        if (origin) {
            PUT(put_name(a, sql, origin));
            PUT(buf_append_str(sql, " = "));
            PUT(sql_string(sql, o->origin->name));
        } else {
            PUT(put_topic_partition(a, sql, topic, partition, o->origin->name));
        }
        PUT(buf_append_str(sql, " AND "));
        PUT(sql_identifier(sql, offset));
        PUT(buf_printf(sql, " >= %lld AND ", (long long)o->low));
        PUT(sql_identifier(sql, offset));
        PUT(buf_printf(sql, " <= %lld)", (long long)o->high));
    }
    PUT(buf_append_str(sql, " FORMAT TabSeparated"));
#undef PUT
    return status;
}

void ask_advice(const struct ask *a, int code, char *text, size_t size)
{
    const char *advice = error_question_advice(code);

    if (error_is_of_rights(code))
        snprintf(text, size, ": spoold's user needs SELECT on %s and system.processes",
                 batch_schema(a->batch)->target->destination);
    else
        snprintf(text, size, "%s%s", advice[0] ? ": " : "", advice);
}
