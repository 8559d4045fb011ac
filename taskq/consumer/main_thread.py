"""The executor of a consumer with one slot: the main thread waits for a batch, runs its jobs, and waits again.

A time limit or a cancel arrives as a signal, and its handler raises an exception in the job's code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from taskq.client.context import RunningJob, this_process
from taskq.consumer.leases import Leases
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.runner import Runner
from taskq.model.errors import JobTimeout
from taskq.protocol.link.boot import STOP
from taskq.protocol.link.inbox import InboxReader


class _Stop(BaseException):
    """Interrupts the wait for a batch."""


class SignalledJob(RunningJob):
    """A job whose code runs in the main thread, where a signal handler can raise an exception in it."""

    # written by the job's thread, read by the signal handler, which runs in the same thread
    is_open = False  # whether the job's own code runs
    _is_sending = False  # whether it is in the middle of a message
    _late: JobTimeout | None = None  # what the handler leaves to be raised after that message

    def run_code(self, call: Callable[..., Any], task: Any, args: Any, kwargs: Any) -> Any:
        """Runs the job's own code, which alone the signal handler interrupts."""
        self.is_open = True
        try:
            return call(self, task, args, kwargs)
        finally:
            self.is_open = False

    def close(self) -> None:
        """Makes sure that nothing is interrupted any more."""
        self.is_open = False

    def interrupt_code(self, timeout: JobTimeout) -> None:
        """Raises in the job's code, from a signal handler; in the middle of a message, leaves it for after that."""
        if self._is_sending:
            self._late = timeout
        else:
            raise timeout

    def uninterrupted(self, action: Callable[[], None]) -> None:
        """Does something that no time limit may interrupt; one that comes meanwhile is raised after it."""
        if threading.get_ident() != threading.main_thread().ident:
            action()  # in a thread that the job has started: those are never interrupted
            return
        self._is_sending = True
        try:
            action()
        finally:
            self._is_sending = False
            late, self._late = self._late, None
            if late is not None:
                self.interrupt_code(late)


class MainThread:
    """Runs one job at a time."""

    def __init__(self, leases: Leases, inbox: InboxReader, runner: Runner, outbox: Outbox, own: OwnDescriptors) -> None:
        self._leases = leases
        self._inbox = inbox
        self._runner = runner
        self._outbox = outbox
        self._own = own
        self._is_waiting = False

    def run(self) -> None:
        """Runs jobs until the broker says stop or is gone, or until SIGTERM arrives; the running job ends first."""
        while (batch := self._next_batch()) != STOP:
            self._leases.take(batch)
            self._run_jobs()

    def _run_jobs(self) -> None:
        run, note, finish = self._runner.run, self._leases.note, self._leases.finish
        for job in self._leases.claim(SignalledJob):
            this_process.job = job
            ended = run(job)
            this_process.job = None
            note(job, ended)
            finish(job, ended)
            del ended  # its result may be large: it goes before the next job runs

    def stop(self) -> None:
        """Called by a signal handler: the broker has nothing more for this consumer."""
        self._leases.is_stopping = True
        if self._is_waiting:
            raise _Stop

    def interrupt_overdue(self) -> None:
        """Called by a signal handler: a job is to end."""
        job = this_process.job
        if isinstance(job, SignalledJob) and job.is_open:
            timeout = self._leases.timeout_of(job)
            if timeout is not None:
                job.interrupt_code(timeout)

    def _next_batch(self) -> bytes:
        if not (self._inbox.is_empty() and self._outbox.report()):  # otherwise the report has just checked it
            self._own.end_if_lost()
        try:
            self._is_waiting = True
            if self._leases.is_stopping:
                return STOP
            batch = self._inbox.get()
            self._own.end_if_lost()  # a thread left behind by a job may have closed one meanwhile: no job is to blame
            return batch
        except _Stop:
            return STOP
        except EOFError:  # the broker is gone
            self._own.end_if_lost()  # or a job has closed this end of the queue
            return STOP
        finally:
            self._is_waiting = False
