"""A journal in memory: what was committed is there until its process ends.

For `taskq.testing`, which needs no files, and for the simulator. tests/engines holds it to the same rules as the
journal in SQLite.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from taskq.engines.embedded.journal.memory_records import Changes, Disk, Indexes, Record
from taskq.engines.embedded.journal.store import MAX_FOUND_RESULT_BYTES, Place, Revival, Totals, Wanted
from taskq.model.attempt import shortened
from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.effects import Event
from taskq.model.errors import EnqueueError
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.limits import KEPT_ATTEMPTS_EACH_END, MAX_JOBS_SEEN
from taskq.model.partition import Partition, Starts
from taskq.model.schedule import ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Edge, Ended, Rescheduled, StoredJob, StoredState


class MemoryStore:
    """A journal in memory. See `taskq.engines.embedded.journal.store.Store` for the meaning of the operations."""

    def __init__(self, disk: Disk | None = None) -> None:
        """Opens a journal.

        Args:
            disk: what an earlier one has left behind; None begins with an empty one.
        """
        self.disk = Disk() if disk is None else disk
        self.findings: list[Event] = []
        self.is_full = False
        self._next_seq = 1
        self._load()

    def _load(self) -> None:
        contents = self.disk.read()
        self._jobs = contents.jobs
        self._schedules = contents.schedules
        self._paused = contents.paused
        self._rates = contents.rates
        self._counts = contents.counts
        self._machines = contents.machines
        self.totals = Totals(**contents.totals)
        self._changes = Changes()
        self._indexes = Indexes()
        records = sorted(self._jobs.values(), key=lambda record: record.seq)
        self._by_seq = {record.seq: record.id for record in records}  # always ascending
        for record in records:
            self._indexes.changed(None, record)
        self._next_seq = max(self._next_seq, records[-1].seq + 1 if records else 1)

    def _put(self, record: Record) -> None:
        known = self._jobs.get(record.id)
        self._indexes.changed(known, record)
        self._jobs[record.id] = self._changes.jobs[record.id] = record
        self._by_seq[record.seq] = record.id

    def _drop(self, record: Record) -> None:
        del self._jobs[record.id], self._by_seq[record.seq]
        self._indexes.changed(record, None)
        self._changes.jobs[record.id] = None

    def _record(self, seq: int) -> Record:
        return self._jobs[self._by_seq[seq]]

    def _change(self, seq: int, **fields: Any) -> None:
        self._put(replace(self._record(seq), **fields))

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    # -- taking in

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
                seq = self._next_seq + len(fresh)
                fresh[job_id] = Record.submitted(seq, job_id, spec, payload, own or NO_CONSTRAINTS)
            elif known.payload not in (b"", payload):
                raise EnqueueError(f"job id {job_id.hex()} is already used by a job with other arguments")
        for record in fresh.values():
            self._put(record)
        self._next_seq += len(fresh)
        self.totals.enqueued += len(fresh)
        return [record.row() for record in fresh.values()]

    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        return {job_id: self._jobs[job_id].kept for job_id in ids if job_id in self._jobs}

    # -- handing out

    def waiting(self) -> list[tuple[Partition, int, int]]:
        return [(partition, len(seqs), seqs[0]) for partition, seqs in self._indexes.queued.items()]

    def retried_in_order(self) -> list[JobRow]:
        open_states = StoredState.QUEUED, StoredState.SCHEDULED
        retried = (record for record in self._jobs.values() if record.attempts and record.kept in open_states)
        return [record.row() for record in retried if record.constraints and record.constraints.order_key]

    def lease(self, partition: Partition, after: int, limit: int, max_bytes: int) -> tuple[list[JobRow], bool]:
        rows: list[JobRow] = []
        size = 0
        seqs = self._indexes.queued.get(partition, [])
        for seq in islice(seqs, bisect_right(seqs, after), None):
            if len(rows) == limit or (rows and size >= max_bytes):
                return rows, False
            rows.append(self._record(seq).row())
            size += len(rows[-1].payload)
        return rows, len(rows) < limit and size < max_bytes

    def lease_due(self, now: float, limit: int) -> list[JobRow]:
        due = self._indexes.due
        seqs = [seq for _, seq in due[: min(limit, bisect_right(due, (now, self._next_seq)))]]
        for seq in seqs:
            self._change(seq, kept=StoredState.QUEUED)
        return [self._record(seq).row() for seq in seqs]

    def next_due(self) -> float | None:
        return self._indexes.due[0][0] if self._indexes.due else None

    def next_expiry(self) -> float | None:
        return self._indexes.expiring[0][0] if self._indexes.expiring else None

    def expired(self, now: float, limit: int) -> list[StoredJob]:
        expiring = self._indexes.expiring
        late = expiring[: min(limit, bisect_right(expiring, (now, self._next_seq)))]
        for _, seq in late:
            self._change(seq, expires_at=None)
        return [self._record(seq).stored() for _, seq in late]

    def with_keys(self, keys: Sequence[str]) -> dict[str, StoredJob]:
        found = self._indexes.by_key
        return {key: self._record(found[key]).stored() for key in keys if key in found}

    def release_keys(self, rows: Iterable[JobRow]) -> None:
        for row in rows:
            self._change(row.seq, unique_key=None)

    # -- while jobs run

    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        for row in rows:
            self._change(row.seq, checkpoint=row.checkpoint)

    def add_items(self, seq: int, first: int, items: Sequence[bytes]) -> None:
        known = self._record(seq).items
        self._change(seq, items=(*known, *items[len(known) - first :]))

    def items(self, seq: int, start: int, limit: int, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        size = 0
        for item in self._record(seq).items[start : start + limit] if seq in self._by_seq else ():
            size += len(item)
            if found and size > max_bytes:
                break
            found.append(item)
        return found

    # -- settling

    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        totals = self.totals
        for change in rescheduled:  # some of these may have ended since
            self._reschedule(*change, now)
        for row, kept, outcome in ended:
            self._end(row, kept, outcome, now)
            totals.succeeded += kept == StoredState.SUCCEEDED
            totals.failed += kept == StoredState.FAILED
            totals.cancelled += kept == StoredState.CANCELLED
            totals.expired += kept == StoredState.EXPIRED

    def _end(self, row: JobRow, kept: StoredState, outcome: bytes, now: float) -> None:
        unique = None if row.constraints is None else row.constraints.unique
        fields: dict[str, Any] = {}
        if unique is None or unique.period_s is None:
            fields["unique_key"] = None
        if kept != StoredState.FAILED:  # a failed job can be run again
            fields |= {"payload": b"", "checkpoint": None, "after": ()}
        self._change(
            row.seq,
            kept=kept,
            attempts=row.attempts,
            crashes=row.crashes,
            due_at=None,
            expires_at=None,
            outcome=outcome,
            finished_at=now,
            **fields,
        )

    def _reschedule(self, row: JobRow, due_at: float | None, outcome: bytes | None, attempt: int, now: float) -> None:
        known = self._record(row.seq)
        self._change(
            row.seq,
            kept=StoredState.QUEUED if due_at is None else StoredState.SCHEDULED,
            due_at=now if due_at is None else due_at,
            spec=row.spec,
            attempts=row.attempts,
            crashes=row.crashes,
            snoozes=row.snoozes,
            outcome=known.outcome if outcome is None else outcome,
            history=_with_attempt(known, attempt, outcome),
        )

    # -- jobs that come after others

    @property
    def has_waiting(self) -> bool:
        return bool(self._indexes.awaited)

    def _records(self, ids: Iterable[bytes]) -> list[Record]:
        return sorted((self._jobs[job_id] for job_id in ids), key=lambda record: record.seq)

    def close_edges(self, parents: Sequence[bytes], limit: int) -> list[Edge]:
        found: list[tuple[bytes, int, bool]] = []
        for parent in parents:
            for record in self._records(self._indexes.waiting(parent)):
                found += [(parent, record.seq, goes_on) for before, goes_on, _ in record.after if before == parent]
        del found[limit:]
        for parent, child, _ in found:
            edges = self._record(child).after
            self._change(child, after=tuple((b, g, is_open and b != parent) for b, g, is_open in edges))
        return [Edge(*edge, not any(o for _, _, o in self._record(edge[1]).after)) for edge in found]

    def would_release(self, parents: Sequence[bytes]) -> bool:
        waits = (record for parent in parents for record in self._records(self._indexes.waiting(parent)))
        return any(sum(is_open for _, _, is_open in record.after) == 1 for record in waits)

    def read_waiting(self, seqs: Sequence[int]) -> list[StoredJob]:
        records = [self._record(seq) for seq in seqs]
        return [record.stored() for record in records if record.kept == StoredState.WAITING]

    def release_waiting(self, jobs: Sequence[StoredJob], now: float) -> None:
        for job in jobs:
            is_late = job.due_at is not None and job.due_at > now
            self._change(
                job.row.seq,
                kept=StoredState.SCHEDULED if is_late else StoredState.QUEUED,
                due_at=job.due_at if is_late else now,
            )
            job.row.ready_at = now

    def cancel_dependents(self, ended: Sequence[Ended], now: float) -> None:
        for row, kept, outcome in ended:
            self._change(
                row.seq,
                kept=kept,
                outcome=outcome,
                finished_at=now,
                due_at=None,
                expires_at=None,
                unique_key=None,
                after=tuple((parent, goes_on, False) for parent, goes_on, _ in self._record(row.seq).after),
            )
            self.totals.cancelled += 1

    def detach(self, row: JobRow) -> None:
        self._change(row.seq, payload=b"", after=())

    def revive_dependents(self, places: Sequence[Place], limit: int) -> Revival:
        found: list[Record] = []
        left = deque(places)
        while left and limit > 0:
            parent, after = left.popleft()
            children = [
                record
                for record in self._records(self._indexes.children(parent))
                if record.seq > after and self._is_revived(record, parent)
            ][:limit]
            if len(children) == limit:
                left.appendleft((parent, children[-1].seq))
            for record in children:
                changes = {"kept": StoredState.WAITING, "finished_at": None, "outcome": None}
                self._change(record.seq, **changes, revived=record.revived + 1)
                self.totals.retried += 1
                left.append((record.id, 0))
            found += children
            limit -= len(children)
        ends: dict[bytes, StoredState] = {}
        for record in found:
            self._change(record.seq, after=tuple((p, goes_on, p in self._jobs) for p, goes_on, _ in record.after))
            ends.update((p, kept) for p, kept in self.states([p for p, _, _ in record.after]).items())
        return Revival({parent: kept for parent, kept in ends.items() if kept >= FIRST_FINAL}, list(left))

    def unrevived(self) -> list[Place]:
        parents = {
            parent: None
            for record in self._jobs.values()
            for parent, _, _ in record.after
            if self._is_revived(record, parent)
        }
        return [(parent, 0) for parent in parents]

    def _is_revived(self, record: Record, parent: bytes) -> bool:
        """Whether a job was cancelled because of this one, and all that it needs is still there and may succeed."""
        needs = [before for before, goes_on, _ in record.after if not goes_on]
        states = self.states(needs)
        return (
            record.kept == StoredState.CANCELLED
            and bool(record.payload)
            and parent in needs
            and all(states.get(before, StoredState.CANCELLED) <= StoredState.SUCCEEDED for before in needs)
        )

    def unfinished_releases(self) -> list[tuple[bytes, StoredState]]:
        before = self._indexes.awaited
        states = {**dict.fromkeys(before, StoredState.CANCELLED), **self.states(before)}
        return [(parent, kept) for parent, kept in states.items() if kept >= FIRST_FINAL]

    def parents(self, seq: int, limit: int) -> list[bytes]:
        return [parent for parent, _, _ in self._record(seq).after][:limit]

    def followers(self, job_id: bytes, limit: int) -> list[bytes]:
        records = self._records(self._indexes.children(job_id))
        return [record.id for record in records if record.kept < FIRST_FINAL][:limit]

    # -- transactions

    def commit(self) -> None:
        if self._changes:
            self._changes.totals = self.totals.as_dict()
            self.disk.write(self._changes)
            self._changes = Changes()

    @property
    def connection(self) -> None:
        return None

    def size(self) -> int:
        return 0

    def rollback(self) -> None:
        self._load()

    def close(self) -> None:
        self.commit()

    def fold_log(self) -> bool:
        return False

    # -- a full disk

    def make_room(self) -> None:
        self.is_full = True

    def keep_room(self) -> None:
        self.is_full = False

    # -- reading

    def read(self, job_id: bytes) -> StoredJob | None:
        record = self._jobs.get(job_id)
        return None if record is None else record.stored()

    def attempts(self, row: JobRow) -> list[tuple[int, bytes]]:
        return list(self._jobs[row.id].history)

    def find(
        self, wanted: Wanted, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredJob], int | None]:
        seqs = [seq for seq in self._by_seq if after < seq < before]
        found: list[StoredJob] = []
        for seen, seq in enumerate(reversed(seqs) if newest_first else seqs, 1):
            job = self._record(seq).stored()
            if wanted.fits(job):
                found.append(_without_values(job))
            if len(found) == limit or seen == MAX_JOBS_SEEN:
                return found, seq
        return found, None

    def find_due(self, wanted: Wanted, after: int | None, limit: int) -> tuple[list[StoredJob], int | None]:
        known = [record for record in self._jobs.values() if record.kept == StoredState.SCHEDULED]
        known.sort(key=lambda record: (record.due_at or 0.0, record.seq))
        seqs = [record.seq for record in known]
        first = seqs.index(after) + 1 if after in seqs else 0
        jobs = [job for record in known[first:] if wanted.fits(job := record.stored())]
        found = [_without_values(job) for job in jobs[:limit]]
        return found, found[-1].row.seq if len(jobs) > limit else None

    def counts(self, kept: StoredState) -> dict[str, int]:
        return dict(Counter(record.spec.queue for record in self._jobs.values() if record.kept == kept))

    # -- by hand

    def requeue(self, jobs: Sequence[StoredJob], now: float) -> list[JobRow]:
        for row, *_ in jobs:
            known = self._jobs[row.id]
            row.forgive()
            row.ready_at = now
            del self._by_seq[row.seq]
            row.seq = self._next_seq
            self._next_seq += 1
            self._put(
                replace(
                    known,
                    seq=row.seq,
                    kept=StoredState.QUEUED,
                    due_at=now,
                    finished_at=None,
                    constraints=row.constraints,
                    requeued=known.requeued + 1,
                    history=_with_attempt(known, row.attempts, known.outcome),
                )
            )
        return [job.row for job in jobs]

    def remove(self, jobs: Sequence[StoredJob]) -> None:
        for job in jobs:
            self._drop(self._jobs[job.row.id])
            self.totals.cancelled += job.kept < FIRST_FINAL

    def pause(self, queues: Iterable[str], is_paused: bool) -> None:
        named = frozenset(queues)
        self._paused = self._changes.paused = self._paused | named if is_paused else self._paused - named

    def paused(self) -> frozenset[str]:
        return self._paused

    # -- schedules and rates

    def schedules(self) -> list[ScheduleRow]:
        return [self._schedules[name] for name in sorted(self._schedules)]

    def put_schedule(self, row: ScheduleRow) -> None:
        self._schedules[row.schedule.name] = self._changes.schedules[row.schedule.name] = row

    def remove_schedule(self, name: str) -> None:
        self._schedules.pop(name, None)
        self._changes.schedules[name] = None

    def keep_rates(self, rates: Sequence[tuple[str, Starts, float]]) -> None:
        if rates:
            self._rates.update({name: (starts, until) for name, starts, until in rates})
            self._changes.rates = self._rates.copy()

    def rates(self, now: float) -> dict[str, Starts]:
        return {name: starts for name, (starts, until) in self._rates.items() if until >= now}

    # -- counts and machines

    def keep_counts(self, rows: Sequence[CountsRow]) -> None:
        for task, queue, minute, packed in rows:
            key = minute, task, queue
            self._changes.counts[key] = packed
            if packed is None:
                self._counts.pop(key, None)
            else:
                self._counts[key] = packed

    def kept_counts(self) -> list[CountsRow]:
        return [CountsRow(task, queue, minute, packed) for (minute, task, queue), packed in self._counts.items()]

    def note_machine(self, name: str, now: float) -> None:
        if not self._machines or self._machines[-1][1] != name:
            self._machines = self._changes.machines = [*self._machines, (now, name)]

    def machines(self) -> list[tuple[float, str]]:
        return self._machines

    # -- what is needed no more

    def prune(self, before: float, keep: int, limit: int, with_files: list[tuple[bytes, bytes]] | None = None) -> int:
        ended = [r for r in map(self._record, self._by_seq) if r.kept >= FIRST_FINAL and r.kept != StoredState.FAILED]
        surplus = len(ended) - keep
        needy = [r for r in self._jobs.values() if r.kept < FIRST_FINAL or r.kept == StoredState.FAILED or r.payload]
        spared = {parent for r in needy for parent, _, _ in r.after}
        ended = [record for record in ended if record.id not in spared]
        removed = 0
        for record in ended:
            if removed < limit and ((record.finished_at or 0.0) < before or removed < surplus):
                self._drop(record)
                removed += 1
                if with_files is not None and record.kept == StoredState.SUCCEEDED and record.outcome is not None:
                    with_files.append((record.id, record.outcome))
        return removed

    def tidy(self, now: float, limit: int) -> int:
        over = [name for name, (_, until) in self._rates.items() if until < now][:limit]
        for name in over:
            del self._rates[name]
        if over:
            self._changes.rates = self._rates.copy()
        return len(over)


def _with_attempt(record: Record, number: int, outcome: bytes | None) -> tuple[tuple[int, bytes], ...]:
    """The attempts that are kept, with one more; those in the middle of many are left out."""
    if not outcome:
        return record.history
    others = [kept for kept in record.history if kept[0] != number]
    ends = KEPT_ATTEMPTS_EACH_END
    return tuple(kept for kept in [*others, (number, shortened(outcome))] if not ends < kept[0] <= number - ends)


def _without_values(job: StoredJob) -> StoredJob:
    """A job as it is found: without its payload, and without a large result."""
    job.row.payload = b""
    is_large = job.kept == StoredState.SUCCEEDED and len(job.outcome or b"") >= MAX_FOUND_RESULT_BYTES
    return job._replace(outcome=None) if is_large else job
