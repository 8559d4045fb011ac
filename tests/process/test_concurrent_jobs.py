"""What `current_job` offers, middleware and limits, where several jobs run in a process (`--threads N`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from apps import concurrent_jobs
from fleet import APPS, Fleet, Gate, running, use, wait_until

from taskq import JobFailed, Progress

APP = f"{APPS / 'concurrent_jobs.py'}:q"
_PATHS = {"PYTHONPATH": f"{APPS.parent}:{APPS.parents[2]}"}


@pytest.fixture(scope="module")
def fleet_of_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for all tests of this file."""
    home = tmp_path_factory.mktemp("concurrent") / "queue"
    with running(Fleet(home, APP, environment=_PATHS, consumers=1, threads=8)) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_file: Fleet) -> Fleet:
    use(concurrent_jobs.q, fleet_of_file.home)
    return fleet_of_file


@pytest.mark.parametrize("task", [concurrent_jobs.keeps, concurrent_jobs.keeps_async], ids=lambda task: str(task.name))
def test_each_job_has_its_own_checkpoint_and_deadline(fleet: Fleet, task: Any) -> None:
    """Many side by side: none finds what another kept."""
    for number, job in enumerate(task.enqueue_many([(number,) for number in range(50)])):
        *told, left_s = job.result(timeout=30)
        assert told == [number, 2, True]
        assert 50 < left_s <= 60


@pytest.mark.parametrize("task", [concurrent_jobs.keeps, concurrent_jobs.keeps_async], ids=lambda task: str(task.name))
def test_middleware_is_around_each_job(fleet: Fleet, task: Any) -> None:
    """It sees what the job raises, and knows the job."""
    job = task.enqueue(1)
    job.result(timeout=10)
    fleet.wait_for("job.log", message="around", job_id=job.id, ended_by="nothing")
    events = fleet.events("job.log", message="around", job_id=job.id)
    assert Counter((event["attempt"], event["ended_by"], event["same"]) for event in events) == {
        (1, "Retry", True): 1,
        (2, "nothing", True): 1,
    }


@pytest.mark.parametrize("task", [concurrent_jobs.sends, concurrent_jobs.sends_async], ids=lambda task: str(task.name))
def test_a_timeout_never_cuts_a_message(fleet: Fleet, task: Any) -> None:
    """It comes behind it, once: what the job does to clean up is not interrupted; no process is killed."""
    before = fleet.consumer_pids()
    for _ in range(2):
        job = task.enqueue()
        assert job.result(timeout=30) == [2, "cleaned up"]
        assert fleet.wait_for("job.log", message="kept", job_id=job.id)["count"] > 1
        assert fleet.wait_for("job.retrying", job_id=job.id)["error"].startswith("TimedOut")
    assert fleet.consumer_pids() == before
    assert fleet.events("consumer.confused") == []


def test_progress_of_one_of_many(fleet: Fleet, gate: Gate) -> None:
    job = concurrent_jobs.half_way.enqueue(gate.path)
    wait_until(lambda: job.info().progress == Progress(1, 2, "half"), "the progress of the job")
    gate.open()
    job.result(timeout=10)
    assert job.info().progress is None


def test_progress_of_each_of_many(fleet: Fleet, gate: Gate) -> None:
    parts = concurrent_jobs.part.enqueue_many([(number, gate.path) for number in range(5)])
    for number, job in enumerate(parts):
        told = Progress(number, 10, f"part {number}")
        wait_until(lambda job=job, told=told: job.info().progress == told, "the progress of the job")
    assert {info.id: info.progress and info.progress.done for info in concurrent_jobs.q.jobs(state="running")} == {
        job.id: number for number, job in enumerate(parts)
    }
    gate.open()
    for job in parts:
        job.result(timeout=10)


@pytest.mark.parametrize(
    "task", [concurrent_jobs.computes, concurrent_jobs.takes_memory], ids=lambda task: str(task.name)
)
def test_limits_that_are_measured_by_process_are_refused(fleet: Fleet, task: Any) -> None:
    job = task.enqueue()
    with pytest.raises(JobFailed, match="needs a fleet without --threads"):
        job.result(timeout=10)
    assert job.info().attempts == 1, "to run it again could not help"
