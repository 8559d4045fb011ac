"""The jobs that `taskq bench` measures."""

from __future__ import annotations

import time
from pathlib import Path

from taskq import TaskQ


def noop(_number: int) -> None:
    """Does nothing."""


def burn(milliseconds: float) -> None:
    """Uses a core for some time, by the clock of its own thread: what others take of the core does not count."""
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass


def echo(data: bytes) -> bytes:
    """Returns what it got."""
    return data


def take(_data: bytes) -> None:
    """Gets something, and returns nothing."""


def mark(path: str) -> None:
    """Makes a file: whoever looks for it learns of the job sooner than from a broker that has just started."""
    Path(path).touch()


def fail() -> None:
    """Fails."""
    raise RuntimeError("as it was told to")


class BenchApp:
    """A TaskQ with these jobs.

    Args:
        path: its directory, or the URL of a database; None for that of the environment, as in the consumers of a fleet.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.q = TaskQ("bench", url=None if path is None else str(path))
        self.noop = self.q.task(noop)
        self.burn = self.q.task(burn)
        self.echo = self.q.task(echo)
        self.take = self.q.task(take)
        self.mark = self.q.task(mark)
        self.fail = self.q.task(retries=0)(fail)


q = BenchApp().q
