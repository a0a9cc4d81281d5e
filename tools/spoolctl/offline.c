/* SPDX-License-Identifier: Apache-2.0 */
/* The status of a spool without a daemon: what its files tell. */
#include <stdlib.h>

#include "backend.h"
#include "base/clock.h"
#include "base/json_writer.h"

struct stream_totals {
    uint64_t rows;
    uint64_t acked_rows;
    uint64_t file_bytes;
    size_t damaged;
    int64_t oldest_ms; /* of the oldest row not acknowledged; 0: none */
    uint64_t sealed;
};

static int count_seal(void *arg, const struct spool_seal *seal)
{
    (void)seal;
    ++*(uint64_t *)arg;
    return 0;
}

/* Arrival of the first block of a segment that has a row not yet acknowledged. */
static int oldest_waiting(struct spool *spool, struct spool_stream *stream,
                          const struct spool_segment_info *info, int64_t *oldest_ms,
                          struct spool_error *error)
{
    struct spool_block_ref *refs = NULL;
    struct spool_range *acked = NULL;
    size_t count = 0, acked_count = 0, at = 0;
    int status;

    status = spool_acked(spool, spool_stream_id(stream), info->number, &acked, &acked_count, error);
    if (status == SPOOL_OK)
        status = spool_segment_blocks(stream, info->number, &refs, &count, error);
    for (size_t i = 0; i < count && status == SPOOL_OK; i++) {
        uint64_t rows = 0;
        while (at < acked_count && acked[at].sequence < refs[i].sequence)
            at++;
        for (; at < acked_count && acked[at].sequence == refs[i].sequence; at++)
            rows += acked[at].rows;
        if (rows < refs[i].rows) {
            *oldest_ms = refs[i].first_arrival_ms;
            break;
        }
    }
    free(refs);
    free(acked);
    return status;
}

static int add_up(struct spool *spool, struct spool_stream *stream,
                  const struct spool_segment_info *infos, size_t count,
                  struct stream_totals *totals, struct spool_error *error)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < count && status == SPOOL_OK; i++) {
        totals->file_bytes += infos[i].file_bytes;
        if (infos[i].damaged) {
            totals->damaged++;
            continue;
        }
        totals->rows += infos[i].rows;
        totals->acked_rows += infos[i].acked_rows;
        if (!totals->oldest_ms && infos[i].acked_rows < infos[i].rows)
            status = oldest_waiting(spool, stream, &infos[i], &totals->oldest_ms, error);
    }
    return status;
}

static void put_stream(struct json_writer *w, const char *name, const struct stream_totals *totals,
                       size_t segments, uint64_t letters)
{
    uint64_t waiting = totals->rows > totals->acked_rows ? totals->rows - totals->acked_rows : 0;
    int64_t age_ms = totals->oldest_ms ? clock_wall_ms() - totals->oldest_ms : 0;

    json_writer_open(w, NULL, '{');
    json_writer_text(w, "name", name);
    json_writer_u64(w, "rows", totals->rows);
    json_writer_u64(w, "acked_rows", totals->acked_rows);
    json_writer_u64(w, "rows_spooled", waiting);
    json_writer_u64(w, "bytes_spooled", totals->file_bytes);
    json_writer_u64(w, "oldest_age_seconds", age_ms > 0 ? (uint64_t)age_ms / 1000 : 0);
    json_writer_u64(w, "dead_letters", letters);
    json_writer_u64(w, "segments", segments);
    json_writer_u64(w, "damaged_segments", totals->damaged);
    json_writer_open(w, "batches", '{');
    json_writer_u64(w, "sealed", totals->sealed);
    json_writer_close(w, '}');
    json_writer_close(w, '}');
}

static int look_up_stream(struct json_writer *w, struct spool *spool, const char *name,
                          struct spool_error *error)
{
    struct stream_totals totals = {0};
    struct spool_segment_info *infos = NULL;
    struct spool_stream *stream = NULL;
    uint64_t letters = 0, letter_bytes = 0;
    size_t count = 0;
    int status;

    status = spool_stream_open(spool, name, &stream, error);
    if (status == SPOOL_OK)
        status = spool_stream_segments(stream, &infos, &count, error);
    if (status == SPOOL_OK)
        status = add_up(spool, stream, infos, count, &totals, error);
    if (status == SPOOL_OK)
        status = spool_seals(spool, spool_stream_id(stream), count_seal, &totals.sealed, error);
    if (status == SPOOL_OK)
        status = spool_dead_count(spool, name, &letters, &letter_bytes, error);
    if (status == SPOOL_OK)
        put_stream(w, name, &totals, count, letters);
    free(infos);
    spool_stream_close(stream);
    return status;
}

int offline_status(struct spool *spool, const char *path, struct buf *out,
                   struct spool_error *error)
{
    struct spool_usage usage = {0};
    struct json_writer w;
    char **names = NULL;
    size_t count = 0;
    int status;

    status = spool_usage_get(spool, &usage, error);
    if (status == SPOOL_OK)
        status = spool_stream_names(spool, &names, &count, error);
    if (status != SPOOL_OK)
        return status;
    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_bool(&w, "running", false);
    json_writer_text(&w, "version", SPOOLD_VERSION);
    json_writer_text(&w, "uuid", spool_uuid_text(spool));
    json_writer_open(&w, "spool", '{');
    json_writer_text(&w, "path", path);
    json_writer_u64(&w, "used_bytes", usage.total_bytes);
    json_writer_u64(&w, "free_bytes", usage.free_bytes);
    json_writer_close(&w, '}');
    json_writer_open(&w, "streams", '[');
    for (size_t i = 0; i < count && status == SPOOL_OK; i++)
        status = look_up_stream(&w, spool, names[i], error);
    json_writer_close(&w, ']');
    json_writer_close(&w, '}');
    backend_streams_free(names, count);
    if (status == SPOOL_OK && w.status != SPOOL_OK)
        status = spool_error_set(error, w.status, "the status: %s", spool_strerror(w.status));
    return status;
}
