"""The start of a broker: limits of jobs that wait go on where its predecessor was killed. No fleet: no process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.core import Core
from taskq.model import JobRow, Spec, Terms, new_job_ids
from taskq.recovery import recover
from taskq.store import Store
from taskq.store.sqlite import SQLiteStore

WALL = 1e9


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        yield store


def submitted(store: Store, spec: Spec, count: int, terms: Terms | None = None) -> list[JobRow]:
    """Jobs that a client has handed in."""
    rows = store.submit(spec, list(new_job_ids(count)), [b"payload"] * count, [terms] * count)
    store.commit()
    return rows


def recovered(store: Store, running: list[tuple[bytes, int]], wall: float = WALL) -> Core:
    """The core of a new broker, with consumers."""
    core = Core()
    recover(store, core, running, wall)  # type: ignore[arg-type]
    for key in (1, 2):
        core.joined(key, 0.0)
    return core


def sent(store: Store, core: Core, wall: float = WALL) -> list[bytes]:
    """The jobs that go to consumers now."""
    for load in core.loads():
        core.loaded(load.band, *store.lease(*load))
    return [row.id for batch in core.dispatch(0.0, wall) for row in batch.rows]


def test_a_rate_counts_on_for_jobs_that_wait(store: SQLiteStore) -> None:
    submitted(store, Spec("t", rate=(2, 10.0)), 5)
    first = recovered(store, [])
    assert len(sent(store, first)) == 2
    store.keep_rates(first.bands.changed_rates())
    store.commit()
    core = recovered(store, [], WALL + 5.0)
    assert sent(store, core, WALL + 5.0) == []
    core.bands.open_due(WALL + 10.2)
    assert len(sent(store, core, WALL + 10.2)) == 2


def test_the_order_of_a_key_counts_on_for_one_that_crashed_into_another_queue(store: SQLiteStore) -> None:
    """It waits in another queue, and what is younger waits for it in the first one."""
    spec = Spec("t", "a", crash_queue="z", backoff_s=(0.0,))
    crashed, younger = submitted(store, spec, 2, Terms(order_key="key"))
    for restarts in range(3):
        running = [] if restarts else [(crashed.id, 1)]
        core = recovered(store, running)
        core.bands.pause("z", True)
        assert sent(store, core) == [], "it is its turn, and its queue is paused"
        core.bands.pause("z", False)
        assert sent(store, core) == [crashed.id] != [younger.id]
