"""What is counted of jobs as their ends are committed, and when the counts are stored."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq import Retry, TaskQ
from taskq.engines.embedded.counting import STORE_EVERY_S, Counting
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Disk
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.attempt import pack_failure, pack_success, started_at_of
from taskq.model.effects import Effects, Event
from taskq.model.info.counts import Counts
from taskq.model.info.histogram import WORST_ERROR
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import Rescheduled, StoredState
from taskq.testing import queue

MAIL, OTHER = Spec("app.work", "mail"), Spec("app.other", "images")
WALL = 1.78e9


def rows_of(spec: Spec, number: int, waited_s: float = 0.0) -> list[JobRow]:
    """Jobs that were enqueued some time ago."""
    ids = new_job_ids(number, now_ns=int((WALL - waited_s) * 1e9))
    return [JobRow(seq, job_id, spec, b"") for seq, job_id in enumerate(ids, 1)]


def successes(rows: list[JobRow], duration_s: float = 0.002, started_at: float = WALL) -> Effects:
    """What is decided when jobs succeed."""
    outcome = pack_success(started_at, duration_s, None)
    ended = [(row, StoredState.SUCCEEDED, outcome) for row in rows]
    return Effects(ended=ended, done=[(row, 1, int(duration_s * 1e6)) for row in rows])


def total(counting: Counting, spec: Spec = MAIL) -> Counts:
    """All that is counted of a task."""
    counts = Counts()
    for task, name, pair in counting.counts:
        if (task, name) == (spec.task, spec.queue):
            for _, packed in pair.packed():
                counts.merge(Counts.unpack(packed))
    return counts


@given(st.floats(0, 1e11), st.booleans())
def test_the_start_is_read_without_the_rest(started_at: float, is_success: bool) -> None:
    error = JobError("ValueError", "why")
    outcome = pack_success(started_at, 1.0, b"x") if is_success else pack_failure(started_at, 1.0, error)
    assert started_at_of(outcome) == started_at


@pytest.mark.parametrize(
    "outcome", [b"", b"\x94", b"junk", pack_failure(None, None, JobError("Cancelled", "")), b"\x94\xcb" + b"\xff" * 8]
)
def test_a_start_that_is_not_there_is_none(outcome: bytes) -> None:
    assert started_at_of(outcome) is None


def test_each_task_and_queue_is_counted() -> None:
    """Jobs of several tasks in one commit, in any order."""
    counting = Counting(MemoryStore())
    mail, other = rows_of(MAIL, 3, waited_s=5.0), rows_of(OTHER, 1)
    counting.enqueued([mail[0], *other, *mail[1:]], WALL)
    counting.happened(successes([mail[0], *other, *mail[1:]]), WALL)
    counts = total(counting)
    assert (counts.enqueued, counts.started, counts.succeeded) == (3, 3, 3)
    assert total(counting, OTHER).succeeded == 1
    assert counts.run.percentile_us(0.5) == pytest.approx(2_000, rel=WORST_ERROR)
    assert counts.wait.percentile_us(0.5) == pytest.approx(5e6, rel=WORST_ERROR)


def test_successes_count_the_same_one_by_one_and_together() -> None:
    rows = rows_of(MAIL, 5) + rows_of(OTHER, 2)
    together, one_by_one = Counting(MemoryStore(Disk())), Counting(MemoryStore(Disk()))
    together.happened(successes(rows), WALL)
    for row in rows:
        one_by_one.happened(successes([row]), WALL)
    for spec in (MAIL, OTHER):
        assert total(together, spec) == total(one_by_one, spec)
    assert total(together).succeeded == 5


def test_the_wait_of_many_is_sampled() -> None:
    """A sample stands for all; how long they ran is exact."""
    counting = Counting(MemoryStore())
    counting.happened(successes(rows_of(MAIL, 1_000, waited_s=1.0)), WALL)
    counts = total(counting)
    assert counts.run.seen == 1_000
    assert 1_000 <= counts.wait.seen <= 1_100
    assert counts.wait.percentile_us(0.99) == pytest.approx(1e6, rel=WORST_ERROR)


def test_a_delay_does_not_count_as_waiting() -> None:
    """Time passes from when the job could have started."""
    counting = Counting(MemoryStore())
    [row] = rows_of(MAIL, 1, waited_s=3_600.0)
    row.ready_at = WALL - 0.5
    counting.happened(successes([row]), WALL)
    assert total(counting).wait.percentile_us(0.5) == pytest.approx(0.5e6, rel=WORST_ERROR)


def test_what_did_not_succeed_is_counted_by_its_end() -> None:
    """Failures, timeouts, crashes, retries; what never started has neither waited nor run."""
    counting = Counting(MemoryStore())
    rows = rows_of(MAIL, 5)
    late = pack_failure(WALL, 2.0, JobError("TimedOut", "too long"))
    crash = pack_failure(WALL, 1.0, JobError("Crashed", "killed"))
    never = pack_failure(None, None, JobError("Expired", "too late"))
    counting.happened(
        Effects(
            ended=[
                (rows[0], StoredState.FAILED, late),
                (rows[1], StoredState.EXPIRED, never),
                (rows[2], StoredState.CANCELLED, never),
            ],
            rescheduled=[
                Rescheduled(rows[3], WALL + 9, late, rows[3].attempts),
                Rescheduled(rows[4], None, crash, rows[4].attempts),
            ],
            notes=[Event("job.retrying", {"row": rows[3]}), Event("job.crashed", {"row": rows[4], "runs_again": True})],
        ),
        WALL,
    )
    numbers = total(counting).as_dict()
    assert {name: value for name, value in numbers.items() if isinstance(value, int) and value} == {
        "started": 3,
        "failed": 1,
        "expired": 1,
        "cancelled": 1,
        "retried": 1,
        "crashed": 1,
        "timed_out": 2,
    }
    assert numbers["run_s"]["longest"] == 2.0


def test_a_crash_that_ends_a_job_is_not_followed_by_another_attempt() -> None:
    """It counts as a crash, but not among the attempts after which the job ran again."""
    counting = Counting(MemoryStore())
    [row] = rows_of(MAIL, 1)
    crash = pack_failure(WALL, 1.0, JobError("Crashed", "killed"))
    again, last = (Event("job.crashed", {"row": row, "runs_again": runs_again}) for runs_again in (True, False))
    counting.happened(Effects(rescheduled=[Rescheduled(row, None, crash, 1)], notes=[again]), WALL)
    counting.happened(Effects(ended=[(row, StoredState.FAILED, crash)], notes=[last]), WALL)
    counts = total(counting)
    assert (counts.started, counts.crashed, counts.failed, counts.again) == (2, 2, 1, 1)


def test_counts_are_stored_now_and_then() -> None:
    """With a commit, at most once in a while; all of them at the end; what a commit loses comes with the next."""
    disk = Disk()
    store = MemoryStore(disk)
    counting = Counting(store)

    def commit(now: float) -> int:
        counting.enqueued(rows_of(MAIL, 1), WALL)
        counting.store(now)
        store.commit()
        counting.stored(now)
        return total(Counting(MemoryStore(disk))).enqueued

    assert [commit(now) for now in (10.0, 10.5, 10.9)] == [1, 1, 1]
    assert commit(10.0 + STORE_EVERY_S) == 4
    counting.enqueued(rows_of(MAIL, 1), WALL)
    counting.store(20.0)
    store.rollback()
    counting.not_stored()
    assert commit(20.0) == 6
    counting.enqueued(rows_of(MAIL, 1), WALL)
    counting.store_all()
    store.commit()
    assert total(Counting(MemoryStore(disk))).enqueued == 7


def test_counts_survive_in_a_file(tmp_path: Path) -> None:
    """Minute by minute."""
    for minute in range(3):
        with closing(SQLiteStore(tmp_path / "journal.db")) as store:
            counting = Counting(store)
            counting.enqueued(rows_of(MAIL, 1), WALL + 60 * minute)
            counting.store_all()
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        [(_, _, pair)] = Counting(store).counts
        assert [Counts.unpack(packed).enqueued for _, packed in pair.packed()] == [0, 1, 1, 1]


q = TaskQ("counted")


@q.task(retries=1, backoff=[5])
def fickle(x: int) -> int:
    """Fails the first time."""
    if x < 0:
        raise Retry(after=5)
    return x


def test_a_fleet_counts_what_its_jobs_do() -> None:
    """From the client's call to the counts, by the code that fleets run; delays are not waits."""
    with queue(q) as jobs:
        fickle.enqueue_many([(1,), (2,)])
        fickle.options(delay=60).enqueue(3)
        failing = fickle.enqueue(-1)
        for seconds in (0, 5, 55):
            jobs.clock.advance(seconds)
            jobs.drain()
        counts = total(jobs._fleet._engine.committer.counting, Spec(fickle.name))
        assert failing.state() == "failed"
    assert (counts.enqueued, counts.started, counts.succeeded) == (4, 5, 3)
    assert (counts.failed, counts.retried) == (1, 1)
    assert counts.wait.longest_us < 1e6
