"""Tasks whose keys come and go. See apps/jobs.py."""

from __future__ import annotations

from taskq import TaskQ

q = TaskQ("keyed")


@q.task(concurrency=1, limit_by=["key"])
def limited(key: str) -> None: ...


@q.task(ordered_by=["key"])
def ordered(key: str) -> None: ...


@q.task(rate="1/10s", limit_by=["key"])
def rated(key: str) -> None: ...
