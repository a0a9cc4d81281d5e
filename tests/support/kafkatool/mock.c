/* SPDX-License-Identifier: Apache-2.0 */
/* librdkafka's built-in mock cluster as a program, for a machine that has no broker. */
#include "kafkatool.h"

#include <librdkafka/rdkafka_mock.h>
#include <signal.h>
#include <stdio.h>

int command_mock(int argc, char **argv)
{
    static const struct property ONE_BROKER[] = {{"test.mock.num.brokers", "1"}, {NULL, NULL}};
    (void)argc;
    /* Blocked before the client makes its threads, so that sigwait below gets them. */
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    rd_kafka_t *rk = client_new(RD_KAFKA_PRODUCER, client_conf(ONE_BROKER));
    rd_kafka_mock_cluster_t *cluster = rd_kafka_handle_mock_cluster(rk);
    rd_kafka_resp_err_t err =
        rd_kafka_mock_topic_create(cluster, argv[1], (int)number_of(argv[2], "partitions"), 1);
    if (err)
        die("%s: %s", argv[1], rd_kafka_err2str(err));
    printf("{\"brokers\":\"%s\"}\n", rd_kafka_mock_cluster_bootstraps(cluster));
    fflush(stdout);
    int number;
    sigwait(&ends, &number);
    rd_kafka_destroy(rk);
    return 0;
}
