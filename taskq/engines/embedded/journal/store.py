"""The journal of the embedded engine: the operations that each kind of journal has.

A journal has one user, the broker of its directory (or the fleet of `taskq.testing`). It does not know which jobs are
leased: the broker does, and it forgets that with its end. The two kinds are `taskq.engines.embedded.journal.sqlite`, a
file, and `taskq.engines.embedded.journal.memory`, which ends with its process.

All changes between two calls of `commit` become durable together, in it, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import apsw
import msgpack

from taskq.model.constraints import Constraints
from taskq.model.effects import Event
from taskq.model.errors import ProtocolError
from taskq.model.info.counts import CountsRow
from taskq.model.info.search import ALL_JOBS, JobSearch
from taskq.model.job import JobRow, first_id_at
from taskq.model.partition import Partition, Starts
from taskq.model.schedule import ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import Edge, Ended, Rescheduled, StoredJob, StoredState

#: `find` leaves out results of this size and above.
MAX_FOUND_RESULT_BYTES = 4_096


class Wanted(NamedTuple):
    """Which jobs are meant; None for all.

    Attributes:
        kept: their state.
        task, queue: these names.
        before: ended before this time, or enqueued if they wait, in seconds since 1970.
        search: what else is wanted of them.
    """

    kept: StoredState | None = None
    task: str | None = None
    queue: str | None = None
    before: float | None = None
    search: JobSearch = ALL_JOBS

    def fits(self, job: StoredJob) -> bool:
        """Whether a job is meant."""
        row, search = job.row, self.search
        if self.kept not in (None, job.kept) or self.task not in (None, row.spec.task):
            return False
        if self.queue not in (None, row.spec.queue) or row.attempts < search.attempts:
            return False
        if search.since is not None and row.id < first_id_at(search.since):
            return False
        if search.until is not None and row.id >= first_id_at(search.until):
            return False
        if self.before is not None:
            is_ended = job.finished_at is not None
            if not (job.finished_at or 0.0) < self.before if is_ended else row.id >= first_id_at(self.before):
                return False
        constraints = None if row.constraints is None else msgpack.packb(row.constraints.to_wire())
        return not search.text or self.tells(job.kept, job.outcome, constraints)

    def tells(self, kept: int, outcome: bytes | None, constraints: bytes | None) -> bool:
        """Whether a job has the text, in its packed outcome or in its packed constraints."""
        part = self.search.text.encode()
        is_error = kept != StoredState.SUCCEEDED and outcome is not None
        return (is_error and part in (outcome or b"")) or (constraints is not None and part in constraints)


def stored_state(state: str) -> StoredState:
    """The stored state that clients know by a name.

    Raises:
        ProtocolError: there is none: such jobs are running, or the name is not one of a state.
    """
    found = next((kept for kept in StoredState if kept.state == state), None)
    if found is None:
        raise ProtocolError(f"{state!r:.40} is not a state in which jobs are kept")
    return found


class Totals:
    """What ever happened in a queue's directory. Durable with the jobs they count, so they never go backwards."""

    __slots__ = ("cancelled", "crashed", "enqueued", "expired", "failed", "retried", "succeeded")

    def __init__(
        self,
        enqueued: int = 0,
        succeeded: int = 0,
        failed: int = 0,
        retried: int = 0,
        crashed: int = 0,
        cancelled: int = 0,
        expired: int = 0,
    ) -> None:
        self.enqueued = enqueued
        self.succeeded = succeeded
        self.failed = failed
        self.retried = retried
        self.crashed = crashed
        self.cancelled = cancelled
        self.expired = expired

    def as_dict(self) -> dict[str, int]:
        """The totals by name, in a fixed order."""
        return {name: getattr(self, name) for name in TOTAL_NAMES}

    def all(self) -> int:
        """The number of all that happened."""
        ended = self.succeeded + self.failed + self.cancelled + self.expired
        return self.enqueued + ended + self.retried + self.crashed


#: A job, and the sequence number of the last one after it that was looked at.
Place = tuple[bytes, int]


class Revival(NamedTuple):
    """What came of the revival of jobs.

    Attributes:
        ends: among all jobs that the revived ones come after, those that have ended, whose ends must be handed over
            again.
        left: where to go on; nothing, if all were revived.
    """

    ends: dict[bytes, StoredState]
    left: list[Place]


TOTAL_NAMES = ("enqueued", "succeeded", "failed", "retried", "crashed", "cancelled", "expired")


class Store(Protocol):
    """A journal's operations. All raise JournalError when it cannot be trusted, StoreFull when its disk is full."""

    totals: Totals
    #: Whether nothing new is to be submitted. Set by `make_room`, cleared by `keep_room`.
    is_full: bool
    #: What the opening found, for the log: events and their fields.
    findings: list[Event]

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for the end of another. If none does, nothing about such jobs needs to be asked."""

    @property
    def last_seq(self) -> int:
        """The highest sequence number that was given to a job."""

    def submit(
        self,
        spec: Spec,
        ids: Sequence[bytes],
        payloads: Iterable[bytes],
        constraints: Sequence[Constraints | None] | None = None,
    ) -> list[JobRow]:
        """Takes in jobs: they wait if their constraints say what they come after, are scheduled if these say when they
        are due, and are queued otherwise. An id that is known already is the same job, sent again: it is left out.

        Args:
            constraints: of each job; None: of no job.

        Returns:
            The rows that are new, in order.

        Raises:
            EnqueueError: a known id came with another payload.
        """

    def waiting(self) -> list[tuple[Partition, int, int]]:
        """At the start: the partitions that have queued jobs, how many, and the lowest sequence number."""

    def retried_in_order(self) -> list[JobRow]:
        """At the start: queued and scheduled jobs with an order key that were started before."""

    def lease(self, partition: Partition, after: int, limit: int, max_bytes: int) -> tuple[list[JobRow], bool]:
        """Reads the oldest queued jobs of a partition that the broker does not hold yet.

        Args:
            after: leave out jobs up to this sequence number: the broker holds them.
            limit: the most that are returned.
            max_bytes: stop when payloads of this size are together (at least one job is returned).

        Returns:
            The jobs, and whether there are no more.
        """

    def lease_due(self, now: float, limit: int) -> list[JobRow]:
        """Makes scheduled jobs queued whose time has come (seconds since 1970), oldest first, and leases them."""

    def next_due(self) -> float | None:
        """When the first scheduled job is due, in seconds since 1970."""

    def next_expiry(self) -> float | None:
        """When the first scheduled or queued job expires, in seconds since 1970."""

    def expired(self, now: float, limit: int) -> list[StoredJob]:
        """Reads scheduled and queued jobs whose time to start is over (seconds since 1970), also those that run."""

    def with_keys(self, keys: Sequence[str]) -> dict[str, StoredJob]:
        """Returns the jobs that have these unique keys."""

    def release_keys(self, rows: Iterable[JobRow]) -> None:
        """Others may have the unique keys of these jobs now."""

    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        """Records what became of jobs that the broker holds; those that have succeeded were queued. `now` is in seconds
        since 1970."""

    # -- jobs that come after others

    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        """The states of jobs; of those that are known."""

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        """Notes that these jobs have ended. Returns at most `limit` of the edges to jobs that waited for them, each
        edge once."""

    def would_release(self, parents: Sequence[bytes]) -> bool:
        """Whether the end of one of these jobs is all that some job still waits for."""

    def read_waiting(self, seqs: Sequence[int]) -> list[StoredJob]:
        """Reads the jobs among these that wait for others."""

    def release_waiting(self, jobs: Sequence[StoredJob], now: float) -> None:
        """Makes jobs that waited for others scheduled if they are due later than `now`, and queued otherwise. The
        broker holds those that are queued."""

    def cancel_dependents(self, ended: Sequence[Ended], now: float) -> None:
        """Ends jobs that wait for others as cancelled. They keep what they need to be revived."""

    def detach(self, row: JobRow) -> None:
        """Cuts a cancelled job off from the jobs that it came after: it is not revived with them."""

    def revive_dependents(self, places: Sequence[Place], limit: int) -> Revival:
        """Makes jobs wait again that `cancel_dependents` ended because of jobs which are run again now, and the jobs
        after them in turn. A job stays cancelled if another job that it needs is no longer there, or did not succeed.

        Args:
            places: of the jobs that are run again.
            limit: how many jobs are revived at the most.
        """

    def unrevived(self) -> list[Place]:
        """At the start: the jobs because of which others are still cancelled that should wait again, since the broker
        died before it had revived all of them."""

    def unfinished_releases(self) -> list[tuple[bytes, StoredState]]:
        """At the start: the ended jobs that others still wait for, since the broker died before it handed their ends
        on. A job that was removed counts as cancelled."""

    def parents(self, seq: int, limit: int) -> list[bytes]:
        """The jobs that a job comes after. Known until it has succeeded, or was cancelled."""

    def followers(self, job_id: bytes, limit: int) -> list[bytes]:
        """The jobs that come after a job, and have not ended."""

    def add_items(self, seq: int, first: int, items: Sequence[bytes]) -> None:
        """Records what a job has yielded, from position `first`. What stands at a position already stays."""

    def items(self, seq: int, start: int, limit: int, max_bytes: int) -> list[bytes]:
        """What a job has yielded, from position `start`: at most `limit`, of this size together (at least one)."""

    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        """Records the checkpoints of jobs that are running."""

    def commit(self) -> None:
        """Makes all changes since the last commit durable."""

    def rollback(self) -> None:
        """Drops all changes since the last commit."""

    @property
    def connection(self) -> apsw.Connection | None:
        """The connection to its file, for backups; None if it is only in memory."""

    def size(self) -> int:
        """How many bytes the journal takes, with its log."""

    def fold_log(self) -> bool:
        """Folds what was committed into the journal's own file, if it is time for that: about a turn's work, which
        commits need not wait for. Called between two transactions.

        Returns:
            Whether there was something to do.
        """

    def make_room(self) -> None:
        """After StoreFull: frees what was set aside, so that outcomes can still be recorded, and sets `is_full`."""

    def keep_room(self) -> None:
        """Sets space aside again, if there is enough. Called now and then."""

    def read(self, job_id: bytes) -> StoredJob | None:
        """Reads one job."""

    def attempts(self, row: JobRow) -> list[tuple[int, bytes]]:
        """The attempts of a job that it was run again after: their numbers and outcomes, in order. Of many the first
        and the last ones, with long texts cut."""

    def find(
        self, wanted: Wanted, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredJob], int | None]:
        """Reads jobs between two sequence numbers, these excluded, without payloads and large results.

        Looks at a bounded number of jobs, and at fewer if that takes longer than some milliseconds.

        Returns:
            The jobs that are wanted, in order; and the sequence number where to go on, as `after` or as `before`, or
            None if all were looked at.
        """

    def find_due(self, wanted: Wanted, after: int | None, limit: int) -> tuple[list[StoredJob], int | None]:
        """Reads scheduled jobs in the order in which they come due. As `find`.

        Args:
            after: the sequence number of the job behind which to go on; None: begin.
        """

    def requeue(self, jobs: Sequence[StoredJob], now: float) -> list[JobRow]:
        """Makes failed jobs queued again, at the end of their queues, with their failures and crashes forgiven. They do
        not expire any more, and do not get their unique keys back. `now` is in seconds since 1970.

        Returns:
            Their rows, without payloads, with their new sequence numbers, which ascend.
        """

    def remove(self, jobs: Sequence[StoredJob]) -> None:
        """Removes jobs that nobody holds. Those that had not ended are counted as cancelled."""

    def pause(self, queues: Iterable[str], is_paused: bool) -> None:
        """Notes queues as paused, or as paused no more."""

    def keep_rates(self, rates: Sequence[tuple[str, Starts, float]]) -> None:
        """Notes the starts that count for rates: name, starts, and when they count no more (seconds since 1970)."""

    def rates(self, now: float) -> dict[str, Starts]:
        """At the start: the starts that still count for rates, by name. Forgets the others."""

    def paused(self) -> frozenset[str]:
        """The queues that are paused."""

    def schedules(self) -> list[ScheduleRow]:
        """All schedules, by name."""

    def put_schedule(self, row: ScheduleRow) -> None:
        """Records a schedule, in place of the one that has its name."""

    def remove_schedule(self, name: str) -> None:
        """Forgets a schedule, if there is one of that name."""

    def keep_counts(self, rows: Sequence[CountsRow]) -> None:
        """Records counts of tasks and queues, in place of those of the same minute; None removes them."""

    def kept_counts(self) -> list[CountsRow]:
        """At the start: the counts that were recorded."""

    def note_machine(self, name: str, now: float) -> None:
        """At the start: from now on (seconds since 1970) jobs run on the machine of this name. Only a change is
        recorded."""

    def machines(self) -> list[tuple[float, str]]:
        """The machines on which the queue's jobs ran: since when (seconds since 1970), and the name; in order. Jobs of
        before the first ran on one whose name nobody noted."""

    def counts(self, kept: StoredState) -> dict[str, int]:
        """Counts the jobs of each queue in one state. Fast for scheduled and waiting ones; for others it looks at every
        job."""

    def prune(self, before: float, keep: int, limit: int, with_files: list[tuple[bytes, bytes]] | None = None) -> int:
        """Removes ended jobs, but failed ones and those that others come after, that ended before a time or are more
        than `keep`; at most `limit` of them, so that it takes a few milliseconds. Returns how many were removed.

        Args:
            with_files: takes the id and the outcome of each removed job whose result may be in a file.
        """

    def tidy(self, now: float, limit: int) -> int:
        """Forgets keys that no queued job has and rates that count no more (seconds since 1970). It looks at so many
        of each at the most. Returns how many were forgotten."""

    def close(self) -> None:
        """Closes cleanly."""
