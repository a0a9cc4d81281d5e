/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sink/clickhouse_int.h"

void one_line(char *dst, size_t size, const char *src, size_t src_size)
{
    size_t at = 0;

    for (size_t i = 0; i < src_size && at + 1 < size; i++) {
        unsigned char c = (unsigned char)src[i];
        if (c == '\n' && i + 1 >= src_size)
            break;
        dst[at++] = c < 0x20 || c == 0x7f ? ' ' : (char)c;
    }
    /* A cut never leaves half a character. */
    if (at + 1 == size) {
        while (at > 0 && ((unsigned char)dst[at - 1] & 0xc0) == 0x80)
            at--;
        if (at > 0 && (unsigned char)dst[at - 1] >= 0xc0)
            at--;
    }
    while (at > 0 && dst[at - 1] == ' ')
        at--;
    dst[at] = '\0';
}

static void outcome_begin(const struct http_reply *reply, struct clickhouse_outcome *out)
{
    memset(out, 0, sizeof(*out));
    out->http_status = reply->status;
    out->duration_ns = reply->duration_ns;
    if (reply->status == 0)
        return;
    if (reply->exception_code)
        out->code = (int)strtol(reply->exception_code, NULL, 10);
    if (out->code <= 0)
        out->code = error_code_parse(reply->body, reply->body_size);
}

static void describe_failure(const struct http_reply *reply, struct clickhouse_outcome *out)
{
    if (reply->status == 0)
        one_line(out->text, sizeof(out->text), reply->transport_error,
                 strlen(reply->transport_error));
    else if (reply->body_size > 0)
        one_line(out->text, sizeof(out->text), reply->body, reply->body_size);
    if (out->text[0])
        return;
    if (out->code > 0)
        snprintf(out->text, sizeof(out->text), "exception code %d without a text", out->code);
    else
        snprintf(out->text, sizeof(out->text), "HTTP status %d without a text", reply->status);
}

void outcome_of_query(const struct http_reply *reply, struct clickhouse_outcome *out)
{
    bool worked = reply->status == 200 && !reply->exception_code;

    outcome_begin(reply, out);
    if (worked && !reply->body_cut) {
        out->code = 0; /* a result may hold the words "Code: 1" */
        return;
    }
    if (worked) {
        out->code = 0;
        out->class_ = CLASS_UNKNOWN;
        snprintf(out->text, sizeof(out->text), "the answer is longer than %zu bytes",
                 reply->body_size);
        return;
    }
    describe_failure(reply, out);
    out->class_ = error_classify(out->code, out->text, reply->status, 0);
    if (out->class_ == CLASS_NONE)
        out->class_ = CLASS_UNKNOWN;
    out->unknown = reply->status == 0 && reply->connected;
}

/* An answer without an exception that came before anything was done with the rows. A redirection is
   none: it is no word of ClickHouse's, and whoever says it may have passed the rows on. */
static bool refused_before_reading(int status)
{
    switch (status) {
    case 400:
    case 401:
    case 403:
    case 404:
    case 405:
    case 411:
    case 413:
    case 414:
    case 415:
    case 429:
        return true;
    default:
        return false;
    }
}

void outcome_of_insert(const struct http_reply *reply, bool native, uint64_t body_size,
                       uint64_t blocks_given, struct clickhouse_outcome *out)
{
    bool proved;

    outcome_begin(reply, out);
    if (reply->status == 200 && !reply->exception_code && reply->body_size == 0 &&
        !reply->body_cut && reply->body_sent == body_size)
        return;

    describe_failure(reply, out);
    if (reply->status == 200 && reply->body_sent != body_size)
        snprintf(out->text, sizeof(out->text),
                 "the server answered 200 before the whole body was sent");
    out->class_ = error_classify(out->code, out->text, reply->status, native);
    if (out->class_ == CLASS_NONE)
        out->class_ = CLASS_UNKNOWN;

    if (reply->status == 0 || reply->status == 200)
        proved = false; /* an exception behind a 200 came while storing, or later */
    else if (out->code > 0)
        proved = error_proves_nothing_stored(out->code, reply->body); /* text may end too early */
    else
        proved = refused_before_reading(reply->status);
    out->unknown = !proved && blocks_given > 0;
    out->unanswered = reply->timed_out && reply->body_sent == body_size;
    if (out->unknown && out->code > 0) {
        out->before_view = error_is_before_view(out->code, reply->body);
        out->of_view = !out->before_view && error_is_of_view(reply->body);
    }
}
