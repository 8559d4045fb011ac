"""The outcomes of a consumer's attempts: collected in shared memory, and sent to the broker together over a socket.

Outcomes wait a moment, so that one message, one commit and one sync carry many. If the process dies meanwhile, the
broker reads the waiting ones from the memory, which outlives its writer: no attempt that has ended runs again because a
later one killed the process.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from taskq.client.reports import Reporter
from taskq.model.job import Progress
from taskq.protocol.link.reports import (
    checkpoint_frame,
    children_frames,
    declared_frame,
    items_frame,
    outcomes_frame,
    progress_frame,
    ready_frame,
)
from taskq.protocol.link.unsent import Unsent
from taskq.protocol.submissions import Flow

#: Outcomes are sent after this time at the latest, earlier when their memory is full, and at once when there is nothing
#: else to do. A commit and its sync cost the broker about 0.2 ms of CPU: reporting 2 ms jobs one by one would take a
#: tenth of a core from them.
_REPORT_AFTER_S = 0.020
#: Items of a generator are sent when this number waits, or this number of bytes.
_ITEMS_COUNT = 500
_ITEMS_BYTES = 256 * 1024


class Outbox:
    """The consumer's side. Used by all threads that run jobs, and by the thread that reports late."""

    def __init__(self, connection: socket.socket, unsent: Unsent, check: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            check: called before something is sent; it does not return if the connection is not there any more.
        """
        self._socket = connection
        self._check = check
        self._unsent = unsent
        self._lock = threading.Lock()
        self._oldest_at = 0.0  # when the oldest unsent outcome, or item, was made
        self._items: dict[bytes, tuple[int, list[bytes]]] = {}  # by job: the position of the first, and they
        self._items_bytes = 0
        self._has_some = threading.Event()
        self.reporter = Reporter(self._send_progress)

    def add(self, number: int, verdict: int, duration_s: float, outcome: bytes, now: float) -> None:
        """Takes an outcome, which outlives this process from now on. It is sent now or later."""
        duration_us = int(duration_s * 1e6)
        with self._lock:
            if self._items:
                self._send_items()  # before the end of their job
            count = self._unsent.add(number, verdict, duration_us, outcome)
            if count == 0:
                self._send_unsent()
                count = self._unsent.add(number, verdict, duration_us, outcome)
            if count == 0:  # it is larger than the memory
                self._transmit(outcomes_frame([number], [verdict], [duration_us], [len(outcome)], [outcome]))
            elif count == 1:
                self._oldest_at = now
                self._has_some.set()
            elif now - self._oldest_at >= _REPORT_AFTER_S:
                self._send_unsent()

    def add_item(self, job_id: bytes, position: int, item: bytes) -> None:
        """Takes what a generator has yielded. It is sent now or later, but always before the outcome of its job."""
        with self._lock:
            if self._items_bytes + len(item) > _ITEMS_BYTES:
                self._send_items()  # so that one of the largest size still fits into a frame
            if not self._items and self._unsent.is_empty():
                self._oldest_at = time.monotonic()
                self._has_some.set()
            _, items = self._items.setdefault(job_id, (position, []))
            items.append(item)
            self._items_bytes += len(item)
            if len(items) == _ITEMS_COUNT:
                self._send_items()

    def add_children(self, number: int, flow: Flow) -> None:
        """Sends what a job has enqueued with ``on_success=True``. The job's outcome is added after that."""
        with self._lock:
            for frame in children_frames(number, flow):
                self._transmit(frame)

    def _send_items(self) -> None:
        for job_id, (first, items) in self._items.items():
            self._transmit(items_frame(job_id, first, items))
        self._items.clear()
        self._items_bytes = 0

    def _transmit(self, frame: bytes) -> None:
        self._check()
        self._socket.sendall(frame)

    def report(self) -> bool:
        """Sends what waits. Returns whether there was anything, so that the descriptors were checked."""
        with self._lock:
            return self._send_unsent()

    def _send_unsent(self) -> bool:
        has_some = bool(self._items) or not self._unsent.is_empty()
        if self._items:
            self._send_items()
        if not self._unsent.is_empty():
            self._transmit(self._unsent.frame())
            self._unsent.clear()
        return has_some

    def report_late(self) -> None:
        """A thread: sends outcomes that wait behind a long job."""
        try:
            while True:
                self._has_some.wait()
                while wait_s := self.send_overdue(time.monotonic()):
                    time.sleep(wait_s)
        except OSError:
            return  # the broker is gone, and this process ends in a moment

    def send_overdue(self, now: float) -> float:
        """Sends what has waited for long enough.

        While jobs end one after the other, only its own sleep wakes the thread that calls this: being woken for each
        report, too, would take Python's lock from the running job once more.

        Args:
            now: the time (monotonic).

        Returns:
            In how many seconds to call this again; 0 for when there is something to send again.
        """
        with self._lock:
            if self._items or not self._unsent.is_empty():
                due_at = self._oldest_at + _REPORT_AFTER_S
                if now < due_at:
                    return due_at - now
                self._send_unsent()
            if now < self._oldest_at + 2 * _REPORT_AFTER_S:
                return _REPORT_AFTER_S  # what comes meanwhile is not due before that
            self._has_some.clear()
            return 0.0

    def announce(self, app: str, schedules: Sequence[bytes], tasks: Iterable[str]) -> None:
        """Tells which schedules and tasks the application's code has, and that this consumer is ready for jobs."""
        self.send(declared_frame(app, schedules))
        self.send(ready_frame(os.getpid(), tasks))

    def answer(self) -> None:
        """Answers an empty batch, which shows that this consumer is alive and not stopped."""
        self.send(outcomes_frame([], [], [], [], []))

    def send(self, frame: bytes) -> None:
        """Sends one report at once."""
        with self._lock:
            self._transmit(frame)

    def send_checkpoint(self, job_id: bytes, checkpoint: bytes) -> None:
        """Sends the checkpoint of a job. What the kernel has taken reaches the broker even if this process dies."""
        self.send(checkpoint_frame(job_id, checkpoint))

    def _send_progress(self, told: list[tuple[bytes, Progress]]) -> None:
        if told:
            self.send(progress_frame(told))
