/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table at the other end. A target is described (system.tables, system.columns) whenever its
 * endpoint comes up or new work goes to another one, after an answer that speaks of the schema, and
 * every table_check_interval; between that and a good answer nothing is sent there. A former table of
 * the stream is described as long as segments have rows for it.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"
#include "sink/sql_text.h"

#define ASK_RETRY_BASE_MS 500
#define ASK_RETRY_MAX_MS  10000

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

static void targets_free_list(struct target *first)
{
    while (first) {
        struct target *t = first;
        first = t->next;
        targets_free_list(t->sites);
        table_description_free(t->description);
        buf_free(&t->cached);
        free(t->database);
        free(t->table);
        free(t->destination);
        free(t);
    }
}

void targets_free(struct stream *s)
{
    targets_free_list(s->targets);
    s->targets = NULL;
}

static bool target_is_configured(const struct target *t)
{
    return t == t->stream->targets;
}

static struct target *site_create(struct target *of, size_t endpoint)
{
    struct target *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->stream = of->stream;
    t->of = of;
    t->asked = t->endpoint = endpoint;
    t->database = strdup(of->database);
    t->table = strdup(of->table);
    t->destination = strdup(of->destination);
    backoff_init(&t->backoff, ASK_RETRY_BASE_MS, ASK_RETRY_MAX_MS, (uint64_t)(uintptr_t)t);
    if (!t->database || !t->table || !t->destination) {
        targets_free_list(t);
        return NULL;
    }
    t->next = of->sites;
    of->sites = t;
    return t;
}

/* Whether rows go there: new ones, or those of a segment. */
static bool target_is_needed(const struct target *t)
{
    const struct segment *g = t->stream->segments_first;

    if (t->of || target_is_configured(t))
        return true;
    while (g && !(g->schema && g->schema->target == t && g->first))
        g = g->next;
    return g != NULL;
}

/* For the first table that rows go to and that does not take them. */
static void stream_hold_for_table(struct stream *s)
{
    for (const struct target *t = s->targets; t; t = t->next)
        if (t->reason[0] && target_is_needed(t)) {
            stream_hold(s, HOLD_TABLE, "table %s.%s: %s", t->database, t->table, t->reason);
            return;
        }
    stream_unhold(s, HOLD_TABLE);
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
    if (!t->of)
        stream_hold_for_table(t->stream);
    target_retry(t);
}

static void target_good(struct target *t)
{
    char reason[512];

    for (const struct segment *g = t->stream->segments_first; g; g = g->next)
        if (g->schema && g->schema->target == t && g->first &&
            !schema_fits(t, g->schema->schema, reason) &&
            !schema_replaceable(t, g->schema, reason)) {
            target_bad(t, reason);
            return;
        }
    t->state = TARGET_OK;
    t->reason[0] = 0;
    backoff_reset(&t->backoff);
    t->retry_at_ms = clock_monotonic_ms() + t->stream->p->options->table_check_ms;
    if (!t->of)
        stream_hold_for_table(t->stream);
}

static void describe_done(void *arg, const struct clickhouse_outcome *outcome,
                          struct table_description *d);

static void target_describe(struct target *t, int endpoint)
{
    struct spool_error error;

    t->state = TARGET_ASKING;
    t->asked_again = false;
    t->asked = (size_t)endpoint;
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
    if (clickhouse_create_table(s->p->clickhouse, t->asked, t->database, t->table, &create, created,
                                t, &error) != SPOOL_OK)
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
        target_cache(t);
    }
    buf_free(&problems);
}

static struct target *site_find(const struct target *t, size_t endpoint)
{
    struct target *site = t->sites;

    while (site && site->endpoint != endpoint)
        site = site->next;
    return site;
}

/* What is known of the endpoint that new work went to so far goes to a site: batches that are there
   still go by it. */
static void target_described(struct target *t, struct table_description *d)
{
    struct target *left = NULL;

    if (t->description && t->endpoint != t->asked) {
        left = site_find(t, t->endpoint);
        if (!left)
            left = site_create(t, t->endpoint);
    }
    if (left && left->state != TARGET_OK) {
        table_description_free(left->description);
        left->description = t->description;
        left->generation = t->generation;
    } else {
        table_description_free(t->description);
    }
    t->description = d;
    t->endpoint = t->asked;
    t->generation = ++t->stream->generations;
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
        target_described(t, d);
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

/* A former table has all its rows: whatever becomes of it is none of the stream's business. */
static void target_rest(struct target *t)
{
    bool held = t->reason[0];

    t->state = TARGET_UNKNOWN;
    t->reason[0] = 0;
    t->retry_at_ms = 0;
    if (held)
        stream_hold_for_table(t->stream);
}

void target_advance(struct target *t)
{
    struct pipeline *p = t->stream->p;
    int endpoint = stream_pick(t->stream);
    bool moved = endpoint >= 0 && (size_t)endpoint != t->asked;

    if (t->state == TARGET_ASKING)
        return;
    if (!target_is_needed(t)) {
        target_rest(t);
        return;
    }
    if (endpoint < 0)
        return;
    if (moved && t->state == TARGET_OK)
        t->state = TARGET_UNKNOWN; /* another server may have another table */
    if ((moved || t->retry_at_ms <= clock_monotonic_ms()) && !p->draining)
        target_describe(t, endpoint);
}

uint64_t target_deadline_ms(const struct target *t)
{
    if (t->state == TARGET_ASKING || clickhouse_pick(t->stream->p->clickhouse) < 0 ||
        t->stream->p->draining || !target_is_needed(t))
        return 0;
    return t->retry_at_ms;
}

static void forget_list(struct target *first, size_t endpoint)
{
    for (struct target *t = first; t; t = t->next) {
        forget_list(t->sites, endpoint);
        if (t->asked != endpoint)
            continue;
        target_ask(t);
        if (t->state == TARGET_OK)
            t->state = TARGET_UNKNOWN;
    }
}

void target_forget(struct stream *s, size_t endpoint)
{
    forget_list(s->targets, endpoint);
}

/* --- may these rows go there? --------------------------------------------------------------- */

struct target *target_at(struct target *t, int endpoint)
{
    struct target *site;

    assert(endpoint >= 0 && !t->of);
    if (endpoint == stream_pick(t->stream))
        return t;
    site = site_find(t, (size_t)endpoint);
    if (!site)
        site = site_create(t, (size_t)endpoint);
    if (site && site->state != TARGET_ASKING && site->retry_at_ms <= clock_monotonic_ms() &&
        !t->stream->p->draining)
        target_describe(site, endpoint);
    return site;
}

const char *target_unfit_at(const struct target *t, int endpoint)
{
    const struct target *site;

    if (endpoint < 0 || endpoint == stream_pick(t->stream))
        return NULL;
    site = site_find(t, (size_t)endpoint);
    return site && site->reason[0] ? site->reason : NULL;
}

const struct table_description *target_description(const struct target *t, int endpoint)
{
    const struct target *site;

    if (endpoint < 0 || t->endpoint == (size_t)endpoint)
        return t->description;
    site = site_find(t, (size_t)endpoint);
    return site ? site->description : NULL;
}

/* Compares the schema with the table there; false where that can't be done now. */
static bool schema_judge(struct target *t, int endpoint, const struct stream_schema *schema)
{
    struct stream_schema *mutable = (struct stream_schema *)(uintptr_t)schema;
    struct target *at = target_at(t, endpoint);
    char reason[512];

    if (!at || at->state != TARGET_OK || !at->description || at->asked != (size_t)endpoint)
        return false;
    if (mutable->checked_generation == at->generation)
        return true;
    mutable->accepted = schema_fits(at, schema->schema, reason);
    mutable->replaceable = !mutable->accepted && schema_replaceable(at, schema, reason);
    mutable->checked_generation = at->generation;
    if (!mutable->accepted && !mutable->replaceable)
        target_bad(at, reason);
    return true;
}

bool target_accepts(struct target *t, int endpoint, const struct stream_schema *schema)
{
    return schema_judge(t, endpoint, schema) && schema->accepted;
}

bool target_reencodes(struct target *t, int endpoint, const struct stream_schema *schema)
{
    return schema_judge(t, endpoint, schema) && schema->replaceable;
}
