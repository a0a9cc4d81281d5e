/* SPDX-License-Identifier: Apache-2.0 */
/* Any text as a type: what parses formats to a spelling that parses to the same type. */
#include <assert.h>

#include "base/limits.h"
#include "codec/type.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct type *type = NULL, *again = NULL, *copy = NULL;
    struct spool_error error = {0};
    struct buf text;

    if (type_parse((const char *)data, size, &type, &error) != SPOOL_OK) {
        assert(!type && error.text[0]);
        return 0;
    }
    buf_init(&text, 64 * LIMIT_TYPE_TEXT_BYTES);
    assert(type_format(type, &text) == SPOOL_OK);
    if (text.len <= LIMIT_TYPE_TEXT_BYTES) {
        assert(type_parse((const char *)text.data, text.len, &again, &error) == SPOOL_OK);
        assert(type_equal(type, again));
    }
    assert(type_copy(type, &copy) == SPOOL_OK && type_equal(type, copy));
    assert(type_is_native(type) == type_is_native(copy));
    type_free(copy);
    type_free(again);
    type_free(type);
    buf_free(&text);
    return 0;
}
