"""Futures of jobs, and the thread that completes them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent import futures
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from taskq.client.executors.pickled_calls import load
from taskq.client.job import Job
from taskq.model.errors import BrokerUnavailable, ConfigError, JobCancelled, JobFailed, JobNotFound, TaskQError
from taskq.model.job import JobState

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class RemoteTraceback(Exception):
    """The cause of an exception that was raised in another process: its text is the traceback there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class JobFuture(futures.Future[T], Generic[T]):
    """A `concurrent.futures.Future` that stands for a job.

    Attributes:
        job: the handle of the job, whose result is pickled.
    """

    def __init__(self, job: Job[Any]) -> None:
        super().__init__()
        self.job = job

    def cancel(self) -> bool:
        """Cancels the job unless it runs or has ended. This asks the fleet.

        Returns:
            Whether it is cancelled. False also while no fleet answers.
        """
        if self.done():
            return self.cancelled()
        try:
            is_cancelled = self.job.cancel(running=False)
        except (JobNotFound, BrokerUnavailable):
            return self.cancelled()
        return super().cancel() if is_cancelled else False

    def running(self) -> bool:
        """Returns whether the job runs now. This asks the fleet."""
        if self.done():
            return False
        try:
            return self.job.state() == JobState.RUNNING
        except (JobNotFound, BrokerUnavailable):
            return False

    def end_as_cancelled(self) -> None:
        """Wakes those who wait for a job that was cancelled."""
        super().cancel()
        self.set_running_or_notify_cancel()


class Watcher:
    """Completes the futures of one executor as their jobs end, in a thread with an event loop of its own.

    The thread starts with the first future. It ends when the watcher is closed and no future is left.
    """

    def __init__(self, forgets_failed: bool, on_end: Callable[[], None]) -> None:
        """
        Args:
            forgets_failed: whether a failed job is removed once its future has its exception.
            on_end: called when it has ended, in the thread if there was one.
        """
        self._forgets_failed = forgets_failed
        self._on_end = on_end
        self._changed = threading.Condition()
        # all of these: read and written under _changed
        self._entering = 0  # jobs that are being submitted
        self._futures: dict[JobFuture[Any], None] = {}
        self._is_closed = False
        self._has_ended = False
        self._broken = ""
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # that of the thread, once it runs
        self._tasks: set[asyncio.Task[None]] = set()  # of the thread alone

    def enter(self) -> None:
        """Announces futures, so that the thread does not end before they come.

        Raises:
            RuntimeError: the watcher is closed.
            BrokenExecutor: the fleet has ended.
        """
        with self._changed:
            if self._broken:
                raise BrokenExecutor(self._broken)
            if self._is_closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._entering += 1

    def leave(self, jobs: Iterable[JobFuture[Any]]) -> None:
        """Watches the futures that were announced; none if their jobs were not accepted."""
        entered = list(jobs)
        with self._changed:
            self._entering -= 1
            self._futures.update(dict.fromkeys(entered))
            if entered:
                self._in_loop(self._watch, entered)
            else:
                self._end_if_idle()

    def close(self) -> None:
        """Takes no more futures; the thread ends when the last one is complete."""
        with self._changed:
            self._is_closed = True
            self._end_if_idle()

    def join(self) -> None:
        """Waits for the end of the thread; call `close` first."""
        with self._changed:
            self._changed.wait_for(lambda: not self._entering)
            thread = self._thread
        if thread is not None:
            thread.join()

    def open(self) -> list[JobFuture[Any]]:
        """The futures that are not complete, the newest first."""
        with self._changed:
            return list(reversed(self._futures))

    def cancel(self, wanted: Sequence[JobFuture[Any]], running: bool) -> None:
        """Cancels jobs, and returns when that is done. Not for the thread itself.

        Args:
            running: whether to stop those that run.
        """
        with self._changed:
            if self._loop is None or self._has_ended or not wanted:
                return
            import asyncio

            cancelled = asyncio.run_coroutine_threadsafe(_cancel(wanted, running), self._loop)
        cancelled.result()

    @property
    def broken(self) -> str:
        """Why no call can run any more; empty if they can."""
        return self._broken

    def break_all(self, told: str) -> None:
        """Ends all futures with an error, as nobody will run their jobs; for the thread."""
        logging.getLogger("concurrent.futures").critical("%s", told)
        with self._changed:
            self._broken = told
            lost = list(self._futures)
        for future in lost:
            if not future.done():
                future.set_exception(BrokenExecutor(told))
            self._forget(future)

    def watch_descriptor(self, descriptor: int, on_readable: Callable[[], None]) -> None:
        """Calls a function in the thread when something can be read."""
        with self._changed:

            def watch() -> None:
                assert self._loop is not None
                self._loop.add_reader(descriptor, once)

            def once() -> None:
                assert self._loop is not None
                self._loop.remove_reader(descriptor)
                on_readable()

            self._in_loop(watch)

    def start(self) -> None:
        """Starts the thread, if it does not run."""
        with self._changed:
            if self._thread is None:
                import asyncio  # takes 40-70 ms

                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, name="taskq-executor", daemon=True)
                self._thread.start()

    def _in_loop(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(function, *args)

    def _end_if_idle(self) -> None:
        self._changed.notify_all()
        if not self._is_closed or self._entering or self._futures or self._has_ended:
            return
        self._has_ended = True
        if self._loop is None:
            self._on_end()
        else:
            self._loop.call_soon_threadsafe(self._loop.stop)

    # -- in the thread

    def _run(self) -> None:
        import asyncio

        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            for task in self._tasks:  # of futures that were lost with their fleet
                task.cancel()
            loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
            self._on_end()

    def _watch(self, entered: list[JobFuture[Any]]) -> None:
        for future in entered:
            self._spawn(self._complete(future))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        import asyncio

        task = asyncio.get_event_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, future: JobFuture[Any]) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = load(await future.job.aresult())
        except JobCancelled:
            if not future.done() or future.cancelled():
                future.end_as_cancelled()
            self._forget(future)
            return
        except JobFailed as failed:
            error = await self._exception_of(future.job, failed)
        except Exception as raised:  # of the classes that were unpickled, or of a fleet that cannot be reached any more
            error = raised
        if not future.done():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        self._forget(future)

    async def _exception_of(self, job: Job[Any], failed: JobFailed) -> BaseException:
        """The exception that the function raised, with the traceback there as its cause; otherwise what taskq tells."""
        if failed.error_type == "UnknownTask":
            return ConfigError(
                "the fleet's application runs no pickled calls: call q.executor() in the module that defines q, "
                "and restart or reload the fleet"
            )
        error: BaseException = failed
        try:
            pickled = None
            if failed.error_traceback:  # else it ended in another way: a crash, a timeout
                async for item in job.aitems():
                    pickled = item
        except TaskQError:  # the items end with the job's own error
            pass
        try:
            raised = None if pickled is None else load(pickled)
            if isinstance(raised, BaseException) and type(raised).__qualname__ == failed.error_type:
                error = raised
                error.__cause__ = RemoteTraceback(failed.error_traceback)
        except Exception:  # its class cannot be made of what it was pickled as: the text must do
            error = failed
        if self._forgets_failed:
            try:
                await job.apurge()
            except TaskQError:
                pass  # the fleet is ending
        return error

    def _forget(self, future: JobFuture[Any]) -> None:
        with self._changed:
            self._futures.pop(future, None)
            self._end_if_idle()


async def _cancel(wanted: Sequence[JobFuture[Any]], running: bool) -> None:
    """Cancels jobs, many in one turn of the broker."""
    import asyncio

    await asyncio.gather(*(future.job.acancel(running=running) for future in wanted), return_exceptions=True)
