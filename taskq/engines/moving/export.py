"""Reads a whole journal, for a move to another engine. Nothing in it is changed.

Large payloads, which have files of their own, come with their contents: the other engine may have no such files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import apsw
import msgpack

from taskq.engines.moving.portable import PortableAttempt, PortableEdge, PortableJob, PortableSchedule, Tally
from taskq.model.attempt import machine_at, read_outcome, started_at_of, with_result
from taskq.model.constraints import Constraints
from taskq.model.errors import JournalError
from taskq.model.info.counts import CountsRow
from taskq.model.partition import partition_of
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol.payloads.filed import CorruptPayload
from taskq.protocol.payloads.files import PayloadFiles, PayloadLost
from taskq.system.directory import Directory

_JOBS = """
    SELECT seq, id, spec, state, attempts, crashes, snoozes, due_at, expires_at, finished_at, terms, payload,
        checkpoint, outcome, unique_key,
        CASE state WHEN 2 THEN (SELECT count(*) FROM edges WHERE child = jobs.seq AND is_open = 1) ELSE 0 END
    FROM jobs ORDER BY seq"""
_TALLY = """
    SELECT coalesce(sum(state = 0), 0), coalesce(sum(state = 1), 0), coalesce(sum(state = 1 AND attempts > 0), 0),
        coalesce(sum(state = 2), 0), coalesce(sum(state = 10), 0), coalesce(sum(state = 11), 0),
        coalesce(sum(state = 12), 0), coalesce(sum(state = 13), 0),
        coalesce(sum(state = 10 AND outcome IS NOT NULL), 0),
        (SELECT count(*) FROM attempts), (SELECT count(*) FROM items), (SELECT count(*) FROM edges),
        (SELECT count(*) FROM jobs WHERE unique_key IS NOT NULL), (SELECT count(*) FROM schedules),
        (SELECT count(*) FROM paused)
    FROM jobs"""


class Export:
    """The contents of a journal that no fleet has open; the caller holds the lock."""

    def __init__(self, directory: Directory) -> None:
        """
        Raises:
            JournalError: the journal cannot be read.
        """
        self._path = directory.journal
        self._files = PayloadFiles(directory)
        try:
            self._db = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READWRITE)
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._specs = {
                number: Spec.from_wire(msgpack.unpackb(fields))
                for number, fields in self._db.execute("SELECT spec, fields FROM specs")
            }
        except apsw.Error as error:
            raise JournalError(f"{self._path}: {type(error).__name__}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @property
    def id(self) -> str:
        """What tells this journal from all others: the text of its marker."""
        return self._path.with_name("queue.id").read_text(encoding="ascii").strip()

    def tally(self) -> Tally:
        """Counts what there is."""
        [row] = self._rows(_TALLY)
        return Tally(*row)

    def to_be_run(self) -> list[tuple[Spec, bool]]:
        """The specs of the jobs that have not ended, or have failed and may be retried; and whether some of their jobs
        have order keys."""
        found: dict[Spec, bool] = {}
        sql = "SELECT DISTINCT spec, terms FROM jobs WHERE state < 10 OR state = 11"
        for number, packed in self._rows(sql):
            constraints = None if packed is None else Constraints.from_wire(msgpack.unpackb(packed))
            has_order = constraints is not None and constraints.order_key is not None
            spec = self._specs[number]
            found[spec] = found.get(spec, False) or has_order
        return list(found.items())

    # -- rows

    def jobs(self) -> Iterator[PortableJob]:
        """All jobs, in the order of submission."""
        for row in self._rows(_JOBS):
            (
                _seq, job_id, number, kept, attempts, crashes, snoozes, due_at, expires_at, finished_at, terms, payload,
                checkpoint, outcome, unique_key, pending,
            ) = row  # fmt: skip
            spec, state = self._specs[number], StoredState(kept)
            own = None if terms is None else Constraints.from_wire(msgpack.unpackb(terms))
            is_due = state in (StoredState.SCHEDULED, StoredState.WAITING)
            yield PortableJob(
                job_id, spec, partition_of(spec, own), state, attempts, crashes, snoozes, pending,
                due_at if is_due else None, due_at if state is StoredState.QUEUED else None,
                None if state >= FIRST_FINAL else expires_at, finished_at, terms,
                None if payload is None else self._content(job_id, spec, payload), checkpoint,
                self._with_content(job_id, spec, state, outcome), unique_key,
            )  # fmt: skip

    def _with_content(self, job_id: bytes, spec: Spec, state: StoredState, outcome: bytes | None) -> bytes | None:
        if outcome is None or state is not StoredState.SUCCEEDED:
            return outcome
        result = read_outcome(outcome).result
        if result is None:
            return outcome
        content = self._content(job_id, spec, bytes(result))
        return outcome if content == result else with_result(outcome, content)

    def _content(self, job_id: bytes, spec: Spec, payload: bytes) -> bytes:
        try:
            return bytes(self._files.read(job_id, payload))
        except (PayloadLost, CorruptPayload) as error:
            raise JournalError(
                f"job {job_id.hex()} ({spec.task}) cannot be moved: {error}; remove it with `taskq purge`"
            ) from error

    def edges(self) -> Iterator[PortableEdge]:
        """Which jobs come after others."""
        sql = "SELECT parent, jobs.id, goes_on, is_open FROM edges JOIN jobs ON jobs.seq = edges.child"
        return (
            PortableEdge(parent, child, bool(goes_on), bool(is_open))
            for parent, child, goes_on, is_open in self._rows(sql)
        )

    def attempts(self) -> Iterator[PortableAttempt]:
        """The attempts that others have followed."""
        machines: list[Any] = list(self._rows("SELECT since, name FROM machines ORDER BY since"))
        for job_id, number, outcome in self._rows(
            "SELECT jobs.id, number, attempts.outcome FROM attempts JOIN jobs ON jobs.seq = attempts.job"
        ):
            yield PortableAttempt(job_id, number, outcome, machine_at(machines, started_at_of(outcome)))

    def items(self) -> Iterator[tuple[bytes, int, bytes]]:
        """What generators have yielded: the job, the position, the item."""
        return self._rows("SELECT jobs.id, position, item FROM items JOIN jobs ON jobs.seq = items.job")

    def schedules(self) -> list[PortableSchedule]:
        """All schedules."""
        sql = "SELECT name, fields, next_at, app, is_paused, last_at, last_id FROM schedules ORDER BY name"
        return [
            PortableSchedule(name, fields, next_at, app, bool(is_paused), last_at, last_id)
            for name, fields, next_at, app, is_paused, last_at, last_id in self._rows(sql)
        ]

    def paused(self) -> list[str]:
        """The queues that are paused."""
        return [queue for (queue,) in self._rows("SELECT queue FROM paused")]

    def counts(self) -> list[CountsRow]:
        """What has happened to the jobs of each task and queue."""
        rows = self._rows("SELECT task, queue, minute, packed FROM counts ORDER BY 1, 2, 3")
        return [CountsRow(*row) for row in rows]

    def _rows(self, sql: str) -> Iterator[Any]:
        try:
            yield from self._db.execute(sql)
        except apsw.Error as error:
            raise JournalError(f"{self._path}: {type(error).__name__}: {error}") from error
