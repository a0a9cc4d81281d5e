/* SPDX-License-Identifier: Apache-2.0 */
/* Any text as a configuration: taken, or refused with a sentence that names the place. */
#include <assert.h>
#include <string.h>

#include "daemon/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config *config = NULL;
    struct spool_error error = {0};
    int status = config_parse("spoold.json", (const char *)data, size, &config, &error);

    assert((status == SPOOL_OK) == (config != NULL));
    if (status != SPOOL_OK && status != SPOOL_E_NOMEM)
        assert(strncmp(error.text, "spoold.json", 11) == 0);
    config_free(config);
    return 0;
}
