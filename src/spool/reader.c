/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads blocks by pread on a descriptor of its own, so that it can run beside the stream's writer
 * and outlive the file's name, and a bad or truncated file gives an error rather than a signal.
 * Nothing is believed: the page header, the block header and its checksum must all agree with the
 * reference.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/limits.h"
#include "spool/block.h"
#include "spool/spool_int.h"

#define PIECE_BYTES LIMIT_SEND_PIECE_BYTES

struct spool_reader {
    int fd;
    uint32_t stream, page_bytes;
    uint64_t number;
    uint8_t *buffer; /* PIECE_BYTES */
    XXH3_state_t *hash;
};

int reader_open_path(const char *path, uint32_t stream, uint64_t number, struct spool_reader **out,
                     struct spool_error *error)
{
    struct spool_reader *r = calloc(1, sizeof(*r));
    int status;

    *out = NULL;
    if (!r)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a reader");
    r->stream = stream;
    r->number = number;
    r->buffer = malloc(PIECE_BYTES);
    r->hash = XXH3_createState();
    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0)
        status = spool_error_set_errno(error, errno == ENOENT ? SPOOL_E_NOT_FOUND : SPOOL_E_IO,
                                       errno, "cannot open %s", path);
    else if (!r->buffer || !r->hash)
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a reader");
    else
        status = tree_page_bytes(r->fd, &r->page_bytes, error);
    if (status != SPOOL_OK) {
        spool_reader_close(r);
        return status;
    }
    *out = r;
    return SPOOL_OK;
}

int spool_reader_open(const struct spool_stream *stream, uint64_t number, struct spool_reader **out,
                      struct spool_error *error)
{
    char *path = segment_path(stream, number);
    int status;

    *out = NULL;
    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a reader");
    status = reader_open_path(path, stream->id, number, out, error);
    free(path);
    return status;
}

void spool_reader_close(struct spool_reader *r)
{
    if (!r)
        return;
    if (r->fd >= 0)
        close(r->fd);
    XXH3_freeState(r->hash);
    free(r->buffer);
    free(r);
}

static int bad(const struct spool_block_ref *ref, struct spool_error *error, const char *what)
{
    return spool_error_set(error, SPOOL_E_CORRUPT, "block %llu of segment %llu: %s",
                           (unsigned long long)ref->sequence, (unsigned long long)ref->segment,
                           what);
}

/* Where the value begins, after checking that all of it lies within the file. */
static int locate(struct spool_reader *r, const struct spool_block_ref *ref, uint64_t *at,
                  struct spool_error *error)
{
    struct stat st;
    uint64_t size, value;

    if (ref->segment != r->number)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "the reader is on segment %llu, the block in %llu",
                               (unsigned long long)r->number, (unsigned long long)ref->segment);
    if (ref->frames_bytes > LIMIT_BLOCK_BYTES || ref->prefix_bytes < BLOCK_HEADER_BYTES)
        return bad(ref, error, "its reference is out of bounds");
    if (fstat(r->fd, &st) < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot stat a segment");
    size = (uint64_t)st.st_size;
    value = block_value_bytes(ref->prefix_bytes, ref->frames_bytes, r->page_bytes);
    if (ref->page < 2 || ref->page > size / r->page_bytes ||
        value + PAGE_PREFIX_BYTES > size - ref->page * r->page_bytes)
        return bad(ref, error, "it lies beyond the end of the file (truncated)");
    *at = ref->page * r->page_bytes + PAGE_PREFIX_BYTES;
    return SPOOL_OK;
}

/* Reads and compares page header and block header; raw is the header as it is hashed. */
static int read_header(struct spool_reader *r, const struct spool_block_ref *ref, uint64_t at,
                       struct block_header *h, uint8_t *raw, struct spool_error *error)
{
    uint8_t both[PAGE_PREFIX_BYTES + BLOCK_HEADER_BYTES];
    uint64_t page, value;
    uint32_t pages;
    uint16_t flags;
    int status = tree_pread(r->fd, both, sizeof(both), at - PAGE_PREFIX_BYTES, error);

    if (status != SPOOL_OK)
        return status;
    memcpy(&page, both, sizeof(page));
    memcpy(&flags, both + 10, sizeof(flags));
    memcpy(&pages, both + 12, sizeof(pages));
    value = block_value_bytes(ref->prefix_bytes, ref->frames_bytes, r->page_bytes);
    if (page != ref->page || !(flags & 4) ||
        pages != (PAGE_PREFIX_BYTES - 1 + value) / r->page_bytes + 1)
        return bad(ref, error, "it is not where it should be (page header)");
    status = block_header_decode(both + PAGE_PREFIX_BYTES, h, error);
    if (status != SPOOL_OK)
        return status;
    if (h->stream != r->stream || h->segment != ref->segment || h->sequence != ref->sequence ||
        h->origin != ref->origin || h->rows != ref->rows || h->flags != ref->flags ||
        h->first_offset != ref->first_offset || h->last_offset != ref->last_offset ||
        h->first_arrival_ms != ref->first_arrival_ms || h->raw_bytes != ref->raw_bytes ||
        h->payload_bytes != ref->frames_bytes ||
        h->offsets_bytes != ref->prefix_bytes - BLOCK_HEADER_BYTES)
        return bad(ref, error, "its header does not match the index");
    memcpy(raw, both + PAGE_PREFIX_BYTES, BLOCK_HEADER_BYTES);
    memset(raw + 120, 0, 8); /* the checksum's own field */
    return SPOOL_OK;
}

int spool_reader_verify(struct spool_reader *r, const struct spool_block_ref *ref,
                        struct spool_error *error)
{
    uint8_t raw[BLOCK_HEADER_BYTES];
    struct block_header h;
    uint64_t at = 0, left;
    int status = locate(r, ref, &at, error);

    if (status == SPOOL_OK)
        status = read_header(r, ref, at, &h, raw, error);
    if (status != SPOOL_OK)
        return status;
    XXH3_64bits_reset(r->hash);
    XXH3_64bits_update(r->hash, raw, sizeof(raw));
    at += BLOCK_HEADER_BYTES;
    left = h.offsets_bytes + h.payload_bytes;
    while (left) {
        size_t n = left < PIECE_BYTES ? (size_t)left : (size_t)PIECE_BYTES;
        status = tree_pread(r->fd, r->buffer, n, at, error);
        if (status != SPOOL_OK)
            return status;
        XXH3_64bits_update(r->hash, r->buffer, n);
        at += n;
        left -= n;
    }
    if (XXH3_64bits_digest(r->hash) != h.checksum)
        return bad(ref, error, "its checksum does not match");
    return SPOOL_OK;
}

int spool_reader_read(struct spool_reader *r, const struct spool_block_ref *ref, uint64_t at,
                      void *data, size_t n, struct spool_error *error)
{
    uint64_t from = 0;
    int status = locate(r, ref, &from, error);

    if (status != SPOOL_OK)
        return status;
    if (at > ref->frames_bytes || n > ref->frames_bytes - at)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "a read of %zu bytes at %llu goes beyond a block's %llu", n,
                               (unsigned long long)at, (unsigned long long)ref->frames_bytes);
    return tree_pread(r->fd, data, n, from + ref->prefix_bytes + at, error);
}

int spool_reader_block(struct spool_reader *r, const struct spool_block_ref *ref, void **payload,
                       size_t *size, int64_t **offsets, struct spool_error *error)
{
    uint8_t raw[BLOCK_HEADER_BYTES], *list = NULL, *bytes = NULL;
    int64_t *decoded = NULL;
    struct block_header h;
    uint64_t at = 0;
    int status = locate(r, ref, &at, error);

    *payload = NULL;
    *size = 0;
    if (offsets)
        *offsets = NULL;
    if (status == SPOOL_OK)
        status = read_header(r, ref, at, &h, raw, error);
    if (status != SPOOL_OK)
        return status;
    list = malloc(h.offsets_bytes + 1ull);
    bytes = malloc(h.payload_bytes + 1);
    if (!list || !bytes) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a block");
        goto done;
    }
    status = tree_pread(r->fd, list, h.offsets_bytes, at + BLOCK_HEADER_BYTES, error);
    if (status == SPOOL_OK)
        status = tree_pread(r->fd, bytes, h.payload_bytes, at + ref->prefix_bytes, error);
    if (status != SPOOL_OK)
        goto done;
    XXH3_64bits_reset(r->hash);
    XXH3_64bits_update(r->hash, raw, sizeof(raw));
    XXH3_64bits_update(r->hash, list, h.offsets_bytes);
    XXH3_64bits_update(r->hash, bytes, h.payload_bytes);
    if (XXH3_64bits_digest(r->hash) != h.checksum) {
        status = bad(ref, error, "its checksum does not match");
        goto done;
    }
    if (offsets && h.offsets_bytes) {
        decoded = malloc((h.rows + 1ull) * sizeof(*decoded));
        if (!decoded) {
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a block");
        } else if (block_offsets_decode(&h, list, decoded) != SPOOL_OK) {
            status = bad(ref, error, "its offset list is damaged");
        } else {
            *offsets = decoded;
            decoded = NULL;
        }
    }
    if (status == SPOOL_OK) {
        *payload = bytes;
        *size = (size_t)h.payload_bytes;
        bytes = NULL;
    }
done:
    free(decoded);
    free(bytes);
    free(list);
    return status;
}
