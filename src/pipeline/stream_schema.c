/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The schemas that rows are encoded for: those in use, the stream's own, and whether a table still
 * takes rows of one. What is known of the configured table is kept in meta, so that spoold starts and
 * ingests while ClickHouse is down.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "codec/reencode.h"
#include "pipeline/pipeline_int.h"

#define CACHE_VERSION 1

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
    d->partitions_per_insert = d->partitions_per_insert_max = 1;
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

/* Only where it changed: the table is looked at again and again, and while there is no room for a commit
   each note of it would wait in memory. */
void target_cache(struct target *t)
{
    char key[400];
    struct buf value;
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT, .key = key};

    cache_key(t, key, sizeof(key));
    buf_init(&value, LIMIT_SCHEMA_BYTES);
    if (cache_put(t->description, &value) == SPOOL_OK &&
        (value.len != t->cached.len || memcmp(value.data, t->cached.data, value.len) != 0)) {
        change.value = value.data;
        change.value_size = value.len;
        (void)meta_change(t->stream->p, &change, NULL, NULL, t->stream);
        buf_free(&t->cached);
        t->cached = value;
    } else {
        buf_free(&value);
    }
}

/* --- the stream's schema -------------------------------------------------------------------- */

/* The problems as one line for log and status. */
const char *problems_text(struct buf *problems)
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

int stream_adopt(struct stream *s, struct schema *schema)
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

/* What was last known of the table; NULL: nothing that can be understood, and it is asked first. */
static int cache_read(const struct target *t, struct table_description **out,
                      struct spool_error *error)
{
    char key[400];
    void *value = NULL;
    size_t size = 0;
    int status;

    *out = NULL;
    cache_key(t, key, sizeof(key));
    status = note_read(t->stream->p->spool, key, &value, &size, error);
    if (status == SPOOL_OK && value && cache_get(value, size, out) == SPOOL_E_NOMEM)
        status = spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    free(value);
    return status;
}

int stream_schema_at_start(struct stream *s, struct spool_error *error)
{
    struct table_description *cached = NULL;
    const struct schema_options *options = &s->options->schema;
    struct schema *schema = NULL;
    struct server_version oldest = {0, 0, 0};
    struct buf problems;
    size_t typed = 0;
    int status = cache_read(s->targets, &cached, error);

    if (status != SPOOL_OK)
        return status;
    buf_init(&problems, 16 * KIB);
    if (cached) {
        (void)schema_resolve(options, cached->columns, cached->column_count, cached->server,
                             cached->server_timezone, &schema, &problems);
        s->targets->description = cached; /* for status; not certain before it is asked again */
        s->targets->generation = ++s->generations;
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
    buf_free(&problems);
    return status;
}

/* --- does a table take them? ---------------------------------------------------------------- */

static const struct table_column *description_column(const struct table_description *d,
                                                     const char *name)
{
    for (size_t i = 0; i < d->column_count; i++)
        if (strcmp(d->columns[i].name, name) == 0)
            return &d->columns[i];
    return NULL;
}

bool description_has_column(const struct table_description *d, const char *name)
{
    return description_column(d, name) != NULL;
}

/* Every column of the block exists, with the type it was encoded for: an old server crashes or
   stores nonsense otherwise, a new one converts without range checks. */
bool schema_fits(const struct target *t, const struct schema *schema, char reason[512])
{
    const struct table_description *d = t->description;

    reason[0] = 0;
    for (size_t i = 0; i < schema->count && !reason[0]; i++) {
        const struct schema_column *c = &schema->columns[i];
        const struct table_column *now = description_column(d, c->name);
        struct type *type = NULL;
        if (!now) {
            snprintf(reason, 512, "column %s, which spooled rows hold, is gone", c->name);
        } else if (type_parse(now->type, strlen(now->type), &type, NULL) != SPOOL_OK ||
                   !type_equal(type, c->type)) {
            snprintf(reason, 512, "column %s is %s now, spooled rows hold %s", c->name, now->type,
                     c->type->text ? c->type->text : "another type");
        }
        type_free(type);
    }
    return !reason[0];
}

/* Whether the stream's schema can take over from the one that does not fit; reason: why not. */
bool schema_replaceable(const struct target *t, const struct stream_schema *ss, char reason[512])
{
    const struct stream *s = t->stream;
    struct spool_error error = {0};
    char current[512];
    size_t used = strlen(reason);

    if (s->options->on_schema_change != ON_SCHEMA_REENCODE || (t->of ? t->of : t) != s->targets)
        return false;
    if (!s->schema || s->schema == ss || !schema_fits(t, s->schema->schema, current))
        return false;
    if (reencoder_check(ss->schema, s->schema->schema, &error) == SPOOL_OK)
        return true;
    snprintf(reason + used, 512 - used, "; it can't be encoded anew: %s", error.text);
    return false;
}
