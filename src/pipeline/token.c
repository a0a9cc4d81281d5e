/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a deduplication token is worth after an attempt whose outcome is not known.
 *
 * A server notes the token first and puts the part in its place then, and does not take the note
 * back where that fails or the process ends in between: each later attempt under that token is
 * answered 200 and stores nothing (facts of 26.7, MergeTree with a window; a replicated table notes
 * both in one transaction). So
 *
 *   - an answer that may be of that moment takes the token's worth away for good. A note in meta
 *     says so, since a restart of spoold would trust the seal again;
 *   - so does a restart of the server;
 *   - a 200 to a repeat is proved by asking the table, where it can be asked: the failure may have
 *     been the answer that never came.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define RESTART_SLACK_MS 1000 /* two start times closer than this are one start */

bool outcome_is_of_commit(const struct clickhouse_outcome *outcome)
{
    if (!outcome->unknown || outcome->code <= 0)
        return false;
    if ((outcome->of_view || outcome->before_view) &&
        error_proves_nothing_stored(outcome->code, NULL))
        return false; /* a view's own words about the data */
    return !error_is_before_commit(outcome->code);
}

/* An insert takes an entry of the window for each partition it touches; with half to spare. In a
   window smaller than itself it forgets its own first ones. */
bool window_holds(const struct table_description *t, uint64_t inserts)
{
    return inserts <= t->dedup_window_entries / 2 / t->partitions_per_insert &&
           t->partitions_per_insert_max <= t->dedup_window_entries;
}

/* Whether the table still knows the token, with half of its window to spare. Wall time, which may
   be set either way, has no say; a seal of an earlier boot of this machine has no known age. */
bool batch_token_young(const struct batch *b, const struct table_description *t)
{
    uint64_t since = b->stream->next_batch - b->id;
    uint64_t now = clock_boot_ms();

    if (!b->sealed_boot_ms || now < (uint64_t)b->sealed_boot_ms)
        return false;
    if (t->dedup_window_seconds &&
        (now - (uint64_t)b->sealed_boot_ms) / 500 >= t->dedup_window_seconds)
        return false;
    return !t->dedup_window_entries || window_holds(t, since);
}

bool batch_token_holds(const struct batch *b, int endpoint)
{
    const struct table_description *t = batch_table(b);
    int64_t start = 0, apart;

    if (endpoint != b->endpoint)
        return batch_replicated_at(b, endpoint);
    if (!t || !batch_deduplicates(b) || b->token_lost || b->suspect || !b->server_start_ms)
        return false;
    if (!batch_token_young(b, t))
        return false;
    if (!clickhouse_server_start(b->stream->p->clickhouse, (size_t)endpoint, &start))
        return false;
    apart = start - b->server_start_ms;
    return apart <= RESTART_SLACK_MS && apart >= -RESTART_SLACK_MS;
}

bool batch_needs_proof(const struct batch *b)
{
    const struct table_description *t = batch_table(b);

    return b->maybe_stored && b->sent_to == b->endpoint && t && batch_deduplicates(b) &&
           ask_possible(b) && strcmp(t->engine, "MergeTree") == 0;
}

/* --- the note ------------------------------------------------------------------------------- */

static void token_key(const struct batch *b, char key[TOKEN_NOTE_SIZE])
{
    snprintf(key, TOKEN_NOTE_SIZE, "token_lost/%u/%llu", b->stream->id, (unsigned long long)b->id);
}

static void token_noted(void *arg)
{
    struct stream *s = arg;

    log_event(LOG_INFO, "batch.token_lost", "stream", s->options->name, "reason",
              "the server failed while storing: a repeat under this token would prove nothing",
              NULL);
}

void batch_token_lost(struct batch *b)
{
    char key[TOKEN_NOTE_SIZE];
    struct spool_change change = {
        .kind = SPOOL_CHANGE_PUT, .key = key, .value = "1", .value_size = 1};

    if (b->token_lost || !batch_deduplicates(b))
        return;
    b->token_lost = true;
    token_key(b, key);
    (void)meta_change(b->stream->p, &change, token_noted, b->stream, b->stream);
}

size_t batch_token_forget(const struct batch *b, char key[TOKEN_NOTE_SIZE],
                          struct spool_change *change)
{
    if (!b->token_lost)
        return 0;
    token_key(b, key);
    *change = (struct spool_change){.kind = SPOOL_CHANGE_DELETE, .key = key};
    return 1;
}

static int token_recover(void *arg, const char *key, const void *value, size_t size)
{
    struct stream *s = arg;
    const char *id = strrchr(key, '/');
    uint64_t batch = id ? strtoull(id + 1, NULL, 10) : 0;

    (void)value;
    (void)size;
    for (struct batch *b = s->batches; b; b = b->next)
        if (b->id == batch)
            b->token_lost = true;
    return SPOOL_OK;
}

int batch_tokens_recover(struct stream *s, struct spool_error *error)
{
    char prefix[TOKEN_NOTE_SIZE];

    snprintf(prefix, sizeof(prefix), "token_lost/%u/", s->id);
    return spool_notes(s->p->spool, prefix, token_recover, s, error);
}
