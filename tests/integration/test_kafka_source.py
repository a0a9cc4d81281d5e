# SPDX-License-Identifier: Apache-2.0
"""The unit tests of the Kafka source that need a real broker, under the sanitizers."""
import os
import subprocess


def test_kafka_real(kafka):
    done = subprocess.run([os.path.join(os.environ["UNIT_DIR"], "test_kafka_real")],
                          env={**os.environ, "KAFKA_BROKERS": kafka.brokers}, timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "SKIPPED" not in done.stdout, done.stdout
