/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: small maps for LMDB, so that a file outgrows its map, or the largest one there may be, within a
 * test; and an address space that has no room for another map.
 *
 *   MAP_DIVIDE=N           a map of 64 MiB or more becomes 1/N of what was asked for
 *   MAP_FAILS_WHILE=FILE   files can't be mapped as long as it exists
 */
#include <dlfcn.h>
#include <errno.h>
#include <lmdb.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define DIVIDED_MIN (64u << 20)

int mdb_env_set_mapsize(MDB_env *env, size_t size)
{
    __typeof__(&mdb_env_set_mapsize) real =
        (__typeof__(&mdb_env_set_mapsize))dlsym(RTLD_NEXT, "mdb_env_set_mapsize");
    const char *divide = getenv("MAP_DIVIDE");

    if (divide && size >= DIVIDED_MIN)
        size /= strtoul(divide, NULL, 10);
    return real(env, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    __typeof__(&mmap) real = (__typeof__(&mmap))dlsym(RTLD_NEXT, "mmap");
    const char *file = getenv("MAP_FAILS_WHILE");

    if (file && fd >= 0 && (flags & MAP_SHARED) && access(file, F_OK) == 0) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return real(at, size, protection, flags, fd, offset);
}
