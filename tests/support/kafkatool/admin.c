/* SPDX-License-Identifier: Apache-2.0 */
/* Topics and groups, by the admin requests of librdkafka. */
#include "kafkatool.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_line(cJSON *object)
{
    char *text = cJSON_PrintUnformatted(object);
    if (!text)
        die("out of memory");
    puts(text);
    free(text);
    cJSON_Delete(object);
}

static rd_kafka_t *admin_client(void)
{
    return client_new(RD_KAFKA_PRODUCER, client_conf(NULL));
}

static rd_kafka_t *group_client(const char *group)
{
    rd_kafka_conf_t *conf = client_conf(NULL);
    conf_set(conf, "group.id", group);
    conf_set(conf, "enable.auto.commit", "false");
    return client_new(RD_KAFKA_CONSUMER, conf);
}

#define COORDINATOR_PAUSE_MS 100
#define LEADER_PAUSE_MS      20

/* Whether to ask once more: a broker that just started, or gave a group away, says so for a while, and
   the protocol has its clients ask again. *waited_ms: so far, 0 at first. */
static bool coordinator_is_coming(rd_kafka_resp_err_t err, int *waited_ms)
{
    if ((err != RD_KAFKA_RESP_ERR_NOT_COORDINATOR &&
         err != RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS &&
         err != RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE) ||
        *waited_ms >= ADMIN_TIMEOUT_MS)
        return false;
    usleep(COORDINATOR_PAUSE_MS * 1000);
    *waited_ms += COORDINATOR_PAUSE_MS;
    return true;
}

/* Waits for the one answer of an admin request; dies on an error of the request as a whole. */
static rd_kafka_event_t *admin_answer(rd_kafka_queue_t *queue)
{
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, ADMIN_TIMEOUT_MS + 5000);
    if (!event)
        die("no answer from the broker");
    if (rd_kafka_event_error(event))
        die("%s", rd_kafka_event_error_string(event));
    return event;
}

static void topic_results_check(const rd_kafka_topic_result_t **results, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (rd_kafka_topic_result_error(results[i])) {
            const char *why = rd_kafka_topic_result_error_string(results[i]);
            die("%s: %s", rd_kafka_topic_result_name(results[i]),
                why ? why : rd_kafka_err2str(rd_kafka_topic_result_error(results[i])));
        }
    }
}

int command_topics(int argc, char **argv)
{
    (void)argc, (void)argv;
    rd_kafka_t *rk = admin_client();
    const struct rd_kafka_metadata *metadata;
    rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 1, NULL, &metadata, ADMIN_TIMEOUT_MS);
    if (err)
        die("%s", rd_kafka_err2str(err));
    for (int i = 0; i < metadata->topic_cnt; i++) {
        cJSON *line = cJSON_CreateObject();
        cJSON_AddStringToObject(line, "topic", metadata->topics[i].topic);
        cJSON_AddNumberToObject(line, "partitions", metadata->topics[i].partition_cnt);
        print_line(line);
    }
    rd_kafka_metadata_destroy(metadata);
    rd_kafka_destroy(rk);
    return 0;
}

static bool is_led(const struct rd_kafka_metadata_topic *topic)
{
    for (int i = 0; i < topic->partition_cnt; i++)
        if (topic->partitions[i].err || topic->partitions[i].leader < 0)
            return false;
    return !topic->err && topic->partition_cnt;
}

/* The answer to a creation is the controller's; what the broker says of its topics comes after it. */
static void wait_led(rd_kafka_t *rk, const char *name)
{
    rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, name, NULL);

    for (int waited_ms = 0, led = 0; !led; waited_ms += LEADER_PAUSE_MS) {
        const struct rd_kafka_metadata *metadata;
        rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 0, topic, &metadata, ADMIN_TIMEOUT_MS);
        if (err || waited_ms >= ADMIN_TIMEOUT_MS)
            die("%s was made, and has no leader yet: %s", name, rd_kafka_err2str(err));
        led = metadata->topic_cnt == 1 && is_led(&metadata->topics[0]);
        rd_kafka_metadata_destroy(metadata);
        if (!led)
            usleep(LEADER_PAUSE_MS * 1000);
    }
    rd_kafka_topic_destroy(topic);
}

int command_create(int argc, char **argv)
{
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    char text[512];
    rd_kafka_NewTopic_t *topic =
        rd_kafka_NewTopic_new(argv[1], (int)number_of(argv[2], "partitions"), 1, text, sizeof text);
    if (!topic)
        usage("%s", text);
    for (int i = 3; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        if (!eq)
            usage("a topic's setting is name=value, not '%s'", argv[i]);
        *eq = '\0';
        rd_kafka_NewTopic_set_config(topic, argv[i], eq + 1);
    }
    rd_kafka_CreateTopics(rk, &topic, 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    size_t count;
    const rd_kafka_topic_result_t **results =
        rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &count);
    topic_results_check(results, count);
    wait_led(rk, argv[1]);
    rd_kafka_event_destroy(event);
    rd_kafka_NewTopic_destroy(topic);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}

int command_delete(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_DeleteTopic_t *topic = rd_kafka_DeleteTopic_new(argv[1]);
    rd_kafka_DeleteTopics(rk, &topic, 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    size_t count;
    const rd_kafka_topic_result_t **results =
        rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(event), &count);
    topic_results_check(results, count);
    rd_kafka_event_destroy(event);
    rd_kafka_DeleteTopic_destroy(topic);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}

int command_partitions(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    char text[512];
    rd_kafka_NewPartitions_t *grown = rd_kafka_NewPartitions_new(
        argv[1], (size_t)number_of(argv[2], "partitions"), text, sizeof text);
    if (!grown)
        usage("%s", text);
    rd_kafka_CreatePartitions(rk, &grown, 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    size_t count;
    const rd_kafka_topic_result_t **results = rd_kafka_CreatePartitions_result_topics(
        rd_kafka_event_CreatePartitions_result(event), &count);
    topic_results_check(results, count);
    rd_kafka_event_destroy(event);
    rd_kafka_NewPartitions_destroy(grown);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}

int command_truncate(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_topic_partition_list_t *before = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(before, argv[1], (int)number_of(argv[2], "partition"))
        ->offset = number_of(argv[3], "offset");
    rd_kafka_DeleteRecords_t *request = rd_kafka_DeleteRecords_new(before);
    rd_kafka_DeleteRecords(rk, &request, 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    const rd_kafka_topic_partition_list_t *result =
        rd_kafka_DeleteRecords_result_offsets(rd_kafka_event_DeleteRecords_result(event));
    if (result->elems[0].err)
        die("%s: %s", argv[1], rd_kafka_err2str(result->elems[0].err));
    rd_kafka_event_destroy(event);
    rd_kafka_DeleteRecords_destroy(request);
    rd_kafka_topic_partition_list_destroy(before);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}

int command_ends(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    int count = partition_count(rk, argv[1]);
    for (int p = 0; p < count; p++) {
        int64_t low, high;
        rd_kafka_resp_err_t err =
            rd_kafka_query_watermark_offsets(rk, argv[1], p, &low, &high, ADMIN_TIMEOUT_MS);
        if (err)
            die("%s [%d]: %s", argv[1], p, rd_kafka_err2str(err));
        cJSON *line = cJSON_CreateObject();
        cJSON_AddNumberToObject(line, "partition", p);
        cJSON_AddNumberToObject(line, "low", (double)low);
        cJSON_AddNumberToObject(line, "high", (double)high);
        print_line(line);
    }
    rd_kafka_destroy(rk);
    return 0;
}

int command_offsets(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = group_client(argv[1]);
    int count = partition_count(rk, argv[2]);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(count);
    rd_kafka_topic_partition_list_add_range(list, argv[2], 0, count - 1);
    rd_kafka_resp_err_t err;
    int waited_ms = 0;
    do
        err = rd_kafka_committed(rk, list, ADMIN_TIMEOUT_MS);
    while (coordinator_is_coming(err, &waited_ms));
    if (err)
        die("%s: %s", argv[1], rd_kafka_err2str(err));
    for (int i = 0; i < list->cnt; i++) {
        const rd_kafka_topic_partition_t *p = &list->elems[i];
        if (p->err)
            die("%s [%d]: %s", argv[2], p->partition, rd_kafka_err2str(p->err));
        cJSON *line = cJSON_CreateObject();
        cJSON_AddNumberToObject(line, "partition", p->partition);
        if (p->offset >= 0) {
            char *metadata =
                strndup(p->metadata_size ? (const char *)p->metadata : "", p->metadata_size);
            cJSON_AddNumberToObject(line, "offset", (double)p->offset);
            cJSON_AddStringToObject(line, "metadata", metadata ? metadata : "");
            free(metadata);
        } else {
            cJSON_AddNullToObject(line, "offset");
            cJSON_AddNullToObject(line, "metadata");
        }
        print_line(line);
    }
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(rk);
    return 0;
}

int command_commit(int argc, char **argv)
{
    rd_kafka_t *rk = group_client(argv[1]);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *p =
        rd_kafka_topic_partition_list_add(list, argv[2], (int)number_of(argv[3], "partition"));
    p->offset = number_of(argv[4], "offset");
    if (argc > 5) {
        p->metadata = strdup(argv[5]);
        p->metadata_size = strlen(argv[5]);
    }
    rd_kafka_resp_err_t err;
    int waited_ms = 0;
    do
        err = rd_kafka_commit(rk, list, 0);
    while (coordinator_is_coming(err ? err : list->elems[0].err, &waited_ms));
    if (err || list->elems[0].err)
        die("%s: %s", argv[1], rd_kafka_err2str(err ? err : list->elems[0].err));
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(rk);
    return 0;
}

int command_forget(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_DeleteGroup_t *group = rd_kafka_DeleteGroup_new(argv[1]);
    rd_kafka_DeleteGroups(rk, &group, 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    size_t count;
    const rd_kafka_group_result_t **results =
        rd_kafka_DeleteGroups_result_groups(rd_kafka_event_DeleteGroups_result(event), &count);
    for (size_t i = 0; i < count; i++) {
        const rd_kafka_error_t *error = rd_kafka_group_result_error(results[i]);
        if (error)
            die("%s: %s", argv[1], rd_kafka_error_string(error));
    }
    rd_kafka_event_destroy(event);
    rd_kafka_DeleteGroup_destroy(group);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}

static cJSON *member_json(const rd_kafka_MemberDescription_t *member)
{
    cJSON *object = cJSON_CreateObject();
    const char *instance = rd_kafka_MemberDescription_group_instance_id(member);
    cJSON_AddStringToObject(object, "id", rd_kafka_MemberDescription_consumer_id(member));
    cJSON_AddStringToObject(object, "client", rd_kafka_MemberDescription_client_id(member));
    cJSON_AddStringToObject(object, "instance", instance ? instance : "");
    cJSON *assigned = cJSON_AddArrayToObject(object, "partitions");
    const rd_kafka_MemberAssignment_t *assignment = rd_kafka_MemberDescription_assignment(member);
    const rd_kafka_topic_partition_list_t *list =
        assignment ? rd_kafka_MemberAssignment_partitions(assignment) : NULL;
    for (int i = 0; list && i < list->cnt; i++) {
        char name[320];
        snprintf(name, sizeof name, "%s/%d", list->elems[i].topic, list->elems[i].partition);
        cJSON_AddItemToArray(assigned, cJSON_CreateString(name));
    }
    return object;
}

int command_group(int argc, char **argv)
{
    (void)argc;
    rd_kafka_t *rk = admin_client();
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_DescribeConsumerGroups(rk, (const char **)&argv[1], 1, NULL, queue);
    rd_kafka_event_t *event = admin_answer(queue);
    size_t count;
    const rd_kafka_ConsumerGroupDescription_t **groups =
        rd_kafka_DescribeConsumerGroups_result_groups(
            rd_kafka_event_DescribeConsumerGroups_result(event), &count);
    for (size_t i = 0; i < count; i++) {
        const rd_kafka_error_t *error = rd_kafka_ConsumerGroupDescription_error(groups[i]);
        if (error)
            die("%s: %s", argv[1], rd_kafka_error_string(error));
        cJSON *line = cJSON_CreateObject();
        cJSON_AddStringToObject(
            line, "state",
            rd_kafka_consumer_group_state_name(rd_kafka_ConsumerGroupDescription_state(groups[i])));
        cJSON *members = cJSON_AddArrayToObject(line, "members");
        for (size_t m = 0; m < rd_kafka_ConsumerGroupDescription_member_count(groups[i]); m++)
            cJSON_AddItemToArray(
                members, member_json(rd_kafka_ConsumerGroupDescription_member(groups[i], m)));
        print_line(line);
    }
    rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_destroy(rk);
    return 0;
}
