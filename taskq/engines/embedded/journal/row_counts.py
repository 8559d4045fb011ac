"""How many jobs the journal has, and what that tells of the totals.

A total is the number of such jobs in the journal, and of those that the journal does not show any more: they were
removed, or retried by hand. Only the latter number is stored, so that a commit of jobs that come in or end writes
nothing but their rows.

To count a million rows takes 0.2 s, and the jobs that wait 0.1 s. So a journal that is closed keeps its counts, and
whoever opens it next need not count; while it is open, they are not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import msgpack

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.store import TOTAL_NAMES, Totals
from taskq.model.stored import FIRST_FINAL, StoredState

_FINAL = [state for state in StoredState if state >= FIRST_FINAL]
_COUNT = f"SELECT count(*), {', '.join(f'coalesce(sum(state = {state:d}), 0)' for state in _FINAL)} FROM jobs"


#: A partition's number, the jobs that are queued in it, and the sequence number of the first of them.
WaitingIn = tuple[int, int, int]
_NAME = "counts_at_end"
#: The counts of more partitions are not kept.
_MOST_PARTITIONS = 1_000


class LaterCounts:
    """How many jobs of each queue are scheduled, or wait for others. Changed with the rows: to count 100,000 of them
    takes 10 ms, in which the broker would answer nobody."""

    def __init__(self, db: apsw.Connection) -> None:
        """Counts the rows."""
        counted = {StoredState.SCHEDULED: statements.COUNT_SCHEDULED, StoredState.WAITING: statements.COUNT_WAITING}
        self._queues: dict[StoredState, Counter[str]] = {state: Counter() for state in counted}
        for state, sql in counted.items():
            for queue, jobs in db.execute(sql):
                self.add(state, queue, jobs)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(self._queues.values())

    def add(self, state: int, queue: str, jobs: int = 1) -> None:
        """So many more jobs of a queue are in a state, or fewer if that is negative. Other states are left out."""
        counts = self._queues.get(StoredState(state))
        if counts is not None:
            counts[queue] += jobs
            if not counts[queue]:
                del counts[queue]

    def of(self, state: StoredState) -> dict[str, int]:
        """How many there are, by queue; queues without any are left out."""
        return dict(self._queues[state])


class RowCounts:
    """The number of jobs in the journal, and of those in each final state. Changed with the rows."""

    def __init__(self, jobs: int, ended: Iterable[int]) -> None:
        """
        Args:
            ended: the jobs in each final state.
        """
        self.jobs = jobs
        self.ended: Counter[StoredState] = Counter(dict(zip(_FINAL, ended, strict=True)))

    @classmethod
    def counted(cls, db: apsw.Connection) -> RowCounts:
        """Counts the rows."""
        counted: list[Any] = db.execute(_COUNT).fetchall()
        jobs, *ended = counted[0]
        return cls(jobs, ended)

    def keep(self, db: apsw.Connection, waiting: Sequence[WaitingIn]) -> None:
        """Writes the counts, and those of the jobs that wait, for whoever opens the journal next."""
        kept = self.jobs, [self.ended[state] for state in _FINAL], waiting
        if len(waiting) <= _MOST_PARTITIONS:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_NAME, msgpack.packb(kept)))

    def removed(self, states: Sequence[int]) -> None:
        """Jobs in these states, given by their numbers, are gone."""
        self.jobs -= len(states)
        gone = Counter(states)
        for state in _FINAL:
            self.ended[state] -= gone[state]

    @property
    def living(self) -> int:
        """The number of jobs that have not ended."""
        return self.jobs - sum(self.ended.values())

    @property
    def prunable(self) -> int:
        """The number of ended jobs that go in time."""
        return sum(self.ended[state] for state in statements.PRUNABLE)

    def unseen_of(self, totals: Totals) -> tuple[int, ...]:
        """Returns the part of the totals that the rows do not show, in the order of TOTAL_NAMES."""
        ended = self.ended
        return (
            totals.enqueued - self.jobs,
            totals.succeeded - ended[StoredState.SUCCEEDED],
            totals.failed - ended[StoredState.FAILED],
            totals.retried,
            totals.crashed,
            totals.cancelled - ended[StoredState.CANCELLED],
            totals.expired - ended[StoredState.EXPIRED],
        )

    def totals(self, unseen: Iterable[int]) -> Totals:
        """The opposite of `unseen_of`."""
        shown = self.unseen_of(Totals())
        return Totals(**{name: part - own for name, part, own in zip(TOTAL_NAMES, unseen, shown, strict=True)})


def kept_counts(db: apsw.Connection) -> tuple[RowCounts, list[WaitingIn]] | None:
    """The counts that were kept when the journal was closed; None if it was not, or if it is open."""
    kept: list[Any] = db.execute("SELECT value FROM meta WHERE name = ?", (_NAME,)).fetchall()
    if not kept:
        return None
    jobs, ended, waiting = msgpack.unpackb(kept[0][0])
    return RowCounts(jobs, ended), [tuple(each) for each in waiting]


def forget_counts(db: apsw.Connection) -> None:
    """From now on the counts may be wrong: the journal is open."""
    db.execute("DELETE FROM meta WHERE name = ?", (_NAME,))
