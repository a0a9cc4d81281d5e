/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/config.h"

#define BACKLOG 128

static int unix_address(const char *path, struct sockaddr_un *address, struct spool_error *error)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof(address->sun_path))
        return spool_error_set(error, SPOOL_E_INVALID, "the path of the socket %s is too long",
                               path);
    memcpy(address->sun_path, path, strlen(path) + 1);
    return SPOOL_OK;
}

/* Whether path may be replaced: nothing is there, or a socket that nobody answers on. */
static int check_vacant(const char *path, struct spool_error *error)
{
    struct sockaddr_un address;
    struct stat st;
    int fd, status, connected;

    if (lstat(path, &st) != 0)
        return errno == ENOENT ? SPOOL_OK
                               : spool_error_set_errno(error, SPOOL_E_IO, errno,
                                                       "can't look at the control socket %s", path);
    if (!S_ISSOCK(st.st_mode))
        return spool_error_set(error, SPOOL_E_EXISTS,
                               "control.socket %s is there already and is no socket: move it away, "
                               "or choose another path",
                               path);
    status = unix_address(path, &address, error);
    if (status != SPOOL_OK)
        return status;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "can't make a socket");
    connected = connect(fd, (struct sockaddr *)&address, sizeof(address));
    if (connected == 0 || errno == EAGAIN)
        status = spool_error_set(error, SPOOL_E_LOCKED,
                                 "another process answers on the control socket %s: stop it, or "
                                 "give this one another control.socket",
                                 path);
    close(fd);
    return status;
}

/* The directory of path, where it is missing; what goes wrong shows at bind. */
static void make_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char parent[256];

    if (!slash || slash == path || (size_t)(slash - path) >= sizeof(parent))
        return;
    memcpy(parent, path, (size_t)(slash - path));
    parent[slash - path] = 0;
    (void)mkdir(parent, 0755);
}

int listen_unix(const char *path, int *out, struct spool_error *error)
{
    struct sockaddr_un address;
    char temporary[256];
    mode_t mask;
    int fd = -1;
    int status = check_vacant(path, error);

    *out = -1;
    if (status != SPOOL_OK)
        return status;
    snprintf(temporary, sizeof(temporary), "%s.%x", path, (unsigned)getpid() & 0xffffff);
    status = unix_address(temporary, &address, error);
    if (status != SPOOL_OK)
        return status;
    make_parent(path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "can't make a socket");
    (void)unlink(temporary); /* of a process with our number, long gone */
    mask = umask(0177);
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno,
                                       "can't make the control socket %s; control.socket must be "
                                       "in a directory that this user may write to",
                                       path);
    umask(mask);
    if (status == SPOOL_OK && (listen(fd, BACKLOG) != 0 || rename(temporary, path) != 0)) {
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "can't make the control socket %s",
                                       path);
        (void)unlink(temporary);
    }
    if (status != SPOOL_OK) {
        close(fd);
        return status;
    }
    *out = fd;
    return SPOOL_OK;
}

/* One address; -1 with errno. */
static int listen_on(const struct addrinfo *a)
{
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    int on = 1, off = 0, failed;

    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->ai_family == AF_INET6) /* "every address" is both families by one socket */
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    failed = errno;
    close(fd);
    errno = failed;
    return -1;
}

static void describe_bound(int fd, char *bound, size_t size)
{
    struct sockaddr_storage address;
    socklen_t n = sizeof(address);
    char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";

    if (getsockname(fd, (struct sockaddr *)&address, &n) == 0)
        (void)getnameinfo((struct sockaddr *)&address, n, host, sizeof(host), port, sizeof(port),
                          NI_NUMERICHOST | NI_NUMERICSERV);
    snprintf(bound, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

int listen_tcp(const char *address, int *out, char *bound, size_t bound_size,
               struct spool_error *error)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char host[256], service[8];
    uint16_t port;
    int fd = -1, resolved, failed = 0;

    *out = -1;
    if (config_split_listen(address, host, sizeof(host), &port) != 0)
        return spool_error_set(error, SPOOL_E_INVALID, "http.listen \"%s\" is no \"host:port\"",
                               address);
    snprintf(service, sizeof(service), "%u", port);
    resolved = getaddrinfo(*host ? host : NULL, service, &hints, &list);
    if (resolved != 0)
        return spool_error_set(error, SPOOL_E_IO, "http.listen: can't find the host of %s: %s",
                               address, gai_strerror(resolved));
    /* IPv6 first where every address is meant: it takes IPv4 too. */
    for (int round = *host ? 1 : 0; round < 2 && fd < 0; round++) {
        for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
            if (round == 0 && a->ai_family != AF_INET6)
                continue;
            fd = listen_on(a);
            if (fd < 0)
                failed = errno;
        }
    }
    freeaddrinfo(list);
    if (fd < 0 && failed == EADDRINUSE)
        return spool_error_set(error, SPOOL_E_IO,
                               "http.listen: %s is in use by another process: stop it, or choose "
                               "another port",
                               address);
    if (fd < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, failed, "http.listen: can't listen on %s",
                                     address);
    describe_bound(fd, bound, bound_size);
    *out = fd;
    return SPOOL_OK;
}
