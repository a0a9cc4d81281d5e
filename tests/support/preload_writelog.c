/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: appends every change to the files below WRITELOG_DIR to the file WRITELOG (log.h), in
 * the order they took effect: one lock is held from the call to its record. The process adds notes
 * by writelog_note(), found with dlsym; what it commits to Kafka is noted by itself.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "writelog/log.h"

#define FILES_MAX 4096
#define FDS_MAX   4096
#define PATHS_MAX 4096

void writelog_note(const void *data, size_t size);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char root[PATHS_MAX];
static size_t root_size;
static char *files[FILES_MAX]; /* path by number - 1; NULL: unlinked */
static uint32_t file_count;
static struct {
    uint32_t file;
    int sync;
    char *directory; /* path of a directory's descriptor */
} fds[FDS_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void fail(const char *what)
{
    fprintf(stderr, "writelog: %s: %s\n", what, strerror(errno));
    abort();
}

static void put(const void *data, size_t size)
{
    static __typeof__(&write) real;
    const char *at = data;

    if (!real) /* libc's own: no preload_fail.so between */
        real = (__typeof__(&write))dlsym(dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD), "write");
    while (size) {
        ssize_t n = real(log_fd, at, size);
        if (n <= 0)
            fail("the log cannot be written");
        at += n;
        size -= (size_t)n;
    }
}

static void record(enum log_kind kind, uint32_t file, uint64_t at, const void *data, size_t size)
{
    struct log_record r = {(uint32_t)kind, file, at, size};
    put(&r, sizeof(r));
    put(data, size);
}

static void begin(void)
{
    int failed = errno;
    pthread_mutex_lock(&lock);
    errno = failed;
}

static void end(void)
{
    int failed = errno;
    pthread_mutex_unlock(&lock);
    errno = failed;
}

__attribute__((constructor)) static void start(void)
{
    const char *log = getenv("WRITELOG"), *directory = getenv("WRITELOG_DIR");

    if (!log || !directory || !realpath(directory, root))
        return;
    root_size = strlen(root);
    log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        fail(log);
}

/* The path below the root, "" for the root itself, NULL for any other. */
static const char *below(int at, const char *path, char *memory)
{
    char link[64], base[PATHS_MAX], whole[2 * PATHS_MAX], *name;
    ssize_t n = 0;

    if (log_fd < 0)
        return NULL;
    if (*path != '/') {
        snprintf(link, sizeof(link), at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        n = readlink(link, base, sizeof(base) - 1);
        if (n < 0)
            return NULL;
    }
    base[n] = 0;
    snprintf(whole, sizeof(whole), "%s%s%s", base, n ? "/" : "", path);
    /* The last name may not be there yet: only what leads to it is resolved. */
    name = strrchr(whole, '/');
    if (!strcmp(name, "/..") || !strcmp(name, "/.") || !name[1])
        return realpath(whole, memory) && !strcmp(memory, root) ? "" : NULL;
    *name++ = 0;
    if (!realpath(*whole ? whole : "/", memory))
        return NULL;
    n = (ssize_t)strlen(memory);
    snprintf(memory + n, PATHS_MAX - (size_t)n, "/%s", name);
    if (strncmp(memory, root, root_size) != 0)
        return NULL;
    if (!memory[root_size])
        return "";
    return memory[root_size] == '/' ? memory + root_size + 1 : NULL;
}

static uint32_t file_of(const char *path)
{
    for (uint32_t i = file_count; i > 0; i--)
        if (files[i - 1] && !strcmp(files[i - 1], path))
            return i;
    return 0;
}

static uint32_t file_made(const char *path)
{
    if (file_count == FILES_MAX)
        fail("too many files");
    files[file_count++] = strdup(path);
    record(LOG_CREATE, file_count, 0, path, strlen(path) + 1);
    return file_count;
}

/* --- what is watched ------------------------------------------------------------------------ */

static int watch_open(int at, const char *path, int flags, mode_t mode)
{
    char memory[PATHS_MAX];
    const char *name = below(at, path, memory);
    struct stat st;
    int fd, there;

    if (!name)
        return REAL(openat)(at, path, flags, mode);
    begin();
    there = fstatat(at, path, &st, 0) == 0;
    fd = REAL(openat)(at, path, flags, mode);
    if (fd >= 0 && fd < FDS_MAX && !fstat(fd, &st)) {
        free(fds[fd].directory);
        fds[fd].directory = S_ISDIR(st.st_mode) ? strdup(name) : NULL;
        fds[fd].file = 0;
        fds[fd].sync = (flags & (O_DSYNC | O_SYNC)) != 0;
        if (S_ISREG(st.st_mode)) {
            uint32_t file = file_of(name);
            fds[fd].file = file && there ? file : file_made(name);
            if (there && (flags & O_TRUNC))
                record(LOG_TRUNCATE, fds[fd].file, 0, NULL, 0);
        }
    }
    end();
    return fd;
}

#define MODE_OF(flags, mode)                                                                       \
    do {                                                                                           \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        if (flags & (O_CREAT | O_TMPFILE))                                                         \
            mode = va_arg(args, mode_t);                                                           \
        va_end(args);                                                                              \
    } while (0)

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_OF(flags, mode);
    return watch_open(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_OF(flags, mode);
    return watch_open(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...)
{
    mode_t mode = 0;
    MODE_OF(flags, mode);
    return watch_open(at, path, flags, mode);
}

int close(int fd)
{
    int rc;

    if (fd < 0 || fd >= FDS_MAX || (!fds[fd].file && !fds[fd].directory))
        return REAL(close)(fd);
    begin();
    fds[fd].file = 0;
    free(fds[fd].directory);
    fds[fd].directory = NULL;
    rc = REAL(close)(fd);
    end();
    return rc;
}

static uint32_t watched(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS_MAX ? fds[fd].file : 0;
}

static void wrote(int fd, off_t at, const void *data, ssize_t n)
{
    if (n > 0)
        record(fds[fd].sync ? LOG_WRITE_SYNC : LOG_WRITE, fds[fd].file, (uint64_t)at, data,
               (size_t)n);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    ssize_t n;

    if (!watched(fd))
        return REAL(pwrite)(fd, data, size, at);
    begin();
    n = REAL(pwrite)(fd, data, size, at);
    wrote(fd, at, data, n);
    end();
    return n;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at)
{
    return pwrite(fd, data, size, at);
}

ssize_t write(int fd, const void *data, size_t size)
{
    static __typeof__(&write) real;
    off_t at;
    ssize_t n;

    if (!real)
        real = REAL(write);
    if (!watched(fd))
        return real(fd, data, size);
    begin();
    at = lseek(fd, 0, SEEK_CUR);
    n = real(fd, data, size);
    wrote(fd, at, data, n);
    end();
    return n;
}

static void wrote_vector(int fd, off_t at, const struct iovec *vector, int count, ssize_t n)
{
    for (int i = 0; i < count && n > 0; i++) {
        ssize_t part = n < (ssize_t)vector[i].iov_len ? n : (ssize_t)vector[i].iov_len;
        wrote(fd, at, vector[i].iov_base, part);
        at += part;
        n -= part;
    }
}

ssize_t writev(int fd, const struct iovec *vector, int count)
{
    off_t at;
    ssize_t n;

    if (!watched(fd))
        return REAL(writev)(fd, vector, count);
    begin();
    at = lseek(fd, 0, SEEK_CUR);
    n = REAL(writev)(fd, vector, count);
    wrote_vector(fd, at, vector, count, n);
    end();
    return n;
}

ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t at)
{
    ssize_t n;

    if (!watched(fd))
        return REAL(pwritev)(fd, vector, count, at);
    begin();
    n = REAL(pwritev)(fd, vector, count, at);
    wrote_vector(fd, at, vector, count, n);
    end();
    return n;
}

int ftruncate(int fd, off_t size)
{
    int rc;

    if (!watched(fd))
        return REAL(ftruncate)(fd, size);
    begin();
    rc = REAL(ftruncate)(fd, size);
    if (!rc)
        record(LOG_TRUNCATE, fds[fd].file, (uint64_t)size, NULL, 0);
    end();
    return rc;
}

static int synced(int fd, int (*real)(int))
{
    const char *directory;
    int rc;

    if (log_fd < 0 || fd < 0 || fd >= FDS_MAX || (!fds[fd].file && !fds[fd].directory))
        return real(fd);
    begin();
    rc = real(fd);
    directory = fds[fd].directory;
    if (!rc && directory)
        record(LOG_SYNC_DIR, 0, 0, directory, strlen(directory) + 1);
    else if (!rc)
        record(LOG_SYNC, fds[fd].file, 0, NULL, 0);
    end();
    return rc;
}

int fsync(int fd)
{
    return synced(fd, REAL(fsync));
}

int fdatasync(int fd)
{
    return synced(fd, REAL(fdatasync));
}

int rename(const char *from, const char *to)
{
    char from_memory[PATHS_MAX], to_memory[PATHS_MAX], both[2 * PATHS_MAX];
    const char *a = below(AT_FDCWD, from, from_memory), *b = below(AT_FDCWD, to, to_memory);
    uint32_t file, gone;
    int rc, n;

    if (!a || !b)
        return REAL(rename)(from, to);
    begin();
    rc = REAL(rename)(from, to);
    if (!rc) {
        file = file_of(a);
        gone = file_of(b);
        if (gone) {
            free(files[gone - 1]);
            files[gone - 1] = NULL;
        }
        if (file) {
            free(files[file - 1]);
            files[file - 1] = strdup(b);
        }
        n = snprintf(both, sizeof(both), "%s%c%s", a, 0, b);
        record(LOG_RENAME, file, 0, both, (size_t)n + 1);
    }
    end();
    return rc;
}

int unlinkat(int at, const char *path, int flags)
{
    char memory[PATHS_MAX];
    const char *name = below(at, path, memory);
    uint32_t file;
    int rc;

    if (!name)
        return REAL(unlinkat)(at, path, flags);
    begin();
    rc = REAL(unlinkat)(at, path, flags);
    if (!rc) {
        file = file_of(name);
        if (file) {
            free(files[file - 1]);
            files[file - 1] = NULL;
        }
        record(LOG_UNLINK, file, 0, name, strlen(name) + 1);
    }
    end();
    return rc;
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int mkdir(const char *path, mode_t mode)
{
    char memory[PATHS_MAX];
    const char *name = below(AT_FDCWD, path, memory);
    int rc;

    if (!name || !*name)
        return REAL(mkdir)(path, mode);
    begin();
    rc = REAL(mkdir)(path, mode);
    if (!rc)
        record(LOG_MKDIR, 0, 0, name, strlen(name) + 1);
    end();
    return rc;
}

void writelog_note(const void *data, size_t size)
{
    begin();
    record(LOG_NOTE, 0, 0, data, size);
    end();
}

rd_kafka_resp_err_t rd_kafka_commit_queue(
    rd_kafka_t *client, const rd_kafka_topic_partition_list_t *offsets, rd_kafka_queue_t *queue,
    void (*done)(rd_kafka_t *, rd_kafka_resp_err_t, rd_kafka_topic_partition_list_t *, void *),
    void *arg)
{
    char text[512];

    begin();
    for (int i = 0; log_fd >= 0 && offsets && i < offsets->cnt; i++) {
        const rd_kafka_topic_partition_t *p = &offsets->elems[i];
        int n = snprintf(text, sizeof(text), "%s/%d", p->topic, (int)p->partition);
        record(LOG_COMMITTED, 0, (uint64_t)p->offset, text, (size_t)n + 1);
    }
    end();
    return REAL(rd_kafka_commit_queue)(client, offsets, queue, done, arg);
}
