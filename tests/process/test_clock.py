"""A clock that shows a time before 1970, or far in the future: a clear end for whoever enqueues, and for a fleet."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgpack
import pytest
from apps import jobs
from fleet import JOBS
from wrong_clock import WrongClock

from taskq.model.errors import ConfigError
from taskq.model.exits import Exit
from taskq.model.job import check_clock, first_id_at
from taskq.model.settings import Settings
from taskq.system.directory import Directory

SUPPORT = Path(__file__).parents[1] / "support"
WRONG = pytest.mark.parametrize("offset_s", [-3_000_000_000, 400_000_000_000])
#: A broker as the guardian starts it, but with another clock.
BROKER = f"""
import sys
sys.path.append({str(SUPPORT)!r})
from wrong_clock import WrongClock
from taskq.broker.process import main
main(int(sys.argv[1]), WrongClock(int(sys.argv[2])))
"""


@WRONG
@pytest.mark.parametrize(
    "enqueue",
    [
        lambda: jobs.add.enqueue(1, 2),
        lambda: jobs.add.enqueue_many([(1, 2), (3, 4)]),
        lambda: list(jobs.add.starmap([(1, 2)])),
        lambda: asyncio.run(jobs.add.aenqueue(1, 2)),
        lambda: jobs.add.options(delay=5).enqueue(1, 2),
        lambda: jobs.add.options(expires=5).enqueue(1, 2),
        lambda: jobs.add.options(unique=True).enqueue(1, 2),
    ],
    ids=["enqueue", "enqueue_many", "starmap", "aenqueue", "delay", "expires", "unique"],
)
def test_nobody_enqueues_by_a_clock_that_is_wrong(
    home: Path, offset_s: int, enqueue: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.q, "clock", WrongClock(offset_s))
    with pytest.raises(ConfigError, match="the clock of this machine is wrong"):
        enqueue()
    assert not list(home.glob("spool/*"))


@pytest.mark.not_on_postgres("it starts a broker in a directory")
@WRONG
def test_a_broker_does_not_start_by_a_clock_that_is_wrong(home: Path, offset_s: int) -> None:
    """It makes no journal, and says why: to people in one line, and to the guardian, which ends with that exit code."""
    Directory(home).create()
    guardian, broker = socket.socketpair()
    with guardian, broker:
        guardian.send(msgpack.packb([JOBS, "tests", str(home), None, asdict(Settings(consumers=1)), os.getpid()]))
        done = subprocess.run(
            [sys.executable, "-c", BROKER, str(broker.fileno()), str(offset_s)],
            pass_fds=[broker.fileno()],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        what, code, message = msgpack.unpackb(guardian.recv(1 << 16))
    assert (what, code, done.returncode) == ("failed", Exit.JOURNAL, Exit.JOURNAL)
    assert message.startswith("the clock of this machine is wrong")
    assert done.stderr.splitlines()[-1] == f"taskq: {message}"
    assert "Traceback" not in done.stderr
    assert not Directory(home).journal.exists()


def test_ids_of_any_time() -> None:
    for at in (-1e12, -1.0, 0.0, 1e9, 1e12, 1e300):
        assert len(first_id_at(at)) == 16
    assert first_id_at(-1.0) == first_id_at(0.0) < first_id_at(1.0) < first_id_at(1e12)
    check_clock(1e9)
