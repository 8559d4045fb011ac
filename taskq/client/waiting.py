"""Waiting for many jobs: all of them, each as it ends, or the first.

    gather(jobs)  as_completed(jobs)  wait_any(jobs)          and for asyncio
    agather(jobs)  aas_completed(jobs)  await_any(jobs)

One connection carries the endings of all jobs of a call, pushed by the broker; nothing is polled.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, closing, contextmanager
from typing import Any, Generic, Literal, TypeVar, cast, overload

from taskq.client.job import Job, value_of_ending
from taskq.client.transport.api import QueueApi
from taskq.client.transport.clients import FleetConnection
from taskq.client.transport.verbs import Operation
from taskq.model.errors import ConfigError, JobCancelled, JobFailed, JobNotFound, ResultTimeout, TaskQError
from taskq.protocol.endings import Ending
from taskq.system.clock import SHORTEST_WAIT_S, Clock

#: True for a bar on standard error, if that is a terminal; or a function that is called with the number of jobs done,
#: and of all jobs (None if that is not known), at the start and after each end of a job:
#: ``with tqdm(total=len(jobs)) as bar: gather(jobs, progress=lambda done, total: bar.update(done - bar.n))``
Progress = bool | Callable[[int, int | None], object]


#: A terminal shows no more than this, and an update takes ten microseconds.
_SHOW_EVERY_S = 0.05


@contextmanager
def reporting(progress: Progress, total: int | None, title: str) -> Iterator[Callable[[int], object]]:
    """Yields a function to call with the number of jobs that have ended, after each end."""
    if callable(progress):
        progress(0, total)
        yield lambda done: progress(done, total)
    elif progress and sys.stderr is not None and sys.stderr.isatty():
        with _bar(total, title) as tell:
            yield tell
    else:
        yield _tell_nobody


def _tell_nobody(_done: int) -> None:
    pass


@contextmanager
def _bar(total: int | None, title: str) -> Iterator[Callable[[int], object]]:
    from rich.console import Console  # takes 60 ms to import: only programs that show a bar pay for it
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    count = 0
    show_at = 0.0
    with Bar(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task(title, total=total)

        def tell(done: int) -> None:
            nonlocal count, show_at
            count = done
            now = time.monotonic()
            if now >= show_at:
                show_at = now + _SHOW_EVERY_S
                bar.update(shown, completed=done)

        try:
            yield tell
        finally:
            bar.update(shown, completed=count, total=total)


R = TypeVar("R")


Errors = Literal["raise", "return"]


#: Even `timeout=0` waits this much longer for each job: for the answer that it has already ended (it takes a tenth of
#: that).
_ANSWER_S = 0.0005


@overload
def gather(
    jobs: Iterable[Job[R]],
    *,
    timeout: float | None = None,
    errors: Literal["raise"] = "raise",
    progress: Progress = False,
) -> list[R]: ...


@overload
def gather(
    jobs: Iterable[Job[R]], *, timeout: float | None = None, errors: Literal["return"], progress: Progress = False
) -> list[R | TaskQError]: ...


def gather(
    jobs: Iterable[Job[Any]], *, timeout: float | None = None, errors: Errors = "raise", progress: Progress = False
) -> list[Any]:
    """Waits for all jobs and returns their results, in the order of the jobs.

    Args:
        jobs: handles of jobs in one queue. One that is given twice has its result in both places.
        timeout: wait for at most this many seconds in all; None for as long as it takes.
        errors: "raise": the first job that does not succeed ends the wait, and its error is raised (the others go
            on); "return": errors are among the results, in the places of their jobs.
        progress: True shows a bar on standard error, if that is a terminal. Or a function `progress(done, total)`,
            such as tqdm's:
            ``with tqdm(total=len(jobs)) as bar: gather(jobs, progress=lambda n, _: bar.update(n - bar.n))``

    Raises:
        JobFailed, JobCancelled, JobNotFound: as `Job.result`.
        ResultTimeout: some jobs have not ended in time; the message says how many. They go on.
        ConfigError: the jobs belong to different queues, or `errors` is neither.
    """
    gathering = _Gathering(jobs, errors)
    with reporting(progress, len(gathering.jobs), "gather") as tell, closing(_endings(gathering.jobs, timeout)) as ends:
        for done, (job, ending) in enumerate(ends, 1):
            gathering.take(job, ending)
            tell(done)
    return gathering.values()


@overload
async def agather(
    jobs: Iterable[Job[R]],
    *,
    timeout: float | None = None,
    errors: Literal["raise"] = "raise",
    progress: Progress = False,
) -> list[R]: ...


@overload
async def agather(
    jobs: Iterable[Job[R]], *, timeout: float | None = None, errors: Literal["return"], progress: Progress = False
) -> list[R | TaskQError]: ...


async def agather(
    jobs: Iterable[Job[Any]], *, timeout: float | None = None, errors: Errors = "raise", progress: Progress = False
) -> list[Any]:
    """`gather` for asyncio."""
    gathering = _Gathering(jobs, errors)
    with reporting(progress, len(gathering.jobs), "gather") as tell:
        done = 0
        async with aclosing(_aendings(gathering.jobs, timeout)) as ends:
            async for job, ending in ends:
                gathering.take(job, ending)
                done += 1
                tell(done)
    return gathering.values()


def as_completed(jobs: Iterable[Job[R]], *, timeout: float | None = None) -> Generator[Job[R], None, None]:
    """Yields the handles of jobs in the order in which they end, in whatever way.

    The handle of a job that succeeded has its result: `result()` does not ask again.

    Args:
        jobs: handles of jobs in one queue. One that is given twice is yielded once.
        timeout: wait for at most this many seconds in all, counted from the first `next()`; None for as long as it
            takes.

    Raises:
        JobNotFound: nothing is known of one of them.
        ResultTimeout: some jobs have not ended in time; the message says how many. They go on.
        ConfigError: the jobs belong to different queues.
    """
    by_id = _by_id(jobs)
    with closing(_endings(by_id, timeout)) as ends:
        for job, ending in ends:
            yield _ended(job, ending)


async def aas_completed(jobs: Iterable[Job[R]], *, timeout: float | None = None) -> AsyncGenerator[Job[R], None]:
    """`as_completed` for asyncio: ``async for job in aas_completed(jobs): ...``"""
    by_id = _by_id(jobs)
    async with aclosing(_aendings(by_id, timeout)) as ends:
        async for job, ending in ends:
            yield _ended(job, ending)


def wait_any(jobs: Iterable[Job[R]], *, timeout: float | None = None) -> Job[R]:
    """Waits for the first of some jobs to end, in whatever way, and returns its handle.

    Args:
        jobs: handles of jobs in one queue.
        timeout: wait for at most this many seconds; None for as long as it takes.

    Raises:
        JobNotFound: nothing is known of one of them.
        ResultTimeout: none has ended in time; they go on.
        ConfigError: there are no jobs, or they belong to different queues.
    """
    with closing(as_completed(_some(jobs), timeout=timeout)) as ended:
        return next(ended)


async def await_any(jobs: Iterable[Job[R]], *, timeout: float | None = None) -> Job[R]:
    """`wait_any` for asyncio."""
    async with aclosing(aas_completed(_some(jobs), timeout=timeout)) as ended:
        return await anext(ended)


# -- shared by the blocking and the asyncio functions


class _Gathering(Generic[R]):
    """The results of some jobs, as they come."""

    def __init__(self, jobs: Iterable[Job[R]], errors: Errors) -> None:
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors={errors!r}: use 'raise' or 'return'")
        listed = list(jobs)
        self._raises = errors == "raise"
        self._order = [job._id for job in listed]
        self._values: dict[bytes, R | TaskQError] = {}
        self.jobs = _by_id(listed)

    def take(self, job: Job[R], ending: Ending | None) -> None:
        """Takes the end of a job."""
        try:
            self._values[job._id] = _value(job, ending)
        except (JobFailed, JobCancelled, JobNotFound) as error:
            if self._raises:
                raise
            self._values[job._id] = error

    def values(self) -> list[R | TaskQError]:
        """The results of all, in the order of the jobs."""
        return [self._values[job_id] for job_id in self._order]


def _value(job: Job[R], ending: Ending | None) -> R:
    if ending is None:
        raise JobNotFound.of(job._id)
    return cast(R, value_of_ending(job._app.payloads, job._id, ending, job._cast))


def _ended(job: Job[R], ending: Ending | None) -> Job[R]:
    if ending is None:
        raise JobNotFound.of(job._id)
    return job._with(ending)


def _by_id(jobs: Iterable[Job[R]]) -> dict[bytes, Job[R]]:
    by_id = {job._id: job for job in jobs}
    places = {app.place.shown for app in {id(job._app): job._app for job in by_id.values()}.values()}
    if len(places) > 1:
        told = ", ".join(sorted(places))
        raise ConfigError(f"these jobs belong to different queues ({told}): wait for those of each queue separately")
    return by_id


def _some(jobs: Iterable[Job[R]]) -> list[Job[R]]:
    listed = list(jobs)
    if not listed:
        raise ConfigError("there is no job to wait for: the list is empty")
    return listed


def _app(by_id: dict[bytes, Job[R]]) -> FleetConnection:
    return next(iter(by_id.values()))._app


class _Deadline:
    """When the wait for some jobs is over."""

    def __init__(self, timeout_s: float | None, jobs: int, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._jobs = jobs
        shortest_s = SHORTEST_WAIT_S + jobs * _ANSWER_S
        self._clock = clock
        self._at = None if timeout_s is None else clock.monotonic() + max(timeout_s, shortest_s)

    def left_s(self, waiting: int) -> float | None:
        """The seconds that are left, None for no end."""
        left_s = None if self._at is None else self._at - self._clock.monotonic()
        if left_s is not None and left_s <= 0:
            raise self.missed(waiting)
        return left_s

    def missed(self, waiting: int) -> ResultTimeout:
        """Returns the error that says how many jobs have not ended."""
        verb = "has" if waiting == 1 else "have"
        text = f"{waiting:,} of {self._jobs:,} jobs {verb} not ended within {self._timeout_s:g} s"
        return ResultTimeout(f"{text}; {'it goes' if waiting == 1 else 'they go'} on")


class _Ends(Generic[R]):
    """The jobs as they end, and how: a `taskq.client.transport.api.Stream`. None for one that nothing is known of."""

    def __init__(self, queue: QueueApi, by_id: dict[bytes, Job[R]], timeout: float | None, clock: Clock) -> None:
        self._by_id = by_id
        self._deadline = _Deadline(timeout, len(by_id), clock)
        self._endings = queue.watching(by_id)

    def next(self) -> Operation[list[tuple[Job[R], Ending | None]]]:
        """Returns the next ones; an empty list when all have ended."""
        waiting = len(self._endings.waiting)
        if not waiting:
            return []
        try:
            first = yield from self._endings.next(self._deadline.left_s(waiting))
        except ResultTimeout:
            raise self._deadline.missed(waiting) from None
        return [(self._by_id[job_id], ending) for job_id, ending in (first, *self._endings.arrived())]

    def close(self) -> None:
        """Ends the stream."""
        self._endings.close()


def _endings(by_id: dict[bytes, Job[R]], timeout: float | None) -> Generator[tuple[Job[R], Ending | None], None, None]:
    if by_id:
        client = _app(by_id).client
        yield from client.each(_Ends(client.queue, by_id, timeout, client.clock))


async def _aendings(
    by_id: dict[bytes, Job[R]], timeout: float | None
) -> AsyncGenerator[tuple[Job[R], Ending | None], None]:
    if by_id:
        client = _app(by_id).async_client()
        async with aclosing(client.each(_Ends(client.queue, by_id, timeout, client.clock))) as ends:
            async for end in ends:
                yield end
