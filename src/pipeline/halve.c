/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad rows that only the table itself tells: by its partition key, or where no clone of it may be
 * made for trials. The batch is sealed anew in two halves, each inserted for real; what a half
 * holds of good rows is a part of the table's for good, so there is a bound on their number.
 */
#include <assert.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define HALVES_MAX 200 /* inserts, until all that came of halving is settled */

void halve_for_real(struct batch *b, const char *why)
{
    struct stream *s = b->stream;
    struct row_span all = {0, b->rows};

    assert(b->rows > 1);
    if (s->halves + 2 > HALVES_MAX) {
        batch_hold_for(b,
                       "%u halves of a refused batch were inserted and rows are still refused: "
                       "%s: mend the table, or go on with spoolctl resume",
                       s->halves, why);
        return;
    }
    s->halves += 2;
    b->halved = true;
    b->retry_at_ms = 0;
    if (batch_split(b, NULL, 0, &all, 1) != SPOOL_OK)
        batch_hold_for(b, "it could not be halved: out of memory");
}

void halves_forget(struct stream *s)
{
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->halved)
            return;
    s->halves = 0;
}
