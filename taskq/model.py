"""The data that everything speaks of. Imports nothing of taskq but errors and limits.

          submit            claim              outcome
(client) -------> queued ----------> running ----------> succeeded
   |                ^  |                |  |
   |      due time  |  | cancel         |  +-----------> failed      (kept until retried or purged)
   |                |  v                |
   +--> waiting -> scheduled <----------+  a retry: backoff
   after others     |
                    +------> cancelled          expired: not started in time
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple
from zlib import crc32

from taskq.errors import ConfigError
from taskq.limits import MAX_KEY_CHARS, MAX_PROGRESS_NOTE_CHARS, MAX_QUEUE_NAME_CHARS, MAX_TASK_NAME_CHARS


class JobState(StrEnum):
    """Where a job is in its life."""

    WAITING = "waiting"
    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: a final state never changes by itself."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})

DEFAULT_QUEUE = "default"
DEFAULT_RETRIES = 3
DEFAULT_MAX_CRASHES = 3
BACKOFF_FIRST_S = 1.0
BACKOFF_LONGEST_S = 600.0
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
        max_crashes: after so many deaths of the process that ran it, the job is parked as failed.
        priority: higher ones of a queue run first; equal ones in the order in which they came.
        backoff_s: seconds to wait before each retry, the last for all that follow; None: see `backoff_s` below.
        keep_result: whether what the function returned is kept.
        cpu_timeout_s: seconds of CPU time that one attempt may take, or None.
        memory_limit_bytes: memory that the process may take during an attempt, or None.
        crash_queue: the queue of the attempts that follow a crash, or None for the same one.
        concurrency: so many of the task (or of one `limit_by` key) run at once in the fleet, or None.
        rate: at most (so many starts, in so many seconds), of the task or of one `limit_by` key, or None.
        resources: what one attempt takes of the fleet's capacities, by name, sorted.
        max_queued: no more are taken in while so many wait in the queue, or None.
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
    is_limited: bool = field(init=False, repr=False, compare=False)  # whether there are gates before its jobs
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
                raise ConfigError(f'resources: {resource!r} is no name with a whole number, as in {{"gpu": 1}}')

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


@dataclass(unsafe_hash=True, slots=True)  # not frozen, as Terms
class UniqueKey:
    """How a job is the only one of its kind.

    Attributes:
        key: jobs with the same one are of a kind.
        until_start: it counts until it is started; else until it has ended.
        period_s: it counts so many seconds from its enqueueing at least, or None.
        replaces: a new one takes the place of one that waits; else the new one is left out.
    """

    key: str
    until_start: bool = False
    period_s: float | None = None
    replaces: bool = False

    def __post_init__(self) -> None:
        if not _is_key(self.key):
            raise ConfigError(f"unique={self.key!r:.80}: use a text of 1 to {MAX_KEY_CHARS} characters as the key")
        if self.period_s is not None and not _is_duration(self.period_s):
            raise ConfigError(f"period={self.period_s!r}: use seconds greater than 0, or None")

    @classmethod
    def from_wire(cls, fields: Any) -> UniqueKey:
        """From its fields, as `Terms.to_wire` has them. Raises ConfigError if they make no sense."""
        if isinstance(fields, list) and len(fields) == 4:
            key, until_start, period_s, replaces = fields
            if isinstance(until_start, bool) and isinstance(replaces, bool):
                return cls(key, until_start, period_s, replaces)
        raise ConfigError("a unique key must have four fields")


# Nobody changes one, but it is not frozen: there may be one for each job, and a frozen one takes three times as long.
@dataclass(unsafe_hash=True, slots=True)
class Terms:
    """What one job has besides its Spec. Most have nothing: None stands for that.

    Attributes:
        due_at: not to be queued before, in seconds since 1970. Not kept: the store has it in a column.
        expires_at: not to be started after, in seconds since 1970.
        limit_key: its task's limits count for jobs with the same key.
        order_key: jobs of the task with the same key run one after the other.
        unique: how it is the only one of its kind.
        forgiven: the failures, and the crashes, before somebody retried the failed job: they do not count against its
            retries and its `max_crashes` any more.
        after: the jobs that must have ended before, each with whether it goes on if that one did not succeed. Not
            kept: the store has them as edges.
        follows: whether it came after others: it has edges.
    """

    due_at: float | None = None
    expires_at: float | None = None
    limit_key: str | None = None
    order_key: str | None = None
    unique: UniqueKey | None = None
    forgiven: tuple[int, int] = (0, 0)
    after: tuple[tuple[bytes, bool], ...] = ()
    follows: bool = False

    def __post_init__(self) -> None:
        # most have one of these or none, and there may be one for each job
        if self.due_at is not None or self.expires_at is not None:
            for value in (self.due_at, self.expires_at):
                if value is not None and not _is_time(value):
                    raise ConfigError(f"due_at, expires_at: {value!r:.80}: use seconds since 1970")
        if self.is_keyed:
            for key in (self.limit_key, self.order_key):
                if key is not None and not _is_key(key):
                    raise ConfigError(
                        f"limit_key, order_key: {key!r:.80}: use a text of 1 to {MAX_KEY_CHARS} characters"
                    )
        if self.forgiven != (0, 0) and (len(self.forgiven) != 2 or not all(map(_is_count, self.forgiven))):
            raise ConfigError(f"forgiven={self.forgiven!r:.80}: use two counts")

    @property
    def is_keyed(self) -> bool:
        """Whether it waits with jobs of its key only."""
        return self.limit_key is not None or self.order_key is not None

    @property
    def max_wire_bytes(self) -> int:
        """How much it may take in a frame."""
        keys = (self.limit_key or "") + (self.order_key or "") + ("" if self.unique is None else self.unique.key)
        return 50 + len(keys) * (1 if keys.isascii() else 4)

    def is_over(self, wall: float) -> bool:
        """Whether it is too late to start it."""
        return self.expires_at is not None and self.expires_at <= wall

    @property
    def kept(self) -> Terms | None:
        """What is to be kept with the job, or None."""
        if self.due_at is None and not self.after:  # the rest takes its time
            is_used = self.unique is not None or self.is_keyed or self.expires_at is not None or self != NO_TERMS
            return self if is_used else None
        kept = replace(self, due_at=None, after=(), follows=self.follows or bool(self.after))
        return None if kept == NO_TERMS else kept

    def to_wire(self) -> list[object]:
        """The fields in a fixed order, as they travel and are stored; `after` goes its own way."""
        unique = self.unique
        fields = None if unique is None else [unique.key, unique.until_start, unique.period_s, unique.replaces]
        wire: list[object] = [self.due_at, self.expires_at, self.limit_key, self.order_key, fields]
        if self.forgiven != (0, 0):
            wire.append(self.forgiven)
        return [*wire, True] if self.follows else wire

    @classmethod
    def from_wire(cls, fields: Any) -> Terms:
        """The opposite of `to_wire`. Raises ConfigError if the fields make no sense."""
        if isinstance(fields, list) and len(fields) == 5:  # nearly all; a pattern takes four times as long
            due_at, expires_at, limit_key, order_key, unique = fields
            return cls(
                due_at, expires_at, limit_key, order_key, None if unique is None else UniqueKey.from_wire(unique)
            )
        match fields:
            case [*own, True] if len(own) in (5, 6):
                return replace(cls.from_wire(own), follows=True)
            case [*own, list(forgiven)] if len(own) == 5:
                return replace(cls.from_wire(own), forgiven=tuple(forgiven))
        raise ConfigError("a job's terms must have five fields")


NO_TERMS = Terms()


def _is_key(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_KEY_CHARS and value.isprintable()


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e11


class Memo(NamedTuple):
    """What few jobs carry from one attempt to the next.

    Attributes:
        snoozes: how many attempts ended with the wish to run later: they are no failures.
        checkpoint: what the last attempt kept for the next one (taskq.codec), or None.
    """

    snoozes: int = 0
    checkpoint: bytes | None = None


_NO_MEMO = Memo()


@lru_cache(maxsize=1_024)
def spec_after_crash(spec: Spec) -> Spec:
    """The Spec of a job whose process has died: from the other queue, if it names one."""
    return spec if spec.crash_queue is None else replace(spec, queue=spec.crash_queue, crash_queue=None)


class JobRow:
    """A job as the store keeps it and the broker holds it: the persistent fields only.

    Written by the broker alone. `attempts` counts starts that ended (in an outcome or a death), `crashes` the
    deaths among them, and `memo.snoozes` those that snoozed; the running start is attempt number `attempts + 1`.
    A number of an attempt never comes again, whatever became of it: so a record of a start (`taskq.counters`) tells
    whether it is counted already.
    """

    __slots__ = ("attempts", "crashes", "id", "memo", "payload", "seq", "spec", "terms")

    def __init__(
        self,
        seq: int,
        id: bytes,
        spec: Spec,
        payload: bytes,
        attempts: int = 0,
        crashes: int = 0,
        terms: Terms | None = None,
    ) -> None:
        self.seq = seq
        self.id = id
        self.spec = spec
        self.payload = payload
        self.attempts = attempts
        self.crashes = crashes
        self.terms = terms
        self.memo: Memo | None = None

    def count_snooze(self) -> None:
        """Notes that the attempt that was counted last snoozed."""
        memo = self.memo or _NO_MEMO
        self.memo = memo._replace(snoozes=memo.snoozes + 1)

    def keep(self, checkpoint: bytes) -> None:
        """Notes what the running attempt keeps for the next one."""
        self.memo = (self.memo or _NO_MEMO)._replace(checkpoint=checkpoint)

    @property
    def failures(self) -> int:
        """How often it raised or ran out of time, as far as that counts against its retries."""
        failures = self._all_failures
        return failures if self.terms is None else failures - self.terms.forgiven[0]

    @property
    def _all_failures(self) -> int:
        failures = self.attempts - self.crashes
        return failures if self.memo is None else failures - self.memo.snoozes

    @property
    def charged_crashes(self) -> int:
        """How often its process died, as far as that counts against its `max_crashes`."""
        return self.crashes if self.terms is None else self.crashes - self.terms.forgiven[1]

    def forgive(self) -> None:
        """Gives the job all its retries and crashes again, and all its time: its attempts are counted on."""
        forgiven = self._all_failures, self.crashes
        self.terms = replace(self.terms or NO_TERMS, expires_at=None, forgiven=forgiven)

    def __repr__(self) -> str:
        return f"JobRow({self.seq}, {self.id.hex()}, {self.spec.task}, attempts={self.attempts})"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why an attempt did not succeed, in text only: nothing here is ever imported or called.

    Attributes:
        type: the remote exception's class name, or taskq's own reason (see `taskq.errors.JobFailed`).
        message: the remote exception's text.
        traceback: the remote traceback, or "".
        exit_code: of the process, if it died by itself.
        signal: the name of the signal that killed the process, such as "SIGKILL", or None.
        output: the last lines that the process wrote.
    """

    type: str
    message: str
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None
    output: list[str] = field(default_factory=list)

    def to_wire(self) -> list[object]:
        """The fields in a fixed order, as they travel and are stored."""
        return [self.type, self.message, self.traceback, self.exit_code, self.signal, self.output]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is.

    Attributes:
        done: how much of it is done, in whatever unit.
        total: how much there is to do, or None if that is not known.
        note: what it is doing.
    """

    done: float
    total: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not _is_amount(self.done):
            raise ConfigError(f"progress(done={self.done!r:.50}): use a number, 0 or more")
        if self.total is not None and not _is_amount(self.total):
            raise ConfigError(f"progress(total={self.total!r:.50}): use a number, 0 or more, or None")
        if not isinstance(self.note, str) or len(self.note) > MAX_PROGRESS_NOTE_CHARS:
            raise ConfigError(f"progress(note=...): use a text of up to {MAX_PROGRESS_NOTE_CHARS} characters")

    def describe(self) -> str:
        """``40 of 100 (40 %): resizing``."""
        parts = [f"{self.done:,g}" if isinstance(self.done, float) else f"{self.done:,}"]
        if self.total is not None:
            parts.append(f" of {self.total:,g}" if isinstance(self.total, float) else f" of {self.total:,}")
        if self.total:
            parts.append(f" ({self.done / self.total:.0%})")
        return "".join(parts) + (f": {self.note}" if self.note else "")


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**63


def new_job_ids(count: int) -> Iterator[bytes]:
    """Makes ids that are unique, and sort by time, in the layout of UUID version 7 (RFC 9562).

    The consecutive ids of one call differ by one in the random part, which keeps a batch's rows side by side in the
    journal's index (the insert of a batch costs a third less than with ids all random).

    Raises:
        ConfigError: the clock is wrong; see `check_clock`.
    """
    now_ms, fraction = divmod(time.time_ns(), 1_000_000)
    if not 0 <= now_ms < 1 << 48:
        check_clock(now_ms / 1000)
    random_part = int.from_bytes(os.urandom(8), "big") >> 3
    first = now_ms << 80 | 7 << 76 | (fraction * 4096 // 1_000_000) << 64 | 2 << 62 | random_part
    return (number.to_bytes(16, "big") for number in range(first, first + count))


def enqueued_at(job_id: bytes) -> float:
    """The time in an id, in seconds since 1970."""
    return int.from_bytes(job_id[:6], "big") / 1000


#: Ids have room for the milliseconds until then, in the year 10889.
LAST_TIME = 2**48 / 1000


def check_clock(now: float) -> None:
    """
    Raises:
        ConfigError: the clock on the wall shows a time for which there are no ids.
    """
    if not 0 <= now < LAST_TIME:
        raise ConfigError(f"the clock of this machine is wrong: it shows {now:.0f} s since 1970; set it, and try again")


def first_id_at(at: float) -> bytes:
    """The ids made before a time (seconds since 1970) sort before this one, the others behind it."""
    return min(int(max(at, 0.0) * 1000), (1 << 48) - 1).to_bytes(6, "big").ljust(16, b"\0")


def backoff_s(job_id: bytes, failures: int) -> float:
    """The seconds to wait before the retry that follows failure number `failures` (1 for the first).

    Doubles from 1 s up to 10 minutes, then is cut by a jitter of up to a half, so that jobs that failed together do
    not come back together. The jitter comes from the id: the same job always gets the same delays, which keeps
    the core free of chance.
    """
    longest: float = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_LONGEST_S)
    jitter = crc32(job_id + failures.to_bytes(4, "big")) / 2**32
    return longest * (1.0 - jitter / 2)


def retry_delay_s(row: JobRow, wish_s: float | None) -> float:
    """The seconds to wait before the retry of a job that has just failed, its failure counted.

    Args:
        wish_s: what the attempt asked for, by `Retry` or its task's own function; it goes first.
    """
    if wish_s is not None:
        return wish_s
    steps_s = row.spec.backoff_s
    if steps_s is not None:
        return steps_s[min(row.failures, len(steps_s)) - 1]
    return backoff_s(row.id, row.failures)
