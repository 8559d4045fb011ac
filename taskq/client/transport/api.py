"""What applications ask of a queue, whatever engine is behind it, and the two ways to ask.

    QueueApi           the calls, as operations: generators that any shell runs
    QueueClient        runs them, and blocks
    AsyncQueueClient   runs them, for asyncio

An engine brings its own `QueueApi` and a shell for each way, as a subclass with `run`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from taskq.client.transport.verbs import Operation
from taskq.model.info.search import ALL_JOBS, FoundJobs, JobSearch
from taskq.model.job import JobState
from taskq.model.spec import Spec
from taskq.protocol.endings import Ending
from taskq.protocol.payloads.files import PayloadFiles
from taskq.protocol.submissions import Call, Flow
from taskq.system.clock import ClientClock

if TYPE_CHECKING:  # only who asks for these imports them, in `operations`: to enqueue takes half the time without
    from taskq.model.info.counts import TaskCounts
    from taskq.model.info.job import JobInfo
    from taskq.model.info.schedule import ScheduleInfo
    from taskq.model.info.status import FleetStatus
    from taskq.model.info.why import WhyInfo
    from taskq.model.schedule import Schedule

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Stream(Protocol[T_co]):
    """What comes bit by bit."""

    def next(self) -> Operation[Sequence[T_co]]:
        """What comes next, as soon as there is any; nothing at the end."""

    def close(self) -> None:
        """Ends the stream."""


class EndingStream(Protocol):
    """The endings of jobs, as they come."""

    waiting: dict[bytes, None]

    def submit(self, spec: Spec, chunk: Sequence[Call]) -> Operation[None]:
        """Submits jobs and watches them."""

    def next(self, timeout_s: float | None) -> Operation[tuple[bytes, Ending | None]]:
        """The next job that ended, and how; None for one that nothing is known of. ResultTimeout: none in time."""

    def arrived(self) -> list[tuple[bytes, Ending | None]]:
        """The further endings that have come already."""

    def close(self) -> None:
        """Ends the stream."""


class ItemStream(Stream[bytes], Protocol):
    """The items of one job."""

    ending: Ending | None


class QueueApi(Protocol):
    """A queue, as applications see it. All operations raise BrokerUnavailable if nobody answers.

    What returns is durable. An operation that raised may have been carried out all the same if its answer was lost; it
    is safe to repeat it, since jobs are known by ids that their clients have made. Two things are not part of this,
    since they concern the fleet of this machine: to stop it, and to reload it.

    Attributes:
        payloads: the files of large arguments and results.
    """

    payloads: PayloadFiles

    def submit(self, spec: Spec, calls: Iterable[Call], waits_for_room: bool = False) -> Operation[list[bytes]]:
        """Submits jobs of one kind. Returns the ids of the jobs that stand for them: an earlier one may stand for a job
        that is unique. With `waits_for_room` it tries again while the queue is full."""

    def submit_flow(self, flow: Flow, waits_for_room: bool = False) -> Operation[None]:
        """Submits jobs of any kinds that may come after each other: all of them, or none."""

    def watching(self, ids: Iterable[bytes] = ()) -> EndingStream:
        """Opens a stream of the endings of jobs."""

    def items(self, job_id: bytes, start: int, timeout_s: float | None) -> ItemStream:
        """Opens a stream of the items that a job yields, from a number on."""

    def wait(self, job_id: bytes, timeout_s: float | None) -> Operation[Ending]:
        """Waits for the end of a job. Raises ResultTimeout, JobNotFound."""

    def info(self, job_id: bytes, arguments: bool = False) -> Operation[JobInfo]:
        """All that is known of a job; its arguments only if they are wanted. Raises JobNotFound."""

    def why(self, job_id: bytes) -> Operation[WhyInfo]:
        """Why a job does not run. Raises JobNotFound."""

    def cancel(self, job_id: bytes, also_running: bool) -> Operation[bool]:
        """Cancels a job; if it runs and that is wanted, stops it and waits for its end. Returns whether it is
        cancelled."""

    def retry(self, job_id: bytes) -> Operation[None]:
        """Queues a failed job again. Raises JobNotFound, JobStateError."""

    def purge(self, job_id: bytes) -> Operation[None]:
        """Removes a job that does not run. Raises JobNotFound, JobStateError."""

    def find(
        self,
        state: JobState | None,
        task: str | None,
        queue: str | None,
        place: bytes | int | None,
        limit: int | None,
        search: JobSearch = ALL_JOBS,
        within_s: float | None = None,
    ) -> Operation[FoundJobs]:
        """Lists jobs, newest first, from a place on, which is an id or what an earlier call returned; None stands for
        all of them. After `within_s` seconds it returns what it has found by then, and where to go on."""

    def retry_all(self, task: str | None, queue: str | None) -> Operation[int]:
        """Queues all failed jobs again, or those of a task or queue. Returns their number."""

    def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> Operation[int]:
        """Removes the jobs in a state that ended before a time (seconds since 1970), or were enqueued before it if they
        wait. Returns their number."""

    def pause(self, queues: Sequence[str], is_paused: bool, by: str) -> Operation[list[str]]:
        """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change."""

    def schedules(self) -> Operation[list[ScheduleInfo]]:
        """All schedules, by name."""

    def put_schedule(self, schedule: Schedule) -> Operation[ScheduleInfo]:
        """Adds a schedule, or replaces the one of its name."""

    def remove_schedule(self, name: str) -> Operation[None]:
        """Removes a schedule. Raises ScheduleNotFound."""

    def pause_schedule(self, name: str, is_paused: bool) -> Operation[ScheduleInfo]:
        """Pauses or resumes a schedule. Raises ScheduleNotFound."""

    def run_schedule(self, name: str, job_id: bytes) -> Operation[None]:
        """Makes a job of a schedule now. Raises ScheduleNotFound."""

    def status(self) -> Operation[FleetStatus]:
        """What the fleet is doing. Raises BrokerUnavailable: none runs."""

    def look(self) -> Operation[FleetStatus]:
        """What the fleet is doing, or what one that does not run has left."""

    def counts(self) -> Operation[list[TaskCounts]]:
        """What happened to the jobs of each task and queue, by name."""


def run_by(operation: Callable[Concatenate[Any, P], Operation[T]]) -> Callable[Concatenate[QueueClient, P], T]:
    """A method of a client that runs the operation of this name."""
    name = operation.__name__

    @wraps(operation)
    def call(self: QueueClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        asked: Operation[T] = getattr(self.queue, name)(*args, **kwargs)
        return self.run(asked)

    return call


def arun_by(
    operation: Callable[Concatenate[Any, P], Operation[T]],
) -> Callable[Concatenate[AsyncQueueClient, P], Coroutine[Any, Any, T]]:
    """`run_by` for asyncio."""
    name = operation.__name__

    @wraps(operation)
    def call(self: AsyncQueueClient, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return self.run(getattr(self.queue, name)(*args, **kwargs))

    return call


class QueueClient(ABC):
    """The calls of an application; each blocks until it is done. Any thread may make them."""

    #: Whether the last answer came from what a fleet that does not run has left.
    is_stopped: bool = False

    def __init__(self, queue: QueueApi, clock: ClientClock) -> None:
        self.queue = queue
        self.clock = clock

    @abstractmethod
    def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""

    @abstractmethod
    def close(self) -> None:
        """Closes the connections that nobody uses at the moment; the next call opens another."""

    def each(self, stream: Stream[T]) -> Generator[T, None, None]:
        """Yields what comes in a stream, and closes it in the end."""
        try:
            while found := self.run(stream.next()):
                yield from found
        finally:
            stream.close()

    @contextmanager
    def watching(self, ids: Iterable[bytes] = ()) -> Iterator[WatchedJobs]:
        """Opens a stream of the endings of jobs."""
        watched = WatchedJobs(self, self.queue.watching(ids))
        try:
            yield watched
        finally:
            watched.stream.close()

    submit = run_by(QueueApi.submit)
    submit_flow = run_by(QueueApi.submit_flow)
    wait = run_by(QueueApi.wait)
    info = run_by(QueueApi.info)
    why = run_by(QueueApi.why)
    cancel = run_by(QueueApi.cancel)
    retry = run_by(QueueApi.retry)
    purge = run_by(QueueApi.purge)
    find = run_by(QueueApi.find)
    retry_all = run_by(QueueApi.retry_all)
    purge_all = run_by(QueueApi.purge_all)
    pause = run_by(QueueApi.pause)
    schedules = run_by(QueueApi.schedules)
    put_schedule = run_by(QueueApi.put_schedule)
    remove_schedule = run_by(QueueApi.remove_schedule)
    pause_schedule = run_by(QueueApi.pause_schedule)
    run_schedule = run_by(QueueApi.run_schedule)
    status = run_by(QueueApi.status)
    look = run_by(QueueApi.look)
    counts = run_by(QueueApi.counts)


class WatchedJobs:
    """Jobs whose endings come to one who blocks."""

    def __init__(self, client: QueueClient, stream: EndingStream) -> None:
        self._client = client
        self.stream = stream

    @property
    def waiting(self) -> dict[bytes, None]:
        """Those that have not ended, in order."""
        return self.stream.waiting

    def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how; None for one that nothing is known of.

        Raises:
            ResultTimeout: none ended in time.
        """
        return self._client.run(self.stream.next(timeout_s))


class AsyncQueueClient(ABC):
    """The calls of the tasks of one event loop."""

    def __init__(self, queue: QueueApi, clock: ClientClock) -> None:
        self.queue = queue
        self.clock = clock

    @abstractmethod
    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation to its end."""

    async def each(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        """Yields what comes in a stream, and closes it in the end."""
        try:
            while found := await self.run(stream.next()):
                for one in found:
                    yield one
        finally:
            stream.close()

    submit = arun_by(QueueApi.submit)
    submit_flow = arun_by(QueueApi.submit_flow)
    wait = arun_by(QueueApi.wait)
    info = arun_by(QueueApi.info)
    why = arun_by(QueueApi.why)
    cancel = arun_by(QueueApi.cancel)
    retry = arun_by(QueueApi.retry)
    purge = arun_by(QueueApi.purge)
    find = arun_by(QueueApi.find)
    retry_all = arun_by(QueueApi.retry_all)
    purge_all = arun_by(QueueApi.purge_all)
    pause = arun_by(QueueApi.pause)
    schedules = arun_by(QueueApi.schedules)
    put_schedule = arun_by(QueueApi.put_schedule)
    remove_schedule = arun_by(QueueApi.remove_schedule)
    pause_schedule = arun_by(QueueApi.pause_schedule)
    run_schedule = arun_by(QueueApi.run_schedule)
    status = arun_by(QueueApi.status)
    look = arun_by(QueueApi.look)
    counts = arun_by(QueueApi.counts)
