"""Hooks: code of the application that runs when a consumer starts and stops, and before and after each job."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from taskq.client.options.functions import misfit
from taskq.client.transport.clients import EnqueueHook, Redaction
from taskq.model.errors import ConfigError

if TYPE_CHECKING:
    from taskq.client.context import CurrentJob
    from taskq.model.info.job import JobInfo

#: Called without arguments, in a consumer.
Hook = Callable[[], object]
HookT = TypeVar("HookT", bound=Hook)
EnqueueHookT = TypeVar("EnqueueHookT", bound=EnqueueHook)
RedactionT = TypeVar("RedactionT", bound=Redaction)
#: A generator with one `yield`, where the job runs; or what `contextlib.contextmanager` makes of one.
MiddlewareT = TypeVar("MiddlewareT", bound="Callable[[CurrentJob], Iterator[None] | AbstractContextManager[None]]")


#: What else every application of this process gets. Written by `for_every_app`, read when an application is made.
_for_every_app: list[Callable[[Any], object]] = []


def for_every_app(install: Callable[[Any], object]) -> None:
    """Gives hooks to every application that this process makes from now on; for tools that watch programs, such as
    those for tracing.

    Args:
        install: called with each application when it has been made. A function that is known already replaces its
            older self.
    """
    _for_every_app[:] = _with(_for_every_app, install)


def no_longer_for_every_app(install: Callable[[Any], object]) -> None:
    """Takes back what `for_every_app` was given. Applications that were made keep what they have."""
    if install in _for_every_app:
        _for_every_app.remove(install)


class StartFailed(Exception):
    """A function of `on_consumer_start` raised: the consumer cannot run."""


class Hooks:
    """The functions that an application has registered. Written while it is imported, run by consumers."""

    def __init__(self) -> None:
        self._starts: list[Hook] = []
        self._stops: list[Hook] = []
        #: Makes a context for each job; the first is the outermost.
        self.middleware: list[Callable[[CurrentJob], AbstractContextManager[None]]] = []
        self._sources: list[Callable[..., object]] = []

    @staticmethod
    def install_in(app: Any) -> None:
        """Gives a new application what every application gets; see `for_every_app`."""
        for install in _for_every_app:
            install(app)

    def on_start(self, function: Hook) -> None:
        """Registers a function for the start of a consumer."""
        self._starts = _with(self._starts, _checked(function, "on_consumer_start"))

    def on_stop(self, function: Hook) -> None:
        """Registers a function for the orderly end of a consumer."""
        self._stops = _with(self._stops, _checked(function, "on_consumer_stop"))

    def around(self, function: Callable[..., Any]) -> None:
        """Registers a middleware."""
        self._sources = _with(self._sources, function)
        self.middleware = [_context_maker(source) for source in self._sources]

    def run_starts(self) -> None:
        """Runs the functions for the start of a consumer, in the order of registration.

        Raises:
            StartFailed: one of them raised.
        """
        for function in self._starts:
            try:
                function()
            except BaseException as error:
                name = getattr(function, "__qualname__", repr(function))
                raise StartFailed(f"on_consumer_start {name}: {type(error).__name__}: {error}") from error

    def run_stops(self) -> None:
        """Runs the functions for the end of a consumer, in reverse order. If one raises, the traceback is printed, and
        the next one runs."""
        for function in reversed(self._stops):
            try:
                function()
            except BaseException:
                print("on_consumer_stop failed:", file=sys.stderr)
                traceback.print_exc()


def with_enqueue_hook(known: Sequence[EnqueueHook], function: EnqueueHook) -> Sequence[EnqueueHook]:
    """Returns the functions of `on_enqueue` with one more.

    Raises:
        ConfigError: it is not an ordinary function of two arguments.
    """
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"on_enqueue takes an ordinary function (task, meta), not {function!r:.100}")
    if misfit(function, ("", {}), {}) is not None:
        name = getattr(function, "__qualname__", function)
        raise ConfigError(f"on_enqueue: {name} must take two arguments, the name of the task and the meta")
    return _with(known, function)


def checked_redaction(function: RedactionT) -> RedactionT:
    """Returns the function of `redact`, checked.

    Raises:
        ConfigError: it is not an ordinary function of three arguments.
    """
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"redact takes an ordinary function (task, args, kwargs), not {function!r:.100}")
    if misfit(function, ("", [], {}), {}) is not None:
        name = getattr(function, "__qualname__", function)
        raise ConfigError(f"redact: {name} must take three arguments: the name of the task, args and kwargs")
    return function


def redacted(info: JobInfo, redaction: Redaction | None) -> JobInfo:
    """Returns what is known of a job, without the arguments that the application hides."""
    arguments = info.arguments
    if redaction is None or arguments is None or arguments.left_out is not None:
        return info
    told = ""
    try:
        returned = redaction(info.task, arguments.args, arguments.kwargs)
        if returned is not None:  # it may have made others, and hidden nothing in these
            kind = type(returned).__name__
            told = f"the function that hides secrets returned a {kind}, not None: it must change them in place"
    except Exception as error:
        told = f"the function that hides secrets raised {type(error).__name__}"
    if told:
        return replace(info, arguments=replace(arguments, args=[], kwargs={}, left_out=told))
    return info


def _with(known: Sequence[Any], function: Any) -> list[Any]:
    """Returns the functions with this one added. If its module was imported again, it replaces its older self."""
    name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    others = [other for other in known if (other.__module__, getattr(other, "__qualname__", None)) != name]
    return [*others, function]


def _checked(function: Hook, where: str) -> Hook:
    if not callable(function) or inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"{where} takes an ordinary function without arguments, not {function!r:.100}")
    if misfit(function, (), {}) is not None:
        raise ConfigError(f"{where}: {getattr(function, '__qualname__', function)} must take no arguments")
    return function


def _context_maker(function: Callable[..., Any]) -> Callable[[CurrentJob], AbstractContextManager[None]]:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isasyncgenfunction(inspect.unwrap(function)) or inspect.iscoroutinefunction(function):
        raise ConfigError(f"the middleware {name} is async: use an ordinary generator, also around async tasks")
    if not inspect.isgeneratorfunction(inspect.unwrap(function)):
        raise ConfigError(
            f"the middleware {name} has no `yield`: write what comes before the job, `yield`, and the rest"
        )
    if misfit(function, (None,), {}) is not None:
        raise ConfigError(f"the middleware {name} must take one argument, the job")
    return contextmanager(function) if inspect.isgeneratorfunction(function) else function
