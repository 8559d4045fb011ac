"""What can be read of the journal: jobs, their attempts and items, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.database import Database, trusted
from taskq.engines.embedded.journal.store import Wanted
from taskq.model.job import JobRow, first_id_at
from taskq.model.limits import MAX_JOBS_SEEN, MIB
from taskq.model.stored import StoredJob, StoredState

#: `find` stops at payloads and outcomes of this size together, also of those in which it looked for a text.
_FIND_BYTES = 4 * MIB
#: It also stops after this time: of jobs with large payloads, each may take a millisecond to look at.
_FIND_S = 0.010
#: It looks at the clock after each job that may be meant, and after this many that are not.
_STEP_JOBS = 100


class Queries(Database):
    """The operations of a store that change nothing. Their meaning: `taskq.engines.embedded.journal.store.Store`."""

    @trusted
    def read(self, job_id: bytes) -> StoredJob | None:
        fields = self._db.execute(statements.READ, (job_id,)).fetchone()
        return None if fields is None else self._stored(fields)

    @trusted
    def attempts(self, row: JobRow) -> list[tuple[int, bytes]]:
        sql = "SELECT number, outcome FROM attempts WHERE job = ? ORDER BY number"
        found: list[Any] = self._db.execute(sql, (row.seq,)).fetchall()
        return [(number, outcome) for number, outcome in found]

    @trusted
    def items(self, seq: int, start: int, limit: int, max_bytes: int) -> list[bytes]:
        found: list[bytes] = []
        size = 0
        cursor = self._db.execute(statements.ITEMS, (seq, start, limit))
        for (item,) in cursor:
            size += len(item)
            if found and size > max_bytes:
                cursor.close(True)
                break
            found.append(item)
        return found

    @trusted
    def with_keys(self, keys: Sequence[str]) -> dict[str, StoredJob]:
        found: dict[str, StoredJob] = {}
        for start in range(0, len(keys), statements.KEYS_AT_ONCE):
            part = tuple(keys[start : start + statements.KEYS_AT_ONCE])
            sql = statements.WITH_KEYS if len(part) == statements.KEYS_AT_ONCE else statements.with_keys(len(part))
            for key, *fields in self._db.execute(sql, part):
                found[key] = self._stored(fields)
        return found

    @trusted
    def find(
        self, wanted: Wanted, after: int, before: int, limit: int, *, newest_first: bool
    ) -> tuple[list[StoredJob], int | None]:
        until = self._clock.monotonic() + _FIND_S
        jobs: list[StoredJob] = []
        size = seen = 0
        most = self._rows.living if wanted.kept == StoredState.QUEUED else limit  # behind that, only others
        if not most:
            return [], None
        step = min(_STEP_JOBS, MAX_JOBS_SEEN)
        with closing(self._look_at(wanted, after, before, step, newest_first=newest_first)) as looked_at:
            for place, fields in looked_at:
                if fields is None:
                    seen += step
                else:
                    *own, payload_bytes = fields
                    state, outcome = own[-3:-1]
                    size += len(outcome or b"")
                    if not wanted.search.text or wanted.tells(state, outcome, own[statements.CONSTRAINTS]):
                        jobs.append(self._stored(own))
                        size += payload_bytes or 0
                if len(jobs) == most < limit:
                    return jobs, None
                is_full = len(jobs) == limit or size >= _FIND_BYTES or seen >= MAX_JOBS_SEEN
                if is_full or self._clock.monotonic() >= until:
                    return jobs, place
        return jobs, None

    @trusted
    def find_due(self, wanted: Wanted, after: int | None, limit: int) -> tuple[list[StoredJob], int | None]:
        place: tuple[Any, ...] = (0.0, -1, 0)
        if after is not None:  # if that one is gone, so are those before it: they came due
            place = self._db.execute(statements.PLACE_DUE, (after,)).fetchone() or place
        until = self._clock.monotonic() + _FIND_S
        jobs: list[StoredJob] = []
        seen = size = 0
        with closing(self._db.execute(statements.FOUND_DUE, (*place, MAX_JOBS_SEEN))) as looked_at:
            for seen, (*own, payload_bytes) in enumerate(looked_at, 1):
                job = self._stored(own)
                if wanted.fits(job):
                    jobs.append(job)
                    size += payload_bytes or 0
                is_full = len(jobs) == limit or size >= _FIND_BYTES or seen == MAX_JOBS_SEEN
                if is_full or self._clock.monotonic() >= until:
                    return jobs, job.row.seq
        return jobs, None

    def _look_at(
        self, wanted: Wanted, after: int, before: int, step: int, *, newest_first: bool
    ) -> Generator[tuple[int, Sequence[Any] | None], None, None]:
        """Yields the jobs that may be meant, each with its sequence number. After each step of so many jobs, meant or
        not, it yields None with the last of their numbers. Whoever iterates can stop at any of them, and go on
        there."""
        source, among, seq, own = "jobs", "jobs", "seq", ""
        if wanted.kept == StoredState.FAILED:
            source, among, seq = "failed CROSS JOIN jobs ON seq = job", "failed", "job"
        elif wanted.kept in statements.RARE:
            source = among = "jobs INDEXED BY jobs_rare"
            own = f"AND {statements.IS_RARE} AND state = {wanted.kept:d} "
        order = f"ORDER BY {seq} {'DESC' if newest_first else 'ASC'}"
        last_of_step = f"SELECT {seq} FROM {among} WHERE {seq} > ? AND {seq} < ? {own}{order} LIMIT 1 OFFSET ?"
        condition, bindings = self._condition(wanted)
        meant = f"SELECT {statements.FOUND} FROM {source} WHERE {seq} > ? AND {seq} < ? {own}{condition} {order}"
        while True:
            last = self._value(last_of_step, after, before, step - 1)
            low = after if last is None or not newest_first else last - 1
            high = before if last is None or newest_first else last + 1
            cursor = self._db.execute(meant, (low, high, *bindings))
            try:
                for fields in cursor:
                    yield int(fields[0]), fields
            finally:
                cursor.close(True)
            if last is None:
                return
            yield last, None
            after, before = (after, last) if newest_first else (last, before)

    def _condition(self, wanted: Wanted) -> tuple[str, list[object]]:
        condition = "" if wanted.kept is None else f"AND state = {wanted.kept:d} "
        bindings: list[object] = []
        if wanted.task is not None or wanted.queue is not None:
            specs = [
                number
                for number, spec in self._spec_of_number.items()
                if wanted.task in (None, spec.task) and wanted.queue in (None, spec.queue)
            ]
            condition += "AND spec IN (SELECT value FROM json_each(?)) "
            bindings.append(str(specs))
        if wanted.search.attempts:
            condition += "AND attempts >= ? "
            bindings.append(wanted.search.attempts)
        for sign, at in ((">=", wanted.search.since), ("<", wanted.search.until)):
            if at is not None:
                condition += f"AND id {sign} ? "
                bindings.append(first_id_at(at))
        if wanted.search.text:  # the rest has nothing in which it might be
            condition += f"AND (state <> {StoredState.SUCCEEDED:d} OR terms IS NOT NULL) "
        if wanted.before is not None:
            condition += "AND (finished_at < ? OR finished_at IS NULL AND id < ?) "
            bindings += [wanted.before, first_id_at(wanted.before)]
        return condition, bindings

    @trusted
    def counts(self, kept: StoredState) -> dict[str, int]:
        if kept == StoredState.WAITING:  # by the edges: an index of these jobs would cost all others a little
            waiting: list[Any] = self._db.execute(statements.COUNT_WAITING).fetchall() if self.has_waiting else []
            return dict(waiting)
        if kept == StoredState.SCHEDULED:  # by the partitions, which stand in the index of these jobs
            scheduled: list[Any] = self._db.execute(statements.COUNT_SCHEDULED).fetchall()
            return dict(scheduled)
        found: Counter[str] = Counter()
        for number, jobs in self._db.execute("SELECT spec, count(*) FROM jobs WHERE state = ? GROUP BY spec", (kept,)):
            found[self._spec_of_number[int(number)].queue] += int(jobs)
        return dict(found)
