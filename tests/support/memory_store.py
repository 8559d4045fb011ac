"""A store in memory that behaves like a disk: what was committed survives the death of its process, what was synced
survives a power cut. For the simulator; the conformance suite of tests/engines holds it to the same rules as the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field

from taskq.engines.embedded.journal.store import TOTAL_NAMES, Totals, Wanted
from taskq.model.attempt import shortened
from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import EnqueueError
from taskq.model.job import Carried, JobRow, first_id_at
from taskq.model.limits import KEPT_ATTEMPTS_EACH_END, MAX_JOBS_SEEN
from taskq.model.partition import Partition, Starts, partition_of
from taskq.model.schedule import ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Edge, Ended, Rescheduled, StoredJob, StoredState

#: What a job comes after, each with whether it goes on if that one did not succeed, and whether it still waits for it.
After = tuple[tuple[bytes, bool, bool], ...]


@dataclass
class Record:
    """A job, whole, and never changed: a change makes a new one."""

    seq: int
    id: bytes
    spec: Spec
    payload: bytes
    attempts: int = 0
    crashes: int = 0
    requeued: int = 0  # how often it was retried by hand
    history: tuple[tuple[int, bytes], ...] = ()
    snoozes: int = 0
    checkpoint: bytes | None = None
    kept: StoredState = StoredState.QUEUED
    due_at: float | None = None
    outcome: bytes | None = None
    finished_at: float | None = None
    constraints: Constraints | None = None
    expires_at: float | None = None
    unique_key: str | None = None
    items: tuple[bytes, ...] = ()
    after: After = ()
    revived: int = 0  # how often it was cancelled with a job before it, and revived

    def row(self) -> JobRow:
        """As the broker holds it."""
        row = JobRow(self.seq, self.id, self.spec, self.payload, self.attempts, self.crashes, self.constraints)
        if self.snoozes or self.checkpoint is not None:
            row.carried = Carried(self.snoozes, self.checkpoint)
        return row

    def stored(self) -> StoredJob:
        """As it is read back."""
        return StoredJob(self.row(), self.kept, self.due_at, self.outcome, self.finished_at)


class Edges:
    """Who comes after whom, so that it need not be looked for in all records."""

    def __init__(self) -> None:
        self._children: dict[bytes, set[bytes]] = {}  # by the one before
        self._waiting: dict[bytes, set[bytes]] = {}  # of these, those that wait for it

    def changed(self, child: bytes, old: After, new: After) -> None:
        """What a job comes after is not as it was."""
        if old is new:
            return
        for edges, before, now in (
            (self._children, [parent for parent, _, _ in old], [parent for parent, _, _ in new]),
            (self._waiting, [p for p, _, is_open in old if is_open], [p for p, _, is_open in new if is_open]),
        ):
            for parent in before:
                edges[parent].discard(child)
                if not edges[parent]:
                    del edges[parent]
            for parent in now:
                edges.setdefault(parent, set()).add(child)

    def children(self, parent: bytes) -> Iterable[bytes]:
        """Those that come after a job."""
        return self._children.get(parent, ())

    def waiting(self, parent: bytes) -> Iterable[bytes]:
        """Those that wait for the end of a job."""
        return self._waiting.get(parent, ())

    def waited_for(self) -> list[bytes]:
        """The jobs whose end others wait for."""
        return list(self._waiting)


Rates = dict[str, tuple[Starts, float]]
#: The jobs that changed, the schedules that changed, the totals, the queues that are paused, and the starts of rates.
Commit = tuple[dict[bytes, Record | None], dict[str, ScheduleRow | None], tuple[int, ...], frozenset[str], Rates]


@dataclass
class Disk:
    """What outlives the process: a log of commits, and how many of them are synced."""

    commits: list[Commit] = field(default_factory=list)
    synced: int = 0

    def lose_power(self, choose: Callable[[int, int], int]) -> None:
        """Keeps the synced commits, and as many of the others as `choose(fewest, most)` says."""
        kept = choose(self.synced, len(self.commits))
        del self.commits[kept:]
        self.synced = len(self.commits)


def _record(seq: int, job_id: bytes, spec: Spec, payload: bytes, constraints: Constraints) -> Record:
    kept = (
        StoredState.WAITING
        if constraints.after
        else StoredState.QUEUED
        if constraints.due_at is None
        else StoredState.SCHEDULED
    )
    record = Record(seq, job_id, spec, payload, kept=kept, due_at=constraints.due_at, constraints=constraints.kept)
    record.expires_at = constraints.expires_at
    record.unique_key = None if constraints.unique is None else constraints.unique.key
    record.after = tuple((parent, goes_on, True) for parent, goes_on in dict(constraints.after).items())
    return record


class MemoryStore:
    """See `taskq.engines.embedded.journal.store.Store`."""

    syncs = True  # each commit, as with SQLite's synchronous=FULL

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.findings: list[tuple[str, dict[str, object]]] = []
        self.is_full = False
        self._load()

    def _load(self) -> None:
        self._jobs: dict[bytes, Record] = {}
        totals: tuple[int, ...] = (0,) * len(TOTAL_NAMES)
        self._schedules: dict[str, ScheduleRow] = {}
        self._paused: frozenset[str] = frozenset()
        self._rates: Rates = {}
        for changes, schedules, totals, paused, rates in self.disk.commits:  # noqa: B007  the last totals count
            self._paused, self._rates = paused, dict(rates)
            for job_id, record in changes.items():
                if record is None:
                    self._jobs.pop(job_id, None)
                else:
                    self._jobs[job_id] = record
            for name, schedule in schedules.items():
                self._set_schedule(name, schedule)
        self.totals = Totals(*totals)
        self._changed_schedules: dict[str, ScheduleRow | None] = {}
        self._by_seq = {record.seq: record.id for record in self._jobs.values()}
        self._edges = Edges()
        for record in self._jobs.values():
            self._edges.changed(record.id, (), record.after)
        self._changes: dict[bytes, Record | None] = {}
        self._paused_changed = False
        self._next_seq = max(getattr(self, "_next_seq", 1), max(self._by_seq, default=0) + 1)

    def _put(self, record: Record) -> None:
        known = self._jobs.get(record.id)
        self._edges.changed(record.id, () if known is None else known.after, record.after)
        self._jobs[record.id] = self._changes[record.id] = record
        self._by_seq[record.seq] = record.id

    def _drop(self, record: Record) -> None:
        del self._jobs[record.id], self._by_seq[record.seq]
        self._edges.changed(record.id, record.after, ())
        self._changes[record.id] = None

    def _change(self, seq: int, **fields: object) -> None:
        changed = copy(self._jobs[self._by_seq[seq]])
        for name, value in fields.items():
            setattr(changed, name, value)
        self._put(changed)

    def submit(
        self,
        spec: Spec,
        ids: Sequence[bytes],
        payloads: Iterable[bytes],
        constraints: Sequence[Constraints | None] | None = None,
    ) -> list[JobRow]:
        fresh: dict[bytes, Record] = {}
        for job_id, payload, own in zip(ids, payloads, constraints or [None] * len(ids), strict=True):
            known = self._jobs.get(job_id) or fresh.get(job_id)
            if known is None:
                fresh[job_id] = _record(self._next_seq + len(fresh), job_id, spec, payload, own or NO_CONSTRAINTS)
            elif known.payload not in (b"", payload):
                raise EnqueueError(f"job id {job_id.hex()} is already used by a job with other arguments")
        for record in fresh.values():
            self._put(record)
        self._next_seq += len(fresh)
        self.totals.enqueued += len(fresh)
        return [record.row() for record in fresh.values()]

    def waiting(self) -> list[tuple[Partition, int, int]]:
        found: dict[Partition, list[int]] = {}
        for record in self._jobs.values():
            if record.kept == StoredState.QUEUED:
                found.setdefault(partition_of(record.spec, record.constraints), []).append(record.seq)
        return [(partition, len(seqs), min(seqs)) for partition, seqs in found.items()]

    def retried_in_order(self) -> list[JobRow]:
        return [
            record.row()
            for record in self._jobs.values()
            if record.kept in (StoredState.QUEUED, StoredState.SCHEDULED)
            and record.attempts
            and record.constraints
            and record.constraints.order_key
        ]

    def next_expiry(self) -> float | None:
        return min((r.expires_at for r in self._jobs.values() if r.expires_at is not None), default=None)

    def expired(self, now: float, limit: int) -> list[StoredJob]:
        late = [r for r in self._jobs.values() if r.expires_at is not None and r.expires_at <= now]
        late = sorted(late, key=lambda record: record.expires_at or 0.0)[:limit]
        for record in late:
            self._change(record.seq, expires_at=None)
        return [record.stored() for record in late]

    def with_keys(self, keys: Sequence[str]) -> dict[str, StoredJob]:
        return {r.unique_key: r.stored() for r in self._jobs.values() if r.unique_key in keys and r.unique_key}

    def release_keys(self, rows: Iterable[JobRow]) -> None:
        for row in rows:
            self._change(row.seq, unique_key=None)

    def _in_order(self) -> list[Record]:
        return [self._jobs[self._by_seq[seq]] for seq in sorted(self._by_seq)]

    def lease(self, partition: Partition, after: int, limit: int, max_bytes: int) -> tuple[list[JobRow], bool]:
        rows: list[JobRow] = []
        size = 0
        for record in self._in_order():
            if (
                record.kept == StoredState.QUEUED
                and partition_of(record.spec, record.constraints) == partition
                and record.seq > after
            ):
                if len(rows) == limit or (rows and size >= max_bytes):
                    return rows, False
                rows.append(record.row())
                size += len(record.payload)
        return rows, len(rows) < limit and size < max_bytes

    def lease_due(self, now: float, limit: int) -> list[JobRow]:
        due = [
            (record.due_at, record.seq)
            for record in self._jobs.values()
            if record.kept == StoredState.SCHEDULED and record.due_at is not None and record.due_at <= now
        ]
        seqs = [seq for _, seq in sorted(due)[:limit]]
        for seq in seqs:
            self._change(seq, kept=StoredState.QUEUED, due_at=None)
        return [self._jobs[self._by_seq[seq]].row() for seq in seqs]

    def next_due(self) -> float | None:
        return min(
            (r.due_at for r in self._jobs.values() if r.kept == StoredState.SCHEDULED and r.due_at), default=None
        )

    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        totals = self.totals
        for row, kept, outcome in ended:
            unique = None if row.constraints is None else row.constraints.unique
            if unique is None or unique.period_s is None:
                self._change(row.seq, unique_key=None)
            fields: dict[str, object] = {"attempts": row.attempts, "crashes": row.crashes}
            if kept != StoredState.FAILED:
                fields |= {"payload": b"", "checkpoint": None, "after": ()}
            self._change(row.seq, kept=kept, due_at=None, outcome=outcome, finished_at=now, expires_at=None, **fields)
            totals.succeeded += kept == StoredState.SUCCEEDED
            totals.failed += kept == StoredState.FAILED
            totals.cancelled += kept == StoredState.CANCELLED
            totals.expired += kept == StoredState.EXPIRED
        for row, due_at, outcome in rescheduled:
            kept = StoredState.QUEUED if due_at is None else StoredState.SCHEDULED
            known = self._jobs[self._by_seq[row.seq]]
            self._change(
                row.seq,
                kept=kept,
                due_at=due_at,
                spec=row.spec,
                attempts=row.attempts,
                crashes=row.crashes,
                snoozes=0 if row.carried is None else row.carried.snoozes,
                outcome=known.outcome if outcome is None else outcome,
                history=_with_attempt(known, row.attempts, outcome),
            )

    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        for row in rows:
            assert row.carried is not None
            self._change(row.seq, checkpoint=row.carried.checkpoint)

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for the end of another."""
        return bool(self._edges.waited_for())

    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        return {job_id: self._jobs[job_id].kept for job_id in ids if job_id in self._jobs}

    def _records(self, ids: Iterable[bytes]) -> list[Record]:
        return sorted((self._jobs[job_id] for job_id in ids), key=lambda record: record.seq)

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        found: list[tuple[bytes, int, bool]] = []
        for parent in parents:
            for record in self._records(self._edges.waiting(parent)):
                found += [(parent, record.seq, goes_on) for before, goes_on, _ in record.after if before == parent]
        del found[limit:]
        for parent, child, _ in found:
            edges = self._jobs[self._by_seq[child]].after
            self._change(child, after=tuple((b, g, is_open and b != parent) for b, g, is_open in edges))
        return [Edge(*edge, not any(o for _, _, o in self._jobs[self._by_seq[edge[1]]].after)) for edge in found]

    def would_release(self, parents: Sequence[bytes]) -> bool:
        waits = (record for parent in parents for record in self._records(self._edges.waiting(parent)))
        return any(sum(is_open for _, _, is_open in record.after) == 1 for record in waits)

    def read_waiting(self, seqs: Sequence[int]) -> list[StoredJob]:
        records = [self._jobs[self._by_seq[seq]] for seq in seqs]
        return [record.stored() for record in records if record.kept == StoredState.WAITING]

    def release_waiting(self, jobs: Sequence[StoredJob], now: float) -> None:
        for job in jobs:
            is_late = job.due_at is not None and job.due_at > now
            self._change(
                job.row.seq,
                kept=StoredState.SCHEDULED if is_late else StoredState.QUEUED,
                due_at=job.due_at if is_late else None,
            )

    def cancel_dependents(self, ended: Sequence[Ended], now: float) -> None:
        for row, kept, outcome in ended:
            known = self._jobs[row.id]
            after = tuple((parent, goes_on, False) for parent, goes_on, _ in known.after)
            self._change(row.seq, kept=kept, outcome=outcome, finished_at=now, after=after)
            self._change(row.seq, due_at=None, expires_at=None, unique_key=None)
            self.totals.cancelled += 1

    def detach(self, row: JobRow) -> None:
        self._change(row.seq, payload=b"", after=())

    def revive_dependents(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        found: list[Record] = []
        parents = list(ids)
        while parents:
            off = [
                record
                for record in self._records({child for parent in parents for child in self._edges.children(parent)})
                if record.kept == StoredState.CANCELLED
                and record.payload
                and any(parent in parents and not goes_on for parent, goes_on, _ in record.after)
                and all(parent in self._jobs or goes_on for parent, goes_on, _ in record.after)
            ]
            for record in off:
                times = record.revived + 1
                self._change(record.seq, kept=StoredState.WAITING, finished_at=None, outcome=None, revived=times)
                self.totals.retried += 1
            found += off
            parents = [record.id for record in off]
        ends: dict[bytes, StoredState] = {}
        for record in found:
            states = {parent: self._jobs[parent].kept for parent, _, _ in record.after if parent in self._jobs}
            bad = {parent: kept for parent, kept in states.items() if kept != StoredState.SUCCEEDED}
            self._change(record.seq, after=tuple((p, goes_on, p in bad) for p, goes_on, _ in record.after))
            ends.update((parent, kept) for parent, kept in bad.items() if kept >= FIRST_FINAL)
        return ends

    def unfinished_releases(self) -> list[tuple[bytes, StoredState]]:
        before = self._edges.waited_for()
        states = {**dict.fromkeys(before, StoredState.CANCELLED), **self.states(before)}
        return [(parent, kept) for parent, kept in states.items() if kept >= FIRST_FINAL]

    def parents(self, seq: int, limit: int) -> list[bytes]:
        return [parent for parent, _, _ in self._jobs[self._by_seq[seq]].after][:limit]

    def followers(self, job_id: bytes, limit: int) -> list[bytes]:
        records = self._records(self._edges.children(job_id))
        return [record.id for record in records if record.kept < FIRST_FINAL][:limit]

    def add_items(self, seq: int, first: int, items: Sequence[bytes]) -> None:
        known = self._jobs[self._by_seq[seq]].items
        self._change(seq, items=(*known, *items[len(known) - first :]))

    def items(self, seq: int, start: int, limit: int, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        job_id = self._by_seq.get(seq)
        for item in self._jobs[job_id].items[start : start + limit] if job_id in self._jobs else ():
            if found and sum(map(len, found)) + len(item) > max_bytes:
                break
            found.append(item)
        return found

    def commit(self) -> None:
        if self._changes or self._changed_schedules or self._paused_changed:
            totals = tuple(self.totals.as_dict().values())
            self.disk.commits.append((self._changes, self._changed_schedules, totals, self._paused, dict(self._rates)))
            self._changes, self._changed_schedules, self._paused_changed = {}, {}, False
            if self.syncs:
                self.disk.synced = len(self.disk.commits)

    def rollback(self) -> None:
        self._load()

    def make_room(self) -> None:
        self.is_full = True

    def keep_room(self) -> None:
        self.is_full = False

    def read(self, job_id: bytes) -> StoredJob | None:
        record = self._jobs.get(job_id)
        if record is None:
            return None
        return record.stored()

    def attempts(self, row: JobRow) -> list[tuple[int, bytes]]:
        return list(self._jobs[row.id].history)

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    def find(
        self, wanted: Wanted, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredJob], int | None]:
        records = [record for record in self._in_order() if after < record.seq < before]
        if newest_first:
            records.reverse()
        found: list[StoredJob] = []
        for seen, record in enumerate(records, 1):
            if _is_wanted(record, wanted):
                row = record.row()
                row.payload = b""
                found.append(StoredJob(row, record.kept, record.due_at, record.outcome, record.finished_at))
            if len(found) == limit or seen == MAX_JOBS_SEEN:
                return found, record.seq
        return found, None

    def requeue(self, jobs: Sequence[StoredJob]) -> list[JobRow]:
        for row, *_ in jobs:
            known = self._jobs[row.id]
            row.forgive()
            del self._by_seq[row.seq]
            row.seq = self._next_seq
            self._next_seq += 1
            changed = copy(known)
            changed.seq, changed.kept, changed.finished_at = row.seq, StoredState.QUEUED, None
            changed.constraints, changed.requeued = row.constraints, known.requeued + 1
            changed.history = _with_attempt(known, row.attempts, known.outcome)
            self._put(changed)
        return [job.row for job in jobs]

    def remove(self, jobs: Sequence[StoredJob]) -> None:
        for job in jobs:
            self._drop(self._jobs[job.row.id])
            self.totals.cancelled += job.kept < FIRST_FINAL

    def pause(self, queues: Iterable[str], is_paused: bool) -> None:
        named = frozenset(queues)
        self._paused = self._paused | named if is_paused else self._paused - named
        self._paused_changed = True

    def keep_rates(self, rates: Sequence[tuple[str, Starts, float]]) -> None:
        self._rates.update({name: (starts, until) for name, starts, until in rates})
        self._paused_changed = self._paused_changed or bool(rates)

    def rates(self, now: float) -> dict[str, Starts]:
        return {name: starts for name, (starts, until) in self._rates.items() if until >= now}

    def paused(self) -> frozenset[str]:
        return self._paused

    def schedules(self) -> list[ScheduleRow]:
        return [self._schedules[name] for name in sorted(self._schedules)]

    def put_schedule(self, row: ScheduleRow) -> None:
        self._changed_schedules[row.schedule.name] = row
        self._set_schedule(row.schedule.name, row)

    def remove_schedule(self, name: str) -> None:
        self._changed_schedules[name] = None
        self._set_schedule(name, None)

    def _set_schedule(self, name: str, row: ScheduleRow | None) -> None:
        if row is None:
            self._schedules.pop(name, None)
        else:
            self._schedules[name] = row

    def counts(self, kept: StoredState) -> dict[str, int]:
        found: dict[str, int] = {}
        for record in self._jobs.values():
            if record.kept == kept:
                found[record.spec.queue] = found.get(record.spec.queue, 0) + 1
        return found

    def prune(self, before: float, keep: int, limit: int) -> int:
        ended = [r for r in self._in_order() if r.kept >= FIRST_FINAL and r.kept != StoredState.FAILED]
        surplus = len(ended) - keep
        needy = [r for r in self._jobs.values() if r.kept < FIRST_FINAL or r.kept == StoredState.FAILED or r.payload]
        spared = {parent for r in needy for parent, _, _ in r.after}
        ended = [record for record in ended if record.id not in spared]
        removed = 0
        for record in ended:
            if removed < limit and ((record.finished_at or 0.0) < before or removed < surplus):
                self._drop(record)
                removed += 1
        return removed

    def tidy(self, now: float, limit: int) -> int:
        over = [name for name, (_, until) in self._rates.items() if until < now][:limit]
        for name in over:
            del self._rates[name]
        return len(over)

    def close(self) -> None:
        self.commit()


def _with_attempt(record: Record, number: int, outcome: bytes | None) -> tuple[tuple[int, bytes], ...]:
    """The attempts that are kept, with one more; those in the middle of many are left out."""
    if not outcome:
        return record.history
    others = [kept for kept in record.history if kept[0] != number]
    ends = KEPT_ATTEMPTS_EACH_END
    return tuple(kept for kept in [*others, (number, shortened(outcome))] if not ends < kept[0] <= number - ends)


def _is_wanted(record: Record, wanted: Wanted) -> bool:
    if wanted.kept not in (None, record.kept) or wanted.queue not in (None, record.spec.queue):
        return False
    if wanted.task not in (None, record.spec.task):
        return False
    if wanted.before is None:
        return True
    is_ended = record.finished_at is not None
    return (record.finished_at or 0.0) < wanted.before if is_ended else record.id < first_id_at(wanted.before)
