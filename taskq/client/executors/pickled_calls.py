"""Calls of any function as jobs of one task, pickled by cloudpickle: the only place that pickles or unpickles anything.

An application opts in by registering the task: a consumer whose application has not done so refuses these jobs, so no
message can turn it on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from taskq.client.context import current_job, running_job
from taskq.client.task import Task
from taskq.model.errors import Cancel, ConfigError, JobTimeout, Retry, Snooze
from taskq.model.limits import MAX_ITEM_BYTES

T = TypeVar("T")

TASK_NAME = "taskq.call"
#: The name of the application of private fleets.
PRIVATE_NAME = "executor"
#: A file in the directory of such a fleet, to which only its user can write: what each consumer runs first.
INITIALIZER = "initializer"
_MOST_PICKLED_BYTES = MAX_ITEM_BYTES - 64
#: Raised to tell taskq something, and not errors of the function.
_FOR_TASKQ = (JobTimeout, Retry, Snooze, Cancel)

CallTask = Task[[bytes], Generator["bytes | None", None, bytes]]


class Registry(Protocol):
    """What this module must know of an application."""

    tasks: dict[str, Any]

    def task(self, *, name: str | None = None, retries: int) -> Callable[[Any], Any]:
        """As `taskq.TaskQ.task`."""


def register(app: Registry) -> CallTask:
    """Registers the task with an application, once; returns it.

    Raises:
        ConfigError: cloudpickle is not installed.
    """
    _cloudpickle()
    known = app.tasks.get(TASK_NAME)
    task: CallTask = known if known is not None else app.task(name=TASK_NAME, retries=0)(run_pickled)
    return task


def run_pickled(call: bytes) -> Generator[bytes | None, None, bytes]:
    """The task: runs a pickled call, and returns its pickled result.

    If the call raises, so does this, and the job fails as any other. The exception itself is an item of the job, which
    is kept with it. Items are numbered, and the first to be stored under a number stays there; so attempt 3 yields its
    exception as the third item.
    """
    try:
        function, args, kwargs = _loaded(call)
        return dump(function(*args, **kwargs))
    except _FOR_TASKQ:
        raise
    except BaseException as raised:
        yield from [None] * (current_job().attempt - 1)
        yield _dumped_exception(raised)
        raise


def _loaded(call: bytes) -> Any:
    """Unpickles a call. No time limit interrupts that: a module that is half imported would fail in all later calls."""
    loaded: list[Any] = []
    job = running_job()
    if job is None:
        return load(call)
    job.uninterrupted(lambda: loaded.append(load(call)))
    return loaded[0]


def _dumped_exception(raised: BaseException) -> bytes | None:
    """A pickled exception; None if it cannot be pickled, or is too large for an item: then only its text arrives."""
    try:
        pickled = dump(raised)
    except Exception:
        return None
    return pickled if len(pickled) <= _MOST_PICKLED_BYTES else None


def dump_call(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pickles a call. Raises what pickle raises for what cannot be pickled (TypeError, PicklingError ...)."""
    return dump((function, args, kwargs))


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, for people."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return str(name)[:200]


def dump(value: Any) -> bytes:
    """Pickles a value; functions and classes that cannot be imported go with their code."""
    data: bytes = _cloudpickle().dumps(value)
    return data


def load(data: bytes) -> Any:
    """Unpickles a value. Only for what this program, or another of its user, has pickled."""
    return _cloudpickle().loads(data)


def _cloudpickle() -> Any:
    try:
        import cloudpickle  # optional, and nobody needs it who has no executor
    except ImportError as error:
        raise ConfigError("an executor needs cloudpickle: pip install 'taskq-fleet[executor]'") from error
    return cloudpickle
