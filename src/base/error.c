/* SPDX-License-Identifier: Apache-2.0 */
#include "spool_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *spool_strerror(int status)
{
    switch (status) {
    case SPOOL_OK:
        return "ok";
    case SPOOL_E_NOMEM:
        return "out of memory";
    case SPOOL_E_INVALID:
        return "invalid argument";
    case SPOOL_E_SYNTAX:
        return "syntax error";
    case SPOOL_E_IO:
        return "input/output error";
    case SPOOL_E_FULL:
        return "full";
    case SPOOL_E_LOCKED:
        return "locked by another process";
    case SPOOL_E_CORRUPT:
        return "corrupt";
    case SPOOL_E_NEWER:
        return "written by a newer version";
    case SPOOL_E_NOT_FOUND:
        return "not found";
    case SPOOL_E_EXISTS:
        return "exists already";
    case SPOOL_E_LIMIT:
        return "over a limit";
    case SPOOL_E_REFUSED:
        return "refused";
    case SPOOL_E_UNSUPPORTED:
        return "unsupported";
    case SPOOL_E_FATAL:
        return "durability in doubt";
    case SPOOL_E_TIMEOUT:
        return "timed out";
    case SPOOL_E_CANCELLED:
        return "cancelled";
    case SPOOL_E_END:
        return "end";
    default:
        return "unknown status";
    }
}

int spool_error_set(struct spool_error *error, int status, const char *format, ...)
{
    if (error) {
        va_list args;
        error->status = status;
        error->sys_errno = 0;
        va_start(args, format);
        vsnprintf(error->text, sizeof(error->text), format, args);
        va_end(args);
    }
    return status;
}

int spool_error_set_errno(struct spool_error *error, int status, int sys_errno, const char *format,
                          ...)
{
    if (error) {
        va_list args;
        size_t used;
        error->status = status;
        error->sys_errno = sys_errno;
        va_start(args, format);
        vsnprintf(error->text, sizeof(error->text), format, args);
        va_end(args);
        used = strlen(error->text);
        snprintf(error->text + used, sizeof(error->text) - used, ": %s", strerror(sys_errno));
    }
    return status;
}
