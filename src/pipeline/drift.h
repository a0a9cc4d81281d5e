/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether equal rows fall into the same partition whenever they are inserted. Where the partition
 * key rests on a column that the server fills in by itself (DEFAULT now()), a repeat falls into
 * another partition, and the table knows no token of it there: it is stored again (measured).
 */
#ifndef PIPELINE_DRIFT_H
#define PIPELINE_DRIFT_H

#include "codec/schema.h"
#include "sink/clickhouse.h"

/* The column, or the function of the key, that makes rows drift; NULL: none does. Only functions
   known to give the same for the same count as steady. name has room for size bytes. */
const char *partition_drift(const struct table_description *table, const struct schema *schema,
                            char *name, size_t size);

#endif
