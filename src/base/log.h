/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structured log lines: an event name and key/value pairs, as text or as one JSON object a line.
 * base does no I/O, so the line goes to a writer that the daemon installs. Library code (codec,
 * spool) never logs. Loop thread only.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_DEBUG = 0, LOG_INFO = 1, LOG_WARN = 2, LOG_ERROR = 3 };
enum log_format { LOG_TEXT = 0, LOG_JSON = 1 };

/* Where finished lines go (with their newline). Default: nowhere. */
void log_set_writer(void (*write)(void *arg, const char *line, size_t n), void *arg);
void log_set_level(enum log_level level);
void log_set_format(enum log_format format);
bool log_enabled(enum log_level level);

/*
 * One line: log_event(LOG_WARN, "stream.held", "stream", name, "reason", why, NULL).
 * All arguments after event are `const char *` pairs, key then value, ended by NULL; a NULL value
 * prints as empty. event is "noun.verb", lower case. Values are quoted where they need to be.
 */
void log_event(enum log_level level, const char *event, ...) __attribute__((sentinel));

/*
 * A gate for faults that repeat: true at most once per interval_ms, and *suppressed then tells how
 * many were held back since (log it). Zero-initialise; one gate per place and object.
 */
struct log_gate {
    uint64_t next_ms;
    uint64_t held_back;
};
bool log_gate_open(struct log_gate *gate, uint64_t interval_ms, uint64_t *suppressed);

/* Decimal text of a number, valid until the 8th next call (a ring of static buffers). */
const char *log_u64(uint64_t v);
const char *log_i64(int64_t v);

#endif
