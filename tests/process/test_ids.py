"""What is made up in several processes: ids that differ, and delays that do not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from taskq.model.job import backoff_s, new_job_ids

pytestmark = pytest.mark.not_on_postgres("no queue is asked")


def test_ids_of_several_processes_are_unique() -> None:
    """Two processes that make ids at the same time make different ones, a forked one included."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"".join(new_job_ids(100)))
        os._exit(0)
    mine = set(new_job_ids(100))
    os.waitpid(pid, 0)
    data = os.read(reader, 1_600)
    os.close(reader)
    os.close(writer)
    assert not mine & {data[start : start + 16] for start in range(0, 1_600, 16)}


def test_delays_are_the_same_in_every_process() -> None:
    """They do not depend on the hash seed: a restarted broker decides the same."""
    code = "from taskq.model.job import backoff_s; print(backoff_s(b'0123456789abcdef', 3))"
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment, timeout=120)
    assert float(told.stdout) == backoff_s(b"0123456789abcdef", 3)
