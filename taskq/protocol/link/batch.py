"""A batch of jobs, as it travels to a consumer.

batch := [number of the first, jobs]    the others are numbered in a row; without jobs it is a question: alive?
job   := [id, task, attempt, payload]   or with its StartOptions behind that
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from taskq.model.effects import Batch
from taskq.model.job import JobRow
from taskq.model.limits import MAX_FRAME_BYTES
from taskq.model.spec import Spec
from taskq.protocol.ops import NO_START_OPTIONS, StartOptions


def pack_batch(batch: Batch) -> bytes:
    """Makes the message that carries a batch."""
    packed: bytes = msgpack.packb((batch.first, jobs_to_send(batch.rows)))
    return packed


def read_batch(message: bytes) -> tuple[int, list[list[Any]]]:
    """Reads the number of the first job of a batch, and the jobs: each as `RunningJob` takes it, behind its number and
    the time of its start. It comes from the broker, and is not checked."""
    number, jobs = msgpack.unpackb(message, max_bin_len=MAX_FRAME_BYTES)
    return number, jobs


def jobs_to_send(rows: Iterable[JobRow]) -> list[tuple[Any, ...]]:
    """The jobs of a batch as they travel: (id, task, attempt, payload), and if the job has any, its StartOptions."""
    jobs: list[tuple[Any, ...]] = []
    spec, of_spec = None, NO_START_OPTIONS
    for row in rows:
        if row.spec is not spec:
            spec = row.spec
            of_spec = NO_START_OPTIONS if spec.keep_result and not spec.is_watched else _start_options(spec)
        options = of_spec
        if row.checkpoint is not None:
            options = {**options, "checkpoint": row.checkpoint}
        if row.constraints is not None:
            if row.constraints.follows:
                options = {**options, "follows": True}
            if row.constraints.meta:
                options = {**options, "meta": dict(row.constraints.meta)}
        if options:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload, options))
        else:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload))
    return jobs


def _start_options(spec: Spec) -> StartOptions:
    options: StartOptions = {}
    if spec.timeout_s is not None:
        options["timeout_s"] = spec.timeout_s
    if spec.cpu_timeout_s is not None:
        options["cpu_timeout_s"] = spec.cpu_timeout_s
    if spec.memory_limit_bytes is not None:
        options["memory_limit_bytes"] = spec.memory_limit_bytes
    if not spec.keep_result:
        options["drop_result"] = True
    return options
