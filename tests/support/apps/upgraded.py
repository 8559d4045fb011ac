"""The tasks of the jobs in tests/engines/data, which fleets of older builds have left behind."""

from __future__ import annotations

from taskq import TaskQ

q = TaskQ("upgraded", url="/proc/nonexistent" if __name__ == "apps.upgraded" else None)


def same(*args: object) -> list[object]:
    return list(args)


for name in ("add", "boom", "dies", "flaky", "later", "limited", "ordered", "unique", "child", "counts"):
    q.task(name=name)(same)
