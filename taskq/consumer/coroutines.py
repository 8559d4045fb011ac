"""Jobs of `async def` tasks that run side by side on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from taskq.client.app import TaskQ
from taskq.consumer.main_thread import SignalledJob
from taskq.consumer.runner import LONG_S, AnyTask, Around, Ended, OnItem, Runner, refuse_misfit
from taskq.model.attempt import Verdict, pack_success
from taskq.model.errors import JobTimeout

_SUCCEEDED = Verdict.SUCCEEDED  # looked up once: 0.1 microseconds each time


class CoroutineJob(SignalledJob):
    """A job whose code runs on the event loop beside others. Its asyncio task is cancelled; if it blocks the loop, so
    that no cancel can reach it, a signal handler raises in it. Used in the loop's thread alone."""

    has_process = False
    asyncio_task: asyncio.Task[Ended] | None = None
    _reason: str | None = None  # why it is interrupted, which happens only once

    @property
    def is_interrupted(self) -> bool:
        """Whether it has been told to end."""
        return self._reason is not None

    async def await_code(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Runs the job's own code, unless it is to end already."""
        if self._reason is not None:
            raise JobTimeout(self._reason)
        self.is_open = True
        try:
            return await call(self, *args)
        finally:
            self.is_open = False

    def interrupt(self, timeout: JobTimeout) -> None:
        """Cancels the job's asyncio task, once."""
        if self._reason is None:
            self._reason = str(timeout)
            if self.is_open and self.asyncio_task is not None:
                self.asyncio_task.cancel()

    def interrupt_code(self, timeout: JobTimeout) -> None:
        """Raises in the job's code, which blocks the loop, so that a cancel cannot reach it."""
        if not self._is_sending:
            self._reason = str(timeout)
        super().interrupt_code(timeout)

    async def awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Awaits the job's coroutine. If it ends because we have cancelled it, it ends with the reason for that."""
        try:
            return await coroutine
        except asyncio.CancelledError as cancelled:
            if self._reason is not None:
                raise JobTimeout(self._reason) from cancelled
            raise


class CoroutineRunner(Runner):
    """Runs jobs to their ends as coroutines, beside others on the event loop of the caller."""

    def __init__(self, app: TaskQ, on_item: OnItem | None = None, consumer: int | None = None) -> None:
        """
        Args:
            on_item, consumer: as for `Runner`.
        """
        super().__init__(app, on_item, consumer)
        self._code_async = self._call_within_async if self._middleware else self._call_async

    async def run_async(self, job: CoroutineJob) -> Ended:
        """Runs a job to its end, whatever that is; never raises.

        Returns:
            The verdict, the seconds it took, and the outcome.
        """
        started_at, start = self._clock.time(), self._clock.monotonic()
        try:
            task, args, kwargs = self._prepare(job)
            value = await job.await_code(self._code_async, task, args, kwargs)
            result = None if value is None else self._encode(job, value)
            if job.children:
                self._write_children(job)
            duration_s = self._clock.monotonic() - start
            if duration_s >= LONG_S:
                return _SUCCEEDED, duration_s, pack_success(started_at, duration_s, result, ran=self.ran())
            return _SUCCEEDED, duration_s, pack_success(started_at, duration_s, result, self._consumer)
        except BaseException as raised:
            job.close()
            return self.failure(job, raised, started_at, start)

    async def _call_async(self, job: CoroutineJob, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            coroutine = task.function(*args, **kwargs)
        except TypeError as error:
            refuse_misfit(error, task, args, kwargs)
            raise
        return await job.awaited(coroutine)

    async def _call_within_async(
        self, job: CoroutineJob, task: AnyTask, args: list[Any], kwargs: dict[str, Any]
    ) -> Any:
        with Around(self._middleware, job):
            return await self._call_async(job, task, args, kwargs)
