/* SPDX-License-Identifier: Apache-2.0 */
#include "chserver.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define IDLE_TIMEOUT_S 300
#define ACCOUNTS_MAX   16
#define LINGER_BYTES   (256 * 1024 * 1024)
#define STOP_TIMEOUT_S 10

static void usage(void)
{
    fprintf(stderr,
            "chserver --port N --path DIR [--lib libchdb.so] [--config FILE] [--user NAME "
            "[--password TEXT] [--readonly]]...\n"
            "ClickHouse's HTTP interface on 127.0.0.1 over libchdb. The library's path may also\n"
            "stand in CHDB_LIB. Without --user: 'default' with no password.\n");
    exit(2);
}

/*
 * Closing with unread bytes in the socket would reset it, and the peer might lose the answer: say
 * that no more will come, and read on until the peer closes too.
 */
static void connection_end(struct connection *c)
{
    size_t read = 0, n;
    struct timeval limit = {5, 0};
    shutdown(c->fd, SHUT_WR);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    c->at = c->len;
    while (read < LINGER_BYTES && (n = connection_fill(c)) > 0) {
        read += n;
        c->at = c->len;
    }
    connection_free(c);
}

static void *connection_serve(void *arg)
{
    struct connection *c = arg;
    struct request r;
    while (!c->closing && request_read(c, &r) == 1) {
        query_handle(c, &r);
        request_free(&r);
    }
    connection_end(c);
    return NULL;
}

static void connection_accept(int listener)
{
    int one = 1;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct timeval idle = {IDLE_TIMEOUT_S, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = connection_new(fd);
    pthread_t thread;
    if (!c) {
        close(fd);
    } else if (pthread_create(&thread, NULL, connection_serve, c) != 0) {
        connection_free(c);
    } else {
        pthread_detach(thread);
    }
}

static int listen_on(const char *port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 128) != 0) {
        fprintf(stderr, "chserver: port %s: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

static void serve(int listener, const sigset_t *stop)
{
    struct pollfd fds[2] = {{.fd = listener, .events = POLLIN},
                            {.fd = signalfd(-1, stop, SFD_CLOEXEC), .events = POLLIN}};
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[1].revents)
            break;
        if (fds[0].revents)
            connection_accept(listener);
    }
}

int main(int argc, char **argv)
{
    static const struct option OPTIONS[] = {
        {"port", required_argument, NULL, 'P'}, {"path", required_argument, NULL, 'd'},
        {"lib", required_argument, NULL, 'l'},  {"config", required_argument, NULL, 'c'},
        {"user", required_argument, NULL, 'u'}, {"password", required_argument, NULL, 'p'},
        {"readonly", no_argument, NULL, 'r'},   {NULL, 0, NULL, 0}};
    static struct account accounts[ACCOUNTS_MAX] = {{"default", "", false}};
    size_t count = 0;
    const char *port = NULL, *path = NULL, *library = getenv("CHDB_LIB"), *config = NULL;
    int opt;
    while ((opt = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1) {
        if (opt == 'P')
            port = optarg;
        else if (opt == 'd')
            path = optarg;
        else if (opt == 'l')
            library = optarg;
        else if (opt == 'c')
            config = optarg;
        else if (opt == 'u' && count < ACCOUNTS_MAX)
            accounts[count++] = (struct account){optarg, "", false};
        else if (opt == 'p' && count > 0)
            accounts[count - 1].password = optarg;
        else if (opt == 'r' && count > 0)
            accounts[count - 1].readonly = true;
        else
            usage();
    }
    if (!port || !path || !library || optind != argc)
        usage();
    query_set_accounts(accounts, count ? count : 1);

    /* Blocked before the library starts its threads, which inherit it: only serve() sees them. */
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);

    engine_start(library, path, config);
    int listener = listen_on(port);
    fprintf(stderr, "chserver: ClickHouse %s on port %s\n", engine_version(), port);
    serve(listener, &stop);
    close(listener);
    registry_wait_empty(STOP_TIMEOUT_S);
    engine_stop();
    /* Idle connections' threads still wait in recv; the process ends without them. */
    _exit(0);
}
