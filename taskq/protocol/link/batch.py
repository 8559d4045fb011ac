"""A batch of jobs, as it travels to a consumer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from taskq.model.job import JobRow
from taskq.model.spec import Spec
from taskq.protocol.ops import CHECKPOINT, CPU_TIMEOUT, DROP_RESULT, FOLLOWS, MEMORY_LIMIT, TIMEOUT


def jobs_to_send(rows: Iterable[JobRow]) -> list[tuple[Any, ...]]:
    """The jobs of a batch as they travel; see `taskq.protocol.ops.Extra`."""
    jobs: list[tuple[Any, ...]] = []
    spec, extra = None, dict[str, Any]()
    for row in rows:
        if row.spec is not spec:
            spec = row.spec
            extra = {} if spec.keep_result and not spec.is_watched else _extra(spec)
        own = extra
        if row.carried is not None and row.carried.checkpoint is not None:
            own = {**own, CHECKPOINT: row.carried.checkpoint}
        if row.constraints is not None and row.constraints.follows:
            own = {**own, FOLLOWS: True}
        if own:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload, own))
        else:
            jobs.append((row.id, spec.task, row.attempts + 1, row.payload))
    return jobs


def _extra(spec: Spec) -> dict[str, Any]:
    limits = {TIMEOUT: spec.timeout_s, CPU_TIMEOUT: spec.cpu_timeout_s, MEMORY_LIMIT: spec.memory_limit_bytes}
    extra: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    return extra if spec.keep_result else {**extra, DROP_RESULT: True}
