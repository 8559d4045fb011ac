"""The consumers of a fleet in this process: the real runner, in whatever thread asks for a job."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection
from contextvars import copy_context
from itertools import starmap
from typing import Any

from taskq.broker.core.core import Core
from taskq.client.app import TaskQ
from taskq.client.context import RunningJob, job_of_context, set_job_of_context
from taskq.consumer.runner import Ended, Runner
from taskq.model.attempt import Attempts, Claim, unpack
from taskq.model.effects import Key
from taskq.model.errors import Cancel, JobFailed, JobTimeout, Retry, Snooze
from taskq.model.job import JobRow
from taskq.protocol.frames import Decoder
from taskq.protocol.link.batch import jobs_to_send
from taskq.protocol.link.reports import Children, children_frames, read_report
from taskq.protocol.ops import StartOptions
from taskq.protocol.submissions import Flow, Submission
from taskq.testing.clock import Clock

#: What a job raises for the fleet, and not for the test.
FOR_THE_FLEET = (Exception, SystemExit, Cancel, JobTimeout, Retry, Snooze)


#: How far a job is: done, total, note.
Progress = tuple[float, float | None, str]


class InProcessRunner(Runner):
    """Runs jobs inside other jobs, and in threads with an event loop of their own."""

    raised: BaseException | None = None  # by the last job

    def run(self, job: RunningJob) -> Ended:
        """Runs a job to its end; the one that asked for it goes on then."""
        before = job_of_context()
        set_job_of_context(job)
        self.raised = None
        try:
            return super().run(job)
        finally:
            job.end()
            set_job_of_context(before)

    def failure(self, job: RunningJob, raised: BaseException, started_at: float, start: float) -> Ended:
        """The end of a job that raised; what it raised is kept for the test."""
        self.raised = raised
        return super().failure(job, raised, started_at, start)

    def _run_coroutine(self, coroutine: Any) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return super()._run_coroutine(coroutine)
        return self._run_beside(coroutine)

    @staticmethod
    def _run_beside(coroutine: Any) -> Any:
        """Runs a coroutine to its end in another thread, since the loop of this one waits for us."""
        ended: list[Any] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                ended.append(asyncio.run(coroutine))
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=copy_context().run, args=(run,), name="taskq-async-job")
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return ended[0]

    def close(self) -> None:
        """Ends its event loop."""
        if self._event_loop is not None:
            self._event_loop.close()


class InProcessConsumer:
    """A consumer: runs one job at a time, in whatever thread asks for it."""

    def __init__(self, key: Key, app: TaskQ, on_item: Callable[[Key, bytes, int, bytes], None]) -> None:
        self.key = key
        self.waiting: deque[tuple[int, JobRow]] = deque()
        self.begun = 0  # the number of the last job that it started
        self.running: tuple[int, float] | None = None  # its thread, and since when
        self.runner = InProcessRunner(app, lambda *item: on_item(key, *item))

    @property
    def claims(self) -> list[Claim]:
        """What it is running."""
        return [] if self.running is None else [Claim(self.begun, self.running[1])]


class InProcessPool:
    """In place of a `taskq.broker.consumers.pool.ConsumerPool`."""

    is_stopping = False

    def __init__(self, core: Core, clock: Clock) -> None:
        self._core = core
        self._clock = clock
        self.by_key: dict[Key, InProcessConsumer] = {}
        self.progress: dict[bytes, Progress] = {}  # of jobs that run

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        key = self._core.consumer_of(job_id)
        return key is not None and any(
            claim.number == self._core.number_of(key, job_id) for claim in self.by_key[key].claims
        )

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the consumer it was sent to; returns False if it runs."""
        key = self._core.consumer_of(job_id)
        if key is not None:
            self._take_back(self.by_key[key])
        return self._core.consumer_of(job_id) is None

    def cancel_running(self, _job_id: bytes) -> None:
        """A job that runs here cannot be stopped: whoever asks is on the same stack, or in another thread."""

    def interrupt(self, _job_ids: Collection[bytes], _why: str) -> None:
        """What runs here cannot be killed."""

    def progress_of(self, job_id: bytes) -> Progress | None:
        """How far a running job is, if it said so."""
        return self.progress.get(job_id)

    def take_back_all(self, _now: float) -> None:
        """Takes back what no consumer has started."""
        for consumer in self.by_key.values():
            self._take_back(consumer)

    def _take_back(self, consumer: InProcessConsumer) -> None:
        if consumer.waiting:
            consumer.waiting.clear()
            if self._core.recalled(consumer.key, consumer.begun, self._clock.monotonic()):
                self._core.settled(consumer.key, Attempts([], [], [], []), self._clock.monotonic(), self._clock.time())

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""
        return {consumer.key: consumer.claims for consumer in self.by_key.values()}


def submissions_of(children: Flow) -> list[Submission]:
    """What a job has enqueued for its success, as a broker gets it from a consumer."""
    sent = [message for frame in children_frames(0, children) for message in Decoder().feed(frame)]
    return [report.jobs for report in starmap(read_report, sent) if isinstance(report, Children)]


def start_options_of(row: JobRow) -> StartOptions:
    """What a consumer is told of a job besides its arguments, but for limits that would hold for the whole test."""
    [(_, _, _, _, *options)] = jobs_to_send([row])
    found: StartOptions = options[0].copy() if options else {}
    found.pop("memory_limit_bytes", None)
    found.pop("cpu_timeout_s", None)
    return found


def refusal_of(row: JobRow, outcome: bytes) -> JobFailed:
    """What stands for the error of an attempt that was refused before any code of the job ran, or after."""
    error = unpack(outcome).error
    assert error is not None
    return JobFailed(row.id.hex(), error.type, error.message, error.traceback, error.module, error.causes)
