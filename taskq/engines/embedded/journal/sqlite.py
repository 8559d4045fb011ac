"""The embedded store: a journal in SQLite.

Rules that keep it safe (tests/faults/test_power_loss.py and test_store_faults.py hold them):
- WAL and synchronous=FULL, set explicitly, one commit for all that a tick of the broker brought (group commit).
- One connection for the broker's life, and nobody else opens the file, ever, by any means: a stray open and close in
  this process would drop SQLite's POSIX locks, and another process could then remove the WAL under us. As a canary,
  each commit checks that the WAL's path still leads to the file we write.
- A failed commit is an unknown outcome: nothing is acknowledged, and the broker stops.
- A marker file says that there must be a journal, so a lost one is an error and never a silent empty queue.

APSW is the driver: in the same run it took 3.6 microseconds of CPU to insert a row and 2.3 to end it, where the sqlite3
module took 7.5 and 4.3; it brings a current SQLite, and a VFS for the tests of power loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, count, islice, repeat
from typing import Any

import msgpack

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.database import trusted
from taskq.engines.embedded.journal.dependencies import Dependencies
from taskq.engines.embedded.journal.known_ids import KnownIds
from taskq.engines.embedded.journal.queries import Queries
from taskq.engines.embedded.journal.statements import PRUNABLE
from taskq.model.attempt import shortened
from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import EnqueueError
from taskq.model.info.counts import CountsRow
from taskq.model.job import JobRow
from taskq.model.limits import KEPT_ATTEMPTS_EACH_END
from taskq.model.partition import Partition, Starts, partition_of
from taskq.model.schedule import Schedule, ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Ended, Rescheduled, StoredJob, StoredState

#: How often pruning begins again at the oldest job.
_PRUNE_AGAIN_S = 60.0


class SQLiteStore(Dependencies, Queries):
    """A journal file and what it knows. See `taskq.engines.embedded.journal.store.Store` for the meaning of the
    operations.

    It is one object with one connection and one transaction; its parts stand in files of their own: the connection
    (`database`), the tables (`schema`), jobs that come after others (`dependencies`), what is only read (`queries`).
    """

    def _load(self) -> None:
        super()._load()
        self._known_ids = KnownIds(self._db, self._clock)
        self._prune_after = 0  # up to this seq nothing more is to be removed now
        self._pruning_since = 0.0
        self._has_items = self._value("SELECT 1 FROM items LIMIT 1") is not None

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    @property
    def kept(self) -> int:
        """Ended jobs that are kept, without the failed ones."""
        return self._rows.prunable

    # -- taking in

    @trusted
    def submit(
        self,
        spec: Spec,
        ids: Sequence[bytes],
        payloads: Iterable[bytes],
        constraints: Sequence[Constraints | None] | None = None,
    ) -> list[JobRow]:
        self._begin()
        first = self._next_seq
        rows = list(map(JobRow, count(first), ids, repeat(spec), payloads))
        if constraints is not None:
            for row, own in zip(rows, constraints, strict=True):
                row.constraints = own
        are_new = self._known_ids.are_new(ids)
        if not are_new:
            rows = self._without_known(rows)
        if constraints is None:
            self._insert(rows, self._spec_number(spec), self._partitions.of(partition_of(spec, None)))
        else:
            self._insert_with_constraints(rows, self._spec_number(spec))
        if are_new:
            self._known_ids.took_in(ids)
        else:
            self._known_ids.look()
        self._next_seq = first + len(rows)
        self._rows.jobs += len(rows)
        self.totals.enqueued += len(rows)
        return rows

    @trusted
    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        found: dict[bytes, StoredState] = {}
        for job_id in self._known_ids.without_new(ids):
            state = self._value("SELECT state FROM jobs WHERE id = ?", job_id)
            if state is not None:
                found[job_id] = StoredState(state)
        return found

    def _without_known(self, rows: list[JobRow]) -> list[JobRow]:
        fresh: dict[bytes, JobRow] = {}
        for row in rows:
            known = self._db.execute("SELECT payload FROM jobs WHERE id = ?", (row.id,)).fetchone()
            if known is None and row.id in fresh:
                known = (fresh[row.id].payload,)
            if known is None:
                fresh[row.id] = row
            elif known[0] is not None and known[0] != row.payload:
                raise EnqueueError(f"job id {row.id.hex()} is already used by a job with other arguments")
        for seq, row in enumerate(fresh.values(), self._next_seq):
            row.seq = seq
        return list(fresh.values())

    def _insert(self, rows: list[JobRow], spec: int, partition: int) -> None:
        values = [(row.seq, row.id, spec, partition, row.payload) for row in rows]
        if len(values) < statements.ROWS_PER_INSERT:
            self._db.executemany(statements.INSERT_ONE, values)
            return
        whole = len(values) - len(values) % statements.ROWS_PER_INSERT
        remaining = iter(values[:whole])
        while together := tuple(islice(remaining, statements.ROWS_PER_INSERT)):
            self._db.execute(statements.INSERT_MANY, tuple(chain.from_iterable(together)))
        if whole < len(values):
            self._db.executemany(statements.INSERT_ONE, values[whole:])

    def _insert_with_constraints(self, rows: list[JobRow], spec: int) -> None:
        values: list[tuple[Any, ...]] = []
        edges: list[tuple[bytes, int, bool]] = []
        unkeyed = self._partitions.of(partition_of(rows[0].spec, None)) if rows else 0
        pack = msgpack.Packer().pack  # to make one takes as long as to pack one
        queued, scheduled, waiting = int(StoredState.QUEUED), int(StoredState.SCHEDULED), int(StoredState.WAITING)
        for row in rows:
            constraints = row.constraints or NO_CONSTRAINTS
            row.constraints = kept = constraints.kept
            state = waiting if constraints.after else queued if constraints.due_at is None else scheduled
            if state != queued:
                self._later.add(state, row.spec.queue)
            if constraints.after:
                edges += [(parent, row.seq, goes_on) for parent, goes_on in constraints.after]
            partition, is_keyed = unkeyed, 1 if constraints.is_keyed else None
            if is_keyed and state == queued:
                partition = self._partitions.of(partition_of(row.spec, kept))
            packed = None if kept is None else pack(kept.to_wire())
            key = None if constraints.unique is None else constraints.unique.key
            fields = row.seq, row.id, spec, partition, row.payload, state, constraints.due_at, packed, is_keyed
            values.append((*fields, constraints.expires_at, key))
        self._db.executemany(statements.INSERT_WITH_CONSTRAINTS, values)
        if edges:
            self._db.execute(statements.EDGES_GO_WITH_THEIR_JOB)
            self._db.executemany(statements.ADD_EDGE, edges)
            self.has_waiting = self._has_edges = True

    # -- handing out

    @trusted
    def waiting(self) -> list[tuple[Partition, int, int]]:
        partitions = self._partitions.by_number()
        return [(partitions[number], jobs, first_seq) for number, jobs, first_seq in self._count_waiting()]

    @trusted
    def retried_in_order(self) -> list[JobRow]:
        rows = [self._row(fields) for fields in self._db.execute(statements.RETRIED)]
        return [row for row in rows if row.constraints is not None and row.constraints.order_key is not None]

    @trusted
    def lease(self, partition: Partition, after: int, limit: int, max_bytes: int) -> tuple[list[JobRow], bool]:
        number = self._partitions.known(partition)
        if number is None:
            return [], True
        rows: list[JobRow] = []
        size = 0
        cursor = self._db.execute(
            statements.QUEUED_KEYED if partition.is_keyed else statements.QUEUED, (number, after, limit)
        )
        for fields in cursor:
            row = self._row(fields)
            rows.append(row)
            size += len(row.payload)
            if size >= max_bytes:
                cursor.close(True)
                return rows, False
        return rows, len(rows) < limit

    @trusted
    def lease_due(self, now: float, limit: int) -> list[JobRow]:
        rows = [self._row(fields) for fields in self._db.execute(statements.DUE, (now, limit))]
        if rows:
            self._begin()
            self._db.executemany(statements.BECOME_DUE, [(self._partition_number(row), row.seq) for row in rows])
            for row in rows:
                self._later.add(StoredState.SCHEDULED, row.spec.queue, -1)
        return rows

    @trusted
    def next_due(self) -> float | None:
        due: float | None = self._value(f"SELECT min(due_at) FROM jobs WHERE state = {StoredState.SCHEDULED}")
        return due

    @trusted
    def next_expiry(self) -> float | None:
        expiry: float | None = self._value("SELECT min(expires_at) FROM jobs WHERE expires_at IS NOT NULL")
        return expiry

    @trusted
    def expired(self, now: float, limit: int) -> list[StoredJob]:
        jobs = [self._stored(fields) for fields in self._db.execute(statements.EXPIRED, (now, limit))]
        if jobs:
            self._begin()
            self._db.executemany(statements.FORGET_EXPIRY, [(job.row.seq,) for job in jobs])
        return jobs

    @trusted
    def release_keys(self, rows: Iterable[JobRow]) -> None:
        self._begin()
        self._db.executemany("UPDATE jobs SET unique_key = NULL WHERE seq = ?", [(row.seq,) for row in rows])

    # -- while jobs run

    @trusted
    def keep_checkpoints(self, rows: Iterable[JobRow]) -> None:
        self._begin()
        kept = [(row.checkpoint, row.seq) for row in rows]
        self._db.executemany("UPDATE jobs SET checkpoint = ? WHERE seq = ?", kept)

    @trusted
    def add_items(self, seq: int, first: int, items: Sequence[bytes]) -> None:
        self._begin()
        self._db.execute(statements.ITEMS_GO_WITH_THEIR_JOB)
        self._has_items = True
        self._db.executemany(statements.ADD_ITEM, [(seq, position, item) for position, item in enumerate(items, first)])

    # -- settling

    @trusted
    def settle(self, ended: Sequence[Ended], rescheduled: Sequence[Rescheduled], now: float) -> None:
        self._begin()
        if rescheduled:  # some of these may have ended since
            self._leave(change.row.seq for change in rescheduled)
            self._db.executemany(statements.RESCHEDULE, [self._rescheduling(change, now) for change in rescheduled])
            self._keep_attempts((each.row.seq, each.attempt, each.outcome) for each in rescheduled if each.outcome)
        plain: list[tuple[int, int, float, bytes, int]] = []
        with_constraints: list[tuple[int, int, float, bytes, bool, int]] = []
        others: list[Ended] = []
        succeeded = StoredState.SUCCEEDED  # looked up once: 0.1 microseconds each time
        for row, kept, outcome in ended:
            if kept is not succeeded:
                others.append((row, kept, outcome))
            elif row.constraints is None:
                plain.append((row.attempts, row.crashes, now, outcome, row.seq))
            else:
                with_constraints.append((row.attempts, row.crashes, now, outcome, _keeps_key(row.constraints), row.seq))
        if plain:
            self._db.executemany(statements.SUCCEED, plain)
        if with_constraints:  # two updates of each would take twice as long
            self._db.executemany(statements.SUCCEED_WITH_CONSTRAINTS, with_constraints)
        self._rows.ended[succeeded] += len(plain) + len(with_constraints)
        self.totals.succeeded += len(plain) + len(with_constraints)
        if others:
            self._end(others, now)
        if with_constraints or others:
            self._drop_edges(ended)

    def _end(self, ended: Sequence[Ended], now: float) -> None:
        """Records the ends of jobs that did not succeed."""
        self._leave(row.seq for row, _, _ in ended)
        fields = [(kept, row.attempts, row.crashes, now, outcome, row.seq) for row, kept, outcome in ended]
        self._db.executemany(statements.END, fields)
        constraints = [(_keeps_key(row.constraints), row.seq) for row, _, _ in ended if row.constraints is not None]
        self._db.executemany(statements.END_CONSTRAINTS, constraints)
        count = Counter(kept for _, kept, _ in ended)
        self.totals.failed += count[StoredState.FAILED]
        self.totals.cancelled += count[StoredState.CANCELLED]
        self.totals.expired += count[StoredState.EXPIRED]
        self._rows.ended.update(count)
        failed = [(row.seq,) for row, kept, _ in ended if kept == StoredState.FAILED]
        self._db.executemany("INSERT INTO failed VALUES (?)", failed)

    def _rescheduling(self, change: Rescheduled, now: float) -> tuple[int | float | bytes | None, ...]:
        row = change.row
        ready_at = now if change.due_at is None else change.due_at
        state = StoredState.QUEUED if change.due_at is None else StoredState.SCHEDULED
        counts = row.attempts, row.crashes, row.snoozes
        numbers = self._spec_number(row.spec), self._partition_number(row, is_queued=change.due_at is None)
        self._gets_spec(row.seq, numbers[0])
        self._later.add(state, row.spec.queue)
        return state, ready_at, *numbers, *counts, change.outcome, row.seq

    def _keep_attempts(self, ended: Iterable[tuple[int, int, bytes]]) -> None:
        """Keeps the outcomes of attempts that are not the last: seq, number, outcome."""
        for seq, number, outcome in ended:
            self._db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", (seq, number, shortened(outcome)))
            if number > 2 * KEPT_ATTEMPTS_EACH_END:
                middle = KEPT_ATTEMPTS_EACH_END, number - KEPT_ATTEMPTS_EACH_END
                self._db.execute("DELETE FROM attempts WHERE job = ? AND number > ? AND number <= ?", (seq, *middle))

    # -- by hand

    @trusted
    def requeue(self, jobs: Sequence[StoredJob], now: float) -> list[JobRow]:
        self._begin()
        for seq, (row, _, _, outcome, _) in enumerate(jobs, self._next_seq):
            row.forgive()
            row.ready_at = now
            constraints = None if row.constraints is None else msgpack.packb(row.constraints.to_wire())
            self._db.execute(statements.REQUEUE, (seq, self._partition_number(row), now, constraints, row.seq))
            self._db.execute("DELETE FROM failed WHERE job = ?", (row.seq,))
            self._db.execute("UPDATE attempts SET job = ? WHERE job = ?", (seq, row.seq))
            if row.constraints is not None and row.constraints.follows:
                self._db.execute("UPDATE edges SET child = ? WHERE child = ?", (seq, row.seq))
            if self._has_items:
                self._db.execute("UPDATE items SET job = ? WHERE job = ?", (seq, row.seq))
            if outcome:
                self._keep_attempts([(seq, row.attempts, outcome)])
            row.seq = seq
        self._next_seq += len(jobs)
        self._rows.ended[StoredState.FAILED] -= len(jobs)
        return [job.row for job in jobs]

    @trusted
    def remove(self, jobs: Sequence[StoredJob]) -> None:
        self._begin()
        seqs = [(job.row.seq,) for job in jobs]
        self._leave(job.row.seq for job in jobs)
        self._db.executemany("DELETE FROM attempts WHERE job = ?", seqs)
        self._db.executemany("DELETE FROM failed WHERE job = ?", seqs)
        self._db.executemany("DELETE FROM jobs WHERE seq = ?", seqs)
        if self._has_edges:
            self._look_at_edges()
        self._rows.removed([job.kept for job in jobs])
        self.totals.cancelled += sum(1 for job in jobs if job.kept < FIRST_FINAL)

    @trusted
    def pause(self, queues: Iterable[str], is_paused: bool) -> None:
        self._begin()
        sql = "INSERT OR IGNORE INTO paused VALUES (?)" if is_paused else "DELETE FROM paused WHERE queue = ?"
        self._db.executemany(sql, [(queue,) for queue in queues])

    @trusted
    def paused(self) -> frozenset[str]:
        return frozenset(queue for (queue,) in self._db.execute("SELECT queue FROM paused"))

    # -- schedules and rates

    @trusted
    def schedules(self) -> list[ScheduleRow]:
        return [
            ScheduleRow(Schedule.from_wire(msgpack.unpackb(fields)), next_at, app, bool(is_paused), last_at, last_id)
            for fields, next_at, app, is_paused, last_at, last_id in self._db.execute(statements.SCHEDULES)
        ]

    @trusted
    def put_schedule(self, row: ScheduleRow) -> None:
        self._begin()
        fields = msgpack.packb(row.schedule.to_wire())
        state = row.next_at, row.app, row.is_paused, row.last_at, row.last_id
        self._db.execute(statements.PUT_SCHEDULE, (row.schedule.name, fields, *state))

    @trusted
    def remove_schedule(self, name: str) -> None:
        self._begin()
        self._db.execute("DELETE FROM schedules WHERE name = ?", (name,))

    @trusted
    def keep_rates(self, rates: Sequence[tuple[str, Starts, float]]) -> None:
        if rates:
            self._begin()
            rows = [(name, msgpack.packb(starts), until) for name, starts, until in rates]
            self._db.executemany("INSERT OR REPLACE INTO rates VALUES (?, ?, ?)", rows)

    @trusted
    def rates(self, now: float) -> dict[str, Starts]:
        self._begin()
        self._db.execute("DELETE FROM rates WHERE until < ?", (now,))
        self.commit()
        kept = self._db.execute("SELECT name, starts FROM rates")
        return {name: [tuple(slot) for slot in msgpack.unpackb(starts)] for name, starts in kept}

    # -- counts and machines

    @trusted
    def keep_counts(self, rows: Sequence[CountsRow]) -> None:
        if not rows:
            return
        self._begin()
        kept = [(row.minute, row.task, row.queue, row.packed) for row in rows if row.packed is not None]
        gone = [(row.minute, row.task, row.queue) for row in rows if row.packed is None]
        self._db.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?, ?, ?)", kept)
        self._db.executemany("DELETE FROM counts WHERE minute = ? AND task = ? AND queue = ?", gone)

    @trusted
    def kept_counts(self) -> list[CountsRow]:
        found = self._db.execute("SELECT task, queue, minute, packed FROM counts")
        return [CountsRow(*fields) for fields in found]

    @trusted
    def note_machine(self, name: str, now: float) -> None:
        known = self.machines()
        if not known or known[-1][1] != name:
            self._begin()
            self._db.execute("INSERT OR REPLACE INTO machines VALUES (?, ?)", (now, name))

    @trusted
    def machines(self) -> list[tuple[float, str]]:
        found: list[Any] = self._db.execute("SELECT since, name FROM machines ORDER BY since").fetchall()
        return found

    # -- what is needed no more

    @trusted
    def prune(self, before: float, keep: int, limit: int, with_files: list[tuple[bytes, bytes]] | None = None) -> int:
        if before - self._pruning_since > _PRUNE_AGAIN_S:
            self._prune_after, self._pruning_since = 0, before  # jobs that waited when it passed may have ended since
        first = last = seen = 0
        removed: list[int] = []
        prunable = self._rows.prunable
        is_kept = False
        sql = statements.JOBS_AFTER_SPARED if self._has_edges else statements.JOBS_AFTER
        cursor = self._db.execute(sql, (self._prune_after, limit))
        for seen, (seq, state, finished_at) in enumerate(cursor, 1):  # noqa: B007  used after the loop
            if state in PRUNABLE:
                is_kept = finished_at >= before and prunable - len(removed) <= keep
                if is_kept:
                    break  # what is behind it ended later, nearly always
                first = first or seq
                removed.append(state)
            last = seq
        cursor.close(True)
        if removed:
            self._begin()
            prune = statements.PRUNE_SPARING if self._has_edges else statements.PRUNE
            if with_files is not None:
                found: list[Any] = self._db.execute(statements.with_files(prune), (first, last)).fetchall()
                with_files += found
            self._db.execute(prune, (first, last))  # one by one takes twice as long
            self._db.execute(statements.PRUNE_ATTEMPTS, (first, last))
            self._rows.removed(removed)
        is_at_end = seen < limit and not is_kept
        self._prune_after = 0 if is_at_end else last or self._prune_after
        return len(removed)

    @trusted
    def tidy(self, now: float, limit: int) -> int:
        partitions = [(number,) for number in self._partitions.take_idle(limit)]
        rates = self._db.execute("SELECT name FROM rates WHERE until < ? LIMIT ?", (now, limit)).fetchall()
        if partitions or rates:  # else an idle fleet would write once a second
            self._begin()
            self._db.executemany("DELETE FROM bands WHERE band = ?", partitions)
            self._db.executemany("DELETE FROM rates WHERE name = ?", rates)
        return len(partitions) + len(rates)


def _keeps_key(constraints: Constraints) -> bool:
    """Whether the job's unique key counts for a time even when the job has ended; any other is free then."""
    return constraints.unique is not None and constraints.unique.period_s is not None
