"""Jobs as the journal stores them: their stored state, and what is written when an attempt ends."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from taskq.model.job import JobRow, JobState


class StoredState(IntEnum):
    """A job's state as the store keeps it. `running` is not among them: leases are the broker's, in memory."""

    QUEUED = 0
    SCHEDULED = 1
    WAITING = 2
    SUCCEEDED = 10
    FAILED = 11
    CANCELLED = 12
    EXPIRED = 13

    @property
    def state(self) -> JobState:
        """The same as clients know it."""
        return JobState[self.name]


FIRST_FINAL = StoredState.SUCCEEDED


class StoredJob(NamedTuple):
    """A job as read back.

    Attributes:
        row: the job. Once it succeeded or was cancelled, its payload is empty and its checkpoint is gone.
        kept: its state.
        due_at: when a scheduled job becomes queued, in seconds since 1970.
        outcome: of the last ended attempt, as made by `taskq.model.attempt`, or None.
        finished_at: seconds since 1970, or None.
    """

    row: JobRow
    kept: StoredState
    due_at: float | None
    outcome: bytes | None
    finished_at: float | None


#: A job reached a final state: its row, the state, the outcome. A plain tuple, for there is one for each job.
Ended = tuple[JobRow, StoredState, bytes]


class Rescheduled(NamedTuple):
    """A job goes on: at `due_at` (seconds since 1970), or at once if that is None. Its row has the new counts, and
    perhaps a new Spec, with another queue. The job may have ended another attempt by the time that this is stored: then
    the row has the counts of that one.

    Attributes:
        attempt: the number of the attempt that has ended, with `outcome`.
    """

    row: JobRow
    due_at: float | None
    outcome: bytes | None
    attempt: int


class Edge(NamedTuple):
    """A job that comes after another.

    Attributes:
        parent: the id of the one before.
        child: the `seq` of the one after.
        goes_on: whether it runs even if the one before does not succeed.
        is_last: whether none of the others that it comes after is left.
    """

    parent: bytes
    child: int
    goes_on: bool
    is_last: bool
