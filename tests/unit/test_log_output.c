/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "daemon/log_output.h"

#define STUCK_S 30 /* a write that waits for ever ends the test */

static struct log_output output;
static int reader;
static unsigned waited; /* so often for room that was not there */

/* What the code under test calls: nothing is really waited for. */
int poll(struct pollfd *fds, nfds_t count, int wait_ms)
{
    const struct timespec now = {0};
    long ready = syscall(SYS_ppoll, fds, count, &now, NULL, 0);

    waited += ready == 0 && wait_ms != 0;
    return (int)ready;
}

static void set_blocking(int fd, bool blocking)
{
    int flags = fcntl(fd, F_GETFL);
    assert_int_equal(fcntl(fd, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK), 0);
}

/* A pipe or a socket that nobody reads; full where it is to be. */
static void open_output(bool is_socket, bool blocking, bool full)
{
    static const char rest[4096];
    int fds[2];

    assert_int_equal(is_socket ? socketpair(AF_UNIX, SOCK_STREAM, 0, fds) : pipe(fds), 0);
    reader = fds[0];
    output = (struct log_output){.fd = fds[1]};
    set_blocking(reader, false);
    set_blocking(output.fd, false);
    while (full && write(output.fd, rest, sizeof(rest)) > 0)
        continue;
    set_blocking(output.fd, blocking);
    log_set_writer(log_output_line, &output);
    waited = 0;
}

static void close_output(void)
{
    log_set_writer(NULL, NULL);
    close(output.fd);
    if (reader >= 0)
        close(reader);
}

/* What there is to read, the filling left out. */
static const char *heard(void)
{
    static char text[70000];
    size_t n = 0;
    char c;

    while (read(reader, &c, 1) == 1)
        if (c && n + 1 < sizeof(text))
            text[n++] = c;
    text[n] = 0;
    return text;
}

static void say(const char *line)
{
    log_output_line(&output, line, strlen(line));
}

static void a_reader_that_does_not_read(bool is_socket, bool blocking)
{
    const char *text;

    open_output(is_socket, blocking, true);
    for (unsigned i = 1; i <= 50; i++) {
        say("lost\n");
        assert_int_equal(output.dropped, i);
        assert_int_equal(waited, 1); /* for the first of them alone */
    }
    assert_string_equal(heard(), "");
    say("here\n");
    text = heard();
    assert_memory_equal(text, "here\n", 5);
    assert_non_null(strstr(text, " log.dropped lines=50\n"));
    assert_int_equal(output.dropped, 0);
    close_output();
}

static void nobody_reads(void **state)
{
    (void)state;
    alarm(STUCK_S);
    for (int i = 0; i < 4; i++)
        a_reader_that_does_not_read(i & 1, i & 2);
    alarm(0);
}

/* Of a line that does not fit no more is written than there is room for, and it ends. */
static void a_long_line(void **state)
{
    static char line[60000];

    (void)state;
    memset(line, 'x', sizeof(line) - 2);
    line[sizeof(line) - 2] = '\n';
    alarm(STUCK_S);
    open_output(false, true, false);
    say(line);
    assert_int_equal(output.dropped, 0);
    assert_string_equal(heard(), line);
    say(line);
    say(line);
    assert_int_equal(output.dropped, 1);
    close_output();
    alarm(0);
}

static void the_reader_is_gone(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    open_output(false, true, false);
    close(reader);
    reader = -1;
    say("nobody\n");
    assert_int_equal(output.dropped, 1);
    close_output();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nobody_reads),
        cmocka_unit_test(a_long_line),
        cmocka_unit_test(the_reader_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
