"""The public face: TaskQ, its tasks, and the handles of their jobs.

q = TaskQ("thumbs")

@q.task(queue="images", retries=3, timeout=30)
def thumbnail(path: str, size: int = 256) -> str: ...

thumbnail("cat.jpg")                         # an ordinary call
job = thumbnail.enqueue("cat.jpg", size=128) # a job for the fleet
job.result(timeout=30)
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import update_wrapper
from itertools import tee
from math import inf
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from taskq.client import Client, EarlierId, Ending, Endings, chunks
from taskq.codec import RESULT_OF_MARK, CallCaster, ResultOf, decode_result, encode_call, results_in
from taskq.config import Directory, Settings, queue_directory
from taskq.context import keep_back
from taskq.errors import (
    BrokerUnavailable,
    ConfigError,
    JobCancelled,
    JobFailed,
    JobNotFound,
    PayloadTooLarge,
    QueueFull,
    ResultTimeout,
)
from taskq.flows import Call
from taskq.hooks import Hooks, HookT, MiddlewareT
from taskq.items import read_items
from taskq.limits import MAX_PAYLOAD_BYTES
from taskq.model import DEFAULT_RETRIES, NO_TERMS, JobInfo, JobState, Spec, Terms, enqueued_at, new_job_ids
from taskq.options import JobOptions, apply_options
from taskq.progress import Progress, reporting
from taskq.retries import NO_RETRY_RULES, ErrorTypes, RetryRules, read_rules
from taskq.rules import PLAIN, Rules
from taskq.schedules import ScheduleOptions, Schedules, check_call

if TYPE_CHECKING:
    from taskq.aio import AsyncClient
    from taskq.signatures import MapOptions, Takes1, Takes2, Takes3, Takes4
    from taskq.workflows import Step

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R_co = TypeVar("R_co", covariant=True)

#: `map` submits in chunks that grow from the first to the second, and keeps at most so many jobs unfinished.
_MAP_FIRST_CHUNK = 16
_MAP_LARGEST_CHUNK = 512
_MAP_WINDOW = 2_048


class Job(ResultOf, Generic[R_co]):
    """The handle of one job. It holds an id and no connection: make as many as you like, keep the id and come back.

    Among the arguments of another job it stands for the result: that job waits for this one.
    """

    __slots__ = ("_app", "_cast", "_ending")

    def __init__(
        self,
        app: TaskQ,
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

    def info(self) -> JobInfo:
        """All that is known of the job: state, attempts, error, times, the exit of a crash.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no fleet answers, and the job is not in the spool either.
        """
        client = self._app.client
        try:
            return client.info(self._id)
        except BrokerUnavailable:
            if client.is_spooled(self._id):
                return self._spooled_info()
            raise

    def _spooled_info(self) -> JobInfo:
        return JobInfo(self.id, "", "", JobState.QUEUED, 0, 0, enqueued_at(self._id))

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
        found = read_items(self._app.client, self._id, start, timeout)
        try:
            while True:
                try:
                    item = next(found)
                except StopIteration as end:
                    check_ending(self._id, end.value)
                    return
                yield decode_result(self._id, item)
        finally:
            found.close()

    async def aitems(self, *, start: int = 0, timeout: float | None = None) -> AsyncGenerator[Any, None]:
        """`items` for asyncio: ``async for item in job.aitems(): ...``"""
        _check_start(start)
        ends: list[Ending] = []
        found = self._app.async_client().items(self._id, start, timeout, ends.append)
        async with aclosing(found):
            async for item in found:
                yield decode_result(self._id, item)
        check_ending(self._id, ends[0])

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

        What was cancelled because it failed (see `taskq.chain`) waits for it again.

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

    async def aresult(self, timeout: float | None = None) -> R_co:
        """`result` for asyncio: waits without blocking the loop."""
        ending = self._ending or await self._app.async_client().wait(self._id, timeout)
        return cast(R_co, value_of_ending(self._id, ending, self._cast))

    async def ainfo(self) -> JobInfo:
        """`info` for asyncio."""
        client = self._app.async_client()
        try:
            return await client.info(self._id)
        except BrokerUnavailable:
            if await client.is_spooled(self._id):
                return self._spooled_info()
            raise

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


def value_of_ending(job_id: bytes, ending: Ending, caster: Callable[[Any], Any] | None) -> Any:
    """The returned value in an ending, or its error as an exception."""
    check_ending(job_id, ending)
    if ending.outcome.result is None:
        return None
    value = decode_result(job_id, ending.outcome.result)
    return value if caster is None else caster(value)


def check_ending(job_id: bytes, ending: Ending) -> None:
    """Raises the error in an ending, if the job did not succeed."""
    error = ending.outcome.error
    if ending.state == JobState.CANCELLED:
        if error is not None and error.type == "ParentFailed":
            raise JobCancelled(f"job {job_id.hex()} was cancelled: {error.message}")
        raise JobCancelled(f"job {job_id.hex()} was {error.message if error else 'cancelled'}")
    if error is not None:
        raise JobFailed(job_id.hex(), error.type, error.message, error.traceback)


def _check_start(start: int) -> None:
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start < 1 << 62:
        raise ConfigError(f"start={start!r}: use the number of an item, 0 or more")


class Enqueuer(Generic[P, R_co]):
    """The ways to enqueue one task with certain options. A task is one; `options()` makes others."""

    def __init__(
        self,
        app: TaskQ,
        spec: Spec,
        rules: Rules = PLAIN,
        function: Callable[P, R] | None = None,
        return_caster: Callable[[Any], Any] | None = None,
    ) -> None:
        self._app = app
        self._spec = spec
        self._rules = rules
        self._is_plain = rules.is_plain
        self._function = function
        self._return_caster = return_caster

    def for_schedule(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Spec, Terms | None]:
        """What the jobs of a schedule have; times in their terms are seconds after the fire.

        Raises:
            ConfigError: the task cannot be called so, or has a fixed time.
        """
        rules, task = self._rules, self._spec.task
        if rules.at is not None or rules.expires_at is not None:
            raise ConfigError(f"{task} with a fixed time (at=, expires=): a schedule fires again and again")
        if self._function is not None:
            check_call(task, self._function, args, kwargs)
        return self._spec, None if self._is_plain else rules.terms(task, self._function, args, kwargs, 0.0)

    def options(self, **options: Unpack[JobOptions]) -> Enqueuer[P, R_co]:
        """The same task with other options for the jobs enqueued through what is returned; see
        `taskq.options.JobOptions` for all there are.

        Raises:
            ConfigError: an option makes no sense, or not with the others.
            TypeError: there is no such option.
        """
        task = self._app.tasks.get(self._spec.task)
        if "backoff" in options and task is not None and task.retry_rules.backoff is not None:
            raise ConfigError(f"the backoff of {task.name} is a function, which goes first: a list has no effect")
        spec, rules = apply_options(self._spec, self._rules, options, self._function)
        return Enqueuer(self._app, spec, rules, self._function, self._return_caster)

    @overload
    def enqueue(self: Enqueuer[P, Generator[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    def enqueue(self: Enqueuer[P, Coroutine[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """Enqueues a job; when this returns it survives `kill -9` of any process, and power loss.

        Raises:
            PayloadError: an argument cannot be serialized; the message names it.
            PayloadTooLarge: the arguments are too large.
            QueueFull, StoreFull: the fleet takes no more for now.
            BrokerUnavailable: no fleet answers and the spool cannot be written.
            ConfigError: a key (`unique=`, `limit_by=` ...) cannot be made of these arguments.
        """
        [job_id] = self._submit([self._call(args, kwargs)])
        return self._job(job_id)

    def step(self, *args: Any, **kwargs: Any) -> Step[R_co]:
        """A call to be part of a workflow, see `taskq.chain`; nothing is sent.

        In a chain the function gets the result of the step before as its first argument, before these.

        Raises:
            ConfigError: the task's jobs are unique, or come after others already.
        """
        from taskq.workflows import Step  # workflows stand above applications

        return Step(self, args, kwargs)

    @overload
    def enqueue_many(self: Takes1[A, R], arguments: Iterable[tuple[A]]) -> list[Job[R]]: ...
    @overload
    def enqueue_many(self: Takes2[A, B, R], arguments: Iterable[tuple[A, B]]) -> list[Job[R]]: ...
    @overload
    def enqueue_many(self: Takes3[A, B, C, R], arguments: Iterable[tuple[A, B, C]]) -> list[Job[R]]: ...
    @overload
    def enqueue_many(
        self: Takes4[A, B, C, D, R], arguments: Iterable[tuple[A, B, C, D, *tuple[Any, ...]]]
    ) -> list[Job[R]]: ...
    @overload
    def enqueue_many(self: Takes1[A, R], arguments: Iterable[tuple[A, ...] | list[Any]]) -> list[Job[R]]: ...
    @overload
    def enqueue_many(self, arguments: Iterable[tuple[()]]) -> list[Job[R_co]]: ...

    def enqueue_many(self, arguments: Iterable[Sequence[Any]]) -> list[Job[Any]]:
        """Enqueues a job for each tuple of arguments, many in one round trip.

        Args:
            arguments: for each job the positional arguments, such as ``[(1,), (2,)]``.

        Raises:
            As `enqueue`. The jobs that were sent before an error are enqueued.
        """
        return [self._job(job_id) for job_id in self._submit(self._calls(arguments))]

    @overload
    async def aenqueue(self: Enqueuer[P, Generator[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    async def aenqueue(self: Enqueuer[P, Coroutine[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """`enqueue` for asyncio."""
        [job_id] = await self._asubmit([self._call(args, kwargs)])
        return self._job(job_id)

    @overload
    async def aenqueue_many(self: Takes1[A, R], arguments: Iterable[tuple[A]]) -> list[Job[R]]: ...
    @overload
    async def aenqueue_many(self: Takes2[A, B, R], arguments: Iterable[tuple[A, B]]) -> list[Job[R]]: ...
    @overload
    async def aenqueue_many(self: Takes3[A, B, C, R], arguments: Iterable[tuple[A, B, C]]) -> list[Job[R]]: ...
    @overload
    async def aenqueue_many(
        self: Takes4[A, B, C, D, R], arguments: Iterable[tuple[A, B, C, D, *tuple[Any, ...]]]
    ) -> list[Job[R]]: ...
    @overload
    async def aenqueue_many(self: Takes1[A, R], arguments: Iterable[tuple[A, ...] | list[Any]]) -> list[Job[R]]: ...
    @overload
    async def aenqueue_many(self, arguments: Iterable[tuple[()]]) -> list[Job[R_co]]: ...

    async def aenqueue_many(self, arguments: Iterable[Sequence[Any]]) -> list[Job[Any]]:
        """`enqueue_many` for asyncio."""
        return [self._job(job_id) for job_id in await self._asubmit(self._calls(arguments))]

    def map(
        self: Takes1[A, R],
        iterable: Iterable[A],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        progress: Progress = False,
    ) -> Iterator[R]:
        """Runs the task for each item, across the fleet, and yields the results, like `Pool.map`.

        Submits while it yields, with a bounded number of jobs unfinished, so the iterable may be endless.

        Args:
            iterable: for each job its one argument.
            ordered: yield in the order of the items; False: as they come.
            timeout: seconds to wait for the next result at the most.
            progress: True shows a bar on standard error, if that is a terminal. Or a function `progress(done, total)`
                (the total is None if the iterable does not know its length), such as tqdm's:
                ``with tqdm() as bar: list(task.map(items, progress=lambda n, _: bar.update(n - bar.n)))``

        Raises:
            As `Job.result` and `enqueue`, when the result's turn comes.
            ConfigError: the jobs are unique, so there is not one for each item.
        """
        task = cast(Enqueuer[..., R], self)
        return task._map(((item,) for item in iterable), _length(iterable), ordered, timeout, progress)

    @overload
    def starmap(self: Takes1[A, R], iterable: Iterable[tuple[A]], **options: Unpack[MapOptions]) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes2[A, B, R], iterable: Iterable[tuple[A, B]], **options: Unpack[MapOptions]
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes3[A, B, C, R], iterable: Iterable[tuple[A, B, C]], **options: Unpack[MapOptions]
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes4[A, B, C, D, R],
        iterable: Iterable[tuple[A, B, C, D, *tuple[Any, ...]]],
        **options: Unpack[MapOptions],
    ) -> Iterator[R]: ...
    @overload
    def starmap(
        self: Takes1[A, R], iterable: Iterable[tuple[A, ...] | list[Any]], **options: Unpack[MapOptions]
    ) -> Iterator[R]: ...

    def starmap(
        self,
        iterable: Iterable[Sequence[Any]],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        progress: Progress = False,
    ) -> Iterator[Any]:
        """`map` for tuples of positional arguments."""
        return self._map(iterable, _length(iterable), ordered, timeout, progress)

    def _map(
        self,
        iterable: Iterable[Sequence[Any]],
        total: int | None,
        ordered: bool,
        timeout: float | None,
        progress: Progress,
    ) -> Iterator[Any]:
        if self._rules.unique is not None:
            raise ConfigError(f"{self._spec.task} is unique, so items may share a job: use enqueue_many, not map")
        if self._rules.on_success:
            raise ConfigError("on_success=True enqueues later, so there is nothing to wait for: use enqueue_many")
        calls = self._calls(iterable)
        with (
            self._app.client.watching() as endings,
            reporting(progress, total, self._spec.task) as tell,
        ):
            results = _counted(_stream(endings, self._spec, calls, timeout), tell)
            for job_id, ending in _in_order(results) if ordered else _as_they_come(results):
                yield value_of_ending(job_id, ending, self._return_caster)

    def _job(self, job_id: bytes) -> Job[Any]:
        return Job(self._app, job_id, self._return_caster, has_result=self._spec.keep_result)

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any], job_id: bytes | None = None) -> Call:
        job_id = job_id or next(new_job_ids(1))
        payload = encode_call(job_id, args, kwargs)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"the arguments of {self._spec.task} take {len(payload):,} bytes, the limit is {MAX_PAYLOAD_BYTES:,}: "
                "pass the path of a file instead"
            )
        return _with_terms(job_id, payload, None if self._is_plain else self._terms(args, kwargs))

    def _terms(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Terms:
        return self._rules.terms(self._spec.task, self._function, args, kwargs, time.time())

    def _calls(self, arguments: Iterable[Sequence[Any]]) -> Iterator[Call]:
        calls = _plain_calls(self._spec, arguments)
        if self._is_plain:
            return calls
        if self._rules.are_shared:
            terms = self._terms((), {})
            return (_with_terms(call.id, call.payload, terms) for call in calls)
        both, others = tee(arguments)
        return (
            _with_terms(call.id, call.payload, self._terms(args, {}))
            for call, args in zip(_plain_calls(self._spec, both), others, strict=True)
        )

    def _submit(self, calls: Iterable[Call]) -> list[bytes]:
        if self._rules.on_success:
            return self._keep_back(calls)
        client = self._app.client
        if not self._rules.waits_for_room:
            return client.submit(self._spec, calls)
        ids: list[bytes] = []
        for chunk in chunks(calls, self._spec.max_queued):
            for pause_s in pauses():
                try:
                    ids += client.submit(self._spec, chunk)
                    break
                except QueueFull:
                    time.sleep(pause_s)
        return ids

    def _keep_back(self, calls: Iterable[Call]) -> list[bytes]:
        flow = [(self._spec, call) for call in calls]
        keep_back(flow)
        return [call.id for _, call in flow]

    async def _asubmit(self, calls: Iterable[Call]) -> list[bytes]:
        if self._rules.on_success:
            return self._keep_back(calls)
        client = self._app.async_client()
        if not self._rules.waits_for_room:
            return await client.submit(self._spec, calls)
        ids: list[bytes] = []
        for chunk in chunks(calls, self._spec.max_queued):
            for pause_s in pauses():
                try:
                    ids += await client.submit(self._spec, chunk)
                    break
                except QueueFull:
                    await client.pause(pause_s)
        return ids


def _with_terms(job_id: bytes, payload: bytes, terms: Terms | None) -> Call:
    """A call, which comes after the jobs whose results are among its arguments."""
    if RESULT_OF_MARK in payload:
        own = terms or NO_TERMS
        after = {**dict(own.after), **dict.fromkeys(results_in(payload), False)}
        terms = replace(own, after=tuple(after.items()))
    return Call(job_id, payload, terms)


def pauses() -> Iterator[float]:
    """The pauses of one who waits for room in a queue: from 5 ms to 0.25 s."""
    pause_s = 0.005
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, 0.25)


_IDS_AT_ONCE = 256


def _plain_calls(spec: Spec, arguments: Iterable[Sequence[Any]]) -> Iterator[Call]:
    ids: Iterator[bytes] = iter(())
    for args in arguments:
        if type(args) is not tuple and (isinstance(args, (str, bytes)) or not isinstance(args, Sequence)):
            raise ConfigError(
                f"each job of {spec.task} needs a tuple of arguments, not {args!r:.60}: write ({args!r:.30},)"
            )
        job_id = next(ids, None)
        if job_id is None:
            ids = new_job_ids(_IDS_AT_ONCE)
            job_id = next(ids)
        payload = encode_call(job_id, args, {})
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"the arguments of one {spec.task} take {len(payload):,} bytes of {MAX_PAYLOAD_BYTES:,}"
            )
        yield Call(job_id, payload) if RESULT_OF_MARK not in payload else _with_terms(job_id, payload, None)


def _length(iterable: Iterable[Any]) -> int | None:
    return len(iterable) if isinstance(iterable, Sized) else None


_Step = tuple[list[bytes], tuple[bytes, Ending] | None]


def _stream(endings: Endings, spec: Spec, calls: Iterator[Call], timeout: float | None) -> Iterator[_Step]:
    """Submits calls and hears of endings in turn. Yields ids newly submitted, and an ending."""
    chunk_size = _MAP_FIRST_CHUNK
    is_exhausted = False
    while True:
        submitted: list[bytes] = []
        while not is_exhausted and len(endings.waiting) <= _MAP_WINDOW - chunk_size:
            chunk = [call for _, call in zip(range(chunk_size), calls, strict=False)]
            is_exhausted = len(chunk) < chunk_size
            for part in chunks(chunk):
                endings.submit(spec, part)
            submitted.extend(call.id for call in chunk)
            chunk_size = min(chunk_size * 2, _MAP_LARGEST_CHUNK)
            if len(endings.waiting) >= chunk_size:
                break  # hear of results in between
        if not endings.waiting:
            if submitted:
                yield submitted, None
            return
        job_id, ending = endings.next(timeout)
        if ending is None:
            raise JobNotFound(f"job {job_id.hex()} is no longer known: was the queue's directory replaced?")
        yield submitted, (job_id, ending)


def _counted(steps: Iterator[_Step], tell: Callable[[int], object]) -> Iterator[_Step]:
    """Tells how many jobs have ended so far."""
    done = 0
    for step in steps:
        if step[1] is not None:
            done += 1
            tell(done)
        yield step


def _in_order(steps: Iterator[_Step]) -> Iterator[tuple[bytes, Ending]]:
    turn: deque[bytes] = deque()
    ended: dict[bytes, Ending] = {}
    for submitted, arrived in steps:
        turn.extend(submitted)
        if arrived is not None:
            ended[arrived[0]] = arrived[1]
        while turn and turn[0] in ended:
            job_id = turn.popleft()
            yield job_id, ended.pop(job_id)


def _as_they_come(steps: Iterator[_Step]) -> Iterator[tuple[bytes, Ending]]:
    for _, arrived in steps:
        if arrived is not None:
            yield arrived


class Task(Enqueuer[P, R_co]):
    """A registered function. Calling it runs it here; its other methods make jobs of it."""

    def __init__(
        self,
        app: TaskQ,
        function: Callable[P, R_co],
        spec: Spec,
        rules: Rules = PLAIN,
        retry_rules: RetryRules = NO_RETRY_RULES,
    ) -> None:
        self.caster = CallCaster(function)
        super().__init__(app, spec, rules, function, self.caster.return_caster)
        self.function = function
        self.retry_rules = retry_rules
        self.is_async = inspect.iscoroutinefunction(function)
        self.is_generator = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        update_wrapper(self, function)

    @property
    def name(self) -> str:
        """The name under which the task is registered."""
        return self._spec.task

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


class TaskQ:
    """An application: a registry of tasks, and the way to the fleet that runs them."""

    def __init__(self, name: str, url: str | os.PathLike[str] | None = None) -> None:
        """
        Args:
            name: names the application, in logs and, without a URL, its directory.
            url: where the queue lives: a directory's path, or ``file:///path``. Without it TASKQ_URL counts, then
                the directory ``taskq/NAME`` in the user's state directory.

        Raises:
            ConfigError: the name or the URL makes no sense.
        """
        self.name = name
        self.directory = Directory(queue_directory(name, None if url is None else os.fspath(url)))
        self.tasks: dict[str, Task[..., Any]] = {}
        #: The schedules, to look at and to change.
        self.schedules = Schedules(self)
        self.hooks = Hooks()
        self._client: Client | None = None
        self._async_client: AsyncClient | None = None  # in place of that of the event loop

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        retry_on: ErrorTypes | None = None,
        give_up_on: ErrorTypes = (),
        **options: Unpack[JobOptions],
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(  # type: ignore[misc]  # mypy 2.4 does not see that the second form leaves out a default
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry_on: ErrorTypes | None = None,
        give_up_on: ErrorTypes = (),
        **options: Unpack[JobOptions],
    ) -> Any:
        """Registers a function as a task; a decorator, with or without arguments.

        Args:
            name: the task's name, by default the function's. It stays in stored jobs, so keep it when you rename
                or move the function.
            retry_on: the exceptions that are worth a retry; all others end the job. By default all are.
            give_up_on: exceptions that end the job at once; goes before `retry_on`. Neither is asked about timeouts,
                crashes, and what the job raises to say what it wants: `Retry`, `Snooze`, `Cancel`.
            options: what holds for all its jobs; see `taskq.options.JobOptions` for all there are.

        Raises:
            ConfigError: an option makes no sense, or the name is taken.
            TypeError: there is no such option.
        """
        if "after" in options or "on_success" in options:
            raise ConfigError("after= and on_success= are for some jobs of a task: give them with options() instead")
        if "at" in options:
            raise ConfigError("at= is one moment for all jobs of the task: give it with options(at=...) instead")

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            task_name = str(name or getattr(function, "__name__", ""))
            retries = options.get("retries", DEFAULT_RETRIES)
            retry_rules, backoff_s = read_rules(options.get("backoff"), retry_on, give_up_on, retries)
            spec, rules = apply_options(Spec(task_name), PLAIN, {**options, "backoff": backoff_s}, function)
            task = Task(self, function, spec, rules, retry_rules)
            known = self.tasks.get(task_name)
            if known is not None and not _is_same_function(known.function, function):
                raise ConfigError(
                    f"the task name {task_name!r} is taken by {known.function.__module__}."
                    f"{known.function.__qualname__}: give one of them another with name="
                )
            self.tasks[task_name] = task
            return task

        return register if function is None else register(function)

    def periodic(
        self,
        cron: str | None = None,
        /,
        *,
        name: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Has a task enqueued by the clock, while a fleet runs; a decorator, above `task` or in place of it.

        What is changed or removed in the code is so in the fleet when its consumers load it, by a start or `taskq
        reload`. A fire is never doubled, whatever dies.

        Args:
            cron: a cron expression, such as ``"*/5 * * * *"`` (also ``@daily``, six fields with seconds first, ``L``
                and ``#``). In zones with daylight saving time it behaves as Debian's cron, see `cronsim`.
            name: the name of the schedule, by default the task's.
            options: ``every="30s"`` in place of a cron expression, and all else; see
                `taskq.schedules.ScheduleOptions` for all there are.

        Raises:
            ConfigError: an option makes no sense, or the name is taken.
            TypeError: there is no such option.
            PayloadError: an argument cannot be serialized.
        """

        def register(function: Callable[P, R]) -> Task[P, R]:
            task: Task[P, R] = function if isinstance(function, Task) else self.task(function)
            if self.tasks.get(task.name) is not task:
                raise ConfigError(f"{task!r} is a task of another application: declare its schedule there")
            own_name = name or task.name
            known = self.schedules.function_of(own_name)
            if known is not None and (known is task.function or not _is_same_function(known, task.function)):
                raise ConfigError(f"the schedule name {own_name!r} is taken: give one of them another with name=")
            self.schedules.declare(own_name, task, cron, options)
            return task

        return register

    def on_consumer_start(self, function: HookT) -> HookT:
        """Has a function called in each consumer before its first job: load a model once, open a pool. A decorator.

        If it raises, the consumer does not start, and the fleet says why, as for an application that cannot be
        imported. It has 2 minutes.

        Raises:
            ConfigError: it is no ordinary function without arguments.
        """
        self.hooks.on_start(function)
        return function

    def on_consumer_stop(self, function: HookT) -> HookT:
        """Has a function called in each consumer after its last job, but not in one that is killed. A decorator.

        What it raises is told in the log. It has 5 seconds.

        Raises:
            ConfigError: it is no ordinary function without arguments.
        """
        self.hooks.on_stop(function)
        return function

    def middleware(self, function: MiddlewareT) -> MiddlewareT:
        """Has code run around each job, of sync and async tasks alike. A decorator for a generator with one `yield`::

            @q.middleware
            def timing(job: CurrentJob) -> Iterator[None]:
                start = time.perf_counter()
                try:
                    yield  # the job runs here; what it raises is raised here, too
                finally:
                    job.log.info("timed", seconds=time.perf_counter() - start)

        The one that is registered first is the outermost. What a middleware raises ends the job as if the job had
        raised it (also `Retry`, `Snooze` and `Cancel`). It cannot turn a failure into a success: an error that it
        catches and keeps to itself goes on.

        Raises:
            ConfigError: it is no such function.
        """
        self.hooks.around(function)
        return function

    def enqueue(self, task: str, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Enqueues a job by the name of its task, whose code need not be imported here.

        The task's own options count if it is registered here; else the defaults.

        Raises:
            As `Task.enqueue`.
        """
        return self.named(task).enqueue(*args, **kwargs)

    def named(self, task: str) -> Enqueuer[..., Any]:
        """The ways to enqueue a task by its name, whose code need not be imported here:
        ``q.named("resize").options(delay=60).enqueue("cat.jpg")``.

        The task's own options count if it is registered here; else the defaults.
        """
        return self.tasks.get(task) or Enqueuer(self, Spec(task))

    def job(self, id: str) -> Job[Any]:
        """The handle of a job, from its id.

        Raises:
            ConfigError: that is no job's id.
        """
        try:
            job_id = bytes.fromhex(id)
        except (TypeError, ValueError):
            job_id = b""
        if len(job_id) != 16:
            raise ConfigError(f"{id!r} is no job id: these have 32 hexadecimal digits")
        return Job(self, job_id)

    # -- many jobs

    def jobs(
        self,
        state: JobState | str | None = None,
        *,
        task: str | None = None,
        queue: str | None = None,
        limit: int | None = 100,
        before: str | Job[Any] | None = None,
    ) -> list[JobInfo]:
        """Lists jobs, the newest first: in the order in which they were enqueued, or retried by hand.

        Long errors are cut, and `history` is empty: `Job.info` knows all of a job.

        Args:
            state: only those in this state, such as "failed" (the dead-letter list).
            task, queue: only those of this task, of this queue.
            limit: at most so many; None for all.
            before: only those enqueued before this job: the last one of a list leads to the next page.

        Raises:
            ConfigError: an argument makes no sense.
            JobNotFound: nothing is known of the job in `before`.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.jobs(*self._listing(state, task, queue, limit, before))

    async def ajobs(
        self,
        state: JobState | str | None = None,
        *,
        task: str | None = None,
        queue: str | None = None,
        limit: int | None = 100,
        before: str | Job[Any] | None = None,
    ) -> list[JobInfo]:
        """`jobs` for asyncio."""
        return await self.async_client().jobs(*self._listing(state, task, queue, limit, before))

    def _listing(
        self,
        state: JobState | str | None,
        task: str | None,
        queue: str | None,
        limit: int | None,
        before: str | Job[Any] | None,
    ) -> tuple[JobState | None, str | None, str | None, bytes | None, int | None]:
        """The arguments of `jobs`, checked, as clients take them."""
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise ConfigError(f"limit={limit!r}: use a number of jobs, or None for all")
        place = None if before is None else (self.job(before) if isinstance(before, str) else before)._id
        return None if state is None else _state(state), task, queue, place, limit

    def retry_failed(self, *, task: str | None = None, queue: str | None = None) -> int:
        """Queues all failed jobs again, as `Job.retry` does; or only those of a task, of a queue.

        Jobs that fail while this goes on are left alone. If it is interrupted, those that were done stay done.

        Returns:
            How many they were.

        Raises:
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.retry_all(task, queue)

    async def aretry_failed(self, *, task: str | None = None, queue: str | None = None) -> int:
        """`retry_failed` for asyncio."""
        return await self.async_client().retry_all(task, queue)

    def purge(
        self,
        state: JobState | str,
        *,
        task: str | None = None,
        queue: str | None = None,
        older_than: float | None = None,
    ) -> int:
        """Removes all jobs in a state, as `Job.purge` does. With "queued" it empties queues.

        Jobs that come in while this goes on are left alone. If it is interrupted, those that are gone stay gone.

        Args:
            state: any but "running".
            task, queue: only those of this task, of this queue.
            older_than: only those that ended more than so many seconds ago, or were enqueued then if they wait.

        Returns:
            How many they were.

        Raises:
            ConfigError: the state is "running", or none.
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.purge_all(*_purging(state, task, queue, older_than))

    async def apurge(
        self,
        state: JobState | str,
        *,
        task: str | None = None,
        queue: str | None = None,
        older_than: float | None = None,
    ) -> int:
        """`purge` for asyncio."""
        return await self.async_client().purge_all(*_purging(state, task, queue, older_than))

    def pause(self, *queues: str) -> list[str]:
        """Pauses queues: jobs that run may end, the others wait, new ones are accepted. It lasts until `resume`, also
        across restarts of the fleet. Queues need no jobs yet.

        Returns:
            The queues that were not paused before.

        Raises:
            ConfigError: a queue's name makes no sense.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.pause(*_pausing(queues, True))

    async def apause(self, *queues: str) -> list[str]:
        """`pause` for asyncio."""
        return await self.async_client().pause_queues(*_pausing(queues, True))

    def resume(self, *queues: str) -> list[str]:
        """Lets the jobs of paused queues run again.

        Returns:
            The queues that were paused.

        Raises:
            As `pause`.
        """
        return self.client.pause(*_pausing(queues, False))

    async def aresume(self, *queues: str) -> list[str]:
        """`resume` for asyncio."""
        return await self.async_client().pause_queues(*_pausing(queues, False))

    @contextmanager
    def fleet(self, consumers: int = 0, *, settings: Settings | None = None) -> Iterator[None]:
        """Runs a fleet while the `with` block runs, also for tasks defined in the running script.

        The fleet's log goes to the queue's directory (read it with `taskq logs`), not to standard error: this program
        hears of failures by `Job.result`. When the block ends, running jobs are finished; those that wait stay for the
        next fleet.

        Args:
            consumers: how many processes; by default as many as this process may use CPUs.
            settings: all settings of the fleet, in place of `consumers`.

        Raises:
            AlreadyRunning: another fleet has this queue's directory.
            AppError: the fleet cannot import this application (it was made at a prompt, for example).
        """
        from taskq.fleet import run_fleet  # only programs that run a fleet pay for its imports

        with run_fleet(self, settings or Settings(consumers=consumers, stderr_level="critical")):
            yield

    @property
    def client(self) -> Client:
        """The blocking client of this application."""
        if self._client is None:
            self._client = Client(self.directory)
        return self._client

    def async_client(self) -> AsyncClient:
        """The asyncio client of the running event loop."""
        from taskq.aio import async_client  # asyncio takes 40-70 ms to import; a consumer must start fast

        return self._async_client or async_client(self.directory)

    @contextmanager
    def use_client(self, client: Client, async_client: AsyncClient) -> Iterator[None]:
        """Puts other clients in place of this application's own while the block runs; for `taskq.testing`."""
        before = self._client, self._async_client
        self._client, self._async_client = client, async_client
        try:
            yield
        finally:
            self._client, self._async_client = before

    def use_directory(self, directory: Directory) -> None:
        """Makes this application talk to the fleet of a directory: a consumer's own, whatever its URL says."""
        self.directory = directory
        self._client = None


def _state(state: JobState | str) -> JobState:
    try:
        return JobState(state)
    except ValueError:
        raise ConfigError(f"{state!r} is no state of a job: use one of {', '.join(JobState)}") from None


def _purging(
    state: JobState | str, task: str | None, queue: str | None, older_than: float | None
) -> tuple[JobState, str | None, str | None, float | None]:
    """The arguments of `TaskQ.purge`, checked, as clients take them."""
    named = _state(state)
    if named == JobState.RUNNING:
        raise ConfigError("running jobs cannot be purged: cancel them, or purge them when they have ended")
    if older_than is not None and not 0 <= older_than < inf:
        raise ConfigError(f"older_than={older_than!r}: use seconds, 0 or more")
    return named, task, queue, None if older_than is None else max(0.0, time.time() - older_than)


def _pausing(queues: Sequence[str], is_paused: bool) -> tuple[Sequence[str], bool, str]:
    """The arguments of `TaskQ.pause`, checked, and who asks, as clients take them."""
    if not queues:
        raise ConfigError("which queues? name at least one")
    program, name = os.path.split(sys.argv[0])
    name = os.path.basename(program) if name == "__main__.py" else name
    return queues, is_paused, f"{name or 'python'}, pid {os.getpid()}"


def _is_same_function(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether two functions are one: a module that is imported again defines its tasks anew."""
    return one.__qualname__ == other.__qualname__ and _file_of(one) == _file_of(other)


def _file_of(function: Callable[..., Any]) -> str | None:
    code = getattr(function, "__code__", None)
    module = sys.modules.get(function.__module__)
    return code.co_filename if code is not None else getattr(module, "__file__", None)
