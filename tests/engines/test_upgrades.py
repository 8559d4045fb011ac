"""Journals that older builds of taskq have left behind: real files, of a fleet of each version that did a little work.

Each has three jobs that succeeded, two that failed (one by a crash), one that waits for its retry, two in a paused or
unserved queue, and one that was cancelled; from version 2 on also limits, keys, a schedule, a job after another, and a
generator.
"""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest

from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import Wanted
from taskq.model.attempt import read_outcome
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import StoredState

DATA = Path(__file__).parent / "data"
VERSIONS = (1, 2, 3)
#: As they stand in the file, in the order of their submission.
FIRST_STATES = [10, 10, 10, 11, 11, 1, 0, 0, 12]
LATER_STATES = [*FIRST_STATES, 0, 0, 0, 0, 0, 1, 2, 10]
LATE = 4e9


def unpacked(version: int, home: Path) -> Path:
    """The journal of a version, in a directory of its own."""
    path = home / "journal.db"
    path.write_bytes(gzip.decompress((DATA / f"journal_{version}.db.gz").read_bytes()))
    return path


def all_jobs(store: SQLiteStore) -> list[tuple[str, StoredState, int]]:
    """Each job's task, state and attempts, in order."""
    jobs, _ = store.find(Wanted(), 0, 1 << 62, 100, newest_first=False)
    return [(job.row.spec.task, job.kept, job.row.attempts) for job in jobs]


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_lost_by_an_upgrade(version: int, tmp_path: Path) -> None:
    """Jobs have their order, states, attempts and outcomes; totals are what they were; also when it is opened again."""
    path = unpacked(version, tmp_path)
    states = FIRST_STATES if version == 1 else LATER_STATES
    totals = {"enqueued": len(states), "succeeded": states.count(10), "failed": 2, "retried": 1, "crashed": 1}
    for _ in range(2):
        with closing(SQLiteStore(path)) as store:
            assert store.findings == []
            jobs = all_jobs(store)
            assert [kept for _, kept, _ in jobs] == states
            assert [task for task, _, _ in jobs][:7] == ["add"] * 3 + ["boom", "dies", "flaky", "later"]
            assert [attempts for _, _, attempts in jobs][:7] == [1, 1, 1, 1, 1, 1, 0]
            assert store.totals.as_dict() == {**totals, "cancelled": 1, "expired": 0}
            failed, _ = store.find(Wanted(StoredState.FAILED), 0, 1 << 62, 10, newest_first=False)
            errors = [read_outcome(job.outcome or b"").error for job in failed]
            assert [error and error.type for error in errors] == ["ValueError", "Crashed"]
            assert [job.row.payload for job in failed] == [b"", b""], "they are not read with a list"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_upgraded_journal_goes_on(version: int, tmp_path: Path) -> None:
    """Its jobs come due, are run, retried by hand and pruned; new ones stand behind them."""
    path = unpacked(version, tmp_path)
    with closing(SQLiteStore(path)) as store:
        rows = [row for partition, *_ in store.waiting() for row in store.lease(partition, 0, 100, 1 << 20)[0]]
        due = store.lease_due(LATE, 10)
        assert "flaky" in {row.spec.task for row in due}
        failed, _ = store.find(Wanted(StoredState.FAILED), 0, 1 << 62, 10, newest_first=False)
        again = store.requeue([job for job in map(store.read, [job.row.id for job in failed]) if job], 1e9)
        [new] = store.submit(Spec("new", "mail"), list(new_job_ids(1)), [b"payload"])
        assert new.seq > again[-1].seq > max(row.seq for row in rows)
        for row in (*rows, *due, *again, new):
            row.attempts += 1
        store.settle([(row, StoredState.SUCCEEDED, b"\x94\xc0\xc0\xc0\xc0") for row in (*rows, *due, *again)], [], LATE)
        store.commit()
        assert store.totals.succeeded == {1: 8, 2: 15, 3: 15}[version]
        removed = 0
        while more := store.prune(LATE + 1, 0, 100):
            removed += more
            store.commit()
        assert removed > 8
    with closing(SQLiteStore(path)) as store:
        assert store.totals.succeeded == {1: 8, 2: 15, 3: 15}[version]
        assert store.totals.enqueued == (10 if version == 1 else 18)
        assert [task for task, kept, _ in all_jobs(store) if kept == StoredState.QUEUED] == ["new"]


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_what_came_with_version_2_is_upgraded(version: int, tmp_path: Path) -> None:
    """Pauses, schedules, unique keys, attempts, items, and jobs that wait for others."""
    with closing(SQLiteStore(unpacked(version, tmp_path))) as store:
        assert store.paused() == {"later"}
        assert [row.schedule.name for row in store.schedules()] == ["nightly"]
        jobs = [store.read(job.row.id) for job in store.find(Wanted(), 0, 1 << 62, 100, newest_first=False)[0]]
        stored = {job.row.spec.task: job for job in jobs if job is not None}
        [(number, outcome)] = store.attempts(stored["flaky"].row)
        error = read_outcome(outcome).error
        assert number == 1
        assert error is not None
        assert error.type == "KeyError"
        assert "/orders/" in error.traceback
        assert len(store.items(stored["counts"].row.seq, 0, 10, 1_000)) == 3
        assert stored["limited"].row.spec.concurrency == 1
        constraints = stored["unique"].row.constraints
        assert constraints is not None
        assert constraints.unique is not None
        assert store.with_keys([constraints.unique.key])[constraints.unique.key].row.id == stored["unique"].row.id
        assert store.has_waiting
        [parent] = store.parents(stored["child"].row.seq, 10)
        assert store.would_release([parent])
