"""The progress of running jobs: sent to the broker by their consumer now and then, and never stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from taskq.model.job import Progress

#: A consumer reports the progress of its jobs at most once in this time; of what comes in between, the latest counts.
TELL_EVERY_S = 0.1


class Reporter:
    """Sends the latest progress of each job, in a thread of its own: a job that reports each step is not slowed down,
    and its time limit cannot interrupt a message."""

    def __init__(self, send: Callable[[list[tuple[bytes, Progress]]], None]) -> None:
        self._send = send
        self._latest: dict[bytes, Progress] = {}  # by job; each assignment is atomic
        self._wake: SimpleQueue[None] = SimpleQueue()  # has no lock that an interrupted job could leave locked
        self._is_started = False

    def tell(self, job_id: bytes, progress: Progress) -> None:
        """Notes how far a job is."""
        self._latest[job_id] = progress
        if self._wake.empty():
            self._wake.put(None)
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._run, name="taskq-progress", daemon=True).start()

    def forget(self, job_id: bytes) -> None:
        """A job has ended: drops what was not sent yet."""
        self._latest.pop(job_id, None)

    def _run(self) -> None:
        while True:
            self._wake.get()
            told = [(job_id, self._latest.pop(job_id, None)) for job_id in list(self._latest)]
            try:
                self._send([(job_id, progress) for job_id, progress in told if progress is not None])
            except OSError:
                return  # the broker is gone, and this process ends in a moment
            time.sleep(TELL_EVERY_S)
