/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a server's answer to an insert: read without harm, and classed. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "sink/error_class.h"
#include "sink/sql_text.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    int code = error_code_parse((const char *)data, size);

    assert(text);
    memcpy(text, data, size);
    text[size] = 0;
    assert(code >= 0);
    for (int status = 0; status <= 500; status += 100) {
        enum error_class class_ = error_classify(code, text, status, size & 1);
        assert(class_ < CLASS_COUNT && error_class_name(class_));
    }
    (void)error_proves_nothing_stored(code, text);
    free(text);
    return 0;
}
