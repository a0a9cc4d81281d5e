/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspool: a durable, bounded, disk-backed spool of blocks on LMDB.
 *
 *   <spool>/LOCK                            flock: one daemon, or one offline tool, per spool
 *   <spool>/meta.mdb                        cursors, seals, discards, origins, schemas, numbers
 *   <spool>/dead.mdb                        dead letters, keyed stream/origin/offset
 *   <spool>/streams/<stream>/<number>.seg   append-only segments, unlinked when acknowledged
 *
 * A BLOCK is rows of one origin, as opaque bytes (spoold stores ClickHouse frames). A SEGMENT holds
 * blocks of one stream, one schema and one destination. A SEAL is a durable list of (block, row
 * range) of one segment that will be delivered as one unit under one token; it never changes.
 * ACKNOWLEDGING a seal makes its rows deletable; a segment whose rows are all acknowledged may be
 * removed, unless it is the newest of its stream.
 *
 * Threads. There are no locks inside. Three kinds of lane exist, and on each the caller runs at
 * most one call at a time (different lanes may run at once, on any threads):
 *   meta lane     functions marked [meta]
 *   dead lane     functions marked [dead]
 *   stream lane   functions marked [stream], one lane per stream
 * Functions marked [any] may run beside everything. spool_open/close and spool_stream_open/close
 * [all] want all lanes idle. All functions block on disk: call them from a worker thread.
 *
 * Durability. When a function marked [durable] returns SPOOL_OK, its effect survives kill -9 and
 * power loss (fsync of data, and of the directory where a file was created). SPOOL_E_FULL: nothing
 * changed, room is missing. SPOOL_E_FATAL: a commit or fsync failed on a disk that is not full; the
 * outcome is unknown, the process must stop and decide from disk at its next start.
 */
#ifndef SPOOL_H
#define SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spool_error.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SPOOL_FORMAT_VERSION  1
#define SPOOL_STREAM_NAME_MAX 64

struct spool;
struct spool_stream;
struct spool_reader;

struct spool_options {
    const char *path;
    uint64_t segment_bytes;      /* size at which a segment is rolled; 0: 64 MiB. 1 MiB .. 1 GiB */
    uint64_t meta_reserve_bytes; /* preallocated for meta.mdb and for dead.mdb, and a quarter of it
                                    ahead of what they use; 0: 4 MiB each */
    bool create;                 /* make the directory and an empty spool where there is none */
    bool read_only;              /* for tools: takes LOCK, changes nothing */
};

/* [all] Opens and recovers. LOCKED, NEWER, CORRUPT, IO, NOT_FOUND, UNSUPPORTED (NFS, 32 bit). */
int spool_open(const struct spool_options *options, struct spool **out, struct spool_error *error);
void spool_close(struct spool *spool); /* [all] closes its streams too; NULL is fine */

const uint8_t *spool_uuid(const struct spool *spool);   /* [any] 16 bytes */
const char *spool_uuid_text(const struct spool *spool); /* [any] 36 characters */

/*
 * [any] A sign of life: notes the time beside the lock. Costs no flush; after a power cut it counts for
 * nothing, since it is of that boot of the machine.
 */
void spool_alive(struct spool *spool);
/*
 * [any] The last sign of life before this process opened it, ms of CLOCK_BOOTTIME; -1: there was none
 * since the machine was booted.
 */
int64_t spool_last_alive_ms(const struct spool *spool);

/* --- streams and segments ------------------------------------------------------------------- */

struct spool_segment_info {
    uint64_t number;
    uint64_t first_sequence; /* of its first block; 0 while it has none */
    uint64_t last_sequence;
    uint64_t blocks;
    uint64_t rows;
    uint64_t stored_bytes; /* of all blocks */
    uint64_t file_bytes;   /* on disk */
    uint64_t acked_rows;   /* acknowledged or discarded */
    uint64_t acked_blocks;
    int64_t oldest_ms; /* arrival of its first row, wall clock; 0 while empty */
    bool newest;
    bool damaged;     /* failed its checks when opened: kept, never read further */
    bool missing;     /* damaged, and not there at all */
    char detail[160]; /* why, where damaged */
};

/* What segments are written under. Borrowed; copied into the segment. */
struct spool_segment_spec {
    const void *schema; /* opaque bytes */
    size_t schema_size;
    const char *destination; /* e.g. "db.table" */
};

/*
 * [all] Registers the stream (durable) where it is new, lists and checks its segments (tree pages
 * only: cost grows with the number of segments, not with their content).
 */
int spool_stream_open(struct spool *spool, const char *name, struct spool_stream **out,
                      struct spool_error *error);
void spool_stream_close(struct spool_stream *stream); /* [all] */

/* [any] Names of the streams the spool knows, from meta and from the directory. *names is one
   malloc'd array of malloc'd strings; free each and the array. */
int spool_stream_names(struct spool *spool, char ***names, size_t *count,
                       struct spool_error *error);

uint32_t spool_stream_id(const struct spool_stream *stream);      /* [any] never reused */
const char *spool_stream_name(const struct spool_stream *stream); /* [any] */

/* [any] Blocks up to this sequence were in the spool when its meta.mdb was rebuilt (spool_repair):
   whether their rows were delivered before is not known. 0: it never was. */
uint64_t spool_stream_rebuilt_to(const struct spool_stream *stream);

/* [stream] The segments, oldest first; the array is malloc'd, free it. */
int spool_stream_segments(struct spool_stream *stream, struct spool_segment_info **out,
                          size_t *count, struct spool_error *error);

/* [stream] What a segment was written under; *schema and *destination malloc'd. */
int spool_segment_spec_get(struct spool_stream *stream, uint64_t number, void **schema,
                           size_t *schema_size, char **destination, struct spool_error *error);

/*
 * [stream] What appends from now on are written under: where it differs from the newest segment's,
 * the next append starts a new segment.
 */
int spool_stream_configure(struct spool_stream *stream, const struct spool_segment_spec *spec,
                           struct spool_error *error);

/* --- blocks --------------------------------------------------------------------------------- */

#define SPOOL_BLOCK_NATIVE 0x0001u /* frames hold Native blocks */
#define SPOOL_BLOCK_JSON   0x0002u /* frames hold JSON lines */
/* Takes the place of a block of the same origin that became unreadable: its offsets lie at or below
   the highest held, which it leaves as it is. */
#define SPOOL_BLOCK_REFILL 0x0004u
/* A refill whose rows may have reached their destination before. The caller's; not looked at. */
#define SPOOL_BLOCK_SUSPECT 0x0008u

/*
 * Tells the record at an origin's highest offset from another one at the same offset, so that a log
 * that was made anew under its old name is noticed. The caller's: not looked at here.
 */
struct spool_mark {
    bool known;
    int64_t timestamp_ms; /* the record's own */
    uint64_t hash;        /* of its key and value */
};

/* The mark of the record at an offset. */
struct spool_trace {
    int64_t offset;
    struct spool_mark mark;
};
#define SPOOL_TRACES 13 /* of an origin: its highest offset, and earlier ones */

/* A block to append. rows may be 0: a range of offsets that left no row (frames then empty). */
struct spool_block {
    uint32_t origin;
    uint32_t rows;
    uint32_t flags;
    int64_t first_offset;     /* inclusive; the range of offsets this block accounts for */
    int64_t last_offset;      /* inclusive */
    const int64_t *offsets;   /* each row's own, ascending, rows of them; NULL: row i is
                               first_offset + i (then rows == last - first + 1) */
    int64_t first_arrival_ms; /* wall clock */
    int64_t last_arrival_ms;
    uint64_t raw_bytes; /* before compression */
    const void *frames;
    size_t frames_size;
    struct spool_mark mark; /* of the record at last_offset; kept while that is the highest held */
};

/* Where a block is. Plain data: copy it freely. */
struct spool_block_ref {
    uint64_t segment;
    uint64_t sequence; /* grows by one per block of a stream, never restarts */
    uint64_t page;     /* of its value in the segment file */
    int64_t first_offset;
    int64_t last_offset;
    int64_t first_arrival_ms;
    uint64_t raw_bytes;
    uint64_t frames_bytes; /* stored payload */
    uint32_t prefix_bytes; /* header and offset list before the payload */
    uint32_t origin;
    uint32_t rows;
    uint32_t flags;
};

/*
 * [stream] [durable] Appends all blocks in one commit, rolling to a new segment first where they
 * would not fit (blocks of one call may end in two segments: two commits, oldest first). refs gets
 * count entries. FULL: nothing, or only the first *appended blocks, were stored. A block over
 * LIMIT_BLOCK_BYTES is LIMIT. The offsets of an origin must grow, but for a refill's: INVALID
 * otherwise.
 */
int spool_stream_append(struct spool_stream *stream, const struct spool_block *blocks, size_t count,
                        struct spool_block_ref *refs, size_t *appended, struct spool_error *error);

/* [stream] Highest offset the stream holds or ever held of an origin; NOT_FOUND: none. */
int spool_stream_high(struct spool_stream *stream, uint32_t origin, int64_t *offset);
/* [stream] The mark of the record at that offset; not known where there is none. */
void spool_stream_mark(struct spool_stream *stream, uint32_t origin, struct spool_mark *mark);
/*
 * [stream] The marks known of an origin: the one at its highest offset, then those at the ends of
 * earlier blocks, ever further apart, the latest first. Where the end of a log was cut and written
 * again they tell how far it is the same. to has room for SPOOL_TRACES; returns how many there are.
 */
size_t spool_stream_traces(struct spool_stream *stream, uint32_t origin, struct spool_trace *to);

/* [stream] All blocks of a segment in order of sequence; *refs malloc'd. */
int spool_segment_blocks(struct spool_stream *stream, uint64_t number,
                         struct spool_block_ref **refs, size_t *count, struct spool_error *error);

/*
 * [stream] [durable] Unlinks a wholly acknowledged segment that is not the newest; INVALID for any
 * other. Also forgets its acknowledgements with the next spool_commit. It is to be unlisted before
 * (SPOOL_CHANGE_UNLIST): a listed segment without a file is taken for a lost one at opening.
 */
int spool_segment_remove(struct spool_stream *stream, uint64_t number, struct spool_error *error);

/* Offsets of an origin; first is INT64_MIN where what came before is not known. */
struct spool_lost {
    uint32_t origin;
    int64_t first, last;
};

/* What a damaged segment still shows, and what it may have held beside that. */
struct spool_salvage {
    struct spool_block_ref *refs; /* ascending; each is checked when it is read, as any */
    size_t count;
    void *schema; /* NULL: unreadable, and then there are no refs either */
    size_t schema_size;
    char *destination;
    uint64_t first_segment, last_segment; /* the row of damaged ones it is in */
    struct spool_block_ref *row_refs;     /* what is found of all of these */
    size_t row_ref_count;
    uint64_t *row_segments; /* their numbers, ascending */
    size_t row_segment_count;
    struct spool_lost *lost; /* of all of these */
    size_t lost_count;
    uint64_t first_sequence, last_sequence; /* of what they held; 0: not known */
    uint64_t end_sequence;                  /* of the stream: what is appended later lies above */
};

/* [stream] NOT_FOUND where the segment is not one that was found damaged. */
int spool_segment_salvage(struct spool_stream *stream, uint64_t number, struct spool_salvage *out,
                          struct spool_error *error);
void spool_salvage_free(struct spool_salvage *salvage);

/* [stream] [durable] Unlinks a damaged segment, whatever it held: INVALID where it is not damaged,
   or where no intact segment stands behind it. */
int spool_segment_forsake(struct spool_stream *stream, uint64_t number, struct spool_error *error);

/* [any] A descriptor on one segment file; outlives the segment's removal. */
int spool_reader_open(const struct spool_stream *stream, uint64_t number, struct spool_reader **out,
                      struct spool_error *error);
void spool_reader_close(struct spool_reader *reader);

/* [any, one call at a time per reader] Reads the block whole and checks header, position and
   checksum; CORRUPT names what failed. Uses a bounded buffer whatever the block's size. */
int spool_reader_verify(struct spool_reader *reader, const struct spool_block_ref *ref,
                        struct spool_error *error);

/* [any, one at a time per reader] n payload bytes from at, by pread; no checksum (verify first). */
int spool_reader_read(struct spool_reader *reader, const struct spool_block_ref *ref, uint64_t at,
                      void *data, size_t n, struct spool_error *error);

/* [any, ...] The whole block in one pass, checked: payload is malloc'd, and *offsets too (rows
   entries; NULL when they are first_offset + i). offsets may be NULL if not wanted. */
int spool_reader_block(struct spool_reader *reader, const struct spool_block_ref *ref,
                       void **payload, size_t *size, int64_t **offsets, struct spool_error *error);

/* --- meta ----------------------------------------------------------------------------------- */

struct spool_range { /* rows [row, row + rows) of one block */
    uint64_t sequence;
    uint32_t row;
    uint32_t rows; /* the whole block when row is 0 and rows is the block's; 0 for a 0-row block */
};

struct spool_seal {
    uint32_t stream;
    uint64_t batch; /* 1, 2, ...: given by the caller from spool_next_batch, never reused */
    uint64_t segment;
    const struct spool_range *ranges; /* ascending */
    size_t range_count;
    const char *token;      /* the deduplication token, at most 255 bytes */
    const void *attributes; /* opaque: pinned settings and what else must never change */
    size_t attributes_size;
    int64_t sealed_ms; /* wall clock, for people and dedup windows */
    uint64_t rows;
};

enum spool_change_kind {
    SPOOL_CHANGE_SEAL,    /* seal */
    SPOOL_CHANGE_ACK,     /* stream, batch: its ranges become acknowledged, the seal is deleted */
    SPOOL_CHANGE_UNSEAL,  /* stream, batch: deleted, its rows are unsealed again (for a split) */
    SPOOL_CHANGE_DISCARD, /* stream, segment, ranges: acknowledged without a seal */
    SPOOL_CHANGE_PUT,     /* key, value: a note of the caller's (schemas, ...) */
    SPOOL_CHANGE_DELETE,  /* key */
    SPOOL_CHANGE_LIST,    /* stream, segment: it exists; put before anything of it is sealed */
    SPOOL_CHANGE_UNLIST,  /* stream, segment: it is about to be removed */
};

struct spool_change {
    enum spool_change_kind kind;
    uint32_t stream;
    uint64_t batch;
    uint64_t segment;
    const struct spool_seal *seal;
    bool replaces; /* SEAL: of rows whose seal ends in the same commit */
    const struct spool_range *ranges;
    size_t range_count;
    const char *key; /* at most 400 bytes */
    const void *value;
    size_t value_size;
};

/* [meta] [durable] All changes in one transaction, all or none. Where room is short, on disk or because
   meta.mdb is as large as it may be, a commit with a seal that replaces none is FULL first: what is left
   is kept for those that end something. So commit seals and acknowledgements apart then. */
int spool_commit(struct spool *spool, const struct spool_change *changes, size_t count,
                 struct spool_error *error);

/* [meta] The next unused batch id of a stream: one more than any ever sealed. */
int spool_next_batch(struct spool *spool, uint32_t stream, uint64_t *batch,
                     struct spool_error *error);

/* [meta] Calls each for every seal of the stream, ordered by batch; memory is valid in the call
   only. A non-zero return of each ends the walk and is returned. */
int spool_seals(struct spool *spool, uint32_t stream,
                int (*each)(void *arg, const struct spool_seal *seal), void *arg,
                struct spool_error *error);

/* [meta] Acknowledged ranges of a segment, as sealed or discarded; malloc'd, ascending, merged. */
int spool_acked(struct spool *spool, uint32_t stream, uint64_t segment, struct spool_range **ranges,
                size_t *count, struct spool_error *error);

/* [meta] A value put by SPOOL_CHANGE_PUT; malloc'd. NOT_FOUND. */
int spool_note_get(struct spool *spool, const char *key, void **value, size_t *size,
                   struct spool_error *error);

/* [meta] Calls each for every note whose key begins with prefix, in order; memory is valid in the
   call only. A non-zero return of each ends the walk and is returned. */
int spool_notes(struct spool *spool, const char *prefix,
                int (*each)(void *arg, const char *key, const void *value, size_t size), void *arg,
                struct spool_error *error);

/* --- origins -------------------------------------------------------------------------------- */

/*
 * [meta] [durable] The id of (name, epoch), made where it is new. Names are at most 400 bytes. A
 * new epoch of a name is a new id, with offsets of its own. epoch 0: the latest, or 1.
 */
int spool_origin(struct spool *spool, const char *name, uint32_t epoch, uint32_t *id,
                 uint32_t *epoch_out, struct spool_error *error);
/*
 * [meta] [durable] The same for an epoch that begins, with a note (SPOOL_CHANGE_PUT) in the same
 * commit: what is to become of the earlier ones. An epoch that is there has its note.
 */
int spool_origin_begin(struct spool *spool, const char *name, uint32_t epoch,
                       const struct spool_change *note, uint32_t *id, struct spool_error *error);

/* [meta] Its name (malloc'd) and epoch. NOT_FOUND. */
int spool_origin_name(struct spool *spool, uint32_t id, char **name, uint32_t *epoch,
                      struct spool_error *error);

/* --- dead letters --------------------------------------------------------------------------- */

#define SPOOL_DEAD_RECORD_CUT 0x01u /* too large: record holds its first bytes only */
#define SPOOL_DEAD_REBUILT    0x02u /* record was rebuilt from columns, keyed by their names */
#define SPOOL_DEAD_RETRIED    0x04u /* refused again by a replay: last_ms is kept (set by change) */
#define SPOOL_DEAD_IN_TABLE   0x08u /* arrived in the stream's dead_letters.table */
#define SPOOL_DEAD_IN_TOPIC   0x10u /* arrived in the stream's dead_letters.topic */

/* All that a replay needs to give the same row. Memory borrowed. */
struct spool_dead {
    const char *stream;
    uint32_t origin;
    const char *origin_name; /* out only; in: may be NULL */
    int64_t offset;
    int code;
    const char *reason_name; /* a stable word */
    const char *reason;      /* a sentence */
    const char *column;      /* "" where none */
    uint64_t position;       /* byte in the record */
    uint32_t flags;
    uint32_t attempts;
    int64_t dead_ms; /* wall clock, when it was first refused */
    int64_t last_ms; /* out only: when it was last refused */
    int64_t received_ms;
    int64_t timestamp_ms; /* the record's own; -1: none */
    const void *record;
    size_t record_size;
    uint64_t record_full_size; /* before it was cut */
    const void *key;
    size_t key_size;
    bool key_present;
    const void *headers; /* serialised: u32le count, then per header string name, string value */
    size_t headers_size;
};

/* [dead] [durable] Idempotent by (stream, origin, offset): *added counts the new ones. */
int spool_dead_put(struct spool *spool, const struct spool_dead *letters, size_t count,
                   size_t *added, struct spool_error *error);

/* [dead] [durable] The same for letters of one stream, all of them or none: LIMIT where the stream
   would then hold more than max_bytes, as spool_dead_count counts them; 0: no bound. */
int spool_dead_put_all(struct spool *spool, const struct spool_dead *letters, size_t count,
                       uint64_t max_bytes, size_t *added, struct spool_error *error);

/* [dead] In key order; stream NULL: all. A non-zero return of each ends the walk, returned. */
int spool_dead_each(struct spool *spool, const char *stream,
                    int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                    struct spool_error *error);

/* Which letter of a stream. */
struct spool_dead_place {
    uint32_t origin;
    int64_t offset;
};

/* [dead] The same for one stream, from a place on (inclusive, whether it exists or not). */
int spool_dead_each_from(struct spool *spool, const char *stream, struct spool_dead_place from,
                         int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                         struct spool_error *error);
/* [dead] The same, passing over those that are damaged, which nothing can be made of. */
int spool_dead_each_whole_from(struct spool *spool, const char *stream,
                               struct spool_dead_place from,
                               int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                               struct spool_error *error);

/* [dead] The letters at these places, in their order; those that do not exist are passed over. */
int spool_dead_get(struct spool *spool, const char *stream, const struct spool_dead_place *places,
                   size_t count, int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                   struct spool_error *error);

/* [dead] Letters and their bytes of a stream. */
int spool_dead_count(struct spool *spool, const char *stream, uint64_t *letters, uint64_t *bytes,
                     struct spool_error *error);

/* [dead] How much more can be put before dead.mdb takes more of the disk than it does. */
int spool_dead_room(struct spool *spool, uint64_t *bytes, struct spool_error *error);

enum spool_dead_change_kind {
    SPOOL_DEAD_REMOVE,
    SPOOL_DEAD_MARK,   /* flags are added to its flags */
    SPOOL_DEAD_REFUSE, /* tried again in vain: one attempt more, the new reason, last_ms is now_ms */
};

struct spool_dead_change {
    enum spool_dead_change_kind kind;
    struct spool_dead_place place;
    uint32_t flags;
    int64_t now_ms;
    int code; /* these as in struct spool_dead, borrowed */
    const char *reason_name;
    const char *reason;
    const char *column;
    uint64_t position;
};

/* [dead] [durable] A letter that does not exist (any more) is passed over; *changed counts the
   others. One that is damaged is removed like any other, and can't be changed: CORRUPT. In their order,
   in commits that write letters of about 64 KiB anew: pages that one gives up serve a later one, so that
   the file hardly grows. */
int spool_dead_change(struct spool *spool, const char *stream,
                      const struct spool_dead_change *changes, size_t count, size_t *changed,
                      struct spool_error *error);

/* --- bounds and checks ---------------------------------------------------------------------- */

struct spool_usage {
    uint64_t total_bytes; /* of every file in the spool */
    uint64_t meta_bytes;
    uint64_t dead_bytes;
    uint64_t segment_bytes;
    uint64_t free_bytes; /* of the file system, for us */
};

/* [any] By stat; cost grows with the number of files. IO where one of them can't be measured: less than
   all would make room for what goes beyond the bound. */
int spool_usage_get(const struct spool *spool, struct spool_usage *usage,
                    struct spool_error *error);

struct spool_problem {
    const char *file;   /* relative to the spool */
    const char *stream; /* "" where none */
    uint64_t sequence;  /* 0 where none */
    const char *kind;   /* a stable word: "truncated", "checksum", "sequence", "seal", ... */
    const char *detail; /* a sentence */
};

/*
 * [all] Checks everything at rest: files, trees, every block's header and checksum, sequences,
 * `high`, seals and cursors against the blocks they name, dead letters. Calls each per problem and
 * goes on; *problems counts them. Fails only where checking itself is impossible, or spool_stop_looks
 * was called: CANCELLED.
 */
int spool_verify(struct spool *spool, void (*each)(void *arg, const struct spool_problem *problem),
                 void *arg, uint64_t *problems, struct spool_error *error);

enum spool_repair_flags {
    SPOOL_REPAIR_DRY = 1,             /* only says it */
    SPOOL_REPAIR_SKIP_UNREADABLE = 2, /* a new dead.mdb goes without letters that can't be read */
};

/*
 * [any] From now on spool_verify ends soon with SPOOL_E_CANCELLED, also where it is under way: for whoever
 * is about to close, and needs the lanes.
 */
void spool_stop_looks(struct spool *spool);
/* [any] SPOOL_E_CANCELLED after that: for walks of the caller's own over what the spool holds. */
int spool_looks_go_on(const struct spool *spool, struct spool_error *error);

/*
 * Makes a new meta.mdb of what the segments say, where the old one is gone or damaged; under LOCK,
 * with nothing of the spool open. The old file is renamed, never overwritten. What can't be had
 * again: acknowledgements, seals, and the caller's notes; spool_stream_rebuilt_to tells which blocks
 * that concerns. Then a new dead.mdb of the letters that can be read, where one of them or the file is
 * damaged. Calls say for every line of what was found and is done. What can't be read (IO) is not
 * damaged, and nothing is made without it, but for the letters that the flag allows for.
 * *wrong: meta.mdb is damaged or gone, or dead.mdb damaged. NEWER, LOCKED, IO, FULL; NOT_FOUND: no segment says anything.
 */
int spool_repair(const char *path, unsigned flags, void (*say)(void *arg, const char *line),
                 void *arg, bool *wrong, struct spool_error *error);

#ifdef __cplusplus
}
#endif

#endif
