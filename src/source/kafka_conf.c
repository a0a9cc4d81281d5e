/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "source/kafka_int.h"

/* Ours, unless the user's properties say otherwise. Measured on 2.0.2: a small local queue and
   small fetches halve the memory and cost nothing, given the kick (kafka_lookup.c). */
static const struct kafka_property tuning[] = {
    {"client.id", "spoold"},
    {"queued.min.messages", "20000"},
    {"queued.max.messages.kbytes", "16384"},
    {"fetch.message.max.bytes", "262144"},
    {"fetch.wait.max.ms", "500"},
    /* A record of any size passes, and is judged by the decoder instead of stalling its partition. */
    {"receive.message.max.bytes", "2147483647"},
    {"topic.metadata.refresh.interval.ms", "10000"},
    {"allow.auto.create.topics", "false"},
    {"reconnect.backoff.max.ms", "2000"},
    {"socket.keepalive.enable", "true"},
};

/* What the promises rest on. */
static const struct kafka_property fixed[] = {
    {"enable.auto.commit", "false"},
    {"enable.auto.offset.store", "false"},
    {"auto.offset.reset", "error"},
    {"isolation.level", "read_committed"},
    {"partition.assignment.strategy", "cooperative-sticky"},
    {"enable.partition.eof", "true"},
    {"log.queue", "false"},
};

static const struct {
    const char *name;
    const char *allowed; /* the one value that may be given; NULL: none */
    const char *reason;
} refused[] = {
    {"enable.auto.commit", "false", "offsets are committed only after the rows are in ClickHouse"},
    {"auto.commit.enable", "false", "offsets are committed only after the rows are in ClickHouse"},
    {"enable.auto.offset.store", "false",
     "offsets are committed only after the rows are in ClickHouse"},
    {"offset.store.method", "broker", "offsets live in the spool and in the consumer group"},
    {"auto.offset.reset", NULL, "set kafka.auto_offset_reset instead"},
    {"bootstrap.servers", NULL, "set kafka.brokers instead"},
    {"metadata.broker.list", NULL, "set kafka.brokers instead"},
    {"group.id", NULL, "set kafka.group_id instead"},
    {"group.instance.id", NULL, "set kafka.group_instance_id instead"},
    {"isolation.level", "read_committed", "records of aborted transactions would be inserted"},
    {"partition.assignment.strategy", "cooperative-sticky",
     "partitions are handed over one by one, after their rows in flight are answered"},
    {"group.protocol", "classic", "partitions are handed over by the classic protocol"},
    {"enable.partition.eof", "true", "the end of a partition is how its lag is known"},
    {"log.queue", "false", "the client's log tells when its group joins"},
    {"enabled_events", NULL, "it is not a setting but an interface"},
    {"opaque", NULL, "it is not a setting but an interface"},
    {"default_topic_conf", NULL, "it is not a setting but an interface"},
};

static int property_check(const struct kafka_property *property, struct spool_error *error)
{
    const char *name = property->name;
    size_t length = strlen(name);

    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        if (strcmp(name, refused[i].name) != 0)
            continue;
        if (refused[i].allowed && strcmp(property->value, refused[i].allowed) == 0)
            return SPOOL_OK;
        return spool_error_set(error, SPOOL_E_INVALID,
                               "kafka.properties: %s may not be set%s%s: %s", name,
                               refused[i].allowed ? " to anything but " : "",
                               refused[i].allowed ? refused[i].allowed : "", refused[i].reason);
    }
    if (length > 3 && strcmp(name + length - 3, "_cb") == 0)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "kafka.properties: %s may not be set: it is not a setting but an "
                               "interface",
                               name);
    return SPOOL_OK;
}

static int conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, const char *option,
                    struct spool_error *error)
{
    char text[400];
    rd_kafka_conf_res_t result = rd_kafka_conf_set(conf, name, value, text, sizeof(text));

    if (result == RD_KAFKA_CONF_OK)
        return SPOOL_OK;
    if (result == RD_KAFKA_CONF_UNKNOWN)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "%s: librdkafka %s knows no property named %s", option,
                               rd_kafka_version_str(), name);
    return spool_error_set(error, SPOOL_E_INVALID, "%s: %s", option, text);
}

static int options_sane(const struct kafka_options *options, struct spool_error *error)
{
    if (!options->brokers || !options->brokers[0])
        return spool_error_set(error, SPOOL_E_INVALID, "kafka.brokers: at least one is needed");
    if (!options->group_id || !options->group_id[0])
        return spool_error_set(error, SPOOL_E_INVALID, "kafka.group_id: must not be empty");
    for (size_t i = 0; i < options->topic_count; i++) {
        const char *topic = options->topics[i];
        if (!topic[0] || strlen(topic) > 249)
            return spool_error_set(error, SPOOL_E_INVALID,
                                   "topics: a topic's name has 1 to 249 characters");
        if (topic[0] == '^')
            return spool_error_set(error, SPOOL_E_INVALID,
                                   "topics: \"%s\" is a pattern; topics are named one by one",
                                   topic);
    }
    return SPOOL_OK;
}

/* kafka_join.c and kafka_mark.c need these lines; what the user asked for besides stays. */
static const char NEEDED[] = ",cgrp,consumer,topic";
static int set_debug(rd_kafka_conf_t *conf, struct spool_error *error)
{
    char contexts[512];
    size_t size = sizeof(contexts) - sizeof(NEEDED);

    if (rd_kafka_conf_get(conf, "debug", contexts, &size) != RD_KAFKA_CONF_OK || size <= 1)
        return conf_set(conf, "debug", &NEEDED[1], "kafka", error);
    memcpy(contexts + strlen(contexts), NEEDED, sizeof(NEEDED));
    return conf_set(conf, "debug", contexts, "kafka", error);
}

int kafka_conf_build(const struct kafka_options *options, bool with_brokers, rd_kafka_conf_t **out,
                     struct spool_error *error)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    int status = options_sane(options, error);

    for (size_t i = 0; !status && i < sizeof(tuning) / sizeof(tuning[0]); i++)
        status = conf_set(conf, tuning[i].name, tuning[i].value, "kafka", error);
    for (size_t i = 0; !status && i < options->property_count; i++) {
        const struct kafka_property *property = &options->properties[i];
        status = property_check(property, error);
        if (!status)
            status = conf_set(conf, property->name, property->value, "kafka.properties", error);
    }
    for (size_t i = 0; !status && i < sizeof(fixed) / sizeof(fixed[0]); i++)
        status = conf_set(conf, fixed[i].name, fixed[i].value, "kafka", error);
    if (!status)
        status = set_debug(conf, error);
    if (!status)
        status = conf_set(conf, "group.id", options->group_id, "kafka.group_id", error);
    if (!status && options->group_instance_id && options->group_instance_id[0])
        status = conf_set(conf, "group.instance.id", options->group_instance_id,
                          "kafka.group_instance_id", error);
    if (!status && with_brokers)
        status = conf_set(conf, "bootstrap.servers", options->brokers, "kafka.brokers", error);
    if (status) {
        rd_kafka_conf_destroy(conf);
        return status;
    }
    *out = conf;
    return SPOOL_OK;
}

static void log_nothing(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    (void)client;
    (void)level;
    (void)facility;
    (void)text;
}

int kafka_options_check(const struct kafka_options *options, struct spool_error *error)
{
    rd_kafka_conf_t *conf = NULL;
    rd_kafka_t *client;
    char text[400];
    int status = kafka_conf_build(options, false, &conf, error);

    if (status)
        return status;
    /* Properties that contradict each other, and unreadable key files, show only here. Without a
       broker's address the client connects to nothing. */
    rd_kafka_conf_set_log_cb(conf, log_nothing);
    client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    if (!client) {
        rd_kafka_conf_destroy(conf);
        return spool_error_set(error, SPOOL_E_INVALID, "kafka.properties: %s", text);
    }
    rd_kafka_destroy_flags(client, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    return SPOOL_OK;
}
