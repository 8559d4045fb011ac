"""The tasks of an application, and the ways to enqueue them: one job, many, like `Pool.map`, or as a step."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import aclosing
from datetime import datetime
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from taskq.client.calls import CallMaker
from taskq.client.job import Job
from taskq.client.map import MappedCalls, aresults_of_calls, results_of_calls
from taskq.client.options.call_options import PLAIN, CallOptions
from taskq.client.options.functions import Takes
from taskq.client.options.options import JobOptions, options_of_call
from taskq.client.transport.clients import FleetConnection
from taskq.client.transport.submitting import asubmit, submit
from taskq.client.waiting import Progress
from taskq.client.workflows import Step
from taskq.model.constraints import Constraints
from taskq.model.errors import ConfigError
from taskq.model.spec import Spec
from taskq.protocol.codec import CallCaster

if TYPE_CHECKING:
    from taskq.client.signatures import MapOptions, Takes1, Takes2, Takes3, Takes4

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R_co = TypeVar("R_co", covariant=True)


class Enqueuer(CallMaker[R_co], Generic[P, R_co]):
    """The ways to enqueue one task with certain options. A task is one; `options()` makes others."""

    @property
    def spec(self) -> Spec:
        """The options that travel with its jobs."""
        return self._spec

    @property
    def call_options(self) -> CallOptions:
        """The options that do not travel with its jobs."""
        return self._call_options

    def for_schedule(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Spec, Constraints | None]:
        """Returns the options of a schedule's jobs; times in their constraints are seconds after the fire.

        Raises:
            ConfigError: the task cannot be called with these arguments, or has a fixed time.
        """
        options, task = self._call_options, self._spec.task
        if isinstance(options.due, datetime) or isinstance(options.expires, datetime):
            raise ConfigError(
                f"{task} has a fixed time (at= or expires=), but a schedule fires again and again: use seconds instead"
            )
        told = self._takes.misfit(args, kwargs)
        if told is not None:
            raise ConfigError(f"schedule of {task}: {told}: give args= and kwargs= that fit {self._takes.signature}")
        return self._spec, None if self._is_plain else options.constraints(task, self._function, args, kwargs, 0.0)

    def options(self, **options: Unpack[JobOptions]) -> Enqueuer[P, R_co]:
        """Returns the same task with other options for the jobs that are enqueued through it.
        `taskq.client.options.options.JobOptions` lists the options.

        Raises:
            ConfigError: an option makes no sense, by itself or with the others.
            TypeError: there is no such option.
        """
        spec, call_options = options_of_call(self._spec, self._call_options, options, self._function)
        return Enqueuer(self._app, spec, call_options, self._function, self._return_caster, self._takes)

    @overload
    def enqueue(self: Enqueuer[P, Generator[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    def enqueue(self: Enqueuer[P, Coroutine[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """Enqueues a job. When this returns, the job survives `kill -9` of any process, and power loss.

        Args:
            args, kwargs: the arguments of the call.

        Returns:
            The handle of the job; of an earlier one, if the task is unique and that has the key (see `unique=`).

        Raises:
            BadArguments: the task's function cannot be called with these arguments.
            PayloadError: an argument cannot be serialized; the message names it.
            PayloadTooLarge: the arguments are too large.
            QueueFull, StoreFull: the fleet accepts no more jobs for now.
            BrokerUnavailable: no fleet answers and the spool cannot be written.
            ConfigError: a key (`unique=`, `limit_by=` ...) cannot be made of these arguments.
        """
        [job_id] = submit(self._app, self._spec, self._call_options, [self._call(args, kwargs)])
        return self._job(job_id)

    @overload
    def step(self: Enqueuer[P, Generator[Any, Any, A]], *args: Any, **kwargs: Any) -> Step[A]: ...
    @overload
    def step(self: Enqueuer[P, Coroutine[Any, Any, A]], *args: Any, **kwargs: Any) -> Step[A]: ...
    @overload
    def step(self, *args: Any, **kwargs: Any) -> Step[R_co]: ...

    def step(self, *args: Any, **kwargs: Any) -> Step[Any]:
        """Returns a call that can be part of a workflow, see `taskq.chain`. Nothing is sent.

        In a chain, the function gets the result of the previous step as its first argument, before these.

        Raises:
            ConfigError: the task's jobs are unique, or come after others already.
        """
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

        Returns:
            The handles of the jobs, in the order of the arguments.

        Raises:
            The same as `enqueue`. The jobs that were sent before an error are enqueued.
        """
        ids = submit(self._app, self._spec, self._call_options, self._calls(arguments))
        return self._jobs(ids)

    @overload
    async def aenqueue(self: Enqueuer[P, Generator[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    async def aenqueue(self: Enqueuer[P, Coroutine[Any, Any, A]], *args: P.args, **kwargs: P.kwargs) -> Job[A]: ...
    @overload
    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[R_co]: ...

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job[Any]:
        """`enqueue` for asyncio."""
        [job_id] = await asubmit(self._app, self._spec, self._call_options, [self._call(args, kwargs)])
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
        ids = await asubmit(self._app, self._spec, self._call_options, self._calls(arguments))
        return self._jobs(ids)

    def map(
        self: Takes1[A, R],
        iterable: Iterable[A],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        progress: Progress = False,
    ) -> Iterator[R]:
        """Runs the task for each item, across the fleet, and yields the results, like `Pool.map`.

        It submits while it yields, with a bounded number of unfinished jobs, so the iterable may be endless.

        Args:
            iterable: the only argument of each job.
            ordered: whether to yield in the order of the items; False: as the results come.
            timeout: seconds to wait for the next result; None for as long as it takes.
            progress: True shows a bar on standard error, if that is a terminal. Or a function `progress(done, total)`
                (the total is None if the iterable does not know its length), such as tqdm's:
                ``with tqdm() as bar: list(task.map(items, progress=lambda n, _: bar.update(n - bar.n)))``

        Raises:
            The same as `Job.result` and `enqueue`, when the turn of that result comes.
            ConfigError: the jobs are unique, so items could share a job.
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
        """The same as `map`, with a tuple of positional arguments for each job."""
        return self._map(iterable, _length(iterable), ordered, timeout, progress)

    def _map(
        self,
        iterable: Iterable[Sequence[Any]],
        total: int | None,
        ordered: bool,
        timeout: float | None,
        progress: Progress,
    ) -> Iterator[Any]:
        mapped = self._mapped(iterable, total, ordered, timeout, progress)
        yield from results_of_calls(self._app.client, mapped)

    def amap(
        self: Takes1[A, R],
        iterable: Iterable[A],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        progress: Progress = False,
    ) -> AsyncGenerator[R, None]:
        """`map` for asyncio: ``async for value in task.amap(items): ...``"""
        task = cast(Enqueuer[..., R], self)
        return task._amap(((item,) for item in iterable), _length(iterable), ordered, timeout, progress)

    @overload
    def astarmap(
        self: Takes1[A, R], iterable: Iterable[tuple[A]], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[R, None]: ...
    @overload
    def astarmap(
        self: Takes2[A, B, R], iterable: Iterable[tuple[A, B]], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[R, None]: ...
    @overload
    def astarmap(
        self: Takes3[A, B, C, R], iterable: Iterable[tuple[A, B, C]], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[R, None]: ...
    @overload
    def astarmap(
        self: Takes4[A, B, C, D, R],
        iterable: Iterable[tuple[A, B, C, D, *tuple[Any, ...]]],
        **options: Unpack[MapOptions],
    ) -> AsyncGenerator[R, None]: ...
    @overload
    def astarmap(
        self: Takes1[A, R], iterable: Iterable[tuple[A, ...] | list[Any]], **options: Unpack[MapOptions]
    ) -> AsyncGenerator[R, None]: ...

    def astarmap(
        self,
        iterable: Iterable[Sequence[Any]],
        *,
        ordered: bool = True,
        timeout: float | None = None,
        progress: Progress = False,
    ) -> AsyncGenerator[Any, None]:
        """`starmap` for asyncio."""
        return self._amap(iterable, _length(iterable), ordered, timeout, progress)

    async def _amap(
        self,
        iterable: Iterable[Sequence[Any]],
        total: int | None,
        ordered: bool,
        timeout: float | None,
        progress: Progress,
    ) -> AsyncGenerator[Any, None]:
        mapped = self._mapped(iterable, total, ordered, timeout, progress)
        async with aclosing(aresults_of_calls(self._app.async_client(), mapped)) as results:
            async for result in results:
                yield result

    def _mapped(
        self,
        iterable: Iterable[Sequence[Any]],
        total: int | None,
        ordered: bool,
        timeout: float | None,
        progress: Progress,
    ) -> MappedCalls:
        if self._call_options.unique is not None:
            raise ConfigError(f"{self._spec.task} is unique, so items may share a job: use enqueue_many, not map")
        if self._call_options.on_success:
            raise ConfigError("on_success=True enqueues later, so there is nothing to wait for: use enqueue_many")
        waits_for_room = self._call_options.waits_for_room
        calls = self._calls(iterable)
        return MappedCalls(self._spec, calls, self._return_caster, total, ordered, timeout, progress, waits_for_room)


def _length(iterable: Iterable[Any]) -> int | None:
    return len(iterable) if isinstance(iterable, Sized) else None


class Task(Enqueuer[P, R_co]):
    """A registered function. Calling it runs it in this process; its other methods enqueue it."""

    def __init__(
        self,
        app: FleetConnection,
        function: Callable[P, R_co],
        spec: Spec,
        call_options: CallOptions = PLAIN,
    ) -> None:
        self.caster = CallCaster(function)
        super().__init__(app, spec, call_options, function, self.caster.return_caster, Takes(function))
        self.function = function
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
