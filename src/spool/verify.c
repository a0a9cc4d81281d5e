/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checks a spool at rest. First every record of meta.mdb and dead.mdb, keeping the seals and the
 * acknowledged ranges; then each segment: its trees, each block, and what meta says of its rows.
 * Everything is read by pread, so a damaged file gives problems, however badly it is damaged.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "spool/spool_int.h"

/* A range of rows that meta has a claim on. */
struct claim {
    uint32_t stream;
    uint64_t segment;
    uint64_t batch; /* 0: acknowledged */
    struct spool_range range;
};

struct batch {
    uint32_t stream;
    uint64_t batch, segment, rows, range_rows;
    bool found; /* its segment is there */
};

struct verify {
    struct spool *spool;
    void (*each)(void *arg, const struct spool_problem *problem);
    void *arg;
    uint64_t problems;
    const char *file; /* what is being checked, relative to the spool */
    const char *stream;
    bool no_memory;
    struct spool_error unreadable; /* a record that could not be read; status 0: none */

    struct claim *claims;
    size_t claim_count, claim_cap;
    struct batch *batches;
    size_t batch_count, batch_cap;
    uint64_t next_batch[STREAMS_MAX];

    struct letters {
        char stream[SPOOL_STREAM_NAME_MAX + 1];
        uint64_t letters, bytes, said_letters, said_bytes;
    } * letters;
    size_t letters_count, letters_cap;
};

static void problem(struct verify *v, uint64_t sequence, const char *kind, const char *detail)
{
    const struct spool_problem p = {v->file, v->stream ? v->stream : "", sequence, kind, detail};
    v->problems++;
    if (v->each)
        v->each(v->arg, &p);
}

/* The stable word for a fault that was found while reading a file. */
static const char *kind_of(int status, const char *text)
{
    if (status == SPOOL_E_NEWER)
        return "newer";
    if (status == SPOOL_E_IO || status == SPOOL_E_NOT_FOUND)
        return "unreadable";
    if (strstr(text, "truncated") || strstr(text, "the file ends"))
        return "truncated";
    if (strstr(text, "checksum"))
        return "checksum";
    if (strstr(text, "sequence"))
        return "sequence";
    if (strstr(text, "header") || strstr(text, "index") || strstr(text, "totals"))
        return "index";
    return strstr(text, "page ") ? "tree" : "damaged";
}

static void *add(void *list, size_t *cap, size_t *count, size_t size, struct verify *v)
{
    void **at = list;

    if (*count == *cap) {
        size_t wider = *cap ? *cap * 2 : 64;
        void *more = realloc(*at, wider * size);
        if (!more) {
            v->no_memory = true;
            return NULL;
        }
        *at = more;
        *cap = wider;
    }
    return (char *)*at + (*count)++ * size;
}

static int cannot_go_on(const struct verify *v, struct spool_error *error)
{
    return v->no_memory ? spool_error_set(error, SPOOL_E_NOMEM, "no memory to verify a spool")
                        : spool_looks_go_on(v->spool, error);
}

/* --- meta.mdb ------------------------------------------------------------------------------- */

static void add_claims(struct verify *v, uint32_t stream, uint64_t segment, uint64_t batch,
                       const struct spool_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct claim *c = add(&v->claims, &v->claim_cap, &v->claim_count, sizeof(*c), v);
        if (c)
            *c = (struct claim){stream, segment, batch, ranges[i]};
    }
}

static int meta_seal(struct verify *v, const struct tree_item *item, struct cursor body)
{
    struct seal_record record;
    struct batch *b;
    int status = item->key_size == 12 ? seal_decode(body, &record) : SPOOL_E_CORRUPT;

    if (status != SPOOL_OK)
        return status;
    b = add(&v->batches, &v->batch_cap, &v->batch_count, sizeof(*b), v);
    if (b) {
        *b = (struct batch){.stream = get_be32(item->key),
                            .batch = get_be64(item->key + 4),
                            .segment = record.seal.segment,
                            .rows = record.seal.rows};
        for (size_t i = 0; i < record.seal.range_count; i++)
            b->range_rows += record.ranges[i].rows;
        add_claims(v, b->stream, b->segment, b->batch, record.ranges, record.seal.range_count);
    }
    free(record.ranges);
    return SPOOL_OK;
}

static int meta_ack(struct verify *v, const struct tree_item *item, struct cursor body)
{
    struct spool_range *ranges = NULL;
    size_t count = 0;
    int status = item->key_size == ACK_KEY_BYTES
                     ? ack_chunk_decode(body, get_be64(item->key + 12), &ranges, &count)
                     : SPOOL_E_CORRUPT;

    if (status != SPOOL_OK)
        return status;
    add_claims(v, get_be32(item->key), get_be64(item->key + 4), 0, ranges, count);
    free(ranges);
    return SPOOL_OK;
}

static int meta_stream(struct verify *v, struct cursor body)
{
    uint32_t id = 0;
    uint64_t next = 0;
    int status = cursor_u32le(&body, &id);

    if (status == SPOOL_OK)
        status = cursor_u64le(&body, &next);
    if (status != SPOOL_OK || !id || id > STREAMS_MAX)
        return SPOOL_E_CORRUPT;
    v->next_batch[id - 1] = next;
    return SPOOL_OK;
}

static struct letters *letters_of(struct verify *v, const char *stream, size_t size)
{
    struct letters *l;

    for (size_t i = 0; i < v->letters_count; i++)
        if (strlen(v->letters[i].stream) == size && !memcmp(v->letters[i].stream, stream, size))
            return &v->letters[i];
    l = add(&v->letters, &v->letters_cap, &v->letters_count, sizeof(*l), v);
    if (l) {
        memset(l, 0, sizeof(*l));
        memcpy(l->stream, stream, size);
    }
    return l;
}

static int store_letter(struct verify *v, const struct tree_item *item, const uint8_t *value)
{
    char stream[SPOOL_STREAM_NAME_MAX + 1];
    uint64_t bytes = 0;
    struct letters *l;
    int status = dead_letter_check(item->key, item->key_size, value, item->size, stream, &bytes);

    if (status == SPOOL_OK && (l = letters_of(v, stream, strlen(stream)))) {
        l->letters++;
        l->bytes += bytes;
    }
    return status;
}

static int store_count(struct verify *v, const struct tree_item *item, struct cursor body)
{
    struct letters *l;

    if (item->key_size > SPOOL_STREAM_NAME_MAX)
        return SPOOL_E_CORRUPT;
    l = letters_of(v, (const char *)item->key, item->key_size);
    if (!l)
        return SPOOL_E_NOMEM;
    return cursor_u64le(&body, &l->said_letters) || cursor_u64le(&body, &l->said_bytes)
               ? SPOOL_E_CORRUPT
               : SPOOL_OK;
}

static int store_record(struct verify *v, const struct tree_item *item, const uint8_t *value)
{
    enum record_kind kind = record_kind_of(item->db);
    struct cursor body;
    int status;

    if (kind == RECORD_LETTER)
        return store_letter(v, item, value);
    if (!kind)
        return SPOOL_E_CORRUPT;
    status = record_open(kind, item->key, item->key_size, value, item->size, &body);
    if (status != SPOOL_OK)
        return status;
    switch (kind) {
    case RECORD_SEAL:
        return meta_seal(v, item, body);
    case RECORD_ACK:
        return meta_ack(v, item, body);
    case RECORD_STREAM:
        return meta_stream(v, body);
    case RECORD_COUNT:
        return store_count(v, item, body);
    default:
        return SPOOL_OK;
    }
}

static int store_item(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct verify *v = arg;
    struct spool_error inner = {0};
    uint8_t *value = NULL;
    char detail[128];
    int status;

    if (spool_looks_go_on(v->spool, NULL) != SPOOL_OK)
        return SPOOL_OK;
    status = tree_value(tree, item, (size_t)tree->file_bytes, &value, &inner);
    if (status == SPOOL_OK)
        status = store_record(v, item, value);
    free(value);
    if (status == SPOOL_E_NOMEM) {
        v->no_memory = true;
    } else if (status != SPOOL_OK) {
        if (status == SPOOL_E_IO)
            v->unreadable = inner;
        snprintf(detail, sizeof(detail), "a record of %s fails its checksum or cannot be read",
                 item->db);
        problem(v, 0, "checksum", detail);
    }
    return SPOOL_OK; /* the walk goes on to the others */
}

/* IO where it can't be read, which is a problem too, and says nothing about what it holds. */
static int verify_store(struct verify *v, const struct store *store, struct spool_error *error)
{
    char *path = path_join(v->spool->path, store->name);
    struct spool_error inner = {0};
    struct tree tree;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1, status;

    v->file = store->name;
    v->stream = NULL;
    v->unreadable.status = SPOOL_OK;
    if (fd < 0) {
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s",
                                       path ? path : store->name);
        if (store->env)
            problem(v, 0, "unreadable", "the file cannot be opened");
        free(path);
        return store->env ? status : SPOOL_OK;
    }
    status = tree_open(&tree, fd, &inner);
    if (status == SPOOL_OK)
        status =
            tree_walk(&tree, NULL, TREE_OVERFLOW_HEADERS | TREE_SALVAGE, store_item, v, &inner);
    if (status != SPOOL_OK)
        problem(v, 0, kind_of(status, inner.text), inner.text);
    if (v->unreadable.status) {
        status = v->unreadable.status;
        inner = v->unreadable;
    }
    if (status == SPOOL_E_IO)
        spool_error_set(error, status, "%s: %s", path, inner.text);
    close(fd);
    free(path);
    return status == SPOOL_E_IO ? status : SPOOL_OK;
}

static void verify_letters(struct verify *v)
{
    char detail[200];

    v->file = "dead.mdb";
    for (size_t i = 0; i < v->letters_count; i++) {
        const struct letters *l = &v->letters[i];
        v->stream = l->stream;
        if (l->letters == l->said_letters && l->bytes == l->said_bytes)
            continue;
        snprintf(detail, sizeof(detail),
                 "there are %llu letters of %llu bytes, counted are %llu of %llu",
                 (unsigned long long)l->letters, (unsigned long long)l->bytes,
                 (unsigned long long)l->said_letters, (unsigned long long)l->said_bytes);
        problem(v, 0, "count", detail);
    }
}

/* --- a segment ------------------------------------------------------------------------------ */

/* What is carried from one segment of a stream to the next. */
struct running {
    uint32_t stream;
    uint64_t last_sequence;
    bool after_damage; /* offsets may be missing from `high` */
    struct high_table high;
};

static int compare_claims(const void *a, const void *b)
{
    const struct claim *x = a, *y = b;
    if (x->range.sequence != y->range.sequence)
        return x->range.sequence < y->range.sequence ? -1 : 1;
    return x->range.row < y->range.row ? -1 : x->range.row > y->range.row;
}

/* One range against its block and the range before it. */
static void verify_claim(struct verify *v, const struct claim *c, const struct claim *before,
                         const struct segment *segment, const struct spool_block_ref *refs)
{
    const struct segment_totals *t = &segment->totals;
    const char *kind = c->batch ? "seal" : "ack";
    uint64_t i = c->range.sequence - t->first_sequence;
    char detail[200];

    if (!t->blocks || c->range.sequence < t->first_sequence || i >= t->blocks) {
        snprintf(detail, sizeof(detail), "batch %llu names a block that segment %llu does not hold",
                 (unsigned long long)c->batch, (unsigned long long)segment->number);
        problem(v, c->range.sequence, kind, detail);
    } else if (c->range.row + (uint64_t)c->range.rows > refs[i].rows ||
               (!c->range.rows && refs[i].rows)) {
        snprintf(detail, sizeof(detail), "batch %llu names rows %u to %llu of a block of %u rows",
                 (unsigned long long)c->batch, c->range.row,
                 c->range.row + (unsigned long long)c->range.rows, refs[i].rows);
        problem(v, c->range.sequence, kind, detail);
    } else if (before && before->range.sequence == c->range.sequence &&
               (before->range.row + (uint64_t)before->range.rows > c->range.row ||
                !c->range.rows)) {
        snprintf(detail, sizeof(detail),
                 "rows from %u on are in batch %llu and in batch %llu (0: acknowledged)",
                 c->range.row, (unsigned long long)before->batch, (unsigned long long)c->batch);
        problem(v, c->range.sequence, "seal", detail);
    }
}

static void verify_claims(struct verify *v, uint32_t stream, const struct segment *segment,
                          const struct spool_block_ref *refs)
{
    struct claim *mine = malloc((v->claim_count + 1) * sizeof(*mine));
    size_t n = 0;

    if (!mine) {
        v->no_memory = true;
        return;
    }
    for (size_t i = 0; i < v->claim_count; i++)
        if (v->claims[i].stream == stream && v->claims[i].segment == segment->number)
            mine[n++] = v->claims[i];
    qsort(mine, n, sizeof(*mine), compare_claims);
    for (size_t i = 0; i < n; i++)
        verify_claim(v, &mine[i], i ? &mine[i - 1] : NULL, segment, refs);
    free(mine);
}

static void verify_offsets(struct verify *v, struct running *run, const struct spool_block_ref *ref,
                           const struct high_table *high)
{
    const struct high *before = high_find(&run->high, ref->origin);
    const struct high *after = high_find(high, ref->origin);
    char detail[200];

    if (!(ref->flags & SPOOL_BLOCK_REFILL) && before && before->offset >= ref->first_offset) {
        snprintf(detail, sizeof(detail), "offset %lld of origin %u comes after %lld",
                 (long long)ref->first_offset, ref->origin, (long long)before->offset);
        problem(v, ref->sequence, "offset", detail);
    }
    if (!after || after->offset < ref->last_offset) {
        snprintf(detail, sizeof(detail), "`high` of origin %u is below offset %lld", ref->origin,
                 (long long)ref->last_offset);
        problem(v, ref->sequence, "high", detail);
    }
    if (!origin_of(v->spool, ref->origin))
        problem(v, ref->sequence, "origin", "meta.mdb does not know the block's origin");
    if (!high_add(&run->high, ref->origin, ref->last_offset, NULL))
        v->no_memory = true;
}

static void verify_high(struct verify *v, struct running *run, const struct high_table *high,
                        const struct high_table *named)
{
    char detail[200];

    for (size_t i = 0; i < run->high.cap; i++) {
        const struct high *before = &run->high.slots[i], *now = high_find(high, before->origin);
        if (!before->origin || run->after_damage || (now && now->offset >= before->offset))
            continue;
        snprintf(detail, sizeof(detail), "`high` of origin %u fell below %lld", before->origin,
                 (long long)before->offset);
        problem(v, 0, "high", detail);
    }
    for (size_t i = 0; i < high->cap; i++) {
        const struct high *h = &high->slots[i];
        const struct origin *o = origin_of(v->spool, h->origin);
        const struct high *name = high_find(named, h->origin);
        if (!h->origin)
            continue;
        if (!name || !o || o->epoch != (uint64_t)name->offset) {
            snprintf(detail, sizeof(detail), "origin %u is not named as in meta.mdb", h->origin);
            problem(v, 0, "origin", detail);
        }
        if (!high_add(&run->high, h->origin, h->offset, NULL))
            v->no_memory = true;
    }
}

static void verify_blocks(struct verify *v, struct running *run, const char *path,
                          const struct segment *segment, const struct spool_block_ref *refs,
                          const struct high_table *high)
{
    struct spool_reader *reader = NULL;
    struct spool_error inner = {0};
    int status = reader_open_path(path, run->stream, segment->number, &reader, &inner);

    if (status != SPOOL_OK)
        problem(v, 0, kind_of(status, inner.text), inner.text);
    for (uint64_t i = 0;
         reader && i < segment->totals.blocks && spool_looks_go_on(v->spool, NULL) == SPOOL_OK;
         i++) {
        int64_t *offsets = NULL;
        void *payload = NULL;
        size_t size = 0;
        status = spool_reader_verify(reader, &refs[i], &inner);
        if (status == SPOOL_OK && refs[i].prefix_bytes > 128) {
            status = spool_reader_block(reader, &refs[i], &payload, &size, &offsets, &inner);
            free(payload);
            free(offsets);
        }
        if (status != SPOOL_OK)
            problem(v, refs[i].sequence, kind_of(status, inner.text), inner.text);
        verify_offsets(v, run, &refs[i], high);
    }
    spool_reader_close(reader);
}

static void verify_segment(struct verify *v, struct running *run, const char *path, uint64_t number)
{
    struct segment segment = {.number = number};
    struct spool_block_ref *refs = NULL;
    struct high_table high = {0}, named = {0};
    const struct segment_wants wants = {.refs = &refs, .high = &high, .origin_ids = &named};
    struct spool_error inner = {0};
    int status = segment_scan(v->spool, path, run->stream, false, &segment, &wants, &inner);

    for (size_t i = 0; i < v->batch_count; i++)
        if (v->batches[i].stream == run->stream && v->batches[i].segment == number)
            v->batches[i].found = true;
    if (status == SPOOL_E_NOMEM) {
        v->no_memory = true;
    } else if (status != SPOOL_OK) {
        problem(v, 0, kind_of(status, inner.text), inner.text);
        run->after_damage = true;
    } else {
        if (segment.base_sequence <= run->last_sequence)
            problem(v, segment.base_sequence, "sequence", "a sequence was used before");
        verify_blocks(v, run, path, &segment, refs, &high);
        verify_high(v, run, &high, &named);
        verify_claims(v, run->stream, &segment, refs);
        run->last_sequence =
            segment.totals.blocks ? segment.totals.last_sequence : segment.base_sequence - 1;
        run->after_damage = false;
    }
    high_free(&high);
    high_free(&named);
    free(refs);
}

/* Those that meta.mdb knows and that are not there. */
static void verify_missing(struct verify *v, uint32_t stream, const char *name,
                           const uint64_t *numbers, size_t count)
{
    uint64_t *listed = NULL;
    size_t listed_count = 0;
    struct spool_error inner = {0};
    char file[SPOOL_STREAM_NAME_MAX + 48];
    int status = listing_read(v->spool, stream, &listed, &listed_count, &inner);

    v->no_memory = v->no_memory || status == SPOOL_E_NOMEM;
    v->file = file;
    for (size_t i = 0; i < listed_count; i++) {
        if (contains_u64(numbers, count, listed[i]))
            continue;
        snprintf(file, sizeof(file), "streams/%s/%012llu.seg", name, (unsigned long long)listed[i]);
        problem(v, 0, "missing", "meta.mdb knows this segment, and the file is not there");
    }
    free(listed);
}

/* --- a stream ------------------------------------------------------------------------------- */

static void verify_batches(struct verify *v, uint32_t stream)
{
    char detail[200];

    v->file = "meta.mdb";
    for (size_t i = 0; i < v->batch_count; i++) {
        const struct batch *b = &v->batches[i];
        if (b->stream != stream)
            continue;
        if (!b->found) {
            snprintf(detail, sizeof(detail), "batch %llu is sealed in segment %llu, which is gone",
                     (unsigned long long)b->batch, (unsigned long long)b->segment);
            problem(v, 0, "seal", detail);
        }
        if (b->rows != b->range_rows) {
            snprintf(detail, sizeof(detail),
                     "batch %llu is sealed with %llu rows, its ranges have %llu",
                     (unsigned long long)b->batch, (unsigned long long)b->rows,
                     (unsigned long long)b->range_rows);
            problem(v, 0, "seal", detail);
        }
        if (stream && stream <= STREAMS_MAX && b->batch >= v->next_batch[stream - 1]) {
            snprintf(detail, sizeof(detail), "batch %llu is sealed, but numbered as unused",
                     (unsigned long long)b->batch);
            problem(v, 0, "batch", detail);
        }
    }
}

static uint32_t stream_id_of(const struct spool *spool, const char *name)
{
    uint32_t count = atomic_load(&spool->stream_count);

    for (uint32_t i = 1; i <= count; i++)
        if (stream_name_of(spool, i) && !strcmp(stream_name_of(spool, i), name))
            return i;
    return 0;
}

static int verify_stream(struct verify *v, const char *name, struct spool_error *error)
{
    struct running run = {.stream = stream_id_of(v->spool, name)};
    char *directory = NULL, file[SPOOL_STREAM_NAME_MAX + 48];
    uint64_t *numbers = NULL;
    size_t count = 0;
    int status;

    v->stream = name;
    if (asprintf(&directory, "%s/streams/%s", v->spool->path, name) < 0)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    status = list_segments(directory, &numbers, &count, error);
    snprintf(file, sizeof(file), "streams/%s", name);
    v->file = file;
    if (!run.stream && count)
        problem(v, 0, "stream", "meta.mdb does not know this stream");
    for (size_t i = 0; status == SPOOL_OK && run.stream && i < count; i++) {
        char *path = NULL;
        snprintf(file, sizeof(file), "streams/%s/%012llu.seg", name,
                 (unsigned long long)numbers[i]);
        path = path_join(v->spool->path, file);
        if (path)
            verify_segment(v, &run, path, numbers[i]);
        else
            v->no_memory = true;
        free(path);
        status = cannot_go_on(v, error);
    }
    if (status == SPOOL_OK && run.stream) {
        verify_missing(v, run.stream, name, numbers, count);
        verify_batches(v, run.stream);
        status = cannot_go_on(v, error);
    }
    high_free(&run.high);
    free(numbers);
    free(directory);
    return status;
}

static int verify_alone(struct spool *spool, const struct store *store, uint64_t *problems,
                        struct spool_error *error)
{
    struct verify *v = calloc(1, sizeof(*v));
    int status;

    if (!v)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory to verify a spool");
    v->spool = spool;
    status = verify_store(v, store, error);
    verify_letters(v);
    *problems = v->problems;
    if (status == SPOOL_OK)
        status = cannot_go_on(v, error);
    free(v->claims);
    free(v->batches);
    free(v->letters);
    free(v);
    return status;
}

int verify_meta(struct spool *spool, uint64_t *problems, struct spool_error *error)
{
    return verify_alone(spool, &spool->meta, problems, error);
}

int verify_dead(struct spool *spool, uint64_t *problems, struct spool_error *error)
{
    return verify_alone(spool, &spool->dead, problems, error);
}

int spool_verify(struct spool *spool, void (*each)(void *arg, const struct spool_problem *problem),
                 void *arg, uint64_t *problems, struct spool_error *error)
{
    struct verify *v = calloc(1, sizeof(*v));
    char **names = NULL;
    size_t count = 0;
    int status;

    *problems = 0;
    if (!v)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory to verify a spool");
    v->spool = spool;
    v->each = each;
    v->arg = arg;
    (void)verify_store(v, &spool->meta, NULL);
    (void)verify_store(v, &spool->dead, NULL);
    verify_letters(v);
    status = cannot_go_on(v, error);
    if (status == SPOOL_OK)
        status = spool_stream_names(spool, &names, &count, error);
    for (size_t i = 0; i < count; i++) {
        if (status == SPOOL_OK)
            status = verify_stream(v, names[i], error);
        if (status == SPOOL_OK)
            status = cannot_go_on(v, error);
        free(names[i]);
    }
    for (size_t i = 0; i < v->batch_count; i++)
        if (!stream_name_of(spool, v->batches[i].stream))
            problem(v, 0, "seal", "a batch is sealed for a stream that does not exist");
    *problems = v->problems;
    free(names);
    free(v->claims);
    free(v->batches);
    free(v->letters);
    free(v);
    return status;
}
