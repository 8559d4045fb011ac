"""When consumers are started, and which of them replaces which. Pure: the processes are the supervisor's business.

Each number (1, 2, 3 ...) is a place in the fleet. It has one consumer, or two while that one is replaced, because of a
reload or because it has run its share of jobs: the successor is started first, and the old one retires when the
successor is ready. Either or both may die at any moment. So a successor knows the key of the consumer that it replaces,
and does nothing to it if that one is gone or already retiring.

Code is numbered: the fleet starts with 0, and after each reload consumers import the next one.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar
from zlib import crc32

from taskq.model.effects import Key

#: Pauses before the next start after a consumer died young, doubling. They become long for consumers that do not even
#: come up. If one dies in a job, that job is charged, and other jobs wait for a successor.
_PAUSE_FIRST_S = 0.1
_PAUSE_LONGEST_S = 30.0
_PAUSE_LONGEST_IN_JOBS_S = 0.2
_PAUSE_LONGEST_WITHOUT_PROCESS_S = 5.0
#: A consumer that lived this long, or ended a job, was healthy: its successor starts at once.
_HEALTHY_S = 2.0


class ProcessState(Enum):
    """The life of a consumer process."""

    STARTING = auto()  # importing the application
    READY = auto()  # running jobs
    RETIRING = auto()  # told to stop after what it is running


class Incarnation(Protocol):
    """What this module needs to know of a consumer."""

    key: Key
    number: int
    state: ProcessState
    started_at: float
    replaces: Key | None
    code: int


S = TypeVar("S", bound=Incarnation)


class Start(NamedTuple):
    """A consumer to start."""

    number: int
    replaces: Key | None  # the one that retires when this one is ready


class Succession(Generic[S]):
    """The places of a fleet, and the consumers that have them."""

    def __init__(self, consumers: int) -> None:
        self.consumers: dict[Key, S] = {}
        self.restarts = 0
        self.code = 0  # the number of the code that new consumers run
        self.reload_error: str | None = None  # why the last reload was given up
        self.is_reloading = False
        self._is_stopping = False
        self._start_at = dict.fromkeys(range(1, consumers + 1), 0.0)  # numbers without a consumer, and when to start it
        self._replace_at: dict[Key, float] = {}  # consumers that have done their share, and when to start a successor
        self._failures = dict.fromkeys(self._start_at, 0)  # early deaths in a row
        self.boot_errors: dict[int, str] = {}  # numbers of consumers that did not come up at the last attempt, and why

    # -- beginnings

    def due(self, now: float) -> Start | None:
        """Returns the next consumer to start now. It must be in `consumers` before the next call."""
        if self._is_stopping:
            return None
        number = next((number for number, at in self._start_at.items() if at <= now), None)
        if number is not None:
            del self._start_at[number]
            return Start(number, None)
        old = self._next_to_replace(now) if self._replace_at or self.is_reloading else None
        if old is None:
            return None
        self._replace_at.pop(old.key, None)
        return Start(old.number, old.key)

    def not_started(self, start: Start, now: float, *, is_failure: bool = False) -> None:
        """Notes that a consumer could not be started: it is tried again after a pause that grows with each failure."""
        pause_s = 0.0
        if is_failure:
            self._failures[start.number] += 1
            pause_s = self._pause_s(start.number, _PAUSE_LONGEST_WITHOUT_PROCESS_S)
        again_at = now + max(_PAUSE_FIRST_S, pause_s)
        if start.replaces is None:
            self._start_at[start.number] = again_at
        elif not self.is_reloading:
            self._replace_at[start.replaces] = again_at

    @property
    def _has_starts(self) -> bool:
        """Whether a consumer has to be started, now or later."""
        return bool(self._start_at or self._replace_at or self.is_reloading)

    def next_start(self) -> float | None:
        """When `due` has an answer that it does not have now, if nothing else happens (monotonic)."""
        if self._is_stopping:
            return None
        times = list(self._start_at.values())
        if self._replace_at and not self._is_replacing:
            times.extend(self._replace_at.values())
        return min(times, default=None)

    def ready(self, consumer: S) -> S | None:
        """Notes that a consumer has come up. Returns the one that it replaces, which the caller retires now."""
        consumer.state = ProcessState.READY
        self.boot_errors.pop(consumer.number, None)
        replaced = None if consumer.replaces is None else self.consumers.get(consumer.replaces)
        consumer.replaces = None
        return replaced if replaced is not None and replaced.state is ProcessState.READY else None

    @property
    def _is_replacing(self) -> bool:
        return any(consumer.replaces in self.consumers for consumer in self.consumers.values())

    def _next_to_replace(self, now: float) -> S | None:
        """Returns the next consumer to replace: one after the other, by number."""
        if self._is_replacing:
            return None
        waiting = [
            consumer
            for consumer in self.consumers.values()
            if consumer.state is ProcessState.READY and self._is_due(consumer, now)
        ]
        return min(waiting, key=lambda consumer: consumer.number, default=None)

    def _is_due(self, consumer: S, now: float) -> bool:
        at = self._replace_at.get(consumer.key)
        return (at is not None and at <= now) or (self.is_reloading and self.is_old(consumer))

    # -- reasons to replace

    def replace(self, consumer: S) -> None:
        """Has a consumer that has done its share of jobs replaced."""
        has_successor = any(other.replaces == consumer.key for other in self.consumers.values())
        if consumer.state is ProcessState.READY and not has_successor:
            self._replace_at.setdefault(consumer.key, 0.0)

    def reload(self) -> list[S]:
        """Has all consumers replaced by ones with the present code. Returns those to kill: they were starting with the
        previous code, and have no jobs."""
        self.code += 1
        self.reload_error = None
        self.is_reloading = True
        self._start_at = dict.fromkeys(self._start_at, 0.0)  # the new code may repair what made them pause
        self._failures = dict.fromkeys(self._failures, 0)
        return [consumer for consumer in self.consumers.values() if consumer.state is ProcessState.STARTING]

    def is_old(self, consumer: S) -> bool:
        """Whether a consumer runs code from before the last reload."""
        return consumer.code < self.code

    @property
    def reload_state(self) -> Literal["none", "running", "failed", "done"]:
        """How far the last reload is. One that failed is over when no consumer runs the old code any more."""
        if not self.code:
            return "none"
        if self.is_reloading:
            return "running"
        return "failed" if self.reload_error is not None and any(map(self.is_old, self.consumers.values())) else "done"

    def finish_reload(self) -> bool:
        """Whether a reload is over, since all consumers run its code. Returns True once."""
        staying = [consumer for consumer in self.consumers.values() if consumer.state is not ProcessState.RETIRING]
        is_over = (
            self.is_reloading and not self._start_at and all(self._is_new_and_ready(consumer) for consumer in staying)
        )
        self.is_reloading &= not is_over
        return is_over

    def _is_new_and_ready(self, consumer: S) -> bool:
        return consumer.state is ProcessState.READY and not self.is_old(consumer)

    def boot_failed(self, code: int, error: str) -> bool:
        """Notes that a consumer with that code did not come up. Returns whether that ends a reload; then the consumers
        that run the old code stay."""
        if not self.is_reloading or code < self.code or self._is_stopping:
            return False
        self.is_reloading = False
        self.reload_error = error
        return True

    def missing(self) -> list[tuple[int, str]]:
        """The numbers that have no consumer since the last one did not come up, and why it did not."""
        present = {one.number for one in self.consumers.values() if one.state is not ProcessState.STARTING}
        return [(number, error) for number, error in sorted(self.boot_errors.items()) if number not in present]

    # -- ends

    def stop(self) -> None:
        """Stops starting consumers."""
        self._is_stopping = True

    def ended(self, consumer: S, now: float, *, did_jobs: bool) -> None:
        """Removes a consumer that is dead, and plans its successor."""
        del self.consumers[consumer.key]
        self._replace_at.pop(consumer.key, None)
        was_healthy = did_jobs or (consumer.state is ProcessState.READY and now - consumer.started_at > _HEALTHY_S)
        self._failures[consumer.number] = 0 if was_healthy else self._failures[consumer.number] + 1
        longest_s = _PAUSE_LONGEST_S if consumer.state is ProcessState.STARTING else _PAUSE_LONGEST_IN_JOBS_S
        again_at = now + self._pause_s(consumer.number, longest_s)
        if consumer.replaces in self.consumers:
            if not self.is_reloading:
                self._replace_at[consumer.replaces] = again_at  # a reload tries again by itself, unless it was given up
        elif consumer.state is not ProcessState.RETIRING and not self._is_taken(consumer.number):
            self.restarts += 1
            self._start_at[consumer.number] = again_at

    def _is_taken(self, number: int) -> bool:
        consumers = self.consumers.values()
        return any(consumer.number == number and consumer.state is not ProcessState.RETIRING for consumer in consumers)

    def _pause_s(self, number: int, longest_s: float) -> float:
        failures = self._failures[number]
        if failures <= 1:
            return 0.0
        pause_s = min(_PAUSE_FIRST_S * 2.0 ** min(failures - 2, 10), longest_s)
        return pause_s * (0.5 + crc32(b"%d %d" % (number, failures)) / 2**33)  # jitter
