"""Tasks with large arguments and results; and a client and consumers that die, or stop, when they have written one.

Run as a program, it is a client: `large.py HOME MOMENT` enqueues one job with large arguments.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskq import TaskQ, current_job
from taskq.protocol.payloads.filed import FiledPayload
from taskq.protocol.payloads.files import PayloadFiles

#: The size of a large array.
COUNT = 50_000

q = TaskQ("large")


@q.task
def total(values: Any) -> float:
    return float(np.sum(values))


@q.task
async def total_async(values: Any) -> float:
    return float(np.sum(values))


@q.task
def echo(value: Any) -> Any:
    return value


@q.task
async def echo_async(value: Any) -> Any:
    return value


@q.task
def length(value: Any) -> int:
    return len(value)


@q.task
def change(values: Any) -> Any:
    values[0] = 7.0
    return values


@q.task(retries=0)
def fail_unless(path: str, values: Any) -> float:
    if not Path(path).exists():
        raise ValueError("not yet")
    return float(np.sum(values))


@q.task
def enqueue_others(count: int) -> None:
    values = np.empty(COUNT)
    for number in range(count):
        values[:] = number
        total.options(on_success=True).enqueue(values)


@q.task
def kill_once_after_the_result(marker: str) -> Any:
    """Kills its process when the file of its result is written, the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        after_writing(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return np.full(COUNT, current_job().attempt)


@q.task
def syncs_files() -> bool:
    """Whether the files of large results are synced here."""
    return q.payloads.syncs


@q.task(retries=0)
def result_on_a_full_disk() -> Any:
    """Returns what is larger than a file of its process may be."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))
    return bytes(2 * 1024 * 1024)


def after_writing(action: Callable[[], object]) -> None:
    """Has a function called when this process has written the file of a payload."""
    write = PayloadFiles.write

    def written(self: PayloadFiles, payloads: Sequence[FiledPayload], syncs: bool | None = None) -> None:
        write(self, payloads, syncs)
        if payloads:
            action()

    PayloadFiles.write = written  # type: ignore[method-assign]


if __name__ == "__main__":
    from taskq.system.directory import Directory

    q.use_directory(Directory(Path(sys.argv[1])))
    number = getattr(signal, sys.argv[2])
    after_writing(lambda: os.kill(os.getpid(), number))
    try:
        print(total.enqueue(np.ones(COUNT)).id)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
