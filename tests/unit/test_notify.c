/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/notify.h"

/* A socket as systemd has it, under $NOTIFY_SOCKET; name "@..." is abstract. */
static int listen_as(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t size = strlen(name);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    memcpy(address.sun_path, name, size);
    if (name[0] == '@')
        address.sun_path[0] = 0;
    assert_int_equal(bind(fd, (struct sockaddr *)&address,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size)),
                     0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static void assert_hears(int fd, const char *want)
{
    char got[256];
    ssize_t n = recv(fd, got, sizeof(got) - 1, 0);
    assert_true(n >= 0);
    got[n] = 0;
    assert_string_equal(got, want);
}

static void a_path_and_an_abstract_name_are_reached(void **state)
{
    (void)state;
    char names[2][64];
    snprintf(names[0], sizeof(names[0]), "/tmp/spoold-test-notify-%d", (int)getpid());
    snprintf(names[1], sizeof(names[1]), "@spoold-test-notify-%d", (int)getpid());
    for (int i = 0; i < 2; i++) {
        struct notify n;
        int fd = listen_as(names[i]);
        notify_open(&n);
        assert_true(n.fd >= 0);
        notify_send(&n, "READY=1\nSTATUS=running");
        notify_send(&n, "WATCHDOG=1");
        assert_hears(fd, "READY=1\nSTATUS=running");
        assert_hears(fd, "WATCHDOG=1");
        close(fd);
        notify_send(&n, "STOPPING=1"); /* nobody listens any more: no harm */
        notify_close(&n);
        assert_int_equal(n.fd, -1);
    }
    unlink(names[0]);
}

static void without_a_socket_nothing_happens(void **state)
{
    (void)state;
    static const char *const NAMES[] = {NULL,
                                        "",
                                        "/",
                                        "relative",
                                        "/no/such/socket",
                                        "/12345678901234567890123456789012345678901234567890123456"
                                        "789012345678901234567890123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        struct notify n;
        if (NAMES[i])
            setenv("NOTIFY_SOCKET", NAMES[i], 1);
        else
            unsetenv("NOTIFY_SOCKET");
        notify_open(&n);
        assert_int_equal(n.fd, -1);
        notify_send(&n, "READY=1");
        notify_close(&n);
    }
}

static void the_watchdog_is_due_at_half_its_time(void **state)
{
    (void)state;
    char pid[24];
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    assert_int_equal(notify_watchdog_interval_ms(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(notify_watchdog_interval_ms(), 15000);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(notify_watchdog_interval_ms(), 15000);
    setenv("WATCHDOG_PID", "1", 1); /* meant for another process */
    assert_int_equal(notify_watchdog_interval_ms(), 0);
    unsetenv("WATCHDOG_PID");
    setenv("WATCHDOG_USEC", "900", 1);
    assert_int_equal(notify_watchdog_interval_ms(), 1);
    setenv("WATCHDOG_USEC", "0", 1);
    assert_int_equal(notify_watchdog_interval_ms(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_path_and_an_abstract_name_are_reached),
        cmocka_unit_test(without_a_socket_nothing_happens),
        cmocka_unit_test(the_watchdog_is_due_at_half_its_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
