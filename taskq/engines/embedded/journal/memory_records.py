"""What a journal in memory holds: its jobs, where they stand, and what was committed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from taskq.model.constraints import Constraints
from taskq.model.job import JobRow
from taskq.model.partition import Partition, Starts, partition_of
from taskq.model.schedule import ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob, StoredState

#: What a job comes after, each with whether it goes on if that one did not succeed, and whether it still waits for it.
After = tuple[tuple[bytes, bool, bool], ...]


@dataclass(slots=True)
class Record:
    """A job, whole. It never changes: a change makes a new one, so that commits can share it."""

    seq: int
    id: bytes
    spec: Spec
    payload: bytes
    attempts: int = 0
    crashes: int = 0
    requeued: int = 0  # how often it was retried by hand
    history: tuple[tuple[int, bytes], ...] = ()  # earlier attempts: number and outcome
    snoozes: int = 0
    checkpoint: bytes | None = None
    kept: StoredState = StoredState.QUEUED
    due_at: float | None = None  # of a queued job: from when it could have started, if not from the beginning
    outcome: bytes | None = None
    finished_at: float | None = None
    constraints: Constraints | None = None
    expires_at: float | None = None
    unique_key: str | None = None
    items: tuple[bytes, ...] = ()
    after: After = ()
    revived: int = 0  # how often it was cancelled with a job before it, and revived

    @classmethod
    def submitted(cls, seq: int, job_id: bytes, spec: Spec, payload: bytes, constraints: Constraints) -> Record:
        """Returns a job that has just come in: it waits for others, for its time, or for its turn."""
        record = cls(seq, job_id, spec, payload, due_at=constraints.due_at, constraints=constraints.kept)
        if constraints.after:
            record.kept = StoredState.WAITING
            record.after = tuple((parent, goes_on, True) for parent, goes_on in dict(constraints.after).items())
        elif constraints.due_at is not None:
            record.kept = StoredState.SCHEDULED
        record.expires_at = constraints.expires_at
        record.unique_key = None if constraints.unique is None else constraints.unique.key
        return record

    def row(self) -> JobRow:
        """Returns the job as the broker holds it."""
        row = JobRow(self.seq, self.id, self.spec, self.payload, self.attempts, self.crashes, self.constraints)
        row.snoozes, row.checkpoint, row.ready_at = self.snoozes, self.checkpoint, self.due_at
        return row

    def stored(self) -> StoredJob:
        """Returns the job as it is read back."""
        due_at = self.due_at if self.kept in (StoredState.SCHEDULED, StoredState.WAITING) else None
        return StoredJob(self.row(), self.kept, due_at, self.outcome, self.finished_at)


class Indexes:
    """Where jobs stand, so that nothing looks at all of them: by partition, time, key, and the jobs before them."""

    def __init__(self) -> None:
        self.queued: dict[Partition, list[int]] = {}  # seqs, ascending
        self.due: list[tuple[float, int]] = []  # of scheduled jobs: when, and seq; ascending
        self.expiring: list[tuple[float, int]] = []  # of jobs that expire: when, and seq; ascending
        self.by_key: dict[str, int] = {}  # seqs by unique key
        self._children: dict[bytes, set[bytes]] = {}  # by the job before them
        self._waiting: dict[bytes, set[bytes]] = {}  # of these, those that wait for it

    def changed(self, old: Record | None, new: Record | None) -> None:
        """A job came in (`old` is None), was removed (`new` is None), or changed."""
        for record, change in ((old, _remove), (new, insort)):
            if record is None:
                continue
            if record.kept == StoredState.QUEUED:
                self._change_queued(record, change)
            elif record.kept == StoredState.SCHEDULED and record.due_at is not None:
                change(self.due, (record.due_at, record.seq))
            if record.expires_at is not None:
                change(self.expiring, (record.expires_at, record.seq))
        if old is not None and old.unique_key is not None and self.by_key.get(old.unique_key) == old.seq:
            del self.by_key[old.unique_key]
        if new is not None and new.unique_key is not None:
            self.by_key[new.unique_key] = new.seq
        before, now = () if old is None else old.after, () if new is None else new.after
        if before is not now:
            child = (old or new).id  # type: ignore[union-attr]  # one of them is there
            for parent, _, _ in before:
                _discard(self._children, parent, child)
                _discard(self._waiting, parent, child)
            for parent, _, is_open in now:
                self._children.setdefault(parent, set()).add(child)
                if is_open:
                    self._waiting.setdefault(parent, set()).add(child)

    def _change_queued(self, record: Record, change: Any) -> None:
        partition = partition_of(record.spec, record.constraints)
        seqs = self.queued.setdefault(partition, [])
        change(seqs, record.seq)
        if not seqs:
            del self.queued[partition]

    def children(self, parent: bytes) -> Iterable[bytes]:
        """Returns the jobs that come after a job."""
        return self._children.get(parent, ())

    def waiting(self, parent: bytes) -> Iterable[bytes]:
        """Returns the jobs that wait for the end of a job."""
        return self._waiting.get(parent, ())

    @property
    def awaited(self) -> list[bytes]:
        """The jobs whose end others wait for."""
        return list(self._waiting)


def _remove(values: list[Any], value: Any) -> None:
    del values[bisect_left(values, value)]


def _discard(edges: dict[bytes, set[bytes]], parent: bytes, child: bytes) -> None:
    children = edges.get(parent)
    if children is not None:
        children.discard(child)
        if not children:
            del edges[parent]


@dataclass(slots=True)
class Changes:
    """What changed since the last commit. None stands for a job, a schedule or counts that are gone, and for no change
    in the rest."""

    jobs: dict[bytes, Record | None] = field(default_factory=dict)
    schedules: dict[str, ScheduleRow | None] = field(default_factory=dict)
    paused: frozenset[str] | None = None
    rates: dict[str, tuple[Starts, float]] | None = None
    counts: dict[tuple[int, str, str], bytes | None] = field(default_factory=dict)
    machines: list[tuple[float, str]] | None = None
    totals: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        is_changed = self.paused is not None or self.rates is not None or self.machines is not None
        return is_changed or bool(self.jobs or self.schedules or self.counts)


@dataclass(slots=True)
class Contents:
    """All that was committed."""

    jobs: dict[bytes, Record] = field(default_factory=dict)
    schedules: dict[str, ScheduleRow] = field(default_factory=dict)
    paused: frozenset[str] = frozenset()
    rates: dict[str, tuple[Starts, float]] = field(default_factory=dict)
    counts: dict[tuple[int, str, str], bytes] = field(default_factory=dict)
    machines: list[tuple[float, str]] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Contents:
        """Returns contents that can be changed apart from these."""
        return Contents(
            self.jobs.copy(),
            self.schedules.copy(),
            self.paused,
            self.rates.copy(),
            self.counts.copy(),
            self.machines,
            self.totals,
        )

    def apply(self, changes: Changes) -> None:
        """Takes a commit over."""
        _apply(self.jobs, changes.jobs)
        _apply(self.schedules, changes.schedules)
        _apply(self.counts, changes.counts)
        self.machines = self.machines if changes.machines is None else changes.machines
        self.paused = self.paused if changes.paused is None else changes.paused
        self.rates = self.rates if changes.rates is None else changes.rates.copy()
        self.totals = changes.totals


def _apply(contents: dict[Any, Any], changes: dict[Any, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            contents.pop(key, None)
        else:
            contents[key] = value


class Disk:
    """What outlives a journal in memory that is closed, or whose owner is gone. Each commit is synced."""

    def __init__(self) -> None:
        self._synced = Contents()

    def write(self, changes: Changes) -> None:
        """Takes a commit."""
        self._synced.apply(changes)

    def read(self) -> Contents:
        """Returns what was committed, as a copy."""
        return self._synced.copy()
