"""Workflows: jobs that come after each other, enqueued as a whole.

    chain(a.step(1), b.step(2))                 b gets the result of a as its first argument
    group(a.step(n) for n in range(10))         all at once
    chord(group(...), c.step())                 c gets the list of their results

All of these nest. `enqueue()` hands in all jobs in one piece: they are durable together, or none is accepted. Each next
step is released in the transaction that records the end of the previous one, so a crash cannot lose or repeat a step.
If a step does not succeed, the jobs after it end as cancelled, with an error that names it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar, cast, overload

from taskq.client.calls import CallMaker
from taskq.client.context import keep_back
from taskq.client.job import Job
from taskq.client.transport.clients import FleetConnection
from taskq.client.transport.submitting import asubmit_flow, submit_flow
from taskq.client.waiting import agather, gather
from taskq.model.constraints import NO_CONSTRAINTS
from taskq.model.errors import ConfigError
from taskq.model.job import JobState, new_job_ids
from taskq.model.spec import Spec
from taskq.protocol.codec import ResultOf
from taskq.protocol.submissions import Call
from taskq.system.clock import ClientClock

R_co = TypeVar("R_co", covariant=True)
H = TypeVar("H")
H_co = TypeVar("H_co", covariant=True)

_MANY_IDS = 1 << 40


class _Out(NamedTuple):
    """The output of a part: the jobs to wait for, and their results as the next part gets them."""

    jobs: list[Job[Any]]
    value: Any


class _Plan:
    """The jobs of a workflow while it is being put together."""

    def __init__(self) -> None:
        self.flow: list[tuple[Spec, Call]] = []
        self.jobs: list[Job[Any]] = []
        self.waits_for_room = False
        self.on_success = False
        self._ids: Iterator[bytes] | None = None

    def next_id(self, clock: ClientClock) -> bytes:
        """Returns an id. Ids ascend, so that the id of a job is larger than those of the jobs that it comes after."""
        self._ids = self._ids or new_job_ids(_MANY_IDS, clock.time_ns())
        return next(self._ids)

    @property
    def app(self) -> FleetConnection:
        """The application of all jobs."""
        apps = {id(job._app): job._app for job in self.jobs}
        places = {app.place.shown for app in apps.values()}
        if len(places) > 1:
            raise ConfigError(f"the steps belong to different queues ({', '.join(sorted(places))})")
        return self.jobs[0]._app


class Workflow(ABC, Generic[H_co]):
    """Steps and their order. Nothing is sent before `enqueue`, which may be called several times. Generic in the handle
    that `enqueue` returns."""

    @abstractmethod
    def _plan(self, plan: _Plan, before: _Out | None) -> _Out:
        """Adds the jobs of this part, which come after `before`."""

    def enqueue(self) -> H_co:
        """Enqueues all jobs together.

        Returns:
            The handle of the last job, or of the group that comes last.

        Raises:
            PayloadTooLarge: together, the jobs are too many or too large.
            Others: the same as `Task.enqueue`.
        """
        plan, out = self._planned()
        if plan.on_success:
            keep_back(plan.flow)
        else:
            submit_flow(plan.app, plan.flow, plan.waits_for_room)
        return self._handle(plan, out)

    async def aenqueue(self) -> H_co:
        """`enqueue` for asyncio."""
        plan, out = self._planned()
        if plan.on_success:
            keep_back(plan.flow)
        else:
            await asubmit_flow(plan.app, plan.flow, plan.waits_for_room)
        return self._handle(plan, out)

    def _planned(self) -> tuple[_Plan, _Out]:
        plan = _Plan()
        out = self._plan(plan, None)
        if not plan.flow:
            raise ConfigError("the workflow has no steps")
        return plan, out

    def _handle(self, plan: _Plan, out: _Out) -> H_co:
        handle: Any
        if isinstance(out.value, list):
            handle = GroupHandle(out.jobs, plan.jobs, out.value)
        else:
            [last] = out.jobs
            handle = LastJob(last, plan.jobs)
        return cast(H_co, handle)


class Step(Workflow["LastJob[R_co]"], Generic[R_co]):
    """One call in a workflow. Made by `Task.step`."""

    def __init__(
        self, task: CallMaker[R_co], args: Sequence[Any], kwargs: dict[str, Any], takes_result: bool = True
    ) -> None:
        options = task._call_options
        if options.unique is not None:
            raise ConfigError(f"{task._spec.task} is unique: if it were left out, the next step would have no input")
        if options.after:
            raise ConfigError("a step follows the one before it in the workflow: leave out after=")
        self._task = task
        self._args = args
        self._kwargs = kwargs
        self._takes_result = takes_result

    def without_input(self) -> Step[R_co]:
        """Returns the same step, but without the result of the previous one as its first argument."""
        return Step(self._task, self._args, self._kwargs, takes_result=False)

    def _plan(self, plan: _Plan, before: _Out | None) -> _Out:
        task = self._task
        takes = before is not None and self._takes_result
        args = (before.value, *self._args) if before is not None and takes else self._args
        call = task._call(args, self._kwargs, plan.next_id(task._app.clock))
        if before is not None and before.jobs:
            task._app.engine.check_option(task._spec.task, "after")
            constraints = call.constraints or NO_CONSTRAINTS
            after = {**dict(constraints.after), **dict.fromkeys((job._id for job in before.jobs), False)}
            call = call._replace(constraints=replace(constraints, after=tuple(after.items())))
        job = task._job(call.id)
        plan.flow.append((task._spec, call))
        plan.jobs.append(job)
        plan.waits_for_room |= task._call_options.waits_for_room
        plan.on_success |= task._call_options.on_success
        return _Out([job], job)

    def __repr__(self) -> str:
        return f"<Step {self._task._spec.task}>"


class Chain(Workflow[H_co]):
    """Parts, one after the other. Made by `chain`."""

    def __init__(self, parts: Sequence[Workflow[Any]]) -> None:
        self._parts = _checked(parts)

    def _plan(self, plan: _Plan, before: _Out | None) -> _Out:
        for part in self._parts:
            before = part._plan(plan, before)
        if before is None:
            raise ConfigError("the chain has no steps")
        return before


class Group(Workflow["GroupHandle"]):
    """Parts that run at once. Made by `group`."""

    def __init__(self, parts: Sequence[Workflow[Any]]) -> None:
        self._parts = _checked(parts)

    def _plan(self, plan: _Plan, before: _Out | None) -> _Out:
        outs = [part._plan(plan, before) for part in self._parts]
        return _Out([job for out in outs for job in out.jobs], [out.value for out in outs])


@overload
def chain(*parts: *tuple[*tuple[Workflow[Any], ...], Workflow[H]]) -> Chain[H]: ...
@overload
def chain(*parts: Workflow[H]) -> Chain[H]: ...


def chain(*parts: Workflow[Any]) -> Chain[Any]:  # type: ignore[misc]  # mypy 2.4 compares no unpacked tuple with it
    """Returns a chain of steps, groups and chains that run one after the other:
    ``chain(fetch.step(url), parse.step(), store.step())``.

    Each gets the result of the previous one as its first argument (a list of results, if that is a group).

    Raises:
        ConfigError: one of these is not a part of a workflow.
    """
    return Chain(parts)


def group(*parts: Workflow[Any] | Iterable[Workflow[Any]]) -> Group:
    """Returns a group of steps, chains and groups that run at once: ``group(resize.step(path) for path in paths)``.

    Raises:
        ConfigError: one of these is not a part of a workflow.
    """
    if len(parts) == 1 and not isinstance(parts[0], Workflow) and isinstance(parts[0], Iterable):
        return Group(list(parts[0]))
    return Group(_checked(parts))


def chord(members: Workflow[Any] | Iterable[Workflow[Any]], callback: Workflow[H]) -> Chain[H]:
    """Returns a group and the part that follows when all of it has succeeded, and gets the list of the results.

    Args:
        members: the group, or the parts to make one of.
        callback: the part that follows.

    Raises:
        ConfigError: one of these is not a part of a workflow.
    """
    return Chain([members if isinstance(members, Workflow) else group(members), callback])


def _checked(parts: Iterable[Any]) -> list[Workflow[Any]]:
    listed = list(parts)
    for part in listed:
        if not isinstance(part, Workflow):
            hint = "call its step() in place of enqueue()" if isinstance(part, Job) else "use task.step(...)"
            raise ConfigError(f"{part!r:.80} is not a part of a workflow: {hint}")
    return listed


# -- handles


class _Whole:
    """What the handles of workflows have in common: all jobs of the workflow."""

    all_jobs: list[Job[Any]]

    def counts(self) -> dict[JobState, int]:
        """Returns how many of the workflow's jobs are in each state. Raises the same as `Job.state`."""
        return dict(Counter(job.state() for job in self.all_jobs))

    def retry_all(self) -> int:
        """Queues all failed jobs again. The jobs that were cancelled because of them come back, too; those that have
        succeeded do not run again.

        Returns:
            How many jobs had failed.

        Raises:
            The same as `Job.retry`.
        """
        failed = [job for job in self.all_jobs if job.state() is JobState.FAILED]
        for job in failed:
            job.retry()
        return len(failed)

    def cancel_all(self, *, running: bool = True) -> int:
        """Cancels all jobs, as `Job.cancel` does. Returns how many of them are cancelled now."""
        # from the end: what waits cannot start meanwhile
        return sum([job.cancel(running=running) for job in reversed(self.all_jobs)])

    async def acounts(self) -> dict[JobState, int]:
        """`counts` for asyncio."""
        return dict(Counter([await job.astate() for job in self.all_jobs]))

    async def aretry_all(self) -> int:
        """`retry_all` for asyncio."""
        failed = [job for job in self.all_jobs if await job.astate() is JobState.FAILED]
        for job in failed:
            await job.aretry()
        return len(failed)

    async def acancel_all(self, *, running: bool = True) -> int:
        """`cancel_all` for asyncio."""
        return sum([await job.acancel(running=running) for job in reversed(self.all_jobs)])


class LastJob(Job[R_co], _Whole):
    """The handle of the last job of a workflow: its result is that of the whole.

    If another job fails, this one is cancelled, with an error that names the failed one.

    Attributes:
        all_jobs: the handles of all jobs of the workflow.
    """

    __slots__ = ("all_jobs",)

    def __init__(self, last: Job[R_co], all_jobs: list[Job[Any]]) -> None:
        super().__init__(last._app, last._id, last._cast, None, last._has_result)
        self.all_jobs = all_jobs


class GroupHandle(_Whole):
    """The handle of a group of jobs.

    Attributes:
        jobs: the handles of the last jobs of its parts, in order.
        all_jobs: these, and the handles of all jobs before them.
    """

    def __init__(self, jobs: list[Job[Any]], all_jobs: list[Job[Any]], value: list[Any]) -> None:
        self.jobs = jobs
        self.all_jobs = all_jobs
        self._value = value

    def __repr__(self) -> str:
        return f"<GroupHandle of {len(self.jobs)} jobs>"

    def results(self, timeout: float | None = None) -> list[Any]:
        """Waits for all jobs, and returns their results in order; those of a nested group are a list.

        Args:
            timeout: wait for at most this many seconds in all; None for as long as it takes.

        Raises:
            The same as `taskq.gather`.
        """
        return self._filled(gather(self.jobs, timeout=timeout))

    async def aresults(self, timeout: float | None = None) -> list[Any]:
        """`results` for asyncio."""
        return self._filled(await agather(self.jobs, timeout=timeout))

    def cancel(self, *, running: bool = True) -> int:
        """Cancels all jobs, including those before the last ones. Returns how many of them are cancelled now."""
        return self.cancel_all(running=running)

    def retry(self) -> int:
        """The same as `retry_all`."""
        return self.retry_all()

    async def acancel(self, *, running: bool = True) -> int:
        """`cancel` for asyncio."""
        return await self.acancel_all(running=running)

    async def aretry(self) -> int:
        """`retry` for asyncio."""
        return await self.aretry_all()

    def _filled(self, results: list[Any]) -> list[Any]:
        by_id = dict(zip((job._id for job in self.jobs), results, strict=True))

        def fill(value: Any) -> Any:
            return by_id[value._id] if isinstance(value, ResultOf) else [fill(item) for item in value]

        filled: list[Any] = fill(self._value)
        return filled
