/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: counts the steps by which a process makes something durable below the directory STEP_IN: an
 * fsync or fdatasync, a write to a file that is open for synchronised ones (LMDB's meta page), and what
 * changes a directory (rename, link, unlink, mkdir). Each is a line "call path" of the file STEP_LOG,
 * in the order they begin.
 *
 *   STEP_BEFORE=N   SIGKILL instead of the N-th of them (from 1)
 *   STEP_BEHIND=N   SIGKILL when the N-th is done, before its caller knows
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PATH_MAX_BYTES 4096

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long steps; /* begun so far */
static int log_fd = -1;

static void kill_at(const char *setting, long step)
{
    const char *at = getenv(setting);

    if (at && strtol(at, NULL, 10) == step)
        raise(SIGKILL);
}

/* One that is not counted must not make a test pass by killing nobody. */
static void fail(const char *what)
{
    fprintf(stderr, "preload_step: %s: %s\n", what, strerror(errno));
    abort();
}

static void tell(const char *call, const char *name)
{
    const char *path = getenv("STEP_LOG");

    if (path && log_fd < 0)
        log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (path && (log_fd < 0 || dprintf(log_fd, "%s %s\n", call, name) < 0))
        fail(path);
}

/* The number of the step that begins with this call; 0: it is none. */
static long begin(const char *call, const char *path)
{
    const char *in = getenv("STEP_IN");
    size_t size = in ? strlen(in) : 0;
    long step;

    if (!in || strncmp(path, in, size) != 0 || (path[size] && path[size] != '/'))
        return 0;
    pthread_mutex_lock(&lock);
    step = ++steps;
    tell(call, path[size] ? path + size + 1 : ".");
    kill_at("STEP_BEFORE", step);
    pthread_mutex_unlock(&lock);
    return step;
}

static void end(long step)
{
    int saved = errno;

    if (step)
        kill_at("STEP_BEHIND", step);
    errno = saved;
}

static long begin_fd(const char *call, int fd)
{
    char link[64], path[PATH_MAX_BYTES];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    path[n < 0 ? 0 : n] = 0;
    return begin(call, path);
}

/* A write that is on the disk when it returns. */
static long begin_write(const char *call, int fd)
{
    int saved = errno, flags = fcntl(fd, F_GETFL);
    struct stat st;
    long step = 0;

    if (flags >= 0 && (flags & (O_DSYNC | O_SYNC)) && !fstat(fd, &st) && S_ISREG(st.st_mode))
        step = begin_fd(call, fd);
    errno = saved;
    return step;
}

int fsync(int fd)
{
    long step = begin_fd("fsync", fd);
    int rc = REAL(fsync)(fd);

    end(step);
    return rc;
}

int fdatasync(int fd)
{
    long step = begin_fd("fdatasync", fd);
    int rc = REAL(fdatasync)(fd);

    end(step);
    return rc;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    long step = begin_write("pwrite", fd);
    ssize_t n = REAL(pwrite)(fd, data, size, at);

    end(step);
    return n;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at)
{
    return pwrite(fd, data, size, at);
}

ssize_t write(int fd, const void *data, size_t size)
{
    long step = begin_write("write", fd);
    ssize_t n = REAL(write)(fd, data, size);

    end(step);
    return n;
}

ssize_t writev(int fd, const struct iovec *vector, int count)
{
    long step = begin_write("writev", fd);
    ssize_t n = REAL(writev)(fd, vector, count);

    end(step);
    return n;
}

int rename(const char *from, const char *to)
{
    long step = begin("rename", from);
    int rc = REAL(rename)(from, to);

    end(step);
    return rc;
}

int link(const char *from, const char *to)
{
    long step = begin("link", from);
    int rc = REAL(link)(from, to);

    end(step);
    return rc;
}

int unlink(const char *path)
{
    long step = begin("unlink", path);
    int rc = REAL(unlink)(path);

    end(step);
    return rc;
}

int mkdir(const char *path, mode_t mode)
{
    long step = begin("mkdir", path);
    int rc = REAL(mkdir)(path, mode);

    end(step);
    return rc;
}
