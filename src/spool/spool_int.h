/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of libspool share. The tests read it too; nobody else does. */
#ifndef SPOOL_INT_H
#define SPOOL_INT_H

#include <dirent.h>
#include <errno.h>
#include <lmdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "spool.h"
#include "spool/record.h"
#include "spool/tree.h"

#define ENV_FLAGS      ((unsigned)(MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOTLS))
#define FILE_MODE      0640
#define DIRECTORY_MODE 0750

#define ORIGIN_NAME_MAX 400u
#define NOTE_KEY_MAX    400u
#define TOKEN_MAX       255u
#define STREAMS_MAX     4096u /* ever registered in a spool */
#define ORIGINS_CHUNK   1024u
#define ORIGINS_CHUNKS  4096u
#define SEQUENCE_JUMP   (1ull << 32) /* after a damaged newest segment */
#define META_RECORD_MAX (256u << 20)
#define DEFAULT_SEGMENT (64ull << 20)
#define DEFAULT_RESERVE (4ull << 20)
#define RESERVE_MAX     (1ull << 30)

/* --- one LMDB file that grows: meta.mdb, dead.mdb ------------------------------------------- */

struct store {
    const char *name;   /* of the file */
    const char *advice; /* what a person can do when it is damaged */
    MDB_env *env;       /* NULL: a read-only spool without this file */
    size_t map_bytes;
    size_t largest_bytes; /* of the map for what only adds; half as much more for seals, twice as
                             much for what ends something */
    uint64_t ahead_bytes; /* of disk that the file has beyond what it uses; 0: none can be had */
    uint64_t held_bytes;  /* the file has its disk up to here */
    bool disk_full;       /* it could not be given more */
    size_t touched;       /* the transaction that was made for nothing but its number */
};

/* Reads path's descriptor through tree_walk and opens it; creates it (durably) where it is not
   there and may be made: init then fills the new file in its first transaction. */
int store_open(struct spool *spool, struct store *store, size_t reserve_bytes,
               int (*init)(MDB_txn *txn, void *arg), void *arg, struct spool_error *error);
void store_close(struct store *store);
/* Turns a failure to read what the file must have into a status. what: "its version". */
int store_lacks(const struct store *store, int rc, const char *what, struct spool_error *error);

/* What a commit contains, so that the failpoints of that moment are passed. */
enum commit_part {
    COMMIT_SEAL = 1,
    COMMIT_ACK = 2,
    COMMIT_DEAD = 4,
    COMMIT_DISCARD = 8,
    COMMIT_DEAD_CHANGE = 16,
    COMMIT_NAME = 32, /* of a stream or an origin */
    COMMIT_ADDS = 64, /* seals of rows that had none */
};

/*
 * One durable write transaction: body returns 0, an LMDB code or errno, or a spool status with
 * error filled. When the map is full it is grown and body runs again from the start. *part is read
 * before body, for how much room it may take, and after it, for what to pass. FULL: there is no room
 * for it, on disk or in the largest map; nothing was changed.
 */
int store_write(struct spool *spool, struct store *store, const unsigned *part,
                int (*body)(MDB_txn *txn, void *arg, struct spool_error *error), void *arg,
                struct spool_error *error);
int store_begin_read(struct store *store, MDB_txn **txn, struct spool_error *error);
/* Pages that transactions before this one gave up and that serve nothing. */
uint64_t free_list_pages(MDB_txn *txn, uint64_t transaction);

/* Turns a failed LMDB call outside of a commit into a status. what: "read seals". */
int lmdb_error(struct spool_error *error, int rc, const char *what);
static inline bool is_no_room(int number) /* errno */
{
    return number == ENOSPC || number == EDQUOT || number == EFBIG;
}
/* Descriptors or memory, errno: to wait may help, as with room on the disk. */
static inline bool is_scarce(int number)
{
    return number == EMFILE || number == ENFILE || number == ENOMEM;
}
/* A file that can't be opened for now: that says nothing of what stands in it. */
static inline bool is_out_of_reach(int status, const struct spool_error *error)
{
    return status == SPOOL_E_NOMEM ||
           (status == SPOOL_E_IO && (error->sys_errno == EACCES || is_scarce(error->sys_errno)));
}
/* What was found in reading a segment whole is damage of it; also bad sectors, wherever they lie. */
static inline bool is_damage(int status, const struct spool_error *error)
{
    return status != SPOOL_OK && status != SPOOL_E_NEWER && !is_out_of_reach(status, error) &&
           (status != SPOOL_E_IO || error->sys_errno);
}
static inline bool is_spool_status(int rc)
{
    return rc < 0 && rc > -100;
}

/*
 * Decides what a failed write or commit means: FULL where the disk (or a quota) has no room for
 * need_bytes, else FATAL, after which the spool makes no promise any more. The txn must have ended.
 */
int commit_failed(struct spool *spool, MDB_env *env, int rc, uint64_t need_bytes, const char *what,
                  struct spool_error *error);

/* Opens an environment with the flags all of ours have; max databases 16. LMDB code. */
int env_open(const char *path, unsigned flags, size_t map_bytes, MDB_env **env);

/*
 * Makes durable what can be read of a file. Called before a file is believed at opening: a process
 * killed while its commit was being flushed leaves the commit in the page cache only, and acting on
 * it (sending a seal's batch, telling Kafka an offset) would outrun the disk.
 */
int fsync_file(const char *path, struct spool_error *error);
int fsync_directory(const char *path, struct spool_error *error);
/* The same in two steps, where nothing but the flush itself may fail once a name was changed. FULL: too
   many files are open. */
int directory_open(const char *path, int *fd, struct spool_error *error);
int directory_sync(int fd, const char *path, struct spool_error *error);
char *path_join(const char *directory, const char *name); /* malloc'd or NULL */

/* --- the spool ------------------------------------------------------------------------------ */

struct origin {
    uint32_t epoch;
    uint32_t name_size;
    char name[];
};

struct origin_chunk {
    _Atomic(struct origin *) at[ORIGINS_CHUNK];
};

/* A removed segment, on its way from a stream lane to the meta lane. */
struct forgotten {
    struct forgotten *next;
    uint32_t stream;
    uint64_t segment;
};

/* Newly acknowledged rows of one segment, on their way from the meta lane to a stream lane. */
struct acked_block {
    uint64_t sequence;
    uint32_t rows;
    bool empty; /* a block of 0 rows */
};

struct ack_message {
    struct ack_message *next;
    uint32_t stream;
    uint64_t segment;
    size_t count;
    struct acked_block blocks[];
};

struct spool {
    char *path;
    int64_t last_alive_ms; /* of LOCK, before we opened it; -1: none of this boot */
    int lock_fd;
    bool read_only;
    atomic_bool broken; /* a commit failed for good: nothing is promised any more */
    atomic_bool looks_stopped;
    uint64_t segment_bytes;
    size_t meta_reserve_bytes;
    uint8_t uuid[16];
    char uuid_text[37];

    struct store meta;
    MDB_dbi meta_info, meta_streams, meta_origins, meta_origin_names, meta_seals, meta_acks,
        meta_notes;
    struct store dead;
    MDB_dbi dead_letters, dead_counts;

    /* Names by id - 1, only ever added to: the meta lane publishes, any lane reads. An id's slot is
       filled before a call returns the id, so whoever has the id sees the name. */
    _Atomic(char *) stream_names[STREAMS_MAX];
    _Atomic(uint32_t) stream_count;
    _Atomic(struct origin_chunk *) origins[ORIGINS_CHUNKS];
    _Atomic(uint32_t) origin_count;

    /* The open handle of each stream by id - 1; changes only while all lanes are idle. */
    struct spool_stream *streams[STREAMS_MAX];
    _Atomic(struct forgotten *)
        forgotten; /* a stack: any stream lane pushes, the meta lane takes */
};

int spool_take_lock(struct spool *spool, struct spool_error *error);
int check_writable(const struct spool *spool, struct spool_error *error);
const struct origin *origin_of(const struct spool *spool, uint32_t id); /* NULL: none */
const char *stream_name_of(const struct spool *spool, uint32_t id);     /* NULL: none */
bool stream_name_valid(const char *name);

/* meta.c */
int meta_open(struct spool *spool, struct spool_error *error);
/* The databases, version and uuid of an empty one. */
int meta_fill(struct spool *spool, MDB_txn *txn);
void uuid_to_text(const uint8_t *uuid, char *text);
/* Problems of its records alone, without the segments. */
/* IO: it can't be read, which is no damage; problems counts that too. NOMEM. */
int verify_dead(struct spool *spool, uint64_t *problems, struct spool_error *error);
int verify_meta(struct spool *spool, uint64_t *problems, struct spool_error *error);
int meta_stream_id(struct spool *spool, const char *name, uint32_t *id, struct spool_error *error);
/* Each segment number of the stream that has acknowledgements. numbers malloc'd. */
int meta_acked_segments(struct spool *spool, uint32_t stream, uint64_t **numbers, size_t *count,
                        struct spool_error *error);
void spool_forget(struct spool *spool, struct forgotten *f);

/* Decoded form of a seal record; ranges malloc'd, the rest points into the record. */
struct seal_record {
    struct spool_seal seal;
    struct spool_range *ranges;
    char token[TOKEN_MAX + 1];
};
int seal_decode(struct cursor body, struct seal_record *out);

/* listing.c: the segments that meta knows of. */
int listing_put(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t segment);
int listing_delete(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t segment);
/* Ascending; malloc'd. */
int listing_read(struct spool *spool, uint32_t stream, uint64_t **numbers, size_t *count,
                 struct spool_error *error);
/* Sequences up to *last were in the spool when meta.mdb was rebuilt; 0: it was not. */
int rebuilt_put(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t last);
int rebuilt_read(struct spool *spool, uint32_t stream, uint64_t *last, struct spool_error *error);
/* Lists those of an opened stream that are not. */
int listing_complete(struct spool_stream *stream, const uint64_t *listed, size_t count,
                     struct spool_error *error);

/* ack.c: merged lists of acknowledged ranges, stored in chunks of 256 sequences. */
#define ACK_CHUNK_SHIFT 8
#define ACK_KEY_BYTES   20u
int ranges_check(const struct spool_range *ranges, size_t count); /* ascending, no overlap */
int ranges_merge(const struct spool_range *a, size_t a_count, const struct spool_range *b,
                 size_t b_count, struct spool_range **out, size_t *count);
int ack_chunk_decode(struct cursor body, uint64_t chunk, struct spool_range **ranges,
                     size_t *count);
int ack_apply(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment,
              const struct spool_range *ranges, size_t count, struct ack_message **messages);
int ack_forget(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment);
int ack_read(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment,
             struct spool_range **ranges, size_t *count);
void ack_messages_free(struct ack_message *messages);

/* dead.c */
int dead_open(struct spool *spool, struct spool_error *error);
/* A new file for repair, open as spool's. */
int dead_create(struct spool *spool, const char *path, struct spool_error *error);
/* A letter as it stood in another file, which was checked. 0, an LMDB code or a spool status. */
int dead_letter_copy(struct spool *spool, MDB_txn *txn, uint8_t *key, size_t key_size,
                     uint8_t *value, size_t size);
/* Splits a letter's key; stream gets SPOOL_STREAM_NAME_MAX + 1 bytes. CORRUPT: it is none. */
int dead_letter_place(const uint8_t *key, size_t size, char *stream, uint32_t *origin,
                      int64_t *offset);
int dead_letter_check(const uint8_t *key, size_t key_size, const uint8_t *data, size_t size,
                      char *stream, uint64_t *bytes);

/* --- a segment file ------------------------------------------------------------------------- */

struct segment_totals {
    uint64_t blocks, empty_blocks, rows, bytes;
    uint64_t first_sequence, last_sequence;
    int64_t oldest_ms;
};

struct segment {
    uint64_t number;
    uint64_t base_sequence; /* what its first block has, or will have */
    uint64_t schema_hash;
    uint64_t file_bytes; /* 0: to be measured */
    struct segment_totals totals;
    uint64_t acked_rows, acked_blocks;
    uint32_t *waiting; /* per block: rows not acknowledged, WAITING_EMPTY for 0 rows; or NULL while
                          nothing of it was */
    size_t waiting_cap;
    bool damaged;
    bool missing; /* damaged: meta knows it, and there is no file */
    bool foreign; /* damaged: it says that it is another spool's, another stream's or number */
    char detail[160];
};
#define WAITING_EMPTY UINT32_MAX

/* Highest offset per origin: open addressing, origin 0 is an empty slot (ids start at 1). */
struct high_table {
    struct high {
        uint32_t origin;
        bool named; /* its name stands in the newest segment */
        int64_t offset;
        struct spool_mark mark;                       /* of the record at offset */
        unsigned earlier_count;                       /* 0 where mark is not known */
        struct spool_trace earlier[SPOOL_TRACES - 1]; /* the latest first */
    } * slots;
    size_t cap, count;
};
struct high *high_find(const struct high_table *t, uint32_t origin); /* NULL: none */
/* Raises an origin's offset, adding it where it is new. mark: of the record there; NULL: none is
   known. The mark so far becomes an earlier one. NULL: no memory, not after high_reserve. */
struct high *high_add(struct high_table *t, uint32_t origin, int64_t offset,
                      const struct spool_mark *mark);
/* Puts h, its earlier marks too, in place of what t has of its origin, unless that is higher. Returns
   as high_add. */
struct high *high_put(struct high_table *t, const struct high *h);
/* Raises what to has to what from has. */
int high_copy(const struct high_table *from, struct high_table *to);
int high_reserve(struct high_table *t, size_t extra);
void high_free(struct high_table *t);

enum segment_db { DB_INFO, DB_ORIGINS, DB_BLOCKS, DB_INDEX, DB_HIGH, DB_TOTALS, DB_COUNT };
extern const char *const segment_db_names[DB_COUNT];

#define INDEX_BODY_BYTES  72u
#define TOTALS_BODY_BYTES 56u
#define TRACE_BYTES       24u /* of high: an offset and the mark there */

/* What a scan of a segment file collects beside its checks; each may be NULL. */
struct segment_wants {
    uint32_t **rows;               /* rows per block, malloc'd, totals.blocks of them */
    struct spool_block_ref **refs; /* malloc'd */
    size_t *ref_count;             /* with salvage: of those that can be read */
    struct high_table *high;
    struct high_table *origin_ids; /* ids named in the file, with their epoch as offset */
    char **destination;
    uint8_t **schema;
    size_t *schema_size;
    uint64_t *salvaged_sequence; /* with salvage: the highest found */
};

/*
 * Reads all tree pages of a segment file and checks that they agree with each other. stream 0:
 * take any. CORRUPT with the reason, NEWER, IO, NOMEM. salvage: goes on after faults and gives what
 * is still to be had, then the first fault.
 */
int segment_scan(const struct spool *spool, const char *path, uint32_t stream, bool salvage,
                 struct segment *segment, const struct segment_wants *wants,
                 struct spool_error *error);

void block_ref_encode(const struct spool_block_ref *ref, int64_t last_arrival_ms, uint8_t *out);
int block_ref_decode(uint64_t segment, uint64_t sequence, struct cursor body,
                     struct spool_block_ref *ref);
void totals_encode(const struct segment_totals *totals, uint8_t *out);

struct spool_stream {
    struct spool *spool;
    uint32_t id;
    char name[SPOOL_STREAM_NAME_MAX + 1];
    char *directory;

    struct segment *segments; /* oldest first */
    size_t segment_count, segment_cap;
    uint64_t next_number, next_sequence;
    struct high_table high;

    MDB_env *env; /* of the newest segment, opened by the first append */
    MDB_dbi dbi[DB_COUNT];
    uint32_t page_bytes;
    uint64_t map_bytes;  /* of env: what the file may grow to */
    uint64_t rebuilt_to; /* sequences up to it were there when meta was rebuilt */
    bool roll_due;       /* the next append starts a new segment */

    bool configured;
    uint8_t *schema;
    size_t schema_size;
    uint64_t schema_hash;
    char *destination;

    _Atomic(struct ack_message *) acks; /* a stack: the meta lane pushes, the stream lane takes */
};

int reader_open_path(const char *path, uint32_t stream, uint64_t number, struct spool_reader **out,
                     struct spool_error *error);
char *segment_path(const struct spool_stream *stream, uint64_t number); /* malloc'd or NULL */
/* Starts the next segment, with room for need_bytes at least, and makes it durable. */
int segment_create(struct spool_stream *stream, uint64_t need_bytes, struct spool_error *error);
int segment_put_high(struct spool_stream *stream, MDB_txn *txn, const struct high *high,
                     bool with_name);
int segment_open_newest(struct spool_stream *stream, struct spool_error *error);
void segment_close_newest(struct spool_stream *stream);
int stream_take_acks(struct spool_stream *stream, struct spool_error *error);
/* Reads one segment the stream has; a fault found now marks it damaged. CORRUPT: it is. */
int segment_scan_known(struct spool_stream *stream, uint64_t number,
                       const struct segment_wants *wants, struct segment *out,
                       struct spool_error *error);
void segment_damage(struct segment *segment, const char *why);
/* rows: of every block, from segment_scan; the segment owns it from now on. */
void waiting_set(struct segment *segment, uint32_t *rows);
void segment_ack(struct segment *segment, uint64_t sequence, uint32_t rows, bool empty);
int segment_waiting_load(struct spool_stream *stream, struct segment *segment,
                         struct spool_error *error);
int stream_spec_set(struct spool_stream *stream, const struct spool_segment_spec *spec);
int stream_spec_ready(struct spool_stream *stream, struct spool_error *error); /* INVALID: none */
struct segment *stream_newest(const struct spool_stream *stream); /* NULL: no segment */
/* Room for one more behind the last; the caller fills it and counts it. NULL: no memory. */
struct segment *stream_add_segment(struct spool_stream *stream);
bool segment_is_acked(const struct segment *segment);
struct segment *stream_segment(const struct spool_stream *stream, uint64_t number);
void stream_free(struct spool_stream *stream);
int compare_u64(const void *a, const void *b);
bool contains_u64(const uint64_t *ascending, size_t count, uint64_t n);
/* NULL: there is no other, or, where *failed is not 0, it can't be told (errno). */
struct dirent *next_entry(DIR *dir, int *failed);
/* Numbers of the segment files in a directory, ascending; malloc'd. */
int list_segments(const char *directory, uint64_t **numbers, size_t *count,
                  struct spool_error *error);

#endif
