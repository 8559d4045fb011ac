"""Which errors are worth another attempt, and when: the part of retries that is code of the application.

It stays with the task, and is asked in the consumer, where the exception lives. What needs no code (how often, the list
of delays) travels with the job in its `Spec`, and counts also where no exception is left to ask about: after a crash,
or a kill for time or memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from taskq.client.options.functions import misfit
from taskq.model.errors import Cancel, ConfigError, JobTimeout, Retry, Snooze, is_delay

#: What `backoff=` takes: a list of seconds, or a function of the attempt's number and its error; None for the default.
Backoff = Sequence[float] | Callable[[int, BaseException], float] | None
#: What `retry_on=` and `give_up_on=` take.
ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]

_NOT_ERRORS = (JobTimeout, Retry, Snooze, Cancel)


class RetryRules(NamedTuple):
    """When the jobs of one task are retried."""

    backoff: Callable[[int, BaseException], float] | None = None
    retry_on: tuple[type[BaseException], ...] | None = None
    give_up_on: tuple[type[BaseException], ...] = ()

    def gives_up(self, error: BaseException) -> bool:
        """Whether an error ends the job. A timeout never does: this is about what the code raises itself."""
        if isinstance(error, _NOT_ERRORS):
            return False
        return isinstance(error, self.give_up_on) or (
            self.retry_on is not None and not isinstance(error, self.retry_on)
        )

    def delay_s(self, attempt: int, error: BaseException) -> float | None:
        """The seconds that the task's own function wants to wait; None if it has none.

        Raises:
            Exception: whatever the function raises; ConfigError if it returns no number of seconds.
        """
        if self.backoff is None:
            return None
        wish: object = self.backoff(attempt, error)
        delay_s = as_delay_s(wish)
        if delay_s is None:
            raise ConfigError(f"the backoff function returned {wish!r:.100}: use seconds, 0 or more")
        return delay_s


NO_RETRY_RULES = RetryRules()


def as_delay_s(value: object) -> float | None:
    """A number of seconds that a job can wait, as a plain one; None if it is not one."""
    if not is_delay(value):
        return None
    delay_s = float(value)  # type: ignore[arg-type]  # a subclass of it may compare as it likes
    return delay_s if is_delay(delay_s) else None


def read_rules(
    backoff: Backoff, retry_on: ErrorTypes | None, give_up_on: ErrorTypes, retries: int
) -> tuple[RetryRules, tuple[float, ...] | None]:
    """Checks the options of a task.

    Returns:
        The retries of the task, and the list of delays that travels.

    Raises:
        ConfigError: an option makes no sense, alone or with the others.
    """
    steps_s, function = read_backoff(backoff)
    wanted = None if retry_on is None else _types("retry_on", retry_on)
    refused = _types("give_up_on", give_up_on)
    for kind in wanted or ():
        if issubclass(kind, refused):
            raise ConfigError(f"retry_on={kind.__name__} has no effect: give_up_on= names it too, and goes first")
    given = {"backoff": backoff is not None, "retry_on": wanted is not None, "give_up_on": bool(refused)}
    useless = [name for name, is_given in given.items() if is_given]
    if retries == 0 and useless:
        raise ConfigError(f"{useless[0]}= has no effect with retries=0: leave it out, or allow retries")
    return RetryRules(function, wanted, refused), steps_s


def read_backoff(
    backoff: Backoff,
) -> tuple[tuple[float, ...] | None, Callable[[int, BaseException], float] | None]:
    """The list of seconds in `backoff=`, and the function.

    Raises:
        ConfigError: it is neither.
    """
    if backoff is None:
        return None, None
    if callable(backoff):
        if inspect.iscoroutinefunction(backoff):
            raise ConfigError("backoff= takes an ordinary function, not an async one")
        _check_takes_two(backoff)
        return None, backoff
    if isinstance(backoff, Sequence) and not isinstance(backoff, (str, bytes)):
        return tuple(backoff), None
    raise ConfigError(
        f"backoff={backoff!r:.100}: use a list of seconds such as [1, 10, 60], or a function "
        "(attempt, error) -> seconds"
    )


def _check_takes_two(function: Callable[..., Any]) -> None:
    told = misfit(function, (1, None), {})
    if told is not None:
        raise ConfigError(f"the backoff function must take (attempt, error): {told}")


def _types(option: str, value: ErrorTypes) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    for kind in types:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ConfigError(f"{option}={kind!r:.100}: use an exception's class, or a tuple of such")
        if issubclass(kind, _NOT_ERRORS):
            raise ConfigError(
                f"{option}={kind.__name__}: only errors of the job's code can be chosen; timeouts, Retry, Snooze and "
                "Cancel mean the same for every task"
            )
    return types
