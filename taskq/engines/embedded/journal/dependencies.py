"""Jobs that come after others, in the journal: edges from a parent to its child, open while the child waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.database import Database, trusted
from taskq.engines.embedded.journal.store import Place, Revival
from taskq.model.job import JobRow
from taskq.model.stored import Edge, Ended, StoredJob, StoredState

#: So many jobs are asked for those after them in the time that it takes to revive one.
_LOOKS_PER_JOB = 5


class Dependencies(Database):
    """The operations of a store on dependencies. Their meaning: `taskq.engines.embedded.journal.store.Store`."""

    def _load(self) -> None:
        super()._load()
        self._look_at_edges()

    def _look_at_edges(self) -> None:
        self.has_waiting = self._value("SELECT 1 FROM edges WHERE is_open = 1 LIMIT 1") is not None
        self._has_edges = self.has_waiting or self._value("SELECT 1 FROM edges LIMIT 1") is not None

    def _drop_edges(self, ended: Sequence[Ended]) -> None:
        """Of jobs that came after others and cannot be run again."""
        seqs = [
            (row.seq,)
            for row, kept, _ in ended
            if row.constraints and row.constraints.follows and kept != StoredState.FAILED
        ]
        if seqs:
            self._db.executemany("DELETE FROM edges WHERE child = ?", seqs)
            self._look_at_edges()

    # -- a parent ends

    @trusted
    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        edges: list[tuple[bytes, int, int]] = []
        for parent in parents:
            if len(edges) == limit:
                break
            edges += [
                (parent, *fields) for fields in self._db.execute(statements.OPEN_EDGES, (parent, limit - len(edges)))
            ]
        if not edges:
            return []
        self._begin()
        self._db.executemany(statements.CLOSE_EDGE, [(parent, child) for parent, child, _ in edges])
        waits = {child: self._value(statements.IS_WAITING, child) is not None for _, child, _ in edges}
        self._look_at_edges()
        return [Edge(parent, child, bool(goes_on), not waits[child]) for parent, child, goes_on in edges]

    @trusted
    def would_release(self, parents: Sequence[bytes]) -> bool:
        return any(self._value(statements.WOULD_RELEASE, parent) is not None for parent in parents)

    @trusted
    def read_waiting(self, seqs: Sequence[int]) -> list[StoredJob]:
        found = [self._db.execute(statements.READ_WAITING, (seq,)).fetchone() for seq in seqs]
        return [self._stored(fields) for fields in found if fields is not None]

    @trusted
    def release_waiting(self, jobs: Sequence[StoredJob], now: float) -> None:
        self._begin()
        late = [job.row.seq for job in jobs if job.due_at is not None and job.due_at > now]
        queued = [job.row for job in jobs if job.due_at is None or job.due_at <= now]
        self._db.executemany(f"UPDATE jobs SET state = {StoredState.SCHEDULED} WHERE seq = ?", [(seq,) for seq in late])
        for job in jobs:
            self._later.add(StoredState.WAITING, job.row.spec.queue, -1)
            if job.due_at is not None and job.due_at > now:
                self._later.add(StoredState.SCHEDULED, job.row.spec.queue)
        for row in queued:
            row.ready_at = now
        released = [(now, self._partition_number(row), row.seq) for row in queued]
        self._db.executemany(statements.RELEASE_WAITING, released)

    @trusted
    def cancel_dependents(self, ended: Sequence[Ended], now: float) -> None:
        self._begin()
        self._leave(row.seq for row, _, _ in ended)
        self._db.executemany(statements.CANCEL_DEPENDENT, [(now, outcome, row.seq) for row, _, outcome in ended])
        self._db.executemany("UPDATE edges SET is_open = 0 WHERE child = ?", [(row.seq,) for row, _, _ in ended])
        self._look_at_edges()
        self._rows.ended[StoredState.CANCELLED] += len(ended)
        self.totals.cancelled += len(ended)

    @trusted
    def detach(self, row: JobRow) -> None:
        self._begin()
        self._db.execute(statements.DETACH, (row.seq,))
        self._drop_edges([(row, StoredState.CANCELLED, b"")])

    # -- a parent is run again, and the start of the broker

    @trusted
    def revive_dependents(self, places: Sequence[Place], limit: int) -> Revival:
        if not self._has_edges:
            return Revival({}, [])
        self._begin()
        found: list[tuple[int]] = []
        left = deque(places)
        looked_at = 0
        while left and limit > 0:
            parent, after = left.popleft()
            children: list[Any] = self._db.execute(statements.REVIVABLE, (parent, after, limit)).fetchall()
            if len(children) == limit:
                left.appendleft((parent, children[-1][0]))
            left.extend((job_id, 0) for _, job_id, has_more in children if has_more)
            seqs = [(seq,) for seq, _, _ in children]
            self._db.executemany(statements.REVIVE, seqs)  # before those after them are looked at
            found += seqs
            looked_at += 1
            limit -= len(children) + (looked_at % _LOOKS_PER_JOB == 0)
        for _, number in self._db.execute(statements.LATER_AMONG, (str([seq for (seq,) in found]),)):
            self._later.add(StoredState.WAITING, self._spec_of_number[number].queue)
        self._db.executemany(statements.REOPEN, found)
        self._look_at_edges()
        self._rows.ended[StoredState.CANCELLED] -= len(found)
        self.totals.retried += len(found)
        ends = {
            parent: StoredState(state)
            for child in found
            for parent, state in self._db.execute(statements.ENDED_PARENTS, child)
        }
        return Revival(ends, list(left))

    @trusted
    def unrevived(self) -> list[Place]:
        return [(parent, 0) for (parent,) in self._db.execute(statements.UNREVIVED)] if self._has_edges else []

    @trusted
    def unfinished_releases(self) -> list[tuple[bytes, StoredState]]:
        return [(parent, StoredState(state)) for parent, state in self._db.execute(statements.UNFINISHED_RELEASES)]

    @trusted
    def parents(self, seq: int, limit: int) -> list[bytes]:
        return [
            parent for (parent,) in self._db.execute("SELECT parent FROM edges WHERE child = ? LIMIT ?", (seq, limit))
        ]

    @trusted
    def followers(self, job_id: bytes, limit: int) -> list[bytes]:
        return [child for (child,) in self._db.execute(statements.FOLLOWERS, (job_id, limit))]
