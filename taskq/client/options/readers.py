"""How the value of each option is read: from what callers write to what `Spec` and `CallOptions` hold.

Each reader checks one value by itself, and raises ConfigError if it makes no sense.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from taskq.client.options.call_options import NOT_ERRORS, Backoff, ErrorTypes, Unique
from taskq.client.options.functions import misfit
from taskq.model.errors import ConfigError
from taskq.model.units import UNITS_S, bytes_of_text
from taskq.protocol.codec import ResultOf

_RATE: Final = re.compile(r"(\d[\d_]*) */ *(\d*\.?\d*) *(s|m|h|d)[a-z]*\Z")


# -- of Spec


def backoff_steps(backoff: Backoff) -> tuple[float, ...] | None:
    """The list of seconds in `backoff=`; None for a function."""
    if backoff is None or callable(backoff):
        return None
    if isinstance(backoff, Sequence) and not isinstance(backoff, (str, bytes)):
        return tuple(backoff)
    raise ConfigError(
        f"backoff={backoff!r:.100}: use a list of seconds such as [1, 10, 60], or a function "
        "(attempt, error) -> seconds"
    )


def memory_limit(value: Any) -> int | None:
    return bytes_of_text(value, "memory_limit")


def rate(value: object) -> tuple[int, float] | None:
    if value is None:
        return None
    found = _RATE.match(value) if isinstance(value, str) else None
    if found is None or found[2] == ".":
        raise ConfigError(f'rate={value!r}: use a number of starts and a time, such as "100/m" or "5/10s"')
    return int(found[1]), float(found[2] or 1) * UNITS_S[found[3]]


def resources(value: object) -> tuple[tuple[str, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ConfigError(f'resources={value!r}: use a dict of names and whole numbers, as in {{"gpu": 1}}')
    return tuple(sorted(value.items(), key=str))


# -- of CallOptions


def delay(value: object) -> float | None:
    return _seconds("delay", value) or None


def at(value: object) -> datetime | None:
    return None if value is None else _moment("at", value)


def expires(value: object) -> datetime | float | None:
    return _moment("expires", value) if isinstance(value, datetime) else _seconds("expires", value)


def unique(value: Any) -> Unique | None:
    if value is None or value is False:
        return None
    return value if isinstance(value, Unique) else Unique(by=value)


def after(value: Any) -> tuple[tuple[bytes, bool], ...]:
    """The jobs that a job comes after, each with whether it goes on if that one does not succeed. Of two policies
    "fail" counts."""
    if value is None:
        return ()
    if isinstance(value, (ResultOf, str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"after={value!r:.80}: use a list of jobs, as enqueue returns them, or a dict with policies")
    policies = value if isinstance(value, Mapping) else dict.fromkeys(value, "fail")
    found: dict[bytes, bool] = {}
    for job, policy in policies.items():
        if policy not in ("fail", "continue"):
            raise ConfigError(f'after={{{job!r:.80}: {policy!r:.80}}}: the policy is "fail" or "continue"')
        jobs = [job] if isinstance(job, ResultOf) else getattr(job, "jobs", None)
        if not isinstance(jobs, list) or not all(isinstance(one, ResultOf) for one in jobs):
            raise ConfigError(f"after: {job!r:.80} is not a job: use what enqueue returned")
        for one in jobs:
            found[one._id] = policy == "continue" and found.get(one._id, True)
    return tuple(found.items())


def when_full(value: object) -> bool:
    if value not in ("raise", "wait"):
        raise ConfigError(f'when_full={value!r}: use "raise" or "wait"')
    return value == "wait"


def on_success(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"on_success={value!r}: use True or False")
    return value


def backoff_function(backoff: Backoff) -> Callable[[int, BaseException], float] | None:
    """The function in `backoff=`; None for a list."""
    if not callable(backoff):
        return None
    if inspect.iscoroutinefunction(backoff):
        raise ConfigError("backoff= takes an ordinary function, not an async one")
    told = misfit(backoff, (1, None), {})
    if told is not None:
        raise ConfigError(f"the backoff function must take (attempt, error): {told}")
    return backoff


def error_types(option: str, value: ErrorTypes) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    for kind in types:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ConfigError(f"{option}={kind!r:.100}: use an exception class, or a tuple of exception classes")
        if issubclass(kind, NOT_ERRORS):
            raise ConfigError(
                f"{option}={kind.__name__}: only errors of the job's code can be chosen; timeouts, Retry, Snooze and "
                "Cancel mean the same for every task"
            )
    return types


# -- several of these


def _moment(name: str, value: object) -> datetime:
    if not isinstance(value, datetime):
        raise ConfigError(f"{name}={value!r}: use a datetime with a time zone, such as datetime.now(UTC)")
    if value.tzinfo is None:
        raise ConfigError(
            f"{name}={value!r} has no time zone, so nobody knows which moment it is: "
            "add one, as in datetime(2030, 1, 1, tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    return value


def _seconds(name: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise ConfigError(f"{name}={value!r}: use seconds, or a timedelta, of 0 or more")
    return float(seconds)
