"""The handle of a job, `Job`: its state, its result, and how to cancel it or run it again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from taskq.client.hooks import redacted
from taskq.client.transport.clients import FleetConnection
from taskq.model.errors import ConfigError, JobCancelled, JobFailed, JobNotFound, ResultTimeout
from taskq.model.job import JobState
from taskq.protocol.codec import ResultOf, decode_result
from taskq.protocol.endings import Ending
from taskq.protocol.submissions import EarlierId

if TYPE_CHECKING:
    from taskq.model.info.job import JobInfo

R_co = TypeVar("R_co", covariant=True)


class Job(ResultOf, Generic[R_co]):
    """The handle of one job. It holds an id and no connection: make as many as you like, keep the id and come back.

    Among the arguments of another job it stands for the result: that job waits for this one.
    """

    __slots__ = ("_app", "_cast", "_ending")

    def __init__(
        self,
        app: FleetConnection,
        job_id: bytes,
        cast: Callable[[Any], Any] | None = None,
        ending: Ending | None = None,
        has_result: bool = True,
    ) -> None:
        super().__init__(job_id, has_result)
        self._app = app
        self._cast = cast
        self._ending = ending  # of a job that succeeded, which never changes; else None

    @property
    def id(self) -> str:
        """The job's id: 32 hexadecimal digits, which sort by the time of enqueueing."""
        return self._id.hex()

    @property
    def is_duplicate(self) -> bool:
        """Whether this is an earlier job that `enqueue` returned in place of a new one: see `unique=`."""
        return isinstance(self._id, EarlierId)

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def state(self) -> JobState:
        """Where the job is in its life.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        return self.info().state

    def info(self, *, arguments: bool = False) -> JobInfo:
        """All that is known of the job: state, attempts, error, times, the exit of a crash.

        Args:
            arguments: also what it was called with, as long as that is kept: until it has succeeded or was cancelled.
                The application may hide some of it, see `TaskQ.redact`.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        return redacted(self._app.client.info(self._id, arguments), self._app.redaction)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the job has ended, in whatever way.

        Args:
            timeout: seconds to wait at the most; None for as long as it takes.

        Returns:
            Whether it has ended.

        Raises:
            JobNotFound: nothing is known of it.
        """
        try:
            self._app.client.wait(self._id, timeout)
        except ResultTimeout:
            return False
        return True

    def result(self, timeout: float | None = None) -> R_co:
        """Waits for the job to end and returns what the function returned. The broker pushes it; nothing is polled.

        Args:
            timeout: seconds to wait at the most; None for as long as it takes.

        Raises:
            JobFailed: the job failed for good; the remote error is in it.
            JobCancelled: the job was cancelled, or raised `Cancel`; the reason is in it.
            ResultTimeout: it has not ended in time; it goes on.
            JobNotFound: nothing is known of it.
        """
        ending = self._ending or self._app.client.wait(self._id, timeout)
        return cast(R_co, value_of_ending(self._id, ending, self._cast))

    def _with(self, ending: Ending) -> Job[R_co]:
        """A handle of the same job that knows its ending, if that is for good (a failed job may be run again)."""
        return Job(self._app, self._id, self._cast, ending if ending.state == JobState.SUCCEEDED else None)

    def items(self, *, start: int = 0, timeout: float | None = None) -> Iterator[Any]:
        """Iterates what a generator task yields, while it runs or later; `result` is what it returns in the end.

        Items are numbered, and stored as they come: one that was shown is shown again to whoever asks, also after
        the death of any process. A retry begins the generator anew, but what stands at a number stays: readers see
        each number once, the ones that failed attempts have reached as those made them.

        Args:
            start: the number of the first item: a reader that was interrupted goes on where it was.
            timeout: seconds to wait for the next item at the most.

        Raises:
            JobFailed, JobCancelled: after the last item, if the job did not succeed.
            ResultTimeout: the next item did not come in time; the job goes on.
            JobNotFound: nothing is known of it.
        """
        _check_start(start)
        return self._items(start, timeout)

    def _items(self, start: int, timeout: float | None) -> Iterator[Any]:
        client = self._app.client
        stream = client.queue.items(self._id, start, timeout)
        with closing(client.each(stream)) as found:
            for item in found:
                yield decode_result(self._id, item)
        check_ending(self._id, stream.ending)

    async def aitems(self, *, start: int = 0, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """`items` for asyncio: ``async for item in job.aitems(): ...``"""
        _check_start(start)
        client = self._app.async_client()
        stream = client.queue.items(self._id, start, timeout)
        async with aclosing(client.each(stream)) as found:
            async for item in found:
                yield decode_result(self._id, item)
        check_ending(self._id, stream.ending)

    def cancel(self, *, running: bool = True) -> bool:
        """Cancels the job. One that waits never starts. In one that runs `JobTimeout` is raised, and 2 s later its
        process is killed, also in the middle of C code; this waits for its end.

        Args:
            running: False: if it runs, let it.

        Returns:
            Whether it is cancelled now, which is durable. False: it has ended otherwise, or runs and may.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no fleet answers.
        """
        return self._app.client.cancel(self._id, running)

    def retry(self) -> None:
        """Queues the job again, which has failed: at the end of its queue, with all its retries, while its attempts
        are counted on. When this returns that is durable. It does not expire any more, and others may have its
        `unique=` key.

        What was cancelled because it failed (see `taskq.chain`) waits for it again; but not what was cancelled by hand,
        nor what comes after another that must succeed and was purged.

        A result once stored never changes, but for this: who waits for the job from now on hears of its new end.

        Raises:
            JobStateError: it is not failed. Other jobs have lost their arguments when they ended, or go on.
            JobNotFound: nothing is known of it.
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        self._app.client.retry(self._id)

    def purge(self) -> None:
        """Removes the job and all that is known of it, unless it runs. Who waits for its end gets `JobNotFound`.

        A job that had not ended is counted as cancelled in the totals.

        Raises:
            JobStateError: it runs.
            JobNotFound: nothing is known of it.
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        self._app.client.purge(self._id)

    async def astate(self) -> JobState:
        """`state` for asyncio."""
        return (await self.ainfo()).state

    async def await_(self, timeout: float | None = None) -> bool:
        """`wait` for asyncio (``await`` alone is a keyword)."""
        try:
            await self._app.async_client().wait(self._id, timeout)
        except ResultTimeout:
            return False
        return True

    async def aresult(self, timeout: float | None = None) -> R_co:
        """`result` for asyncio: waits without blocking the loop."""
        ending = self._ending or await self._app.async_client().wait(self._id, timeout)
        return cast(R_co, value_of_ending(self._id, ending, self._cast))

    async def ainfo(self, *, arguments: bool = False) -> JobInfo:
        """`info` for asyncio."""
        return redacted(await self._app.async_client().info(self._id, arguments), self._app.redaction)

    async def acancel(self, *, running: bool = True) -> bool:
        """`cancel` for asyncio."""
        return await self._app.async_client().cancel(self._id, running)

    async def aretry(self) -> None:
        """`retry` for asyncio."""
        await self._app.async_client().retry(self._id)

    async def apurge(self) -> None:
        """`purge` for asyncio."""
        await self._app.async_client().purge(self._id)

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aresult().__await__()


def value_of_ending(job_id: bytes, ending: Ending | None, caster: Callable[[Any], Any] | None) -> Any:
    """The returned value in an ending, or its error as an exception."""
    check_ending(job_id, ending)
    assert ending is not None
    if ending.outcome.result is None:
        return None
    value = decode_result(job_id, ending.outcome.result)
    return value if caster is None else caster(value)


def check_ending(job_id: bytes, ending: Ending | None) -> None:
    """Raises the error in an ending, if the job did not succeed, or JobNotFound, if nothing is known of it."""
    if ending is None:
        raise JobNotFound.of(job_id)
    error = ending.outcome.error
    if ending.state == JobState.CANCELLED:
        if error is not None and error.type == "ParentFailed":
            raise JobCancelled(f"job {job_id.hex()} was cancelled: {error.message}")
        raise JobCancelled(f"job {job_id.hex()} was {error.message if error else 'cancelled'}")
    if error is not None:
        raise JobFailed(job_id.hex(), error.type, error.message, error.traceback, error.module, error.causes)


def _check_start(start: int) -> None:
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < 1 << 62:
        raise ConfigError(f"start={start!r}: use the number of an item, 0 or more")
