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
from taskq.protocol.payloads.files import PayloadFiles, PayloadLost
from taskq.protocol.submissions import EarlierId

if TYPE_CHECKING:
    from taskq.model.info.job import JobInfo
    from taskq.model.info.why import WhyInfo

R_co = TypeVar("R_co", covariant=True)


class Job(ResultOf, Generic[R_co]):
    """The handle of one job. It holds an id and no connection: make as many as you like, keep the id, and come back.

    As an argument of another job it stands for its result: that job waits for this one.
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
        self._id, self._has_result = job_id, has_result  # no call of the base: there is a handle for each job
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
        """Returns the state of the job, such as `JobState.QUEUED`.

        Raises:
            JobNotFound: nothing is known of the job.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        return self.info().state

    def info(self, *, arguments: bool = False) -> JobInfo:
        """Returns all that is known of the job: its state, attempts, error, times, and how its process died.

        Args:
            arguments: whether to return what it was called with, too. That is kept until the job has succeeded or was
                cancelled. The application may hide some of it; see `TaskQ.redact`.

        Raises:
            JobNotFound: nothing is known of the job.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        return redacted(self._app.client.info(self._id, arguments), self._app.redaction)

    def why(self) -> WhyInfo:
        """Returns why the job does not run: a paused queue, a limit and the jobs that hold it, its time, jobs that it
        waits for, or what is wrong with the fleet. Also says if it runs, or has ended.

        Raises:
            JobNotFound: nothing is known of the job.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        return self._app.client.why(self._id)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the job has ended, in whatever way.

        Args:
            timeout: wait for at most this many seconds; None for as long as it takes.

        Returns:
            Whether it has ended.

        Raises:
            JobNotFound: nothing is known of the job.
        """
        try:
            self._app.client.wait(self._id, timeout)
        except ResultTimeout:
            return False
        return True

    def result(self, timeout: float | None = None) -> R_co:
        """Waits for the job to end and returns what the function returned. The broker pushes it; nothing is polled.

        Args:
            timeout: wait for at most this many seconds; None for as long as it takes.

        Raises:
            JobFailed: the job failed for good; the remote error is in it.
            JobCancelled: the job was cancelled, or raised `Cancel`; the reason is in it.
            ResultTimeout: the job has not ended in time; it goes on.
            JobNotFound: nothing is known of the job.
        """
        ending = self._ending or self._app.client.wait(self._id, timeout)
        return cast(R_co, value_of_ending(self._app.payloads, self._id, ending, self._cast))

    def _with(self, ending: Ending) -> Job[R_co]:
        """Returns a handle of the same job that knows its ending, if that is final (a failed job may be retried)."""
        return Job(self._app, self._id, self._cast, ending if ending.state == JobState.SUCCEEDED else None)

    def items(self, *, start: int = 0, timeout: float | None = None) -> Iterator[Any]:
        """Yields what a generator task yields, while it runs or later; `result` is what it returns in the end.

        Items are numbered, and stored as they come: an item that was yielded once is yielded again to every reader,
        even after the death of any process. A retry starts the generator again, but stored items stay: readers see each
        number once, with the item of the first attempt that reached it.

        Args:
            start: the number of the first item, counted from 0: an interrupted reader can go on where it was.
            timeout: wait for the next item for at most this many seconds; None for as long as it takes.

        Raises:
            JobFailed, JobCancelled: after the last item, if the job did not succeed.
            ResultTimeout: the next item did not come in time; the job goes on.
            JobNotFound: nothing is known of the job.
            ConfigError: `start` is not the number of an item.
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
        """Cancels the job. A pending job never starts. In a running job `JobTimeout` is raised, and 2 s later its
        process is killed, even in the middle of C code; this waits for its end.

        Args:
            running: whether to cancel it if it runs; False lets a running job go on.

        Returns:
            Whether it is cancelled now, which is durable. False: it has ended in another way, or runs and goes on.

        Raises:
            JobNotFound: nothing is known of the job.
            BrokerUnavailable: no fleet answers.
        """
        return self._app.client.cancel(self._id, running)

    def retry(self) -> None:
        """Queues a failed job again: at the end of its queue, with all its retries. Its attempts are counted on. When
        this returns, that is durable. The job no longer expires, and another may have its `unique=` key.

        Jobs that were cancelled because it failed (see `taskq.chain`) wait for it again, unless they were cancelled by
        hand, or also come after another job that must succeed and was purged.

        This is the only way in which a stored end changes: whoever waits for the job from now on gets its new end.

        Raises:
            JobStateError: the job has not failed: it is pending or running, or has ended in another way.
            JobNotFound: nothing is known of the job.
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        self._app.client.retry(self._id)

    def purge(self) -> None:
        """Removes the job and all that is known of it, unless it runs. Whoever waits for its end gets `JobNotFound`.

        A pending job is counted as cancelled in the totals.

        Raises:
            JobStateError: the job is running.
            JobNotFound: nothing is known of the job.
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
        return cast(R_co, value_of_ending(self._app.payloads, self._id, ending, self._cast))

    async def ainfo(self, *, arguments: bool = False) -> JobInfo:
        """`info` for asyncio."""
        return redacted(await self._app.async_client().info(self._id, arguments), self._app.redaction)

    async def awhy(self) -> WhyInfo:
        """`why` for asyncio."""
        return await self._app.async_client().why(self._id)

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


def value_of_ending(
    payloads: PayloadFiles, job_id: bytes, ending: Ending | None, caster: Callable[[Any], Any] | None
) -> Any:
    """Returns the value in an ending, or raises its error.

    Args:
        payloads: the files of large results.
    """
    check_ending(job_id, ending)
    assert ending is not None
    if ending.outcome.result is None:
        return None
    value = decode_result(job_id, content_of(payloads, job_id, ending.outcome.result))
    return value if caster is None else caster(value)


def content_of(payloads: PayloadFiles, job_id: bytes, result: bytes | memoryview) -> bytes | memoryview:
    """Returns the result of a job, or the content of its file. Raises JobNotFound if that is gone."""
    try:
        return payloads.read(job_id, result)
    except PayloadLost as error:
        raise JobNotFound(f"the result of job {job_id.hex()} is not kept any more: {error}") from error


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
