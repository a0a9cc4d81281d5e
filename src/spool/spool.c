/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing a spool: the directory, its lock, its names, and how much room it takes. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "spool/spool_int.h"

#define SEGMENT_BYTES_MIN MIB
#define SEGMENT_BYTES_MAX GIB

int check_writable(const struct spool *spool, struct spool_error *error)
{
    if (spool->read_only)
        return spool_error_set(error, SPOOL_E_INVALID, "the spool was opened for reading only");
    if (atomic_load(&spool->broken))
        return spool_error_set(error, SPOOL_E_FATAL,
                               "an earlier commit failed; the spool must be opened again");
    return SPOOL_OK;
}

bool stream_name_valid(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    return n >= 1 && n <= SPOOL_STREAM_NAME_MAX && !name[n];
}

const uint8_t *spool_uuid(const struct spool *spool)
{
    return spool->uuid;
}

const char *spool_uuid_text(const struct spool *spool)
{
    return spool->uuid_text;
}

void spool_stop_looks(struct spool *spool)
{
    atomic_store(&spool->looks_stopped, true);
}

int spool_looks_go_on(const struct spool *spool, struct spool_error *error)
{
    return atomic_load(&spool->looks_stopped)
               ? spool_error_set(error, SPOOL_E_CANCELLED, "the spool is about to be closed")
               : SPOOL_OK;
}

/* --- opening -------------------------------------------------------------------------------- */

/* File systems on which flock, mmap and fsync do not give what the spool relies on. */
static int check_file_system(const char *path, struct spool_error *error)
{
    static const struct {
        uint32_t type;
        const char *name;
    } refused[] = {{0x6969, "NFS"}, {0xff534d42, "CIFS"}, {0xfe534d42, "SMB2"}, {0x517b, "SMB"}};
    struct statfs fs;

    if (statfs(path, &fs) < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot stat the file system of %s",
                                     path);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if ((uint32_t)fs.f_type == refused[i].type)
            return spool_error_set(error, SPOOL_E_UNSUPPORTED,
                                   "%s is on %s; a spool needs a local file system", path,
                                   refused[i].name);
    return SPOOL_OK;
}

static int fsync_parent(const char *path, struct spool_error *error)
{
    char *parent = NULL;
    int status;

    if (asprintf(&parent, "%s/..", path) < 0)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    status = fsync_directory(parent, error);
    free(parent);
    return status;
}

static int make_durable_directory(const char *path, struct spool_error *error)
{
    if (mkdir(path, DIRECTORY_MODE) < 0) {
        int failed = errno;
        if (failed == EEXIST) /* flushed even so: whoever made it may have died before that */
            return fsync_parent(path, error);
        return spool_error_set_errno(error,
                                     failed == ENOENT     ? SPOOL_E_NOT_FOUND
                                     : is_no_room(failed) ? SPOOL_E_FULL
                                                          : SPOOL_E_IO,
                                     failed, "cannot create %s", path);
    }
    return fsync_parent(path, error);
}

/* Without meta.mdb there is no spool here; but where segments lie, one was, and making a new one
   over them would orphan what they hold. */
static int check_absent(const char *path, struct spool_error *error)
{
    char *streams = path_join(path, "streams");
    struct dirent *entry;
    int status = SPOOL_OK, failed = 0;
    DIR *dir;

    if (!streams)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    dir = opendir(streams);
    if (!dir && errno != ENOENT)
        failed = errno;
    while (dir && status == SPOOL_OK && (entry = next_entry(dir, &failed))) {
        uint64_t *numbers = NULL;
        size_t count = 0;
        char *stream = NULL;
        if (!stream_name_valid(entry->d_name))
            continue;
        stream = path_join(streams, entry->d_name);
        status = stream ? list_segments(stream, &numbers, &count, error) : SPOOL_E_NOMEM;
        if (status == SPOOL_OK && count)
            status =
                spool_error_set(error, SPOOL_E_CORRUPT,
                                "%s has segments but no meta.mdb: `spoolctl --spool %s repair` "
                                "makes a new one of what they say",
                                path, path);
        free(numbers);
        free(stream);
    }
    if (failed)
        status = spool_error_set_errno(error, SPOOL_E_IO, failed, "cannot list %s", streams);
    if (dir)
        closedir(dir);
    free(streams);
    return status;
}

/* meta.mdb is there, or may be made. */
static int check_meta(const struct spool_options *options, struct spool_error *error)
{
    char *meta = path_join(options->path, "meta.mdb");
    int status = SPOOL_OK;

    if (!meta)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    if (access(meta, F_OK) < 0) {
        if (errno != ENOENT)
            status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", meta);
        else
            status = check_absent(options->path, error);
        if (status == SPOOL_OK && (!options->create || options->read_only))
            status =
                spool_error_set(error, SPOOL_E_NOT_FOUND, "there is no spool in %s", options->path);
    }
    free(meta);
    return status;
}

static int prepare_directory(const struct spool_options *options, struct spool_error *error)
{
    bool make = options->create && !options->read_only;
    char *streams = NULL;
    struct stat st;
    int status = SPOOL_OK;

    if (stat(options->path, &st) < 0) {
        if (errno != ENOENT)
            status =
                spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", options->path);
        else if (!make)
            status =
                spool_error_set(error, SPOOL_E_NOT_FOUND, "there is no spool in %s", options->path);
        else
            status = make_durable_directory(options->path, error);
    } else if (!S_ISDIR(st.st_mode)) {
        status = spool_error_set(error, SPOOL_E_INVALID, "%s is not a directory", options->path);
    } else if (make) {
        (void)fsync_parent(options->path, NULL); /* where it may be read; as for streams below */
    }
    if (status == SPOOL_OK)
        status = check_file_system(options->path, error);
    if (status == SPOOL_OK)
        status = check_meta(options, error);
    if (status == SPOOL_OK && !options->read_only) {
        streams = path_join(options->path, "streams");
        status = streams ? make_durable_directory(streams, error)
                         : spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    }
    free(streams);
    return status;
}

/*
 * LOCK says, for people, who holds it. For the next start its time is a sign of life: of the clock that
 * counts from the machine's boot, which nobody sets; of which boot stands behind the holder. A full disk
 * must not keep the spool from being opened, so nothing of it has to succeed.
 */
#define LOCK_TEXT_SIZE 128

static void lock_sign(struct spool *spool, int64_t boot_ms)
{
    const struct timespec times[2] = {
        {.tv_nsec = UTIME_OMIT}, {.tv_sec = boot_ms / 1000, .tv_nsec = boot_ms % 1000 * 1000000}};

    if (futimens(spool->lock_fd, times) < 0)
        errno = 0; /* the next start takes its time */
}

static void boot_id(char id[LOCK_TEXT_SIZE / 2])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, id, LOCK_TEXT_SIZE / 2 - 1);

    id[got > 0 ? strspn(id, "0123456789abcdef-") : 0] = 0;
    if (fd >= 0)
        close(fd);
}

/* A sign of this boot stays as it is: who merely opens it gives none. */
static void lock_note(struct spool *spool)
{
    char text[LOCK_TEXT_SIZE] = "", was[LOCK_TEXT_SIZE] = "", id[LOCK_TEXT_SIZE / 2] = "";
    ssize_t got = pread(spool->lock_fd, was, sizeof(was) - 1, 0);
    int n;
    struct stat st;

    boot_id(id);
    was[got > 0 ? got : 0] = 0;
    n = snprintf(text, sizeof(text), "%ld\n%s\n", (long)getpid(), id);
    if (*id && strstr(was, strchr(text, '\n')) && fstat(spool->lock_fd, &st) == 0 &&
        st.st_mtime > 0)
        spool->last_alive_ms = (int64_t)st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000;
    if (ftruncate(spool->lock_fd, 0) < 0 || pwrite(spool->lock_fd, text, (size_t)n, 0) < 0)
        errno = 0;
    lock_sign(spool, spool->last_alive_ms < 0 ? 0 : spool->last_alive_ms);
}

int spool_take_lock(struct spool *spool, struct spool_error *error)
{
    char *path = path_join(spool->path, "LOCK"), holder[32] = "";
    int status = SPOOL_OK;

    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    spool->last_alive_ms = -1;
    spool->lock_fd = open(
        path, spool->read_only ? O_RDONLY | O_CLOEXEC : O_RDWR | O_CREAT | O_CLOEXEC, FILE_MODE);
    if (spool->lock_fd < 0) {
        /* Read-only and never opened for writing here: there is nobody to keep out. */
        if (!spool->read_only || errno != ENOENT)
            status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", path);
    } else if (flock(spool->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno == EWOULDBLOCK) {
            ssize_t got = pread(spool->lock_fd, holder, sizeof(holder) - 1, 0);
            holder[got > 0 ? strspn(holder, "0123456789") : 0] = 0;
            status = spool_error_set(error, SPOOL_E_LOCKED, "spool %s is held by process %s",
                                     spool->path, *holder ? holder : "(unknown)");
        } else {
            status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot lock %s", path);
        }
    } else if (!spool->read_only) {
        lock_note(spool);
    }
    free(path);
    return status;
}

void spool_alive(struct spool *spool)
{
    lock_sign(spool, (int64_t)clock_boot_ms());
}

int64_t spool_last_alive_ms(const struct spool *spool)
{
    return spool->last_alive_ms;
}

int spool_open(const struct spool_options *options, struct spool **out, struct spool_error *error)
{
    struct spool *spool;
    int status;

    *out = NULL;
    if (sizeof(void *) < 8)
        return spool_error_set(error, SPOOL_E_UNSUPPORTED, "a spool needs a 64-bit system");
    if (!options->path || !*options->path)
        return spool_error_set(error, SPOOL_E_INVALID, "a spool needs a path");
    if (options->segment_bytes &&
        (options->segment_bytes < SEGMENT_BYTES_MIN || options->segment_bytes > SEGMENT_BYTES_MAX))
        return spool_error_set(error, SPOOL_E_INVALID, "segment_bytes is 1 MiB to 1 GiB");
    if (options->meta_reserve_bytes > RESERVE_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "meta_reserve_bytes is at most 1 GiB");
    status = prepare_directory(options, error);
    if (status != SPOOL_OK)
        return status;
    spool = calloc(1, sizeof(*spool));
    if (!spool)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a spool");
    spool->lock_fd = -1;
    spool->read_only = options->read_only;
    spool->segment_bytes = options->segment_bytes ? options->segment_bytes : DEFAULT_SEGMENT;
    spool->segment_bytes &= ~65535ull; /* whole pages, whatever their size */
    spool->meta_reserve_bytes =
        options->meta_reserve_bytes ? options->meta_reserve_bytes : DEFAULT_RESERVE;
    spool->path = strdup(options->path);
    if (!spool->path)
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a spool");
    if (status == SPOOL_OK)
        status = spool_take_lock(spool, error);
    if (status == SPOOL_OK) /* as whoever had the lock until now left it */
        status = check_meta(options, error);
    if (status == SPOOL_OK)
        status = meta_open(spool, error);
    if (status == SPOOL_OK)
        status = dead_open(spool, error);
    if (status != SPOOL_OK) {
        spool_close(spool);
        return status;
    }
    *out = spool;
    return SPOOL_OK;
}

static void free_origins(struct spool *spool)
{
    for (size_t i = 0; i < ORIGINS_CHUNKS; i++) {
        struct origin_chunk *chunk = atomic_load(&spool->origins[i]);
        for (size_t j = 0; chunk && j < ORIGINS_CHUNK; j++)
            free(atomic_load(&chunk->at[j]));
        free(chunk);
    }
}

void spool_close(struct spool *spool)
{
    struct forgotten *f, *next;

    if (!spool)
        return;
    for (size_t i = 0; i < STREAMS_MAX; i++)
        spool_stream_close(spool->streams[i]);
    for (f = atomic_load(&spool->forgotten); f; f = next) {
        next = f->next;
        free(f);
    }
    store_close(&spool->meta);
    store_close(&spool->dead);
    free_origins(spool);
    for (size_t i = 0; i < STREAMS_MAX; i++)
        free(atomic_load(&spool->stream_names[i]));
    if (spool->lock_fd >= 0)
        close(spool->lock_fd); /* gives the lock back */
    free(spool->path);
    free(spool);
}

/* --- names ---------------------------------------------------------------------------------- */

static int add_name(char ***names, size_t *count, const char *name)
{
    char **more;

    for (size_t i = 0; i < *count; i++)
        if (!strcmp((*names)[i], name))
            return SPOOL_OK;
    more = realloc(*names, (*count + 1) * sizeof(*more));
    if (!more)
        return SPOOL_E_NOMEM;
    *names = more;
    more[*count] = strdup(name);
    if (!more[*count])
        return SPOOL_E_NOMEM;
    (*count)++;
    return SPOOL_OK;
}

int spool_stream_names(struct spool *spool, char ***names, size_t *count, struct spool_error *error)
{
    uint32_t known = atomic_load(&spool->stream_count);
    char *path = path_join(spool->path, "streams");
    int status = path ? SPOOL_OK : SPOOL_E_NOMEM;
    struct dirent *entry;
    DIR *dir = path ? opendir(path) : NULL;
    int failed = path && !dir && errno != ENOENT ? errno : 0;

    *names = NULL;
    *count = 0;
    for (uint32_t i = 1; status == SPOOL_OK && i <= known; i++)
        if (stream_name_of(spool, i))
            status = add_name(names, count, stream_name_of(spool, i));
    while (dir && status == SPOOL_OK && (entry = next_entry(dir, &failed)))
        if (stream_name_valid(entry->d_name))
            status = add_name(names, count, entry->d_name);
    if (dir)
        closedir(dir);
    free(path);
    if (status == SPOOL_OK && failed)
        status = SPOOL_E_IO;
    if (status == SPOOL_OK)
        return SPOOL_OK;
    for (size_t i = 0; i < *count; i++)
        free((*names)[i]);
    free(*names);
    *names = NULL;
    *count = 0;
    if (failed)
        return spool_error_set_errno(error, status, failed, "cannot list the streams of %s",
                                     spool->path);
    return spool_error_set(error, status, "no memory for the names of the streams");
}

/* --- room ----------------------------------------------------------------------------------- */

/* 0: it was measured, or is gone; else errno. What can't be measured must not count as nothing. */
static int add_allocated(int directory, const char *name, uint64_t *sum)
{
    struct stat st;

    if (fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : errno;
    if (S_ISREG(st.st_mode))
        *sum += (uint64_t)st.st_blocks * 512;
    return 0;
}

/* Of all files in a directory and, deeper, in those of streams in it. */
static int add_allocated_in(int parent, const char *name, unsigned deeper, uint64_t *sum)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = 0;
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;

    if (!dir) {
        failed = errno;
        if (fd >= 0)
            close(fd);
        return failed == ENOENT || failed == ENOTDIR ? 0 : failed;
    }
    while (!failed && (entry = next_entry(dir, &failed)))
        if (!deeper)
            failed = add_allocated(fd, entry->d_name, sum);
        else if (stream_name_valid(entry->d_name))
            failed = add_allocated_in(fd, entry->d_name, deeper - 1, sum);
    closedir(dir);
    return failed;
}

int spool_usage_get(const struct spool *spool, struct spool_usage *usage, struct spool_error *error)
{
    int fd = open(spool->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = fd < 0 ? errno : 0;
    struct statvfs vfs;

    memset(usage, 0, sizeof(*usage));
    if (!failed && fstatvfs(fd, &vfs) < 0)
        failed = errno;
    if (!failed)
        usage->free_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize;
    if (!failed)
        failed = add_allocated(fd, "meta.mdb", &usage->meta_bytes);
    if (!failed)
        failed = add_allocated(fd, "dead.mdb", &usage->dead_bytes);
    if (!failed)
        failed = add_allocated_in(fd, ".", 0, &usage->total_bytes);
    if (!failed)
        failed = add_allocated_in(fd, "streams", 1, &usage->segment_bytes);
    if (fd >= 0)
        close(fd);
    if (failed)
        return spool_error_set_errno(error, SPOOL_E_IO, failed, "cannot measure %s", spool->path);
    usage->total_bytes += usage->segment_bytes;
    return SPOOL_OK;
}
