/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/http_server.h"

#define DEADLINE_MS 30000

struct world {
    uv_loop_t loop;
    uv_timer_t timer;
    uv_prepare_t turn;
    unsigned turns;
    unsigned requests;
    bool waited, closed;
    struct http_server *server;
    struct sockaddr_in address;
};

static void on_timer(uv_timer_t *timer)
{
    ((struct world *)timer->data)->waited = true;
}

static void on_turn(uv_prepare_t *turn)
{
    ((struct world *)turn->data)->turns++;
}

static void on_request(void *arg, struct http_exchange *x)
{
    struct buf body;

    ((struct world *)arg)->requests++;
    buf_init(&body, 100);
    http_exchange_reply(x, 200, "text/plain", &body);
}

static void on_closed(void *arg)
{
    ((struct world *)arg)->closed = true;
}

static int listen_anywhere(struct world *w)
{
    socklen_t size = sizeof(w->address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    w->address.sin_family = AF_INET;
    w->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&w->address, size), 0);
    assert_int_equal(listen(fd, 5), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&w->address, &size), 0);
    return fd;
}

static void world_open(struct world *w)
{
    struct spool_error error;

    memset(w, 0, sizeof(*w));
    uv_loop_init(&w->loop);
    uv_timer_init(&w->loop, &w->timer);
    uv_prepare_init(&w->loop, &w->turn);
    w->timer.data = w->turn.data = w;
    uv_prepare_start(&w->turn, on_turn);
    assert_int_equal(
        http_server_create(&(struct http_server_options){.loop = &w->loop,
                                                         .listen_fd = listen_anywhere(w),
                                                         .connection_limit = 4,
                                                         .request = on_request,
                                                         .arg = w},
                           &w->server, &error),
        0);
}

static void let_pass(struct world *w, uint64_t ms)
{
    w->waited = false;
    uv_timer_start(&w->timer, on_timer, ms, 0);
    while (!w->waited)
        uv_run(&w->loop, UV_RUN_ONCE);
}

static void world_close(struct world *w)
{
    http_server_close(w->server, on_closed, w);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_close((uv_handle_t *)&w->turn, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_true(w->closed);
    assert_int_equal(uv_loop_close(&w->loop), 0);
}

/* A connection that can't be taken is waited with, and taken when there is a descriptor for it. */
static void test_no_descriptor_for_a_connection(void **state)
{
    static const char get[] = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    struct rlimit before, none;
    struct world w;
    int fd;

    (void)state;
    world_open(&w);
    let_pass(&w, 50);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){(rlim_t)fd, before.rlim_max}; /* it got the lowest that was free */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&w.address, sizeof(w.address)), 0);
    assert_int_equal(write(fd, get, strlen(get)), strlen(get));
    w.turns = 0;
    let_pass(&w, 1000);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_int_equal(w.requests, 0);
    assert_in_range(w.turns, 1, 100);
    uv_timer_start(&w.timer, on_timer, DEADLINE_MS, 0);
    w.waited = false;
    while (!w.requests && !w.waited)
        uv_run(&w.loop, UV_RUN_ONCE);
    assert_int_equal(w.requests, 1);
    close(fd);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_descriptor_for_a_connection),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
