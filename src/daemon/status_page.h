/* SPDX-License-Identifier: Apache-2.0 */
/* The page at /: all in one text, so that it works without the Internet. It polls /status. */
#ifndef DAEMON_STATUS_PAGE_H
#define DAEMON_STATUS_PAGE_H

extern const char STATUS_PAGE[];

/* Content-Security-Policy: nothing from anywhere but what stands in the page. */
#define STATUS_PAGE_POLICY                                                                         \
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src "      \
    "'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

#endif
