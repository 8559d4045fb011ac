"""The spec: what all jobs of a task have in common. It travels with each of them, and is in the journal once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_QUEUE_NAME_CHARS, MAX_TASK_NAME_CHARS

DEFAULT_QUEUE = "default"


DEFAULT_RETRIES = 3


DEFAULT_MAX_CRASHES = 3


LARGEST_PRIORITY = 1_000


TASK_NAME = re.compile(rf"[A-Za-z0-9_.:-]{{1,{MAX_TASK_NAME_CHARS}}}\Z")


QUEUE_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_QUEUE_NAME_CHARS}}}\Z")


@dataclass(frozen=True, slots=True)
class Spec:
    """What a job is to do and how it is treated: what all jobs of one `enqueue_many` have in common.

    Attributes:
        task: the registered name of the function.
        queue: the queue's name.
        retries: how often a job that raised or ran out of time is run again.
        timeout_s: seconds that one attempt may take, or None.
        max_crashes: the number of deaths of its process after which the job is parked as failed.
        priority: higher ones of a queue run first; equal ones in the order in which they came.
        backoff_s: seconds to wait before each retry, the last for all that follow; None: see `backoff_s` below.
        keep_result: whether what the function returned is kept.
        cpu_timeout_s: seconds of CPU time that one attempt may take, or None.
        memory_limit_bytes: memory that the process may take during an attempt, or None.
        crash_queue: the queue of the attempts that follow a crash, or None for the same one.
        concurrency: how many of the task (or of one `limit_by` key) may run at once in the fleet, or None.
        rate: (most starts, in this many seconds), of the task or of one `limit_by` key, or None.
        resources: what one attempt takes of the fleet's capacities, by name, sorted.
        max_queued: how many may wait in the queue before no more are taken in, or None.
    """

    task: str
    queue: str = DEFAULT_QUEUE
    retries: int = DEFAULT_RETRIES
    timeout_s: float | None = None
    max_crashes: int = DEFAULT_MAX_CRASHES
    priority: int = 0
    backoff_s: tuple[float, ...] | None = None
    keep_result: bool = True
    cpu_timeout_s: float | None = None
    memory_limit_bytes: int | None = None
    crash_queue: str | None = None
    concurrency: int | None = None
    rate: tuple[int, float] | None = None
    resources: tuple[tuple[str, int], ...] = ()
    max_queued: int | None = None
    is_limited: bool = field(init=False, repr=False, compare=False)  # whether there are limits before its jobs
    is_metered: bool = field(init=False, repr=False, compare=False)  # whether CPU time or memory is watched
    is_watched: bool = field(init=False, repr=False, compare=False)  # whether anything is, time included

    def __post_init__(self) -> None:
        self._check_names()
        self._check_attempts()
        self._check_limits()
        is_limited = self.concurrency is not None or self.rate is not None or bool(self.resources)
        object.__setattr__(self, "is_limited", is_limited)
        is_metered = self.cpu_timeout_s is not None or self.memory_limit_bytes is not None
        object.__setattr__(self, "is_metered", is_metered)
        object.__setattr__(self, "is_watched", is_metered or self.timeout_s is not None)

    def _check_names(self) -> None:
        if not isinstance(self.task, str) or not TASK_NAME.match(self.task):
            raise ConfigError(
                f"task name {self.task!r}: use 1 to {MAX_TASK_NAME_CHARS} of the characters A-Z a-z 0-9 _ . : -"
            )
        for queue in (self.queue,) if self.crash_queue is None else (self.queue, self.crash_queue):
            if not isinstance(queue, str) or not QUEUE_NAME.match(queue):
                raise ConfigError(
                    f"queue name {queue!r}: use 1 to {MAX_QUEUE_NAME_CHARS} of the characters A-Z a-z 0-9 _ . -"
                )

    def _check_attempts(self) -> None:
        if not _is_count(self.retries) or self.retries > 1_000_000:
            raise ConfigError(f"retries={self.retries!r}: use a whole number from 0 to 1,000,000")
        if not _is_count(self.max_crashes) or not 1 <= self.max_crashes <= 1_000_000:
            raise ConfigError(f"max_crashes={self.max_crashes!r}: use a whole number from 1 to 1,000,000")
        if self.timeout_s is not None and not _is_duration(self.timeout_s):
            raise ConfigError(f"timeout={self.timeout_s!r}: use seconds greater than 0, or None for no limit")
        if self.cpu_timeout_s is not None and not _is_duration(self.cpu_timeout_s):
            raise ConfigError(f"cpu_timeout={self.cpu_timeout_s!r}: use seconds greater than 0, or None for no limit")
        if self.memory_limit_bytes is not None and not _is_whole(self.memory_limit_bytes, 1 << 20, 1 << 60):
            raise ConfigError(f"memory_limit={self.memory_limit_bytes!r}: use bytes, at least 1048576 (1 MiB), or None")
        if self.backoff_s is not None and not _is_backoff(self.backoff_s):
            raise ConfigError(f"backoff={self.backoff_s!r}: use a list of 1 to 100 numbers of seconds, 0 or more")

    def _check_limits(self) -> None:
        if not _is_whole(self.priority, -LARGEST_PRIORITY, LARGEST_PRIORITY):
            raise ConfigError(
                f"priority={self.priority!r}: use a whole number from -{LARGEST_PRIORITY} to {LARGEST_PRIORITY}"
            )
        if not isinstance(self.keep_result, bool):
            raise ConfigError(f"result={self.keep_result!r}: use True or False")
        for name in ("concurrency", "max_queued"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value, 1, 1_000_000_000):
                raise ConfigError(f"{name}={value!r}: use a whole number of at least 1, or None for no limit")
        if self.rate is not None and not _is_rate(self.rate):
            raise ConfigError(f'rate={self.rate!r}: use a number of starts and a time, such as "100/m" or "5/10s"')
        for resource in self.resources:
            if not _is_resource(resource):
                raise ConfigError(f'resources: {resource!r} is not a name with a whole number, as in {{"gpu": 1}}')

    def to_wire(self) -> list[object]:
        """The fields in a fixed order, as they travel and are stored; those that most jobs do not use by name."""
        wire: list[object] = [self.task, self.queue, self.retries, self.timeout_s, self.max_crashes]
        options = {name: value for name, default in _OPTIONS.items() if (value := getattr(self, name)) != default}
        return [*wire, options] if options else wire

    @classmethod
    def from_wire(cls, fields: object) -> Spec:
        """The opposite of `to_wire`. Raises ConfigError if the fields make no sense."""
        if not isinstance(fields, list) or len(fields) not in (5, 6):
            raise ConfigError("a job's description must have five fields, and options")
        options = fields[5] if len(fields) == 6 else {}
        if not isinstance(options, dict):
            raise ConfigError("a job's options must be a map")
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ConfigError(f"a job with the option {unknown[0]!r:.50}: is its producer newer than this fleet?")
        try:
            return _spec(*fields[:5], *((name, _hashable(value)) for name, value in options.items()))
        except TypeError as error:
            raise ConfigError(f"a job's description with a field of another type: {error}") from error


#: The options that travel by name, and their defaults.
_OPTIONS = {f.name: f.default for f in fields(Spec)[5:] if f.init}


@lru_cache(maxsize=1_024, typed=True)  # else 1, 1.0 and True would be the same
def _spec(task: Any, queue: Any, retries: Any, timeout_s: Any, max_crashes: Any, *options: tuple[str, Any]) -> Spec:
    """The same fields come with every frame of a producer: they are checked once, and their jobs share the result."""
    return Spec(task, queue, retries, timeout_s, max_crashes, **dict(options))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def _is_whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_backoff(value: object) -> bool:
    if not isinstance(value, tuple) or not 1 <= len(value) <= 100:
        return False
    return all(_is_duration(item) or (item == 0 and not isinstance(item, bool)) for item in value)


def _is_rate(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return _is_whole(value[0], 1, 1_000_000_000) and _is_duration(value[1])


def _is_resource(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return bool(QUEUE_NAME.match(value[0])) and _is_whole(value[1], 1, 1_000_000_000)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_duration(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e9


@lru_cache(maxsize=1_024)
def spec_after_crash(spec: Spec) -> Spec:
    """The Spec of a job whose process has died: from the other queue, if it names one."""
    return spec if spec.crash_queue is None else replace(spec, queue=spec.crash_queue, crash_queue=None)
