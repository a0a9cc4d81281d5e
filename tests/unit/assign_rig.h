/* SPDX-License-Identifier: Apache-2.0 */
/* A partition that was read and comes back, and what the group has committed meanwhile. */
#ifndef TESTS_ASSIGN_RIG_H
#define TESTS_ASSIGN_RIG_H

#include "pipeline_rig.h"

#define ROWS 100 /* offsets 0 to 99 */

static const UNUSED struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

static UNUSED struct kafka_committed by_another(int64_t offset)
{
    return (struct kafka_committed){.offset = offset, .metadata = "", .low = 0, .high = 1000};
}

static UNUSED struct kafka_committed by_us(struct flow *f, int64_t offset, uint32_t epoch)
{
    return (struct kafka_committed){
        .offset = offset, .metadata = flow_metadata(f, epoch), .low = 0, .high = 1000};
}

/* Partition 0, whose records 0 to 99 are taken, in its first epoch. */
static struct kafka_partition *take_rows(struct flow *f)
{
    struct kafka_partition *p = flow_partition(f, 0);

    assert_non_null(flow_assign(f, p, nothing));
    assert_int_equal(p->start, KAFKA_OFFSET_POLICY);
    flow_read(f, p, 0, ROWS);
    return p;
}

/* The same of a spool that is made for it. */
static UNUSED struct kafka_partition *taken(struct flow *f)
{
    flow_open(f, make_directory());
    return take_rows(f);
}

/* It went, and is back. */
static UNUSED struct kafka_partition *back(struct flow *f, struct kafka_partition *p)
{
    flow_revoke(f, p);
    return flow_partition(f, 0);
}

#endif
