"""The application, `TaskQ`: its tasks, schedules and hooks, and requests about many jobs at once.

q = TaskQ("thumbs")

@q.task(queue="images", retries=3, timeout=30)
def thumbnail(path: str, size: int = 256) -> str: ...

thumbnail("cat.jpg")                         # an ordinary call
job = thumbnail.enqueue("cat.jpg", size=128) # a job for the fleet
job.result(timeout=30)
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, overload

from taskq.client.hooks import EnqueueHookT, Hooks, HookT, MiddlewareT, RedactionT, checked_redaction, with_enqueue_hook
from taskq.client.job import Job
from taskq.client.options.call_options import ErrorTypes
from taskq.client.options.functions import full_name, is_same_function
from taskq.client.options.options import JobOptions, options_of_task, refuse_for_task
from taskq.client.options.search import SearchOptions, search_of
from taskq.client.schedules import ScheduleOptions, Schedules
from taskq.client.task import Enqueuer, Task
from taskq.client.transport.clients import FleetConnection
from taskq.model.errors import BadJobId, ConfigError
from taskq.model.job import JobState
from taskq.model.spec import Spec
from taskq.system.clock import Clock
from taskq.system.directory import reply_timeout_s
from taskq.system.place import place_of

if TYPE_CHECKING:
    from taskq.client.executors.executor import QueueExecutor
    from taskq.model.info.job import JobInfo
    from taskq.model.info.status import FleetStatus
    from taskq.model.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


class TaskQ(FleetConnection):
    """An application: a registry of tasks, and the connection to the fleet that runs them."""

    def __init__(
        self, name: str, url: str | os.PathLike[str] | None = None, *, reply_timeout: float | None = None
    ) -> None:
        """
        Args:
            name: the name of the application in logs and, without a URL, of its directory.
            url: where the queue is kept: the absolute path of a directory, or ``file:///path``. Default: TASKQ_URL,
                then the directory ``taskq/NAME`` in the user's state directory.
            reply_timeout: seconds after which a broker that does not answer counts as stopped or stuck. Until it
                answers, `enqueue` spools at once, and whatever needs a reply raises BrokerUnavailable at once. Default:
                TASKQ_REPLY_TIMEOUT, then 5.

        Raises:
            ConfigError: the name, the URL or the time makes no sense.
        """
        self.name = name
        place = place_of(name, None if url is None else os.fspath(url))
        super().__init__(place, None if reply_timeout is None else reply_timeout_s(reply_timeout))
        #: When it was made, in seconds since 1970: older jobs are not this program's.
        self.made_at = self.clock.time()
        #: The tasks, by their names and by those that they had before.
        self.tasks: dict[str, Task[..., Any]] = {}
        #: The schedules, to list and to change.
        self.schedules = Schedules(self, self.tasks)
        self.hooks = Hooks()
        self._names_elsewhere: set[str] = set()  # tasks that were named and are not registered here
        self.hooks.install_in(self)

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}>"

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
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
        aliases: Sequence[str] = (),
        retry_on: ErrorTypes | None = None,
        give_up_on: ErrorTypes = (),
        **options: Unpack[JobOptions],
    ) -> Any:
        """Registers a function as a task; a decorator, with or without arguments.

        Args:
            name: the task's name, by default the function's. Stored jobs refer to it, so keep it when you rename or
                move the function.
            aliases: earlier names of the task: it also runs the jobs and schedules that were made under them. Limits
                and order (`concurrency=`, `ordered_by=`, `unique=` ...) count for each name separately.
            retry_on: the exceptions after which a job is retried; all others end it. Default: all exceptions.
            give_up_on: exceptions that end the job at once; this takes precedence over `retry_on`. Neither applies to
                timeouts, to crashes, or to `Retry`, `Snooze` and `Cancel`.
            options: the options of all its jobs; `taskq.client.options.options.JobOptions` lists them.

        Returns:
            The `Task`, which can still be called as a function.

        Raises:
            ConfigError: an option makes no sense, or a name is taken.
            TypeError: there is no such option.
        """
        refuse_for_task(options)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            spec, call_options = options_of_task(name or _own_name(function), function, options, retry_on, give_up_on)
            task = Task(self, function, spec, call_options)
            self._register(task, aliases)
            return task

        return register if function is None else register(function)

    def _register(self, task: Task[..., Any], aliases: Sequence[str]) -> None:
        names = [task.name, *_aliases_of(task.name, aliases)]
        for name in names:
            known = self.tasks.get(name)
            if known is not None and not is_same_function(known.function, task.function):
                raise ConfigError(
                    f"the task name {name!r} is taken by {full_name(known.function)}: "
                    "give one of them another with name="
                )
        self.tasks.update(dict.fromkeys(names, task))

    def periodic(
        self,
        cron: str | None = None,
        /,
        *,
        name: str | None = None,
        **options: Unpack[ScheduleOptions],
    ) -> Callable[[Callable[P, R]], Task[P, R]]:
        """Enqueues a task on a schedule while a fleet runs; a decorator, above `task` or in place of it.

        A schedule that is changed or removed in the code changes in the fleet when its consumers load the code: at the
        start or by `taskq reload`. No fire happens twice, whichever process dies.

        Args:
            cron: a cron expression, such as ``"*/5 * * * *"`` (also ``@daily``, six fields with seconds first, ``L``
                and ``#``). In zones with daylight saving time it behaves like Debian's cron; see `cronsim`.
            name: the name of the schedule, by default the task's.
            options: ``every="30s"`` in place of a cron expression, and other options;
                `taskq.client.schedules.ScheduleOptions` lists them.

        Raises:
            ConfigError: an option makes no sense, or the name is taken.
            TypeError: there is no such option.
            PayloadError: an argument cannot be serialized.
        """

        if callable(cron):
            raise ConfigError('a schedule needs its times: write @q.periodic("*/5 * * * *") or @q.periodic(every=30)')

        def register(function: Callable[P, R]) -> Task[P, R]:
            task: Task[P, R] = function if isinstance(function, Task) else self.task(function)
            if self.tasks.get(task.name) is not task:
                raise ConfigError(f"{task!r} is a task of another application: declare its schedule there")
            self.engine.check_option(task.name, "periodic")
            own_name = name or task.name
            known = self.schedules.function_of(own_name)
            if known is not None and (known is task.function or not is_same_function(known, task.function)):
                raise ConfigError(f"the schedule name {own_name!r} is taken: give one of them another with name=")
            self.schedules.declare(own_name, task, cron, options)
            return task

        return register

    def on_consumer_start(self, function: HookT) -> HookT:
        """Calls a function in each consumer before its first job, to load a model or open a pool. A decorator.

        If it raises, the consumer does not start, and the fleet says why, as for an application that cannot be
        imported. It may take 2 minutes.

        Raises:
            ConfigError: it is not an ordinary function without arguments.
        """
        self.hooks.on_start(function)
        return function

    def on_consumer_stop(self, function: HookT) -> HookT:
        """Calls a function in each consumer after its last job, unless the consumer is killed. A decorator.

        What it raises is logged. It may take 5 seconds.

        Raises:
            ConfigError: it is not an ordinary function without arguments.
        """
        self.hooks.on_stop(function)
        return function

    def on_enqueue(self, function: EnqueueHookT) -> EnqueueHookT:
        """Calls a function when this application enqueues jobs; it may add to their `meta=`. A decorator::

            @q.on_enqueue
            def trace(task: str, meta: dict[str, str]) -> None:
                meta["request_id"] = request_id.get()

        It is called once for each call of `enqueue`, `enqueue_many`, `map` and the like, for each step of a workflow,
        and not for the jobs of schedules. What it raises is raised by that call, and nothing is
        enqueued. It must return None, otherwise the call raises ConfigError.

        Raises:
            ConfigError: it is not an ordinary function of two arguments.
        """
        self.enqueue_hooks = with_enqueue_hook(self.enqueue_hooks, function)
        return function

    def redact(self, function: RedactionT) -> RedactionT:
        """Calls a function that removes secrets before the arguments of a job are shown. A decorator::

            @q.redact
            def hide(task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
                if task == "log_in":  # log_in(user, password): each call may pass it by position or by name
                    args[1:] = ["***"] * len(args[1:])
                if "password" in kwargs:
                    kwargs["password"] = "***"

        The function changes both in place, for `Job.info` with ``arguments=True`` and for ``taskq job APP ID``. If it
        raises, or returns anything but None, no arguments of that job are shown. If several are registered, the last
        one counts.

        Raises:
            ConfigError: it is not an ordinary function of three arguments.
        """
        self.redaction = checked_redaction(function)
        return function

    def middleware(self, function: MiddlewareT) -> MiddlewareT:
        """Runs code around each job, of sync and async tasks alike. A decorator for a generator with one `yield`::

            @q.middleware
            def timing(job: CurrentJob) -> Iterator[None]:
                start = time.perf_counter()
                try:
                    yield  # the job runs here; what it raises is raised here, too
                finally:
                    job.log.info("timed", seconds=time.perf_counter() - start)

        The middleware that is registered first is the outermost. What a middleware raises ends the job as if the job
        had raised it (also `Retry`, `Snooze` and `Cancel`). It cannot turn a failure into a success: an error that it
        catches and does not raise again still ends the job.

        Raises:
            ConfigError: it is not such a function.
        """
        self.hooks.around(function)
        return function

    def enqueue(self, task: str, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Enqueues a job by the name of its task, whose code need not be imported here.

        If the task is registered here, its own options apply; otherwise the defaults do. A name that is not registered
        here, but is close to one that is, gives a warning: it may be misspelt, which only the fleet would notice.

        Args:
            task: the name of the task.
            args, kwargs: the arguments of the call.

        Returns:
            The handle of the job.

        Raises:
            The same as `Task.enqueue`.
        """
        return self._named(task).enqueue(*args, **kwargs)

    async def aenqueue(self, task: str, /, *args: Any, **kwargs: Any) -> Job[Any]:
        """`enqueue` for asyncio."""
        return await self._named(task).aenqueue(*args, **kwargs)

    def named(self, task: str) -> Enqueuer[..., Any]:
        """Returns a task by its name, whose code need not be imported here:
        ``q.named("resize").options(delay=60).enqueue("cat.jpg")``. Otherwise as `enqueue`.
        """
        return self._named(task)

    def _named(self, task: str) -> Enqueuer[..., Any]:
        known = self.tasks.get(task)
        if known is not None:
            return known
        spec = Spec(task)
        if task not in self._names_elsewhere:
            self._names_elsewhere.add(task)  # one look is enough: it takes longer than to enqueue
            self._warn_if_misspelt(task)
        return Enqueuer(self, spec)

    def _warn_if_misspelt(self, name: str) -> None:
        from difflib import get_close_matches  # takes 2 ms to import, which few programs need

        close = get_close_matches(name, self.tasks, n=1, cutoff=0.8)
        if close:
            warnings.warn(
                f"task {name!r} is not registered here, but {close[0]!r} is: is the name misspelt?", stacklevel=4
            )

    @property
    def needs(self) -> dict[str, tuple[str, list[str]]]:
        """What a fleet must have for each task: its queue, and the resources that it takes."""
        specs = {name: task.spec for name, task in self.tasks.items()}
        return {name: (spec.queue, [resource for resource, _ in spec.resources]) for name, spec in specs.items()}

    def job(self, id: str) -> Job[Any]:
        """Returns the handle of a job, from its id. It does not ask the fleet.

        Args:
            id: the 32 hexadecimal digits of `Job.id`.

        Raises:
            ConfigError: this is not a job id. The error is a `JobNotFound`, too.
        """
        try:
            job_id = bytes.fromhex(id)
        except (TypeError, ValueError):
            job_id = b""
        if len(job_id) != 16:
            raise BadJobId(f"{id!r} is not a job id: these have 32 hexadecimal digits")
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
        **search: Unpack[SearchOptions],
    ) -> list[JobInfo]:
        """Returns jobs, the newest first: in the order in which they were enqueued, or retried by hand.

        Scheduled jobs, if only these are wanted, are in the order in which they come due, unless the queue is in a
        database. Long errors are shortened, and `history` is empty: `Job.info` returns everything.

        Args:
            state: only jobs in this state, such as "failed" (the dead-letter list).
            task, queue: only jobs of this task, of this queue.
            limit: return at most this many jobs; None for all.
            before: only jobs enqueued before this one: the last job of a list leads to the next page.
            search: `since=`, `until=`, `attempts=` and `text=`; see `taskq.client.options.search.SearchOptions`. A
                search goes through all jobs, in small steps that do not hold up the fleet.

        Raises:
            ConfigError: an argument makes no sense.
            JobNotFound: nothing is known of the job in `before`.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.find(*self._listing(state, task, queue, limit, before), search_of(search)).jobs

    async def ajobs(
        self,
        state: JobState | str | None = None,
        *,
        task: str | None = None,
        queue: str | None = None,
        limit: int | None = 100,
        before: str | Job[Any] | None = None,
        **search: Unpack[SearchOptions],
    ) -> list[JobInfo]:
        """`jobs` for asyncio."""
        found = await self.async_client().find(*self._listing(state, task, queue, limit, before), search_of(search))
        return found.jobs

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
        """Queues all failed jobs again, as `Job.retry` does.

        Jobs that fail in the meantime are left alone. If it is interrupted, the jobs queued so far stay queued.

        Args:
            task, queue: only jobs of this task, of this queue.

        Returns:
            The number of jobs.

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

        Jobs that are enqueued in the meantime are left alone. If it is interrupted, removed jobs stay removed.

        Args:
            state: any state except "running".
            task, queue: only jobs of this task, of this queue.
            older_than: only jobs that ended (or, if they are pending, were enqueued) more than this many seconds ago.

        Returns:
            The number of jobs.

        Raises:
            ConfigError: the state is "running", or not a state.
            StoreFull: the disk is full.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.purge_all(*_purging(self.clock, state, task, queue, older_than))

    async def apurge(
        self,
        state: JobState | str,
        *,
        task: str | None = None,
        queue: str | None = None,
        older_than: float | None = None,
    ) -> int:
        """`purge` for asyncio."""
        return await self.async_client().purge_all(*_purging(self.clock, state, task, queue, older_than))

    def pause(self, *queues: str) -> list[str]:
        """Pauses queues: running jobs may finish, no other job starts, new jobs are accepted. The pause lasts until
        `resume`, also across restarts of the fleet. A queue need not have jobs yet.

        Args:
            queues: the names of the queues, at least one.

        Returns:
            The queues that were not paused before.

        Raises:
            ConfigError: a queue's name makes no sense.
            BrokerUnavailable: no fleet answers.
        """
        return self.client.pause(*_pausing(queues, True))

    async def apause(self, *queues: str) -> list[str]:
        """`pause` for asyncio."""
        return await self.async_client().pause(*_pausing(queues, True))

    def resume(self, *queues: str) -> list[str]:
        """Lets the jobs of paused queues run again.

        Args:
            queues: the names of the queues, at least one.

        Returns:
            The queues that were paused before.

        Raises:
            The same as `pause`.
        """
        return self.client.pause(*_pausing(queues, False))

    async def aresume(self, *queues: str) -> list[str]:
        """`resume` for asyncio."""
        return await self.async_client().pause(*_pausing(queues, False))

    def status(self) -> FleetStatus:
        """Returns what the fleet is doing: its queues, its consumers, and what has happened so far. If no fleet runs,
        returns what is left in the queue's directory; the state of the broker is "stopped" then.

        Raises:
            BrokerUnavailable: no fleet has run there yet.
        """
        return self.client.look()

    async def astatus(self) -> FleetStatus:
        """`status` for asyncio."""
        return await self.async_client().look()

    def fleet(
        self, consumers: int = 0, *, settings: Settings | None = None, fresh: bool = False
    ) -> AbstractContextManager[None]:
        """Runs a fleet while the `with` block runs, also for tasks defined in the running script.

        The fleet's log goes to the directory (read it with `taskq logs`), not to standard error: this program learns of
        failures from `Job.result`. When the block ends, running jobs finish, and pending jobs stay for the next fleet.
        So do all jobs that have not ended when the program is interrupted: they run first the next time, with a warning
        through `logging`.

        Args:
            consumers: the number of consumers; by default one for each CPU that this process may use.
            settings: all settings of the fleet, in place of `consumers`.
            fresh: drop the jobs, including scheduled ones, that were enqueued before this TaskQ was made and have not
                ended.

        Raises:
            AlreadyRunning: another fleet has this queue's directory.
            AppError: the fleet cannot import this application (it was made at a prompt, for example).
            DirectoryError, JournalError: the directory or the journal cannot be used.
        """
        from taskq.client.fleet import RunningFleet, settings_in_program  # it takes long to import

        return RunningFleet(self, settings or settings_in_program(consumers), fresh)

    def executor(self, max_workers: int | None = None, **options: Unpack[JobOptions]) -> QueueExecutor:
        """Returns a `concurrent.futures.Executor` that runs calls of any function as jobs of this application's fleet.

        Functions, arguments and results are pickled (by cloudpickle), so consumers run whatever this user's programs
        send. An application allows that by calling this method in the module that the fleet imports; the consumers of
        all others refuse such jobs.

        Args:
            max_workers: what the executor tells libraries that divide their work by the number of workers, such as
                dask; by default the number of CPUs that this process may use. It limits nothing.
            options: the options of its jobs; `taskq.client.options.options.JobOptions` lists them. Without `retries=`,
                a call that raises is not repeated.

        Raises:
            ConfigError: cloudpickle is not installed, or an option makes no sense.
            TypeError: there is no such option.
        """
        from taskq.client.executors.executor import QueueExecutor  # few programs need it
        from taskq.client.executors.pickled_calls import register

        return QueueExecutor(register(self).options(**options), max_workers)


def _own_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "<nameless>")
    if name.startswith("<"):
        raise ConfigError(f'{function!r:.80} has no name of its own: give it one, as in q.task(name="resize")(...)')
    return str(name)


def _aliases_of(name: str, aliases: Sequence[str]) -> list[str]:
    """The earlier names of a task, checked."""
    if isinstance(aliases, str) or not isinstance(aliases, Sequence) or name in aliases:
        raise ConfigError(f'aliases={aliases!r} of {name}: use a list of earlier names, as in aliases=["old"]')
    return [Spec(alias).task for alias in aliases]


def _state(state: JobState | str) -> JobState:
    try:
        return JobState(state)
    except ValueError:
        raise ConfigError(f"{state!r} is not a state of a job: use one of {', '.join(JobState)}") from None


def _purging(
    clock: Clock, state: JobState | str, task: str | None, queue: str | None, older_than: float | None
) -> tuple[JobState, str | None, str | None, float | None]:
    """The arguments of `TaskQ.purge`, checked, as clients take them."""
    named = _state(state)
    if named == JobState.RUNNING:
        raise ConfigError("running jobs cannot be purged: cancel them, or purge them when they have ended")
    if older_than is not None and not 0 <= older_than < inf:
        raise ConfigError(f"older_than={older_than!r}: use seconds, 0 or more")
    return named, task, queue, None if older_than is None else max(0.0, clock.time() - older_than)


def _pausing(queues: Sequence[str], is_paused: bool) -> tuple[Sequence[str], bool, str]:
    """The arguments of `TaskQ.pause`, checked, and who asks, as clients take them."""
    if not queues:
        raise ConfigError("which queues? name at least one")
    program, name = os.path.split(sys.argv[0])
    name = os.path.basename(program) if name == "__main__.py" else name
    return queues, is_paused, f"{name or 'python'}, pid {os.getpid()}"
