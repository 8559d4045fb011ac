"""Large arguments and results, in files of their own: they arrive, they go with their jobs, and no crash loses one that a
job needs or leaves one for ever."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apps import large
from fleet import APPS, Fleet, hurried, running, use, wait_until

import taskq
from taskq import JobState, testing
from taskq.engines.payloads import SUBMITTED_WITHIN_S
from taskq.model.errors import JobFailed, JobNotFound, PayloadTooLarge, QueueFull
from taskq.model.limits import MAX_PAYLOAD_BYTES

pytestmark = pytest.mark.not_on_postgres("large payloads are files beside a journal")

APP = f"{APPS / 'large.py'}:q"
VALUES = np.arange(large.COUNT, dtype="f8")
TEXT = "x" * 1_000_000


@pytest.fixture(scope="module")
def fleet_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("large") / "queue"
    with running(Fleet(home, APP, consumers=2)) as fleet:
        yield fleet.wait_ready()


@pytest.fixture
def fleet(fleet_of_module: Fleet) -> Fleet:
    """A fleet that the tests of this file share."""
    use(large.q, fleet_of_module.home)
    return fleet_of_module


@pytest.fixture
def own_home(tmp_path: Path) -> Path:
    """A directory for one test."""
    home = tmp_path / "queue"
    use(large.q, home)
    return home


def files(home: Path, of: Any = None) -> list[str]:
    """The files of payloads: all, or those of a job."""
    folder = home / "payloads"
    return sorted(name for name in os.listdir(folder) if of is None or name.startswith(of.id))


def make_old(home: Path) -> None:
    """Makes all files look as if they had been written long ago."""
    long_ago = time.time() - 2 * SUBMITTED_WITHIN_S
    for name in files(home):
        os.utime(home / "payloads" / name, (long_ago, long_ago))


def wait_until_gone(home: Path, job: Any = None) -> None:
    """Waits until a job, or none at all, has a file any more."""
    wait_until(lambda: not files(home, job), "the files to go")


def files_that_stay(home: Path) -> list[str]:
    """The files of payloads, when those of all jobs that have ended are gone: they are removed together."""
    job = large.length.enqueue(TEXT)
    job.wait(timeout=20)
    wait_until_gone(home, job)
    return files(home)


# -- they arrive


def test_an_array_arrives_in_place_and_may_be_changed(fleet: Fleet) -> None:
    job = large.change.enqueue(VALUES)
    result = job.result(timeout=20)
    assert result[0] == 7.0
    assert np.array_equal(result[1:], VALUES[1:])
    assert VALUES[0] == 0.0
    result[1] = 8.0  # a copy of its own
    assert job.result()[1] == 1.0
    assert isinstance(result.base, mmap.mmap), "it lies in the file"


@pytest.mark.parametrize("value", [TEXT, bytes(300_000), [list(range(100))] * 2_000, {"a": VALUES, "b": (VALUES, 1)}])
@pytest.mark.parametrize("task", [large.echo, large.echo_async])
def test_large_values_go_there_and_back(fleet: Fleet, task: Any, value: Any) -> None:
    result = task.enqueue(value).result(timeout=20)
    if isinstance(value, dict):
        assert np.array_equal(result["a"], VALUES)
        assert np.array_equal(result["b"][0], VALUES)
    else:
        assert result == value


def test_asyncio(fleet: Fleet) -> None:
    async def there_and_back() -> Any:
        jobs = [await large.total_async.aenqueue(VALUES + number) for number in range(3)]
        return [await job for job in jobs]

    assert asyncio.run(there_and_back()) == [np.sum(VALUES + number) for number in range(3)]


def test_memory_that_is_used_again_for_the_next_arguments_is_copied(fleet: Fleet) -> None:
    buffer = np.empty(large.COUNT)

    def batches() -> Iterator[tuple[Any]]:
        for number in range(20):
            buffer[:] = number
            yield (buffer,)

    expected = [float(number * large.COUNT) for number in range(20)]
    assert [job.result(timeout=20) for job in large.total.enqueue_many(batches())] == expected
    assert list(large.total.map(batch for (batch,) in batches())) == expected


def test_a_result_becomes_an_argument(fleet: Fleet) -> None:
    chain = taskq.chain(large.echo.step(VALUES), large.echo.step(), large.total.step())
    assert chain.enqueue().result(timeout=20) == np.sum(VALUES)
    first = large.echo.enqueue(VALUES)
    assert large.total.enqueue(first).result(timeout=20) == np.sum(VALUES)


def test_what_a_job_enqueues_for_its_success_is_as_it_was_then(fleet: Fleet) -> None:
    before = {job.id for job in large.q.jobs(task="total")}
    large.enqueue_others.enqueue(3).wait(timeout=20)
    new = wait_until(lambda: {job.id for job in large.q.jobs(task="total")} - before, "the others")
    assert {large.q.job(job_id).result(timeout=20) for job_id in new} == {0.0, 1.0 * large.COUNT, 2.0 * large.COUNT}


def test_what_is_above_the_limit_is_refused(fleet: Fleet) -> None:
    before = files_that_stay(fleet.home)
    with pytest.raises(PayloadTooLarge, match=r"total take 1,073,74\d,\d+ bytes, the limit is 1,073,741,824"):
        large.total.enqueue(np.zeros(MAX_PAYLOAD_BYTES, "u1"))
    assert files(fleet.home) == before


def test_large_arguments_are_not_shown(fleet: Fleet) -> None:
    job = large.fail_unless.enqueue("/nowhere", VALUES)
    job.wait(timeout=20)
    arguments = job.info(arguments=True).arguments
    assert arguments is not None
    assert arguments.left_out.startswith("they take 400,")
    assert arguments.size_bytes is not None
    assert arguments.size_bytes > 400_000


# -- they go with their jobs


def test_files_go_with_what_needs_them(fleet: Fleet) -> None:
    job = large.echo.enqueue(TEXT)
    assert job.result(timeout=20) == TEXT
    wait_until(lambda: len(files(fleet.home, job)) == 1, "the arguments to go")
    [result] = files(fleet.home, job)
    assert "-result-" in result
    status = os.stat(fleet.home / "payloads" / result)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size > 1_000_000
    assert os.stat(fleet.home / "payloads").st_mode & 0o777 == 0o700
    job.purge()
    wait_until_gone(fleet.home, job)


def test_a_failed_job_keeps_its_arguments_until_it_is_purged(fleet: Fleet, tmp_path: Path) -> None:
    job = large.fail_unless.enqueue(str(tmp_path / "go"), VALUES)
    with pytest.raises(JobFailed):
        job.result(timeout=20)
    (tmp_path / "go").touch()
    job.retry()
    assert job.result(timeout=20) == np.sum(VALUES)
    wait_until_gone(fleet.home, job)
    job = large.fail_unless.enqueue("/nowhere", VALUES)
    job.wait(timeout=20)
    assert len(files(fleet.home, job)) == 1
    job.purge()
    wait_until_gone(fleet.home, job)


def test_a_cancelled_job_needs_no_arguments(fleet: Fleet) -> None:
    job = large.total.options(delay=1000).enqueue(VALUES)
    assert len(files(fleet.home, job)) == 1
    assert job.cancel()
    wait_until_gone(fleet.home, job)


def test_what_is_refused_or_left_out_leaves_nothing(fleet: Fleet) -> None:
    before = files_that_stay(fleet.home)
    waiting = large.length.options(delay=1000, unique="large").enqueue(TEXT)
    assert large.length.options(delay=1000, unique="large").enqueue(TEXT) == waiting
    assert len(files(fleet.home)) == len(before) + 1
    waiting.cancel()
    wait_until(lambda: files(fleet.home) == before, "the file to go")
    large.q.pause("tiny")
    tiny = large.length.options(queue="tiny", max_queued=1)
    job = tiny.enqueue("small")
    with pytest.raises(QueueFull):
        tiny.enqueue(TEXT)
    with pytest.raises(QueueFull):
        tiny.enqueue_many([(TEXT,)] * 3)
    with pytest.raises(QueueFull):
        list(tiny.map([TEXT]))
    assert files(fleet.home) == before
    job.cancel()


def test_results_go_when_jobs_are_pruned(own_home: Path) -> None:
    with running(Fleet(own_home, APP, keep_results=2)) as fleet:
        fleet.wait_ready()
        jobs = large.echo.enqueue_many([(TEXT,)] * 6)
        wait_until(lambda: fleet.totals()["succeeded"] == len(jobs), "the jobs to end")
        wait_until(lambda: len(files(own_home)) == 2, "the results of pruned jobs to go")
        with pytest.raises(JobNotFound):
            jobs[0].result(timeout=20)
        assert jobs[-1].result(timeout=20) == TEXT


@pytest.mark.parametrize(("durability", "syncs"), [("power", 2), ("os", 0)])
def test_files_are_synced_as_the_fleet_promises(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, durability: str, syncs: int
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    with running(Fleet(own_home, APP, durability=durability)) as fleet:
        fleet.wait_ready()
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or fsync(descriptor))
        assert large.total.enqueue(VALUES).result(timeout=20) == np.sum(VALUES)
        assert len(synced) == syncs, "the file, and the folder"
        assert list(large.total.map([VALUES])) == [np.sum(VALUES)]
        assert len(synced) == 2 * syncs
        assert large.syncs_files.enqueue().result(timeout=20) is bool(syncs)
    job = large.total.enqueue(VALUES)  # spooled: nobody knows for which fleet
    assert len(synced) > 2 * syncs + 2
    with running(Fleet(own_home, APP, durability=durability)):
        assert job.result(timeout=20) == np.sum(VALUES)


# -- without a fleet


def test_spooled_jobs_keep_their_arguments_however_long_it_takes(own_home: Path) -> None:
    jobs = [large.total.enqueue(VALUES), *large.total.enqueue_many([(VALUES,)] * 3)]
    assert len(files(own_home)) == 4
    make_old(own_home)
    with running(Fleet(own_home, APP)):
        assert [job.result(timeout=20) for job in jobs] == [np.sum(VALUES)] * 4
        wait_until_gone(own_home)


def test_a_stopped_fleet_is_asked_for_results(own_home: Path) -> None:
    with running(Fleet(own_home, APP)):
        job = large.echo.enqueue(VALUES)
        job.wait(timeout=20)
        failed = large.fail_unless.enqueue("/nowhere", VALUES)
        failed.wait(timeout=20)
    assert large.q.job(job.id).info().state is JobState.SUCCEEDED
    failed.purge()
    assert not files(own_home, failed)
    with running(Fleet(own_home, APP)):
        assert np.array_equal(large.q.job(job.id).result(timeout=20), VALUES)


def test_in_tests_without_a_fleet() -> None:
    with testing.queue(large.q) as jobs:
        assert np.array_equal(large.echo.enqueue(VALUES).result(), VALUES)
        large.enqueue_others.enqueue(2)
        jobs.drain()
        assert [job.arguments["values"][0] for job in jobs.enqueued(large.total)] == [0.0, 1.0]
        jobs.assert_enqueued(large.echo, VALUES)
        assert list(large.total.map([VALUES] * 3)) == [np.sum(VALUES)] * 3


# -- crashes


def client(home: Path, moment: str) -> subprocess.Popen[str]:
    """A client that gets a signal when it has written its arguments, before it hands in the job."""
    command = [sys.executable, str(APPS / "large.py"), str(home), moment]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_client_left_goes_when_it_is_old(own_home: Path) -> None:
    with running(Fleet(own_home, APP)) as fleet:
        fleet.wait_ready()
        assert client(own_home, "SIGKILL").wait() == -signal.SIGKILL
        assert len(files(own_home)) == 1
        assert fleet.totals()["enqueued"] == 0
    with running(Fleet(own_home, APP)) as fleet:  # it begins with a sweep
        fleet.wait_ready()
        assert large.total.enqueue(VALUES).result(timeout=20) == np.sum(VALUES)
        wait_until(lambda: len(files(own_home)) == 1, "all to go but what its client might still hand in")
    make_old(own_home)
    with running(Fleet(own_home, APP)):
        wait_until_gone(own_home)


def test_a_client_that_was_stopped_for_too_long_hears_that_its_file_is_gone(own_home: Path) -> None:
    hurry = hurried({"taskq.engines.embedded.engine": {"_SWEEP_EVERY_S": 0.5}})
    with running(Fleet(own_home, APP, environment=hurry)) as fleet:
        fleet.wait_ready()
        slow = client(own_home, "SIGSTOP")
        wait_until(lambda: files(own_home), "the file")
        os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
        make_old(own_home)
        wait_until_gone(own_home)
        slow.send_signal(signal.SIGCONT)
        told, _ = slow.communicate(timeout=120)
        assert told.startswith("EnqueueError: the file with the arguments of job ")
        assert "enqueue it again" in told
        assert fleet.totals()["enqueued"] == 0
        slow = client(own_home, "SIGSTOP")
        os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
        slow.send_signal(signal.SIGCONT)
        told, _ = slow.communicate(timeout=120)
        assert large.q.job(told.strip()).result(timeout=20) == large.COUNT


def test_a_client_that_was_stopped_for_too_long_spools_its_job_with_its_arguments(own_home: Path) -> None:
    slow = client(own_home, "SIGSTOP")
    wait_until(lambda: (own_home / "payloads").exists() and files(own_home), "the file")
    os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
    make_old(own_home)
    with running(Fleet(own_home, APP)):
        wait_until_gone(own_home)
    for _ in range(6):  # it stops after each time that it writes the file
        slow.send_signal(signal.SIGCONT)
        if (
            wait_until(lambda: slow.poll() is not None or is_stopped(slow.pid), "the client")
            and slow.poll() is not None
        ):
            break
    told, _ = slow.communicate(timeout=120)
    with running(Fleet(own_home, APP)):
        assert large.q.job(told.strip()).result(timeout=20) == large.COUNT


def is_stopped(pid: int) -> bool:
    """Whether a child is stopped."""
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG) is not None


def test_a_consumer_that_is_killed_after_it_wrote_its_result(own_home: Path, tmp_path: Path) -> None:
    with running(Fleet(own_home, APP, consumers=1)) as fleet:
        fleet.wait_ready()
        job = large.kill_once_after_the_result.enqueue(str(tmp_path / "killed"))
        assert np.array_equal(job.result(timeout=20), np.full(large.COUNT, 2))
        wait_until(lambda: len(files(own_home, job)) == 2, "the arguments to go")
    with running(Fleet(own_home, APP)):
        wait_until(lambda: len(files(own_home, job)) == 1, "the result of the dead to go")
        assert np.array_equal(large.q.job(job.id).result(timeout=20), np.full(large.COUNT, 2))


@pytest.mark.parametrize("moment", ["kill-before-commit", "kill-after-commit"])
def test_a_broker_that_is_killed_at_the_commit_of_the_job(own_home: Path, tmp_path: Path, moment: str) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    environment = {"TASKQ_TEST_FAULTS": str(faults), "PYTHONPATH": str(APPS / "faults")}
    with running(Fleet(own_home, APP, environment=environment)) as fleet:
        fleet.wait_ready()
        (faults / moment).touch()
        job = large.total.enqueue(VALUES)
        assert not (faults / moment).exists()
        assert job.result(timeout=30) == np.sum(VALUES)
        wait_until_gone(own_home)


def test_a_broker_that_is_killed_at_the_commit_of_the_result(own_home: Path, tmp_path: Path) -> None:
    faults, go = tmp_path / "faults", tmp_path / "go"
    faults.mkdir()
    os.mkfifo(go)
    environment = {"TASKQ_TEST_FAULTS": str(faults), "PYTHONPATH": str(APPS / "faults")}
    with running(Fleet(own_home, APP, environment=environment)) as fleet:
        fleet.wait_ready()
        job = large.echo.enqueue(VALUES)
        (faults / "kill-before-commit").touch()
        large.echo.enqueue(VALUES).wait(timeout=30)
        assert np.array_equal(job.result(timeout=30), VALUES)
    with running(Fleet(own_home, APP)):
        wait_until(lambda: len(files(own_home)) == 2, "all but the two results to go")


# -- full disks


def test_a_full_disk_of_a_client_is_told_and_nothing_is_left(fleet: Fleet) -> None:
    before = files_that_stay(fleet.home)
    code = (
        "import resource, sys; from apps import large; from pathlib import Path; from taskq.system.directory import Directory\n"
        "large.q.use_directory(Directory(Path(sys.argv[1])))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))\n"
        "try: large.length.enqueue('x' * 2_000_000)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(APPS.parent)}
    command = [sys.executable, "-c", code, str(fleet.home)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.startswith("StoreFull a payload of 2,000,0")
    assert str(fleet.home / "payloads") in told
    assert files(fleet.home) == before


def test_a_job_whose_result_does_not_fit_on_the_disk_has_failed(fleet: Fleet) -> None:
    before = files_that_stay(fleet.home)
    with pytest.raises(JobFailed, match=r"StoreFull: a payload of 2,097,\d\d\d bytes"):
        large.result_on_a_full_disk.enqueue().result(timeout=20)
    assert files(fleet.home) == before
