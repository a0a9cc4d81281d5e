/* SPDX-License-Identifier: Apache-2.0 */
/* Files under tests/data for the unit tests, which run in the source tree's root. */
#ifndef UNIT_DATA_H
#define UNIT_DATA_H

#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"

/* The whole file with a NUL behind it (not counted). Ends the test program when it is not there. */
static inline struct buf unit_data(const char *name)
{
    char path[512];
    struct buf b;
    FILE *file;
    int c;

    snprintf(path, sizeof(path), "tests/data/%s", name);
    file = fopen(path, "rb");
    if (!file) {
        perror(path);
        exit(1);
    }
    buf_init(&b, 64u << 20);
    while ((c = getc(file)) != EOF)
        if (buf_put_u8(&b, (uint8_t)c) != SPOOL_OK)
            exit(1);
    fclose(file);
    if (!buf_cstr(&b))
        exit(1);
    return b;
}

#endif
