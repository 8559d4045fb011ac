"""Help for the tests of applications: jobs without a fleet, in this process.

    with testing.inline(q):                      # enqueue runs the job at once
        ...
    with testing.queue(q) as jobs:               # enqueue keeps it, until you say so
        sign_up("ann@example.org")
        jobs.assert_enqueued(send_mail, "ann@example.org", queue="mail")
        assert jobs.drain() == {"succeeded": 1}
        jobs.clock.advance(86_400)               # what was delayed by a day is due

Both run the real code of fleets, consumers and clients (`taskq.testing.fleet`): arguments and results go through the
codec and are cast, and priorities, `unique=`, limits, retries and expiry behave as in production. They do not do what
needs a process: `timeout=` does not interrupt a job, and a job that kills its process kills the test.

Job handles work as usual. To wait for a job (`result`, `wait`, `gather`, `await job` ...) runs it and all jobs before
it; the time of such a wait passes only on the clock of the test.

With pytest there are fixtures: `taskq.testing.pytest_plugin`.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import Any

from taskq.client.app import TaskQ
from taskq.client.job import Job
from taskq.client.options.functions import signature_of
from taskq.client.task import Enqueuer, Task
from taskq.model.errors import ConfigError, TaskQError
from taskq.model.job import JobState, enqueued_at
from taskq.model.settings import Settings
from taskq.model.stored import StoredState
from taskq.protocol.codec import decode_call, encode_call
from taskq.testing.clock import Clock
from taskq.testing.fleet import Arrival, InProcessFleet
from taskq.testing.in_process import in_process

__all__ = ["Clock", "Enqueued", "Jobs", "inline", "queue"]

#: A drain that runs more jobs than this is taken for one that never ends.
_MAX_DRAINED = 100_000
#: How far a `delay=` that is looked for may be off: ids tell milliseconds.
_DELAY_TOLERANCE_S = 0.01
_LISTED = 20
#: What `assert_enqueued` takes besides the arguments of a task.
_OPTIONS = ("queue", "priority", "delay", "state", "count")


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A job that was enqueued.

    Attributes:
        job: its handle.
        task, queue, priority: of the job.
        arguments: what the function gets, by the names of its parameters, after the codec and the cast; if the task is
            not known here, or the arguments do not fit it: by position.
        delay: the seconds for which it waits before it may start, or None.
    """

    job: Job[Any]
    task: str
    queue: str
    priority: int
    arguments: dict[str | int, Any]
    delay: float | None

    @property
    def state(self) -> JobState:
        """The present state of the job."""
        return self.job.state()

    def __str__(self) -> str:
        told = _told(self.arguments)
        priority = f" priority={self.priority}" if self.priority else ""
        delay = f" delay={self.delay:g}" if self.delay is not None else ""
        return f"{self.task}({told})  queue={self.queue}{priority}{delay} {self.state}"


class Jobs:
    """The jobs of an application while it is under test. Made by `inline` and `queue`.

    Attributes:
        clock: the time of the test: it stands still until `clock.advance(seconds)`.
    """

    def __init__(self, app: TaskQ, fleet: InProcessFleet, raise_errors: bool) -> None:
        self._app = app
        self._fleet = fleet
        self._raise_errors = raise_errors
        self._cleared = 0  # of what came in
        self.clock = fleet.clock

    # -- what was enqueued

    def enqueued(self, task: Task[..., Any] | Enqueuer[..., Any] | str | None = None) -> list[Enqueued]:
        """Returns the jobs that were enqueued in the block, in order, whatever became of them.

        Args:
            task: only jobs of this task, or of the task with this name.
        """
        arrivals = self._fleet.arrivals[self._cleared :]
        name = None if task is None else _name(self._app, task)
        return [self._enqueued(arrival) for arrival in arrivals if name in (None, _name(self._app, arrival.spec.task))]

    def clear(self) -> None:
        """Forgets what was enqueued so far: `enqueued` and the asserts see only what comes later. The jobs stay."""
        self._cleared = len(self._fleet.arrivals)

    def assert_enqueued(
        self, task: Task[..., Any] | Enqueuer[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> list[Enqueued]:
        """Fails unless there is a job of the task with these arguments among those that were enqueued in the block.

        Only the arguments that are given are compared, with what the function would get; `unittest.mock.ANY` and the
        like work. These keywords are about the job, unless the task has parameters with these names:

            queue (str), priority (int), delay (seconds), state (such as "queued" or "succeeded"),
            count (int): how many such jobs there must be; by default one or more

        Returns:
            The jobs that match.

        Raises:
            AssertionError: there is none, or another number of them; the message lists what was enqueued.
        """
        __tracebackhide__ = True  # pytest shows the test, not this
        wanted = _Wanted(self._app, task, args, kwargs)
        enqueued = self.enqueued()
        found = [job for job in enqueued if wanted.matches(job)]
        if wanted.count is None and not found:
            raise AssertionError(f"no {wanted} was enqueued{self._told(enqueued)}")
        if wanted.count is not None and len(found) != wanted.count:
            raise AssertionError(f"{len(found)} of {wanted} were enqueued, not {wanted.count}{self._told(enqueued)}")
        return found

    def assert_not_enqueued(
        self, task: Task[..., Any] | Enqueuer[..., Any] | str, /, *args: Any, **kwargs: Any
    ) -> None:
        """Fails if there is a job that `assert_enqueued` would find.

        Raises:
            AssertionError: there is one; the message lists what was enqueued.
        """
        __tracebackhide__ = True  # pytest shows the test, not this
        wanted = _Wanted(self._app, task, args, kwargs)
        if wanted.count is not None:
            raise ConfigError("count= is for assert_enqueued")
        enqueued = self.enqueued()
        if any(wanted.matches(job) for job in enqueued):
            raise AssertionError(f"{wanted} was enqueued{self._told(enqueued)}")

    @staticmethod
    def _told(enqueued: list[Enqueued]) -> str:
        if not enqueued:
            return "; nothing was"
        lines = [f"  {job}" for job in enqueued[:_LISTED]]
        if len(enqueued) > _LISTED:
            lines.append(f"  ... and {len(enqueued) - _LISTED:,} more")
        return "\n".join(["; these were:", *lines])

    def _enqueued(self, arrival: Arrival) -> Enqueued:
        delay = None if arrival.due_at is None else round(arrival.due_at - enqueued_at(arrival.id), 3)
        task = self._app.tasks.get(arrival.spec.task)
        caster = None if task is None else task._return_caster
        job = Job[Any](self._app, arrival.id, caster)
        spec = arrival.spec
        return Enqueued(job, spec.task, spec.queue, spec.priority, _arguments(task, arrival), delay)

    # -- running

    def drain(
        self, seconds: float = 0.0, *, raise_errors: bool | None = None, limit: int = _MAX_DRAINED
    ) -> Counter[str]:
        """Runs the queued jobs, and those that they enqueue, until there is nothing left to run.

        Args:
            seconds: go on for this many seconds of the test's clock, with the retries, delayed jobs and fires of
                schedules that become due in that time; `math.inf`: until nothing but schedules is left.
            raise_errors: at the end, raise what the first job that failed for good has raised. The default is what was
                given to `queue` (False) or `inline` (True).
            limit: the most jobs to run: more are taken for jobs that enqueue each other without an end.

        Returns:
            The number of jobs that ran, by their present state: ``{"succeeded": 2, "scheduled": 1}``, where the
            scheduled ones will be retried.

        Raises:
            TaskQError: there were more than `limit`.
        """
        ran: dict[bytes, None] = {}
        until = self.clock.time() + seconds
        while True:
            job_id = self._fleet.run_next()
            if job_id is not None:
                ran[job_id] = None
                if len(ran) > limit:
                    raise TaskQError(f"more than {limit:,} jobs ran: do they enqueue each other without an end?")
                continue
            moment = self.clock.next_moment(with_schedules=until < inf)
            if moment is None or moment > until:
                break
            self.clock.move_to(moment)
        if until < inf:
            self.clock.move_to(until)
        if self._raise_errors if raise_errors is None else raise_errors:
            self._raise_first(ran)
        return self._states(ran)

    def _states(self, ran: dict[bytes, None]) -> Counter[str]:
        return Counter(kept.state.value for job_id in ran if (kept := self._fleet.kept(job_id)) is not None)

    def _raise_first(self, ran: dict[bytes, None]) -> None:
        for job_id in ran:
            if self._fleet.kept(job_id) == StoredState.FAILED and job_id in self._fleet.raised:
                raise self._fleet.raised[job_id]

    def _run_inline(self) -> None:
        """Runs all jobs, whenever they would be due. Called after each request of a client."""
        if not self._fleet.is_in_job:
            self.drain(inf)

    @property
    def now(self) -> datetime:
        """The time of the test's clock, for `at=`."""
        return datetime.fromtimestamp(self.clock.time(), UTC)


@contextmanager
def inline(app: TaskQ, *, raise_errors: bool = True, settings: Settings | None = None) -> Iterator[Jobs]:
    """Runs each job at once where it is enqueued, while the block runs.

    Delays and the waits before retries pass only on the clock of the test. `enqueue_many` runs its jobs when all are
    in; those of `map` run when their results are asked for; the jobs that a job enqueues run when it waits for them, or
    ends.

    Args:
        app: the application.
        raise_errors: whether `enqueue` raises what a job raises (after its last retry), so that no failure of a job
            stays unseen in a test. False: as in production, where only the job's handle shows it (`Job.result` raises
            JobFailed).
        settings: the settings of the fleet, such as its resources.

    The functions of `on_consumer_start` run before the first job, those of `on_consumer_stop` at the end of the block.
    """
    with in_process(app, settings or Settings(consumers=1)) as client:
        jobs = Jobs(app, client.fleet, raise_errors)
        client.after_request = jobs._run_inline
        yield jobs


@contextmanager
def queue(app: TaskQ, *, raise_errors: bool = False, settings: Settings | None = None) -> Iterator[Jobs]:
    """Keeps jobs in memory while the block runs; they run when the test says so, or waits for one.

    Args:
        app: the application.
        raise_errors: whether `Jobs.drain` raises what jobs raise.
        settings: the settings of the fleet, such as its resources.
    """
    with in_process(app, settings or Settings(consumers=1)) as client:
        yield Jobs(app, client.fleet, raise_errors)


# -- arguments


def _name(app: TaskQ, task: Task[..., Any] | Enqueuer[..., Any] | str) -> str:
    """Returns the name that a task has now."""
    if isinstance(task, Enqueuer):
        return task._spec.task
    if isinstance(task, str):
        return app.named(task)._spec.task
    raise ConfigError(f"{task!r:.80} is not a task: give one that `@q.task` made, or its name")


def _arguments(task: Task[..., Any] | None, arrival: Arrival) -> dict[str | int, Any]:
    args, kwargs = decode_call(arrival.id, arrival.payload)
    if task is None:
        return _by_position(args, kwargs)
    try:
        if task.caster.converts:
            args, kwargs = task.caster.cast(args, kwargs)
        return _named(inspect.signature(task.function).bind(*args, **kwargs).arguments)
    except Exception:  # the job will fail because of it; here it is only shown
        return _by_position(args, kwargs)


def _by_position(args: Any, kwargs: dict[str, Any]) -> dict[str | int, Any]:
    found: dict[str | int, Any] = dict(enumerate(args))
    return found | _named(kwargs)


def _named(arguments: Mapping[str, Any]) -> dict[str | int, Any]:
    return {name: value for name, value in arguments.items()}  # noqa: C416  a copy with the wider type


def _told(arguments: dict[str | int, Any]) -> str:
    return ", ".join(
        f"{value!r:.200}" if isinstance(name, int) else f"{name}={value!r:.200}" for name, value in arguments.items()
    )


class _Wanted:
    """What `assert_enqueued` looks for."""

    def __init__(
        self, app: TaskQ, task: Task[..., Any] | Enqueuer[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._app = app
        self.task = _name(app, task)
        known = app.tasks.get(self.task)
        signature = None if known is None else signature_of(known.function)
        parameters = () if signature is None else signature.parameters
        self._options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs and name not in parameters}
        self.count: int | None = self._options.pop("count", None)
        self._arguments = _by_position(args, kwargs)
        if signature is None:
            return
        try:
            bound = signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"these arguments do not fit {self.task}{signature}: {error}; besides them there are {_OPTIONS}"
            ) from None
        self._arguments = _named(bound.arguments)

    def __str__(self) -> str:
        told = _told(self._arguments)
        options = "".join(f" {name}={value!r}" for name, value in self._options.items())
        return f"{self.task}({told}{', ' if told else ''}...){options}"

    def matches(self, job: Enqueued) -> bool:
        """Whether a job matches."""
        if _name(self._app, job.task) != self.task:
            return False
        if not all(self._option_fits(job, *option) for option in self._options.items()):
            return False
        missing = object()
        return all(_is_equal(value, job.arguments.get(name, missing)) for name, value in self._arguments.items())

    @staticmethod
    def _option_fits(job: Enqueued, name: str, value: Any) -> bool:
        if name == "delay":
            wanted = getattr(value, "total_seconds", lambda: value)()
            return job.delay is not None and abs(job.delay - wanted) <= _DELAY_TOLERANCE_S
        return bool(getattr(job, name) == value)


def _is_equal(wanted: Any, found: Any) -> bool:
    """Whether two arguments are equal, or the same after the way through the codec (arrays, for example, say for each
    of their elements whether it is equal)."""
    try:
        if (wanted == found) is True:
            return True
    except Exception:
        pass  # what cannot even be compared this way
    try:
        return encode_call(bytes(16), [wanted], {}) == encode_call(bytes(16), [found], {})
    except TaskQError:
        return False
