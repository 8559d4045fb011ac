"""Jobs: their states, their ids, and the row that represents a job everywhere.

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
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from zlib import crc32

from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_PROGRESS_NOTE_CHARS
from taskq.model.spec import Spec


class JobState(StrEnum):
    """The state of a job: where it is in its life."""

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


BACKOFF_FIRST_S = 1.0


BACKOFF_LONGEST_S = 600.0


class JobRow:
    """A job as the store keeps it and the broker holds it: the persistent fields only.

    Written by the broker alone. `attempts` counts the starts that ended (with an outcome or a death), `crashes` the
    deaths among them, and `snoozes` those that asked to run later; the running start is attempt number `attempts + 1`.
    The number of an attempt is never used again, whatever became of it, so a record of a start
    (`taskq.protocol.link.counters`) shows whether it was counted. `checkpoint` is the value that the last attempt kept
    for the next one (`taskq.protocol.codec`), or None. `ready_at` is when it could start, in seconds since 1970, if
    that was not when it came in: it had to wait for its time, for another job, or for a retry.
    """

    __slots__ = (
        "attempts",
        "checkpoint",
        "constraints",
        "crashes",
        "id",
        "payload",
        "ready_at",
        "seq",
        "snoozes",
        "spec",
    )

    def __init__(
        self,
        seq: int,
        id: bytes,
        spec: Spec,
        payload: bytes,
        attempts: int = 0,
        crashes: int = 0,
        constraints: Constraints | None = None,
    ) -> None:
        self.seq = seq
        self.id = id
        self.spec = spec
        self.payload = payload
        self.attempts = attempts
        self.crashes = crashes
        self.constraints = constraints
        self.snoozes = 0
        self.checkpoint: bytes | None = None
        self.ready_at: float | None = None

    @property
    def failures(self) -> int:
        """How often it raised or ran out of time since it was last retried by hand: this counts against its retries."""
        failures = self._all_failures
        return failures if self.constraints is None else failures - self.constraints.forgiven[0]

    @property
    def _all_failures(self) -> int:
        return self.attempts - self.crashes - self.snoozes

    @property
    def charged_crashes(self) -> int:
        """How often its process died since it was last retried by hand: this counts against its `max_crashes`."""
        return self.crashes if self.constraints is None else self.crashes - self.constraints.forgiven[1]

    def forgive(self) -> None:
        """Gives the job all its retries and crashes again, and no time to expire: its attempts are counted on."""
        forgiven = self._all_failures, self.crashes
        self.constraints = replace(self.constraints or NO_CONSTRAINTS, expires_at=None, forgiven=forgiven)

    def __repr__(self) -> str:
        return f"JobRow({self.seq}, {self.id.hex()}, {self.spec.task}, attempts={self.attempts})"


@dataclass(frozen=True, slots=True)
class JobError:
    """Why an attempt did not succeed, in text only: nothing here is ever imported or called.

    Attributes:
        type: the remote exception's class name, or taskq's own reason, such as "Crashed" or "TimedOut".
        message: the remote exception's text.
        traceback: the remote traceback, or "".
        exit_code: the exit code of the process, if it died by itself, or None.
        signal: the name of the signal that killed the process, such as "SIGKILL", or None.
        output: the last lines that the process wrote.
        module: the module of the remote exception's class, such as "requests.exceptions"; "" for taskq's own reasons.
        causes: what the exception came from, the nearest first: `raise ... from`, or what was being handled. Each as
            "package.module.Type: message", of at most 200 characters, and at most 10 of them.
    """

    type: str
    message: str
    traceback: str = ""
    exit_code: int | None = None
    signal: str | None = None
    output: list[str] = field(default_factory=list)
    module: str = ""
    causes: list[str] = field(default_factory=list)

    @property
    def dotted_type(self) -> str:
        """The type with its module: ``requests.exceptions.Timeout``. Built-in ones have no module."""
        return self.type if self.module in ("", "builtins") else f"{self.module}.{self.type}"

    def to_wire(self) -> list[object]:
        """Returns the fields in a fixed order, as they travel and are stored; the last two only if one is set."""
        fields: list[object] = [self.type, self.message, self.traceback, self.exit_code, self.signal, self.output]
        return [*fields, self.module, self.causes] if self.module or self.causes else fields


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
        """Returns a text such as ``40 of 100 (40 %): resizing``."""
        parts = [f"{self.done:,g}" if isinstance(self.done, float) else f"{self.done:,}"]
        if self.total is not None:
            parts.append(f" of {self.total:,g}" if isinstance(self.total, float) else f" of {self.total:,}")
        if self.total:
            parts.append(f" ({self.done / self.total:.0%})")
        return "".join(parts) + (f": {self.note}" if self.note else "")


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 2**63


def new_job_ids(count: int, now_ns: int | None = None) -> Iterator[bytes]:
    """Yields ids that are unique and sort by time, in the layout of UUID version 7 (RFC 9562).

    Consecutive ids of one call differ by one in the random part, which keeps the rows of a batch side by side in the
    journal's index (inserting a batch takes a third less time than with random ids).

    Args:
        count: how many.
        now_ns: nanoseconds since 1970; by default from the system's clock.

    Raises:
        ConfigError: the clock is wrong; see `check_clock`.
    """
    now_ms, fraction = divmod(time.time_ns() if now_ns is None else now_ns, 1_000_000)
    if not 0 <= now_ms < 1 << 48:
        check_clock(now_ms / 1000)
    random_part = int.from_bytes(os.urandom(8), "big") >> 3
    first = now_ms << 80 | 7 << 76 | (fraction * 4096 // 1_000_000) << 64 | 2 << 62 | random_part
    return (number.to_bytes(16, "big") for number in range(first, first + count))


def enqueued_at(job_id: bytes) -> float:
    """Returns the time in an id, in seconds since 1970."""
    return int.from_bytes(job_id[:6], "big") / 1000


#: Ids have room for the milliseconds until then, in the year 10889.
LAST_TIME = 2**48 / 1000


def check_clock(now: float) -> None:
    """Checks that ids can be made at a time (seconds since 1970).

    Raises:
        ConfigError: they cannot: the clock is wrong.
    """
    if not 0 <= now < LAST_TIME:
        raise ConfigError(f"the clock of this machine is wrong: it shows {now:.0f} s since 1970; set it, and try again")


def first_id_at(at: float) -> bytes:
    """Returns the id that separates those made before a time (seconds since 1970) from the others."""
    return min(int(max(at, 0.0) * 1000), (1 << 48) - 1).to_bytes(6, "big").ljust(16, b"\0")


def backoff_s(job_id: bytes, failures: int) -> float:
    """Returns the seconds to wait before the retry that follows failure number `failures` (1 for the first).

    The wait doubles from 1 s up to 10 minutes, less a jitter of up to a half, so that jobs that failed together do not
    come back together. The jitter comes from the id: the same job always gets the same delays, which keeps the core
    free of randomness.
    """
    longest: float = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30), BACKOFF_LONGEST_S)
    jitter = crc32(job_id + failures.to_bytes(4, "big")) / 2**32
    return longest * (1.0 - jitter / 2)


def retry_delay_s(row: JobRow, wish_s: float | None) -> float:
    """Returns the seconds to wait before the retry of a job that has just failed; its failure is already counted.

    Args:
        wish_s: what the attempt asked for, with `Retry` or the task's own function; this takes precedence.
    """
    if wish_s is not None:
        return wish_s
    steps_s = row.spec.backoff_s
    if steps_s is not None:
        return steps_s[min(row.failures, len(steps_s)) - 1]
    return backoff_s(row.id, row.failures)
