"""What can be read of the journal: jobs, their attempts and items, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from taskq.engines.embedded.journal import statements
from taskq.engines.embedded.journal.database import Database, trusted
from taskq.engines.embedded.journal.store import Wanted
from taskq.model.job import JobRow, first_id_at
from taskq.model.limits import MAX_JOBS_SEEN, MIB
from taskq.model.stored import StoredJob, StoredState

#: `find` stops at payloads and outcomes of this size together, also of those in which it looked for a text.
_FIND_BYTES = 4 * MIB


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
        source, seq = (
            ("failed CROSS JOIN jobs ON seq = job", "job") if wanted.kept == StoredState.FAILED else ("jobs", "seq")
        )
        order = f"ORDER BY {seq} {'DESC' if newest_first else 'ASC'}"
        reach = f"FROM {source} WHERE {seq} > ? AND {seq} < ?"
        sql = f"SELECT {seq} {reach.replace(source, source.split()[0])} {order} LIMIT 1 OFFSET {MAX_JOBS_SEEN - 1}"
        last_seen = self._value(sql, after, before)
        if last_seen is not None:
            after, before = (last_seen - 1, before) if newest_first else (after, last_seen + 1)
        condition, bindings = self._condition(wanted)
        jobs: list[StoredJob] = []
        size = 0
        cursor = self._db.execute(f"SELECT {statements.FOUND} {reach} {condition} {order}", (after, before, *bindings))
        for *fields, payload_bytes in cursor:
            state, outcome = fields[-3:-1]
            size += len(outcome or b"")
            if not wanted.search.text or wanted.tells(state, outcome, fields[statements.CONSTRAINTS]):
                jobs.append(self._stored(fields))
                size += payload_bytes or 0
            if len(jobs) == limit or size >= _FIND_BYTES:
                cursor.close(True)
                return jobs, int(fields[0])
        return jobs, last_seen

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
