/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The name of this member of the group (group.instance.id), where none is configured.
 *
 * A broker gives a static member that comes back within its session the partitions it had, and does
 * nothing else. So it comes back under another name where that would not do:
 *
 *   it reads other topics         those that are new would wait for the group's next rebalance, which
 *                                 may never come
 *   it was losing partitions      a partition is given to its next owner only when the former one has let
 *                                 go and joined again. A member that comes back in between is given
 *                                 what it was to keep, and the rest is nobody's, until that rebalance
 *
 * Its former name's partitions come when that one's session has ended. The second is known by a note:
 *
 *   kafka/member   "<number> <1 while partitions are taken away>"
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "pipeline/pipeline_int.h"

#define MEMBER_KEY "kafka/member"

static struct spool_change member_note(const struct pipeline *p, char value[MEMBER_NOTE_SIZE])
{
    int n = snprintf(value, MEMBER_NOTE_SIZE, "%" PRIu32 " %d", p->member_number, p->member_loses);

    return (struct spool_change){
        .kind = SPOOL_CHANGE_PUT, .key = MEMBER_KEY, .value = value, .value_size = (size_t)n};
}

/* Its former name is not to be taken again because the note can't be read. */
static int member_read(struct pipeline *p, struct spool_error *error)
{
    char text[MEMBER_NOTE_SIZE] = "", *end;
    void *value = NULL;
    size_t size = 0;
    int status = note_read(p->spool, MEMBER_KEY, &value, &size, error);

    if (size >= sizeof(text))
        status = spool_error_set(error, SPOOL_E_CORRUPT, "the note %s is not readable", MEMBER_KEY);
    if (status == SPOOL_OK && value)
        memcpy(text, value, size);
    free(value);
    p->member_number = (uint32_t)strtoul(text, &end, 10);
    p->member_loses = strtoul(end, NULL, 10) != 0;
    return status;
}

int kafka_member_name(struct pipeline *p, bool *renamed, struct spool_error *error)
{
    char value[MEMBER_NOTE_SIZE];
    struct spool_change note;
    uint32_t topics = 0;
    int status, n;

    *renamed = false;
    if (p->kafka_options.group_instance_id)
        return SPOOL_OK;
    status = member_read(p, error);
    if (status != SPOOL_OK)
        return status;
    *renamed = p->member_loses;
    if (p->member_loses) {
        p->member_number++;
        p->member_loses = false;
        note = member_note(p, value);
        status = spool_commit(p->spool, &note, 1, error);
    }
    for (size_t i = 0; i < p->kafka_options.topic_count; i++) /* in any order */
        topics += (uint32_t)XXH3_64bits(p->topics[i], strlen(p->topics[i]));
    n = snprintf(p->instance_id, sizeof(p->instance_id), "spoold-%s-%08" PRIx32,
                 spool_uuid_text(p->spool), topics);
    if (p->member_number)
        snprintf(p->instance_id + n, sizeof(p->instance_id) - (size_t)n, "-%" PRIu32,
                 p->member_number);
    p->kafka_options.group_instance_id = p->instance_id;
    return status;
}

static void member_noted(void *arg)
{
    struct pipeline *p = arg;

    p->member_noting = false;
    kafka_in_advance(p);
}

void kafka_member_loses(struct pipeline *p, bool loses)
{
    char value[MEMBER_NOTE_SIZE];
    struct spool_change note;

    if (p->member_loses == loses || p->kafka_options.group_instance_id != p->instance_id)
        return;
    p->member_loses = loses;
    p->member_noting = true;
    note = member_note(p, value);
    (void)meta_change(p, &note, member_noted, p, NULL);
}
