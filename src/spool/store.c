/* SPDX-License-Identifier: Apache-2.0 */
/* meta.mdb and dead.mdb: opening, growing and committing, and what a failed commit means. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "spool/spool_int.h"

#define MAP_MIN_BYTES    (64ull << 20)
#define MAP_MAX_BYTES    (64ull << 30)
#define ROOM_SLACK       (1ull << 20)
#define MAP_ALIGN_BYTES  (64ull << 10) /* whole pages, whatever their size */
#define AHEAD_STEP_BYTES 4096u

char *path_join(const char *directory, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
}

int directory_open(const char *path, int *fd, struct spool_error *error)
{
    *fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd >= 0)
        return SPOOL_OK;
    return spool_error_set_errno(error,
                                 errno == EMFILE || errno == ENFILE ? SPOOL_E_FULL : SPOOL_E_IO,
                                 errno, "cannot open directory %s", path);
}

int directory_sync(int fd, const char *path, struct spool_error *error)
{
    return fsync(fd) < 0
               ? spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot sync directory %s", path)
               : SPOOL_OK;
}

int fsync_directory(const char *path, struct spool_error *error)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int status = SPOOL_OK;

    if (fd < 0 || fsync(fd) < 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot sync directory %s", path);
    if (fd >= 0)
        close(fd);
    return status;
}

int fsync_file(const char *path, struct spool_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int status = SPOOL_OK;

    if (fd < 0 || fdatasync(fd) < 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot sync %s", path);
    if (fd >= 0)
        close(fd);
    return status;
}

int env_open(const char *path, unsigned flags, size_t map_bytes, MDB_env **env)
{
    int rc = mdb_env_create(env);

    if (rc)
        return rc;
    rc = mdb_env_set_maxdbs(*env, TREE_DATABASES_MAX);
    if (!rc)
        rc = mdb_env_set_mapsize(*env, map_bytes);
    if (!rc)
        rc = mdb_env_open(*env, path, ENV_FLAGS | flags, FILE_MODE);
    if (rc) {
        mdb_env_close(*env);
        *env = NULL;
    }
    return rc;
}

int lmdb_error(struct spool_error *error, int rc, const char *what)
{
    int status = SPOOL_E_IO;

    if (is_spool_status(rc)) {
        if (rc == SPOOL_E_CORRUPT)
            return spool_error_set(error, rc, "cannot %s: a record fails its checksum", what);
        return spool_error_set(error, rc, "cannot %s: %s", what, spool_strerror(rc));
    }
    if (rc == ENOMEM)
        status = SPOOL_E_NOMEM;
    else if (rc == MDB_NOTFOUND)
        status = SPOOL_E_NOT_FOUND;
    else if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND || rc == MDB_INVALID)
        status = SPOOL_E_CORRUPT;
    else if (rc == MDB_TXN_FULL)
        status = SPOOL_E_LIMIT;
    spool_error_set(error, status, "cannot %s: %s", what, mdb_strerror(rc));
    if (error)
        error->sys_errno = rc;
    return status;
}

static bool no_room(const struct spool *spool, MDB_env *env, uint64_t need_bytes)
{
    struct statvfs vfs;
    struct rlimit limit;
    struct stat st;
    int fd = -1;

    if (statvfs(spool->path, &vfs) == 0 &&
        (uint64_t)vfs.f_bavail * vfs.f_frsize < need_bytes + ROOM_SLACK)
        return true;
    /* A quota or a limit on the file's size does not show there, and LMDB reports the short write
       it causes as EIO; asking for the room by itself tells. */
    if (mdb_env_get_fd(env, &fd) || fstat(fd, &st) < 0)
        return false;
    if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < (uint64_t)st.st_size + need_bytes)
        return true;
    return fallocate(fd, FALLOC_FL_KEEP_SIZE, st.st_size, (off_t)(need_bytes + 1)) < 0 &&
           is_no_room(errno);
}

int commit_failed(struct spool *spool, MDB_env *env, int rc, uint64_t need_bytes, const char *what,
                  struct spool_error *error)
{
    MDB_txn *txn = NULL;
    int probe;

    if (rc == ENOMEM)
        return spool_error_set(error, SPOOL_E_NOMEM, "cannot %s: out of memory", what);
    if (rc == MDB_TXN_FULL)
        return spool_error_set(error, SPOOL_E_LIMIT, "cannot %s: too much for one commit", what);
    /* LMDB refuses further transactions when the write of its meta page failed: then the outcome
       of this one is unknown. Before that point nothing of it is in force. */
    probe = mdb_txn_begin(env, NULL, 0, &txn);
    if (!probe)
        mdb_txn_abort(txn);
    if (!probe && (is_no_room(rc) || no_room(spool, env, need_bytes)))
        return spool_error_set_errno(error, SPOOL_E_FULL, ENOSPC, "cannot %s", what);
    atomic_store(&spool->broken, true);
    spool_error_set(error, SPOOL_E_FATAL,
                    probe ? "cannot %s, and whether it counts is not known: %s"
                          : "cannot %s, and the disk is not full: %s",
                    what, mdb_strerror(rc));
    if (error)
        error->sys_errno = rc;
    return SPOOL_E_FATAL;
}

static int store_error(struct spool_error *error, int rc, const char *verb, const char *path)
{
    char what[512];

    snprintf(what, sizeof(what), "%s %s", verb, path);
    return lmdb_error(error, rc, what);
}

/* --- opening -------------------------------------------------------------------------------- */

/* What the records say of the file. A record that fails its checksum would not be found under its key,
   or only when it is needed: an acknowledgement would be forgotten in silence, and its rows sent again.
   Of letters there may be any amount, and one of them is no reason to stop. */
struct records {
    bool newer; /* of a version that may have other records */
    bool damaged;
    char text[64];
    struct spool_error *error;
};

static int record_check(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct records *r = arg;
    enum record_kind kind = record_kind_of(item->db);
    struct cursor body;
    uint8_t *value = NULL;
    uint32_t version = 0;
    int status;

    if (!kind || kind == RECORD_LETTER)
        return SPOOL_OK;
    status = tree_value(tree, item, META_RECORD_MAX + RECORD_CHECKSUM_BYTES, &value, r->error);
    if (status == SPOOL_OK)
        status = record_open(kind, item->key, item->key_size, value, item->size, &body);
    if (status == SPOOL_OK && kind == RECORD_INFO && item->key_size == 7 &&
        !memcmp(item->key, "version", 7) && cursor_u32le(&body, &version) == SPOOL_OK)
        r->newer = version > SPOOL_FORMAT_VERSION;
    free(value);
    if (status == SPOOL_OK || status == SPOOL_E_IO || status == SPOOL_E_NOMEM)
        return status;
    if (!r->damaged)
        snprintf(r->text, sizeof(r->text), "a record of %s fails its checksum", item->db);
    r->damaged = true;
    return SPOOL_OK;
}

static int store_check(const struct store *store, const char *path, bool records,
                       uint64_t *file_bytes, struct spool_error *error)
{
    struct spool_error inner = {0};
    struct records found = {.error = &inner};
    struct tree tree;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int status;

    if (fd < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", path);
    status = tree_open(&tree, fd, &inner);
    if (status == SPOOL_OK)
        status = tree_walk(&tree, NULL, TREE_OVERFLOW_HEADERS, records ? record_check : NULL,
                           &found, &inner);
    if (status == SPOOL_OK && found.damaged && !found.newer)
        status = spool_error_set(&inner, SPOOL_E_CORRUPT, "%s", found.text);
    *file_bytes = tree.file_bytes;
    close(fd);
    if (status == SPOOL_E_CORRUPT)
        return spool_error_set(error, status, "%s is damaged: %s. %s", path, inner.text,
                               store->advice);
    if (status != SPOOL_OK)
        return spool_error_set(error, status, "%s: %s", path, inner.text);
    return SPOOL_OK;
}

/* Makes the file under another name and renames it when it is whole, so that a file of the right
   name always has its first commit. */
static int store_create(struct spool *spool, struct store *store, const char *path,
                        int (*init)(MDB_txn *txn, void *arg), void *arg, struct spool_error *error)
{
    char *fresh = NULL;
    MDB_txn *txn = NULL;
    int rc, status = SPOOL_OK;

    if (asprintf(&fresh, "%s.new", path) < 0)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    do { /* what repair writes may be more than the map */
        unlink(fresh);
        rc = env_open(fresh, 0, store->map_bytes, &store->env);
        if (!rc)
            rc = mdb_txn_begin(store->env, NULL, 0, &txn);
        if (!rc) {
            rc = init(txn, arg);
            if (rc)
                mdb_txn_abort(txn);
            else
                rc = mdb_txn_commit(txn);
        }
        if (rc != MDB_MAP_FULL || store->map_bytes >= MAP_MAX_BYTES)
            break;
        store_close(store);
        store->map_bytes *= 2;
    } while (true);
    if (!rc && FAILPOINT_ERROR(FP_STORE_BEFORE_RENAME))
        rc = EIO;
    if (rc) {
        status = is_no_room(rc)
                     ? spool_error_set_errno(error, SPOOL_E_FULL, rc, "cannot create %s", path)
                     : store_error(error, rc, "create", path);
    } else if (rename(fresh, path) < 0) {
        status = spool_error_set_errno(error, is_no_room(errno) ? SPOOL_E_FULL : SPOOL_E_IO, errno,
                                       "cannot rename to %s", path);
    } else {
        status = fsync_directory(spool->path, error);
    }
    free(fresh);
    return status;
}

uint64_t free_list_pages(MDB_txn *txn, uint64_t transaction)
{
    MDB_cursor *cursor = NULL;
    MDB_val k, v;
    uint64_t pages = 0, n, of;

    if (mdb_cursor_open(txn, 0, &cursor)) /* 0 is the list of free pages; keys are transactions */
        return 0;
    while (!mdb_cursor_get(cursor, &k, &v, MDB_NEXT)) {
        memcpy(&of, k.mv_data, sizeof(of));
        memcpy(&n, v.mv_data, sizeof(n));
        if (of < transaction)
            pages += n;
    }
    mdb_cursor_close(cursor);
    return pages;
}

/* --- the room that is kept ------------------------------------------------------------------ */

static uint64_t used_bytes(const struct store *store)
{
    MDB_envinfo info;
    MDB_stat stat;

    return mdb_env_info(store->env, &info) || mdb_env_stat(store->env, &stat)
               ? 0
               : (info.me_last_pgno + 1) * stat.ms_psize;
}

/*
 * The disk that the file has runs ahead of what it uses, so that on a disk that others filled what
 * ends something still finds room. Best effort: a file system without fallocate works as well.
 */
static void store_keep_ahead(struct store *store)
{
    uint64_t wanted = used_bytes(store) + store->ahead_bytes, more;
    int fd = -1;

    if (!store->ahead_bytes || wanted <= store->held_bytes || mdb_env_get_fd(store->env, &fd))
        return;
    more = wanted + store->ahead_bytes / 16 - store->held_bytes;
    while (more && store->held_bytes < wanted) {
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)store->held_bytes, (off_t)more) == 0) {
            store->held_bytes += more;
        } else if (is_no_room(errno)) {
            more /= 2;
        } else {
            store->ahead_bytes = 0;
            return;
        }
        more = more < AHEAD_STEP_BYTES ? 0 : more;
    }
    store->disk_full = store->held_bytes < wanted;
}

/* At opening: the first reserve_bytes of the file, or more where it uses them. */
static void store_reserve(struct store *store, uint64_t reserve_bytes)
{
    struct stat st;
    int fd = -1;

    store->ahead_bytes = reserve_bytes / 4;
    if (!reserve_bytes || mdb_env_get_fd(store->env, &fd))
        return;
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)reserve_bytes) == 0)
        store->held_bytes = reserve_bytes;
    if (!fstat(fd, &st) && (uint64_t)st.st_blocks * 512 > store->held_bytes)
        store->held_bytes = (uint64_t)st.st_blocks * 512;
    store_keep_ahead(store);
}

int store_open(struct spool *spool, struct store *store, size_t reserve_bytes,
               int (*init)(MDB_txn *txn, void *arg), void *arg, struct spool_error *error)
{
    char *path = path_join(spool->path, store->name);
    uint64_t file_bytes = 0;
    int status = SPOOL_OK, rc;

    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    store->map_bytes = MAP_MIN_BYTES;
    store->largest_bytes = MAP_MAX_BYTES;
    if (access(path, F_OK) < 0) {
        if (errno != ENOENT)
            status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", path);
        else if (!spool->read_only)
            status = store_create(spool, store, path, init, arg, error);
        goto reserve;
    }
    if (!spool->read_only)
        status = fsync_file(path, error);
    if (status == SPOOL_OK && !spool->read_only)
        status = tree_mend(path, NULL, error);
    if (status == SPOOL_OK)
        status = store_check(store, path, !spool->read_only, &file_bytes, error);
    if (status != SPOOL_OK)
        goto done;
    while (store->map_bytes < 2 * file_bytes)
        store->map_bytes *= 2;
    rc = env_open(path, spool->read_only ? MDB_RDONLY : 0, store->map_bytes, &store->env);
    if (rc)
        status = store_error(error, rc, "open", path);
reserve:
    if (status == SPOOL_OK && store->env && !spool->read_only)
        store_reserve(store, reserve_bytes);
done:
    if (status != SPOOL_OK)
        store_close(store);
    free(path);
    return status;
}

int store_lacks(const struct store *store, int rc, const char *what, struct spool_error *error)
{
    char text[64];

    if (rc == MDB_NOTFOUND || rc == SPOOL_E_CORRUPT)
        return spool_error_set(error, SPOOL_E_CORRUPT, "%s is damaged: %s can't be read. %s",
                               store->name, what, store->advice);
    snprintf(text, sizeof(text), "read %s", store->name);
    return lmdb_error(error, rc, text);
}

void store_close(struct store *store)
{
    if (store->env)
        mdb_env_close(store->env);
    store->env = NULL;
}

/* --- transactions --------------------------------------------------------------------------- */

/*
 * How large the map may be for a commit of these parts. To remove something pages are written anew,
 * so what only adds stops earlier: names and letters first, then seals; acknowledgements and all else
 * that ends something go on into the room that is kept for them.
 */
static size_t size_limit(const struct store *store, unsigned part)
{
    if (part & (COMMIT_DEAD | COMMIT_NAME))
        return store->largest_bytes;
    return part & COMMIT_ADDS ? store->largest_bytes / 2 * 3 : store->largest_bytes * 2;
}

/* The same within what the file has of a disk that is full. */
static size_t map_limit(const struct store *store, unsigned part)
{
    uint64_t limit = size_limit(store, part), has = store->held_bytes;
    uint64_t kept = part & (COMMIT_DEAD | COMMIT_NAME) ? store->ahead_bytes
                    : part & COMMIT_ADDS               ? store->ahead_bytes / 2
                                                       : 0;

    has = has > kept + MAP_ALIGN_BYTES ? has - kept : MAP_ALIGN_BYTES;
    if (kept && store->disk_full && has < limit)
        limit = has;
    return limit / MAP_ALIGN_BYTES * MAP_ALIGN_BYTES;
}

/* Without what only waits to be used again; else what ends something would widen the room of what adds
   each time it takes of its own. */
static uint64_t live_bytes(struct store *store)
{
    uint64_t used = used_bytes(store), free_bytes;
    MDB_txn *txn = NULL;
    MDB_stat stat;

    if (mdb_env_stat(store->env, &stat) || store_begin_read(store, &txn, NULL) != SPOOL_OK)
        return used;
    free_bytes = free_list_pages(txn, UINT64_MAX) * stat.ms_psize;
    mdb_txn_abort(txn);
    return used - free_bytes;
}

static int store_no_room(const struct store *store, unsigned part, struct spool_error *error)
{
    if (map_limit(store, part) < size_limit(store, part))
        return spool_error_set_errno(error, SPOOL_E_FULL, ENOSPC,
                                     "cannot enlarge %s, and what it has left is kept for what "
                                     "makes room",
                                     store->name);
    return spool_error_set(error, SPOOL_E_FULL, "%s is at its largest possible size", store->name);
}

static int store_map(struct spool *spool, struct store *store, size_t bytes,
                     struct spool_error *error)
{
    int rc = mdb_env_set_mapsize(store->env, bytes); /* no less than what is used */

    if (rc) {
        atomic_store(&spool->broken, true);
        return spool_error_set(error, SPOOL_E_FATAL, "cannot map %s: %s", store->name,
                               mdb_strerror(rc));
    }
    store->map_bytes = bytes;
    return SPOOL_OK;
}

static int store_grow(struct spool *spool, struct store *store, unsigned part,
                      struct spool_error *error)
{
    size_t limit = map_limit(store, part), wider = store->map_bytes * 2;
    void *probe;
    int fd = -1, rc;

    if (wider > limit)
        wider = limit;
    if (wider <= store->map_bytes)
        return store_no_room(store, part, error);
    /* LMDB gives up the old map before it asks for the new one: where it got none, nothing of the
       environment could be touched any more. */
    rc = mdb_env_get_fd(store->env, &fd);
    probe = rc ? MAP_FAILED : mmap(NULL, wider, PROT_READ, MAP_SHARED, fd, 0);
    if (probe == MAP_FAILED)
        return spool_error_set_errno(error, SPOOL_E_FULL, errno,
                                     "cannot map %s at %zu MiB (a limit on the address space?)",
                                     store->name, wider >> 20);
    munmap(probe, wider);
    return store_map(spool, store, wider, error);
}

static int pass_before(unsigned part)
{
    int failed = 0;
    if (part & COMMIT_SEAL)
        failed |= FAILPOINT_ERROR(FP_SEAL_BEFORE_COMMIT);
    if (part & COMMIT_ACK)
        failed |= FAILPOINT_ERROR(FP_ACK_BEFORE_COMMIT);
    if (part & COMMIT_DEAD)
        failed |= FAILPOINT_ERROR(FP_DEAD_BEFORE_COMMIT);
    if (part & COMMIT_DISCARD)
        failed |= FAILPOINT_ERROR(FP_DISCARD_BEFORE);
    if (part & COMMIT_DEAD_CHANGE)
        failed |= FAILPOINT_ERROR(FP_CHANGE_BEFORE_COMMIT);
    return failed;
}

static int pass_after(unsigned part)
{
    int failed = 0;
    if (part & COMMIT_SEAL)
        failed |= FAILPOINT_ERROR(FP_SEAL_AFTER_COMMIT);
    if (part & COMMIT_ACK)
        failed |= FAILPOINT_ERROR(FP_ACK_AFTER_COMMIT);
    if (part & COMMIT_DEAD)
        failed |= FAILPOINT_ERROR(FP_DEAD_AFTER_COMMIT);
    if (part & COMMIT_DISCARD)
        failed |= FAILPOINT_ERROR(FP_DISCARD_AFTER);
    if (part & COMMIT_DEAD_CHANGE)
        failed |= FAILPOINT_ERROR(FP_CHANGE_AFTER_COMMIT);
    return failed;
}

/* One attempt. 0, an LMDB code, errno, or what body returned; nothing is in force but where it is 0. */
static int store_attempt(struct store *store, const unsigned *part,
                         int (*body)(MDB_txn *txn, void *arg, struct spool_error *error), void *arg,
                         struct spool_error *error)
{
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(store->env, NULL, 0, &txn);

    if (rc)
        return rc;
    rc = body(txn, arg, error);
    if (!rc && pass_before(*part))
        rc = EIO;
    if (rc) {
        mdb_txn_abort(txn);
        return rc;
    }
    rc = mdb_txn_commit(txn);
    return !rc && pass_after(*part) ? EIO : rc;
}

static int touch_body(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct cursor body;
    uint8_t version[4];
    MDB_dbi info;
    int rc = mdb_dbi_open(txn, "info", 0, &info);

    (void)arg;
    (void)error;
    if (!rc)
        rc = record_get(txn, info, RECORD_INFO, "version", 7, &body);
    if (!rc && cursor_left(&body) != sizeof(version))
        rc = SPOOL_E_CORRUPT;
    if (rc)
        return rc;
    memcpy(version, body.at, sizeof(version));
    return record_put(txn, info, RECORD_INFO, "version", 7, version, sizeof(version), 0);
}

/* Pages that one commit gives up serve the one after the next: this is the next, and it serves once. */
static bool store_touch(struct spool *spool, struct store *store)
{
    struct spool_error ignored;
    const unsigned part = 0;
    MDB_envinfo info;

    if (mdb_env_info(store->env, &info) || info.me_last_txnid == store->touched ||
        store_write(spool, store, &part, touch_body, NULL, &ignored) != SPOOL_OK)
        return false;
    store->touched = info.me_last_txnid + 1;
    return true;
}

int store_write(struct spool *spool, struct store *store, const unsigned *part,
                int (*body)(MDB_txn *txn, void *arg, struct spool_error *error), void *arg,
                struct spool_error *error)
{
    const bool adds = *part & (COMMIT_DEAD | COMMIT_NAME | COMMIT_ADDS);
    int status = check_writable(spool, error), rc;

    while (status == SPOOL_OK) {
        store_keep_ahead(store);
        size_t limit = map_limit(store, *part);
        if (adds && used_bytes(store) > limit && live_bytes(store) > limit)
            return store_no_room(store, *part, error);
        if (store->map_bytes > limit)
            status = store_map(spool, store, limit, error);
        if (status != SPOOL_OK)
            break;
        rc = store_attempt(store, part, body, arg, error);
        if (!rc || is_spool_status(rc))
            return rc;
        if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND)
            return store_error(error, rc, "read", store->name);
        if (rc != MDB_MAP_FULL) {
            char what[64];
            snprintf(what, sizeof(what), "commit to %s", store->name);
            return commit_failed(spool, store->env, rc, 64 * 1024, what, error);
        }
        status = store_grow(spool, store, *part, error);
        if (status == SPOOL_E_FULL && adds && store_touch(spool, store))
            status = SPOOL_OK;
    }
    return status;
}

int store_begin_read(struct store *store, MDB_txn **txn, struct spool_error *error)
{
    int rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, txn);
    return rc ? lmdb_error(error, rc, "begin to read the spool") : SPOOL_OK;
}
