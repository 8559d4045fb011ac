"""However much is to be done at once, the embedded engine does it in portions, so that others are served in between: a
turn changes a bounded number of rows. No time is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from scripted_fleet import ScriptedClock, ScriptedFleet, SQLitePlace

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.job import JobState
from taskq.model.spec import Spec

JOBS = 3_000
MOST_ROWS = 1_500
ONE_TRY = Spec("t", retries=0)
IDLE = Spec("idle", "idle")


class Counted(ScriptedFleet):
    """Counts the rows that each turn changes."""

    most_rows = 0

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            database = cast(SQLiteStore, self.engine.store)._db
            before = database.total_changes()
            super().turn()
            self.most_rows = max(self.most_rows, database.total_changes() - before)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Counted]:
    with closing(Counted(SQLitePlace(tmp_path / "home"), ScriptedClock())) as fleet:
        fleet.client.pause(["idle"], True, "me")
        yield fleet


def end_one(fleet: Counted, has_failed: bool) -> None:
    """Runs the one job that may run."""
    consumer = fleet.consumer()
    assert consumer.begin() is not None
    if has_failed:
        consumer.fail()
    else:
        consumer.succeed()
    consumer.leave()


def expire(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE, expires_at=fleet.clock.time() + 50.0)
    return lambda: fleet.let_pass(51.0)


def come_due(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE, due_at=fleet.clock.time() + 50.0)
    return lambda: fleet.let_pass(51.0)


def are_released(fleet: Counted) -> Callable[[], object]:
    [parent] = fleet.add(1)
    fleet.add(JOBS, IDLE, after=((parent, False),))
    return lambda: end_one(fleet, has_failed=False)


def are_cancelled_with_another(fleet: Counted) -> Callable[[], object]:
    [parent] = fleet.add(1, ONE_TRY)
    fleet.add(JOBS, IDLE, after=((parent, False),))
    return lambda: end_one(fleet, has_failed=True)


def are_purged(fleet: Counted) -> Callable[[], object]:
    fleet.add(JOBS, IDLE)
    return lambda: fleet.client.purge_all(JobState.QUEUED, None, None, None)


@pytest.mark.parametrize("prepare", [expire, come_due, are_released, are_cancelled_with_another, are_purged])
def test_a_turn_changes_a_bounded_number_of_rows(
    fleet: Counted, prepare: Callable[[Counted], Callable[[], object]]
) -> None:
    go = prepare(fleet)
    fleet.most_rows = 0
    go()
    fleet.turn(30)
    left = {name: counts for name, counts in fleet.client.status().queues.items() if counts.scheduled or counts.waiting}
    assert left == {}, "all of it is done in the end"
    assert JOBS / 100 < fleet.most_rows <= MOST_ROWS
