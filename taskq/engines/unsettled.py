"""Outcomes of jobs that a database elsewhere has not taken yet, in a file of the fleet's own directory.

It is written only while the database does not answer, and is for the broker that follows if this one is killed
meanwhile: jobs that have ended need not run again. It is not synced, as it is to outlive a process, not the machine.
Who reads it believes an outcome only of a job that is still the fleet's, and of an attempt that the database does not
know; so what has become old in it does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgpack

from taskq.model.effects import Effects
from taskq.model.job import JobRow
from taskq.model.spec import Spec
from taskq.model.stored import Rescheduled, StoredState

#: What the database has not taken in this time is kept.
_KEEP_AFTER_S: Final = 1.0


class KeptOutcome(NamedTuple):
    """What became of a job.

    Attributes:
        id: of the job.
        state: its final state; None: it goes on.
        counts: its attempts, crashes and snoozes with this one.
        spec: with which it goes on.
        due_at: when, in seconds since 1970; None: at once.
        outcome: as made by `taskq.model.attempt`, or None.
    """

    id: bytes
    state: int | None
    counts: Sequence[int]
    spec: Sequence[object]
    due_at: float | None
    outcome: bytes | None

    def is_news_of(self, row: JobRow) -> bool:
        """Whether the database, which knows a job as this row, does not know this outcome."""
        return self.counts[0] > row.attempts

    def tell(self, row: JobRow) -> None:
        """Brings a job up to date that the fleet has."""
        row.attempts, row.crashes, row.snoozes = self.counts
        row.spec = Spec.from_wire(list(self.spec))

    def add_to(self, effects: Effects, row: JobRow) -> None:
        """Adds it to what is to be settled."""
        if self.state is None:
            effects.rescheduled.append(Rescheduled(row, self.due_at, self.outcome, row.attempts))
        else:
            effects.ended.append((row, StoredState(self.state), self.outcome or b""))


class UnsettledFile:
    """Used by the broker's loop alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._written: set[tuple[bytes, int]] = set()  # jobs, and numbers of attempts
        self._seen = 0  # how many outcomes were looked at last
        self.well_at = -inf  # when the database had taken what there was (monotonic)
        self.has_some = path.exists()

    def read(self) -> dict[bytes, KeptOutcome]:
        """The outcomes that an earlier broker has left, by id of the job: of each job the last one. What was written
        half is left out. Raises OSError."""
        kept: dict[bytes, KeptOutcome] = {}
        if self.has_some:
            with self._path.open("rb") as file:
                for fields in msgpack.Unpacker(file):
                    outcome = KeptOutcome(*fields)
                    kept[outcome.id] = outcome
        return kept

    @property
    def keep_at(self) -> float:
        """When to keep what the database has not taken (monotonic)."""
        return self.well_at + _KEEP_AFTER_S

    def keep(self, log: Any, *unsettled: Effects) -> None:
        """Writes what is not there yet. A job with items or followers that would have to come with its end is left out,
        and runs again.

        Args:
            log: is told if the file cannot be written.
        """
        try:
            self._keep(unsettled)
        except OSError as error:
            ended = sum(len(effects.ended) for effects in unsettled)
            log.error("database.away", error=f"outcomes cannot be kept: {error}", unsettled=ended)

    def _keep(self, unsettled: Sequence[Effects]) -> None:
        seen = sum(len(effects.ended) + len(effects.rescheduled) for effects in unsettled)
        if seen == self._seen:
            return
        self._seen = seen
        together = Effects()
        for effects in unsettled:
            together.add(effects)
        found = list(_outcomes(together))
        new = [outcome for outcome in found if (outcome.id, outcome.counts[0]) not in self._written]
        if not new:
            return
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
            self.has_some = True
        self._file.write(b"".join([msgpack.packb(outcome) for outcome in new]))
        self._written.update((outcome.id, outcome.counts[0]) for outcome in new)

    def clear(self, now: float) -> None:
        """The database has taken them. Raises OSError."""
        self.well_at = now
        if self._file is not None:
            self._file.close()
            self._file = None
        self._written.clear()
        self._seen = 0
        if self.has_some:
            self._path.unlink(missing_ok=True)
            self.has_some = False


def _outcomes(effects: Effects) -> Iterator[KeptOutcome]:
    left_out = {row.seq for row, _ in effects.children} | {row.seq for row, _, _ in effects.items}
    ended = {row.seq for row, _, _ in effects.ended}  # some of these were to go on before
    for change in effects.rescheduled:
        if change.row.seq not in left_out and change.row.seq not in ended:
            yield _outcome(change.row, None, change.due_at, change.outcome)
    for row, state, outcome in effects.ended:
        if row.seq not in left_out:
            yield _outcome(row, int(state), None, outcome)


def _outcome(row: JobRow, state: int | None, due_at: float | None, outcome: bytes | None) -> KeptOutcome:
    counts = [row.attempts, row.crashes, row.snoozes]
    return KeptOutcome(row.id, state, counts, row.spec.to_wire(), due_at, outcome)
