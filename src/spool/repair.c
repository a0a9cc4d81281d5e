/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new meta.mdb of what the segments say of themselves, where the old one is gone or damaged.
 *
 * Each segment names its spool, stream, number, first sequence, and every origin that has come so
 * far. What only meta.mdb knew is lost: acknowledgements, seals, discards and other notes. So
 *   - all blocks that are there count as waiting, and as possibly delivered (rebuilt_to);
 *   - where numbers are missing between segments, one is listed, so that the opening finds it
 *     missing and has what lay there read again: it may have been a segment that was acknowledged,
 *     or one that was damaged and stood for a range that was still being read again;
 *   - batch numbers go on at the clock, above all that were used.
 * What Kafka's group committed is known from its metadata, and is not sent again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "spool/repair_int.h"

void repair_say(struct repair *r, const char *format, ...)
{
    char line[600];
    va_list args;

    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    r->say(r->arg, line);
}

/* --- whose it is ---------------------------------------------------------------------------- */

static int dead_uuid(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct repair *r = arg;
    struct cursor c;

    (void)tree;
    if (item->data && item->key_size == 4 && !memcmp(item->key, "uuid", 4) &&
        !record_open(RECORD_INFO, item->key, 4, item->data, item->size, &c) &&
        cursor_left(&c) == 16) {
        memcpy(r->spool->uuid, c.at, 16);
        r->uuid_known = true;
    }
    return SPOOL_OK;
}

static size_t count_of(const struct repair *r, const uint8_t *uuid)
{
    size_t n = 0;

    for (size_t i = 0; i < r->stream_count; i++)
        for (size_t k = 0; k < r->streams[i].count; k++)
            n += r->streams[i].segments[k].readable &&
                 !memcmp(r->streams[i].segments[k].uuid, uuid, 16);
    return n;
}

/* That of dead.mdb where a segment has it too, else that of most segments. */
static int choose_uuid(struct repair *r, struct spool_error *error)
{
    char *dead = path_join(r->spool->path, "dead.mdb");
    const uint8_t *best = NULL;
    int status;

    if (!dead)
        return repair_no_memory(error);
    status = repair_walk_dead(r, dead, "info", NULL, dead_uuid, r, NULL, error);
    free(dead);
    if (is_cause_to_stop(status))
        return status == SPOOL_E_NOMEM ? repair_no_memory(error) : status;
    if (r->uuid_known && count_of(r, r->spool->uuid))
        best = r->spool->uuid;
    for (size_t i = 0; i < r->stream_count && best != r->spool->uuid; i++)
        for (size_t k = 0; k < r->streams[i].count; k++) {
            const struct told *t = &r->streams[i].segments[k];
            if (t->readable && (!best || count_of(r, t->uuid) > count_of(r, best)))
                best = t->uuid;
        }
    if (!best)
        return spool_error_set(error, SPOOL_E_NOT_FOUND,
                               "no segment in %s says which spool it is of: there is nothing to "
                               "make a meta.mdb of. Kafka's rows come again in a new, empty spool",
                               r->spool->path);
    memmove(r->spool->uuid, best, 16);
    uuid_to_text(r->spool->uuid, r->spool->uuid_text);
    return SPOOL_OK;
}

/* --- streams and origins -------------------------------------------------------------------- */

static bool id_taken(const struct repair *r, uint32_t id)
{
    for (size_t i = 0; i < r->stream_count; i++)
        if (r->streams[i].id == id)
            return true;
    return false;
}

static void choose_ids(struct repair *r)
{
    for (size_t i = 0; i < r->stream_count; i++) {
        struct told_stream *s = &r->streams[i];
        uint32_t id = 0;
        for (size_t k = 0; k < s->count; k++) {
            struct told *t = &s->segments[k];
            t->ours = t->readable && !memcmp(t->uuid, r->spool->uuid, 16);
            if (t->ours)
                id = t->stream;
            if (t->ours && t->last_sequence > s->last_sequence)
                s->last_sequence = t->last_sequence;
            if (t->ours && t->base_sequence - 1 > s->last_sequence)
                s->last_sequence = t->base_sequence - 1;
        }
        if (!id_taken(r, id))
            s->id = id;
        /* The next block's number is jumped to where the newest can't be read: recover.c. How many it
           has is not known then. */
        if (s->count && !(s->segments[s->count - 1].ours && s->segments[s->count - 1].counted))
            s->last_sequence += SEQUENCE_JUMP / 2;
        r->last_id = s->id > r->last_id ? s->id : r->last_id;
    }
    for (size_t i = 0; i < r->stream_count; i++)
        if (!r->streams[i].id) /* nothing in it can be read: any will do */
            r->streams[i].id = ++r->last_id;
}

static int keep_origin(struct repair *r, uint32_t id, uint32_t epoch, const void *name, size_t size)
{
    struct told_origin *more;

    if (high_find(&r->kept, id))
        return SPOOL_OK;
    if (r->origin_count == r->origin_cap) {
        r->origin_cap = r->origin_cap ? r->origin_cap * 2 : 64;
        more = realloc(r->origins, r->origin_cap * sizeof(*more));
        if (!more)
            return SPOOL_E_NOMEM;
        r->origins = more;
    }
    more = &r->origins[r->origin_count];
    *more = (struct told_origin){id, epoch, size, malloc(size + 1)};
    if (!more->name)
        return SPOOL_E_NOMEM;
    memcpy(more->name, name, size);
    r->origin_count++;
    return high_add(&r->kept, id, 0, NULL) ? SPOOL_OK : SPOOL_E_NOMEM;
}

/* One whose name is lost: its number must not be given to another one, which would then be taken to have
   its offsets. */
static int keep_nameless(struct repair *r, uint32_t id)
{
    char name[32];
    int n = snprintf(name, sizeof(name), "unknown/%u", id);

    return id ? keep_origin(r, id, 1, name, (size_t)n) : SPOOL_OK;
}

static int told_origin(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct cursor c;
    uint32_t epoch = 0;

    (void)tree;
    if (!item->data || item->key_size != 4 ||
        record_open(RECORD_ORIGIN, item->key, 4, item->data, item->size, &c) ||
        cursor_u32le(&c, &epoch) || !cursor_left(&c) || cursor_left(&c) > ORIGIN_NAME_MAX ||
        !get_be32(item->key))
        return SPOOL_OK;
    return keep_origin(arg, get_be32(item->key), epoch, c.at, cursor_left(&c));
}

/* Of a segment that does not say whose it is: the others go before it. */
static int told_silent_origin(void *arg, const struct tree *tree, const struct tree_item *item)
{
    const struct repair *r = arg;

    for (size_t i = 0; i < r->origin_count; i++) {
        const struct told_origin *o = &r->origins[i];
        if (item->size == o->name_size + 4 + RECORD_CHECKSUM_BYTES && item->data &&
            get_le32(item->data) == o->epoch && !memcmp(item->data + 4, o->name, o->name_size))
            return SPOOL_OK;
    }
    return told_origin(arg, tree, item);
}

static int told_high(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct cursor c;

    (void)tree;
    if (!item->data || item->key_size != 4 ||
        record_open(RECORD_HIGH, item->key, 4, item->data, item->size, &c))
        return SPOOL_OK;
    return keep_nameless(arg, get_be32(item->key));
}

static int told_block(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct spool_block_ref ref;
    struct cursor c;

    (void)tree;
    if (!item->data || item->key_size != 8 ||
        record_open(RECORD_INDEX, item->key, 8, item->data, item->size, &c) ||
        block_ref_decode(0, get_be64(item->key), c, &ref))
        return SPOOL_OK;
    return keep_nameless(arg, ref.origin);
}

static int told_letter(void *arg, const struct tree *tree, const struct tree_item *item)
{
    const uint8_t *end = memchr(item->key, 0, item->key_size);

    (void)tree;
    if (!end || (size_t)(item->key + item->key_size - end) != 13)
        return SPOOL_OK;
    return keep_nameless(arg, get_be32(end + 1));
}

typedef int told_visit(void *arg, const struct tree *tree, const struct tree_item *item);

/* One database of every segment that is ours, or of those that are silent; the newest first, for it
   names the most. */
static int read_each(struct repair *r, bool silent, const char *db, told_visit *visit,
                     struct spool_error *error)
{
    int status = SPOOL_OK;

    for (size_t i = 0; status == SPOOL_OK && i < r->stream_count; i++) {
        const struct told_stream *s = &r->streams[i];
        for (size_t k = s->count; status == SPOOL_OK && k-- > 0;) {
            const struct told *t = &s->segments[k];
            char *path = told_path(s, t->number);
            if (!path)
                status = SPOOL_E_NOMEM;
            else if (silent ? t->silent : t->ours)
                status = repair_walk(path, db, visit, r, NULL, error);
            if (!is_cause_to_stop(status))
                status = SPOOL_OK;
            free(path);
        }
    }
    return status;
}

static int read_origins(struct repair *r, struct spool_error *error)
{
    static const struct {
        const char *db;
        told_visit *visit[2]; /* of ours, of the silent ones */
    } passes[] = {{"origins", {told_origin, told_silent_origin}},
                  {"high", {told_high, told_high}},
                  {"index", {told_block, told_block}}};
    char *dead = path_join(r->spool->path, "dead.mdb");
    int status = dead ? SPOOL_OK : SPOOL_E_NOMEM;

    for (size_t i = 0; status == SPOOL_OK && i < 6; i++)
        status = read_each(r, i % 2, passes[i / 2].db, passes[i / 2].visit[i % 2], error);
    if (status == SPOOL_OK)
        status = repair_walk_dead(r, dead, "letters", NULL, told_letter, r, NULL, error);
    free(dead);
    if (status == SPOOL_E_NOMEM)
        return repair_no_memory(error);
    return status == SPOOL_E_IO ? status : SPOOL_OK;
}

/* --- writing -------------------------------------------------------------------------------- */

static int write_stream(MDB_txn *txn, const struct repair *r, const struct told_stream *s)
{
    const struct spool *spool = r->spool;
    uint8_t body[12];
    uint64_t before = 0;
    int rc;

    put_le32(body, s->id);
    put_le64(body + 4, (uint64_t)clock_wall_ms());
    rc = record_put(txn, spool->meta_streams, RECORD_STREAM, s->name, strlen(s->name), body,
                    sizeof(body), 0);
    for (size_t k = 0; !rc && k < s->count; k++) {
        uint64_t number = s->segments[k].number;
        if (number > before + 1)
            rc = listing_put(txn, spool->meta_notes, s->id, number - 1);
        if (!rc)
            rc = listing_put(txn, spool->meta_notes, s->id, number);
        before = number;
    }
    return rc || !s->count ? rc : rebuilt_put(txn, spool->meta_notes, s->id, s->last_sequence);
}

static int write_origin(MDB_txn *txn, const struct spool *spool, const struct told_origin *o)
{
    uint8_t id_be[4], id_le[4], key[ORIGIN_NAME_MAX + 8], body[ORIGIN_NAME_MAX + 4];
    int rc;

    put_be32(id_be, o->id);
    put_le32(id_le, o->id);
    put_le32(body, o->epoch);
    memcpy(body + 4, o->name, o->name_size);
    memcpy(key, o->name, o->name_size);
    key[o->name_size] = 0;
    put_be32(key + o->name_size + 1, o->epoch);
    rc = record_put(txn, spool->meta_origins, RECORD_ORIGIN, id_be, 4, body, o->name_size + 4, 0);
    return rc ? rc
              : record_put(txn, spool->meta_origin_names, RECORD_ORIGIN_NAME, key, o->name_size + 5,
                           id_le, 4, 0);
}

static int write_all(MDB_txn *txn, void *arg)
{
    struct repair *r = arg;
    int rc = meta_fill(r->spool, txn);

    for (size_t i = 0; !rc && i < r->stream_count; i++)
        rc = write_stream(txn, r, &r->streams[i]);
    for (size_t i = 0; !rc && i < r->origin_count; i++)
        rc = write_origin(txn, r->spool, &r->origins[i]);
    return rc;
}

/* Renames the old file to a name that no file has, then makes the new one. */
static int replace_meta(struct repair *r, struct spool_error *error)
{
    struct spool *spool = r->spool;
    char *path = path_join(spool->path, "meta.mdb"), *aside = NULL;
    bool moved = false;
    int status = SPOOL_OK;

    if (!path || asprintf(&aside, "%s.old-%lld", path, (long long)clock_wall_ms()) < 0) {
        free(path);
        return repair_no_memory(error);
    }
    if (renameat2(AT_FDCWD, path, AT_FDCWD, aside, RENAME_NOREPLACE) == 0)
        moved = true;
    else if (errno != ENOENT)
        status =
            spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot rename %s to %s", path, aside);
    if (status == SPOOL_OK)
        status = store_open(spool, &spool->meta, spool->meta_reserve_bytes, write_all, r, error);
    if (status != SPOOL_OK && moved && renameat2(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE))
        repair_say(r, "the old meta.mdb is in %s", aside);
    else if (moved && status == SPOOL_OK)
        repair_say(r, "the old meta.mdb is kept as %s", aside);
    free(path);
    free(aside);
    return status;
}

/* --- the whole ------------------------------------------------------------------------------ */

static void say_stream(struct repair *r, const struct told_stream *s)
{
    size_t readable = 0, gaps = 0;

    for (size_t k = 0; k < s->count; k++) {
        const struct told *t = &s->segments[k];
        readable += t->ours;
        gaps += t->number > (k ? s->segments[k - 1].number : 0) + 1;
        if (!t->ours)
            repair_say(r, "stream %s, segment %llu: %s; it is left as it is", s->name,
                       (unsigned long long)t->number,
                       t->readable ? "it is of another spool" : "it does not say whose it is");
    }
    repair_say(r, "stream %s: number %u, %zu segments, %zu of them readable, blocks up to %llu",
               s->name, s->id, s->count, readable, (unsigned long long)s->last_sequence);
    if (gaps)
        repair_say(
            r,
            "stream %s: numbers are missing at %zu places. Those were delivered, or lost: what "
            "Kafka "
            "has of them from the committed offset on is read again",
            s->name, gaps);
}

/* SPOOL_OK: meta.mdb is as it should be. */
static int look_at_meta(struct repair *r, struct spool_error *why, struct spool_error *error)
{
    uint64_t problems = 0;
    bool writes = !r->spool->read_only;
    int status;

    r->spool->read_only = true; /* it is only looked at */
    status = meta_open(r->spool, why);
    r->spool->read_only = !writes;
    if (status == SPOOL_OK)
        status = verify_meta(r->spool, &problems, error);
    store_close(&r->spool->meta);
    if (status == SPOOL_OK && problems) {
        spool_error_set(why, SPOOL_E_CORRUPT, "meta.mdb has %llu damaged records",
                        (unsigned long long)problems);
        status = SPOOL_E_CORRUPT;
    }
    if (status == SPOOL_E_NOT_FOUND)
        spool_error_set(why, SPOOL_E_CORRUPT, "meta.mdb is missing");
    return status == SPOOL_E_NOT_FOUND ? SPOOL_E_CORRUPT : status;
}

static void repair_free(struct repair *r)
{
    for (size_t i = 0; i < r->stream_count; i++) {
        free(r->streams[i].name);
        free(r->streams[i].directory);
        free(r->streams[i].segments);
    }
    free(r->streams);
    for (size_t i = 0; i < r->origin_count; i++)
        free(r->origins[i].name);
    free(r->origins);
    high_free(&r->kept);
    spool_close(r->spool);
}

static int repair_meta(struct repair *r, bool *wrong, struct spool_error *error)
{
    struct spool_error why = {0};
    int status = look_at_meta(r, &why, error);

    if (status != SPOOL_E_CORRUPT) {
        if (status != SPOOL_OK && why.text[0])
            spool_error_set(error, status, "%s", why.text);
        else if (status == SPOOL_OK)
            repair_say(r, "meta.mdb is sound");
        return status;
    }
    *wrong = true;
    repair_say(r, "%s", why.text);
    status = repair_read(r, error);
    if (status == SPOOL_OK)
        status = choose_uuid(r, error);
    if (status != SPOOL_OK)
        return status;
    choose_ids(r);
    status = read_origins(r, error);
    if (status != SPOOL_OK)
        return status;
    repair_say(r, "the spool is %s, with %zu origins", r->spool->uuid_text, r->origin_count);
    for (size_t i = 0; i < r->stream_count; i++)
        say_stream(r, &r->streams[i]);
    repair_say(
        r, "not to be had again: acknowledgements, seals, discards, the cached columns of tables. "
           "All rows in the segments count as waiting: what lies below the group's committed "
           "offset is not sent again, the rest is asked about where the table has origin columns, "
           "and is a possible duplicate elsewhere");
    if (r->dry)
        return SPOOL_OK;
    status = replace_meta(r, error);
    if (status == SPOOL_OK)
        repair_say(r, "meta.mdb is made anew");
    return status;
}

/* Else ids that only dead.mdb or a segment knows would be given away a second time. */
static int can_open(const struct repair *r, const char *name, struct spool_error *error)
{
    char *path = path_join(r->spool->path, name);
    int status = path ? repair_can_open(path, error) : repair_no_memory(error);

    free(path);
    return status;
}

/* Before anything else is read: it may be all that is wrong with the file. */
static int mend(struct repair *r, const char *name, bool *wrong, struct spool_error *error)
{
    const bool skips = r->skip_unreadable && !strcmp(name, "dead.mdb");
    char *path = r->dry ? NULL : path_join(r->spool->path, name);
    struct spool_error why = {0};
    bool mended = false;
    int status = SPOOL_OK;

    if (!r->dry)
        status = path ? tree_mend(path, &mended, &why) : repair_no_memory(&why);
    if (status == SPOOL_E_IO && why.sys_errno &&
        skips) /* the page that is not read has no number */
        status = SPOOL_OK;
    if (status != SPOOL_OK && error)
        *error = why;
    if (mended)
        repair_say(r, "%s: the number of its last commit is put right", name);
    *wrong = *wrong || mended;
    free(path);
    return status;
}

int spool_repair(const char *path, unsigned flags, void (*say_line)(void *arg, const char *line),
                 void *arg, bool *wrong, struct spool_error *error)
{
    struct repair r = {.dry = flags & SPOOL_REPAIR_DRY,
                       .skip_unreadable = flags & SPOOL_REPAIR_SKIP_UNREADABLE,
                       .say = say_line,
                       .arg = arg};
    int status;

    *wrong = false;
    r.spool = calloc(1, sizeof(*r.spool));
    if (!r.spool)
        return repair_no_memory(error);
    r.spool->lock_fd = -1;
    r.spool->read_only = r.dry;
    r.spool->meta_reserve_bytes = DEFAULT_RESERVE;
    r.spool->path = strdup(path);
    status = r.spool->path ? SPOOL_OK : repair_no_memory(error);
    if (status == SPOOL_OK && access(path, F_OK) < 0)
        status = spool_error_set(error, SPOOL_E_NOT_FOUND, "there is no spool in %s", path);
    if (status == SPOOL_OK)
        status = spool_take_lock(r.spool, error);
    if (status == SPOOL_OK)
        status = can_open(&r, "meta.mdb", error);
    if (status == SPOOL_OK)
        status = can_open(&r, "dead.mdb", error);
    if (status == SPOOL_OK)
        status = mend(&r, "meta.mdb", wrong, error);
    if (status == SPOOL_OK)
        status = mend(&r, "dead.mdb", wrong, error);
    if (status == SPOOL_OK)
        status = repair_meta(&r, wrong, error);
    if (status == SPOOL_OK)
        status = repair_dead(&r, wrong, error);
    if (status == SPOOL_OK && !*wrong)
        repair_say(&r, "there is nothing to repair");
    repair_free(&r);
    return status;
}
