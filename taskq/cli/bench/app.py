"""The jobs of `taskq bench`."""

from __future__ import annotations

import os
import time

from taskq import TaskQ

q = TaskQ("bench")


@q.task
def noop(_number: int) -> None:
    """Does nothing."""


@q.task
def burn(milliseconds: float) -> None:
    """Keeps a core busy."""
    burn_here(milliseconds)


@q.task
def pid() -> int:
    """Returns the process id of the consumer."""
    return os.getpid()


def burn_here(milliseconds: float) -> None:
    """The same for a process pool."""
    end = time.perf_counter() + milliseconds / 1000
    while time.perf_counter() < end:
        pass


def nothing(_number: int) -> None:
    """Does nothing, for a process pool."""
