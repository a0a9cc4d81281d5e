/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: clocks that a test sets (tests/support/clock.py). The file CLOCK_FILE is mapped: a
 * count n of settings and then the settings, of which the n-th holds:
 *
 *   u64 n | n * { i64 since_ns | i64 base_ns | i64 wall_ns | f64 speed }
 *
 * At a real monotonic time t the clocks of this process show base_ns + (t - since_ns) * speed, the
 * wall clock as much ahead of the real one, and wall_ns more. Waits take 1/speed of their time. A
 * wait for a moment of the wall clock lasts until that clock shows it, as in a kernel; it may end
 * early as waits on a condition may.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SECOND     1000000000LL
#define SLICE_NS   (20 * 1000000LL) /* a wait looks at the wall clock again so often */
#define SETTINGS   127

struct setting {
    int64_t since_ns, base_ns, wall_ns;
    double speed;
};

struct settings {
    _Atomic uint64_t count;
    struct setting list[SETTINGS];
};

static const struct settings *settings;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("CLOCK_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*settings), PROT_READ, MAP_SHARED, fd, 0);

    if (fd >= 0)
        close(fd);
    if (map == MAP_FAILED)
        abort();
    settings = map;
}

static int64_t real_ns(clockid_t id)
{
    struct timespec t;

    if (!real_clock_gettime)
        real_clock_gettime = REAL(clock_gettime);
    real_clock_gettime(id, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* What the clocks of duration are ahead of the real ones. */
static int64_t ahead_ns(struct setting *now)
{
    int64_t t;

    if (!settings) { /* before our constructor */
        *now = (struct setting){.speed = 1};
        return 0;
    }
    *now = settings->list[atomic_load(&settings->count) - 1];
    t = real_ns(CLOCK_MONOTONIC);
    return now->base_ns + (int64_t)((double)(t - now->since_ns) * now->speed) - t;
}

static int64_t wall_ns(void)
{
    struct setting now;
    int64_t ahead = ahead_ns(&now);

    return real_ns(CLOCK_REALTIME) + ahead + now.wall_ns;
}

/* So many units of a wait in real ones, at least one where there were any. */
static int64_t real_wait(int64_t wait)
{
    struct setting now;
    int64_t wait_real;

    (void)ahead_ns(&now);
    wait_real = (int64_t)((double)wait / now.speed);
    return wait > 0 && wait_real == 0 ? 1 : wait_real;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
    struct setting now;
    int64_t ns;

    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)
        ns = wall_ns();
    else if (id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_COARSE || id == CLOCK_MONOTONIC_RAW)
        ns = real_ns(CLOCK_MONOTONIC) + ahead_ns(&now);
    else if (id == CLOCK_BOOTTIME)
        ns = real_ns(CLOCK_BOOTTIME) + ahead_ns(&now);
    else
        return REAL(clock_gettime)(id, t);
    *t = (struct timespec){ns / SECOND, ns % SECOND};
    return 0;
}

int timespec_get(struct timespec *t, int base)
{
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, t) == 0 ? base : 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
    int64_t ns = wall_ns();

    (void)zone;
    *t = (struct timeval){ns / SECOND, ns % SECOND / 1000};
    return 0;
}

time_t time(time_t *t)
{
    time_t now = wall_ns() / SECOND;

    if (t)
        *t = now;
    return now;
}

/* Until *until on the given clock of ours, or for a slice: 0 when it is not there yet. */
static int wait_slice(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t id,
                      const struct timespec *until)
{
    int64_t end = until->tv_sec * SECOND + until->tv_nsec, left, at;
    struct timespec now, slice;
    int status;

    clock_gettime(id, &now);
    left = real_wait(end - (now.tv_sec * SECOND + now.tv_nsec));
    if (left <= 0)
        return ETIMEDOUT;
    at = real_ns(CLOCK_MONOTONIC) + (left < SLICE_NS ? left : SLICE_NS);
    slice = (struct timespec){at / SECOND, at % SECOND};
    status = REAL(pthread_cond_clockwait)(cond, mutex, CLOCK_MONOTONIC, &slice);
    if (status != ETIMEDOUT)
        return status;
    clock_gettime(id, &now);
    return now.tv_sec * SECOND + now.tv_nsec >= end ? ETIMEDOUT : 0;
}

/* libuv's conditions are of the monotonic clock; what they wait for is given on it. */
int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until)
{
    return wait_slice(cond, mutex, CLOCK_MONOTONIC, until);
}

/* C11's conditions and mutexes are the same objects in glibc. */
int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex,
                  const struct timespec *restrict until)
{
    int status =
        wait_slice((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, CLOCK_REALTIME, until);

    return status == 0 ? thrd_success : status == ETIMEDOUT ? thrd_timedout : thrd_error;
}

int epoll_wait(int fd, struct epoll_event *events, int count, int wait_ms)
{
    return REAL(epoll_wait)(fd, events, count, (int)real_wait(wait_ms));
}

int epoll_pwait(int fd, struct epoll_event *events, int count, int wait_ms, const sigset_t *mask)
{
    return REAL(epoll_pwait)(fd, events, count, (int)real_wait(wait_ms), mask);
}

int poll(struct pollfd *fds, nfds_t count, int wait_ms)
{
    return REAL(poll)(fds, count, (int)real_wait(wait_ms));
}

/* What a hardened library calls instead of poll(). */
int __poll_chk(struct pollfd *fds, nfds_t count, int wait_ms, size_t size);
int __poll_chk(struct pollfd *fds, nfds_t count, int wait_ms, size_t size)
{
    if (size / sizeof(*fds) < count)
        abort();
    return poll(fds, count, wait_ms);
}

int nanosleep(const struct timespec *wait, struct timespec *left)
{
    int64_t ns = real_wait(wait->tv_sec * SECOND + wait->tv_nsec);
    struct timespec real = {ns / SECOND, ns % SECOND};

    return REAL(nanosleep)(&real, left);
}
