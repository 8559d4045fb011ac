"""How many jobs the journal has, and what that tells of the totals.

A total is the number of such jobs in the journal, and of those that the journal does not show any more: they were
removed, or retried by hand. Only the latter number is stored, so that a commit of jobs that come in or end writes
nothing but their rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.store import TOTAL_NAMES, Totals
from taskq.model.stored import FIRST_FINAL, StoredState

_FINAL = [state for state in StoredState if state >= FIRST_FINAL]
_COUNT = f"SELECT count(*), {', '.join(f'coalesce(sum(state = {state:d}), 0)' for state in _FINAL)} FROM jobs"


class RowCounts:
    """The number of jobs in the journal, and of those in each final state. Changed with the rows."""

    def __init__(self, db: apsw.Connection) -> None:
        """Counts the rows."""
        counted: list[Any] = db.execute(_COUNT).fetchall()
        self.jobs: int
        self.jobs, *ended = counted[0]
        self.ended: Counter[StoredState] = Counter(dict(zip(_FINAL, ended, strict=True)))

    def removed(self, states: Sequence[int]) -> None:
        """Jobs in these states, given by their numbers, are gone."""
        self.jobs -= len(states)
        gone = Counter(states)
        for state in _FINAL:
            self.ended[state] -= gone[state]

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
