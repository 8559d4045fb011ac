"""The start of a broker: the limits of waiting jobs continue from where its predecessor was killed. There is no
process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.broker.core.core import Core
from taskq.engines.embedded.engine import recover
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import Store
from taskq.model.constraints import Constraints
from taskq.model.job import JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.protocol.link.flight_recorder import FlightRecord

NOW = 1_000.0
WALL = 1e9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        yield store


def submitted(store: Store, spec: Spec, count: int, constraints: Constraints | None = None) -> list[JobRow]:
    """Jobs that a client has handed in."""
    rows = store.submit(spec, list(new_job_ids(count)), [b"payload"] * count, [constraints] * count)
    store.commit()
    return rows


def recovered(store: Store, running: list[tuple[bytes, int]], now: float = NOW, wall: float = WALL) -> Core:
    """The core of a new broker, with consumers."""
    core = Core()
    recover(store, core, [FlightRecord(*record) for record in running], now, wall)
    for key in (1, 2):
        core.joined(key, 0.0)
    return core


def sent(store: Store, core: Core, now: float = NOW, wall: float = WALL) -> list[bytes]:
    """The jobs that go to consumers now."""
    for load in core.loads():
        core.loaded(load.partition, *store.lease(*load))
    return [row.id for batch in core.dispatch(now, wall) for row in batch.rows]


@pytest.mark.parametrize("booted", [0.0, NOW - 3.0], ids=["goes on", "begins again"])
def test_a_rate_counts_on_for_jobs_that_wait(store: SQLiteStore, booted: float) -> None:
    """Whatever the monotonic clock says: after a boot of the system it begins again."""
    submitted(store, Spec("t", rate=(2, 10.0)), 5)
    first = recovered(store, [])
    assert len(sent(store, first)) == 2
    store.keep_rates(first.ready.changed_rates(NOW, WALL))
    store.commit()
    now = NOW + 5.0 - booted
    core = recovered(store, [], now, WALL + 5.0)
    assert sent(store, core, now, WALL + 5.0) == []
    core.ready.open_due(now + 5.2)
    assert len(sent(store, core, now + 5.2, WALL + 10.2)) == 2


@pytest.mark.parametrize("set_s", [3_600.0, -3_600.0])
def test_a_rate_does_not_mind_that_the_clock_is_set(store: SQLiteStore, set_s: float) -> None:
    submitted(store, Spec("t", rate=(2, 10.0)), 5)
    core = recovered(store, [])
    assert len(sent(store, core)) == 2
    core.joined(3, NOW)
    core.joined(4, NOW)
    core.ready.open_due(NOW + 4.0)
    assert sent(store, core, NOW + 4.0, WALL + set_s) == []
    assert core.ready.next_opening() == pytest.approx(NOW + 10.0, abs=0.11)
    core.ready.open_due(NOW + 10.2)
    assert len(sent(store, core, NOW + 10.2, WALL + set_s)) == 2


def test_a_rate_after_a_restart_with_a_clock_that_was_set_back(store: SQLiteStore) -> None:
    """Starts that would be yet to come count from the restart on: nothing waits for an hour."""
    submitted(store, Spec("t", rate=(2, 10.0)), 5)
    first = recovered(store, [])
    assert len(sent(store, first)) == 2
    store.keep_rates(first.ready.changed_rates(NOW, WALL))
    store.commit()
    core = recovered(store, [], NOW + 1.0, WALL - 3_600.0)
    assert sent(store, core, NOW + 1.0, WALL - 3_600.0) == []
    core.ready.open_due(NOW + 11.2)
    assert len(sent(store, core, NOW + 11.2, WALL - 3_600.0)) == 2


def test_the_order_of_a_key_counts_on_for_one_that_crashed_into_another_queue(store: SQLiteStore) -> None:
    """It waits in another queue, and what is younger waits for it in the first one."""
    spec = Spec("t", "a", crash_queue="z", backoff_s=(0.0,))
    crashed, younger = submitted(store, spec, 2, Constraints(order_key="key"))
    for restarts in range(3):
        running = [] if restarts else [(crashed.id, 1)]
        core = recovered(store, running)
        core.ready.pause("z", True)
        assert sent(store, core) == [], "it is its turn, and its queue is paused"
        core.ready.pause("z", False)
        assert sent(store, core) == [crashed.id] != [younger.id]
