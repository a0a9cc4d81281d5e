/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: the FAIL_AT-th (from 1) write, pwrite, writev, fsync, fdatasync, ftruncate, fallocate or mmap
 * of a regular file or directory, or open (also opendir), creat (an open that may make the file), rename,
 * link, unlink or mkdir, fails, after half of its bytes where it writes any (none where FAIL_ERRNO is given). Every later one
 * fails too: a disk that broke. Or, for a process that runs on:
 *
 *   FAIL_ONCE=1       no later one does
 *   FAIL_COUNT=FILE   how many of them there were, at the end, into FILE
 *   FAIL_WHILE=FILE   they fail as long as the file exists
 *   FAIL_IN=DIR       of files below it alone
 *   FAIL_CALLS=NAMES  of these calls alone, "fsync,fdatasync"; pread fails where it is named
 *   FAIL_ERRNO=N      with this; EIO by default
 *   FAIL_MIN=N        no writes of fewer bytes: a full disk takes LMDB's meta page, which is in its place
 *   FAIL_READ=BYTE    nothing but each pread of that byte of the file FAIL_IN: a bad sector
 *   FAIL_SHORT=1      a write does not fail, but writes half of its bytes, every time
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_long calls;

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAIL_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (!f)
        return;
    fprintf(f, "%ld\n", atomic_load(&calls));
    fclose(f);
}

static int begins(const char *path, const char *directory)
{
    return !strncmp(path, directory, strlen(directory));
}

/* The file's path, or "". */
static const char *path_of(int fd, char path[4096])
{
    char link[64];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, 4095);
    path[n < 0 ? 0 : n] = 0;
    return path;
}

static int is_below(int fd, const char *directory)
{
    char path[4096];

    return begins(path_of(fd, path), directory);
}

/* Whether this call, of a file that is asked for, fails; *first: it is to write half. */
static int strikes(const char *call, size_t size, int *first)
{
    const char *at = getenv("FAIL_AT"), *names = getenv("FAIL_CALLS");
    const char *file = getenv("FAIL_WHILE"), *min = getenv("FAIL_MIN");
    long n;

    if ((!at && !file) || (names && !strstr(names, call)))
        return 0;
    if (min && size < strtoul(min, NULL, 10))
        return 0;
    if (file) {
        *first = getenv("FAIL_SHORT") != NULL;
        return access(file, F_OK) == 0;
    }
    n = atomic_fetch_add(&calls, 1) + 1 - strtol(at, NULL, 10);
    *first = n == 0 && !getenv("FAIL_ERRNO");
    return getenv("FAIL_ONCE") ? n == 0 : n >= 0;
}

static int fails(int fd, const char *call, size_t size, int *first)
{
    const char *in = getenv("FAIL_IN");
    struct stat st;

    if (fstat(fd, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        return 0;
    return (!in || is_below(fd, in)) && strikes(call, size, first);
}

static int fails_path(const char *path, const char *call)
{
    const char *in = getenv("FAIL_IN");
    int first = 0;

    return (!in || begins(path, in)) && strikes(call, SIZE_MAX, &first);
}

static ssize_t broken(void)
{
    const char *number = getenv("FAIL_ERRNO");

    errno = number ? (int)strtol(number, NULL, 10) : EIO;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    int first = 0;
    if (!fails(fd, "pwrite", size, &first))
        return REAL(pwrite)(fd, data, size, at);
    return first && size > 1 ? REAL(pwrite)(fd, data, size / 2, at) : broken();
}

ssize_t write(int fd, const void *data, size_t size)
{
    int first = 0;
    if (!fails(fd, "write", size, &first))
        return REAL(write)(fd, data, size);
    return first && size > 1 ? REAL(write)(fd, data, size / 2) : broken();
}

ssize_t writev(int fd, const struct iovec *vector, int count)
{
    size_t bytes = 0;
    int first = 0;

    for (int i = 0; i < count; i++)
        bytes += vector[i].iov_len;
    if (!fails(fd, "writev", bytes, &first))
        return REAL(writev)(fd, vector, count);
    return first && count > 1 ? REAL(writev)(fd, vector, count / 2) : broken();
}

int fsync(int fd)
{
    int first = 0;
    return fails(fd, "fsync", SIZE_MAX, &first) ? (int)broken() : REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    int first = 0;
    return fails(fd, "fdatasync", SIZE_MAX, &first) ? (int)broken() : REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t size)
{
    int first = 0;
    return fails(fd, "ftruncate", SIZE_MAX, &first) ? (int)broken() : REAL(ftruncate)(fd, size);
}

int fallocate(int fd, int mode, off_t at, off_t size)
{
    int first = 0;
    return fails(fd, "fallocate", SIZE_MAX, &first) ? (int)broken()
                                                    : REAL(fallocate)(fd, mode, at, size);
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t at)
{
    int first = 0;
    if (fd >= 0 && fails(fd, "mmap", SIZE_MAX, &first)) {
        broken();
        return MAP_FAILED;
    }
    return REAL(mmap)(address, size, protection, flags, fd, at);
}

ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    const char *names = getenv("FAIL_CALLS"), *byte = getenv("FAIL_READ"), *in = getenv("FAIL_IN");
    off_t bad = byte ? strtoll(byte, NULL, 10) : 0;
    char path[4096];
    int first = 0;

    if (byte && in && at <= bad && bad < at + (off_t)size && !strcmp(path_of(fd, path), in))
        return broken();
    return names && strstr(names, "pread") && fails(fd, "pread", SIZE_MAX, &first)
               ? broken()
               : REAL(pread)(fd, data, size, at);
}

int open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    return fails_path(path, flags & O_CREAT ? "creat" : "open") ? (int)broken()
                                                                : REAL(open)(path, flags, mode);
}

int rename(const char *from, const char *to)
{
    return fails_path(from, "rename") ? (int)broken() : REAL(rename)(from, to);
}

int renameat2(int in, const char *from, int to_in, const char *to, unsigned flags)
{
    return fails_path(from, "rename") ? (int)broken() : REAL(renameat2)(in, from, to_in, to, flags);
}

int link(const char *from, const char *to)
{
    return fails_path(from, "link") ? (int)broken() : REAL(link)(from, to);
}

DIR *opendir(const char *path)
{
    DIR *directory = NULL;

    if (fails_path(path, "open"))
        broken();
    else
        directory = REAL(opendir)(path);
    return directory;
}

int unlink(const char *path)
{
    return fails_path(path, "unlink") ? (int)broken() : REAL(unlink)(path);
}

int mkdir(const char *path, mode_t mode)
{
    return fails_path(path, "mkdir") ? (int)broken() : REAL(mkdir)(path, mode);
}
