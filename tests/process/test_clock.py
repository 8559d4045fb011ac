"""A clock that shows a time before 1970, or far in the future: a clear end for who enqueues, and for a fleet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import JOBS

from taskq.model.exits import Exit
from taskq.model.job import check_clock, first_id_at
from taskq.system.directory import Directory

APP = str(Path(JOBS.partition(":")[0]).parents[1])
#: Sets the clock of a process, before anything else runs in it.
CLOCK = """
import time
_time, _time_ns, _offset_s = time.time, time.time_ns, int({offset_s})
time.time = lambda: _time() + _offset_s
time.time_ns = lambda: _time_ns() + _offset_s * 10**9
"""


@pytest.mark.parametrize("offset_s", [-3_000_000_000, 400_000_000_000])
def test_a_clock_that_is_wrong_is_reported(home: Path, tmp_path: Path, offset_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(offset_s=offset_s))
    environment = {**os.environ, "TASKQ_URL": str(home), "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    code = f"""
import asyncio, sys
sys.path.insert(0, {APP!r})
from apps import jobs
from taskq import TaskQ
from taskq.model.errors import ConfigError
jobs.q.use_directory(TaskQ("x").directory)
calls = [lambda: jobs.add.enqueue(1), lambda: jobs.add.enqueue_many([(1,), (2,)]), lambda: list(jobs.add.map([1])),
    lambda: asyncio.run(jobs.add.aenqueue(1)), lambda: jobs.add.options(delay=5).enqueue(1),
    lambda: jobs.add.options(expires=5).enqueue(1), lambda: jobs.add.options(unique=True).enqueue(1)]
for call in calls:
    try:
        call()
    except ConfigError as error:
        assert "the clock of this machine is wrong" in str(error), error
    else:
        raise SystemExit("it was accepted")
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert not list(home.glob("spool/*"))
    done = run("-m", "taskq", "worker", JOBS, "--drain", "--consumers", "1")
    assert done.returncode == Exit.JOURNAL, done.stderr
    assert "the clock of this machine is wrong" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Directory(home).journal.exists()


def test_ids_of_any_time() -> None:
    for at in (-1e12, -1.0, 0.0, 1e9, 1e12, 1e300):
        assert len(first_id_at(at)) == 16
    assert first_id_at(-1.0) == first_id_at(0.0) < first_id_at(1.0) < first_id_at(1e12)
    check_clock(1e9)
