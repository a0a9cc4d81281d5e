/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Materialized views behind a stream's table. Both servers put a block into the table first and push
 * it to the views then, so an exception "while pushing to view" means that the table has the rows
 * and a view lacks them (measured, also over several partitions). Then
 *
 *   - where the table knows the token, the same bytes again leave the table as it is and fill the
 *     view: the batch is tried until the view takes it, and holds the stream where that needs
 *     somebody;
 *   - elsewhere sending again would double the table's rows. They are taken for stored, after asking
 *     where that can be, and counted as rows that views may lack.
 *
 * But 26.7 looks for too many parts in a view's own table before any row is stored anywhere, and by the
 * order of the views the table itself has all rows then or none (before_view): such an answer counts as
 * none, and what may double the rows with each attempt is tried ever less often (refuse.c).
 *
 * The same count is made where the table was asked after an attempt without an answer: it has the
 * rows, and nobody can say whether the views got them.
 */
#include "base/log.h"
#include "pipeline/pipeline_int.h"

void batch_views_unsure(const struct batch *b, uint64_t rows, const char *reason)
{
    struct stream *s = b->stream;
    uint64_t suppressed = 0;

    s->views_unsure += rows;
    metrics_add(s->p->metrics, METRIC_VIEWS_UNSURE, (double)rows, s->options->name);
    if (log_gate_open(&s->view_gate, 5000, &suppressed))
        log_event(LOG_WARN, "batch.views_unsure", "stream", s->options->name, "batch",
                  log_u64(b->id), "rows", log_u64(rows), "reason", reason, "lines_suppressed",
                  log_u64(suppressed), NULL);
}

void batch_asked_stored(const struct batch *b, uint64_t rows)
{
    const struct table_description *t = batch_table(b);

    if (rows && !b->answered && t && t->views)
        batch_views_unsure(b, rows,
                           "the table has these rows; whether its materialized views got them "
                           "before the attempt ended is not known");
}

void batch_views_give_up(struct batch *b, const char *reason)
{
    batch_views_unsure(b, b->rows, reason);
    if (b->stream->probe == b) {
        b->stream->probe = NULL;
        stream_unhold(b->stream, HOLD_ANSWER);
    }
    batch_ack(b);
}

bool batch_view_failed(struct batch *b, const struct clickhouse_outcome *outcome)
{
    if (!outcome->of_view)
        return false;
    b->view_failed = true;
    if (batch_deduplicates(b) && !b->token_lost)
        return false;
    if (ask_possible(b))
        ask_start(b, b->sent_to);
    else
        batch_views_give_up(b, outcome->text);
    return true;
}
