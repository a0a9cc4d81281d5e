/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/json_writer.h"
#include "base/limits.h"
#include "json_view.h"
#include "spoolctl.h"
#include "table.h"

#define VERIFY_MAX_BYTES (64 * MIB)

/* A spool too damaged to be opened is what verify is there to report. */
static int report_open(const struct spool_error *why, struct buf *out)
{
    struct json_writer w;

    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_bool(&w, "ok", false);
    json_writer_open(&w, "problems", '[');
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "file", "");
    json_writer_text(&w, "stream", "");
    json_writer_u64(&w, "sequence", 0);
    json_writer_text(&w, "kind", "open");
    json_writer_text(&w, "detail", why->text);
    json_writer_close(&w, '}');
    json_writer_close(&w, ']');
    json_writer_u64(&w, "omitted", 0);
    json_writer_close(&w, '}');
    return w.status;
}

static void print_problems(struct json_view all)
{
    static const char *const titles[] = {"FILE", "STREAM", ">SEQUENCE", "KIND", "DETAIL"};
    struct json_view problems = view_member(all, "problems"), problem;
    unsigned long long count = view_u64(view_member(all, "omitted"));
    struct table t;
    size_t at = 0;

    table_init(&t, titles, 5);
    while (view_element(problems, &at, &problem)) {
        bool in_block = view_u64(view_member(problem, "sequence")) > 0;
        table_json(&t, view_member(problem, "file"));
        table_json(&t, view_member(problem, "stream"));
        if (in_block)
            table_json(&t, view_member(problem, "sequence"));
        else
            table_cell(&t, "-");
        table_json(&t, view_member(problem, "kind"));
        table_json(&t, view_member(problem, "detail"));
        count++;
    }
    table_end(&t);
    if (view_true(view_member(all, "ok")))
        puts("the spool is sound");
    else
        printf("%llu problem%s\n", count, count == 1 ? "" : "s");
}

int command_verify(const struct command *command, const struct arguments *args)
{
    struct spool_error error = {0};
    struct backend b;
    struct buf answer;
    struct json_view all;
    int status;

    (void)command;
    buf_init(&answer, VERIFY_MAX_BYTES);
    status = backend_open(&b, args->spool, args->socket, false, &error);
    if (status == SPOOL_E_CORRUPT)
        status = report_open(&error, &answer);
    else if (status == SPOOL_OK)
        status = backend_verify(&b, &answer, &error);
    if (status != SPOOL_OK) {
        status = fail(&error);
        goto done;
    }
    all = view_of((const char *)answer.data, answer.len);
    status = view_true(view_member(all, "ok")) ? EXIT_FINE : EXIT_PROBLEM;
    if (args->given[OPTION_JSON])
        printf("%.*s\n", (int)all.size, all.text);
    else
        print_problems(all);
done:
    buf_free(&answer);
    backend_close(&b);
    return status;
}
