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

#define MAP_MIN_BYTES (64ull << 20)
#define MAP_MAX_BYTES (64ull << 30)
#define ROOM_SLACK    (1ull << 20)

char *path_join(const char *directory, const char *name)
{
    char *path = NULL;
    return asprintf(&path, "%s/%s", directory, name) < 0 ? NULL : path;
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
           (errno == ENOSPC || errno == EDQUOT || errno == EFBIG);
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
    if (!probe && (rc == ENOSPC || rc == EDQUOT || rc == EFBIG || no_room(spool, env, need_bytes)))
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
        status = rc == ENOSPC || rc == EDQUOT
                     ? spool_error_set_errno(error, SPOOL_E_FULL, rc, "cannot create %s", path)
                     : lmdb_error(error, rc, "create a file of the spool");
    } else if (rename(fresh, path) < 0) {
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot rename to %s", path);
    } else {
        status = fsync_directory(spool->path, error);
    }
    free(fresh);
    return status;
}

int store_open(struct spool *spool, struct store *store, size_t reserve_bytes,
               int (*init)(MDB_txn *txn, void *arg), void *arg, struct spool_error *error)
{
    char *path = path_join(spool->path, store->name);
    uint64_t file_bytes = 0;
    int status = SPOOL_OK, fd = -1, rc;

    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    store->map_bytes = MAP_MIN_BYTES;
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
        status = lmdb_error(error, rc, "open a file of the spool");
reserve:
    /* Best effort: a file system without fallocate, or one that is full already, still works. */
    if (status == SPOOL_OK && store->env && !spool->read_only && !mdb_env_get_fd(store->env, &fd) &&
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)reserve_bytes) < 0)
        errno = 0;
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

/* What only adds stops earlier: to remove something, a page is written anew. */
static size_t map_limit(unsigned part)
{
    return part & (COMMIT_DEAD | COMMIT_NAME) ? MAP_MAX_BYTES : 2 * MAP_MAX_BYTES;
}

static int store_grow(struct spool *spool, struct store *store, size_t limit,
                      struct spool_error *error)
{
    size_t wider = store->map_bytes * 2;
    void *probe;
    int fd = -1, rc;

    if (wider > limit)
        return spool_error_set(error, SPOOL_E_LIMIT, "%s is at its largest possible size",
                               store->name);
    /* LMDB gives up the old map before it asks for the new one: where it got none, nothing of the
       environment could be touched any more. */
    rc = mdb_env_get_fd(store->env, &fd);
    probe = rc ? MAP_FAILED : mmap(NULL, wider, PROT_READ, MAP_SHARED, fd, 0);
    if (probe == MAP_FAILED)
        return spool_error_set_errno(error, SPOOL_E_FULL, errno,
                                     "cannot map %s at %zu MiB (a limit on the address space?)",
                                     store->name, wider >> 20);
    munmap(probe, wider);
    rc = mdb_env_set_mapsize(store->env, wider);
    if (rc) {
        atomic_store(&spool->broken, true);
        return spool_error_set(error, SPOOL_E_FATAL, "cannot map %s: %s", store->name,
                               mdb_strerror(rc));
    }
    store->map_bytes = wider;
    return SPOOL_OK;
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

int store_write(struct spool *spool, struct store *store, const unsigned *part,
                int (*body)(MDB_txn *txn, void *arg, struct spool_error *error), void *arg,
                struct spool_error *error)
{
    int status = check_writable(spool, error);

    if (status != SPOOL_OK)
        return status;
    for (;;) {
        MDB_txn *txn = NULL;
        int rc = mdb_txn_begin(store->env, NULL, 0, &txn);
        if (!rc) {
            rc = body(txn, arg, error);
            if (rc) {
                mdb_txn_abort(txn);
            } else if (pass_before(*part)) {
                mdb_txn_abort(txn);
                rc = EIO;
            } else {
                rc = mdb_txn_commit(txn);
                if (!rc && pass_after(*part))
                    rc = EIO;
            }
        }
        if (!rc)
            return SPOOL_OK;
        if (is_spool_status(rc))
            return rc;
        if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND)
            return lmdb_error(error, rc, "read a file of the spool");
        if (rc != MDB_MAP_FULL)
            return commit_failed(spool, store->env, rc, 64 * 1024, "commit to a file of the spool",
                                 error);
        status = store_grow(spool, store, map_limit(*part), error);
        if (status != SPOOL_OK)
            return status;
    }
}

int store_begin_read(struct store *store, MDB_txn **txn, struct spool_error *error)
{
    int rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, txn);
    return rc ? lmdb_error(error, rc, "begin to read the spool") : SPOOL_OK;
}
