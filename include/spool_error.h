/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors of libspool and of spoold: one negative number for code, and an object with a sentence
 * where a person has to act on it.
 */
#ifndef SPOOL_ERROR_H
#define SPOOL_ERROR_H

#ifdef __cplusplus
extern "C" {
#endif

enum spool_status {
    SPOOL_OK = 0,
    SPOOL_E_NOMEM = -1,        /* an allocation failed */
    SPOOL_E_INVALID = -2,      /* an argument, option or config value is not acceptable */
    SPOOL_E_SYNTAX = -3,       /* text that does not parse (config, JSON, a type name) */
    SPOOL_E_IO = -4,           /* a system call failed; sys_errno tells which way */
    SPOOL_E_FULL = -5,         /* no room on disk or within a bound; nothing was changed */
    SPOOL_E_LOCKED = -6,       /* another process holds the spool */
    SPOOL_E_CORRUPT = -7,      /* a file's content fails its checks */
    SPOOL_E_NEWER = -8,        /* written by a newer version than this one */
    SPOOL_E_NOT_FOUND = -9,    /* no such stream, block, file, key */
    SPOOL_E_EXISTS = -10,      /* already there */
    SPOOL_E_LIMIT = -11,       /* a stated maximum would be exceeded */
    SPOOL_E_REFUSED = -12,     /* a record does not fit its schema */
    SPOOL_E_UNSUPPORTED = -13, /* understood, but not possible here */
    SPOOL_E_FATAL = -14,       /* durability is in doubt: the process must stop promising */
    SPOOL_E_TIMEOUT = -15,     /* gave up waiting */
    SPOOL_E_CANCELLED = -16,   /* ended on request */
    SPOOL_E_END = -17,         /* nothing further */
};

#define SPOOL_ERROR_TEXT_BYTES 512

/* Filled by the callee on failure, never read by it. text is always NUL-terminated. */
struct spool_error {
    int status;    /* enum spool_status */
    int sys_errno; /* errno, or an LMDB code, or 0 */
    char text[SPOOL_ERROR_TEXT_BYTES];
};

/* A few words for a status; never NULL. */
const char *spool_strerror(int status);

/*
 * Fills *error (may be NULL) with a formatted sentence and returns status, so that a failing
 * function ends with `return spool_error_set(error, SPOOL_E_..., "...")`.
 */
int spool_error_set(struct spool_error *error, int status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* As spool_error_set, with ": <strerror(sys_errno)>" appended and sys_errno kept. */
int spool_error_set_errno(struct spool_error *error, int status, int sys_errno, const char *format,
                          ...) __attribute__((format(printf, 4, 5)));

#ifdef __cplusplus
}
#endif

#endif
