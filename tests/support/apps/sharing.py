"""A job that shares a lock with other processes of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from taskq import TaskQ

q = TaskQ("sharing")


@q.task(retries=0, max_crashes=1)
def leave_a_semaphore(told: str) -> None:
    """Makes a lock that other processes could open by its name, and dies."""
    lock: Any = multiprocessing.get_context("spawn").Lock()
    Path(told).write_text(lock._semlock.name)
    os.kill(os.getpid(), signal.SIGKILL)
