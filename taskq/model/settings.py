"""The settings of a fleet, checked where they are made."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_CONSUMERS, MAX_THREADS, MIN_LOG_MB, QUEUE_NAME

Durability = Literal["power", "os", "memory"]


LogFormat = Literal["auto", "console", "json"]


LOG_LEVELS = ("debug", "info", "warning", "error")

#: The settings that are whole numbers, and those of them that may be None.
_WHOLE = ("consumers", "threads", "max_jobs", "max_memory_mb", "memory_mb", "keep_results", "log_mb", "output_mb")
_OPTIONAL = ("max_jobs", "max_memory_mb")


def default_consumers() -> int:
    """Returns the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Settings:
    """How a fleet runs. Made once at the start and never changed.

    Attributes:
        consumers: how many consumer processes; by default one for each CPU that this process may use.
        threads: how many jobs each consumer runs at once. With more than 1, ordinary tasks run in threads, and
            `async def` tasks on an event loop: for jobs that wait for the network most of the time.
        queues: the queues that this fleet serves; empty for all.
        weights: the shares of queues, by name, where they are not 1: with 3 and 1, the first gets three quarters of the
            consumers' time while jobs wait in both.
        lanes: consumers that serve certain queues only: for each lane its queues (none for all) and the number of its
            consumers, in place of `consumers`.
        resources: the fleet's capacities, by name; jobs take parts of them with their option `resources`.
        drain: stop as soon as no job is pending or running.
        preload: start consumers by fork from a process that has imported the application.
        max_jobs: replace a consumer after this number of jobs.
        max_memory_mb: replace a consumer after its job if its resident memory is larger than this, in MiB.
        stop_timeout_s: seconds that running jobs may take when the fleet stops.
        durability: what an accepted job survives. "power": loss of power. "os": the death of any process; a crash of
            the system may lose the last commits. "memory": as "os", and such a crash may damage the journal.
        memory_mb: how much memory the broker may use for pending jobs, in MiB; the others stay on disk.
        keep_results_s: how many seconds ended jobs and their results are kept.
        keep_results: how many ended jobs are kept. Failed jobs do not count, and are kept.
        log_level: the lowest level that is logged: "debug", "info", "warning" or "error".
        stderr_level: the lowest level that standard error gets, too; None for all.
        log_mb: how much disk space the log of events may take, in MiB; the oldest events are dropped.
        output_mb: the same for what jobs print and log.
        log_format: the format of standard error: "console", "json", or "auto" (console if it is a terminal).
        log_redact: the function that takes secrets out of each line of the log, as "module:function" or
            "path/to/file.py:function"; "" for none.
    """

    consumers: int = 0
    threads: int = 1
    queues: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    lanes: tuple[tuple[tuple[str, ...], int], ...] = ()
    resources: tuple[tuple[str, int], ...] = ()
    drain: bool = False
    preload: bool = False
    max_jobs: int | None = None
    max_memory_mb: int | None = None
    stop_timeout_s: float = 30.0
    durability: Durability = "power"
    memory_mb: int = 160
    keep_results_s: float = 86_400.0
    keep_results: int = 100_000
    log_level: str = "info"
    stderr_level: str | None = None
    log_format: LogFormat = "auto"
    log_mb: int = 60
    output_mb: int = 60
    log_redact: str = ""

    def __post_init__(self) -> None:
        for name in _WHOLE:
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            _require(is_whole or (value is None and name in _OPTIONAL), f"{name}={value!r}: use a whole number")
        for name in ("stop_timeout_s", "keep_results_s"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            _require(is_number, f"{name}={value!r}: use a number of seconds")
        self._read_lanes()
        if self.consumers == 0:
            object.__setattr__(self, "consumers", default_consumers())
        _require(not isinstance(self.queues, str), f"queues={self.queues!r}: use a list of names")
        object.__setattr__(self, "queues", tuple(self.queues))
        _require(1 <= self.consumers <= MAX_CONSUMERS, f"consumers={self.consumers}: use 1 to {MAX_CONSUMERS}")
        _require(1 <= self.threads <= MAX_THREADS, f"threads={self.threads}: use 1 to {MAX_THREADS:,}")
        for queue in self.queues:
            _require(bool(QUEUE_NAME.match(queue)), f"queue name {queue!r}: use A-Z a-z 0-9 _ . -")
        _require(self.max_jobs is None or self.max_jobs >= 1, f"max_jobs={self.max_jobs}: use 1 or more")
        _require(self.max_memory_mb is None or self.max_memory_mb >= 1, "max_memory_mb: use 1 or more")
        _require(self.stop_timeout_s >= 0, f"stop_timeout_s={self.stop_timeout_s}: use 0 or more seconds")
        _require(self.memory_mb >= 8, f"memory_mb={self.memory_mb}: use 8 or more")
        _require(self.log_mb >= MIN_LOG_MB, f"log_mb={self.log_mb}: use {MIN_LOG_MB} or more")
        _require(self.output_mb >= MIN_LOG_MB, f"output_mb={self.output_mb}: use {MIN_LOG_MB} or more")
        _require(self.keep_results_s >= 0 and self.keep_results >= 0, "keep_results: use 0 or more")
        _require(self.durability in get_args(Durability), f"durability={self.durability!r}: use power, os or memory")
        _require(self.log_format in get_args(LogFormat), f"log format {self.log_format!r}: use auto, console or json")
        _require(self.stderr_level in (None, *LOG_LEVELS, "critical"), f"stderr level {self.stderr_level!r}")
        _require(isinstance(self.log_redact, str), f"log_redact={self.log_redact!r:.80}: use 'module:function'")
        _require(self.log_level in LOG_LEVELS, f"log level {self.log_level!r}: use one of {', '.join(LOG_LEVELS)}")

    def _read_lanes(self) -> None:
        """Turns the settings that are pairs into tuples, even if they came as lists, and applies the lanes."""
        weights = tuple((str(name), float(weight)) for name, weight in self.weights)
        lanes = tuple((tuple(queues), int(consumers)) for queues, consumers in self.lanes)
        resources = tuple((str(name), int(amount)) for name, amount in self.resources)
        for name, value in (("weights", weights), ("lanes", lanes), ("resources", resources)):
            object.__setattr__(self, name, value)
        for name, weight in weights:
            _require(bool(QUEUE_NAME.match(name)) and 0 < weight < 1e6, f"weight {name}={weight:g}: use more than 0")
        for name, amount in resources:
            _require(bool(QUEUE_NAME.match(name)) and amount >= 0, f"resource {name}={amount}: use a whole number")
        if not lanes:
            return
        _require(all(count >= 1 for _, count in lanes), "lanes: use 1 or more consumers for each")
        consumers = sum(count for _, count in lanes)
        is_served = all(queues for queues, _ in lanes)
        queues = tuple(dict.fromkeys(name for queues, _ in lanes for name in queues)) if is_served else ()
        _require(self.consumers in (0, consumers), "lanes say how many consumers there are: leave out consumers=")
        _require(tuple(self.queues) in ((), queues), "lanes say which queues are served: leave out queues=")
        object.__setattr__(self, "consumers", consumers)
        object.__setattr__(self, "queues", queues)

    def queues_of(self, consumer: int) -> tuple[str, ...]:
        """Returns the queues that a consumer serves, by its number (1, 2 ...); none for all that the fleet serves."""
        for queues, count in self.lanes:
            consumer -= count
            if consumer <= 0:
                return queues
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain data, which the guardian sends to the broker."""
        return asdict(self)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
