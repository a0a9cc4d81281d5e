/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a file of a spool look as a newer version would have written it:
 *
 *   newer FILE    meta.mdb, dead.mdb or a segment
 */
#include <errno.h>
#include <stdio.h>

#include "spool/spool_int.h"

int main(int argc, char **argv)
{
    const uint8_t version[4] = {SPOOL_FORMAT_VERSION + 1};
    MDB_env *env = NULL;
    MDB_txn *txn = NULL;
    MDB_dbi dbi;
    int rc = argc == 2 ? env_open(argv[1], 0, 64 << 20, &env) : EINVAL;

    if (!rc)
        rc = mdb_txn_begin(env, NULL, 0, &txn);
    if (!rc)
        rc = mdb_dbi_open(txn, "info", 0, &dbi);
    if (!rc)
        rc = record_put(txn, dbi, RECORD_INFO, "version", 7, version, sizeof(version), 0);
    if (!rc)
        rc = mdb_txn_commit(txn);
    if (rc) {
        fprintf(stderr, "newer: %s\n", mdb_strerror(rc));
        return 1;
    }
    mdb_env_close(env);
    return 0;
}
