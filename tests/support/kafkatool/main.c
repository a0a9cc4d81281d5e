/* SPDX-License-Identifier: Apache-2.0 */
#include "kafkatool.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char HELP[] =
    "kafkatool [-b BROKERS] [-X property=value]... COMMAND\n"
    "  topics                               name and partitions, one a line\n"
    "  create TOPIC PARTITIONS [name=value]...\n"
    "  delete TOPIC\n"
    "  partitions TOPIC COUNT               grow to COUNT partitions\n"
    "  truncate TOPIC PARTITION OFFSET      delete the records before OFFSET\n"
    "  ends TOPIC                           low and high offset of each partition\n"
    "  offsets GROUP TOPIC                  committed offsets with their metadata\n"
    "  commit GROUP TOPIC PARTITION OFFSET [METADATA]   (the group must be empty)\n"
    "  forget GROUP                         delete the group with its offsets\n"
    "  group GROUP                          state and members\n"
    "  produce TOPIC --records N [--first ID] [--rate PER_SECOND] [--kind bench|demo] [--seed S]\n"
    "                [--progress] [--transaction commit|abort]\n"
    "                generated records, id N to partition N mod partitions, in order\n"
    "  send TOPIC [--plain] [--partition P]\n"
    "                records from stdin: a JSON object a line with value (a string, or null), "
    "key,\n"
    "                headers, timestamp, partition; --plain: each line is a value\n"
    "  send TOPIC --file PATH [--partition P]   the file is one record\n"
    "  read TOPIC                           all records up to the end, a JSON object a line\n"
    "  mock TOPIC PARTITIONS                be a broker with that topic, in memory, until "
    "SIGTERM;\n"
    "                prints its address; needs no BROKERS\n"
    "Answers are JSON, an object a line. BROKERS may also stand in KAFKA_BROKERS.\n";

#define PROPERTIES_MAX 64
static const char *properties[PROPERTIES_MAX];
static int property_count;
static const char *brokers;

static void complain(const char *format, va_list args)
{
    fflush(stdout);
    fprintf(stderr, "kafkatool: ");
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

void die(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain(format, args);
    va_end(args);
    exit(1);
}

void usage(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    complain(format, args);
    va_end(args);
    exit(2);
}

int64_t number_of(const char *text, const char *what)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno || end == text || *end)
        usage("%s: not a number: %s", what, text);
    return v;
}

void conf_set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char text[512];
    if (rd_kafka_conf_set(conf, name, value, text, sizeof text) != RD_KAFKA_CONF_OK)
        usage("%s", text);
}

rd_kafka_conf_t *client_conf(const struct property *defaults)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    if (brokers)
        conf_set(conf, "bootstrap.servers", brokers);
    conf_set(conf, "client.id", "kafkatool");
    conf_set(conf, "reconnect.backoff.max.ms", "500"); /* a broker that is away comes back soon */
    for (; defaults && defaults->name; defaults++)
        conf_set(conf, defaults->name, defaults->value);
    for (int i = 0; i < property_count; i++) {
        char name[256];
        const char *eq = strchr(properties[i], '=');
        if (!eq || (size_t)(eq - properties[i]) >= sizeof name)
            usage("-X needs name=value, not '%s'", properties[i]);
        memcpy(name, properties[i], (size_t)(eq - properties[i]));
        name[eq - properties[i]] = '\0';
        conf_set(conf, name, eq + 1);
    }
    return conf;
}

rd_kafka_t *client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf)
{
    char text[512];
    rd_kafka_t *rk = rd_kafka_new(type, conf, text, sizeof text);
    if (!rk)
        die("%s", text);
    return rk;
}

int partition_count(rd_kafka_t *rk, const char *topic)
{
    const struct rd_kafka_metadata *metadata;
    rd_kafka_topic_t *handle = rd_kafka_topic_new(rk, topic, NULL);
    rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 0, handle, &metadata, ADMIN_TIMEOUT_MS);
    if (err)
        die("%s: %s", topic, rd_kafka_err2str(err));
    if (metadata->topic_cnt != 1 || metadata->topics[0].err)
        die("%s: %s", topic,
            metadata->topic_cnt == 1 ? rd_kafka_err2str(metadata->topics[0].err) : "no answer");
    int count = metadata->topics[0].partition_cnt;
    rd_kafka_metadata_destroy(metadata);
    rd_kafka_topic_destroy(handle);
    return count;
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    int args_min;
} COMMANDS[] = {
    {"topics", command_topics, 0},     {"create", command_create, 2},
    {"delete", command_delete, 1},     {"partitions", command_partitions, 2},
    {"truncate", command_truncate, 3}, {"ends", command_ends, 1},
    {"offsets", command_offsets, 2},   {"commit", command_commit, 4},
    {"forget", command_forget, 1},     {"group", command_group, 1},
    {"produce", command_produce, 1},   {"send", command_send, 1},
    {"read", command_read, 1},         {"mock", command_mock, 2},
};

int main(int argc, char **argv)
{
    brokers = getenv("KAFKA_BROKERS");
    int opt;
    while ((opt = getopt(argc, argv, "+b:X:h")) != -1) {
        if (opt == 'b') {
            brokers = optarg;
        } else if (opt == 'X' && property_count < PROPERTIES_MAX) {
            properties[property_count++] = optarg;
        } else if (opt == 'h') {
            fputs(HELP, stdout);
            return 0;
        } else {
            fputs(HELP, stderr);
            return 2;
        }
    }
    if (optind == argc) {
        fputs(HELP, stderr);
        return 2;
    }
    if (!brokers && strcmp(argv[optind], "mock") != 0)
        usage("no brokers: give -b or KAFKA_BROKERS");
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; i++) {
        if (strcmp(argv[optind], COMMANDS[i].name) != 0)
            continue;
        if (argc - optind - 1 < COMMANDS[i].args_min)
            usage("%s needs %d arguments", COMMANDS[i].name, COMMANDS[i].args_min);
        return COMMANDS[i].run(argc - optind, argv + optind);
    }
    usage("no command '%s'; kafkatool -h lists them", argv[optind]);
}
