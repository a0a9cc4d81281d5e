/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a segment file whole: every tree page, and whether the databases agree. See segment.c for
   what stands in them. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/limits.h"
#include "spool/block.h"
#include "spool/spool_int.h"

/* --- bodies --------------------------------------------------------------------------------- */

void block_ref_encode(const struct spool_block_ref *r, int64_t last_arrival_ms, uint8_t *out)
{
    put_le64(out, r->page);
    put_le64(out + 8, (uint64_t)r->first_offset);
    put_le64(out + 16, (uint64_t)r->last_offset);
    put_le64(out + 24, (uint64_t)r->first_arrival_ms);
    put_le64(out + 32, (uint64_t)last_arrival_ms);
    put_le64(out + 40, r->raw_bytes);
    put_le64(out + 48, r->frames_bytes);
    put_le32(out + 56, r->prefix_bytes);
    put_le32(out + 60, r->origin);
    put_le32(out + 64, r->rows);
    put_le32(out + 68, r->flags);
}

int block_ref_decode(uint64_t segment, uint64_t sequence, struct cursor body,
                     struct spool_block_ref *r)
{
    const uint8_t *p = body.at;

    if (cursor_left(&body) != INDEX_BODY_BYTES)
        return SPOOL_E_CORRUPT;
    r->segment = segment;
    r->sequence = sequence;
    r->page = get_le64(p);
    r->first_offset = (int64_t)get_le64(p + 8);
    r->last_offset = (int64_t)get_le64(p + 16);
    r->first_arrival_ms = (int64_t)get_le64(p + 24);
    r->raw_bytes = get_le64(p + 40);
    r->frames_bytes = get_le64(p + 48);
    r->prefix_bytes = get_le32(p + 56);
    r->origin = get_le32(p + 60);
    r->rows = get_le32(p + 64);
    r->flags = get_le32(p + 68);
    if (r->frames_bytes > LIMIT_BLOCK_BYTES || r->prefix_bytes < BLOCK_HEADER_BYTES ||
        r->first_offset > r->last_offset || r->rows == UINT32_MAX || !r->origin)
        return SPOOL_E_CORRUPT;
    return SPOOL_OK;
}

void totals_encode(const struct segment_totals *t, uint8_t *out)
{
    put_le64(out, t->blocks);
    put_le64(out + 8, t->empty_blocks);
    put_le64(out + 16, t->rows);
    put_le64(out + 24, t->bytes);
    put_le64(out + 32, t->first_sequence);
    put_le64(out + 40, t->last_sequence);
    put_le64(out + 48, (uint64_t)t->oldest_ms);
}

static int totals_decode(struct cursor body, struct segment_totals *t)
{
    const uint8_t *p = body.at;

    if (cursor_left(&body) != TOTALS_BODY_BYTES)
        return SPOOL_E_CORRUPT;
    t->blocks = get_le64(p);
    t->empty_blocks = get_le64(p + 8);
    t->rows = get_le64(p + 16);
    t->bytes = get_le64(p + 24);
    t->first_sequence = get_le64(p + 32);
    t->last_sequence = get_le64(p + 40);
    t->oldest_ms = (int64_t)get_le64(p + 48);
    return SPOOL_OK;
}

/* --- reading -------------------------------------------------------------------------------- */

struct scan_block {
    uint64_t sequence, page, size;
};

struct scan {
    const struct spool *spool;
    uint32_t stream;
    bool salvage;
    struct segment *segment;
    const struct segment_wants *wants;
    struct spool_error *error;
    struct scan_block *blocks;
    size_t block_count, block_cap;
    struct spool_block_ref *refs;
    size_t ref_count, ref_cap;
    struct segment_totals found, stored;
    bool have_version, have_segment, have_schema, have_totals;
    uint64_t schema_hash;
};

static int scan_bad(struct scan *s, const char *what)
{
    return spool_error_set(s->error, SPOOL_E_CORRUPT, "%s", what);
}

static int grow(void *list, size_t *cap, size_t count, size_t size)
{
    void **at = list;
    void *more;

    if (count < *cap)
        return SPOOL_OK;
    more = realloc(*at, (*cap ? *cap * 2 : 64) * size);
    if (!more)
        return SPOOL_E_NOMEM;
    *at = more;
    *cap = *cap ? *cap * 2 : 64;
    return SPOOL_OK;
}

static int scan_segment_record(struct scan *s, struct cursor c)
{
    const uint8_t *uuid = NULL, *name = NULL, *destination = NULL;
    uint64_t number = 0, created = 0;
    uint32_t stream = 0;
    size_t name_size = 0, destination_size = 0;

    if (cursor_bytes(&c, 16, &uuid) || cursor_u32le(&c, &stream) || cursor_u64le(&c, &number) ||
        cursor_u64le(&c, &s->segment->base_sequence) || cursor_u64le(&c, &created) ||
        cursor_u64le(&c, &s->segment->schema_hash) || cursor_string(&c, &name, &name_size) ||
        cursor_string(&c, &destination, &destination_size))
        return scan_bad(s, "info: the segment's record is damaged");
    s->segment->foreign = memcmp(uuid, s->spool->uuid, 16) != 0 ||
                          (s->stream && stream != s->stream) || number != s->segment->number;
    if (memcmp(uuid, s->spool->uuid, 16) != 0)
        return scan_bad(s, "info: the segment belongs to another spool");
    if (s->segment->foreign)
        return scan_bad(s, "info: the segment belongs to another stream or has another number");
    if (s->wants->destination) {
        free(*s->wants->destination);
        *s->wants->destination = strndup((const char *)destination, destination_size);
        if (!*s->wants->destination)
            return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory for a destination");
    }
    s->have_segment = true;
    return SPOOL_OK;
}

static int scan_info(struct scan *s, const struct tree *tree, const struct tree_item *item)
{
    uint8_t *value = NULL;
    struct cursor body;
    uint32_t version = 0;
    int status = tree_value(tree, item, LIMIT_SCHEMA_BYTES + KIB, &value, s->error);

    if (status != SPOOL_OK)
        return status;
    status = record_open(RECORD_INFO, item->key, item->key_size, value, item->size, &body);
    if (status != SPOOL_OK) {
        status = scan_bad(s, "info: a record fails its checksum");
    } else if (item->key_size == 7 && !memcmp(item->key, "version", 7)) {
        status = cursor_u32le(&body, &version);
        s->have_version = true;
        if (status == SPOOL_OK && version > SPOOL_FORMAT_VERSION)
            status = spool_error_set(s->error, SPOOL_E_NEWER,
                                     "the segment has format version %u, this program knows %d",
                                     version, SPOOL_FORMAT_VERSION);
    } else if (item->key_size == 7 && !memcmp(item->key, "segment", 7)) {
        status = scan_segment_record(s, body);
    } else if (item->key_size == 6 && !memcmp(item->key, "schema", 6)) {
        s->have_schema = true;
        s->schema_hash = XXH3_64bits(body.at, cursor_left(&body));
        if (s->wants->schema) {
            *s->wants->schema_size = cursor_left(&body);
            free(*s->wants->schema);
            *s->wants->schema = value;
            value = NULL;
        }
    }
    free(value);
    return status;
}

static int scan_block(struct scan *s, const struct tree_item *item)
{
    if (item->key_size != 8 || !item->page)
        return scan_bad(s, "blocks: an entry is not a block");
    if (grow(&s->blocks, &s->block_cap, s->block_count, sizeof(*s->blocks)) != SPOOL_OK)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    s->blocks[s->block_count++] = (struct scan_block){get_be64(item->key), item->page, item->size};
    return SPOOL_OK;
}

static int scan_keep(struct scan *s, const struct spool_block_ref *ref)
{
    if (grow(&s->refs, &s->ref_cap, s->ref_count, sizeof(*s->refs)) != SPOOL_OK)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    s->refs[s->ref_count++] = *ref;
    return SPOOL_OK;
}

static int scan_index(struct scan *s, const struct tree *tree, const struct tree_item *item)
{
    struct spool_block_ref ref;
    struct cursor body;
    const struct scan_block *block;
    int status = item->key_size == 8 && item->data
                     ? record_open(RECORD_INDEX, item->key, 8, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = block_ref_decode(s->segment->number, get_be64(item->key), body, &ref);
    if (status != SPOOL_OK)
        return scan_bad(s, "index: an entry fails its checksum");
    if (s->salvage) {
        if (s->wants->salvaged_sequence && *s->wants->salvaged_sequence < ref.sequence)
            *s->wants->salvaged_sequence = ref.sequence;
        if (s->wants->high && !high_add(s->wants->high, ref.origin, ref.last_offset, NULL))
            return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
        return s->wants->refs ? scan_keep(s, &ref) : SPOOL_OK;
    }
    block = s->ref_count < s->block_count ? &s->blocks[s->ref_count] : NULL;
    if (!block || block->sequence != ref.sequence || block->page != ref.page ||
        block->size != block_value_bytes(ref.prefix_bytes, ref.frames_bytes, tree->page_bytes))
        return scan_bad(s, "index: it does not match the blocks");
    if (s->found.blocks && ref.sequence != s->found.last_sequence + 1)
        return scan_bad(s, "index: a sequence is missing");
    status = scan_keep(s, &ref);
    if (status != SPOOL_OK)
        return status;
    if (!s->found.blocks++) {
        s->found.first_sequence = ref.sequence;
        s->found.oldest_ms = ref.first_arrival_ms;
    }
    s->found.last_sequence = ref.sequence;
    s->found.empty_blocks += !ref.rows;
    s->found.rows += ref.rows;
    s->found.bytes += ref.frames_bytes;
    return SPOOL_OK;
}

static int scan_mark(struct cursor *body, struct spool_mark *mark)
{
    uint64_t timestamp = 0;
    int status = cursor_u64le(body, &timestamp);

    mark->timestamp_ms = (int64_t)timestamp;
    if (status == SPOOL_OK)
        status = cursor_u64le(body, &mark->hash);
    mark->known = status == SPOOL_OK;
    return status;
}

static int scan_high(struct scan *s, const struct tree_item *item)
{
    struct cursor body;
    uint64_t offset = 0;
    struct high h = {0};
    int status = item->key_size == 4 && item->data
                     ? record_open(RECORD_HIGH, item->key, 4, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = cursor_u64le(&body, &offset);
    h.offset = (int64_t)offset;
    if (status == SPOOL_OK && cursor_left(&body))
        status = scan_mark(&body, &h.mark);
    while (status == SPOOL_OK && cursor_left(&body) && h.earlier_count < SPOOL_TRACES - 1) {
        struct spool_trace *earlier = &h.earlier[h.earlier_count++];
        status = cursor_u64le(&body, &offset);
        earlier->offset = (int64_t)offset;
        if (status == SPOOL_OK)
            status = scan_mark(&body, &earlier->mark);
    }
    h.origin = item->key_size == 4 ? get_be32(item->key) : 0;
    if (status != SPOOL_OK || !h.origin)
        return scan_bad(s, "high: an entry fails its checksum");
    if (s->wants->high && !high_put(s->wants->high, &h))
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    return SPOOL_OK;
}

static int scan_origin(struct scan *s, const struct tree_item *item)
{
    struct cursor body;
    uint32_t epoch = 0;
    int status = item->key_size == 4 && item->data
                     ? record_open(RECORD_ORIGIN, item->key, 4, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = cursor_u32le(&body, &epoch);
    if (status != SPOOL_OK || !get_be32(item->key))
        return scan_bad(s, "origins: an entry fails its checksum");
    if (s->wants->origin_ids && !high_add(s->wants->origin_ids, get_be32(item->key), epoch, NULL))
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    return SPOOL_OK;
}

static int scan_item(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct scan *s = arg;
    struct cursor body;
    int db = 0;

    while (db < DB_COUNT && strcmp(item->db, segment_db_names[db]) != 0)
        db++;
    switch (db) {
    case DB_INFO:
        return scan_info(s, tree, item);
    case DB_ORIGINS:
        return scan_origin(s, item);
    case DB_BLOCKS:
        return scan_block(s, item);
    case DB_INDEX:
        return scan_index(s, tree, item);
    case DB_HIGH:
        return scan_high(s, item);
    case DB_TOTALS:
        if (!item->data ||
            record_open(RECORD_TOTALS, item->key, item->key_size, item->data, item->size, &body) ||
            totals_decode(body, &s->stored))
            return scan_bad(s, "totals: the record fails its checksum");
        s->have_totals = true;
        return SPOOL_OK;
    default:
        return scan_bad(s, "an unknown database");
    }
}

/* What only shows when everything was read. The databases come in the order of their names, so
   blocks were complete before index began. */
static int scan_finish(struct scan *s)
{
    if (!s->have_version || !s->have_segment || !s->have_schema || !s->have_totals)
        return scan_bad(s, "info: a record is missing");
    if (s->schema_hash != s->segment->schema_hash)
        return scan_bad(s, "info: the schema is not the one the segment was made with");
    if (s->ref_count != s->block_count)
        return scan_bad(s, "index: it does not match the blocks");
    if (memcmp(&s->found, &s->stored, sizeof(s->found)) != 0)
        return scan_bad(s, "totals: they do not match the blocks");
    if (s->found.blocks && s->found.first_sequence != s->segment->base_sequence)
        return scan_bad(s, "index: its first sequence is not the segment's");
    return SPOOL_OK;
}

static int by_sequence(const void *a, const void *b)
{
    const struct spool_block_ref *x = a, *y = b;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

/* Of a damaged file: its entries, if it is known that they are of this segment. */
static void give_salvaged(struct scan *s)
{
    size_t n = 0;

    if (!s->have_segment || !s->ref_count)
        return;
    qsort(s->refs, s->ref_count, sizeof(*s->refs), by_sequence);
    for (size_t i = 0; i < s->ref_count; i++)
        if (!n || s->refs[i].sequence != s->refs[n - 1].sequence)
            s->refs[n++] = s->refs[i];
    *s->wants->refs = s->refs;
    *s->wants->ref_count = n;
    s->refs = NULL;
}

static int give_rows(struct scan *s)
{
    uint32_t *rows = malloc((s->ref_count + 1) * sizeof(*rows));

    if (!rows)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    for (size_t i = 0; i < s->ref_count; i++)
        rows[i] = s->refs[i].rows;
    *s->wants->rows = rows;
    return SPOOL_OK;
}

int segment_scan(const struct spool *spool, const char *path, uint32_t stream, bool salvage,
                 struct segment *segment, const struct segment_wants *wants,
                 struct spool_error *error)
{
    static const struct segment_wants nothing;
    struct scan s = {
        .spool = spool,
        .stream = stream,
        .salvage = salvage,
        .segment = segment,
        .wants = wants ? wants : &nothing,
        .error = error,
    };
    struct tree tree;
    bool half;
    int status, fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return spool_error_set_errno(error, errno == ENOENT ? SPOOL_E_NOT_FOUND : SPOOL_E_IO, errno,
                                     "cannot open %s", path);
    status = salvage ? tree_open_salvage(&tree, fd, 0, &half, error) : tree_open(&tree, fd, error);
    if (status == SPOOL_OK)
        status = tree_walk(&tree, NULL, salvage ? TREE_SALVAGE : 0, scan_item, &s, error);
    if (status == SPOOL_OK)
        status = scan_finish(&s);
    if (status == SPOOL_OK)
        segment->totals = s.found;
    if (status == SPOOL_OK && s.wants->rows)
        status = give_rows(&s);
    if (salvage && s.wants->refs) {
        give_salvaged(&s);
        if (s.wants->schema && (!s.have_segment || s.schema_hash != segment->schema_hash)) {
            free(*s.wants->schema);
            *s.wants->schema = NULL;
        }
    } else if (status == SPOOL_OK && s.wants->refs) {
        *s.wants->refs = s.refs;
        s.refs = NULL;
    }
    close(fd);
    free(s.refs);
    free(s.blocks);
    return status;
}
