"""A consumer that runs several jobs at once: `taskq worker --threads N`.

It has N slots, and each runs one job: sync tasks in threads, `async def` tasks as coroutines on one event loop. The
loop is in the main thread: its jobs need not pass from thread to thread, and signals arrive there, so that a coroutine
that blocks the loop can be interrupted.

    inbox -> waiting, in order -> a free slot claims the next number -> a thread, or the loop -> outbox
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any, NamedTuple

import msgpack

from taskq.client.app import TaskQ
from taskq.client.context import RunningJob, sit, timeout_text
from taskq.client.task import Task
from taskq.consumer.outbox import Outbox
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.own_output import OwnOutput
from taskq.consumer.runner import Ended, Items, OnItem, Refused, Runner
from taskq.consumer.signals import handle_signals, ignore, is_forked_child
from taskq.consumer.streams import JobStream
from taskq.model.attempt import Verdict, pack_success
from taskq.model.errors import JobTimeout
from taskq.model.limits import MAX_FRAME_BYTES
from taskq.protocol.link.boot import STOP, TIMEOUT_SIGNAL, Boot
from taskq.protocol.link.flight_recorder import FlightRecorder
from taskq.protocol.ops import CPU_TIMEOUT, MEMORY_LIMIT, NO_START_OPTIONS, StartOptions
from taskq.system.directory import Directory

#: What coroutines leave running on the loop may take so long to clean up when the consumer ends.
_LEFTOVERS_S = 1.0
_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in_thread.argtypes = [ctypes.c_ulong, ctypes.py_object]
_NOTHING = ctypes.py_object()  # the null pointer: takes back what was to be raised


_raised = threading.local()


class _Overdue(JobTimeout):
    """Raised in a thread, which takes a class only; the instance is made by that thread, when it is raised."""

    def __init__(self) -> None:
        super().__init__(_raised.runner.text)
        _raised.is_there = True


def _check_limits(extra: StartOptions) -> None:
    """Refuses what cannot be kept here: the system counts memory and CPU time by process, not by job."""
    if CPU_TIMEOUT in extra or MEMORY_LIMIT in extra:
        option = "cpu_timeout" if CPU_TIMEOUT in extra else "memory_limit"
        raise Refused("NeedsOwnProcess", f"{option}= needs a fleet without --threads: put the job into a queue of such")


class _Start(NamedTuple):
    """A job that has a slot."""

    slot: int
    number: int
    job_id: bytes
    task: str
    attempt: int
    payload: bytes
    extra: StartOptions = NO_START_OPTIONS


class _ThreadRunner(Runner):
    """Runs the jobs of one thread."""

    def __init__(self, app: TaskQ, on_item: OnItem) -> None:
        super().__init__(app, on_item)
        self._begin, self._end = lambda *_: None, lambda: None  # the context knows the job
        self._invoke_within, self._invoke = self._invoke, self._invoke_interruptibly
        self._guard = threading.Lock()
        self._number = 0  # of the job whose code runs, while it may be interrupted
        self._sending = 0  # of the job that is in the middle of a message
        self._interrupted = 0
        self._is_late = False  # whether it is to be told behind that message
        self.text = ""  # of the JobTimeout that interrupts

    def interrupt(self, number: int, text: str) -> None:
        """Raises JobTimeout in a job's code, once, unless that has ended. Called by the main thread."""
        with self._guard:
            if self._interrupted == number:
                return
            self.text = text
            if self._number == number:
                self._interrupted = number
                _raise_in_thread(self._thread, _Overdue)
            elif self._sending == number:
                self._interrupted = number
                self._is_late = True

    def run_job(self, start: _Start) -> Ended:
        """Runs a job in this thread."""
        self._thread = threading.get_ident()
        self._next = start.number
        _raised.is_there = False
        _raised.runner = self
        return self.run(start.job_id, start.task, start.attempt, start.payload, start.extra)

    def uninterrupted(self, action: Callable[[], None]) -> None:
        """Does what no time limit may interrupt, such as a message; the timeout is raised behind it."""
        if threading.get_ident() != self._thread:
            action()  # by another thread of the job, which is never interrupted
            return
        with self._guard:
            number = self._number
            if number and number == self._interrupted and not _raised.is_there:
                _raise_in_thread(self._thread, _NOTHING)
                self._is_late = True
            self._number, self._sending = 0, number
        try:
            action()
        finally:
            with self._guard:
                is_late, self._is_late = self._is_late, False
                self._number, self._sending = number, 0
        if is_late:
            raise _Overdue

    def _result(self, job_id: bytes, task_name: str, payload: bytes, extra: StartOptions) -> bytes | None:
        _check_limits(extra)
        return super()._result(job_id, task_name, payload, extra)

    def _invoke_interruptibly(self, task: Task[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        with self._guard:
            self._number = self._next
        try:
            return self._invoke_within(task, args, kwargs)
        finally:
            if is_forked_child():
                os._exit(0)  # the job forked, and this is the child; what it inherited may be locked
            try:
                self._close()
            except JobTimeout:  # it came in the last moment, and comes once
                self._close()
                raise

    def _take(self, items: Items, value: Any) -> None:
        self.uninterrupted(partial(items.take, value))

    def _close(self) -> None:
        """From now on this thread runs our own code, in which no exception may come from outside."""
        with self._guard:
            if self._interrupted == self._number:
                _raise_in_thread(self._thread, _NOTHING)  # should it not have been raised yet
            self._number = 0


class _Coroutine:
    """A job that runs on the loop. Used in the loop's thread alone."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Ended] | None = None
        self.is_open = False  # whether the job's own code has begun, and not ended
        self.is_interrupted = False
        self.text = ""  # of the JobTimeout that interrupts
        self._thread = threading.get_ident()
        self._is_sending = self._is_late = False

    def interrupt(self, _number: int, text: str) -> None:
        """Cancels the job's asyncio task, once."""
        if not self.is_interrupted:
            self.is_interrupted, self.text = True, text
            if self.is_open and self.task is not None:
                self.task.cancel()

    def interrupt_code(self, text: str) -> None:
        """Raises JobTimeout in the code that runs now, from a signal handler; behind the message that it is sending."""
        self.text = text
        if self._is_sending:
            self._is_late = True
            return
        self.is_interrupted = True
        raise JobTimeout(text)  # it does not let go of the loop, so it could not be cancelled

    def uninterrupted(self, action: Callable[[], None]) -> None:
        """Does what no time limit may interrupt, such as a message; the timeout is raised behind it."""
        if threading.get_ident() != self._thread:
            action()  # by a thread that the job has started, which is never interrupted
            return
        self._is_sending = True
        try:
            action()
        finally:
            self._is_sending = False
        if self._is_late:
            self._is_late = False
            self.interrupt_code(self.text)


class _CoroutineRunner(Runner):
    """Runs the jobs of the loop."""

    async def run_job(self, job: _Coroutine, start: _Start) -> Ended:
        """Runs a job to its end, whatever that is; never raises."""
        started_at, started = self._clock.time(), self._clock.monotonic()
        try:
            _check_limits(start.extra)
            value = await self._await(job, self._prepare(start.job_id, start.task, start.payload, start.extra))
            result = self._encode(start.job_id, value, start.extra)
            duration_s = self._clock.monotonic() - started
            return Verdict.SUCCEEDED, duration_s, pack_success(started_at, duration_s, result)
        except BaseException as raised:
            return self._failure(raised, start.task, start.attempt, start.extra, started_at, started)

    def failed_to_begin(self, raised: BaseException, start: _Start) -> Ended:
        """The end of a job whose asyncio task was cancelled before its first step."""
        now, wall = self._clock.monotonic(), self._clock.time()
        return self._failure(raised, start.task, start.attempt, start.extra, wall, now)

    async def _await(self, job: _Coroutine, prepared: tuple[Any, Any, Any]) -> Any:
        if job.is_interrupted:
            raise JobTimeout(job.text)
        job.is_open = True
        try:
            if not self._middleware:
                return await self._await_call(job, prepared)
            with self._around():
                return await self._await_call(job, prepared)
        finally:
            job.is_open = False

    async def _await_call(self, job: _Coroutine, prepared: tuple[Any, Any, Any]) -> Any:
        try:
            return await self._call(*prepared)
        except asyncio.CancelledError as cancelled:
            if job.is_interrupted:
                raise JobTimeout(job.text) from cancelled
            raise

    def _run_coroutine(self, coroutine: Any) -> Any:
        return coroutine  # it is awaited, not run


class ConcurrentConsumer:
    """Receives batches, claims their jobs in order as slots become free, runs and reports them."""

    def __init__(self, boot: Boot, app: TaskQ, outbox: Outbox, own: OwnDescriptors, output: OwnOutput) -> None:
        self._inbox = boot.inbox
        self._own = own
        self._output = output
        self._reader: int = boot.inbox._reader.fileno()  # type: ignore[attr-defined]
        self._counters = boot.counters
        self._recorder = FlightRecorder(Directory(boot.directory).running, boot.record, boot.slots)
        self._app = app
        self._outbox = outbox
        self._streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, JobStream)]
        self._context = copy_context()  # each job begins with a copy
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.get_ident()
        self._runner = _CoroutineRunner(app)
        self._coroutines: dict[asyncio.Task[Any], tuple[_Start, _Coroutine]] = {}
        self._is_report_planned = False
        self._is_stopping: bool = False  # set by a signal handler
        self._is_last: bool = False  # no more batches will come
        self._has_ended: bool = False  # nothing runs, and nothing will
        # used under the lock, by all threads
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, list[Any]]] = deque()
        self._free = list(range(boot.slots))
        self._running: dict[int, tuple[_Start, _ThreadRunner | _Coroutine]] = {}  # by slot
        self._threads = self._busy_threads = 0
        self._work: SimpleQueue[tuple[_Start, RunningJob]] = SimpleQueue()

    def run(self) -> None:
        """Runs jobs until the broker says stop, or SIGTERM does (after the running jobs)."""
        asyncio.set_event_loop(self._loop)
        os.register_at_fork(after_in_child=self._forget_in_child)
        handle_signals(
            {
                signal.SIGINT: ignore,
                signal.SIGHUP: ignore,
                signal.SIGTERM: self._on_stop,
                TIMEOUT_SIGNAL: self._on_timeout,
            }
        )
        threading.Thread(target=self._outbox.report_late, name="taskq-report", daemon=True).start()
        self._outbox.announce(self._app.name, self._app.schedules.declared)
        self._loop.add_reader(self._reader, self._receive)
        self._run_loop()
        self._end_leftovers()

    def _run_loop(self) -> None:
        while not self._has_ended:  # a job may stop the loop, too
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                traceback.print_exc()  # of a task that a job started; asyncio lets it through to us

    def _end_leftovers(self) -> None:
        """Cancels what jobs have left on the loop."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=_LEFTOVERS_S))

    def _forget_in_child(self) -> None:
        self._loop.call_soon(os._exit, 0)  # what a coroutine forked must not go on with the other jobs of the loop

    # -- jobs begin

    def _receive(self) -> None:
        self._own.end_if_lost()
        try:
            message = self._inbox.get()
        except EOFError:
            os._exit(1)  # the broker is gone: nobody is there to take an outcome
        with self._lock:
            if message == STOP:
                self._is_last = True
            else:
                number, jobs = msgpack.unpackb(message, max_bin_len=MAX_FRAME_BYTES)
                if not jobs:
                    self._outbox.answer()
                self._waiting.extend(enumerate(jobs, number))
            self._fill()
        self._end_if_idle()

    def _fill(self) -> None:
        """Gives free slots to what waits. The lock is held, so numbers are claimed in their order."""
        while self._waiting and self._free and not self._is_stopping:
            number, job = self._waiting.popleft()
            slot = self._free[-1]
            if self._counters.claim(number, slot) is None:
                continue  # taken back: another consumer has it
            self._free.pop()
            start = _Start(slot, number, *job)
            self._recorder.started(start.job_id, start.attempt, slot)
            task = self._app.tasks.get(start.task)
            if task is None or not task.is_async:
                self._start_in_thread(start)
            elif threading.get_ident() == self._loop_thread:
                self._start_on_loop(start)
            else:
                self._loop.call_soon_threadsafe(self._start_on_loop, start)

    def _start_in_thread(self, start: _Start) -> None:
        self._work.put((start, self._concurrent(start)))
        if self._busy_threads == self._threads:
            threading.Thread(target=self._work_in_thread, name=f"taskq-job-{self._threads}", daemon=True).start()
            self._threads += 1
        self._busy_threads += 1

    def _work_in_thread(self) -> None:
        runner = _ThreadRunner(self._app, self._outbox.add_item)
        while True:
            start, concurrent = self._work.get()
            self._running[start.slot] = start, runner
            concurrent.uninterrupted = runner.uninterrupted
            context = self._context.copy()
            context.run(sit, concurrent)
            self._end(start, concurrent, context.run(runner.run_job, start), in_thread=True)

    def _start_on_loop(self, start: _Start) -> None:
        concurrent, job = self._concurrent(start), _Coroutine()
        self._running[start.slot] = start, job
        concurrent.uninterrupted = job.uninterrupted
        context = self._context.copy()
        context.run(sit, concurrent)
        job.task = task = self._loop.create_task(self._runner.run_job(job, start), context=context)
        self._coroutines[task] = start, job
        task.add_done_callback(partial(self._on_coroutine_end, start, concurrent))

    def _on_coroutine_end(self, start: _Start, concurrent: RunningJob, task: asyncio.Task[Ended]) -> None:
        del self._coroutines[task]
        try:
            ended = task.result()
        except BaseException as raised:  # cancelled by another job before it began
            ended = self._runner.failed_to_begin(raised, start)
        self._end(start, concurrent, ended, in_thread=False)

    @staticmethod
    def _concurrent(start: _Start) -> RunningJob:
        return RunningJob(start.number, start.job_id, start.task, start.attempt, start.extra)

    # -- jobs end

    def _end(self, start: _Start, concurrent: RunningJob, ended: Ended, *, in_thread: bool) -> None:
        """Notes the end of a job, and lets the next one begin."""
        try:
            if is_forked_child():
                os._exit(0)
            concurrent.end()
            self._note_end(start, concurrent, ended, in_thread)
        except BaseException:  # most likely, the job has closed our descriptors
            try:
                traceback.print_exc()  # on what the job may have left as standard error
            finally:
                os._exit(1)

    def _note_end(self, start: _Start, concurrent: RunningJob, ended: Ended, in_thread: bool) -> None:
        self._own.end_if_lost()  # then our end is charged to this job, and to those beside it
        self._output.put_back()
        if concurrent.rests:
            for stream in self._streams:
                stream.end(concurrent)
        verdict, duration_s, outcome = ended
        if concurrent.children and verdict == Verdict.SUCCEEDED:
            self._outbox.add_children(start.number, concurrent.children)
        # in this order: an attempt is noted as finished when its outcome outlives us, so it ends once or is charged
        self._outbox.add(start.number, verdict, duration_s, outcome, time.monotonic())
        with self._lock:
            self._counters.finish(start.number, duration_s, start.slot)
            self._recorder.idle(start.slot)
            del self._running[start.slot]
            self._free.append(start.slot)
            self._busy_threads -= in_thread
            self._fill()
            is_short_of_work = not self._waiting
        if is_short_of_work:
            if in_thread:
                self._outbox.report()
            elif not self._is_report_planned:
                self._is_report_planned = True
                self._loop.call_soon(self._report)  # with what else ends in this turn of the loop
        if self._is_last or self._is_stopping:
            self._loop.call_soon_threadsafe(self._end_if_idle)

    def _report(self) -> None:
        self._is_report_planned = False
        self._outbox.report()

    def _end_if_idle(self) -> None:
        with self._lock:
            is_done = self._is_stopping or (self._is_last and not self._waiting)
            if is_done and not self._running and len(self._free) == self._counters.slots:
                self._has_ended = True
                self._loop.stop()

    # -- signals

    def _on_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_stopping = True
        self._loop.call_soon_threadsafe(self._end_if_idle)

    def _on_timeout(self, _signal: int, _frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._interrupt_overdue)
        task = asyncio.current_task(self._loop)
        start, job = self._coroutines.get(task, (None, None)) if task is not None else (None, None)
        if start is None or job is None or not job.is_open or job.is_interrupted:
            return
        if self._counters.is_overdue(start.number, start.slot):
            job.interrupt_code(self._timeout_text(start))

    def _interrupt_overdue(self) -> None:
        for start, job in list(self._running.values()):
            if self._counters.is_overdue(start.number, start.slot):
                job.interrupt(start.number, self._timeout_text(start))

    def _timeout_text(self, start: _Start) -> str:
        return timeout_text(self._counters.reason(start.slot), start.extra)
