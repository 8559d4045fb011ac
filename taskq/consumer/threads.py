"""Jobs that run side by side in threads. Threads are reused.

A time limit interrupts a thread with an exception that Python raises in it from outside, at any point of its code. So
each job keeps, under a lock, whether its own code runs, and nothing but its own code can be hit.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from taskq.client.context import RunningJob, set_job_of_context, this_process
from taskq.consumer.runner import Ended, Runner
from taskq.model.errors import JobTimeout

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in_thread.argtypes = [ctypes.c_ulong, ctypes.py_object]
_NOTHING = ctypes.py_object()  # the null pointer: takes back an exception that has not been raised yet
_here = threading.local()  # `job` is the one that this thread runs


class _Overdue(JobTimeout):
    """The JobTimeout of a thread. Only a class can be raised in one: the thread makes the instance itself."""

    def __init__(self) -> None:
        super().__init__(_here.job.overdue())


class ThreadJob(RunningJob):
    """A job whose code runs in a thread of its own, beside other jobs."""

    has_process = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._guard = threading.Lock()  # held to read or write what follows
        self._thread = 0  # the one that runs the job
        self._is_open = False  # whether the job's own code runs, and may be interrupted
        self._is_sending = False  # whether it is in the middle of a message instead
        self._is_late = False  # whether the timeout is to be raised after that message
        self._timeout: JobTimeout | None = None  # the one that interrupts it; there is only one
        self._was_raised = False  # whether the thread has raised it

    def run_code(self, call: Callable[..., Any], *args: Any) -> Any:
        """Runs the job's own code, in this thread."""
        with self._guard:
            self._thread = threading.get_ident()
            self._is_open = True
        try:
            return call(self, *args)
        finally:
            self.close()

    def close(self) -> None:
        """From here on this thread runs our own code, in which no exception may be raised from outside."""
        if this_process.was_forked:
            os._exit(0)  # the job forked, and this is the child: locks that it has inherited may be held for ever
        try:
            self._close()
        except JobTimeout:  # it came at the last moment, and comes only once
            self._close()
            raise

    def _close(self) -> None:
        with self._guard:
            if self._is_open and self._timeout is not None:
                _raise_in_thread(self._thread, _NOTHING)  # in case it has not been raised yet
            self._is_open = False

    def interrupt(self, timeout: JobTimeout) -> None:
        """Raises in the job's code, once, unless that has ended. Called in the main thread."""
        with self._guard:
            if self._timeout is not None or not (self._is_open or self._is_sending):
                return
            self._timeout = timeout
            if self._is_open:
                _raise_in_thread(self._thread, _Overdue)
            else:
                self._is_late = True

    def overdue(self) -> str:
        """The text of the timeout. Called by the thread when it raises it."""
        self._was_raised = True
        return str(self._timeout)

    def uninterrupted(self, action: Callable[[], None]) -> None:
        """Does something that no time limit may interrupt; one that comes meanwhile is raised after it."""
        if threading.get_ident() != self._thread:
            action()  # in a thread that the job has started: those are never interrupted
            return
        with self._guard:
            was_open = self._is_open
            if was_open and self._timeout is not None and not self._was_raised:
                _raise_in_thread(self._thread, _NOTHING)
                self._is_late = True
            self._is_open, self._is_sending = False, was_open
        try:
            action()
        finally:
            with self._guard:
                is_late, self._is_late = self._is_late, False
                self._is_open, self._is_sending = was_open, False
        if is_late:
            raise _Overdue


class Threads:
    """Runs each job in a thread. There are as many threads as jobs have ever run at once."""

    def __init__(self, new_runner: Callable[[], Runner], on_end: Callable[[ThreadJob, Ended], None]) -> None:
        """
        Args:
            new_runner: makes the runner of a thread.
            on_end: called in its thread when a job has ended, with what became of it.
        """
        self._new_runner = new_runner
        self._on_end = on_end
        self._context = copy_context()  # each job begins with a copy
        self._jobs: SimpleQueue[ThreadJob] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._busy = 0  # under the lock

    def start(self, job: ThreadJob) -> None:
        """Gives a job to an idle thread, or to a new one."""
        self._jobs.put(job)
        with self._lock:
            self._busy += 1
            if self._busy <= self._threads:
                return
            self._threads += 1
            name = f"taskq-job-{self._threads - 1}"
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        runner = self._new_runner()
        while True:
            job = self._jobs.get()
            ended = self._context.copy().run(_run, runner, job)
            with self._lock:
                self._busy -= 1
            self._on_end(job, ended)


def _run(runner: Runner, job: ThreadJob) -> Ended:
    _here.job = job
    set_job_of_context(job)
    return runner.run(job)
