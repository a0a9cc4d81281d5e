/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD into chserver: what happens when the engine renames a part that an INSERT wrote
 * (tmp_insert_*) into its place, the last step of storing it. The file that RENAME_FILE names says it in
 * two words, read anew at each such rename; without the file they all work.
 *
 *   fail N   the first N work, every later one fails with EIO
 *   once N   the first N work, the next one fails, and the file is gone
 *   hang N   the first N work, every later one waits until the file says something else, which then
 *            holds for it (0 of those that are to work are left)
 *
 * A rename that waits or fails says so by a line in RENAME_FILE.log.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum act { WORK, FAIL, WAIT };

static void say(const char *file, const char *what)
{
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s.log", file);
    fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || dprintf(fd, "%s\n", what) < 0)
        abort();
    close(fd);
}

/* What the file says of this rename; counts it there. */
static enum act act_of(const char *file)
{
    char text[32] = "", word[8] = "", next[32];
    long left = 0;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    enum act act;

    if (fd < 0)
        return WORK;
    if (read(fd, text, sizeof(text) - 1) < 0 || sscanf(text, "%7s %ld", word, &left) != 2) {
        close(fd);
        return WORK;
    }
    if (left > 0) {
        int n = snprintf(next, sizeof(next), "%s %ld\n", word, left - 1);
        if (ftruncate(fd, 0) < 0 || pwrite(fd, next, (size_t)n, 0) != n)
            abort();
        act = WORK;
    } else if (strcmp(word, "once") == 0) {
        unlink(file);
        act = FAIL;
    } else {
        act = strcmp(word, "hang") == 0 ? WAIT : FAIL;
    }
    close(fd);
    return act;
}

static enum act act_locked(const char *file)
{
    enum act act;

    pthread_mutex_lock(&lock);
    act = act_of(file);
    pthread_mutex_unlock(&lock);
    return act;
}

int rename(const char *from, const char *to)
{
    const char *file = getenv("RENAME_FILE");
    const struct timespec moment = {0, 5000000};
    enum act act = WORK;

    if (file && strstr(from, "tmp_insert")) {
        act = act_locked(file);
        if (act == WAIT)
            say(file, "hang");
        while (act == WAIT) {
            nanosleep(&moment, NULL);
            act = act_locked(file);
        }
    }
    if (act == FAIL) {
        say(file, "fail");
        errno = EIO;
        return -1;
    }
    return ((__typeof__(&rename))dlsym(RTLD_NEXT, "rename"))(from, to);
}
