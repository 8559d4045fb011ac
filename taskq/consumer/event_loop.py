"""The executor of a consumer with several slots (`taskq worker --threads N`): its main thread has an event loop.

The jobs of `async def` tasks run on it as coroutines, all others in threads. The loop is in the main thread because
batches and signals arrive there: its jobs do not pass from thread to thread, and a coroutine that blocks the loop can
be interrupted.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from taskq.client.app import TaskQ
from taskq.client.context import set_job_of_context
from taskq.consumer.coroutines import CoroutineJob, CoroutineRunner
from taskq.consumer.leases import Leases
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.runner import Ended, Runner
from taskq.consumer.threads import ThreadJob, Threads
from taskq.protocol.link.boot import STOP
from taskq.protocol.link.inbox import InboxReader

#: How long tasks that jobs have left on the loop may take to clean up when the consumer ends.
_LEFTOVERS_S = 1.0


class EventLoop:
    """Runs as many jobs at once as the consumer has slots."""

    def __init__(
        self, leases: Leases, inbox: InboxReader, app: TaskQ, outbox: Outbox, own: OwnDescriptors, number: int
    ) -> None:
        self._leases = leases
        self._inbox = inbox
        self._tasks = app.tasks
        self._outbox = outbox
        self._own = own
        self._clock = app.clock
        self._runner = CoroutineRunner(app, outbox.add_item, number)
        self._threads = Threads(lambda: Runner(app, outbox.add_item, number), self._end_in_thread)
        self._context = copy_context()  # each job begins with a copy
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()  # held to use the leases, except for `note`
        self._running: dict[int, ThreadJob | CoroutineJob] = {}  # by slot; written under the lock
        self._is_report_planned = False
        self._is_last = False  # no more batches will come
        self._has_ended = False  # nothing runs, and nothing will run

    def run(self) -> None:
        """Takes batches and runs their jobs until no more will come and the last job has ended."""
        asyncio.set_event_loop(self._loop)
        os.register_at_fork(after_in_child=self._forget_in_child)
        self._loop.add_reader(self._inbox.fileno(), self._receive)
        while not self._has_ended:  # a job may stop the loop as well
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                traceback.print_exc()  # raised by a task that a job has started; asyncio lets these two through
            except OSError:
                self._own.end_if_lost()  # then the loop has lost its own descriptor as well
                raise
        self._end_leftovers()

    def _end_leftovers(self) -> None:
        """Cancels what jobs have left on the loop."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=_LEFTOVERS_S))

    def _forget_in_child(self) -> None:
        self._loop.call_soon(os._exit, 0)  # a child that a coroutine has forked must not go on with the other jobs

    # -- jobs begin

    def _receive(self) -> None:
        self._own.end_if_lost()
        try:
            batches = [self._inbox.get()]
            while not self._inbox.is_empty():  # a batch that is read already does not wake the loop
                self._own.end_if_lost()
                batches.append(self._inbox.get())
        except EOFError:
            self._own.end_if_lost()  # or a job has closed this end of the queue
            os._exit(1)  # the broker is gone, and nobody is left to take an outcome
        with self._lock:
            for batch in batches:
                if batch == STOP:
                    self._is_last = True
                else:
                    self._leases.take(batch)
            self._start_jobs()
        self._end_if_idle()

    def _start_jobs(self) -> None:
        """Has a thread or the loop run each job that waits and for which a slot is free. The lock is held."""
        for job in self._leases.claim(self._new_job):
            self._running[job.slot] = job
            if isinstance(job, ThreadJob):
                self._threads.start(job)
            elif threading.get_ident() == self._loop_thread:
                self._start_here(job)
            else:
                self._loop.call_soon_threadsafe(self._start_here, job)

    def _new_job(self, number: int, started_at: float, *sent: Any) -> ThreadJob | CoroutineJob:
        """Makes the object of a job that is claimed. A job of an unknown task fails in a thread."""
        task = self._tasks.get(sent[1])
        kind = ThreadJob if task is None or not task.is_async else CoroutineJob
        return kind(number, started_at, *sent)

    def _start_here(self, job: CoroutineJob) -> None:
        context = self._context.copy()
        context.run(set_job_of_context, job)
        task = self._loop.create_task(self._runner.run_async(job), context=context)
        job.asyncio_task = task
        task.add_done_callback(partial(self._end_here, job))

    # -- jobs end

    def _end_in_thread(self, job: ThreadJob, ended: Ended) -> None:
        self._end(job, ended, self._outbox.report)

    def _end_here(self, job: CoroutineJob, task: asyncio.Task[Ended]) -> None:
        try:
            ended = task.result()
        except BaseException as raised:  # cancelled by another job before it began
            ended = self._runner.failure(job, raised, self._clock.time(), self._clock.monotonic())
        self._end(job, ended, self._plan_report)

    def _end(self, job: ThreadJob | CoroutineJob, ended: Ended, report: Callable[[], object]) -> None:
        """Notes the end of a job, and lets the next one begin."""
        try:
            self._leases.note(job, ended)
            with self._lock:
                del self._running[job.slot]
                self._leases.finish(job, ended)
                self._start_jobs()
                is_short_of_work = not self._leases.has_waiting
            if is_short_of_work:
                report()
            if self._is_last or self._leases.is_stopping:
                self._loop.call_soon_threadsafe(self._end_if_idle)
        except BaseException:  # most likely, the job has closed our descriptors
            try:
                traceback.print_exc()  # on what the job may have left as standard error
            finally:
                os._exit(1)

    def _plan_report(self) -> None:
        """Reports together with what else ends in this turn of the loop."""
        if not self._is_report_planned:
            self._is_report_planned = True
            self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._is_report_planned = False
        self._outbox.report()

    def _end_if_idle(self) -> None:
        with self._lock:
            is_done = self._leases.is_stopping or (self._is_last and not self._leases.has_waiting)
            if is_done and self._leases.is_idle:
                self._has_ended = True
                self._loop.stop()

    # -- signals

    def stop(self) -> None:
        """Called by a signal handler: the consumer is to end."""
        self._leases.is_stopping = True
        self._loop.call_soon_threadsafe(self._end_if_idle)

    def interrupt_overdue(self) -> None:
        """Called by a signal handler: has the loop interrupt the jobs that are to end. If one of them is running on the
        loop at this moment, it may be blocking it, and is interrupted at once."""
        self._loop.call_soon_threadsafe(self._interrupt_overdue)
        task = asyncio.current_task(self._loop)
        for job in list(self._running.values()):
            if task is not None and isinstance(job, CoroutineJob) and job.asyncio_task is task:
                timeout = self._leases.timeout_of(job) if job.is_open and not job.is_interrupted else None
                if timeout is not None:
                    job.interrupt_code(timeout)

    def _interrupt_overdue(self) -> None:
        for job in list(self._running.values()):
            timeout = self._leases.timeout_of(job)
            if timeout is not None:
                job.interrupt(timeout)
