"""What is kept of keys (`limit_by=`, `ordered_by=`) that came and went: nothing, in memory and in the journal."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest

from taskq import Settings, TaskQ, testing
from taskq.engines.embedded.journal import partition_numbers
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.testing.fleet import InProcessFleet

pytestmark = pytest.mark.not_on_postgres("the memory and the journal of a broker")

#: Comes and goes in one round.
KEYS = 200
#: This many keys may be remembered.
KEPT_KEYS = 100

q = TaskQ("keys")


@q.task(concurrency=1, limit_by=["key"])
def limited(key: str) -> None: ...


@q.task(rate="1/5s", limit_by=["key"])
def rated(key: str) -> None: ...


@q.task(ordered_by=["key"], retries=1, backoff=[10.0])
def ordered(key: str) -> None:
    if key.endswith("7"):
        raise ValueError(key)


@q.task(ordered_by=["account"], concurrency=1, limit_by=["key"])
def both(key: str, account: str) -> None: ...


@pytest.fixture(params=["memory", "sqlite"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessFleet]:
    """The broker's parts, without processes, with the journal of `taskq.testing` and with that of a real fleet."""
    monkeypatch.setattr(partition_numbers, "KEPT_KEYS", KEPT_KEYS)
    if request.param == "sqlite":
        monkeypatch.setattr(
            "taskq.testing.fleet.MemoryStore", lambda: SQLiteStore(tmp_path / "journal.sqlite", "memory")
        )
    with testing.queue(q, settings=Settings(consumers=1, keep_results=100)) as jobs:
        yield jobs._fleet


def round_of_keys(fleet: InProcessFleet, number: int) -> None:
    """New keys, each of a job or two; some are retried, scheduled, cancelled before they start, or fail."""
    names = [f"{number}-{key}" for key in range(KEYS)]
    limited.enqueue_many((name,) for name in names)
    rated.enqueue_many((name,) for name in names)
    ordered.enqueue_many((name,) for name in names)
    both.enqueue_many((name, f"account-{name}") for name in names)
    limited.options(delay=3).enqueue_many((name,) for name in names[:100])
    for job in ordered.options(delay=5).enqueue_many((name,) for name in names[:20]):
        job.cancel()
    q.pause("default")
    for job in limited.enqueue_many((name,) for name in names[-20:]):
        job.cancel()
    q.resume("default")
    drain(fleet)
    q.purge(state="failed")


def drain(fleet: InProcessFleet) -> None:
    """Runs all jobs, and lets time pass until none of them counts any more."""
    while fleet.run_next() is not None or fleet.next_moment(with_schedules=False) is not None:
        moment = fleet.next_moment(with_schedules=False)
        if moment is not None:
            fleet.clock.move_to(max(moment, fleet.clock.time()))
    fleet.clock.advance(60.0)
    for _ in range(20):
        fleet._committer.prune(fleet.clock.monotonic(), 1e9, 100)
        fleet._commit()
    fleet.arrivals.clear()
    fleet.raised.clear()


def kept_objects(roots: Iterable[object]) -> Counter[str]:
    """All that can be reached from some objects, by type; not by way of code."""
    seen: dict[int, object] = {}
    found: list[Any] = list(roots)
    while found:
        one = found.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType | BuiltinFunctionType | MethodType):
            continue
        seen[id(one)] = one
        found += gc.get_referents(one)
    return Counter(type(one).__name__ for one in seen.values())


def kept_rows(fleet: InProcessFleet) -> dict[str, int]:
    """The rows of each table of the journal; none, if it is in memory: its objects are counted with all others. Counts
    by minutes are left out: how many minutes the test takes is not about keys."""
    if not isinstance(fleet._store, SQLiteStore):
        return {}
    db = fleet._store._db
    tables = [
        name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name <> 'counts'")
    ]
    return {name: next(iter(db.execute(f"SELECT count(*) FROM {name}")))[0] for name in tables}


def test_keys_that_went_leave_nothing(fleet: InProcessFleet) -> None:
    """What is kept after seven rounds is what was kept after five: until then what is bounded (kept results, counts by
    minutes) still fills up."""
    roots = fleet._core, fleet._committer, fleet._store, fleet._scheduler, fleet._engine
    for number in range(5):
        round_of_keys(fleet, number)
    objects, rows = kept_objects(roots), kept_rows(fleet)
    for number in (5, 6):
        round_of_keys(fleet, number)
    more = kept_objects(roots) - objects
    assert more.total() < 100, more
    assert kept_rows(fleet) == rows
    if rows:
        assert rows["bands"] <= KEPT_KEYS + 20
        assert rows["rates"] == 0
