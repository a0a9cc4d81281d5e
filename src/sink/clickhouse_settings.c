/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is pinned for a batch, whatever the server's profile or the operator says. A setting that a
 * server does not know is refused by it (code 115), so every row names the first version it is sent
 * to. Where the exact first version was not established the bound is a later one: 22.3 and 23.8
 * (long-term releases) for settings that came some time before. {0} is known to 18.16 (asked of
 * one), the oldest server this program is tried with.
 */
#include <inttypes.h>
#include <string.h>

#include "sink/clickhouse_int.h"

#define FOR_NATIVE 1
#define FOR_JSON   2
#define FOR_BOTH   3

enum pinned_value { FIXED, DEDUPLICATE, DEDUPLICATE_WORD, BLOCK_ROWS, BLOCK_BYTES };

struct pinned {
    const char *name;
    uint8_t formats;
    struct server_version from;  /* this and later */
    struct server_version until; /* earlier than this; {0}: no end */
    enum pinned_value kind;
    const char *value; /* of FIXED */
};

/* Far above any batch, so that its blocks are squashed into one and the INSERT is one part per
   partition: 10^12 rows, 2^50 bytes. */
#define BLOCK_ROWS_MIN  UINT64_C(1000000000000)
#define BLOCK_BYTES_MIN (UINT64_C(1) << 50)

static const struct pinned pinned[] = {
    {"min_insert_block_size_rows", FOR_BOTH, {0}, {0}, BLOCK_ROWS, NULL},
    {"min_insert_block_size_bytes", FOR_BOTH, {0}, {0}, BLOCK_BYTES, NULL},
    /* 1 without a token: a server that knows none drops the second of two honest equal batches. */
    {"insert_deduplicate", FOR_BOTH, {0}, {0}, DEDUPLICATE, NULL},
    /* Overrides the former. This and the next two: SettingsChangesHistory.cpp, and known to 26.7. */
    {"deduplicate_insert", FOR_BOTH, {26, 2, 0}, {0}, DEDUPLICATE_WORD, NULL},
    /* Would cut at max_insert_block_size, whatever the least sizes above say. */
    {"use_strict_insert_block_limits", FOR_BOTH, {26, 4, 0}, {0}, FIXED, "0"},
    /* Would store what came of a body that was cut. */
    {"input_format_connection_handling", FOR_BOTH, {26, 2, 0}, {0}, FIXED, "0"},
    /* "break" ends an insert that takes longer than max_execution_time with 200, and nothing stored. */
    {"timeout_overflow_mode", FOR_BOTH, {0}, {0}, FIXED, "throw"},
    {"deduplicate_blocks_in_dependent_materialized_views",
     FOR_BOTH,
     {22, 3, 0},
     {0},
     DEDUPLICATE,
     NULL},
    {"async_insert", FOR_BOTH, {22, 3, 0}, {0}, FIXED, "0"}, /* 1 by default in 26.x */
    {"max_insert_threads", FOR_BOTH, {22, 3, 0}, {0}, FIXED, "1"},
    {"materialized_views_ignore_errors", FOR_BOTH, {23, 8, 0}, {0}, FIXED, "0"},
    {"input_format_skip_unknown_fields", FOR_BOTH, {0}, {0}, FIXED, "0"},
    {"input_format_null_as_default", FOR_BOTH, {22, 3, 0}, {0}, FIXED, "1"},
    {"input_format_defaults_for_omitted_fields", FOR_BOTH, {22, 3, 0}, {0}, FIXED, "1"},
    /* A profile that tolerates errors would drop rows in silence. */
    {"input_format_allow_errors_num", FOR_BOTH, {0}, {0}, FIXED, "0"},
    {"input_format_allow_errors_ratio", FOR_BOTH, {0}, {0}, FIXED, "0"},
    /* Canonical text is read exactly by both; 18.16's best_effort takes quoted epoch seconds for
       something else (measured). Columns of unknown types want what 26.7 does by default. */
    {"date_time_input_format", FOR_JSON, {0}, {22, 3, 0}, FIXED, "basic"},
    {"date_time_input_format", FOR_JSON, {22, 3, 0}, {0}, FIXED, "best_effort"},
    {"input_format_parallel_parsing", FOR_JSON, {22, 3, 0}, {0}, FIXED, "0"},
};

/* Parameters of our own requests, and the ones that would change how they are read. */
static const char *const reserved[] = {
    "query",
    "query_id",
    "database",
    "user",
    "password",
    "quota_key",
    "role",
    "decompress",
    "compress",
    "wait_end_of_query",
    "buffer_size",
    "session_id",
    "session_timeout",
    "session_check",
    "default_format",
    "insert_deduplication_token",
    "client_protocol_version",
    "max_query_size",
    "readonly",
    "wait_for_async_insert",
    "async_insert_deduplicate",
};

bool parse_version(const char *text, struct server_version *out)
{
    uint32_t parts[3] = {0};

    for (int i = 0; i < 3; i++) {
        if (*text < '0' || *text > '9')
            return false;
        while (*text >= '0' && *text <= '9') {
            if (parts[i] > 100000000)
                return false;
            parts[i] = parts[i] * 10 + (uint32_t)(*text++ - '0');
        }
        if (*text != '.')
            break;
        text++;
    }
    out->major = parts[0];
    out->minor = parts[1];
    out->patch = parts[2];
    return parts[0] > 0;
}

bool version_at_least(struct server_version v, uint32_t major, uint32_t minor)
{
    return v.major > major || (v.major == major && v.minor >= minor);
}

const char *settings_of_answers(struct server_version version)
{
    static const char all[] = "&result_overflow_mode=throw&read_overflow_mode=throw"
                              "&timeout_overflow_mode=throw&limit=0&offset=0";
    static const char old[] = "&result_overflow_mode=throw&read_overflow_mode=throw"
                              "&timeout_overflow_mode=throw";

    return version_at_least(version, 22, 3) ? all : old;
}

bool clickhouse_knows_token(struct server_version version)
{
    return version_at_least(version, 22, 3);
}

bool clickhouse_setting_is_ours(const char *name)
{
    for (size_t i = 0; i < sizeof(pinned) / sizeof(pinned[0]); i++)
        if (strcmp(pinned[i].name, name) == 0)
            return true;
    for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++)
        if (strcmp(reserved[i], name) == 0)
            return true;
    return false;
}

const char *clickhouse_setting_refused(int code, const char *text)
{
    /* READONLY, SETTING_CONSTRAINT_VIOLATION, UNKNOWN_SETTING */
    if (code != 164 && code != 452 && code != 115)
        return NULL;
    for (size_t i = 0; i < sizeof(pinned) / sizeof(pinned[0]); i++)
        if (strstr(text, pinned[i].name))
            return pinned[i].name;
    return strstr(text, "insert_deduplication_token") ? "insert_deduplication_token" : NULL;
}

static uint64_t at_least(uint64_t least, uint64_t batch)
{
    return batch > least / 2 ? (batch > UINT64_MAX / 4 ? UINT64_MAX / 2 : batch * 2) : least;
}

int clickhouse_pinned_settings(struct server_version version, bool native, bool deduplicates,
                               uint64_t rows, uint64_t raw_bytes, struct buf *out)
{
    uint8_t format = native ? FOR_NATIVE : FOR_JSON;
    const char *separator = "";
    int status = SPOOL_OK;

    for (size_t i = 0; status == SPOOL_OK && i < sizeof(pinned) / sizeof(pinned[0]); i++) {
        const struct pinned *p = &pinned[i];
        if (!(p->formats & format) || !version_at_least(version, p->from.major, p->from.minor))
            continue;
        if (p->until.major && version_at_least(version, p->until.major, p->until.minor))
            continue;
        switch (p->kind) {
        case FIXED:
            status = buf_printf(out, "%s%s=%s", separator, p->name, p->value);
            break;
        case DEDUPLICATE:
            status = buf_printf(out, "%s%s=%d", separator, p->name, deduplicates ? 1 : 0);
            break;
        case DEDUPLICATE_WORD:
            status =
                buf_printf(out, "%s%s=%s", separator, p->name, deduplicates ? "enable" : "disable");
            break;
        case BLOCK_ROWS:
            status = buf_printf(out, "%s%s=%" PRIu64, separator, p->name,
                                at_least(BLOCK_ROWS_MIN, rows));
            break;
        case BLOCK_BYTES:
            status = buf_printf(out, "%s%s=%" PRIu64, separator, p->name,
                                at_least(BLOCK_BYTES_MIN, raw_bytes));
            break;
        }
        separator = "&";
    }
    return status;
}
