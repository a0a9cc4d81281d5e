/* SPDX-License-Identifier: Apache-2.0 */
#include "sink/error_class.h"

#include <assert.h>
#include <ctype.h>
#include <stdbool.h>
#include <string.h>

/*
 * What an exception proves about the rows of its INSERT.
 *   NOTHING  raised while the request, the table or the data was looked at: no row is in
 *   MAYBE    raised by storage, a replica or a shard, where earlier parts may have been committed
 */
enum proof { NOTHING, MAYBE };

/* What else is known of it. */
#define EARLIER 1U /* raised before a part is put in its place, or by replicas */
#define NO_ROOM 2U /* memory or disk ran out while a part was being written */
#define AWAY    4U /* it passes by itself, and until then no insert is taken here */

struct error_row {
    int code;
    enum error_class class_;
    enum proof proof;
    unsigned more;
};

/*
 * One row per exception code, ordered by code. Numbers and names: ClickHouse, ErrorCodes.cpp.
 * A code that is not here is CLASS_UNKNOWN and proves nothing. Codes that mean two things are
 * told apart by their text in error_classify.
 */
static const struct error_row table[] = {
    {3, CLASS_UPLOAD, NOTHING, 0},           /* UNEXPECTED_END_OF_FILE */
    {6, CLASS_DATA, NOTHING, 0},             /* CANNOT_PARSE_TEXT */
    {12, CLASS_DATA, NOTHING, 0},            /* PARAMETER_OUT_OF_BOUND */
    {16, CLASS_SCHEMA, NOTHING, 0},          /* NO_SUCH_COLUMN_IN_TABLE */
    {25, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_ESCAPE_SEQUENCE */
    {26, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_QUOTED_STRING */
    {27, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_INPUT_ASSERTION_FAILED */
    {32, CLASS_UPLOAD, NOTHING, 0},          /* ATTEMPT_TO_READ_AFTER_EOF */
    {33, CLASS_UPLOAD, NOTHING, 0},          /* CANNOT_READ_ALL_DATA */
    {38, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_DATE */
    {39, CLASS_UPLOAD, NOTHING, 0},          /* TOO_LARGE_SIZE_COMPRESSED */
    {40, CLASS_UPLOAD, NOTHING, 0},          /* CHECKSUM_DOESNT_MATCH */
    {41, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_DATETIME */
    {44, CLASS_SCHEMA, NOTHING, 0},          /* ILLEGAL_COLUMN */
    {48, CLASS_ENVIRONMENT, NOTHING, 0},     /* NOT_IMPLEMENTED: the engine takes no rows */
    {50, CLASS_SCHEMA, NOTHING, 0},          /* UNKNOWN_TYPE */
    {53, CLASS_SCHEMA, NOTHING, 0},          /* TYPE_MISMATCH */
    {60, CLASS_ENVIRONMENT, NOTHING, 0},     /* UNKNOWN_TABLE */
    {69, CLASS_DATA, NOTHING, 0},            /* ARGUMENT_OUT_OF_BOUND */
    {70, CLASS_SCHEMA, NOTHING, 0},          /* CANNOT_CONVERT_TYPE */
    {72, CLASS_DATA, NOTHING, 0},            /* CANNOT_PARSE_NUMBER */
    {75, CLASS_ENVIRONMENT, MAYBE, NO_ROOM}, /* CANNOT_WRITE_TO_FILE_DESCRIPTOR: its disk is full */
    {76, CLASS_ENVIRONMENT, MAYBE, 0},       /* CANNOT_OPEN_FILE: too many are open */
    {81, CLASS_ENVIRONMENT, NOTHING, 0},     /* UNKNOWN_DATABASE */
    {89, CLASS_UPLOAD, NOTHING, 0},          /* UNKNOWN_COMPRESSION_METHOD */
    {115, CLASS_ENVIRONMENT, NOTHING, 0},    /* UNKNOWN_SETTING */
    {117, CLASS_DATA, NOTHING, 0},           /* INCORRECT_DATA; see error_classify */
    {128, CLASS_DATA, NOTHING, 0},           /* TOO_LARGE_ARRAY_SIZE */
    {130, CLASS_DATA, NOTHING, 0},           /* CANNOT_READ_ARRAY_FROM_TEXT */
    {131, CLASS_DATA, NOTHING, 0},           /* TOO_LARGE_STRING_SIZE */
    {135, CLASS_DATA, NOTHING, 0},           /* ZERO_ARRAY_OR_TUPLE_INDEX */
    {153, CLASS_DATA, NOTHING, 0},           /* ILLEGAL_DIVISION */
    {159, CLASS_TRANSIENT, MAYBE, EARLIER},  /* TIMEOUT_EXCEEDED */
    {164, CLASS_ENVIRONMENT, NOTHING, 0},    /* READONLY */
    {173, CLASS_TOO_BIG, MAYBE, NO_ROOM},    /* CANNOT_ALLOCATE_MEMORY */
    {190, CLASS_DATA, NOTHING, 0},           /* SIZES_OF_ARRAYS_DONT_MATCH */
    {192, CLASS_ENVIRONMENT, NOTHING, 0},    /* UNKNOWN_USER */
    {193, CLASS_ENVIRONMENT, NOTHING, 0},    /* WRONG_PASSWORD */
    {194, CLASS_ENVIRONMENT, NOTHING, 0},    /* REQUIRED_PASSWORD */
    {195, CLASS_ENVIRONMENT, NOTHING, 0},    /* IP_ADDRESS_NOT_ALLOWED */
    {201, CLASS_ENVIRONMENT, NOTHING, 0},    /* QUOTA_EXPIRED */
    {202, CLASS_TRANSIENT, NOTHING, 0},      /* TOO_MANY_SIMULTANEOUS_QUERIES */
    {203, CLASS_TRANSIENT, NOTHING, 0},      /* NO_FREE_CONNECTION */
    {209, CLASS_TRANSIENT, MAYBE, EARLIER},  /* SOCKET_TIMEOUT */
    {210, CLASS_TRANSIENT, MAYBE, EARLIER},  /* NETWORK_ERROR */
    {216, CLASS_TRANSIENT, NOTHING, 0},      /* QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING */
    {218, CLASS_ENVIRONMENT, MAYBE, 0},      /* TABLE_IS_DROPPED */
    {225, CLASS_TRANSIENT, MAYBE, EARLIER | AWAY},  /* NO_ZOOKEEPER */
    {236, CLASS_TRANSIENT, MAYBE, EARLIER},         /* ABORTED */
    {241, CLASS_TOO_BIG, MAYBE, EARLIER | NO_ROOM}, /* MEMORY_LIMIT_EXCEEDED */
    {242, CLASS_TRANSIENT, MAYBE, EARLIER | AWAY},  /* TABLE_IS_READ_ONLY */
    {243, CLASS_ENVIRONMENT, MAYBE, NO_ROOM},       /* NOT_ENOUGH_SPACE */
    {252, CLASS_TRANSIENT, NOTHING, 0},             /* TOO_MANY_PARTS; see error_classify */
    {271, CLASS_UPLOAD, NOTHING, 0},                /* CANNOT_DECOMPRESS */
    {279, CLASS_TRANSIENT, MAYBE, EARLIER},         /* ALL_CONNECTION_TRIES_FAILED */
    {285, CLASS_TRANSIENT, MAYBE, EARLIER},         /* TOO_FEW_LIVE_REPLICAS */
    {286, CLASS_TRANSIENT, MAYBE, EARLIER},         /* UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE */
    {291, CLASS_ENVIRONMENT, NOTHING, 0},           /* DATABASE_ACCESS_DENIED */
    {307, CLASS_TOO_BIG, NOTHING, 0},               /* TOO_MANY_BYTES */
    {319, CLASS_TRANSIENT, MAYBE, EARLIER},         /* UNKNOWN_STATUS_OF_INSERT */
    {321, CLASS_DATA, NOTHING, 0},                  /* VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE */
    {349, CLASS_DATA, NOTHING, 0},                  /* CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN */
    {354, CLASS_UPLOAD, NOTHING, 0},                /* ZLIB_INFLATE_FAILED */
    {368, CLASS_SCHEMA, NOTHING, 0},                /* BAD_TYPE_OF_FIELD, 18.16's "Bad cast" */
    {376, CLASS_DATA, NOTHING, 0},                  /* CANNOT_PARSE_UUID */
    {394, CLASS_TRANSIENT, MAYBE, EARLIER},         /* QUERY_WAS_CANCELLED */
    {395, CLASS_DATA, NOTHING, 0},                  /* FUNCTION_THROW_IF_VALUE_IS_NON_ZERO */
    {407, CLASS_DATA, NOTHING, 0},                  /* DECIMAL_OVERFLOW */
    {425, CLASS_TRANSIENT, MAYBE, EARLIER},         /* SYSTEM_ERROR */
    {432, CLASS_UPLOAD, NOTHING, 0},                /* UNKNOWN_CODEC */
    {439, CLASS_TRANSIENT, MAYBE, EARLIER},         /* CANNOT_SCHEDULE_TASK */
    {441, CLASS_DATA, NOTHING, 0},                  /* CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING */
    {452, CLASS_ENVIRONMENT, NOTHING, 0},           /* SETTING_CONSTRAINT_VIOLATION */
    {467, CLASS_DATA, NOTHING, 0},                  /* CANNOT_PARSE_BOOL */
    {469, CLASS_DATA, NOTHING, 0},                  /* VIOLATED_CONSTRAINT */
    {473, CLASS_TRANSIENT, MAYBE, 0},       /* DEADLOCK_AVOIDED: a lock was waited for too long */
    {497, CLASS_ENVIRONMENT, NOTHING, 0},   /* ACCESS_DENIED */
    {516, CLASS_ENVIRONMENT, NOTHING, 0},   /* AUTHENTICATION_FAILED */
    {561, CLASS_UPLOAD, NOTHING, 0},        /* ZSTD_DECODER_FAILED */
    {618, CLASS_UPLOAD, NOTHING, 0},        /* LZ4_DECODER_FAILED */
    {675, CLASS_DATA, NOTHING, 0},          /* CANNOT_PARSE_IPV4 */
    {676, CLASS_DATA, NOTHING, 0},          /* CANNOT_PARSE_IPV6 */
    {691, CLASS_DATA, NOTHING, 0},          /* UNKNOWN_ELEMENT_OF_ENUM */
    {700, CLASS_TRANSIENT, NOTHING, 0},     /* USER_SESSION_LIMIT_EXCEEDED */
    {733, CLASS_TRANSIENT, MAYBE, 0},       /* TABLE_IS_BEING_RESTARTED */
    {745, CLASS_TRANSIENT, NOTHING, 0},     /* SERVER_OVERLOADED */
    {774, CLASS_ENVIRONMENT, NOTHING, 0},   /* TABLE_IS_PERMANENTLY_READ_ONLY */
    {999, CLASS_TRANSIENT, MAYBE, EARLIER}, /* KEEPER_EXCEPTION */
};

static const char *const names[CLASS_COUNT] = {
    [CLASS_NONE] = "none",     [CLASS_TRANSIENT] = "transient", [CLASS_UPLOAD] = "upload",
    [CLASS_SCHEMA] = "schema", [CLASS_TOO_BIG] = "too_big",     [CLASS_ENVIRONMENT] = "environment",
    [CLASS_DATA] = "data",     [CLASS_UNKNOWN] = "unknown",
};

static const struct error_class_override *overrides;
static size_t override_count;

const char *error_class_name(enum error_class c)
{
    assert(c >= 0 && c < CLASS_COUNT);
    return names[c];
}

int error_class_by_name(const char *name, enum error_class *out)
{
    for (int i = 0; i < CLASS_COUNT; i++) {
        if (strcmp(names[i], name) == 0) {
            *out = (enum error_class)i;
            return 0;
        }
    }
    return -1;
}

void error_class_set_overrides(const struct error_class_override *list, size_t count)
{
    overrides = list;
    override_count = count;
}

int error_code_parse(const char *text, size_t size)
{
    static const char mark[] = "Code: ";
    const size_t mark_size = sizeof(mark) - 1;

    for (size_t i = 0; i + mark_size < size; i++) {
        int code = 0;
        size_t at;
        if (memcmp(text + i, mark, mark_size) != 0)
            continue;
        for (at = i + mark_size; at < size && isdigit((unsigned char)text[at]); at++) {
            if (code > 99999)
                return 0;
            code = code * 10 + (text[at] - '0');
        }
        if (at > i + mark_size)
            return code;
    }
    return 0;
}

static const struct error_row *row_of(int code)
{
    size_t low = 0, high = sizeof(table) / sizeof(table[0]);

    while (low < high) {
        size_t mid = (low + high) / 2;
        if (table[mid].code == code)
            return &table[mid];
        if (table[mid].code < code)
            low = mid + 1;
        else
            high = mid;
    }
    return NULL;
}

/* No exception code: a proxy, a wrong address, a server that is going down. */
static enum error_class classify_status(int status)
{
    if (status == 0 || status == 408 || status == 429 || status >= 500)
        return CLASS_TRANSIENT;
    if (status >= 300)
        return CLASS_ENVIRONMENT;
    return CLASS_UNKNOWN;
}

enum error_class error_classify(int code, const char *text, int http_status, int native)
{
    const struct error_row *row;

    if (code <= 0)
        return classify_status(http_status);
    for (size_t i = 0; i < override_count; i++)
        if (overrides[i].code == code)
            return overrides[i].class_;
    if (!text)
        text = "";
    /* "Too many partitions for single INSERT block" is the table's key or its setting; "Too many
       parts (300). Merges are ..." and "Too many parts (9) in all partitions in total" pass. */
    if (code == 252 && strstr(text, "Too many partitions"))
        return CLASS_ENVIRONMENT;
    /* Native: the block's columns against the table's. JSON: a bad row, or a column that is gone. */
    if (code == 117 && (native || strstr(text, "nknown field")))
        return CLASS_SCHEMA;
    /* 18.16 says LOGICAL_ERROR where later versions say 691. */
    if (code == 49 && strstr(text, "Unknown element"))
        return CLASS_DATA;
    row = row_of(code);
    return row ? row->class_ : CLASS_UNKNOWN;
}

int error_may_be_of_a_row(int code, enum error_class class_)
{
    switch (class_) {
    case CLASS_DATA:
        return 1;
    case CLASS_UPLOAD: /* a value that is cut short, or the body is */
        return code == 3 || code == 32 || code == 33;
    case CLASS_SCHEMA:
        return code != 16 && code != 44 && code != 50;
    case CLASS_UNKNOWN:
        return code > 0 && code < 1000;
    default:
        return 0;
    }
}

static int has_more(int code, unsigned more)
{
    const struct error_row *row = row_of(code);
    return row && (row->more & more) != 0;
}

int error_is_before_commit(int code)
{
    return has_more(code, EARLIER);
}

int error_is_no_room(int code)
{
    return has_more(code, NO_ROOM);
}

int error_turns_away(int code, enum error_class class_)
{
    return class_ == CLASS_ENVIRONMENT || has_more(code, AWAY);
}

int error_is_no_table(int code)
{
    return code == 60 || code == 81;
}

int error_is_of_rights(int code)
{
    return code == 497 || code == 291;
}

const char *error_question_advice(int code)
{
    switch (code) {
    case 158: /* TOO_MANY_ROWS */
        return "the question reads more rows than max_rows_to_read lets spoold's user read";
    case 160: /* TOO_SLOW */
        return "the question is slower than max_execution_time and min_execution_speed of spoold's "
               "user allow";
    case 173: /* CANNOT_ALLOCATE_MEMORY */
    case 241: /* MEMORY_LIMIT_EXCEEDED */
        return "the server or max_memory_usage of spoold's user has too little memory for the "
               "question";
    case 307: /* TOO_MANY_BYTES */
        return "the question reads more bytes than max_bytes_to_read lets spoold's user read";
    case 396: /* TOO_MANY_ROWS_OR_BYTES */
        return "the answer is larger than max_result_rows or max_result_bytes of spoold's user";
    default:
        return "";
    }
}

int error_is_of_view(const char *text)
{
    return text && strstr(text, "pushing to view") != NULL;
}

int error_is_before_view(int code, const char *text)
{
    return code == 252 && error_is_of_view(text) && strstr(text, "Too many parts") &&
           !strstr(text, "e.displayText()");
}

int error_proves_nothing_stored(int code, const char *text)
{
    const struct error_row *row = row_of(code);

    if (!text)
        text = "";
    /* A shard's words, passed on: others may have stored their part. */
    if (error_is_of_view(text) || strstr(text, "Received from "))
        return 0;
    if (code == 49 && strstr(text, "Unknown element"))
        return 1;
    return row && row->proof == NOTHING;
}
