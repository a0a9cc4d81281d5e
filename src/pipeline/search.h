/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rows of a batch does a server refuse? The search says what to try next and is told what
 * came of it; it does nothing itself. Several trials may fly at once, one a slot.
 *
 * A trial of some rows is refused if any of them is bad. Where the server names the row ("at row
 * 17") the search goes on behind it, else a refused group is halved, and where one half passes the
 * other needs no trial to be known as the bad one. How large groups are follows from how many bad
 * rows were seen so far. A row is bad only if it was refused alone; names are believed for one code
 * after NAMES_CONFIRMED rows that were named with it had been refused alone.
 *
 * Where rows are refused beside others and pass alone, the search ends with what it has.
 *
 * Random single rows (samples) tell early that far too many are bad: a batch that is bad as a whole
 * costs some dozens of trials.
 */
#ifndef PIPELINE_SEARCH_H
#define PIPELINE_SEARCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SEARCH_SLOTS       4
#define SEARCH_REASON_SIZE 400

/* Rows of a batch, counted over all its parts: [first, first + count). */
struct row_span {
    uint64_t first, count;
};

struct bad_row {
    uint64_t row;
    int code;
    char *reason; /* the server's words, at most SEARCH_REASON_SIZE - 1 */
};

struct search;

/* blocks: rows of each block of the batch, in order; no group crosses from one to the next. slots:
   1 to SEARCH_SLOTS. NULL on no memory. */
struct search *search_create(const uint32_t *block_rows, size_t blocks, unsigned slots,
                             uint64_t seed);
void search_free(struct search *s);

/* What the idle slot should try; false: nothing, as things are. */
bool search_next(struct search *s, unsigned slot, struct row_span *span);

/* What came of the slot's trial. named: the row of the trial that the server named, from 1; 0: none.
   Returns SPOOL_E_NOMEM, or SPOOL_OK. */
int search_answer(struct search *s, unsigned slot, bool refused, uint64_t named, int code,
                  const char *reason);
/* The slot's trial told nothing: it will be tried again. */
void search_unanswered(struct search *s, unsigned slot);

bool search_busy(const struct search *s); /* some slot's trial is not answered */
uint64_t search_trials(const struct search *s);

size_t search_bad_count(const struct search *s);
/* What was found so far; ascending once nothing is left to try. */
const struct bad_row *search_bad(struct search *s, size_t *count);

/* Whether samples showed far more than `ratio` of the rows to be bad. */
bool search_hopeless(const struct search *s, double ratio);

#endif
