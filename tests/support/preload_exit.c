/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: a process that ends by exit(), and so runs the handlers of its libraries while its other
 * threads go on, ends with EXIT_HANDLERS_RAN; one that ends by _exit() does as it would.
 */
#include <unistd.h>

#define EXIT_HANDLERS_RAN 99

__attribute__((destructor)) static void handlers_ran(void)
{
    _exit(EXIT_HANDLERS_RAN);
}
