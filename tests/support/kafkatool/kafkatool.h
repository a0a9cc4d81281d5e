/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kafkatool: what the tests, the benchmark and the demo ask of a Kafka broker. Test support: a
 * failure prints one sentence and ends the program.
 */
#ifndef KAFKATOOL_H
#define KAFKATOOL_H

#include <librdkafka/rdkafka.h>
#include <stddef.h>
#include <stdint.h>

#define ADMIN_TIMEOUT_MS 60000

/* Prints "kafkatool: ..." and exits 1. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* The same with exit 2, for a wrong command line. */
void usage(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Decimal number of an argument; anything else is a usage error naming what. */
int64_t number_of(const char *text, const char *what);

struct property {
    const char *name;
    const char *value;
};

/*
 * The brokers, then defaults (ended by a NULL name; may be NULL), then the -X properties of the
 * command line, which win. For client_new.
 */
rd_kafka_conf_t *client_conf(const struct property *defaults);
void conf_set(rd_kafka_conf_t *conf, const char *name, const char *value);
rd_kafka_t *client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf);

/* Number of partitions of a topic; dies where it does not exist. */
int partition_count(rd_kafka_t *rk, const char *topic);

/* A command: argv[0] is its own name. Returns the exit code. */
int command_topics(int argc, char **argv);
int command_create(int argc, char **argv);
int command_delete(int argc, char **argv);
int command_partitions(int argc, char **argv);
int command_truncate(int argc, char **argv);
int command_ends(int argc, char **argv);
int command_offsets(int argc, char **argv);
int command_commit(int argc, char **argv);
int command_forget(int argc, char **argv);
int command_group(int argc, char **argv);
int command_produce(int argc, char **argv);
int command_send(int argc, char **argv);
int command_read(int argc, char **argv);
int command_mock(int argc, char **argv);

#define RECORD_BYTES_MAX 256
enum record_kind { RECORD_BENCH, RECORD_DEMO };

/*
 * The generated record number id, the same for the same seed; returns its length in out
 * (RECORD_BYTES_MAX bytes, not terminated). RECORD_BENCH has seven keys and about 125 bytes,
 * RECORD_DEMO is {id, name, timestamp, type}.
 */
size_t record_write(enum record_kind kind, uint64_t seed, uint64_t id, char *out);

#endif
