/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages to Kafka: what dead letters need. One librdkafka producer on the loop; loop thread only.
 * A message counts as delivered when all replicas in sync have it (acks=all); one that is not within
 * 30 s has failed, whether it arrives later or not: the caller sends again, so at least once.
 */
#ifndef SOURCE_KAFKA_PRODUCER_H
#define SOURCE_KAFKA_PRODUCER_H

#include "source/kafka.h"

struct kafka_producer;

struct kafka_message {
    const void *key; /* NULL: none */
    size_t key_size;
    const void *value;
    size_t value_size;
    const struct record_header *headers;
    size_t header_count;
};

/* Brokers and properties as the source has them; options are read here only. */
int kafka_producer_create(uv_loop_t *loop, const struct kafka_options *options,
                          struct kafka_producer **out, struct spool_error *error);

/* Copies everything. done comes once, later, from the loop: SPOOL_OK when every message is
   delivered, else a sentence with SPOOL_E_LIMIT where a message itself is not taken (it is too long), or
   SPOOL_E_IO. Not called where this fails. */
int kafka_producer_send(struct kafka_producer *p, const char *topic,
                        const struct kafka_message *messages, size_t count,
                        void (*done)(void *arg, int status, const char *text), void *arg,
                        struct spool_error *error);

/* What is under way is given up: its done comes with an error. closed comes last, from the loop. */
void kafka_producer_close(struct kafka_producer *p, void (*closed)(void *arg), void *arg);

#endif
