"""What the tests of the catalogue ask of a fleet, and do to its processes."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
from apps import jobs
from fleet import Fleet, starts, wait_until


def serves() -> bool:
    """Whether the fleet of `jobs.q` runs jobs and answers."""
    assert list(jobs.add.map(range(20), timeout=15)) == list(range(1, 21))
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process took the SIGSTOP that it was sent."""
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def stop_process(fleet: Fleet, pid: int) -> None:
    """Sends SIGSTOP and waits until it holds."""
    fleet.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), f"process {pid} stopped")


def counted(path: Path) -> dict[str, int]:
    """How often each label was recorded."""
    labels = [start.label for start in starts(path)]
    return {label: labels.count(label) for label in labels}
