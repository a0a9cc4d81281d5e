/* SPDX-License-Identifier: Apache-2.0 */
/* Why a broker does not let us in: librdkafka's words become one sentence that says what to do. */
#include <stdio.h>
#include <string.h>

#include "source/kafka_int.h"

/* Older ones put their own nonce in front of the server's in the last message, which has it already;
   brokers since CVE-2024-56128 look at it, and refuse the login as one by a wrong password. */
#define SCRAM_VERSION 0x02060100

/* OpenSSL's X509_V_ERR_…, which its callback hands over as numbers. */
static const struct {
    int code;
    const char *is, *action;
} certificate_faults[] = {
    {9, "is not valid yet", "look at the clocks here and there"},
    {10, "has expired", "renew it at the broker; where it has not, the clock here is wrong"},
    {18, "is signed by itself",
     "set ssl.ca.location in kafka.properties to it, or to its authority"},
    {19, "is of an authority that is not trusted here",
     "set ssl.ca.location in kafka.properties to that authority's certificate, and restart"},
    {20, "is of an authority that is not trusted here",
     "set ssl.ca.location in kafka.properties to that authority's certificate, and restart"},
    {21, "is of an authority that is not trusted here",
     "set ssl.ca.location in kafka.properties to that authority's certificate, and restart"},
    {62, "is for another host name",
     "put the name it is for into kafka.brokers, or give the broker one for this name"},
    {64, "is for another address",
     "put the name it is for into kafka.brokers, or give the broker one for this address"},
};

/* "scheme://host:port/id: text (after 5ms in state X)" -> host:port, and the text alone. The scheme
   is left out where it is plaintext. */
static void take_apart(const char *text, char *host, size_t host_size, char *rest, size_t rest_size)
{
    const char *name_end = strstr(text, ": "), *from, *end;

    host[0] = '\0';
    if (name_end && memchr(text, '/', (size_t)(name_end - text)) &&
        strcspn(text, " ") > (size_t)(name_end - text)) {
        from = strstr(text, "://");
        from = from && from < name_end ? from + 3 : text;
        snprintf(host, host_size, "%.*s", (int)strcspn(from, "/ "), from);
        text = name_end + 2;
    }
    end = strstr(text, " (after ");
    snprintf(rest, rest_size, "%.*s", end ? (int)(end - text) : (int)strlen(text), text);
}

static void certificate_reason(int x509, const char *host, char *out, size_t size)
{
    for (size_t i = 0; i < sizeof(certificate_faults) / sizeof(certificate_faults[0]); i++)
        if (certificate_faults[i].code == x509) {
            snprintf(out, size, "the certificate of %s %s: %s", host, certificate_faults[i].is,
                     certificate_faults[i].action);
            return;
        }
    snprintf(out, size, "the certificate of %s is not accepted (code %d of OpenSSL's verify)", host,
             x509);
}

/* Somebody is there who hangs up on a TLS hello, or does not answer it. */
static bool no_tls(rd_kafka_resp_err_t err, const char *text, const char *rest)
{
    if (err == RD_KAFKA_RESP_ERR__SSL)
        return strstr(rest, "unexpected eof");
    return strstr(rest, "PLAINTEXT broker listener") || strstr(text, "in state SSL_HANDSHAKE");
}

void kafka_reason_put(rd_kafka_resp_err_t err, const char *text, int x509, char *out, size_t size)
{
    char host[KAFKA_HOST_BYTES], rest[300];

    take_apart(text, host, sizeof(host), rest, sizeof(rest));
    if (!host[0]) {
        snprintf(out, size, "%s", rest);
    } else if (err == RD_KAFKA_RESP_ERR__SSL && x509) {
        certificate_reason(x509, host, out, size);
    } else if (no_tls(err, text, rest)) {
        snprintf(out, size,
                 "%s does not go through the TLS handshake: does it speak TLS? Look at the port in "
                 "kafka.brokers, and at security.protocol in kafka.properties",
                 host);
    } else if (err == RD_KAFKA_RESP_ERR__SSL) {
        snprintf(out, size, "%s: %s: look at security.protocol and the ssl properties", host, rest);
    } else if (err == RD_KAFKA_RESP_ERR__AUTHENTICATION && strstr(rest, "supported mechanisms")) {
        snprintf(out, size, "%s: %s: set sasl.mechanisms in kafka.properties to one of them", host,
                 rest);
    } else if (err == RD_KAFKA_RESP_ERR__AUTHENTICATION && strstr(rest, "SCRAM") &&
               rd_kafka_version() < SCRAM_VERSION) {
        snprintf(
            out, size,
            "%s refuses the login: %s: librdkafka %s can't log in to Kafka 4 by SCRAM, 2.6.1 can; "
            "else look at sasl.username and sasl.password in kafka.properties",
            host, rest, rd_kafka_version_str());
    } else if (err == RD_KAFKA_RESP_ERR__AUTHENTICATION) {
        snprintf(out, size,
                 "%s refuses the login: %s: look at sasl.username and sasl.password in "
                 "kafka.properties, and whether the broker has that user",
                 host, rest);
    } else if (strstr(rest, "security.protocol")) {
        snprintf(out, size,
                 "%s closed the connection: does it want TLS or SASL? Look at security.protocol in "
                 "kafka.properties",
                 host);
    } else {
        snprintf(out, size, "%s: %s", host, rest);
    }
}

/* Not all that is noted is asked for: the client keeps errors like the last one to itself. So what is
   noted of a broker counts for this one only, and where it says that it is about a certificate. */
int kafka_reason_fault(struct kafka_hook *h, const char *text)
{
    char host[KAFKA_HOST_BYTES], rest[300];
    int x509 = 0;

    if (!strstr(text, "certificate verify failed"))
        return 0;
    take_apart(text, host, sizeof(host), rest, sizeof(rest));
    uv_mutex_lock(&h->lines_lock);
    for (size_t i = 0; i < KAFKA_FAULTS && host[0]; i++)
        if (strcmp(h->faults[i].host, host) == 0)
            x509 = h->faults[i].x509;
    uv_mutex_unlock(&h->lines_lock);
    return x509;
}

static void note_fault(struct kafka_hook *h, const char *host, int x509)
{
    struct kafka_fault *at = NULL;

    uv_mutex_lock(&h->lines_lock);
    for (size_t i = 0; i < KAFKA_FAULTS; i++)
        if (strcmp(h->faults[i].host, host) == 0)
            at = &h->faults[i];
    if (!at)
        at = &h->faults[h->fault_next++ % KAFKA_FAULTS];
    snprintf(at->host, sizeof(at->host), "%s", host);
    at->x509 = x509;
    uv_mutex_unlock(&h->lines_lock);
}

/* On the client's thread. A refused certificate stays refused; what is wrong with it is noted. */
int kafka_reason_certificate(rd_kafka_t *client, const char *broker, int32_t id, int *x509,
                             int depth, const char *der, size_t size, char *text, size_t text_size,
                             void *opaque)
{
    (void)client, (void)id, (void)depth, (void)der, (void)size;
    if (*x509 == 0)
        return 1;
    note_fault(opaque, broker, *x509);
    snprintf(text, text_size, "code %d", *x509);
    return 0;
}
