/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ClickHouse that stores nothing: bodies of inserts (decompress=1 in the URL) are read and
 * answered with 200; everything else goes on to a real server, whose answers come back as they are.
 *
 *     discard PORT UPSTREAM_PORT
 *
 * One thread a connection; plain blocking sockets on 127.0.0.1. Only what spoold's client sends:
 * HTTP/1.1 with Content-Length.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEAD_MAX 65536
#define CHUNK    (1024 * 1024)

static uint16_t upstream_port;

struct client {
    int fd;
    char head[HEAD_MAX + 1]; /* the request's head, then what came with it of the body */
    size_t head_size, held;
    char *chunk;
};

static bool send_all(int fd, const void *data, size_t size)
{
    const char *at = data;

    while (size > 0) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

/* Until the blank line; what was held of the next request stays in front. */
static bool read_head(struct client *c)
{
    for (;;) {
        char *end;
        ssize_t n;
        c->head[c->held] = '\0';
        end = strstr(c->head, "\r\n\r\n");
        if (end) {
            c->head_size = (size_t)(end - c->head) + 4;
            return true;
        }
        if (c->held == HEAD_MAX)
            return false;
        n = recv(c->fd, c->head + c->held, HEAD_MAX - c->held, 0);
        if (n <= 0)
            return false;
        c->held += (size_t)n;
    }
}

static size_t content_length(const char *head)
{
    const char *at = strcasestr(head, "\r\ncontent-length:");
    return at ? strtoull(at + 17, NULL, 10) : 0;
}

/* The body to fd, or nowhere where fd is -1. */
static bool pass_body(struct client *c, size_t left, int fd)
{
    size_t here = c->held - c->head_size;

    if (here > left)
        here = left;
    if (fd >= 0 && !send_all(fd, c->head + c->head_size, here))
        return false;
    left -= here;
    memmove(c->head, c->head + c->head_size + here, c->held - c->head_size - here);
    c->held -= c->head_size + here;
    while (left > 0) {
        ssize_t n = recv(c->fd, c->chunk, left < CHUNK ? left : CHUNK, 0);
        if (n <= 0 || (fd >= 0 && !send_all(fd, c->chunk, (size_t)n)))
            return false;
        left -= (size_t)n;
    }
    return true;
}

static int connect_upstream(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons(upstream_port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

/* The server is asked to close the connection behind its answer, and so do we. */
static void forward(struct client *c, size_t body)
{
    static const char CLOSE[] = "Connection: close\r\n\r\n";
    int fd = connect_upstream();
    ssize_t n;

    if (fd < 0)
        return;
    if (send_all(fd, c->head, c->head_size - 2) && send_all(fd, CLOSE, sizeof(CLOSE) - 1) &&
        pass_body(c, body, fd))
        while ((n = recv(fd, c->chunk, CHUNK, 0)) > 0 && send_all(c->fd, c->chunk, (size_t)n))
            continue;
    close(fd);
}

static void *serve(void *arg)
{
    static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                             "Content-Length: 0\r\nConnection: Keep-Alive\r\n\r\n";
    struct client *c = arg;

    while (read_head(c)) {
        size_t body = content_length(c->head);
        char *line_end = strstr(c->head, "\r\n");
        char *mark;
        *line_end = '\0';
        mark = strstr(c->head, "decompress=1");
        *line_end = '\r';
        if (!mark) {
            forward(c, body);
            break;
        }
        if (!pass_body(c, body, -1) || !send_all(c->fd, OK, sizeof(OK) - 1))
            break;
    }
    close(c->fd);
    free(c->chunk);
    free(c);
    return NULL;
}

static void serve_new(int fd)
{
    struct client *c = calloc(1, sizeof(*c));
    int on = 1;
    pthread_t thread;

    if (c)
        c->chunk = malloc(CHUNK);
    if (!c || !c->chunk) {
        fprintf(stderr, "discard: out of memory\n");
        exit(1);
    }
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (pthread_create(&thread, NULL, serve, c) != 0)
        exit(1);
    pthread_detach(thread);
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, client;

    if (argc != 3) {
        fprintf(stderr, "discard PORT UPSTREAM_PORT\n");
        return 2;
    }
    at.sin_port = htons((uint16_t)strtoul(argv[1], NULL, 10));
    upstream_port = (uint16_t)strtoul(argv[2], NULL, 10);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&at, sizeof(at)) != 0 || listen(fd, 64) != 0) {
        perror("discard");
        return 1;
    }
    while ((client = accept4(fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        serve_new(client);
    perror("discard: accept");
    return 1;
}
