/* SPDX-License-Identifier: Apache-2.0 */
#include "base/failpoint.h"

#ifdef SPOOLD_FAILPOINTS

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum action { ACTION_KILL, ACTION_STOP, ACTION_ERROR, ACTION_HANG };

struct point {
    char name[64];
    enum action action;
    unsigned long at; /* acts at this passage, counted from 1 */
    atomic_ulong passed;
};

#define POINTS_MAX 32

static struct point points[POINTS_MAX];
static size_t point_count;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* A mistyped setting must not make a test pass by doing nothing. */
static void refuse(const char *item)
{
    fprintf(stderr, "SPOOLD_FAILPOINTS: cannot read \"%s\"\n", item);
    abort();
}

static void parse_one(char *item)
{
    struct point *p;
    char *action = strchr(item, '=');
    char *at;

    if (!action || point_count == POINTS_MAX || (size_t)(action - item) >= sizeof(points[0].name))
        refuse(item);
    p = &points[point_count];
    *action++ = 0;
    at = strchr(action, '@');
    if (at)
        *at++ = 0;
    if (!strcmp(action, "kill"))
        p->action = ACTION_KILL;
    else if (!strcmp(action, "stop"))
        p->action = ACTION_STOP;
    else if (!strcmp(action, "error"))
        p->action = ACTION_ERROR;
    else if (!strcmp(action, "hang"))
        p->action = ACTION_HANG;
    else
        refuse(action);
    p->at = at ? strtoul(at, NULL, 10) : 1;
    if (!p->at)
        refuse(item);
    snprintf(p->name, sizeof(p->name), "%s", item);
    point_count++;
}

static void parse(void)
{
    const char *setting = getenv("SPOOLD_FAILPOINTS");
    char *copy, *rest, *item;

    if (!setting || !*setting)
        return;
    rest = copy = strdup(setting);
    if (!copy)
        abort();
    while ((item = strsep(&rest, ",")))
        if (*item)
            parse_one(item);
    free(copy);
}

int failpoint_hit(const char *name)
{
    int failed = 0;

    pthread_once(&once, parse);
    for (size_t i = 0; i < point_count; i++) {
        struct point *p = &points[i];
        if (strcmp(p->name, name) != 0 || atomic_fetch_add(&p->passed, 1) + 1 != p->at)
            continue;
        switch (p->action) {
        case ACTION_KILL:
            raise(SIGKILL);
            break;
        case ACTION_STOP:
            raise(SIGSTOP);
            break;
        case ACTION_ERROR:
            failed = 1;
            break;
        case ACTION_HANG:
            fprintf(stderr, "failpoint %s hangs\n", name);
            for (;;)
                pause();
        }
    }
    return failed;
}

#endif
