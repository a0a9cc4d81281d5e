/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/decode_int.h"

int decoder_line(struct decoder *d, const uint8_t *begin)
{
    (void)d;
    (void)begin;
    return SPOOL_E_UNSUPPORTED;
}
