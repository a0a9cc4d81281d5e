/* SPDX-License-Identifier: Apache-2.0 */
#include "chserver.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

#define TEXT_SHOWN_BYTES 1000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct running *first;

struct running *registry_add(const char *query_id, const char *user)
{
    pthread_mutex_lock(&lock);
    struct running *r = first;
    while (r && (r->finished || !*query_id || strcmp(r->query_id, query_id) != 0))
        r = r->next;
    bool doubled = r != NULL;
    r = NULL;
    if (!doubled && (r = calloc(1, sizeof *r))) {
        r->query_id = strdup(query_id);
        r->user = strdup(user);
        r->text = strdup("");
        r->started_ms = clock_monotonic_ms();
        r->next = first;
        first = r;
    }
    pthread_mutex_unlock(&lock);
    return r;
}

void registry_set_text(struct running *r, const char *text, size_t size)
{
    char *shown = strndup(text, size < TEXT_SHOWN_BYTES ? size : TEXT_SHOWN_BYTES);
    pthread_mutex_lock(&lock);
    free(r->text);
    r->text = shown;
    pthread_mutex_unlock(&lock);
}

void registry_finish(struct running *r)
{
    pthread_mutex_lock(&lock);
    r->finished = true;
    pthread_mutex_unlock(&lock);
}

void registry_remove(struct running *r)
{
    pthread_mutex_lock(&lock);
    for (struct running **at = &first; *at; at = &(*at)->next) {
        if (*at == r) {
            *at = r->next;
            break;
        }
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    free(r->query_id);
    free(r->user);
    free(r->text);
    free(r);
}

static void write_literal(struct buf *out, const char *text)
{
    buf_put_u8(out, '\'');
    for (; text && *text; text++) {
        if (*text == '\'' || *text == '\\')
            buf_put_u8(out, '\\');
        buf_put_u8(out, (uint8_t)*text);
    }
    buf_put_u8(out, '\'');
}

void registry_write_table(struct buf *out)
{
    buf_append_str(out, "(SELECT * FROM values('query_id String, user String, query String, "
                        "elapsed Float64, is_initial_query UInt8, is_cancelled UInt8', "
                        "('', '', '', 0, 0, 0)");
    pthread_mutex_lock(&lock);
    for (struct running *r = first; r; r = r->next) {
        if (r->finished)
            continue;
        buf_append_str(out, ", (");
        write_literal(out, r->query_id);
        buf_append_str(out, ", ");
        write_literal(out, r->user);
        buf_append_str(out, ", ");
        write_literal(out, r->text);
        buf_printf(out, ", %.3f, 1, %d)", (double)(clock_monotonic_ms() - r->started_ms) / 1000.0,
                   atomic_load(&r->killed));
    }
    pthread_mutex_unlock(&lock);
    buf_append_str(out, ") WHERE is_initial_query)");
}

bool registry_kill(const char *query_id)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (struct running *r = first; r; r = r->next) {
        if (!r->finished && strcmp(r->query_id, query_id) == 0) {
            atomic_store(&r->killed, true);
            found = true;
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void registry_wait_empty(int seconds)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += seconds;
    pthread_mutex_lock(&lock);
    while (first && pthread_cond_timedwait(&changed, &lock, &until) == 0)
        continue;
    pthread_mutex_unlock(&lock);
}
