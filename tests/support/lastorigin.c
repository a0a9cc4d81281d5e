/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gives away the last id an origin may have, in the meta.mdb of a spool that nobody uses:
 *
 *   lastorigin FILE
 */
#include <errno.h>
#include <stdio.h>

#include "spool/spool_int.h"

int main(int argc, char **argv)
{
    static const char key[] = "made/last\0\0\0\0\1"; /* the name, 0, epoch 1 */
    uint8_t id_be[4], id_le[4],
        body[4 + 9] = {1, 0, 0, 0, 'm', 'a', 'd', 'e', '/', 'l', 'a', 's', 't'};
    MDB_env *env = NULL;
    MDB_txn *txn = NULL;
    MDB_dbi origins, names;
    int rc = argc == 2 ? env_open(argv[1], 0, 64 << 20, &env) : EINVAL;

    put_be32(id_be, ORIGINS_CHUNK * ORIGINS_CHUNKS);
    put_le32(id_le, ORIGINS_CHUNK * ORIGINS_CHUNKS);
    if (!rc)
        rc = mdb_txn_begin(env, NULL, 0, &txn);
    if (!rc)
        rc = mdb_dbi_open(txn, "origins", 0, &origins);
    if (!rc)
        rc = mdb_dbi_open(txn, "origin_names", 0, &names);
    if (!rc)
        rc = record_put(txn, origins, RECORD_ORIGIN, id_be, 4, body, sizeof(body), 0);
    if (!rc)
        rc = record_put(txn, names, RECORD_ORIGIN_NAME, key, sizeof(key) - 1, id_le, 4, 0);
    if (!rc)
        rc = mdb_txn_commit(txn);
    if (rc) {
        fprintf(stderr, "lastorigin: %s\n", mdb_strerror(rc));
        return 1;
    }
    mdb_env_close(env);
    return 0;
}
