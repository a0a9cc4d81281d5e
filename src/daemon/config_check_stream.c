/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold of streams and their columns. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/type.h"
#include "daemon/config_int.h"

/* A name and where it stands, to find doubles by sorting. */
struct named {
    const char *name;
    size_t order; /* in the file */
    size_t at;
    char path[OPTION_PATH_BYTES];
};

static int compare_named(const void *a, const void *b)
{
    const struct named *x = a, *y = b;
    int order = strcmp(x->name, y->name);

    return order ? order : x->order < y->order ? -1 : 1;
}

/* Fails at the later one of two equal names; `one` names the kind. */
static int refuse_doubles(struct reader *r, struct named *list, size_t count, const char *what)
{
    qsort(list, count, sizeof(*list), compare_named);
    for (size_t i = 1; i < count; i++)
        if (strcmp(list[i - 1].name, list[i].name) == 0)
            return reader_fail(r, SPOOL_E_INVALID, list[i].at, list[i].path,
                               "%s \"%.100s\" is %s already", what, list[i].name, list[i - 1].path);
    return SPOOL_OK;
}

static int check_stream_name(struct reader *r, const char *name, size_t at, const char *path)
{
    size_t n = strlen(name);

    if (n > LIMIT_STREAM_NAME_BYTES)
        return reader_fail(r, SPOOL_E_INVALID, at, path, "has %zu bytes; %d are allowed", n,
                           LIMIT_STREAM_NAME_BYTES);
    if (name[strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-")])
        return reader_fail(r, SPOOL_E_INVALID, at, path,
                           "may have lower case letters, digits, _ and - only, but is \"%.64s\"",
                           name);
    return SPOOL_OK;
}

static int check_topic(struct reader *r, const char *topic, size_t at, const char *path)
{
    if (topic[0] == '^')
        return reader_fail(r, SPOOL_E_INVALID, at, path,
                           "patterns are not supported; list the topics by their names");
    if (strlen(topic) > 249 ||
        topic[strspn(topic, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")])
        return reader_fail(r, SPOOL_E_INVALID, at, path,
                           "is no name of a topic: letters, digits, . _ and -, at most 249");
    return SPOOL_OK;
}

/* "db.table" where no database is given. */
static int split_table(struct reader *r, struct stream_options *s)
{
    const char *dot = strchr(s->table, '.');

    if (s->database || !dot || dot == s->table || !dot[1] || strchr(dot + 1, '.'))
        return SPOOL_OK;
    s->database = arena_copy(r->arena, s->table, (size_t)(dot - s->table));
    s->table = dot + 1;
    return s->database ? SPOOL_OK : reader_out_of_memory(r);
}

static int check_from(struct reader *r, const struct json_node *node, const char *from,
                      const char *where)
{
    static const char *const FACTS[] = {"$record", "$rest",        "$topic",     "$partition",
                                        "$offset", "$key",         "$timestamp", "$headers",
                                        "$origin", "$received_at", NULL};
    char path[OPTION_PATH_BYTES];
    const char *nearest;

    path_set(path, "%s.from", where);
    if (from[0] == '$') {
        for (size_t i = 0; FACTS[i]; i++)
            if (strcmp(FACTS[i], from) == 0)
                return SPOOL_OK;
        nearest = word_nearest(FACTS, from);
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "from"), path,
                           "\"%.60s\" is no fact of a record%s%s%s", from,
                           nearest ? "; did you mean \"" : "", nearest ? nearest : "",
                           nearest ? "\"?" : "");
    }
    if (from[0] == '.' || from[strlen(from) - 1] == '.' || strstr(from, ".."))
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "from"), path,
                           "\"%.60s\" has an empty key between its dots", from);
    return SPOOL_OK;
}

static int check_type(struct reader *r, const struct json_node *node, const char *type,
                      const char *where)
{
    struct spool_error error = {0};
    struct type *parsed = NULL;
    char path[OPTION_PATH_BYTES];

    if (type_parse(type, strlen(type), &parsed, &error) == SPOOL_OK) {
        type_free(parsed);
        return SPOOL_OK;
    }
    path_set(path, "%s.type", where);
    return reader_fail(r, SPOOL_E_INVALID, member_at(node, "type"), path, "%s", error.text);
}

static int check_column(struct reader *r, const struct stream_options *s,
                        const struct json_node *node, const struct column_wish *wish,
                        const char *where)
{
    const char *contradiction = NULL;

    if (wish->value && wish->from)
        contradiction = "value and from can't both be given";
    else if (wish->value && wish->default_json)
        contradiction = "a column with a value needs no default";
    else if (wish->value && wish->required)
        contradiction = "a column with a value is never missing; remove required";
    else if (wish->required && wish->default_json)
        contradiction = "required refuses a record without the key, so default has no use; remove "
                        "one of them";
    else if (s->create_table && !wish->type)
        contradiction = "needs a type: create_table makes the table of these columns";
    if (contradiction)
        return reader_fail(r, SPOOL_E_INVALID, node->at, where, "%s", contradiction);
    if (wish->type && check_type(r, node, wish->type, where) != SPOOL_OK)
        return SPOOL_E_INVALID;
    return wish->from ? check_from(r, node, wish->from, where) : SPOOL_OK;
}

static int check_columns(struct reader *r, const struct stream_options *s,
                         const struct json_node *stream, const char *where)
{
    const struct json_node *columns = json_member(stream, "columns"), *node;
    struct named *names;
    char path[OPTION_PATH_BYTES];
    size_t i = 0;

    if (!columns) {
        if (!s->create_table)
            return SPOOL_OK;
        path_set(path, "%s.create_table", where);
        return reader_fail(r, SPOOL_E_INVALID, member_at(stream, "create_table"), path,
                           "needs columns, each with a type, to make the table of");
    }
    names = calloc(columns->count + 1, sizeof(*names));
    if (!names)
        return reader_out_of_memory(r);
    for (node = columns->child; node; node = node->next, i++) {
        path_set(path, "%s.columns[%zu]", where, i);
        if (check_column(r, s, node, &s->schema.wishes[i], path) != SPOOL_OK)
            break;
        names[i] = (struct named){s->schema.wishes[i].name, i, member_at(node, "name"), {0}};
        path_set(names[i].path, "%s.name", path);
    }
    int status = node ? r->error->status : refuse_doubles(r, names, i, "the column");
    free(names);
    return status;
}

/* What is given by default gives way to a small spool; what is asked for does not. */
static int check_sizes(struct reader *r, struct stream_options *s, const struct json_node *node,
                       const char *where)
{
    const struct pipeline_options *p = &r->config->pipeline;
    /* A block of one record must find room, also when each stream's newest segment holds such a
       one, which stays. */
    uint64_t record = p->max_bytes / 2 / (p->stream_count + 1);
    uint64_t letters = p->max_bytes / 4 / p->stream_count;
    char path[OPTION_PATH_BYTES], text[32];

    if (!json_member(node, "max_record_bytes") && s->max_record_bytes > record)
        s->max_record_bytes = record;
    if (!json_member(json_member(node, "dead_letters"), "max_bytes") &&
        s->dead_letters_max_bytes > letters)
        s->dead_letters_max_bytes = letters > MIB ? letters : MIB;
    if (s->max_record_bytes <= record)
        return SPOOL_OK;
    path_set(path, "%s.max_record_bytes", where);
    return reader_fail(r, SPOOL_E_INVALID, member_at(node, "max_record_bytes"), path,
                       "is more than the spool has room for: at most %s with this spool.max_bytes "
                       "and so many streams",
                       option_size_text(record / KIB * KIB, text, sizeof(text)));
}

/* The columns that origin_columns adds, unless a configured one takes the same fact. */
static int add_origin_columns(struct reader *r, struct stream_options *s,
                              const struct json_node *stream, const char *where)
{
    static const struct column_wish added[] = {
        {.name = "topic", .type = "String", .from = "$topic"},
        {.name = "partition", .type = "Int32", .from = "$partition"},
        {.name = "offset", .type = "Int64", .from = "$offset"},
    };
    size_t count = s->schema.wish_count;
    struct column_wish *wishes =
        arena_alloc(r->arena, (count + sizeof(added) / sizeof(added[0])) * sizeof(*wishes));
    char path[OPTION_PATH_BYTES];

    if (!wishes)
        return reader_out_of_memory(r);
    memcpy(wishes, s->schema.wishes, count * sizeof(*wishes));
    for (size_t i = 0; i < sizeof(added) / sizeof(added[0]); i++) {
        bool taken = false;
        for (size_t k = 0; k < s->schema.wish_count && !taken; k++) {
            const struct column_wish *wish = &s->schema.wishes[k];
            taken = wish->from && strcmp(wish->from, added[i].from) == 0;
            if (taken || strcmp(wish->name, added[i].name) != 0)
                continue;
            path_set(path, "%s.columns[%zu].name", where, k);
            return reader_fail(
                r, SPOOL_E_INVALID, member_at(element(json_member(stream, "columns"), k), "name"),
                path, "origin_columns makes a column \"%s\" from %s: give this one another name",
                added[i].name, added[i].from);
        }
        if (!taken)
            wishes[count++] = added[i];
    }
    s->schema.wishes = wishes;
    s->schema.wish_count = count;
    return SPOOL_OK;
}

static int check_stream(struct reader *r, struct stream_options *s, const struct json_node *node,
                        size_t i)
{
    const struct json_node *topics = json_member(node, "topics");
    char where[OPTION_PATH_BYTES], path[OPTION_PATH_BYTES];
    int status;

    path_set(where, "streams[%zu]", i);
    path_set(path, "%s.name", where);
    status = check_stream_name(r, s->name, member_at(node, "name"), path);
    for (size_t k = 0; k < s->topic_count && status == SPOOL_OK; k++) {
        path_set(path, "%s.topics[%zu]", where, k);
        status = check_topic(r, s->topics[k], element(topics, k)->at, path);
    }
    if (status == SPOOL_OK)
        status = check_sizes(r, s, node, where);
    if (status == SPOOL_OK)
        status = split_table(r, s);
    if (status == SPOOL_OK)
        status = check_columns(r, s, node, where);
    return status == SPOOL_OK && s->origin_columns ? add_origin_columns(r, s, node, where) : status;
}

/* Whether letters for that table would go into the one of the stream's rows. */
static bool is_own_table(const struct pipeline_options *p, const struct stream_options *s,
                         const char *table)
{
    const char *dot = strchr(table, '.');
    const char *own = s->database ? s->database : p->clickhouse.database;

    if (strcmp(dot ? dot + 1 : table, s->table) != 0)
        return false;
    if (!own)
        own = "default";
    return !dot || (strlen(own) == (size_t)(dot - table) && strncmp(table, own, strlen(own)) == 0);
}

/* Letters must not come back as records, nor go into the rows' own table. */
static int check_dead_letters(struct reader *r, const struct json_node *streams)
{
    const struct pipeline_options *p = &r->config->pipeline;
    const struct json_node *node = streams->child;
    char path[OPTION_PATH_BYTES];
    int status = SPOOL_OK;

    for (size_t i = 0; node && status == SPOOL_OK; node = node->next, i++) {
        const struct stream_options *s = &p->streams[i];
        const struct json_node *letters = json_member(node, "dead_letters");
        const char *topic = s->dead_letters_topic, *table = s->dead_letters_table;

        path_set(path, "streams[%zu].dead_letters.table", i);
        if (table && is_own_table(p, s, table))
            return reader_fail(r, SPOOL_E_INVALID, member_at(letters, "table"), path,
                               "is the table of the stream's own rows");
        path_set(path, "streams[%zu].dead_letters.topic", i);
        if (!topic)
            continue;
        status = check_topic(r, topic, member_at(letters, "topic"), path);
        for (size_t k = 0; k < p->stream_count && status == SPOOL_OK; k++)
            for (size_t t = 0; t < p->streams[k].topic_count; t++)
                if (strcmp(p->streams[k].topics[t], topic) == 0)
                    return reader_fail(
                        r, SPOOL_E_INVALID, member_at(letters, "topic"), path,
                        "is a topic that stream \"%s\" reads: its letters would come "
                        "back as records",
                        p->streams[k].name);
    }
    return status;
}

/* Stream names and topics are each unique over the whole file. */
static int check_names(struct reader *r, const struct json_node *streams)
{
    const struct pipeline_options *p = &r->config->pipeline;
    struct named *names, *topics;
    size_t total = 0, n = 0, i = 0;
    int status;

    for (size_t k = 0; k < p->stream_count; k++)
        total += p->streams[k].topic_count;
    names = calloc(p->stream_count + 1, sizeof(*names));
    topics = calloc(total + 1, sizeof(*topics));
    if (!names || !topics) {
        free(names);
        free(topics);
        return reader_out_of_memory(r);
    }
    for (const struct json_node *node = streams->child; node; node = node->next, i++) {
        const struct json_node *topic = json_member(node, "topics");
        names[i] = (struct named){p->streams[i].name, i, member_at(node, "name"), {0}};
        path_set(names[i].path, "streams[%zu].name", i);
        topic = topic ? topic->child : NULL;
        for (size_t k = 0; topic; topic = topic->next, k++, n++) {
            topics[n] = (struct named){p->streams[i].topics[k], n, topic->at, {0}};
            path_set(topics[n].path, "streams[%zu].topics[%zu]", i, k);
        }
    }
    status = refuse_doubles(r, names, i, "the name");
    if (status == SPOOL_OK)
        status = refuse_doubles(r, topics, n, "a topic belongs to one stream, and");
    free(names);
    free(topics);
    return status;
}

int config_check_streams(struct reader *r)
{
    const struct json_node *streams = json_member(r->root, "streams");
    /* The list is ours until the configuration is handed out. */
    struct stream_options *list = (struct stream_options *)(uintptr_t)r->config->pipeline.streams;
    size_t i = 0;
    int status = SPOOL_OK;

    for (const struct json_node *node = streams->child; node; node = node->next, i++) {
        status = check_stream(r, &list[i], node, i);
        if (status != SPOOL_OK)
            return status;
    }
    status = check_names(r, streams);
    return status == SPOOL_OK ? check_dead_letters(r, streams) : status;
}
