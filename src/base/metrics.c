/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Series live in one hash table keyed by (metric, label values), chained, and in one list per
 * metric in the order they were made, so that a scrape groups and orders them the same each time.
 * A key is the label values one after the other, each with its NUL.
 */
#include "base/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define SERIES_MAX      10000
#define TABLE_SIZE      4096 /* a power of two; 10,000 series make chains of 2 or 3 */
#define LABELS_MAX      4
#define LABEL_BYTES_MAX 512 /* a longer value is cut */

static const double BUCKETS[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                 0.5,   1,      2.5,   5,    10,    30,   60};
#define BUCKET_COUNT (sizeof(BUCKETS) / sizeof(BUCKETS[0]))

struct histogram {
    uint64_t buckets[BUCKET_COUNT]; /* not cumulative */
    uint64_t count;
    double sum;
};

struct series {
    struct series *next_in_chain;
    struct series *next_of_metric;
    uint64_t hash;
    enum metric_id id;
    double value;
    struct histogram *histogram; /* of a histogram only */
    size_t key_size;
    char key[];
};

struct metrics {
    struct series *table[TABLE_SIZE];
    struct series *first[METRIC_COUNT];
    struct series **end[METRIC_COUNT];
    size_t count; /* of series with labels */
};

struct definition {
    const char *name;
    enum metric_kind kind;
    const char *help;
    const char *labels;
};

static const struct definition DEFINITIONS[METRIC_COUNT] = {
#define X(id, name, kind, help, labels) [METRIC_##id] = {name, METRIC_##kind, help, labels},
    METRIC_LIST(X)
#undef X
};

/* The i-th label's name in a comma separated list; false past the end. */
static bool label_at(const char *labels, size_t i, const char **name, size_t *n)
{
    const char *at = labels;

    for (; *at; at++) {
        size_t len = strcspn(at, ",");
        if (i == 0) {
            *name = at;
            *n = len;
            return true;
        }
        i--;
        at += len;
        if (!*at)
            break;
    }
    return false;
}

static size_t label_count(const char *labels)
{
    const char *name;
    size_t n, count = 0;

    while (label_at(labels, count, &name, &n))
        count++;
    return count;
}

struct key {
    enum metric_id id;
    size_t size;
    uint64_t hash;
    char bytes[LABELS_MAX * (LABEL_BYTES_MAX + 1)];
};

static void key_make(struct key *key, enum metric_id id, va_list args)
{
    size_t labels = label_count(DEFINITIONS[id].labels);
    uint64_t h = 14695981039346656037u ^ (uint64_t)id; /* FNV-1a */

    assert(labels <= LABELS_MAX);
    key->id = id;
    key->size = 0;
    for (size_t i = 0; i < labels; i++) {
        const char *value = va_arg(args, const char *);
        size_t n = value ? strnlen(value, LABEL_BYTES_MAX) : 0;
        if (n)
            memcpy(key->bytes + key->size, value, n);
        key->bytes[key->size + n] = 0;
        key->size += n + 1;
    }
    for (size_t i = 0; i < key->size; i++)
        h = (h ^ (uint8_t)key->bytes[i]) * 1099511628211u;
    key->hash = h ^ (h >> 32);
}

static struct series *series_find(const struct metrics *m, const struct key *key)
{
    struct series *s = m->table[key->hash % TABLE_SIZE];

    while (s && !(s->hash == key->hash && s->id == key->id && s->key_size == key->size &&
                  memcmp(s->key, key->bytes, key->size) == 0))
        s = s->next_in_chain;
    return s;
}

static struct series *series_make(struct metrics *m, const struct key *key)
{
    struct series *s;

    if (m->count >= SERIES_MAX && key->size)
        return NULL;
    s = calloc(1, sizeof(*s) + key->size);
    if (!s)
        return NULL;
    if (DEFINITIONS[key->id].kind == METRIC_HISTOGRAM) {
        s->histogram = calloc(1, sizeof(*s->histogram));
        if (!s->histogram) {
            free(s);
            return NULL;
        }
    }
    s->id = key->id;
    s->hash = key->hash;
    s->key_size = key->size;
    if (key->size)
        memcpy(s->key, key->bytes, key->size);
    s->next_in_chain = m->table[key->hash % TABLE_SIZE];
    m->table[key->hash % TABLE_SIZE] = s;
    *m->end[key->id] = s;
    m->end[key->id] = &s->next_of_metric;
    if (key->size)
        m->count++;
    return s;
}

static void series_free(struct series *s)
{
    free(s->histogram);
    free(s);
}

/* Finds or makes; where there is no room, the value is counted as dropped. */
static struct series *series_for(struct metrics *m, enum metric_id id, va_list args)
{
    struct key key;
    struct series *s;

    key_make(&key, id, args);
    s = series_find(m, &key);
    if (!s)
        s = series_make(m, &key);
    if (!s)
        m->first[METRIC_METRICS_DROPPED]->value += 1;
    return s;
}

static struct series *make_plain(struct metrics *m, enum metric_id id, ...)
{
    struct key key;
    struct series *s;
    va_list args;

    va_start(args, id);
    key_make(&key, id, args);
    s = series_make(m, &key);
    va_end(args);
    return s;
}

int metrics_create(struct metrics **out)
{
    struct metrics *m = calloc(1, sizeof(*m));

    *out = NULL;
    if (!m)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < METRIC_COUNT; i++)
        m->end[i] = &m->first[i];
    /* Metrics without labels are there from the start, at 0. */
    for (size_t i = 0; i < METRIC_COUNT; i++) {
        if (DEFINITIONS[i].labels[0] == 0 && !make_plain(m, (enum metric_id)i)) {
            metrics_free(m);
            return SPOOL_E_NOMEM;
        }
    }
    *out = m;
    return SPOOL_OK;
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < METRIC_COUNT; i++) {
        struct series *s = m->first[i];
        while (s) {
            struct series *next = s->next_of_metric;
            series_free(s);
            s = next;
        }
    }
    free(m);
}

void metrics_add(struct metrics *m, enum metric_id id, double v, ...)
{
    struct series *s;
    va_list args;

    assert((unsigned)id < METRIC_COUNT && DEFINITIONS[id].kind != METRIC_HISTOGRAM);
    if (!m)
        return;
    va_start(args, v);
    s = series_for(m, id, args);
    va_end(args);
    if (s)
        s->value += v;
}

void metrics_set(struct metrics *m, enum metric_id id, double v, ...)
{
    struct series *s;
    va_list args;

    assert((unsigned)id < METRIC_COUNT && DEFINITIONS[id].kind == METRIC_GAUGE);
    if (!m)
        return;
    va_start(args, v);
    s = series_for(m, id, args);
    va_end(args);
    if (s)
        s->value = v;
}

void metrics_observe(struct metrics *m, enum metric_id id, double seconds, ...)
{
    struct series *s;
    va_list args;

    assert((unsigned)id < METRIC_COUNT && DEFINITIONS[id].kind == METRIC_HISTOGRAM);
    if (!m)
        return;
    va_start(args, seconds);
    s = series_for(m, id, args);
    va_end(args);
    if (!s)
        return;
    for (size_t i = 0; i < BUCKET_COUNT; i++) {
        if (seconds <= BUCKETS[i]) {
            s->histogram->buckets[i]++;
            break;
        }
    }
    s->histogram->count++;
    s->histogram->sum += seconds;
}

double metrics_get(const struct metrics *m, enum metric_id id, ...)
{
    struct key key;
    const struct series *s;
    va_list args;

    assert((unsigned)id < METRIC_COUNT);
    if (!m)
        return 0;
    va_start(args, id);
    key_make(&key, id, args);
    va_end(args);
    s = series_find(m, &key);
    if (!s)
        return 0;
    return s->histogram ? (double)s->histogram->count : s->value;
}

/* Whether the label `stream` of s is name. */
static bool series_is_of_stream(const struct series *s, const char *name)
{
    const char *label, *value = s->key;
    size_t n;

    for (size_t i = 0; label_at(DEFINITIONS[s->id].labels, i, &label, &n); i++) {
        if (n == 6 && memcmp(label, "stream", 6) == 0)
            return strncmp(value, name, LABEL_BYTES_MAX) == 0;
        value += strlen(value) + 1;
    }
    return false;
}

static void chain_remove(struct metrics *m, const struct series *s)
{
    struct series **link = &m->table[s->hash % TABLE_SIZE];

    while (*link != s)
        link = &(*link)->next_in_chain;
    *link = s->next_in_chain;
}

void metrics_forget_stream(struct metrics *m, const char *name)
{
    if (!m)
        return;
    for (size_t i = 0; i < METRIC_COUNT; i++) {
        struct series **link = &m->first[i];
        while (*link) {
            struct series *s = *link;
            if (!series_is_of_stream(s, name)) {
                link = &s->next_of_metric;
                continue;
            }
            *link = s->next_of_metric;
            chain_remove(m, s);
            series_free(s);
            m->count--;
        }
        m->end[i] = link;
    }
}

/* Shortest of the usual forms that reads back the same; NaN and infinities as Prometheus wants. */
static int put_number(struct buf *out, double v)
{
    char text[40];

    if (isnan(v))
        return buf_append_str(out, "NaN");
    if (isinf(v))
        return buf_append_str(out, v > 0 ? "+Inf" : "-Inf");
    snprintf(text, sizeof(text), "%.15g", v);
    if (strtod(text, NULL) != v)
        snprintf(text, sizeof(text), "%.17g", v);
    return buf_append_str(out, text);
}

/* Label values escape backslash, quote and newline (text format 0.0.4). */
static int put_label_value(struct buf *out, const char *value)
{
    int status = SPOOL_OK;

    for (; *value && status == SPOOL_OK; value++) {
        if (*value == '\\')
            status = buf_append(out, "\\\\", 2);
        else if (*value == '"')
            status = buf_append(out, "\\\"", 2);
        else if (*value == '\n')
            status = buf_append(out, "\\n", 2);
        else
            status = buf_append(out, value, 1);
    }
    return status;
}

/* name<suffix>{labels[,le="..."]} and a blank. */
static int put_sample_name(struct buf *out, const struct series *s, const char *suffix,
                           const char *le)
{
    const struct definition *d = &DEFINITIONS[s->id];
    const char *label, *value = s->key;
    size_t n, i;
    int status = buf_printf(out, "%s%s", d->name, suffix);

    for (i = 0; status == SPOOL_OK && label_at(d->labels, i, &label, &n); i++) {
        status = buf_printf(out, "%s%.*s=\"", i ? "," : "{", (int)n, label);
        if (status == SPOOL_OK)
            status = put_label_value(out, value);
        if (status == SPOOL_OK)
            status = buf_put_u8(out, '"');
        value += strlen(value) + 1;
    }
    if (status == SPOOL_OK && le)
        status = buf_printf(out, "%sle=\"%s\"", i ? "," : "{", le);
    return status == SPOOL_OK ? buf_append_str(out, i || le ? "} " : " ") : status;
}

static int put_sample(struct buf *out, const struct series *s, const char *suffix, const char *le,
                      double v)
{
    int status = put_sample_name(out, s, suffix, le);

    if (status == SPOOL_OK)
        status = put_number(out, v);
    return status == SPOOL_OK ? buf_put_u8(out, '\n') : status;
}

static int put_histogram(struct buf *out, const struct series *s)
{
    const struct histogram *h = s->histogram;
    uint64_t below = 0;
    int status = SPOOL_OK;

    for (size_t i = 0; i < BUCKET_COUNT && status == SPOOL_OK; i++) {
        char le[24];
        snprintf(le, sizeof(le), "%g", BUCKETS[i]);
        below += h->buckets[i];
        status = put_sample(out, s, "_bucket", le, (double)below);
    }
    if (status == SPOOL_OK)
        status = put_sample(out, s, "_bucket", "+Inf", (double)h->count);
    if (status == SPOOL_OK)
        status = put_sample(out, s, "_sum", NULL, h->sum);
    return status == SPOOL_OK ? put_sample(out, s, "_count", NULL, (double)h->count) : status;
}

int metrics_render(const struct metrics *m, struct buf *out)
{
    static const char *const KINDS[] = {"counter", "gauge", "histogram"};
    int status = SPOOL_OK;

    for (size_t i = 0; i < METRIC_COUNT && status == SPOOL_OK; i++) {
        const struct definition *d = &DEFINITIONS[i];
        status = buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", d->name, d->help, d->name,
                            KINDS[d->kind]);
        for (const struct series *s = m->first[i]; s && status == SPOOL_OK; s = s->next_of_metric)
            status = s->histogram ? put_histogram(out, s) : put_sample(out, s, "", NULL, s->value);
    }
    return status;
}
