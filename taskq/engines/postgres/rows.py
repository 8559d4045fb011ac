"""Jobs as the database returns them, and what of them is cached: the specs, by number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgpack

from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.job import JobRow
from taskq.model.spec import Spec
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Rows
from taskq.protocol.postgres.submitting import read_constraints
from taskq.system.clock import Clock


class LeasedJob(NamedTuple):
    """A job that this fleet has leased.

    Attributes:
        row: the job.
        losses: how often a fleet was lost that had it.
        cancel: whether somebody wants it cancelled: 1 unless it runs, 2 even if it runs.
    """

    row: JobRow
    losses: int
    cancel: int


def told_row(job_id: bytes, fields: bytes, packed_constraints: bytes | None) -> JobRow:
    """A job that has ended before it was started, as the log tells of it."""
    return JobRow(0, bytes(job_id), read_spec(bytes(fields)), b"", constraints=read_constraints(packed_constraints))


class Specs:
    """The specs that are known, by number. They never change."""

    def __init__(self, clock: Clock) -> None:
        """
        Args:
            clock: of this machine, by which its fleet is told the times of jobs.
        """
        self._by_number: dict[int, Spec] = {}
        self._clock = clock

    def unknown(self, rows: Iterable[Sequence[Any]]) -> list[int]:
        """The numbers among jobs whose specs have to be read."""
        return list({row[2] for row in rows} - self._by_number.keys())

    def learn(self, rows: Rows) -> None:
        """Takes specs that were read."""
        for number, fields in rows:
            self._by_number[number] = read_spec(fields)

    def job(self, columns: Sequence[Any]) -> LeasedJob:
        """Makes a job of its columns, which have just been read; see `statements._COLUMNS`. Times come as seconds from
        now, so that it does not matter whether the clocks of the database and of this machine agree."""
        seq, job_id, spec, attempts, crashes, snoozes, losses, cancel = columns[:8]
        expires_s, ready_s, packed, payload, checkpoint = columns[8:13]
        constraints = None if packed is None else Constraints.from_wire(msgpack.unpackb(packed))
        if expires_s is not None:  # the clock of the client does not count
            constraints = replace(constraints or NO_CONSTRAINTS, expires_at=self._clock.time() + expires_s)
        row = JobRow(seq, job_id, self._by_number[spec], payload or b"", attempts, crashes, constraints)
        if snoozes:
            row.snoozes = snoozes
        if checkpoint is not None:
            row.checkpoint = checkpoint
        if ready_s is not None:
            row.ready_at = self._clock.time() + ready_s
        return LeasedJob(row, losses, cancel)
