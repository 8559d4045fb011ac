"""The spec: what all jobs of a task have in common. It travels with each of them, and is in the journal once.

An option that is the same for all jobs of a task is a field here: its default, its name and its check in one place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any

from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_QUEUE_NAME_CHARS, MAX_TASK_NAME_CHARS, QUEUE_NAME

DEFAULT_QUEUE = "default"
DEFAULT_RETRIES = 3
DEFAULT_MAX_CRASHES = 3
LARGEST_PRIORITY = 1_000
TASK_NAME = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_TASK_NAME_CHARS}}}\Z")


def _whole(least: int, most: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


is_count = _whole(0, sys.maxsize)
_is_positive = _whole(1, 1_000_000_000)


def is_duration(value: object) -> bool:
    """Whether it is a number of seconds greater than 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_queue(value: object) -> bool:
    return isinstance(value, str) and bool(QUEUE_NAME.match(value))


def _is_backoff(value: object) -> bool:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 100:
        return False
    return all(is_duration(item) or (item == 0 and not isinstance(item, bool)) for item in value)


def _is_rate(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_positive(value[0]) and is_duration(value[1])


def _is_resource(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _is_queue(value[0]) and _is_positive(value[1])


_QUEUE_HINT = f"use 1 to {MAX_QUEUE_NAME_CHARS} of the characters A-Z a-z 0-9 _ . -"
_SECONDS_HINT = "use seconds greater than 0, or None for no limit"
_LIMIT_HINT = "use a whole number of at least 1, or None for no limit"


def _option(default: Any, name: str, is_valid: Callable[[object], bool], hint: str, label: str | None = None) -> Any:
    """A field of a Spec that callers write as an option.

    Args:
        default: needs no check.
        name: of the option, as callers write it.
        is_valid: whether a value other than the default makes sense.
        hint: what to use instead of a value that makes none.
        label: what stands before the value in the error, if not ``name=``.
    """
    return field(default=default, metadata={"option": name, "check": (is_valid, label or f"{name}=", hint)})


@dataclass(frozen=True, slots=True)
class Spec:
    """What a job is to do and how it is treated: what all jobs of one `enqueue_many` have in common.

    Attributes:
        task: the name under which the function is registered.
        queue: the queue's name.
        retries: how many times a job that raised or ran out of time is run again.
        timeout_s: the seconds that one attempt may take, or None.
        max_crashes: the number of deaths of its process after which the job is set aside as failed.
        priority: jobs of higher priority in a queue run first, jobs of equal priority in the order in which they came.
        backoff_s: the seconds to wait before each retry, the last for all later ones; None: see `taskq.model.job`.
        keep_result: whether the value that the function returned is kept.
        cpu_timeout_s: the seconds of CPU time that one attempt may take, or None.
        memory_limit_bytes: the memory that the process may take during an attempt, or None.
        crash_queue: the queue of the attempts that follow a crash, or None for the same one.
        concurrency: how many jobs of the task (or of one `limit_by` key) may run at once in the fleet, or None.
        rate: (most starts, in this many seconds), of the task or of one `limit_by` key, or None.
        resources: the amounts of the fleet's capacities that one attempt takes, by name, sorted.
        max_queued: how many jobs may be queued in the queue before it accepts no more, or None.
    """

    task: str
    queue: str = _option(DEFAULT_QUEUE, "queue", _is_queue, _QUEUE_HINT, "queue name ")
    retries: int = _option(DEFAULT_RETRIES, "retries", _whole(0, 1_000_000), "use a whole number from 0 to 1,000,000")
    timeout_s: float | None = _option(None, "timeout", is_duration, _SECONDS_HINT)
    max_crashes: int = _option(
        DEFAULT_MAX_CRASHES, "max_crashes", _whole(1, 1_000_000), "use a whole number from 1 to 1,000,000"
    )
    priority: int = _option(
        0,
        "priority",
        _whole(-LARGEST_PRIORITY, LARGEST_PRIORITY),
        f"use a whole number from -{LARGEST_PRIORITY} to {LARGEST_PRIORITY}",
    )
    backoff_s: tuple[float, ...] | None = _option(
        None, "backoff", _is_backoff, "use a list of 1 to 100 numbers of seconds, 0 or more"
    )
    keep_result: bool = _option(True, "result", _is_bool, "use True or False")
    cpu_timeout_s: float | None = _option(None, "cpu_timeout", is_duration, _SECONDS_HINT)
    memory_limit_bytes: int | None = _option(
        None, "memory_limit", _whole(1 << 20, 1 << 60), "use bytes, at least 1048576 (1 MiB), or None"
    )
    crash_queue: str | None = _option(None, "crash_queue", _is_queue, _QUEUE_HINT, "queue name ")
    concurrency: int | None = _option(None, "concurrency", _is_positive, _LIMIT_HINT)
    rate: tuple[int, float] | None = _option(
        None, "rate", _is_rate, 'use a number of starts and a time, such as "100/m" or "5/10s"'
    )
    resources: tuple[tuple[str, int], ...] = field(default=(), metadata={"option": "resources"})
    max_queued: int | None = _option(None, "max_queued", _is_positive, _LIMIT_HINT)
    is_limited: bool = field(init=False, repr=False, compare=False)  # whether there are limits before its jobs
    is_metered: bool = field(init=False, repr=False, compare=False)  # whether CPU time or memory is watched
    is_watched: bool = field(init=False, repr=False, compare=False)  # whether anything is, time included
    _hash: int = field(init=False, repr=False, compare=False)  # of all that is compared

    def __post_init__(self) -> None:
        if not isinstance(self.task, str) or not TASK_NAME.match(self.task):
            raise ConfigError(
                f"task name {self.task!r}: use 1 to {MAX_TASK_NAME_CHARS} of the characters A-Z a-z 0-9 _ . : -"
            )
        for name, default, (is_valid, label, hint) in _CHECKS:
            value = getattr(self, name)
            if value is not default and not is_valid(value):
                raise ConfigError(f"{label}{value!r}: {hint}")
        for resource in self.resources:
            if not _is_resource(resource):
                raise ConfigError(f'resources: {resource!r} is not a name with a whole number, as in {{"gpu": 1}}')
        is_limited = self.concurrency is not None or self.rate is not None or bool(self.resources)
        object.__setattr__(self, "is_limited", is_limited)
        is_metered = self.cpu_timeout_s is not None or self.memory_limit_bytes is not None
        object.__setattr__(self, "is_metered", is_metered)
        object.__setattr__(self, "is_watched", is_metered or self.timeout_s is not None)
        object.__setattr__(self, "_hash", hash(_compared(self)))

    def __hash__(self) -> int:
        return self._hash  # of 16 fields: several tables are asked for each job's spec

    def __reduce__(self) -> tuple[Any, ...]:
        return Spec, _compared(self)  # texts have other hashes in another process

    def to_wire(self) -> Sequence[object]:
        """The fields in a fixed order, as they travel and are stored; those that few jobs use go by name."""
        return _wire_of(self)

    @classmethod
    def from_wire(cls, fields: object) -> Spec:
        """The opposite of `to_wire`. Raises ConfigError if the fields make no sense."""
        if isinstance(fields, list) and len(fields) == 5:  # most often
            try:
                return _spec(*fields)
            except TypeError as error:
                raise _mistyped(error) from error
        if not isinstance(fields, list) or len(fields) != 6:
            raise ConfigError("a job's description must have five fields, and options")
        options = fields[5]
        if not isinstance(options, dict):
            raise ConfigError("a job's options must be a map")
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ConfigError(f"a job with the option {unknown[0]!r:.50}: is its producer newer than this fleet?")
        try:
            return _spec(*fields[:5], *((name, _hashable(value)) for name, value in options.items()))
        except TypeError as error:
            raise _mistyped(error) from error


#: The options that travel by name, and their defaults.
_OPTIONS = {f.name: f.default for f in fields(Spec)[5:] if f.init}
#: The options of callers that are fields here: the name of the field, by that of the option.
SPEC_FIELDS = {f.metadata["option"]: f.name for f in fields(Spec) if "option" in f.metadata}
_compared = attrgetter(*(f.name for f in fields(Spec) if f.compare))
_CHECKS = [(f.name, f.default, f.metadata["check"]) for f in fields(Spec) if "check" in f.metadata]


@lru_cache(maxsize=1_024)
def _wire_of(spec: Spec) -> Sequence[object]:
    """Each enqueue asks for that of its task."""
    wire: list[object] = [spec.task, spec.queue, spec.retries, spec.timeout_s, spec.max_crashes]
    options = {name: value for name, default in _OPTIONS.items() if (value := getattr(spec, name)) != default}
    return [*wire, options] if options else wire


def _mistyped(error: TypeError) -> ConfigError:
    return ConfigError(f"a job's description with a field of another type: {error}")


@lru_cache(maxsize=16_384, typed=True)  # for as many queues; typed: else 1, 1.0 and True would be the same
def _spec(task: Any, queue: Any, retries: Any, timeout_s: Any, max_crashes: Any, *options: tuple[str, Any]) -> Spec:
    """Every frame of a producer has the same fields: they are checked once, and the jobs share the result."""
    return Spec(task, queue, retries, timeout_s, max_crashes, **dict(options))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


@lru_cache(maxsize=1_024)
def spec_after_crash(spec: Spec) -> Spec:
    """The Spec of a job whose process has died: from the other queue, if it names one."""
    return spec if spec.crash_queue is None else replace(spec, queue=spec.crash_queue, crash_queue=None)
