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
from taskq.model.limits import MAX_JOBS_SEEN, MAX_KEPT_ATTEMPT_BYTES, MIB
from taskq.model.stored import StoredJob, StoredState

#: Sequence numbers in a block. Which specs are in one is read when somebody looks there for a task or a queue, which
#: takes 0.13 ms, and kept in memory: a list of a rare task need not look at all jobs, and jobs that come in need write
#: no index for that.
BLOCK_JOBS = 1_024
#: `find` stops at payloads and outcomes of this size together. An outcome that whoever lists jobs has to shorten counts
#: for more than its size: that takes 20 microseconds.
_FIND_BYTES = 1 * MIB
_SHORTENED_BYTES = 16 * 1024
#: It stops when it has looked at this many jobs, which takes about 1.5 ms, and on a slow machine after this time.
_MOST_SEEN = 12 * BLOCK_JOBS
_FIND_S = 0.005
#: What takes longer counts as several jobs: a block that is passed over, and a job to which an index leads.
_PASSED_OVER, _BY_INDEX = 64, 8
#: How many jobs of an index it looks at between two looks at the clock; and how many at first if it looks for a text,
#: since an error, and the arguments before it, may be large.
_STEP_JOBS = 100
_STEP_JOBS_WITH_TEXT = 16
#: If a step takes less than this, the next one has twice as many jobs, and otherwise half as many.
_STEP_S = 0.0003

#: What `find` comes across: the place up to which it has looked, and how many jobs it has looked at since the last one;
#: or a job that is meant, and its place.
_Look = tuple[int, Sequence[Any] | None, int]


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
        with closing(self._look_at(wanted, after, before, newest_first=newest_first)) as looks:
            for place, fields, looked_at in looks:
                seen += looked_at
                if fields is not None:
                    *own, payload_bytes = fields
                    jobs.append(self._stored(own))
                    size += _work_bytes(own[-2], payload_bytes)
                if len(jobs) == most < limit:
                    return jobs, None
                is_full = len(jobs) == limit or size >= _FIND_BYTES or seen >= _MOST_SEEN
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
                    size += _work_bytes(job.outcome, payload_bytes)
                is_full = len(jobs) == limit or size >= _FIND_BYTES or seen == MAX_JOBS_SEEN
                if is_full or self._clock.monotonic() >= until:
                    return jobs, job.row.seq
        return jobs, None

    def _look_at(self, wanted: Wanted, after: int, before: int, *, newest_first: bool) -> Generator[_Look, None, None]:
        """Looks for the jobs that are meant between two sequence numbers. Whoever iterates can stop anywhere, and go on
        from the place that was told last."""
        if wanted.kept == StoredState.FAILED:
            source, among, seq, own = "failed CROSS JOIN jobs ON seq = job", "failed", "job", ""
        elif wanted.kept in statements.RARE:
            source = among = "jobs INDEXED BY jobs_rare"
            seq, own = "seq", f"AND {statements.IS_RARE} AND state = {wanted.kept:d} "
        else:
            yield from self._in_blocks(wanted, after, before, newest_first=newest_first)
            return
        order = f"ORDER BY {seq} {'DESC' if newest_first else 'ASC'}"
        last_of_step = f"SELECT {seq} FROM {among} WHERE {seq} > ? AND {seq} < ? {own}{order} LIMIT 1 OFFSET ?"
        condition, bindings = self._condition(wanted)
        meant = f"SELECT {statements.FOUND} FROM {source} WHERE {seq} > ? AND {seq} < ? {own}{condition} {order}"
        step = _STEP_JOBS_WITH_TEXT if wanted.search.text else _STEP_JOBS
        while True:
            last = self._value(last_of_step, after, before, step - 1)
            low = after if last is None or not newest_first else last - 1
            high = before if last is None or newest_first else last + 1
            yield from self._meant(meant, low, high, bindings)
            if last is None:
                return
            yield last, None, step * _BY_INDEX
            after, before = (after, last) if newest_first else (last, before)

    def _in_blocks(
        self, wanted: Wanted, after: int, before: int, *, newest_first: bool
    ) -> Generator[_Look, None, None]:
        """As `_look_at`, where no index helps."""
        specs = self._specs_of(wanted)
        if specs is not None and not specs:
            return
        order = f"ORDER BY seq {'DESC' if newest_first else 'ASC'}"
        condition, bindings = self._condition(wanted)
        meant = f"SELECT {statements.FOUND} FROM jobs WHERE seq > ? AND seq < ? {condition} {order}"
        next_one = f"SELECT seq FROM jobs WHERE seq > ? AND seq < ? {order} LIMIT 1"  # blocks may be empty
        step = min(_MOST_SEEN, _STEP_JOBS_WITH_TEXT if wanted.search.text else BLOCK_JOBS)
        now = self._clock.monotonic() if wanted.search.text else 0.0
        while (seq := self._value(next_one, after, before)) is not None:
            first = seq // BLOCK_JOBS * BLOCK_JOBS
            low, high = max(after, first - 1), min(before, first + BLOCK_JOBS)
            read = 0 if specs is None or seq // BLOCK_JOBS in self._specs_in else BLOCK_JOBS
            if specs is not None and not self._may_have(seq // BLOCK_JOBS, specs):
                yield (low + 1 if newest_first else high - 1), None, read or _PASSED_OVER
            else:
                low, high = (max(low, seq - step), seq + 1) if newest_first else (seq - 1, min(high, seq + step))
                yield from self._meant(meant, low, high, bindings)
                yield (low + 1 if newest_first else high - 1), None, high - low - 1 + read
                if wanted.search.text:
                    now, last = self._clock.monotonic(), now
                    step = min(BLOCK_JOBS, _MOST_SEEN, step * 2) if now - last < _STEP_S else max(1, step // 2)
            after, before = (after, low + 1) if newest_first else (high - 1, before)

    def _meant(self, sql: str, low: int, high: int, bindings: list[object]) -> Generator[_Look, None, None]:
        cursor = self._db.execute(sql, (low, high, *bindings))
        try:
            for fields in cursor:
                yield int(fields[0]), fields, 0
        finally:
            cursor.close(True)

    def _may_have(self, block: int, specs: list[int]) -> bool:
        """Whether a block may have jobs of these specs. It may have lost the last job of a spec since it was read."""
        known = self._specs_in.get(block)
        if known is None:
            first = block * BLOCK_JOBS
            if self._db.in_transaction or first + BLOCK_JOBS > self._next_seq:
                return True  # what it has may still change
            found: list[Any] = self._db.execute(statements.SPECS_BETWEEN, (first, first + BLOCK_JOBS - 1)).fetchall()
            known = self._specs_in[block] = frozenset(int(number) for (number,) in found)
        return not known.isdisjoint(specs)

    def _gets_spec(self, seq: int, spec: int) -> None:
        """Notes that a job in the journal gets another spec."""
        known = self._specs_in.get(seq // BLOCK_JOBS)
        if known is not None and spec not in known:
            self._specs_in[seq // BLOCK_JOBS] = known | {spec}

    def _specs_of(self, wanted: Wanted) -> list[int] | None:
        """The specs of a task and of a queue, by their numbers; None for all."""
        if wanted.task is None and wanted.queue is None:
            return None
        return [
            number
            for number, spec in self._spec_of_number.items()
            if wanted.task in (None, spec.task) and wanted.queue in (None, spec.queue)
        ]

    def _condition(self, wanted: Wanted) -> tuple[str, list[object]]:
        condition = "" if wanted.kept is None else f"AND state = {wanted.kept:d} "
        bindings: list[object] = []
        specs = self._specs_of(wanted)
        if specs is not None:
            condition += "AND spec IN (SELECT value FROM json_each(?)) "
            bindings.append(str(specs))
        if wanted.search.attempts:
            condition += "AND attempts >= ? "
            bindings.append(wanted.search.attempts)
        for sign, at in ((">=", wanted.search.since), ("<", wanted.search.until)):
            if at is not None:
                condition += f"AND id {sign} ? "
                bindings.append(first_id_at(at))
        if wanted.search.text:  # as Wanted.tells
            condition += f"AND (state <> {StoredState.SUCCEEDED:d} AND instr(outcome, ?) OR instr(terms, ?)) "
            bindings += [wanted.search.text.encode()] * 2
        if wanted.before is not None:
            condition += "AND (finished_at < ? OR finished_at IS NULL AND id < ?) "
            bindings += [wanted.before, first_id_at(wanted.before)]
        return condition, bindings

    @trusted
    def counts(self, kept: StoredState) -> dict[str, int]:
        if kept in (StoredState.WAITING, StoredState.SCHEDULED):
            return self._later.of(kept)
        found: Counter[str] = Counter()
        for number, jobs in self._db.execute("SELECT spec, count(*) FROM jobs WHERE state = ? GROUP BY spec", (kept,)):
            found[self._spec_of_number[int(number)].queue] += int(jobs)
        return dict(found)


def _work_bytes(outcome: bytes | None, payload_bytes: int | None) -> int:
    """What a job that was found counts for."""
    bytes_ = len(outcome or b"")
    return bytes_ + (payload_bytes or 0) + (_SHORTENED_BYTES if bytes_ > MAX_KEPT_ATTEMPT_BYTES else 0)
