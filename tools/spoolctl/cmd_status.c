/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "json_view.h"
#include "spoolctl.h"
#include "table.h"

#define STATUS_MAX_BYTES (16 * MIB)

/* One member as a cell, through the readable form of its kind. */
static void bytes_cell(struct table *t, struct json_view value)
{
    char text[TEXT_SIZE];
    table_cell(t, "%s", text_bytes(view_u64(value), text));
}

static void age_cell(struct table *t, struct json_view value)
{
    char text[TEXT_SIZE];
    table_cell(t, "%s", text_age(view_double(value), text));
}

static void print_spool(struct json_view spool)
{
    char used[TEXT_SIZE], max[TEXT_SIZE], left[TEXT_SIZE];
    char *path = text_shown(view_member(spool, "path"));
    struct json_view bound = view_member(spool, "max_bytes");

    printf("spool       %s, %s used", path ? path : "",
           text_bytes(view_u64(view_member(spool, "used_bytes")), used));
    if (view_u64(bound))
        printf(" of %s", text_bytes(view_u64(bound), max));
    printf(", %s free on disk\n", text_bytes(view_u64(view_member(spool, "free_bytes")), left));
    free(path);
}

static void print_daemon(struct json_view all)
{
    struct json_view ready = view_member(all, "ready");
    char age[TEXT_SIZE];
    char *version = text_shown(view_member(all, "version"));
    char *reason = text_shown(view_member(ready, "reason"));

    printf("spoold      %s, pid %llu, up %s, %s%s%s\n", version ? version : "",
           (unsigned long long)view_u64(view_member(all, "pid")),
           text_age(view_double(view_member(all, "uptime_seconds")), age),
           view_true(view_member(ready, "ok")) ? "ready" : "not ready",
           reason && *reason ? ": " : "", reason ? reason : "");
    free(version);
    free(reason);
}

static void print_kafka(struct json_view kafka)
{
    char *reason = text_shown(view_member(kafka, "reason"));

    if (kafka.text && !view_is(kafka, "null"))
        printf("kafka       %s, %llu partitions%s%s\n",
               view_true(view_member(kafka, "connected")) ? "connected" : "not connected",
               (unsigned long long)view_u64(view_member(kafka, "assigned_partitions")),
               reason && *reason ? ": " : "", reason ? reason : "");
    free(reason);
}

static void print_endpoints(struct json_view endpoints)
{
    struct json_view endpoint;
    size_t at = 0;

    for (int i = 0; view_element(endpoints, &at, &endpoint); i++) {
        char *url = text_shown(view_member(endpoint, "url"));
        char *state = text_shown(view_member(endpoint, "state"));
        char *version = text_shown(view_member(endpoint, "version"));
        char *reason = text_shown(view_member(endpoint, "reason"));

        printf("%-11s %s %s%s%s%s%s\n", i ? "" : "clickhouse", url ? url : "", state ? state : "",
               version && *version ? ", version " : "", version ? version : "",
               reason && *reason ? ": " : "", reason ? reason : "");
        free(url);
        free(state);
        free(version);
        free(reason);
    }
}

/* What the table has no room for: why a stream is not running, and what it does not promise. */
static void print_reasons(struct json_view streams)
{
    struct json_view stream;
    size_t at = 0;

    while (view_element(streams, &at, &stream)) {
        char *name = text_shown(view_member(stream, "name"));
        char *state = text_shown(view_member(stream, "state"));
        char *reason = text_shown(view_member(stream, "reason"));
        char *why = text_shown(view_member(stream, "delivery_why"));
        char *since = text_shown(view_member(stream, "since"));

        if (reason && *reason)
            printf("%s is %s since %s: %s\n", name ? name : "", state ? state : "",
                   since ? since : "", reason);
        if (why && *why && view_is(view_member(stream, "delivery"), "\"at_least_once\""))
            printf("%s delivers at least once: %s\n", name ? name : "", why);
        free(name);
        free(state);
        free(reason);
        free(since);
        free(why);
    }
}

static void print_online(struct json_view all)
{
    static const char *const titles[] = {"STREAM",   "STATE",    "TABLE", "DELIVERY",  ">WAITING",
                                         ">ON DISK", ">OLDEST",  ">LAG",  ">INSERTED", ">SEALED",
                                         ">SENDING", ">RETRIES", ">DEAD"};
    struct json_view streams = view_member(all, "streams"), stream;
    struct table t;
    size_t at = 0;

    print_daemon(all);
    print_spool(view_member(all, "spool"));
    print_kafka(view_member(all, "kafka"));
    print_endpoints(view_member(all, "endpoints"));
    putchar('\n');
    table_init(&t, titles, sizeof(titles) / sizeof(titles[0]));
    while (view_element(streams, &at, &stream)) {
        struct json_view batches = view_member(stream, "batches");
        struct json_view lag = view_member(stream, "lag");

        table_json(&t, view_member(stream, "name"));
        table_json(&t, view_member(stream, "state"));
        table_json(&t, view_member(stream, "table"));
        table_json(&t, view_member(stream, "delivery"));
        table_json(&t, view_member(stream, "rows_spooled"));
        bytes_cell(&t, view_member(stream, "bytes_spooled"));
        age_cell(&t, view_member(stream, "oldest_age_seconds"));
        if (lag.size && lag.text[0] == '-')
            table_cell(&t, "-"); /* not known */
        else
            table_json(&t, lag);
        table_json(&t, view_member(stream, "rows_inserted"));
        table_json(&t, view_member(batches, "sealed"));
        table_json(&t, view_member(batches, "in_flight"));
        table_json(&t, view_member(stream, "retries"));
        table_json(&t, view_member(stream, "dead_letters"));
    }
    table_end(&t);
    print_reasons(streams);
}

static void print_offline(struct json_view all)
{
    static const char *const titles[] = {"STREAM",   ">ROWS",   ">ACKNOWLEDGED",
                                         ">WAITING", ">SEALED", ">SEGMENTS",
                                         ">ON DISK", ">OLDEST", ">DEAD"};
    struct json_view streams = view_member(all, "streams"), stream;
    struct table t;
    size_t at = 0;
    char *uuid = text_shown(view_member(all, "uuid"));

    printf("spoold      not running, read from its files (uuid %s)\n", uuid ? uuid : "");
    free(uuid);
    print_spool(view_member(all, "spool"));
    putchar('\n');
    table_init(&t, titles, sizeof(titles) / sizeof(titles[0]));
    while (view_element(streams, &at, &stream)) {
        table_json(&t, view_member(stream, "name"));
        table_json(&t, view_member(stream, "rows"));
        table_json(&t, view_member(stream, "acked_rows"));
        table_json(&t, view_member(stream, "rows_spooled"));
        table_json(&t, view_member(view_member(stream, "batches"), "sealed"));
        table_json(&t, view_member(stream, "segments"));
        bytes_cell(&t, view_member(stream, "bytes_spooled"));
        age_cell(&t, view_member(stream, "oldest_age_seconds"));
        table_json(&t, view_member(stream, "dead_letters"));
    }
    table_end(&t);
    if (!at)
        puts("no streams");
}

static bool is_damaged(struct json_view all)
{
    struct json_view streams = view_member(all, "streams"), stream;
    size_t at = 0;
    bool damaged = false;

    while (view_element(streams, &at, &stream)) {
        struct json_view n = view_member(stream, "damaged_segments");
        if (!view_u64(n))
            continue;
        char *name = text_shown(view_member(stream, "name"));
        fprintf(stderr, "spoolctl: %.*s segments of %s are damaged: `spoolctl ls %s` names them\n",
                (int)n.size, n.text, name ? name : "", name ? name : "STREAM");
        free(name);
        damaged = true;
    }
    return damaged;
}

int command_status(const struct command *command, const struct arguments *args)
{
    struct spool_error error = {0};
    struct backend b;
    struct buf answer;
    struct json_view all;
    int status;

    (void)command;
    buf_init(&answer, STATUS_MAX_BYTES);
    status = backend_open(&b, args->spool, args->socket, false, &error);
    if (status == SPOOL_OK)
        status = backend_status(&b, &answer, &error);
    if (status != SPOOL_OK) {
        status = fail(&error);
        goto done;
    }
    all = view_of((const char *)answer.data, answer.len);
    if (args->given[OPTION_JSON])
        printf("%.*s\n", (int)all.size, all.text);
    else if (b.client)
        print_online(all);
    else
        print_offline(all);
    fflush(stdout);
    status = is_damaged(all) ? EXIT_PROBLEM : EXIT_FINE;
done:
    buf_free(&answer);
    backend_close(&b);
    return status;
}
