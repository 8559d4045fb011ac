"""Disks that lose what was not synced: the states that a power cut may leave behind a journal."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import filterfalse
from typing import Any

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.info.counts import CountsRow
from taskq.model.stored import StoredJob

VARIANTS = ("none", "part", "part", "torn", "torn", "all")


SECTOR = 512


DIRECTORY = "."


Entry = tuple[Any, ...]


Files = dict[str, bytearray]


@dataclass(frozen=True)
class Snapshot:
    """All that a store held after a commit."""

    jobs: dict[bytes, tuple[Any, ...]]
    totals: dict[str, int]
    counts: list[CountsRow] = field(default_factory=list)
    paused: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: SQLiteStore, ids: Iterable[bytes]) -> Snapshot:
        """Reads it."""
        stored = {job_id: store.read(job_id) for job_id in ids}
        jobs = {job_id: _fields(found) for job_id, found in stored.items() if found is not None}
        return cls(jobs, store.totals.as_dict(), sorted(store.kept_counts()), store.paused())


def _fields(stored: StoredJob) -> tuple[Any, ...]:
    row = stored.row
    return row.seq, row.spec, row.payload, row.attempts, row.crashes, *stored[1:]


@dataclass
class Life:
    """What was recorded, and what the store held after each commit."""

    log: list[Entry] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    ids: list[bytes] = field(default_factory=list)
    pruned: int = 0

    def acknowledge(self, store: SQLiteStore) -> None:
        """A commit has returned: from here on its work is promised."""
        self.snapshots.append(Snapshot.of(store, self.ids))
        self.log.append(("acknowledged", len(self.snapshots) - 1))


class Disk:
    """What a disk holds for sure, and what it may hold. Takes the entries of a log one by one."""

    def __init__(self) -> None:
        self.files: Files = {}
        self.pending: list[Entry] = []

    def take(self, entry: Entry) -> None:
        """The next thing that was done to it."""
        kind, name, *rest = entry
        if kind == "sync" and name == DIRECTORY:
            self._settle(lambda change: change[0] == "delete")
        elif kind == "sync":
            # SQLite syncs the directory as well when it syncs a new journal or WAL for the first time
            self._settle(lambda change: change[1] == name)
            self.files.setdefault(name, bytearray())
        else:
            self.pending.append(entry)
            if kind == "delete" and rest[0]:
                self.take(("sync", DIRECTORY))

    def _settle(self, is_settled: Callable[[Entry], bool]) -> None:
        for change in filter(is_settled, self.pending):
            apply_change(self.files, change)
        self.pending = list(filterfalse(is_settled, self.pending))

    def after_power_loss(self, variant: str, chance: random.Random) -> Files:
        """What it may hold when the power comes back."""
        files = {name: bytearray(content) for name, content in self.files.items()}
        for change in self.pending:
            if variant == "all" or (variant != "none" and chance.random() < 0.5):
                apply_change(files, _torn(change, chance) if variant == "torn" else change)
        return files


def apply_change(files: Files, change: Entry) -> None:
    """Makes one recorded change to the files."""
    kind, name, *rest = change
    if kind == "delete":
        files.pop(name, None)
        return
    content = files.setdefault(name, bytearray())
    position = rest[0]
    if kind == "truncate":
        del content[position:]
        return
    if len(content) < position:
        content.extend(bytes(position - len(content)))
    content[position : position + len(rest[1])] = rest[1]


def _torn(change: Entry, chance: random.Random) -> Entry:
    """Some of a write's sectors only."""
    if change[0] != "write" or len(change[3]) <= SECTOR:
        return change
    kind, name, position, data = change
    first = chance.randrange(0, len(data), SECTOR) if chance.random() < 0.5 else 0
    last = SECTOR * chance.randint(first // SECTOR + 1, -(-len(data) // SECTOR))
    return kind, name, position + first, data[first:last]


@dataclass
class Sweep:
    """What a sweep over all states of the disk found."""

    states: int = 0
    before_the_first_promise: int = 0
    lost: int = 0
    lost_and_told: int = 0
    told_for_nothing: int = 0
    under_way_kept: int = 0
