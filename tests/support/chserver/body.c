/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of a request as three readers on top of each other: the transfer coding
 * (Content-Length or chunks), the Content-Encoding, and with decompress=1 ClickHouse's frames.
 */
#include "chserver.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <zlib.h>
#include <zstd.h>

#include "codec/frame.h"

#define IN_BYTES        (256 * 1024)
#define FRAME_BYTES_MAX (1024u * 1024 * 1024) /* the server's own limit of a compressed size */
#define DRAIN_BYTES_MAX (1024 * 1024)

/* Exception codes of ClickHouse. */
#define CANNOT_READ_ALL_DATA      33
#define TOO_LARGE_SIZE_COMPRESSED 39
#define CHECKSUM_DOESNT_MATCH     40
#define NOT_IMPLEMENTED           48
#define CANNOT_DECOMPRESS         271
#define ZLIB_INFLATE_FAILED       354
#define HTTP_LENGTH_REQUIRED      381
#define UNKNOWN_CODEC             432
#define ZSTD_DECODER_FAILED       561
#define INCORRECT_DATA            117

struct body {
    struct connection *c;
    bool expects_continue;
    bool chunked;
    bool transfer_ended;
    uint64_t left; /* of the Content-Length, or of the chunk */
    enum { ENCODING_NONE, ENCODING_ZLIB, ENCODING_ZSTD } encoding;
    bool encoding_ended;
    z_stream zlib;
    ZSTD_DStream *zstd;
    bool zstd_within; /* inside a frame: the end of the transfer would be a cut */
    uint8_t *in;      /* encoded bytes: in[in_at..in_len) */
    size_t in_at;
    size_t in_len;
    bool frames;
    uint8_t method;   /* of the frames so far; 0: none yet */
    struct buf frame; /* one frame as it came */
    struct buf opened;
    size_t opened_at;
    bool failed;
    int code;
    char text[512];
};

static ssize_t fail(struct body *b, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static ssize_t fail(struct body *b, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    b->failed = true;
    b->code = code;
    vsnprintf(b->text, sizeof b->text, format, args);
    va_end(args);
    return -1;
}

static ssize_t lost(struct body *b)
{
    b->c->closing = true;
    return fail(b, 0, "the connection was lost");
}

static bool encoding_open(struct body *b, const char *name)
{
    if (!name || !*name || strcasecmp(name, "identity") == 0)
        return true;
    b->in = malloc(IN_BYTES);
    if (strcasecmp(name, "gzip") == 0 || strcasecmp(name, "deflate") == 0) {
        b->encoding = ENCODING_ZLIB; /* 32: gzip and zlib headers are told apart */
        return b->in && inflateInit2(&b->zlib, MAX_WBITS + 32) == Z_OK;
    }
    if (strcasecmp(name, "zstd") == 0) {
        b->encoding = ENCODING_ZSTD;
        b->zstd = ZSTD_createDStream();
        return b->in && b->zstd;
    }
    return false;
}

struct body *body_open(struct connection *c, const struct request *r, bool frames, int *code,
                       char text[512])
{
    const char *length = request_header(r, "Content-Length");
    const char *transfer = request_header(r, "Transfer-Encoding");
    const char *expect = request_header(r, "Expect");
    struct body *b = calloc(1, sizeof *b);
    if (!b)
        abort();
    b->c = c;
    b->frames = frames;
    b->chunked = transfer && strcasecmp(transfer, "chunked") == 0;
    b->expects_continue = expect && strcasecmp(expect, "100-continue") == 0;
    buf_init(&b->frame, FRAME_BYTES_MAX + 64);
    buf_init(&b->opened, (size_t)1 << 32);
    *code = 0;
    if (length && !b->chunked) {
        char *end;
        b->left = strtoull(length, &end, 10);
        if (end == length || *end)
            *code = INCORRECT_DATA;
    }
    b->transfer_ended = !b->chunked && b->left == 0;
    if (!b->chunked && !length && strcmp(r->method, "POST") == 0)
        *code = HTTP_LENGTH_REQUIRED;
    if (*code)
        snprintf(text, 512,
                 "Transfer-Encoding is not chunked and there is no Content-Length "
                 "header for POST request. (HTTP_LENGTH_REQUIRED)");
    if (!*code && !encoding_open(b, request_header(r, "Content-Encoding"))) {
        *code = NOT_IMPLEMENTED;
        snprintf(text, 512, "Unknown compression method %s. (NOT_IMPLEMENTED)",
                 request_header(r, "Content-Encoding"));
    }
    if (!*code)
        return b;
    c->closing = true;
    body_close(b);
    return NULL;
}

/* A line of the chunked coding without its CRLF; false when the peer is gone or it is too long. */
static bool read_line(struct connection *c, char *line, size_t size)
{
    size_t n = 0;
    for (;;) {
        if (c->at == c->len && connection_fill(c) == 0)
            return false;
        char byte = (char)c->data[c->at++];
        if (byte == '\n')
            break;
        if (n + 1 >= size)
            return false;
        line[n++] = byte;
    }
    if (n > 0 && line[n - 1] == '\r')
        n--;
    line[n] = '\0';
    return true;
}

/* Moves to the next chunk with bytes in it; at the last one reads the trailer. */
static int chunk_next(struct body *b)
{
    char line[1024];
    if (!read_line(b->c, line, sizeof line))
        return -1;
    char *end;
    b->left = strtoull(line, &end, 16);
    if (end == line)
        return -1;
    if (b->left > 0)
        return 0;
    do {
        if (!read_line(b->c, line, sizeof line))
            return -1;
    } while (*line);
    b->transfer_ended = true;
    return 0;
}

static ssize_t transfer_read(struct body *b, void *data, size_t size)
{
    struct connection *c = b->c;
    if (b->transfer_ended)
        return 0;
    if (b->expects_continue) {
        static const char GO_ON[] = "HTTP/1.1 100 Continue\r\n\r\n";
        b->expects_continue = false;
        if (connection_send(c, GO_ON, sizeof GO_ON - 1) != 0)
            return lost(b);
    }
    if (b->chunked && b->left == 0) {
        if (chunk_next(b) != 0)
            return lost(b);
        if (b->transfer_ended)
            return 0;
    }
    if (c->at == c->len && connection_fill(c) == 0)
        return lost(b);
    size_t n = c->len - c->at;
    if (n > size)
        n = size;
    if (n > b->left)
        n = (size_t)b->left;
    memcpy(data, c->data + c->at, n);
    c->at += n;
    b->left -= n;
    if (b->left == 0 && !b->chunked)
        b->transfer_ended = true;
    char crlf[8];
    if (b->left == 0 && b->chunked && !read_line(c, crlf, sizeof crlf))
        return lost(b);
    return (ssize_t)n;
}

/* One step of the decoder over in; the number of bytes it gave. */
static ssize_t encoding_step(struct body *b, void *data, size_t size)
{
    if (b->encoding == ENCODING_ZLIB) {
        b->zlib.next_in = b->in + b->in_at;
        b->zlib.avail_in = (uInt)(b->in_len - b->in_at);
        b->zlib.next_out = data;
        b->zlib.avail_out = (uInt)size;
        int status = inflate(&b->zlib, Z_NO_FLUSH);
        b->in_at = b->in_len - b->zlib.avail_in;
        if (status == Z_STREAM_END)
            b->encoding_ended = true;
        else if (status != Z_OK && status != Z_BUF_ERROR)
            return fail(b, ZLIB_INFLATE_FAILED, "inflate failed: %s. (ZLIB_INFLATE_FAILED)",
                        b->zlib.msg ? b->zlib.msg : "?");
        return (ssize_t)(size - b->zlib.avail_out);
    }
    ZSTD_inBuffer in = {b->in, b->in_len, b->in_at};
    ZSTD_outBuffer out = {data, size, 0};
    size_t status = ZSTD_decompressStream(b->zstd, &out, &in);
    if (ZSTD_isError(status))
        return fail(b, ZSTD_DECODER_FAILED,
                    "ZSTD stream decoding failed: %s. (ZSTD_DECODER_FAILED)",
                    ZSTD_getErrorName(status));
    /* A step without input asks for the next frame, which is no sign of being within one. */
    if (in.pos != b->in_at || status == 0)
        b->zstd_within = status != 0;
    b->in_at = in.pos;
    return (ssize_t)out.pos;
}

static ssize_t content_read(struct body *b, void *data, size_t size)
{
    if (b->encoding == ENCODING_NONE)
        return transfer_read(b, data, size);
    for (;;) {
        if (b->encoding_ended)
            return 0;
        ssize_t n = encoding_step(b, data, size);
        if (n != 0 || b->encoding_ended)
            return n;
        if (b->in_at < b->in_len)
            continue;
        n = transfer_read(b, b->in, IN_BYTES);
        if (n < 0)
            return n;
        if (n == 0 && b->encoding == ENCODING_ZLIB)
            return fail(b, ZLIB_INFLATE_FAILED,
                        "inflate failed: unexpected end of file. (ZLIB_INFLATE_FAILED)");
        if (n == 0 && b->zstd_within)
            return fail(b, ZSTD_DECODER_FAILED,
                        "ZSTD stream decoding failed: unexpected end of file. "
                        "(ZSTD_DECODER_FAILED)");
        if (n == 0)
            return 0;
        b->in_at = 0;
        b->in_len = (size_t)n;
    }
}

/* Fills b->frame up to size bytes; 1 = they are there, 0 = a clean end before the first. */
static int frame_fill(struct body *b, size_t size)
{
    while (b->frame.len < size) {
        if (buf_reserve(&b->frame, size - b->frame.len) != SPOOL_OK)
            return (int)fail(b, TOO_LARGE_SIZE_COMPRESSED, "no room for a frame of %zu bytes",
                             size);
        ssize_t n = content_read(b, b->frame.data + b->frame.len, size - b->frame.len);
        if (n < 0)
            return -1;
        if (n == 0 && b->frame.len == 0)
            return 0;
        if (n == 0)
            return (int)fail(b, CANNOT_READ_ALL_DATA,
                             "Cannot read all data. Bytes read: %zu. Bytes expected: %zu. "
                             "(CANNOT_READ_ALL_DATA)",
                             b->frame.len, size);
        b->frame.len += (size_t)n;
    }
    return 1;
}

static uint32_t u32le(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Reads and opens the next frame; 1 = there is one, 0 = the end. */
static int frame_next(struct body *b)
{
    buf_reset(&b->frame);
    buf_reset(&b->opened);
    b->opened_at = 0;
    int status = frame_fill(b, FRAME_HEADER_BYTES);
    if (status != 1)
        return status;
    const uint8_t *head = b->frame.data;
    uint8_t method = head[16];
    uint32_t size = u32le(head + 17);
    if (size > FRAME_BYTES_MAX || size < 9)
        return (int)fail(b, TOO_LARGE_SIZE_COMPRESSED,
                         "Too large size_compressed_without_checksum: %u. Most likely corrupted "
                         "data. (TOO_LARGE_SIZE_COMPRESSED)",
                         size);
    status = frame_fill(b, 16 + (size_t)size);
    if (status != 1)
        return status;
    uint64_t hash[2];
    cityhash128(b->frame.data + 16, size, hash);
    if (memcmp(hash, b->frame.data, sizeof hash) != 0)
        return (int)fail(b, CHECKSUM_DOESNT_MATCH,
                         "Checksum doesn't match: corrupted data. (CHECKSUM_DOESNT_MATCH)");
    if (method != FRAME_LZ4 && method != FRAME_ZSTD && method != FRAME_STORED)
        return (int)fail(b, UNKNOWN_CODEC, "Unknown codec family code: %d. (UNKNOWN_CODEC)",
                         method);
    /* As CompressedReadBuffer does it for a request's body: one method from the first frame on. */
    if (b->method && method != b->method)
        return (int)fail(b, CANNOT_DECOMPRESS,
                         "Data compressed with different methods, given method byte 0x%x, previous "
                         "method byte 0x%x. (CANNOT_DECOMPRESS)",
                         method, b->method);
    b->method = method;
    struct spool_error error;
    if (frames_open(b->frame.data, b->frame.len, &b->opened, &error) != SPOOL_OK)
        return (int)fail(b, CANNOT_DECOMPRESS, "Cannot decompress: %.300s. (CANNOT_DECOMPRESS)",
                         error.text);
    return 1;
}

ssize_t body_read(struct body *b, void *data, size_t size)
{
    if (b->failed)
        return -1;
    if (!b->frames)
        return content_read(b, data, size);
    while (b->opened_at == b->opened.len) {
        int status = frame_next(b);
        if (status != 1)
            return status;
    }
    size_t n = b->opened.len - b->opened_at;
    if (n > size)
        n = size;
    memcpy(data, b->opened.data + b->opened_at, n);
    b->opened_at += n;
    return (ssize_t)n;
}

int body_error(const struct body *b, const char **text)
{
    *text = b->text;
    return b->code;
}

void body_close(struct body *b)
{
    uint8_t sink[16384];
    size_t drained = 0;
    if (b->expects_continue && !b->transfer_ended)
        b->c->closing = true; /* the peer may or may not send the body now */
    while (!b->c->closing && !b->transfer_ended) {
        ssize_t n = transfer_read(b, sink, sizeof sink);
        if (n < 0 || (drained += (size_t)n) > DRAIN_BYTES_MAX)
            b->c->closing = true;
    }
    if (b->encoding == ENCODING_ZLIB)
        inflateEnd(&b->zlib);
    ZSTD_freeDStream(b->zstd);
    buf_free(&b->frame);
    buf_free(&b->opened);
    free(b->in);
    free(b);
}
