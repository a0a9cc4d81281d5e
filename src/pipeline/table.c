/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table at the other end. A target is described (system.tables, system.columns) whenever an
 * endpoint comes up, after an answer that speaks of the schema, and every ASK_PERIOD_MS; between
 * that and a good answer nothing is sent there. The description is kept in meta, so that spoold
 * starts and ingests while ClickHouse is down.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"
#include "sink/sql_text.h"

#define ASK_PERIOD_MS     60000
#define ASK_RETRY_BASE_MS 500
#define ASK_RETRY_MAX_MS  10000
#define CACHE_VERSION     1

/* --- schemas in use ------------------------------------------------------------------------- */

struct stream_schema *stream_schema_ref(struct stream_schema *ss)
{
    if (ss)
        ss->refs++;
    return ss;
}

void stream_schema_unref(struct stream_schema *ss)
{
    if (!ss || --ss->refs)
        return;
    schema_free(ss->schema);
    buf_free(&ss->serialized);
    free(ss->column_list);
    free(ss);
}

int stream_schema_create(struct schema *schema, struct target *target, struct stream_schema **out)
{
    struct stream_schema *ss = calloc(1, sizeof(*ss));
    struct buf list;
    int status = SPOOL_E_NOMEM;

    buf_init(&list, LIMIT_SCHEMA_BYTES);
    if (!ss) {
        schema_free(schema);
        return status;
    }
    ss->refs = 1;
    ss->schema = schema;
    ss->target = target;
    buf_init(&ss->serialized, LIMIT_SCHEMA_BYTES);
    status = schema_serialize(schema, &ss->serialized);
    if (status == SPOOL_OK)
        status = schema_column_list(schema, &list);
    if (status == SPOOL_OK) {
        const char *text = buf_cstr(&list);
        ss->column_list = text ? strdup(text) : NULL;
        status = ss->column_list ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    buf_free(&list);
    if (status == SPOOL_OK)
        *out = ss;
    else
        stream_schema_unref(ss);
    return status;
}

/* --- targets -------------------------------------------------------------------------------- */

/* `a\`b` -> a`b; returns what follows, NULL where it is none. */
static const char *get_identifier(const char *text, char *out, size_t size)
{
    size_t n = 0;

    if (*text++ != '`')
        return NULL;
    while (*text && *text != '`') {
        if (*text == '\\' && text[1])
            text++;
        if (n + 1 >= size)
            return NULL;
        out[n++] = *text++;
    }
    out[n] = 0;
    return *text == '`' ? text + 1 : NULL;
}

struct target *target_get(struct stream *s, const char *database, const char *table)
{
    struct target **at = &s->targets;
    struct target *t;
    struct buf text;
    int status;

    if (!database)
        database = "default";
    for (; *at; at = &(*at)->next)
        if (strcmp((*at)->database, database) == 0 && strcmp((*at)->table, table) == 0)
            return *at;
    t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    buf_init(&text, 4096);
    status = sql_identifier(&text, database);
    if (status == SPOOL_OK)
        status = buf_put_u8(&text, '.');
    if (status == SPOOL_OK)
        status = sql_identifier(&text, table);
    t->stream = s;
    t->database = strdup(database);
    t->table = strdup(table);
    t->destination = status == SPOOL_OK && buf_cstr(&text) ? strdup((char *)text.data) : NULL;
    buf_free(&text);
    backoff_init(&t->backoff, ASK_RETRY_BASE_MS, ASK_RETRY_MAX_MS, (uint64_t)(uintptr_t)t);
    if (!t->database || !t->table || !t->destination) {
        free(t->database);
        free(t->table);
        free(t->destination);
        free(t);
        return NULL;
    }
    *at = t;
    return t;
}

struct target *target_by_destination(struct stream *s, const char *destination)
{
    char database[1024], table[1024];
    const char *rest = get_identifier(destination, database, sizeof(database));

    if (!rest || *rest != '.')
        return NULL;
    rest = get_identifier(rest + 1, table, sizeof(table));
    if (!rest || *rest)
        return NULL;
    return target_get(s, database, table);
}

void targets_free(struct stream *s)
{
    while (s->targets) {
        struct target *t = s->targets;
        s->targets = t->next;
        table_description_free(t->description);
        free(t->database);
        free(t->table);
        free(t->destination);
        free(t);
    }
}

static bool target_is_configured(const struct target *t)
{
    return t == t->stream->targets;
}

/* --- the cache in meta ---------------------------------------------------------------------- */

static void cache_key(const struct target *t, char *key, size_t size)
{
    snprintf(key, size, "table/%u/%.300s", t->stream->id, t->destination);
}

/* u8 version, u32le x 3 server version, string timezone, u8 deduplicates, u32le columns, then per
   column strings name, type, default kind, default expression. */
static int cache_put(const struct table_description *d, struct buf *out)
{
    int status = buf_put_u8(out, CACHE_VERSION);

    if (status == SPOOL_OK)
        status = buf_put_u32le(out, d->server.major);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, d->server.minor);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, d->server.patch);
    if (status == SPOOL_OK)
        status = buf_put_string(out, d->server_timezone ? d->server_timezone : "",
                                d->server_timezone ? strlen(d->server_timezone) : 0);
    if (status == SPOOL_OK)
        status = buf_put_u8(out, d->deduplicates);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, (uint32_t)d->column_count);
    for (size_t i = 0; i < d->column_count && status == SPOOL_OK; i++) {
        const struct table_column *c = &d->columns[i];
        const char *texts[4] = {c->name, c->type, c->default_kind, c->default_expression};
        for (size_t k = 0; k < 4 && status == SPOOL_OK; k++)
            status = buf_put_string(out, texts[k] ? texts[k] : "", texts[k] ? strlen(texts[k]) : 0);
    }
    return status;
}

static int cache_string(struct cursor *c, char **out)
{
    const uint8_t *data = NULL;
    size_t n = 0;

    if (cursor_string(c, &data, &n) != SPOOL_OK)
        return SPOOL_E_CORRUPT;
    *out = strndup((const char *)data, n);
    return *out ? SPOOL_OK : SPOOL_E_NOMEM;
}

static int cache_get(const void *data, size_t size, struct table_description **out)
{
    struct table_description *d = calloc(1, sizeof(*d));
    struct cursor c = cursor_over(data, size);
    uint8_t version = 0, dedup = 0;
    uint32_t count = 0;
    int status = d ? SPOOL_OK : SPOOL_E_NOMEM;

    if (!d)
        return status;
    status = cursor_u8(&c, &version);
    if (status == SPOOL_OK && version != CACHE_VERSION)
        status = SPOOL_E_NEWER;
    if (status == SPOOL_OK)
        status = cursor_u32le(&c, &d->server.major);
    if (status == SPOOL_OK)
        status = cursor_u32le(&c, &d->server.minor);
    if (status == SPOOL_OK)
        status = cursor_u32le(&c, &d->server.patch);
    if (status == SPOOL_OK)
        status = cache_string(&c, &d->server_timezone);
    if (status == SPOOL_OK)
        status = cursor_u8(&c, &dedup);
    if (status == SPOOL_OK)
        status = cursor_u32le(&c, &count);
    if (status == SPOOL_OK && count > LIMIT_COLUMNS)
        status = SPOOL_E_CORRUPT;
    if (status == SPOOL_OK) {
        d->columns = calloc(count ? count : 1, sizeof(*d->columns));
        status = d->columns ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    d->deduplicates = dedup != 0;
    d->exists = d->insertable = true;
    for (uint32_t i = 0; i < count && status == SPOOL_OK; i++) {
        struct table_column *col = &d->columns[i];
        d->column_count = i + 1;
        status = cache_string(&c, &col->name);
        if (status == SPOOL_OK)
            status = cache_string(&c, &col->type);
        if (status == SPOOL_OK)
            status = cache_string(&c, &col->default_kind);
        if (status == SPOOL_OK)
            status = cache_string(&c, &col->default_expression);
    }
    if (status == SPOOL_OK)
        *out = d;
    else
        table_description_free(d);
    return status;
}

static void cache_store(struct target *t)
{
    char key[400];
    struct buf value;
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT, .key = key};

    cache_key(t, key, sizeof(key));
    buf_init(&value, LIMIT_SCHEMA_BYTES);
    if (cache_put(t->description, &value) == SPOOL_OK) {
        change.value = value.data;
        change.value_size = value.len;
        (void)meta_change(t->stream->p, &change, NULL, NULL, t->stream);
    }
    buf_free(&value);
}

/* --- the stream's schema -------------------------------------------------------------------- */

/* The problems as one line for log and status. */
static const char *problems_text(struct buf *problems)
{
    const char *text;

    while (problems->len && problems->data[problems->len - 1] == '\n')
        problems->len--;
    for (size_t i = 0; i < problems->len; i++)
        if (problems->data[i] == '\n')
            problems->data[i] = ';';
    text = buf_cstr(problems);
    return text ? text : "";
}

static int stream_adopt(struct stream *s, struct schema *schema)
{
    struct stream_schema *ss = NULL;
    int status;

    if (s->schema && schema_equal(s->schema->schema, schema)) {
        schema_free(schema);
        stream_unhold(s, HOLD_SCHEMA);
        return SPOOL_OK;
    }
    status = stream_schema_create(schema, s->targets, &ss);
    if (status != SPOOL_OK)
        return status;
    if (s->schema)
        log_event(LOG_INFO, "schema.changed", "stream", s->options->name, "columns",
                  log_u64(schema->count), NULL);
    stream_schema_unref(s->schema);
    s->schema = ss;
    intake_drop_decoders(s);
    stream_unhold(s, HOLD_SCHEMA);
    return SPOOL_OK;
}

int stream_schema_at_start(struct stream *s, struct spool_error *error)
{
    struct table_description *cached = NULL;
    const struct schema_options *options = &s->options->schema;
    struct schema *schema = NULL;
    struct server_version oldest = {0, 0, 0};
    struct buf problems;
    char key[400];
    void *value = NULL;
    size_t size = 0, typed = 0;
    int status;

    buf_init(&problems, 16 * KIB);
    cache_key(s->targets, key, sizeof(key));
    status = spool_note_get(s->p->spool, key, &value, &size, error);
    if (status == SPOOL_OK && cache_get(value, size, &cached) == SPOOL_OK) {
        (void)schema_resolve(options, cached->columns, cached->column_count, cached->server,
                             cached->server_timezone, &schema, &problems);
        s->targets->description = cached; /* for status; not certain before it is asked again */
        s->targets->generation++;
    }
    while (typed < options->wish_count && options->wishes[typed].type)
        typed++;
    if (!schema && typed && typed == options->wish_count) {
        buf_reset(&problems);
        (void)schema_from_wishes(options, oldest, "UTC", &schema, &problems);
    }
    status = schema ? stream_adopt(s, schema) : SPOOL_OK;
    if (status != SPOOL_OK)
        (void)spool_error_set(error, status, "stream %s: %s", s->options->name,
                              spool_strerror(status));
    if (!schema)
        stream_hold(s, HOLD_SCHEMA, "%s%s",
                    "the table's columns are not known yet: waiting for "
                    "ClickHouse",
                    problems.len ? problems_text(&problems) : "");
    free(value);
    buf_free(&problems);
    return status;
}

/* --- asking --------------------------------------------------------------------------------- */

static void target_retry(struct target *t)
{
    t->retry_at_ms = clock_monotonic_ms() + backoff_next_ms(&t->backoff);
}

/* The table can't be used as it is. */
static void target_bad(struct target *t, const char *reason)
{
    t->state = TARGET_BAD;
    snprintf(t->reason, sizeof(t->reason), "%s", reason);
    stream_hold(t->stream, HOLD_TABLE, "table %s.%s: %s", t->database, t->table, reason);
    target_retry(t);
}

static const struct table_column *description_column(const struct table_description *d,
                                                     const char *name)
{
    for (size_t i = 0; i < d->column_count; i++)
        if (strcmp(d->columns[i].name, name) == 0)
            return &d->columns[i];
    return NULL;
}

/* Every column of the block exists, with the type it was encoded for: an old server crashes or
   stores nonsense otherwise, a new one converts without range checks. */
static bool schema_fits(struct target *t, const struct schema *schema)
{
    const struct table_description *d = t->description;
    char reason[512] = "";

    for (size_t i = 0; i < schema->count && !reason[0]; i++) {
        const struct schema_column *c = &schema->columns[i];
        const struct table_column *now = description_column(d, c->name);
        struct type *type = NULL;
        if (!now) {
            snprintf(reason, sizeof(reason), "column %s, which spooled rows hold, is gone",
                     c->name);
        } else if (type_parse(now->type, strlen(now->type), &type, NULL) != SPOOL_OK ||
                   !type_equal(type, c->type)) {
            snprintf(reason, sizeof(reason), "column %s is %s now, spooled rows hold %s", c->name,
                     now->type, c->type->text ? c->type->text : "another type");
        }
        type_free(type);
    }
    if (reason[0])
        target_bad(t, reason);
    return !reason[0];
}

static void target_good(struct target *t)
{
    for (const struct segment *g = t->stream->segments_first; g; g = g->next)
        if (g->schema && g->schema->target == t && g->first && !schema_fits(t, g->schema->schema))
            return;
    t->state = TARGET_OK;
    t->reason[0] = 0;
    backoff_reset(&t->backoff);
    t->retry_at_ms = clock_monotonic_ms() + ASK_PERIOD_MS;
    stream_unhold(t->stream, HOLD_TABLE);
}

static void describe_done(void *arg, const struct clickhouse_outcome *outcome,
                          struct table_description *d);

static void target_describe(struct target *t, int endpoint)
{
    struct spool_error error;

    t->state = TARGET_ASKING;
    t->asked_again = false;
    t->endpoint = (size_t)endpoint;
    if (clickhouse_describe(t->stream->p->clickhouse, (size_t)endpoint, t->database, t->table,
                            describe_done, t, &error) != SPOOL_OK) {
        t->state = TARGET_UNKNOWN;
        target_retry(t);
    }
}

static void created(void *arg, const struct clickhouse_outcome *outcome)
{
    struct target *t = arg;

    if (t->stream->p->closing)
        return;
    t->state = TARGET_UNKNOWN;
    if (outcome->class_ == CLASS_NONE) {
        log_event(LOG_INFO, "table.created", "stream", t->stream->options->name, "table",
                  t->destination, NULL);
        t->retry_at_ms = 0;
    } else if (outcome->class_ == CLASS_TRANSIENT) {
        target_retry(t);
    } else {
        char reason[900];
        snprintf(reason, sizeof(reason), "could not be created: %s", outcome->text);
        target_bad(t, reason);
    }
    stream_advance(t->stream);
}

static void target_create(struct target *t)
{
    struct stream *s = t->stream;
    struct create_table_options create = s->options->create;
    const struct schema_options *o = &s->options->schema;
    struct table_column *columns = calloc(o->wish_count + 1, sizeof(*columns));
    struct spool_error error;

    if (!columns) {
        target_retry(t);
        t->state = TARGET_UNKNOWN;
        return;
    }
    if (!create.column_count) {
        for (size_t i = 0; i < o->wish_count; i++) {
            columns[i].name = (char *)(uintptr_t)o->wishes[i].name;
            columns[i].type = (char *)(uintptr_t)o->wishes[i].type;
        }
        create.columns = columns;
        create.column_count = o->wish_count;
    }
    t->state = TARGET_ASKING;
    if (clickhouse_create_table(s->p->clickhouse, t->endpoint, t->database, t->table, &create,
                                created, t, &error) != SPOOL_OK)
        target_bad(t, error.text);
    free(columns);
}

/* The configured table exists: what records become, from now on. */
static void target_resolve(struct target *t)
{
    struct stream *s = t->stream;
    struct table_description *d = t->description;
    struct schema *schema = NULL;
    struct buf problems;
    int status;

    buf_init(&problems, 64 * KIB);
    status = schema_resolve(&s->options->schema, d->columns, d->column_count, d->server,
                            d->server_timezone, &schema, &problems);
    if (status != SPOOL_OK) {
        target_bad(t, problems.len ? problems_text(&problems) : spool_strerror(status));
    } else if ((status = stream_adopt(s, schema)) != SPOOL_OK) {
        target_bad(t, spool_strerror(status));
    } else {
        target_good(t);
        cache_store(t);
    }
    buf_free(&problems);
}

static void describe_done(void *arg, const struct clickhouse_outcome *outcome,
                          struct table_description *d)
{
    struct target *t = arg;
    struct stream *s = t->stream;
    bool again = t->asked_again;

    if (s->p->closing) {
        table_description_free(d);
        return;
    }
    t->state = TARGET_UNKNOWN;
    if (!d) {
        if (outcome->class_ == CLASS_TRANSIENT || outcome->class_ == CLASS_NONE)
            target_retry(t);
        else
            target_bad(t, outcome->text);
    } else if (!d->exists) {
        table_description_free(d);
        if (target_is_configured(t) && s->options->create_table)
            target_create(t);
        else
            target_bad(t, "does not exist: create it, or set create_table");
    } else {
        table_description_free(t->description);
        t->description = d;
        t->generation++;
        if (!d->insertable)
            target_bad(t, d->reason[0] ? d->reason : "is not a table rows can be inserted into");
        else if (target_is_configured(t))
            target_resolve(t);
        else
            target_good(t);
    }
    if (again)
        t->retry_at_ms = 0;
    stream_advance(s);
}

void target_ask(struct target *t)
{
    if (t->state == TARGET_ASKING)
        t->asked_again = true;
    t->retry_at_ms = 0;
}

void target_advance(struct target *t)
{
    struct pipeline *p = t->stream->p;
    int endpoint;

    if (t->state == TARGET_ASKING || t->retry_at_ms > clock_monotonic_ms() || p->draining)
        return;
    endpoint = clickhouse_pick(p->clickhouse);
    if (endpoint >= 0)
        target_describe(t, endpoint);
}

uint64_t target_deadline_ms(const struct target *t)
{
    if (t->state == TARGET_ASKING || clickhouse_pick(t->stream->p->clickhouse) < 0 ||
        t->stream->p->draining)
        return 0;
    return t->retry_at_ms;
}

void target_forget_all(struct stream *s)
{
    for (struct target *t = s->targets; t; t = t->next) {
        target_ask(t);
        if (t->state == TARGET_OK)
            t->state = TARGET_UNKNOWN;
    }
}

/* --- may these rows go there? --------------------------------------------------------------- */

bool target_accepts(struct target *t, const struct stream_schema *schema)
{
    struct stream_schema *mutable = (struct stream_schema *)(uintptr_t)schema;

    if (t->state != TARGET_OK || !t->description)
        return false;
    if (mutable->checked_generation != t->generation) {
        mutable->accepted = schema_fits(t, schema->schema);
        mutable->checked_generation = t->generation;
    }
    return mutable->accepted;
}
