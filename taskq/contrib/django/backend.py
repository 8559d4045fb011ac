"""The backend for Django's tasks.

    TASKS = {"default": {"BACKEND": "taskq.contrib.django.backend.TaskqBackend", "OPTIONS": {...}}}

Each task of Django becomes a task of taskq, whose name is its path. What a job returns is the JSON that Django wants,
together with the arguments: Django's `TaskResult` has them also after the end, when taskq no longer keeps them.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, reset_queries, transaction
from django.utils.module_loading import import_string

from taskq.client.app import TaskQ
from taskq.client.context import current_job
from taskq.client.task import Enqueuer
from taskq.client.transport.submitting import submit
from taskq.model.errors import ConfigError, JobNotFound, Retry, Snooze
from taskq.model.info.job import JobInfo
from taskq.model.job import JobError, JobState, enqueued_at

try:
    from django.tasks import task_backends
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django.tasks.exceptions import InvalidTask, InvalidTaskBackend, TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
except ImportError:  # before Django 6: the backport
    try:
        from django_tasks import task_backends
    except ImportError as missing:
        raise ImproperlyConfigured("Django 5 has no tasks of its own: pip install django-tasks") from missing
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskContext, TaskError, TaskResult, TaskResultStatus
    from django_tasks.exceptions import InvalidTaskBackendError as InvalidTaskBackend
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

_STATUS = {
    JobState.RUNNING: TaskResultStatus.RUNNING,
    JobState.SUCCEEDED: TaskResultStatus.SUCCESSFUL,
    JobState.FAILED: TaskResultStatus.FAILED,
    JobState.CANCELLED: TaskResultStatus.FAILED,
    JobState.EXPIRED: TaskResultStatus.FAILED,
}
#: The exceptions that stand for the ends of a job that are no exception of its code.
_REASONS = {"TimedOut": "taskq.JobTimeout", "Cancelled": "taskq.JobCancelled", "ParentFailed": "taskq.JobCancelled"}
_RESULT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskqTask(Task):
    """A task of Django with options of taskq: ``@task(retries=5, unique=["user_id"])``. They are those of
    `taskq.JobOptions`; None leaves an option as JOB_OPTIONS of the backend says."""

    retries: int | None = None
    backoff: Any = None
    max_crashes: int | None = None
    crash_queue: str | None = None
    timeout: float | None = None
    cpu_timeout: float | None = None
    memory_limit: int | str | None = None
    expires: Any = None
    unique: Any = None
    concurrency: int | None = None
    rate: str | None = None
    limit_by: Any = None
    ordered_by: Any = None
    resources: Mapping[str, int] | None = None
    max_queued: int | None = None
    when_full: str | None = None
    meta: Mapping[str, str] | None = None

    @property
    def job_options(self) -> dict[str, Any]:
        """The options of taskq that were given."""
        given = {name: getattr(self, name) for name in _OPTION_NAMES}
        return {name: value for name, value in given.items() if value is not None}


_OPTION_NAMES = [each.name for each in fields(TaskqTask) if each.name not in {other.name for other in fields(Task)}]


@dataclass(frozen=True, slots=True)
class _Options:
    """OPTIONS of a backend."""

    NAME: str = ""
    URL: str | None = None
    ENQUEUE_ON_COMMIT: bool = False
    DATABASE: str | None = None
    JOB_OPTIONS: Mapping[str, Any] | None = None
    MODULES: Sequence[str] = ()


class TaskqBackend(BaseTaskBackend):
    """Hands tasks to a fleet.

    OPTIONS (all may be left out):
        NAME: of the application in logs, and of its directory; by default the alias.
        URL: the directory of the queue, as for `taskq.TaskQ`; by default TASKQ_URL, then one of that name.
        ENQUEUE_ON_COMMIT: whether a task that is enqueued in a transaction goes to the queue when that is committed,
            and not at all if it is rolled back. Default False, as in Django.
        DATABASE: the alias of the database whose transactions these are; by default Django's default.
        JOB_OPTIONS: options of taskq for all tasks, such as {"timeout": 600}. Without retries, none is repeated.
        MODULES: modules with tasks that consumers import besides the module `tasks` of each application.
    """

    task_class = TaskqTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.alias = alias  # Django's own sets it in some versions only
        try:
            options = _Options(**self.options)
            self.q = TaskQ(options.NAME or alias, options.URL)
        except (TypeError, ConfigError) as error:
            raise ImproperlyConfigured(f"OPTIONS of the backend {alias!r} in TASKS: {error}") from error
        self.modules = options.MODULES
        self._options = options
        self._tasks: dict[str, Any] = {}

    def validate_task(self, task: Any) -> None:
        """Checks a task, and makes it one of taskq. Django calls this for each task that is declared.

        Raises:
            InvalidTask: it cannot run on this backend.
        """
        super().validate_task(task)
        known = self._tasks.get(task.module_path)
        if known is not None and known.func is task.func:
            return
        try:
            self._register(task)
        except (ConfigError, TypeError) as error:
            raise InvalidTask(str(error)) from error
        self._tasks[task.module_path] = task

    def _register(self, task: Any) -> None:
        own = task.job_options if isinstance(task, TaskqTask) else {}
        options = {"retries": 0, **(self._options.JOB_OPTIONS or {}), **own}
        self.q.task(name=task.module_path, **options)(_job_function(self, task))

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Enqueues a task. Unless ENQUEUE_ON_COMMIT says later, it is durable when this returns.

        Raises:
            InvalidTask: the task cannot run on this backend.
            EnqueueError: it was not accepted, for example as the arguments do not fit the function.
        """
        self.validate_task(task)
        known = self.q.tasks[task.module_path]
        changed: dict[str, Any] = {"queue": task.queue_name, "priority": task.priority}
        if task.run_after is not None:
            changed["at"] = _aware(task.run_after)
        enqueuer: Enqueuer[..., Any] = known.options(**changed)
        call = enqueuer._call(normalize_json(args), normalize_json(kwargs))
        result = _result(self, task, call.id.hex(), TaskResultStatus.READY, args, kwargs)
        send = partial(self._send, enqueuer, call, result)
        if self._options.ENQUEUE_ON_COMMIT:
            transaction.on_commit(send, using=self._options.DATABASE)
        else:
            send()
        return result

    def _send(self, enqueuer: Enqueuer[..., Any], call: Any, result: Any) -> None:
        [job_id] = submit(self.q, enqueuer.spec, enqueuer.call_options, [call])
        _set(result, id=job_id.hex(), enqueued_at=_moment(enqueued_at(job_id)))
        task_enqueued.send(type(self), task_result=result)

    def get_result(self, result_id: str) -> Any:
        """Returns what is known of a task that was enqueued.

        Raises:
            TaskResultDoesNotExist: nothing is known, or a spool has it that no fleet has taken in yet.
            BrokerUnavailable: no fleet answers.
        """
        try:
            job = self.q.job(result_id)
            info = job.info(arguments=True)
            task = self._task_of(info)
            returned = job.result(_RESULT_TIMEOUT_S) if info.state == JobState.SUCCEEDED else None
        except (ConfigError, JobNotFound) as error:
            raise TaskResultDoesNotExist(str(error)) from error
        status = _STATUS.get(info.state, TaskResultStatus.READY)
        result = _result(self, task, info.id, status, *_arguments(info, returned))
        begun = [each.started_at for each in info.history if each.started_at is not None]
        _set(
            result,
            enqueued_at=_moment(info.enqueued_at),
            started_at=_moment(begun[0] if begun else info.started_at),
            last_attempted_at=_moment(info.started_at),
            finished_at=_moment(info.finished_at),
            errors=_errors(info),
            worker_ids=_worker_ids(info),
            _return_value=None if returned is None else returned["return_value"],
        )
        return result

    def _task_of(self, info: JobInfo) -> Any:
        if not info.task:
            raise TaskResultDoesNotExist(f"job {info.id} is in the spool: no fleet has taken it in yet")
        task = self._tasks.get(info.task)
        if task is None:  # its module was not imported in this process
            try:
                task = import_string(info.task)
            except ImportError as error:
                raise TaskResultDoesNotExist(f"job {info.id} is of {info.task}, which is not there: {error}") from error
        return task


def backend_of(alias: str) -> TaskqBackend:
    """Returns a backend of the settings TASKS.

    Raises:
        ImproperlyConfigured: there is none with this alias, or it is not one of taskq.
    """
    try:
        backend = task_backends[alias]
    except InvalidTaskBackend as error:
        raise ImproperlyConfigured(f"TASKS has no backend {alias!r}: it has {', '.join(task_backends)}") from error
    if not isinstance(backend, TaskqBackend):
        told = f"{type(backend).__module__}.{type(backend).__qualname__}"
        ours = f"{TaskqBackend.__module__}.{TaskqBackend.__qualname__}"
        raise ImproperlyConfigured(f"the backend {alias!r} in TASKS is {told}: set its BACKEND to {ours}")
    return backend


# -- in consumers


def _job_function(backend: TaskqBackend, task: Any) -> Callable[..., Any]:
    """The function of a task of taskq that runs a task of Django."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _Running(backend, task, args, kwargs) as running:
            return running.returns(task.func(*running.context, *args, **kwargs))

    async def arun(*args: Any, **kwargs: Any) -> Any:
        with _Running(backend, task, args, kwargs) as running:
            return running.returns(await task.func(*running.context, *args, **kwargs))

    function: Any = arun if inspect.iscoroutinefunction(task.func) else run
    signature = inspect.signature(task.func)
    if task.takes_context:
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    function.__signature__ = signature  # for `unique=["user_id"]`, and to refuse arguments that do not fit
    return function


class _Running:
    """Around a task that runs: connections to the database, and the signals of Django."""

    def __init__(self, backend: TaskqBackend, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        job = current_job()
        self._backend = backend
        self._result = _result(backend, task, job.id, TaskResultStatus.RUNNING, args, kwargs)
        workers = [""] * (job.attempt - 1) + [f"pid {os.getpid()}"]
        now = datetime.now(UTC)
        _set(self._result, started_at=now, last_attempted_at=now, worker_ids=workers)
        self._connections = _connections()
        self.context = (TaskContext(task_result=self._result),) if task.takes_context else ()

    def __enter__(self) -> _Running:
        self._connections.__enter__()
        task_started.send(type(self._backend), task_result=self._result)
        return self

    def returns(self, value: Any) -> dict[str, Any]:
        """The result of the job. Raises TypeError if the value is not JSON."""
        normal = normalize_json(value)
        _set(self._result, status=TaskResultStatus.SUCCESSFUL, _return_value=normal)
        return {"return_value": normal, "args": self._result.args, "kwargs": self._result.kwargs}

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _frames: Any) -> None:
        try:
            if not isinstance(raised, (Retry, Snooze)):  # these go on later
                self._finish(raised)
        finally:
            self._connections.__exit__(None, None, None)

    def _finish(self, raised: BaseException | None) -> None:
        _set(self._result, finished_at=datetime.now(UTC))
        if raised is not None:
            path = f"{type(raised).__module__}.{type(raised).__qualname__}"
            _set(self._result, status=TaskResultStatus.FAILED, errors=[_task_error(path, str(raised))])
        task_finished.send(type(self._backend), task_result=self._result)


@contextmanager
def _connections() -> Iterator[None]:
    """Connections that are broken or too old are closed before and after a job, as around a request."""
    reset_queries()
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


# -- what Django wants to know


def _result(
    backend: TaskqBackend, task: Any, result_id: str, status: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    times = dict.fromkeys(("enqueued_at", "started_at", "finished_at", "last_attempted_at"))
    return TaskResult(
        task=task,
        id=result_id,
        status=status,
        args=list(args),
        kwargs=dict(kwargs),
        backend=backend.alias,
        errors=[],
        worker_ids=[],
        **times,
    )


def _set(result: Any, **changed: Any) -> None:
    for name, value in changed.items():
        object.__setattr__(result, name, value)  # it is frozen for others, as Django's own backends have it


def _arguments(info: JobInfo, returned: Any) -> tuple[list[Any], dict[str, Any]]:
    if returned is not None:
        return returned["args"], returned["kwargs"]
    found = info.arguments
    return ([], {}) if found is None else (found.args, found.kwargs)


def _errors(info: JobInfo) -> list[Any]:
    """The errors of all attempts; that of the last one is whole."""
    found = [each.error for each in info.history if each.error is not None and each.error.type != "Snoozed"]
    if info.error is not None and info.state != JobState.SUCCEEDED:
        found = [*found[:-1], info.error]
    if info.state in (JobState.CANCELLED, JobState.EXPIRED):
        return [*map(_told, found[:-1]), _task_error("taskq.JobCancelled", f"the job is {info.state}")]
    return list(map(_told, found))


def _told(error: JobError) -> Any:
    reason = _REASONS.get(error.type, "taskq.JobFailed")
    path = f"{error.module}.{error.type}" if error.module else reason
    return _task_error(path, error.traceback or f"{error.type}: {error.message}")


def _task_error(path: str, traceback: str) -> Any:
    return TaskError(exception_class_path=path, traceback=traceback)


def _worker_ids(info: JobInfo) -> list[str]:
    """One for each attempt: the consumer that ran it."""
    known = {each.number: each for each in info.history}
    found = []
    for number in range(1, info.attempts + 1):
        attempt = known.get(number)
        consumer = None if attempt is None else attempt.consumer
        found.append("consumer" if consumer is None else f"consumer {consumer}")
    return found


def _moment(timestamp: float | None) -> datetime | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC)


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.astimezone()
