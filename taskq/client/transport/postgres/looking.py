"""What a client learns about jobs from the tables: about one, and about many in a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from taskq.model.attempt import shortened, without_result
from taskq.model.constraints import Constraints
from taskq.model.errors import JobNotFound
from taskq.model.info.search import ALL_JOBS, JobSearch
from taskq.model.job import JobState, first_id_at
from taskq.model.limits import MAX_KEPT_ATTEMPT_BYTES
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.jobs import JobFields, shown_payload
from taskq.protocol.postgres.arrays import bigints
from taskq.protocol.postgres.beats import RunningJob, read_told
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Step
from taskq.protocol.postgres.submitting import read_constraints

#: The columns of a job, of `jobs` as j, `queue` as q (if it lives), and `specs` as s; see `_Row`.
_FIELDS = """
    uuid_send(j.id), coalesce(q.seq, j.seq), s.fields, coalesce(q.state, j.state), q.lease,
    coalesce(j.id = ANY(b.running), false), coalesce(q.attempts, j.attempts), coalesce(q.crashes, j.crashes),
    extract(epoch FROM q.due_at)::float8, extract(epoch FROM j.finished_at)::float8, {}, j.constraints"""
_COLUMNS = _FIELDS.format("j.outcome")
#: In a list: large results are not read, but the two times before them, if they are there (see `taskq.model.attempt`).
_LISTED = _FIELDS.format(
    f"CASE WHEN j.state <> {StoredState.SUCCEEDED} OR octet_length(j.outcome) < {MAX_KEPT_ATTEMPT_BYTES} "
    r"THEN j.outcome WHEN substring(j.outcome FROM 2 FOR 1) = '\xcb' AND substring(j.outcome FROM 11 FOR 1) = '\xcb' "
    r"THEN '\x94'::bytea || substring(j.outcome FROM 2 FOR 18) || '\xc0c0'::bytea END"
)
_OF_JOB = """
    LEFT JOIN taskq.queue q ON q.seq = j.seq AND j.state = 3
    JOIN taskq.specs s ON s.spec = coalesce(q.spec, j.spec)
    LEFT JOIN taskq.beats b ON b.fleet = q.lease"""
_ONE = f"SELECT {_COLUMNS}, j.payload FROM taskq.jobs j {_OF_JOB} WHERE j.id = encode($1, 'hex')::uuid"
#: Where its last attempt has ended, if that is known.
_HOST = "SELECT host FROM taskq.hosts JOIN taskq.jobs j ON j.settled_by = fleet WHERE j.id = encode($1, 'hex')::uuid"
_PARENTS = "SELECT uuid_send(parent) FROM taskq.edges WHERE child = encode($1, 'hex')::uuid ORDER BY parent LIMIT 100"
_CHILDREN = "SELECT uuid_send(child) FROM taskq.edges WHERE parent = encode($1, 'hex')::uuid ORDER BY child LIMIT 100"
#: What fleets told last.
_BEATS = "SELECT status FROM taskq.beats WHERE fleet = ANY ($1::bigint[]) AND status IS NOT NULL"
_ATTEMPTS = "SELECT number, outcome, host FROM taskq.attempts WHERE id = encode($1, 'hex')::uuid ORDER BY number"

#: Where jobs of a state are found, newest first: the next so many, of which those are returned that fit.
_ALL = f"""
    SELECT {_LISTED} FROM (
        SELECT * FROM taskq.jobs WHERE id < $1 ORDER BY id DESC LIMIT $2) j {_OF_JOB} ORDER BY j.id DESC"""
_FAILED = f"""
    SELECT {_LISTED} FROM (
        SELECT id FROM taskq.failed WHERE id < $1 ORDER BY id DESC LIMIT $2) f
    JOIN taskq.jobs j USING (id) {_OF_JOB} ORDER BY j.id DESC"""
_LIVING = f"""
    SELECT {_LISTED} FROM (
        SELECT id FROM taskq.queue WHERE seq < $1 ORDER BY seq DESC LIMIT $2) f
    JOIN taskq.jobs j USING (id) {_OF_JOB} ORDER BY q.seq DESC"""
#: Scheduled ones are found in the order in which they come due. $1: the seq of the last one before; 0: from the first.
#: If that is not scheduled any more, it was due by now.
_DUE = f"""
    WITH last AS MATERIALIZED (SELECT CASE WHEN $1::bigint = 0 THEN '-infinity' ELSE coalesce(
        (SELECT due_at FROM taskq.queue WHERE seq = $1 AND state = 1), taskq.now_()) END AS at)
    SELECT {_LISTED} FROM (
        SELECT id FROM taskq.queue WHERE state = 1 AND due_at >= (SELECT at FROM last)
            AND (due_at, seq) > ((SELECT at FROM last), $1) ORDER BY due_at, seq LIMIT $2) f
    JOIN taskq.jobs j USING (id) {_OF_JOB} ORDER BY q.due_at, q.seq"""
_RUNNING = f"""
    SELECT {_LISTED} FROM (SELECT unnest(running) AS id FROM taskq.beats) f
    JOIN taskq.jobs j USING (id) {_OF_JOB}
    WHERE j.state = 3 AND q.lease IS NOT NULL AND q.seq < $1 ORDER BY q.seq DESC"""


class Row(NamedTuple):
    """A job as it is read."""

    id: bytes
    seq: int
    spec: Spec
    kept: int
    fleet: int | None  # that has it
    is_running: bool
    attempts: int
    crashes: int
    due_at: float | None
    finished_at: float | None
    outcome: bytes | None
    packed_constraints: bytes | None
    told: RunningJob | None = None  # by that fleet, if it runs; see `_with_told`

    @classmethod
    def of(cls, columns: Sequence[Any]) -> Row:
        """Reads the columns."""
        job_id, seq, fields, kept, fleet, is_running, attempts, crashes, due_at, finished_at, outcome, own = columns
        spec = read_spec(bytes(fields))
        is_running = is_running and fleet is not None
        return cls(bytes(job_id), seq, spec, kept, fleet, is_running, attempts, crashes, due_at, finished_at,
                   outcome, own)  # fmt: skip

    def own_of(self, running: Mapping[bytes, RunningJob]) -> RunningJob | None:
        """What a fleet has told of its present attempt. It may still tell of the one before."""
        told = running.get(self.id)
        return told if told is not None and told.attempt == self.attempts + 1 else None

    @property
    def state(self) -> JobState:
        """Its state, as clients know it."""
        return JobState.RUNNING if self.is_running else StoredState(self.kept).state

    @property
    def constraints(self) -> Constraints | None:
        """What it has besides its spec."""
        return read_constraints(self.packed_constraints)

    def is_before(self, wall: float) -> bool:
        """Whether it ended before a time (seconds since 1970), or was enqueued before it if it waits."""
        return self.id < first_id_at(wall) if self.finished_at is None else self.finished_at < wall

    def fields(self) -> JobFields:
        """The job as `taskq.protocol.jobs` reads it."""
        constraints, told = self.constraints, self.told
        return JobFields(
            self.id,
            self.spec.task,
            self.spec.queue,
            self.state.value,
            self.attempts + self.is_running,
            self.crashes,
            self.due_at,
            None if told is None else told.started_at,
            self.finished_at,
            self.outcome,
            None if told is None else told.progress,
            meta=dict(constraints.meta) if constraints is not None and constraints.meta else None,
        )


def read_one(job_id: bytes, arguments: bool) -> Plan[JobFields]:
    """All about one job. Raises JobNotFound."""
    queries = [Query(sql, (bytes(job_id),)) for sql in (_ONE, _ATTEMPTS, _PARENTS, _CHILDREN, _HOST)]
    found, attempts, parents, children, hosts = yield Step(*queries, commits=True)
    if not found:
        raise JobNotFound.of(job_id)
    *columns, payload = found[0]
    [row] = yield from _with_told([Row.of(columns)])
    fields = row.fields()
    history = [(number, bytes(outcome), host) for number, outcome, host in attempts]
    if row.outcome is not None:
        fields = fields._replace(outcome=without_result(row.outcome))
        is_last_missing = row.finished_at is not None and row.attempts > max((each[0] for each in history), default=0)
        if is_last_missing:
            history.append((row.attempts, shortened(row.outcome), hosts[0][0] if hosts else None))
    after, before = ([bytes(other) for (other,) in others] for others in (parents, children))
    fields = fields._replace(history=history, after=after, before=before)
    return fields._replace(payload=shown_payload(bytes(payload or b""))) if arguments else fields


def _with_told(rows: Sequence[Row]) -> Plan[list[Row]]:
    """Adds to jobs that run what their fleets have told of them."""
    running = dict[bytes, RunningJob]()
    if fleets := {row.fleet for row in rows if row.is_running and row.fleet is not None}:
        [beats] = yield Step(Query(_BEATS, (bigints(list(fleets)),)), commits=True)
        for (told,) in beats:
            running |= read_told(bytes(told)).running
    return [row._replace(told=row.own_of(running)) if row.is_running else row for row in rows]


def read_row(job_id: bytes) -> Plan[Row]:
    """One job. Raises JobNotFound."""
    [found] = yield Step(Query(_ONE, (job_id,)), commits=True)
    if not found:
        raise JobNotFound.of(job_id)
    return Row.of(found[0][:-1])


class Wanted(NamedTuple):
    """Which jobs are meant; None for all.

    Attributes:
        state: their state.
        task, queue: these names.
        search: what else is wanted of them.
    """

    state: JobState | None
    task: str | None = None
    queue: str | None = None
    search: JobSearch = ALL_JOBS

    def fits(self, row: Row) -> bool:
        """Whether a job is meant."""
        search, spec = self.search, row.spec
        if self.state not in (None, row.state) or self.task not in (None, spec.task):
            return False
        if self.queue not in (None, spec.queue) or row.attempts < search.attempts:
            return False
        if search.since is not None and row.id < first_id_at(search.since):
            return False
        if search.until is not None and row.id >= first_id_at(search.until):
            return False
        return not search.text or self._tells(row, search.text.encode())

    @staticmethod
    def _tells(row: Row, part: bytes) -> bool:
        """Whether a job has a text in its error, meta or keys."""
        is_error = row.kept != StoredState.SUCCEEDED and row.outcome is not None
        return (is_error and part in bytes(row.outcome or b"")) or part in bytes(row.packed_constraints or b"")

    @property
    def is_of_living(self) -> bool:
        """Whether only jobs are meant that have not ended."""
        return self.state is not None and not self.state.is_final

    def next_rows(self, place: bytes | int | None, limit: int) -> Query:
        """The statement for the next jobs, newest first; scheduled ones as they come due.

        Args:
            place: the id, or the place in the queue, of the last one before; None for the beginning.
        """
        if self.state == JobState.RUNNING:
            return Query(_RUNNING, (1 << 62 if place is None else place,))
        if self.state == JobState.SCHEDULED:
            return Query(_DUE, (0 if place is None else place, limit))
        if self.is_of_living:
            return Query(_LIVING, (1 << 62 if place is None else place, limit))
        end = _uuid(bytes([255] * 16) if place is None else place)
        return Query(_FAILED if self.state == JobState.FAILED else _ALL, (end, limit))


def _uuid(job_id: bytes | int) -> Any:
    from uuid import UUID

    assert isinstance(job_id, bytes)
    return UUID(bytes=job_id)


def read_portion(wanted: Wanted, place: bytes | int | None, seen: int) -> Plan[tuple[list[Row], bytes | int | None]]:
    """The jobs that are meant among the next ones, in the order of `Wanted.next_rows`; and where to go on, or None for
    the end.

    Args:
        seen: how many to look at.
    """
    [found] = yield Step(wanted.next_rows(place, seen), commits=True)
    rows = [Row.of(columns) for columns in found]
    is_end = len(rows) < seen or wanted.state == JobState.RUNNING
    last = rows[-1] if rows else None
    go_on = None if is_end or last is None else last.seq if wanted.is_of_living else last.id
    return (yield from _with_told([row for row in rows if wanted.fits(row)])), go_on
