/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A new dead.mdb of the letters of a damaged one that can still be read. It is made whole under another
 * name and then takes the old one's place, which is kept: whatever dies in between, one of the two is
 * there under the name.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "spool/repair_int.h"

#define COMMIT_BYTES   (4 * MIB)
#define COMMIT_LETTERS 4096
#define PLACE_BYTES    320

struct letter {
    uint8_t *bytes; /* key, then value */
    size_t key_size, size;
};

struct rebuild {
    struct repair *repair;
    bool dry;
    uint64_t readable, damaged;
    uint64_t unreadable; /* of the damaged ones: the disk does not give them */
    uint64_t gaps;       /* pages whose letters are not known */
    bool half;           /* read by one meta page alone */
    struct letter letters[COMMIT_LETTERS];
    size_t count, bytes;
    int status; /* of writing */
    struct spool_error *error;
};

static int put_letters(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct rebuild *b = arg;
    int rc = 0;

    (void)error;
    for (size_t i = 0; !rc && i < b->count; i++)
        rc = dead_letter_copy(b->repair->spool, txn, b->letters[i].bytes, b->letters[i].key_size,
                              b->letters[i].bytes + b->letters[i].key_size, b->letters[i].size);
    return rc;
}

static void write_letters(struct rebuild *b)
{
    struct spool *spool = b->repair->spool;
    const unsigned part = 0;

    if (b->status == SPOOL_OK && b->count)
        b->status = store_write(spool, &spool->dead, &part, put_letters, b, b->error);
    for (size_t i = 0; i < b->count; i++)
        free(b->letters[i].bytes);
    b->count = b->bytes = 0;
}

static int keep_letter(struct rebuild *b, const struct tree_item *item, const uint8_t *value)
{
    uint8_t *bytes = malloc(item->key_size + item->size);

    if (!bytes)
        return SPOOL_E_NOMEM;
    memcpy(bytes, item->key, item->key_size);
    memcpy(bytes + item->key_size, value, item->size);
    b->letters[b->count++] = (struct letter){bytes, item->key_size, item->size};
    b->bytes += item->size;
    if (b->count == COMMIT_LETTERS || b->bytes >= COMMIT_BYTES)
        write_letters(b);
    return SPOOL_OK;
}

/* Of which letter a key is, in words. */
static const char *place_text(const struct rebuild *b, const uint8_t *key, size_t size,
                              char text[PLACE_BYTES])
{
    char stream[SPOOL_STREAM_NAME_MAX + 1];
    const struct origin *origin;
    uint32_t id = 0;
    int64_t offset = 0;

    if (dead_letter_place(key, size, stream, &id, &offset) != SPOOL_OK)
        return "a key that is none of a letter";
    origin = origin_of(b->repair->spool, id);
    snprintf(text, PLACE_BYTES, "offset %lld of %.150s in stream %s", (long long)offset,
             origin ? origin->name : "an origin without a name", stream);
    return text;
}

static void tell_gap(void *arg, const struct tree_gap *gap)
{
    struct rebuild *b = arg;
    char from[PLACE_BYTES], to[PLACE_BYTES];

    b->gaps++;
    if (strcmp(gap->db, "letters") != 0)
        repair_say(b->repair, "page %llu of dead.mdb can't be read", (unsigned long long)gap->page);
    else
        repair_say(b->repair,
                   "page %llu of dead.mdb can't be read: it is passed over, with the letters from "
                   "%s on to before %s",
                   (unsigned long long)gap->page,
                   gap->from ? place_text(b, gap->from, gap->from_size, from) : "the first one",
                   gap->to ? place_text(b, gap->to, gap->to_size, to) : "the end");
}

static void pass_over(struct rebuild *b, const struct tree_item *item)
{
    char text[PLACE_BYTES];

    b->damaged++;
    b->unreadable++;
    repair_say(b->repair, "the letter of %s can't be read: it is passed over",
               place_text(b, item->key, item->key_size, text));
}

/* A letter that is bad is counted; what can't be written ends the walk. */
static int each_letter(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct rebuild *b = arg;
    char stream[SPOOL_STREAM_NAME_MAX + 1];
    uint8_t *value = NULL;
    uint64_t bytes = 0;
    int status = tree_value(tree, item, (size_t)tree->file_bytes, &value, NULL);

    if (status == SPOOL_E_IO && !b->repair->skip_unreadable)
        return status;
    if (status == SPOOL_E_IO) {
        pass_over(b, item);
        return SPOOL_OK;
    }
    if (status == SPOOL_OK)
        status = dead_letter_check(item->key, item->key_size, value, item->size, stream, &bytes);
    if (status == SPOOL_OK)
        b->readable++;
    else if (status != SPOOL_E_NOMEM)
        b->damaged++;
    if (status == SPOOL_OK && !b->dry)
        status = keep_letter(b, item, value);
    free(value);
    if (status == SPOOL_E_NOMEM)
        return status;
    return b->status == SPOOL_OK ? SPOOL_OK : SPOOL_E_NOMEM; /* which is never stepped over */
}

/* The letters of path, into the new file unless dry. */
static int walk_letters(struct rebuild *b, const char *path)
{
    struct spool_error why = {0};
    int status =
        repair_walk_dead(b->repair, path, "letters", tell_gap, each_letter, b, &b->half, &why);

    write_letters(b);
    if (b->status != SPOOL_OK)
        return b->status;
    if (status == SPOOL_E_NOMEM)
        return repair_no_memory(b->error);
    if (status == SPOOL_E_IO || status == SPOOL_E_NOT_FOUND)
        return spool_error_set(b->error, status, "%s", why.text);
    if ((b->gaps || b->unreadable) && !b->readable)
        return spool_error_set(b->error, SPOOL_E_IO,
                               "no letter of %s can be read. It is left as it is; mend the disk, "
                               "or move the file away to go on without them",
                               path);
    if (status != SPOOL_OK)
        repair_say(b->repair,
                   "neither meta page of dead.mdb can be read: no letter is to be found");
    else if (b->half)
        repair_say(b->repair,
                   "one meta page of dead.mdb can't be read: what the last commit put in "
                   "may be missing, and what it removed be there again");
    return SPOOL_OK;
}

/* The old file under a name that no file has, the new one under its name. */
static int take_place(struct repair *r, const char *path, const char *fresh,
                      struct spool_error *error)
{
    char *aside = NULL;
    int status = SPOOL_OK;

    if (asprintf(&aside, "%s.old-%lld", path, (long long)clock_wall_ms()) < 0)
        return repair_no_memory(error);
    if (link(path, aside) < 0)
        status =
            spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot link %s to %s", path, aside);
    else if (rename(fresh, path) < 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot rename to %s", path);
    else
        status = fsync_directory(r->spool->path, error);
    if (status == SPOOL_OK)
        repair_say(r, "the old dead.mdb is kept as %s", aside);
    free(aside);
    return status;
}

static int rebuild(struct rebuild *b, const char *path, const char *fresh)
{
    struct spool *spool = b->repair->spool;
    int status;

    unlink(fresh); /* of an attempt that was cut off */
    status = dead_create(spool, fresh, b->error);
    if (status == SPOOL_OK)
        status = walk_letters(b, path);
    store_close(&spool->dead);
    if (status == SPOOL_OK)
        status = take_place(b->repair, path, fresh, b->error);
    if (status != SPOOL_OK)
        unlink(fresh);
    return status;
}

static int other_uuid(void *arg, const struct tree *tree, const struct tree_item *item)
{
    const uint8_t **uuid = arg;
    struct cursor c;

    (void)tree;
    if (item->data && item->key_size == 4 && !memcmp(item->key, "uuid", 4) &&
        !record_open(RECORD_INFO, item->key, 4, item->data, item->size, &c) &&
        cursor_left(&c) == 16 && memcmp(c.at, *uuid, 16) != 0)
        *uuid = NULL;
    return SPOOL_OK;
}

/* SPOOL_OK: dead.mdb is as it should be, or not there. */
static int look_at_dead(struct repair *r, struct spool_error *why)
{
    uint64_t problems = 0;
    bool writes = !r->spool->read_only;
    int status;

    r->spool->read_only = true; /* it is only looked at */
    status = dead_open(r->spool, why);
    r->spool->read_only = !writes;
    if (status == SPOOL_OK)
        status = verify_dead(r->spool, &problems, why);
    store_close(&r->spool->dead);
    if (status != SPOOL_OK || !problems)
        return status;
    return spool_error_set(why, SPOOL_E_CORRUPT, "dead.mdb has %llu damaged records",
                           (unsigned long long)problems);
}

int repair_dead(struct repair *r, bool *wrong, struct spool_error *error)
{
    char *path = path_join(r->spool->path, "dead.mdb");
    char *fresh = path_join(r->spool->path, "dead.mdb.repaired");
    const uint8_t *uuid = r->spool->uuid;
    struct spool_error why = {0};
    struct rebuild *b = calloc(1, sizeof(*b));
    int status = path && fresh && b ? SPOOL_OK : repair_no_memory(error);

    if (status != SPOOL_OK)
        goto done;
    status = look_at_dead(r, &why);
    if (status == SPOOL_E_IO && r->skip_unreadable)
        status = SPOOL_E_CORRUPT;
    if (status != SPOOL_E_CORRUPT) {
        if (status != SPOOL_OK && why.text[0])
            spool_error_set(error, status, "%s", why.text);
        goto done;
    }
    *wrong = true;
    repair_say(r, "%s", why.text);
    status = repair_walk_dead(r, path, "info", NULL, other_uuid, &uuid, NULL, error);
    if (is_cause_to_stop(status)) {
        if (status == SPOOL_E_NOMEM)
            repair_no_memory(error);
        goto done;
    }
    status = SPOOL_OK;
    if (!uuid) {
        repair_say(r, "dead.mdb is of another spool: move it away before the start");
        goto done;
    }
    *b = (struct rebuild){.repair = r, .dry = r->dry, .error = error};
    status = r->dry ? walk_letters(b, path) : rebuild(b, path, fresh);
    if (status == SPOOL_OK)
        repair_say(r, "dead.mdb%s: %llu letters can be read, %llu that are there can not%s",
                   r->dry ? "" : " is made anew", (unsigned long long)b->readable,
                   (unsigned long long)b->damaged,
                   b->gaps ? ", nor those of the pages that are passed over" : "");
done:
    free(b);
    free(fresh);
    free(path);
    return status;
}
