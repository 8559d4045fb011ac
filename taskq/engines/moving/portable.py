"""A queue on its way from one engine to another: plain rows, and how many there are of each kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

from taskq.model.partition import Partition
from taskq.model.spec import Spec
from taskq.model.stored import StoredState

#: Rows that are read, and written, together.
ROWS_AT_ONCE = 2_000


class PortableJob(NamedTuple):
    """A job. Times are seconds since 1970.

    Attributes:
        state: its state.
        due_at: when it is due, if it is scheduled or will be.
        ready_at: from when it could have started, if it is queued.
        pending: for how many others it waits.
        constraints: packed, as both engines store them.
    """

    id: bytes
    spec: Spec
    partition: Partition
    state: StoredState
    attempts: int
    crashes: int
    snoozes: int
    pending: int
    due_at: float | None
    ready_at: float | None
    expires_at: float | None
    finished_at: float | None
    constraints: bytes | None
    payload: bytes | None
    checkpoint: bytes | None
    outcome: bytes | None
    unique_key: str | None


class PortableEdge(NamedTuple):
    """A job that comes after another; see `taskq.model.stored.Edge`."""

    parent: bytes
    child: bytes
    goes_on: bool
    is_open: bool


class PortableAttempt(NamedTuple):
    """An attempt that others have followed, and the machine on which it ran."""

    id: bytes
    number: int
    outcome: bytes
    host: str | None


class PortableSchedule(NamedTuple):
    """A schedule; see `taskq.model.schedule.ScheduleRow`. Its fields are packed, as both engines store them."""

    name: str
    fields: bytes
    next_at: float
    app: str | None
    is_paused: bool
    last_at: float | None
    last_id: bytes | None


@dataclass(frozen=True, slots=True)
class Tally:
    """How many there are of each kind, by which a queue and its copy are compared. Each engine counts its own rows."""

    queued: int
    scheduled: int
    retries: int  #: those of the scheduled jobs that have been started before
    waiting: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    results: int  #: succeeded jobs that have an outcome
    attempts: int
    items: int
    links: int
    unique_keys: int
    schedules: int
    paused_queues: int

    def by_name(self) -> dict[str, int]:
        """The numbers with words for people."""
        return {name.replace("_", " "): number for name, number in asdict(self).items()}

    @property
    def jobs(self) -> int:
        """How many jobs there are."""
        ended = self.succeeded + self.failed + self.cancelled + self.expired
        return self.queued + self.scheduled + self.waiting + ended


class Moved(NamedTuple):
    """A move that is complete: what was moved, and whether that was done before."""

    tally: Tally
    was_before: bool
