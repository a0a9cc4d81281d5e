/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spoold: reads its arguments, takes the spool, opens its sockets, runs the pipeline on one loop,
 * and ends in order. Whatever ends it out of order (kill -9, a fatal error) is as good an end: the
 * next start decides from disk. Exit codes: 0 clean, 1 runtime failure, 2 usage or config, 75 the
 * spool is held by another process, 128 + n a second signal n.
 */
#include <fcntl.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "daemon/config.h"
#include "daemon/control.h"
#include "daemon/log_output.h"
#include "daemon/memory.h"
#include "daemon/notify.h"

#define EXIT_RUNTIME    1
#define EXIT_USAGE      2
#define EXIT_TEMPORARY  75 /* EX_TEMPFAIL */
#define DEFAULT_CONFIG  "/etc/spoold/spoold.json"
#define STOP_MARGIN_MS  10000
#define THREADS_LEAST   4
#define CLOSING_TURNS   100
#define PRINT_BYTES_MAX ((size_t)1 << 20)

static const char USAGE[] =
    "usage: spoold [-c FILE] [--check-config | --print-config | --print-schema | --version]\n"
    "  -c, --config FILE  the configuration (default " DEFAULT_CONFIG ")\n"
    "  --check-config     read the configuration, say ok or what is wrong, and end\n"
    "  --print-config     print every option with its default and what it does, and end\n"
    "  --print-schema     print the same as a JSON Schema, and end\n"
    "  --version          print the version, and end\n";

enum action { ACTION_RUN, ACTION_CHECK, ACTION_PRINT, ACTION_SCHEMA, ACTION_VERSION, ACTION_HELP };

struct arguments {
    const char *config;
    enum action action;
};

struct server {
    uv_loop_t loop;
    struct config *config;
    struct spool *spool;
    struct metrics *metrics;
    struct control *control;
    struct pipeline *pipeline;
    struct notify notify;
    uv_signal_t signals[3]; /* TERM, INT, HUP */
    uv_timer_t watchdog;
    uv_prepare_t turn;
    uint64_t turn_began_ns;
    uint64_t turn_idle_ns;
    bool ready;
    bool stopping;
};

/* --- arguments -------------------------------------------------------------------------------- */

static int parse_arguments(int argc, char **argv, struct arguments *out)
{
    static const struct option LONG[] = {
        {"config", required_argument, NULL, 'c'},
        {"check-config", no_argument, NULL, ACTION_CHECK + 256},
        {"print-config", no_argument, NULL, ACTION_PRINT + 256},
        {"print-schema", no_argument, NULL, ACTION_SCHEMA + 256},
        {"version", no_argument, NULL, ACTION_VERSION + 256},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int c;

    out->config = DEFAULT_CONFIG;
    out->action = ACTION_RUN;
    while ((c = getopt_long(argc, argv, "c:h", LONG, NULL)) != -1) {
        enum action action = c == 'h' ? ACTION_HELP : (enum action)(c - 256);
        if (c == 'c') {
            out->config = optarg;
            continue;
        }
        if (c == '?')
            return -1; /* getopt has said why */
        if (out->action != ACTION_RUN && out->action != action) {
            fprintf(stderr, "spoold: one of these options at a time\n");
            return -1;
        }
        out->action = action;
    }
    if (optind < argc) {
        fprintf(stderr, "spoold: unexpected argument '%s'\n", argv[optind]);
        return -1;
    }
    return 0;
}

static int print(int (*render)(struct buf *out))
{
    struct buf out;
    int failed;

    buf_init(&out, PRINT_BYTES_MAX);
    failed = render(&out) != SPOOL_OK || fwrite(out.data, 1, out.len, stdout) != out.len ||
             fflush(stdout) != 0;
    buf_free(&out);
    return failed ? EXIT_RUNTIME : 0;
}

static int check_config(const char *path)
{
    struct config *config = NULL;
    struct spool_error error = {0};

    if (config_load(path, &config, &error) != SPOOL_OK) {
        fprintf(stderr, "%s\n", error.text);
        return EXIT_USAGE;
    }
    for (size_t i = 0; i < config->warning_count; i++)
        fprintf(stderr, "warning: %s\n", config->warnings[i]);
    config_free(config);
    return puts("ok") < 0 || fflush(stdout) != 0 ? EXIT_RUNTIME : 0;
}

/* --- stopping --------------------------------------------------------------------------------- */

/* At once, as if killed: what is promised is on disk. */
__attribute__((noreturn)) static void exit_now(struct server *s, int code)
{
    if (s->control)
        control_unlink(s->control);
    _exit(code);
}

static void on_fatal(void *arg, const char *text)
{
    struct server *s = arg;

    log_event(LOG_ERROR, "daemon.exit", "code", log_i64(EXIT_RUNTIME), "reason", text, NULL);
    notify_send(&s->notify, "STOPPING=1\nSTATUS=fatal error, see the log");
    exit_now(s, EXIT_RUNTIME);
}

static void close_handle(uv_handle_t *handle)
{
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* The control socket answered to the last; without handles the loop ends. */
static void on_control_closed(void *arg)
{
    struct server *s = arg;

    s->control = NULL;
    for (size_t i = 0; i < sizeof(s->signals) / sizeof(s->signals[0]); i++)
        close_handle((uv_handle_t *)&s->signals[i]);
    close_handle((uv_handle_t *)&s->watchdog);
    memory_trim_stop();
    close_handle((uv_handle_t *)&s->turn);
    uv_stop(&s->loop);
}

static void on_pipeline_closed(void *arg)
{
    struct server *s = arg;

    control_close(s->control, on_control_closed, s);
}

static void on_drained(void *arg)
{
    struct server *s = arg;

    control_attach(s->control, NULL);
    pipeline_close(s->pipeline, on_pipeline_closed, s);
}

static void stop(struct server *s, const char *why)
{
    char lines[128];

    s->stopping = true;
    log_event(LOG_INFO, "daemon.stopping", "signal", why, "timeout_ms",
              log_u64(s->config->shutdown_timeout_ms), NULL);
    snprintf(lines, sizeof(lines),
             "STOPPING=1\nSTATUS=delivering what waits\nEXTEND_TIMEOUT_USEC=%llu",
             (unsigned long long)(s->config->shutdown_timeout_ms + STOP_MARGIN_MS) * 1000);
    notify_send(&s->notify, lines);
    pipeline_drain(s->pipeline, s->config->shutdown_timeout_ms, on_drained, s);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct server *s = handle->data;
    const char *name = number == SIGTERM ? "SIGTERM" : "SIGINT";

    if (number == SIGHUP) {
        log_event(LOG_WARN, "daemon.no_reload", "signal", "SIGHUP", "action",
                  "the configuration is read at the start only: restart to change it", NULL);
        return;
    }
    if (!s->stopping) {
        stop(s, name);
        return;
    }
    log_event(LOG_WARN, "daemon.exit", "code", log_i64(128 + number), "reason", name, NULL);
    exit_now(s, 128 + number);
}

/* --- starting --------------------------------------------------------------------------------- */

/* Whoever started us may have closed descriptors 0 to 2. The loop or the spool would get their numbers:
   the log would go there, and libuv ends the process where it closes one of them. */
static void fill_standard_descriptors(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

/* The pool has a thread for each core that computes, and some that wait for the disk. */
static void size_thread_pool(void)
{
    cpu_set_t cores;
    int count = sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 0;
    char text[16];

    snprintf(text, sizeof(text), "%d", count + 2 > THREADS_LEAST ? count + 2 : THREADS_LEAST);
    setenv("UV_THREADPOOL_SIZE", text, 0);
}

/* Runs before the loop waits: what went by since the last time, less what was waiting. */
static void on_turn(uv_prepare_t *turn)
{
    struct server *s = turn->data;
    uint64_t now_ns = clock_monotonic_ns(), idle_ns = uv_metrics_idle_time(&s->loop);
    uint64_t passed_ns = now_ns - s->turn_began_ns, waited_ns = idle_ns - s->turn_idle_ns;

    if (s->turn_began_ns && passed_ns >= waited_ns)
        metrics_observe(s->metrics, METRIC_LOOP_BUSY_SECONDS,
                        (double)(passed_ns - waited_ns) / 1e9);
    s->turn_began_ns = now_ns;
    s->turn_idle_ns = idle_ns;
}

static void on_watchdog(uv_timer_t *timer)
{
    const struct server *s = timer->data;

    notify_send(&s->notify, "WATCHDOG=1");
}

static void on_ready(void *arg)
{
    struct server *s = arg;
    char lines[96];

    if (s->ready)
        return;
    s->ready = true;
    log_event(LOG_INFO, "daemon.ready", "streams", log_u64(s->config->pipeline.stream_count), NULL);
    snprintf(lines, sizeof(lines), "READY=1\nSTATUS=running, %zu stream%s",
             s->config->pipeline.stream_count, s->config->pipeline.stream_count == 1 ? "" : "s");
    notify_send(&s->notify, lines);
}

static int start_loop(struct server *s, struct spool_error *error)
{
    static const int NUMBERS[] = {SIGTERM, SIGINT, SIGHUP};
    uint64_t interval_ms = notify_watchdog_interval_ms();
    int failed = uv_loop_init(&s->loop);

    if (failed == 0)
        failed = uv_loop_configure(&s->loop, UV_METRICS_IDLE_TIME);
    for (size_t i = 0; i < sizeof(NUMBERS) / sizeof(NUMBERS[0]) && failed == 0; i++) {
        failed = uv_signal_init(&s->loop, &s->signals[i]);
        s->signals[i].data = s;
        if (failed == 0)
            failed = uv_signal_start(&s->signals[i], on_signal, NUMBERS[i]);
    }
    if (failed != 0)
        return spool_error_set(error, SPOOL_E_IO, "can't make the event loop: %s",
                               uv_strerror(failed));
    uv_timer_init(&s->loop, &s->watchdog);
    s->watchdog.data = s;
    if (interval_ms)
        uv_timer_start(&s->watchdog, on_watchdog, interval_ms, interval_ms);
    memory_trim_start(&s->loop);
    uv_prepare_init(&s->loop, &s->turn);
    s->turn.data = s;
    uv_prepare_start(&s->turn, on_turn);
    return SPOOL_OK;
}

static int start_pipeline(struct server *s, struct spool_error *error)
{
    const struct pipeline_callbacks callbacks = {.fatal = on_fatal, .ready = on_ready};
    int status = pipeline_create(&s->loop, &s->config->pipeline, s->spool, s->metrics, &callbacks,
                                 s, &s->pipeline, error);

    if (status != SPOOL_OK)
        return status;
    control_attach(s->control, s->pipeline);
    return pipeline_start(s->pipeline, error);
}

static int start(struct server *s, struct spool_error *error)
{
    const struct config *c = s->config;
    struct control_options control = {.loop = &s->loop, .config = c};
    int status = start_loop(s, error);

    if (status == SPOOL_OK && metrics_create(&s->metrics) != SPOOL_OK)
        status = spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    if (status == SPOOL_OK)
        status = spool_open(&c->spool, &s->spool, error);
    if (status != SPOOL_OK)
        return status;
    control.metrics = s->metrics;
    control.uuid = spool_uuid_text(s->spool);
    status = control_create(&control, &s->control, error);
    if (status != SPOOL_OK) /* only the spool's own lock is a matter of time (75) */
        return status == SPOOL_E_LOCKED ? SPOOL_E_IO : status;
    log_event(LOG_INFO, "daemon.started", "version", SPOOLD_VERSION, "pid", log_i64(getpid()),
              "config", c->file, "spool", c->spool.path, "uuid", spool_uuid_text(s->spool), "http",
              control_http_address(s->control), NULL);
    return start_pipeline(s, error);
}

static int exit_code(int status)
{
    if (status == SPOOL_E_LOCKED)
        return EXIT_TEMPORARY;
    return status == SPOOL_E_INVALID ? EXIT_USAGE : EXIT_RUNTIME;
}

/* In the reverse order of start(). Closing a handle takes a turn of the loop. */
static void finish(struct server *s)
{
    pipeline_free(s->pipeline);
    for (int turns = 0; turns < CLOSING_TURNS && uv_run(&s->loop, UV_RUN_NOWAIT) != 0; turns++)
        continue;
    spool_close(s->spool);
    metrics_free(s->metrics);
    uv_loop_close(&s->loop);
    log_event(LOG_INFO, "daemon.exit", "code", "0", NULL);
    notify_close(&s->notify);
    config_free(s->config);
}

static int run(const char *path)
{
    static struct server s; /* outlives every callback */
    static struct log_output output = {.fd = STDERR_FILENO};
    struct spool_error error = {0};
    int status;

    notify_open(&s.notify);
    if (config_load(path, &s.config, &error) != SPOOL_OK) {
        fprintf(stderr, "spoold: %s\n", error.text);
        return EXIT_USAGE;
    }
    log_set_level(s.config->log_level);
    log_set_format(s.config->log_format);
    log_set_writer(log_output_line, &output);
    for (size_t i = 0; i < s.config->warning_count; i++)
        log_event(LOG_WARN, "config.warning", "detail", s.config->warnings[i], NULL);
    error_class_set_overrides(s.config->overrides, s.config->override_count);
    status = start(&s, &error);
    if (status != SPOOL_OK) {
        log_event(LOG_ERROR, "daemon.start_failed", "error", error.text, "code",
                  log_i64(exit_code(status)), NULL);
        exit_now(&s, exit_code(status));
    }
    uv_run(&s.loop, UV_RUN_DEFAULT);
    finish(&s);
    /* Not exit(): a Kafka client that could not be destroyed still has threads, and OpenSSL's handler
       at exit takes away what they use. */
    fflush(NULL);
    _exit(0);
}

int main(int argc, char **argv)
{
    struct arguments arguments;

    fill_standard_descriptors();
    memory_tune();
    size_thread_pool();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is a full disk: EFBIG says so */
    if (parse_arguments(argc, argv, &arguments) != 0) {
        fputs(USAGE, stderr);
        return EXIT_USAGE;
    }
    switch (arguments.action) {
    case ACTION_CHECK:
        return check_config(arguments.config);
    case ACTION_PRINT:
        return print(config_print_options);
    case ACTION_SCHEMA:
        return print(config_print_schema);
    case ACTION_VERSION:
        return puts("spoold " SPOOLD_VERSION) < 0 ? EXIT_RUNTIME : 0;
    case ACTION_HELP:
        fputs(USAGE, stdout);
        return 0;
    case ACTION_RUN:
        break;
    }
    return run(arguments.config);
}
