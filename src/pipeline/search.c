/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/search.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "spool.h"

#define NAMES_CONFIRMED   3
#define BLAMELESS_MAX     8 /* rows refused beside others only, then the search ends */
#define SAMPLES           64
#define SAMPLES_BAD_MIN   8   /* fewer bad ones say nothing */
#define SAMPLES_FACTOR    4.0 /* times the ratio, or half way to all: then it is no chance */
#define SAMPLE_AFTER_BAD  16  /* and again at each doubling */
#define SAMPLE_AT_DENSITY 0.05

enum trial_kind {
    TRIAL_GROUP,  /* rows not yet looked at */
    TRIAL_NAMED,  /* a row the server named, alone */
    TRIAL_HALF,   /* the first half of rows of which one at least is bad */
    TRIAL_SINGLE, /* the row that is left of them, alone */
    TRIAL_SAMPLE
};

struct slot {
    uint64_t at, end;    /* rows to look at */
    struct row_span bad; /* holds a bad row, found by halving; count 0: none is looked for */
    uint64_t named;      /* of the batch, to be tried alone; valid if has_name */
    bool has_name;
    bool busy;
    enum trial_kind kind;
    struct row_span trial;
};

struct search {
    struct slot slots[SEARCH_SLOTS];
    unsigned slot_count;
    const uint32_t *block_rows;
    size_t blocks, next_block;
    uint64_t next_row; /* first of next_block */
    uint64_t rows;     /* of the batch */
    uint64_t looked_at;
    uint64_t trials;
    struct bad_row *bad;
    size_t bad_count, bad_cap;
    bool sorted;
    int named_code; /* whose names are being confirmed */
    unsigned names_confirmed;
    bool names_wrong;
    unsigned blameless;
    unsigned samples_wanted, samples_out, samples_done, samples_bad;
    size_t sample_at_bad;
    uint64_t random;
};

struct search *search_create(const uint32_t *block_rows, size_t blocks, unsigned slots,
                             uint64_t seed)
{
    struct search *s = calloc(1, sizeof(*s));
    uint32_t *copy = calloc(blocks ? blocks : 1, sizeof(*copy));

    assert(slots >= 1 && slots <= SEARCH_SLOTS);
    if (!s || !copy) {
        free(s);
        free(copy);
        return NULL;
    }
    for (size_t i = 0; i < blocks; i++) {
        copy[i] = block_rows[i];
        s->rows += block_rows[i];
    }
    s->block_rows = copy;
    s->blocks = blocks;
    s->slot_count = slots;
    s->sample_at_bad = SAMPLE_AFTER_BAD;
    s->random = seed | 1;
    return s;
}

void search_free(struct search *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->bad_count; i++)
        free(s->bad[i].reason);
    free(s->bad);
    free((void *)(uintptr_t)s->block_rows);
    free(s);
}

/* xorshift64 */
static uint64_t search_random(struct search *s)
{
    s->random ^= s->random << 13;
    s->random ^= s->random >> 7;
    s->random ^= s->random << 17;
    return s->random;
}

static bool names_believed(const struct search *s, int code)
{
    return s->names_confirmed >= NAMES_CONFIRMED && code == s->named_code && !s->names_wrong;
}

/* --- what to try ---------------------------------------------------------------------------- */

/*
 * Where rows are named a refusal costs one trial whatever the size; smaller groups save bytes.
 * Where they are not, about every other trial of a group should pass.
 */
static uint64_t group_size(const struct search *s)
{
    uint64_t gap, size = 1;

    if (s->bad_count < 4)
        return UINT64_MAX;
    gap = s->looked_at / s->bad_count;
    if (s->names_confirmed && !s->names_wrong)
        return 8 * gap + 1;
    while (size * 3 / 2 < gap)
        size *= 2;
    return size;
}

static bool take_block(struct search *s, struct slot *slot)
{
    while (s->next_block < s->blocks && s->block_rows[s->next_block] == 0)
        s->next_block++;
    if (s->next_block == s->blocks)
        return false;
    slot->at = s->next_row;
    slot->end = slot->at + s->block_rows[s->next_block++];
    s->next_row = slot->end;
    return true;
}

bool search_next(struct search *s, unsigned index, struct row_span *span)
{
    struct slot *slot = &s->slots[index];
    uint64_t size;

    assert(index < s->slot_count && !slot->busy);
    if (s->blameless >= BLAMELESS_MAX && s->blameless > s->bad_count)
        return false;
    if (s->samples_wanted) {
        s->samples_wanted--;
        s->samples_out++;
        slot->kind = TRIAL_SAMPLE;
        slot->trial = (struct row_span){search_random(s) % s->rows, 1};
    } else if (slot->has_name) {
        slot->kind = TRIAL_NAMED;
        slot->trial = (struct row_span){slot->named, 1};
    } else if (slot->bad.count > 1) {
        slot->kind = TRIAL_HALF;
        slot->trial = (struct row_span){slot->bad.first, slot->bad.count / 2};
    } else if (slot->bad.count == 1) {
        slot->kind = TRIAL_SINGLE;
        slot->trial = slot->bad;
    } else if (slot->at < slot->end || take_block(s, slot)) {
        size = group_size(s);
        slot->kind = TRIAL_GROUP;
        slot->trial = (struct row_span){slot->at, slot->end - slot->at};
        if (slot->trial.count > size)
            slot->trial.count = size;
    } else {
        return false;
    }
    slot->busy = true;
    *span = slot->trial;
    return true;
}

/* --- what came of it ------------------------------------------------------------------------ */

static int bad_add(struct search *s, uint64_t row, int code, const char *reason)
{
    if (s->bad_count == s->bad_cap) {
        size_t cap = s->bad_cap ? s->bad_cap * 2 : 64;
        struct bad_row *grown = realloc(s->bad, cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        s->bad = grown;
        s->bad_cap = cap;
    }
    s->bad[s->bad_count] = (struct bad_row){row, code, strndup(reason, SEARCH_REASON_SIZE - 1)};
    if (!s->bad[s->bad_count].reason)
        return SPOOL_E_NOMEM;
    s->bad_count++;
    s->sorted = false;
    if (s->bad_count >= s->sample_at_bad) {
        s->sample_at_bad *= 2;
        if ((double)s->bad_count > SAMPLE_AT_DENSITY * (double)s->looked_at) {
            s->samples_wanted = SAMPLES;
            s->samples_done = s->samples_bad = 0;
        }
    }
    return SPOOL_OK;
}

/* All rows of the slot before `to` are known by now. */
static void slot_move(struct search *s, struct slot *slot, uint64_t to)
{
    assert(to >= slot->at && to <= slot->end);
    s->looked_at += to - slot->at;
    slot->at = to;
    slot->bad.count = 0;
    slot->has_name = false;
}

static int group_refused(struct search *s, struct slot *slot, uint64_t named, int code,
                         const char *reason)
{
    uint64_t row = slot->trial.first + named - 1;

    if (slot->trial.count == 1 || (named && names_believed(s, code))) {
        if (slot->trial.count == 1)
            row = slot->trial.first;
        slot_move(s, slot, row + 1);
        return bad_add(s, row, code, reason);
    }
    if (named && !s->names_wrong) {
        slot->named = row;
        slot->has_name = true;
    }
    slot->bad = slot->trial; /* should the name be wrong */
    return SPOOL_OK;
}

static int named_refused(struct search *s, struct slot *slot, int code, const char *reason)
{
    uint64_t row = slot->named;

    if (code != s->named_code) {
        s->named_code = code;
        s->names_confirmed = 0;
    }
    s->names_confirmed++;
    slot_move(s, slot, row + 1);
    return bad_add(s, row, code, reason);
}

static void passed(struct search *s, struct slot *slot)
{
    switch (slot->kind) {
    case TRIAL_GROUP:
        slot_move(s, slot, slot->trial.first + slot->trial.count);
        break;
    case TRIAL_NAMED: /* the name meant something else: the group is halved */
        s->names_wrong = true;
        slot->has_name = false;
        break;
    case TRIAL_HALF: /* then the bad row is in the other half */
        slot->bad.first += slot->trial.count;
        slot->bad.count -= slot->trial.count;
        break;
    case TRIAL_SINGLE: /* refused only beside others: nobody can say which row it is */
        s->blameless++;
        slot_move(s, slot, slot->trial.first + 1);
        break;
    case TRIAL_SAMPLE:
        break;
    }
}

static int refused_trial(struct search *s, struct slot *slot, uint64_t named, int code,
                         const char *reason)
{
    switch (slot->kind) {
    case TRIAL_GROUP:
        return group_refused(s, slot, named, code, reason);
    case TRIAL_NAMED:
        return named_refused(s, slot, code, reason);
    case TRIAL_HALF:
        slot->bad.count = slot->trial.count;
        return SPOOL_OK;
    case TRIAL_SINGLE:
        slot_move(s, slot, slot->trial.first + 1);
        return bad_add(s, slot->trial.first, code, reason);
    case TRIAL_SAMPLE:
        s->samples_bad++;
        return SPOOL_OK;
    }
    return SPOOL_OK;
}

int search_answer(struct search *s, unsigned index, bool refused, uint64_t named, int code,
                  const char *reason)
{
    struct slot *slot = &s->slots[index];

    assert(index < s->slot_count && slot->busy);
    slot->busy = false;
    s->trials++;
    if (slot->kind == TRIAL_SAMPLE) {
        s->samples_out--;
        s->samples_done++;
    }
    if (named > slot->trial.count)
        named = 0;
    if (refused)
        return refused_trial(s, slot, named, code, reason);
    passed(s, slot);
    return SPOOL_OK;
}

void search_unanswered(struct search *s, unsigned index)
{
    struct slot *slot = &s->slots[index];

    assert(index < s->slot_count && slot->busy);
    slot->busy = false;
    if (slot->kind == TRIAL_SAMPLE) {
        s->samples_out--;
        s->samples_wanted++;
    }
}

/* --- what is known -------------------------------------------------------------------------- */

bool search_busy(const struct search *s)
{
    for (unsigned i = 0; i < s->slot_count; i++)
        if (s->slots[i].busy)
            return true;
    return false;
}

uint64_t search_trials(const struct search *s)
{
    return s->trials;
}

size_t search_bad_count(const struct search *s)
{
    return s->bad_count;
}

static int row_order(const void *left, const void *right)
{
    const struct bad_row *a = left, *b = right;
    return a->row < b->row ? -1 : a->row > b->row;
}

const struct bad_row *search_bad(struct search *s, size_t *count)
{
    if (!s->sorted && s->bad_count)
        qsort(s->bad, s->bad_count, sizeof(*s->bad), row_order);
    s->sorted = true;
    *count = s->bad_count;
    return s->bad;
}

bool search_hopeless(const struct search *s, double ratio)
{
    double limit =
        SAMPLES_FACTOR * ratio < (1 + ratio) / 2 ? SAMPLES_FACTOR * ratio : (1 + ratio) / 2;

    return s->samples_bad >= SAMPLES_BAD_MIN && (double)s->samples_bad > limit * SAMPLES;
}
