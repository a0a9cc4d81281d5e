/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A batch is too big for the server (its memory, a limit of bytes): it is sealed anew in two halves,
 * and later batches are no larger for a while. What is refused so may be in the table in parts (one
 * partition after the other, views behind them), and halves have tokens of their own. So first the
 * table is asked, where it can be, and only what it lacks is halved. Where a token is all there is,
 * or a replica is all there is to ask, the same bytes go some times more, since memory is often short
 * in passing only; then what goes in halves counts as possible duplicates.
 */
#include <stdlib.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define SPLIT_ROWS_MIN      1000 /* no batch gets smaller */
#define SAME_AGAIN_BY_TOKEN 3    /* such answers */

int batch_split(struct batch *b, const struct row_span *acked, size_t acked_count,
                const struct row_span *spans, size_t count)
{
    struct row_span *cut = calloc(count + 1, sizeof(*cut));
    struct span_group groups[2] = {0};
    uint64_t rows = 0, half, seen = 0;
    size_t n = 0, first = 0;
    int status = SPOOL_E_NOMEM;

    if (!cut)
        return status;
    for (size_t i = 0; i < count; i++)
        rows += spans[i].count;
    half = rows / 2;
    for (size_t i = 0; i < count; i++) {
        uint64_t left = seen < half ? half - seen : 0; /* of the first half */
        uint64_t take = spans[i].count < left ? spans[i].count : left;
        seen += spans[i].count;
        if (take) {
            cut[n++] = (struct row_span){spans[i].first, take};
            first = n;
        }
        if (take < spans[i].count)
            cut[n++] = (struct row_span){spans[i].first + take, spans[i].count - take};
    }
    groups[0] = (struct span_group){.spans = cut, .count = first};
    groups[1] = (struct span_group){.spans = cut + first, .count = n - first};
    status = first && n > first
                 ? batch_replace(b, acked, acked_count, groups, 2, NULL)
                 : batch_replace(b, acked, acked_count, &groups[first ? 0 : 1], 1, NULL);
    free(cut);
    return status;
}

bool batch_too_big_again(struct batch *b)
{
    bool exact = ask_possible(b) && b->sent_to == b->endpoint; /* a replica may lag */

    return b->maybe_stored && !exact && batch_token_holds(b, b->sent_to) &&
           ++b->too_big_failures < SAME_AGAIN_BY_TOKEN;
}

bool batch_too_big(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    struct row_span all = {0, b->rows};

    if (b->rows < 2 * SPLIT_ROWS_MIN)
        return false;
    s->batch_rows_max = b->rows / 2;
    log_event(LOG_WARN, "batch.too_big", "stream", s->options->name, "batch", log_u64(b->id),
              "rows", log_u64(b->rows), "error", outcome->text, "action",
              "it is halved, and batches are smaller from now on", NULL);
    if (b->maybe_stored && ask_possible(b)) {
        b->splits = true;
        ask_start(b, b->sent_to);
        return true;
    }
    if (b->maybe_stored)
        batch_possible_duplicates(b, b->rows,
                                  "it is too big and goes in halves; the server can't say whether "
                                  "rows of it are stored");
    return batch_split(b, NULL, 0, &all, 1) == SPOOL_OK;
}
