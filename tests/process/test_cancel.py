"""Running jobs are cancelled: softly, then hard, and whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apps import jobs
from fleet import Fleet, Gate, running, starts, use, wait_until

from taskq import Job, JobCancelled, JobState
from taskq.client.transport import operations


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory of the test's own fleet."""
    use(jobs.q, tmp_path / "queue")
    return tmp_path / "queue"


def check_cancelled(job: Job[None], attempts: int = 1) -> None:
    """It ended as cancelled, and waiters hear so."""
    info = job.info()
    assert (info.state, info.attempts) == (JobState.CANCELLED, attempts)
    assert info.error is not None
    assert info.error.message == "cancelled while it ran"
    with pytest.raises(JobCancelled):
        job.result(timeout=5)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_running_job_is_told_to_stop(home: Path, tmp_path: Path, threads: int) -> None:
    """It sees JobTimeout, cleans up, and its process goes on; it is not run again, though it has retries."""
    path = tmp_path / "starts"
    with running(Fleet(home, consumers=1, threads=threads)) as fleet:
        job = jobs.spin_until_told.enqueue(str(path))
        starts(path, 1)
        pid = fleet.consumer_pids()[0]
        assert job.cancel()
        check_cancelled(job)
        assert [start.label for start in starts(path)] == ["spins", "cleaned"]
        assert jobs.add.enqueue(1, 2).result(timeout=10) == 3
        assert fleet.consumer_pids() == [pid]
        assert fleet.count("job.cancelling", job_id=job.id) == fleet.count("job.cancelled", job_id=job.id) == 1
        fleet.wait_for_totals(cancelled=1)
        assert job.cancel(), "asking again says so"


def test_one_that_does_not_listen_is_killed(home: Path, tmp_path: Path) -> None:
    """In the middle of C code; it is cancelled, no crash is charged, and those behind it run."""
    path = tmp_path / "starts"
    with running(Fleet(home, consumers=1)) as fleet:
        job = jobs.block_in_c.enqueue(str(path))
        starts(path, 1)
        behind = jobs.add.enqueue(1, 2)
        assert job.cancel()
        check_cancelled(job)
        assert job.info().crashes == 0
        assert behind.result(timeout=10) == 3
        fleet.wait_for_totals(crashed=0)


def test_one_that_ends_first_is_not_cancelled(home: Path, tmp_path: Path, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    with running(Fleet(home, consumers=1)):
        job = jobs.hold.enqueue(gate.path, str(tmp_path / "starts"))
        starts(tmp_path / "starts", 1)
        assert not job.cancel(running=False)
        gate.open()
        job.result(timeout=10)
        assert not job.cancel()


def test_cancelled_for_good_though_the_broker_dies(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cancels has an answer only when it is over: a new broker that runs the job again is asked again."""
    monkeypatch.setattr(operations, "CANCEL_AGAIN_S", 1.0)
    path = tmp_path / "starts"
    with running(Fleet(home, consumers=1)) as fleet, ThreadPoolExecutor(1) as pool:
        job = jobs.block_in_c.enqueue(str(path))
        starts(path, 1)
        answer = pool.submit(job.cancel)
        fleet.wait_for("job.cancelling", job_id=job.id)
        fleet.kill(fleet.broker_pid)
        assert answer.result(timeout=30)
        assert job.state() is JobState.CANCELLED


def test_cancel_in_asyncio(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "starts"

    async def main() -> None:
        job = await jobs.spin_until_told.aenqueue(str(path))
        await asyncio.to_thread(starts, path, 1)
        assert await job.acancel()
        with pytest.raises(JobCancelled):
            await job

    with running(Fleet(home, consumers=1)):
        asyncio.run(asyncio.wait_for(main(), 60))


def test_neighbours_in_threads_go_on(home: Path, tmp_path: Path, make_gate: Callable[[], Gate]) -> None:
    gate = make_gate()
    path = tmp_path / "starts"
    with running(Fleet(home, consumers=1, threads=4)) as fleet:
        held = [jobs.hold.enqueue(gate.path, str(path)) for _ in range(2)]
        unwanted = jobs.spin_until_told.enqueue(str(path))
        wait_until(lambda: len(starts(path)) == 3, "all run")
        assert unwanted.cancel()
        gate.open()
        for job in held:
            job.result(timeout=10)
            assert job.info().attempts == 1
        fleet.wait_for_totals(succeeded=2)
