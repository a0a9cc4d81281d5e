/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/memory.h"

#include <malloc.h>
#include <stdbool.h>

#include "base/limits.h"

#define LARGE_BYTES    (256 * KIB) /* given back to the system as soon as it is freed */
#define KEPT_TOP_BYTES (8 * MIB)
#define TRIM_MS        10000

static uv_timer_t timer;
static uv_work_t work;
static bool working;

/* glibc takes what was freed once for a size to keep in its heaps from then on. There what LMDB sets
   aside for each segment being written, 3 MiB of which it hardly touches any, is written with zeros:
   150 MiB with 50 streams; and large buffers that come and go leave holes. The free end of a heap is
   kept, though: given back at once it cost more page faults than large blocks do. */
void memory_tune(void)
{
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
    mallopt(M_TRIM_THRESHOLD, KEPT_TOP_BYTES);
}

/* A millisecond or two, for each heap's lock a part of that. */
static void trim_work(uv_work_t *unused)
{
    (void)unused;
    malloc_trim(0);
}

static void trim_after(uv_work_t *unused, int status)
{
    (void)unused;
    (void)status;
    working = false;
}

static void trim(uv_timer_t *due)
{
    if (!working)
        working = uv_queue_work(due->loop, &work, trim_work, trim_after) == 0;
}

void memory_trim_start(uv_loop_t *loop)
{
    uv_timer_init(loop, &timer);
    uv_timer_start(&timer, trim, TRIM_MS, TRIM_MS);
}

void memory_trim_stop(void)
{
    uv_close((uv_handle_t *)&timer, NULL);
}
