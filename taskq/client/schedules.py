"""The schedules of an application: those declared in its code, and those added and removed at run time.

q.schedules.add("nightly", clean_up, "0 3 * * *", timezone="Europe/Berlin", args=(30,))
q.schedules.add("pulse", "ping", every="30s")    # a task by its name
q.schedules.pause("pulse")
q.schedules.run("nightly").result()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, Unpack

import msgpack

from taskq.client.job import Job
from taskq.client.options.options import Fields, fields_of, refuse_unknown
from taskq.client.task import Enqueuer, Task
from taskq.client.transport.clients import FleetConnection
from taskq.model.errors import ConfigError
from taskq.model.job import new_job_ids
from taskq.model.limits import MAX_DECLARED_BYTES, MAX_DECLARED_SCHEDULES
from taskq.model.schedule import NO_JOB, Misfire, Overlap, Schedule, next_fire, seconds_of
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call

if TYPE_CHECKING:
    from taskq.model.info.schedule import ScheduleInfo

#: How often: seconds, a text such as "30s", or a timedelta.
Every = float | str | timedelta

#: Options that are fields of Schedule: their names there, and how they are read.
_OF_SCHEDULE: Final[Fields] = {
    "every": ("every_s", seconds_of),
    "timezone": ("zone", None),
    "misfire": ("misfire", None),
    "overlap": ("overlap", None),
    "jitter": ("jitter_s", seconds_of),
}


class ScheduleOptions(TypedDict, total=False):
    """The options of a schedule besides its cron expression.

    When it fires
        every (seconds, a text such as ``"30s"``, or a timedelta): an interval, in place of a cron expression. The
            schedule fires at multiples of the interval since 1970, so ``every="1h"`` fires on the hour.
        timezone (str): the zone of the cron expression, such as ``"Europe/Berlin"``. Default "UTC".
        misfire ("once", "skip" or "all"): what happens to misfires, the times at which no fleet ran (or the broker was
            more than 10 s late). "skip" leaves them out, "once" makes one job for all of them, "all" makes a job for
            each (only for the last one, if `overlap` is not "allow"). Default "once".
        overlap ("allow", "skip" or "buffer_one"): what happens to a fire if the job of the previous fire has not ended.
            "allow": both jobs run. "skip": the fire is left out. "buffer_one": its job is kept back, in the state
            waiting, and starts when the other one has ended, in whatever way; while one job is kept back, further fires
            are left out. Default "allow".
        jitter (like every): each fire is delayed at random by up to this time, but not beyond the next one. Default 0.
    Its jobs
        args (tuple), kwargs (dict): the arguments of each job. Default: none.
    """

    every: Every | None
    timezone: str
    misfire: Misfire
    overlap: Overlap
    jitter: Every
    args: Sequence[Any]
    kwargs: Mapping[str, Any] | None


class _Declared(NamedTuple):
    function: Callable[..., Any]
    packed: bytes


class Schedules:
    """The schedules of an application: `TaskQ.schedules`. All methods except `declared` ask the fleet."""

    def __init__(self, app: FleetConnection, tasks: Mapping[str, Task[..., Any]]) -> None:
        self._app = app
        self._tasks = tasks
        self._declared: dict[str, _Declared] = {}

    def add(
        self,
        name: str,
        task: Enqueuer[..., Any] | str,
        cron: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """Adds a schedule to the fleet. It replaces an earlier one of this name, and stays paused if that was paused.

        Args:
            name: the name of the schedule.
            task: the task, with options if you like, or its name.
            cron: a cron expression, as for `TaskQ.periodic`.
            options: other options; `taskq.client.schedules.ScheduleOptions` lists them.

        Returns:
            The schedule, with the time of its next fire.

        Raises:
            ConfigError: the schedule makes no sense, or one of this name is declared in the code.
            TypeError: there is no such option.
            PayloadError: an argument cannot be serialized.
            BrokerUnavailable: no fleet answers.
        """
        schedule = self._made(name, task, cron, options)
        return self._app.client.put_schedule(schedule)

    def remove(self, name: str) -> None:
        """Removes a schedule that was added at run time, or that belongs to an application that the fleet does not run.

        Raises:
            ScheduleNotFound: there is no schedule of this name.
            ConfigError: it is declared in the code of the application that the fleet runs.
            BrokerUnavailable: no fleet answers.
        """
        self._app.client.remove_schedule(name)

    def pause(self, name: str) -> ScheduleInfo:
        """Pauses a schedule until `resume`, also across restarts. Returns the schedule.

        Raises:
            ScheduleNotFound: there is no schedule of this name.
            BrokerUnavailable: no fleet answers.
        """
        return self._app.client.pause_schedule(name, True)

    def resume(self, name: str) -> ScheduleInfo:
        """Resumes a schedule; the fires during the pause are left out. Returns the schedule. Raises the same as
        `pause`."""
        return self._app.client.pause_schedule(name, False)

    def run(self, name: str) -> Job[Any]:
        """Enqueues a job of a schedule now, in addition to its times, even if it is paused.

        Returns:
            The handle of the job.

        Raises:
            ScheduleNotFound: there is no schedule of this name.
            EnqueueError: the job was not accepted.
            BrokerUnavailable: no fleet answers.
        """
        job_id = next(new_job_ids(1, self._app.clock.time_ns()))
        self._app.client.run_schedule(name, job_id)
        return Job(self._app, job_id)

    def list(self) -> Sequence[ScheduleInfo]:
        """Returns all schedules of the queue's directory, by name. Raises BrokerUnavailable if no fleet answers."""
        return self._app.client.schedules()

    # -- for asyncio

    async def aadd(
        self,
        name: str,
        task: Enqueuer[..., Any] | str,
        cron: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> ScheduleInfo:
        """`add` for asyncio."""
        schedule = self._made(name, task, cron, options)
        return await self._app.async_client().put_schedule(schedule)

    async def aremove(self, name: str) -> None:
        """`remove` for asyncio."""
        await self._app.async_client().remove_schedule(name)

    async def apause(self, name: str) -> ScheduleInfo:
        """`pause` for asyncio."""
        return await self._app.async_client().pause_schedule(name, True)

    async def aresume(self, name: str) -> ScheduleInfo:
        """`resume` for asyncio."""
        return await self._app.async_client().pause_schedule(name, False)

    async def arun(self, name: str) -> Job[Any]:
        """`run` for asyncio."""
        job_id = next(new_job_ids(1, self._app.clock.time_ns()))
        await self._app.async_client().run_schedule(name, job_id)
        return Job(self._app, job_id)

    async def alist(self) -> Sequence[ScheduleInfo]:
        """`list` for asyncio."""
        return await self._app.async_client().schedules()

    # -- in code

    @property
    def declared(self) -> Sequence[bytes]:
        """The schedules that are declared in the code, as they travel."""
        return [declared.packed for declared in self._declared.values()]

    def function_of(self, name: str) -> Callable[..., Any] | None:
        """Returns the function whose schedule has this name in the code, or None."""
        known = self._declared.get(name)
        return None if known is None else known.function

    def declare(self, name: str, task: Task[..., Any], cron: str | None, options: ScheduleOptions) -> None:
        """Notes a schedule that is declared in the code, in place of an earlier one of its name: `TaskQ.periodic`.

        Raises:
            ConfigError: the schedule makes no sense, or there are too many.
            TypeError: there is no such option.
        """
        packed: bytes = msgpack.packb(self._made(name, task, cron, options).to_wire())
        self._declared.pop(name, None)
        size = len(packed) + sum(map(len, self.declared))
        if len(self._declared) >= MAX_DECLARED_SCHEDULES or size > MAX_DECLARED_BYTES:
            raise ConfigError(
                f"schedule {name}: an application may declare {MAX_DECLARED_SCHEDULES:,} schedules of "
                f"{MAX_DECLARED_BYTES:,} bytes together; add others at run time, with schedules.add"
            )
        self._declared[name] = _Declared(task.function, packed)

    def _made(self, name: str, task: Enqueuer[..., Any] | str, cron: str | None, options: ScheduleOptions) -> Schedule:
        refuse_unknown(options, ScheduleOptions)
        task = self._tasks.get(task, task) if isinstance(task, str) else task
        args, kwargs = options.get("args", ()), options.get("kwargs") or {}
        if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
            raise ConfigError(f"schedule {name}: args={args!r:.60}: use a tuple of arguments")
        spec, constraints = (Spec(task), None) if isinstance(task, str) else task.for_schedule(args, kwargs)
        payload = encode_call(NO_JOB, args, kwargs)
        schedule = Schedule(name, spec, payload, cron, constraints=constraints, **fields_of(options, _OF_SCHEDULE))
        next_fire(schedule, 0.0)  # raises if it never does
        return schedule
