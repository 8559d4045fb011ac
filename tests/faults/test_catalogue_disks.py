"""The catalogue of faults: brokers that die around a commit, and disks that are full, read-only or broken. See
test_catalogue.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from apps import jobs
from checks import counted, serves
from fleet import APPS, JOBS, Fleet, Gate, running, starts, use, wait_until

from taskq import BrokerUnavailable, JobNotFound, JobState, StoreFull
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.model.exits import Exit
from taskq.protocol.link.flight_recorder import FlightRecorder, clear_flight_records, read_flight_records
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("the disk under a journal")

Start = Callable[..., Fleet]


def dropping_privileges() -> list[str]:
    """What to put before a command so that permissions hold for it. The user 65534 could not read our Python, if that
    is in the home of root; so a root stays root, without the right to override permissions."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("root may write everywhere, and there is no setpriv to give that up")
    rights = "-dac_override,-dac_read_search"
    return [tool, f"--bounding-set={rights}", f"--inh-caps={rights}"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem, which can be filled: 48 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a filesystem: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills the disk with a file, but leaves this many bytes. Returns the file."""
    path = disk / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while os.write(descriptor, bytes(1 << 20)):
            pass
    os.ftruncate(descriptor, max(0, path.stat().st_size - leave))
    os.close(descriptor)
    return path


# -- the broker dies at a chosen point


class Faults:
    """Makes the broker of a fleet fail at a point; see `apps/faults/sitecustomize.py`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = {"PYTHONPATH": str(APPS / "faults"), "TASKQ_TEST_FAULTS": str(folder)}

    def ask_for(self, name: str) -> Path:
        """The next broker at this point fails."""
        path = self.folder / name
        path.touch()
        return path


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Makes a broker fail at a point."""
    return Faults(tmp_path / "faults")


POINTS = ("kill-before-commit", "kill-after-commit")


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_killed_around_the_commit_of_a_submission(
    start: Start, faults: Faults, tmp_path: Path, point: str
) -> None:
    """The producer sends its job again, and it is one job, whether the first time was written or not."""
    fleet = start(environment=faults.environment).wait_ready()
    wait_until(lambda: fleet.count("fleet.started"), "the fleet")
    path = tmp_path / "starts"
    asked = faults.ask_for(point)
    job = jobs.note.enqueue(str(path), "noted")
    assert job.result(timeout=15) == "noted"
    assert not asked.exists()
    fleet.wait_for("broker.died", signal="SIGKILL")
    assert serves()
    assert counted(path) == {"noted": 1}
    assert fleet.totals()["enqueued"] == 21


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_killed_around_the_commit_of_a_result(
    start: Start, faults: Faults, gate: Gate, tmp_path: Path, point: str
) -> None:
    """A job whose result was committed does not run again, although nobody was told; one whose result was not committed
    does."""
    fleet = start(consumers=1, environment=faults.environment)
    path = tmp_path / "starts"
    job = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(job.result, 15)
        wait_until(lambda: fleet.status() and result.running(), "somebody who waits")
        asked = faults.ask_for(point)
        gate.open()
        assert result.result(20) == "held"
    assert not asked.exists()
    fleet.wait_for("broker.died", signal="SIGKILL")
    runs = 1 if point == "kill-after-commit" else 2
    assert counted(path) == {"held": runs, "held-end": runs}
    assert fleet.totals()["succeeded"] == 1
    assert serves()


def test_a_sync_that_fails_acknowledges_nothing(home: Path, faults: Faults, tmp_path: Path) -> None:
    """A commit that may be lost is not acknowledged: the fleet ends, and the job goes to the spool, once and
    durably."""
    fleet = Fleet(home, environment=faults.environment)
    fleet.expected.add("store.failed")
    fleet.start().wait_ready()
    assert serves()
    broken = faults.ask_for("eio")
    job = jobs.note.enqueue(str(tmp_path / "starts"), "noted")
    assert fleet.wait_for_end() == Exit.JOURNAL
    assert "the disk is broken" in fleet.wait_for("store.failed")["error"]
    assert jobs.q.client.is_spooled(bytes.fromhex(job.id))
    broken.unlink()
    again = Fleet(home)
    again.expected.add("store.failed")  # the log still tells of it
    with running(again):
        assert job.result(timeout=15) == "noted"
        assert serves()
    assert counted(tmp_path / "starts") == {"noted": 1}


# -- disks and directories


def test_a_full_disk_and_back(disk: Path, gate: Gate, tmp_path: Path) -> None:
    """New jobs are refused, running jobs end and are recorded, and as soon as there is space all goes on, in the same
    processes."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue")) as fleet:
        fleet.wait_ready()
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
        pids = [fleet.broker_pid, *fleet.consumer_pids()]
        path = tmp_path / "starts"
        held = jobs.hold.enqueue(gate.path, str(path))
        waiting = jobs.note.enqueue_many([(str(path), f"note{number}") for number in range(50)])
        starts(path, 1)
        filler = fill(disk)
        enqueue_until_full()
        gate.open()
        assert held.result(timeout=15) == "held"
        assert [job.result(timeout=15) for job in waiting] == [f"note{number}" for number in range(50)]
        filler.unlink()

        wait_until(is_enqueued, "room for new jobs")
        assert [fleet.broker_pid, *fleet.consumer_pids()] == pids
        assert serves()


def test_what_ends_is_recorded_on_a_disk_too_small_to_set_space_aside(disk: Path, gate: Gate, tmp_path: Path) -> None:
    """Producers fill the disk while a job runs, and nothing is set aside: the fleet lives, and the job's result is
    recorded, at the latest when there is space."""
    use(jobs.q, disk / "queue")
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    fleet = Fleet(disk / "queue", consumers=1)
    fleet.errors = tmp_path / "stderr"
    with running(fleet):
        broker, path = fleet.broker_pid, tmp_path / "starts"
        held = jobs.hold.enqueue(gate.path, str(path))
        starts(path, 1)
        enqueue_until_full()
        gate.open()
        starts(path, 2)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.5:  # more than the job's outcome takes to arrive
            assert fleet.client.status().broker.pid == broker
            time.sleep(0.02)
        subprocess.run(["mount", "-o", "remount,size=120m", str(disk)], check=True)
        assert held.result(timeout=30) == "held"
        assert fleet.broker_pid == broker
        wait_until(is_enqueued, "room for new jobs")
        assert serves()


def enqueue_until_full() -> None:
    """Enqueues until the disk is full."""
    with pytest.raises(StoreFull):
        for _ in range(200):
            jobs.echo.enqueue(os.urandom(300_000))


def is_enqueued() -> bool:
    """Whether a job is taken in now."""
    with suppress(StoreFull):
        return bool(jobs.add.enqueue(1))
    return False


def test_a_fleet_starts_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """What waits in the journal is run and recorded with the space that was set aside; the spool is taken in later."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue", queues=("other",))):
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
        waiting = jobs.add.enqueue_many([(number,) for number in range(50)])
    spooled = [jobs.echo.enqueue(bytes(300_000)) for _ in range(10)]
    filler = fill(disk)
    fleet = Fleet(disk / "queue")
    fleet.errors = tmp_path / "stderr"
    with running(fleet, wait=False):
        fleet.wait_ready()
        assert [job.result(timeout=15) for job in waiting] == list(range(1, 51))
        filler.unlink()
        wait_until(lambda: not list((disk / "queue" / "spool").iterdir()), "the spool taken in")
        assert [len(job.result(timeout=15)) for job in spooled] == [300_000] * 10
        assert serves()


def test_the_flight_recorder_needs_no_space(disk: Path) -> None:
    """A broker that starts on a full disk empties the file that is there."""
    path = disk / "running.map"
    clear_flight_records(path, 4)
    FlightRecorder(path, 1).started(bytes(range(16)), 1)
    assert read_flight_records(path)
    fill(disk)
    clear_flight_records(path, 4)
    assert read_flight_records(path) == []
    FlightRecorder(path, 4).started(bytes(range(16)), 1)
    assert read_flight_records(path)


def test_a_job_in_the_spool_of_a_full_disk_is_known(disk: Path, tmp_path: Path) -> None:
    """It was acknowledged: whoever waits for it waits until there is space, and whoever asks hears that it is
    queued."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue")):
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
    spooled = [jobs.echo.enqueue(bytes(300_000)) for _ in range(10)]
    filler = fill(disk)
    fleet = Fleet(disk / "queue")
    fleet.errors = tmp_path / "stderr"
    with running(fleet, wait=False), ThreadPoolExecutor(1) as pool:
        fleet.wait_ready()
        result = pool.submit(spooled[-1].result, 15)
        infos = [job.info() for job in spooled]
        assert {(info.task, info.queue) for info in infos} == {("echo", "default")}
        assert (infos[-1].state, infos[-1].attempts) == (JobState.QUEUED, 0)
        with pytest.raises(StoreFull, match="when there is room"):
            spooled[-1].cancel()
        with pytest.raises(JobNotFound):
            jobs.q.job(bytes(16).hex()).info()
        filler.unlink()
        assert result.result(20) == bytes(300_000)
        assert spooled[0].state() is JobState.SUCCEEDED
        assert serves()


@pytest.mark.parametrize("what", ["", "spool", "log", "journal.db"])
def test_a_directory_that_may_not_be_written(home: Path, what: str) -> None:
    """A fleet that cannot write where it must says so in one line that names the place, and ends. Then the place is
    repaired."""
    SQLiteStore(Directory(home).create().journal).close()
    spooled = jobs.add.enqueue(1)
    place = home / what
    mode = place.stat().st_mode
    place.chmod(0o500 if place.is_dir() else 0o400)
    command = [*dropping_privileges(), sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--drain"]
    environment = {**os.environ, "TASKQ_URL": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    place.chmod(mode)
    told = [line for line in done.stderr.splitlines() if line.startswith("taskq: ")]
    assert "Traceback" not in done.stderr
    if what == "log":
        assert done.returncode == Exit.OK, "the log is not worth a job"
    else:
        assert done.returncode in (Exit.DIRECTORY, Exit.JOURNAL), done.stderr
        assert len(told) == 1
        assert str(place) in told[0]
        assert "cannot be written" in told[0], told
    fleet = Fleet(home, consumers=1)
    fleet.expected.add("store.failed")  # the log still tells of it
    with running(fleet):
        assert spooled.result(timeout=15) == 2
        assert serves()


def test_a_filesystem_that_is_read_only(disk: Path) -> None:
    """Fleets and producers are told that the kernel has made the disk read-only."""
    home = disk / "queue"
    use(jobs.q, home)
    Directory(home).create()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    fleet = Fleet(home)
    fleet.errors = disk.parent / "stderr"
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.DIRECTORY
    assert f"{home} cannot be written" in fleet.errors.read_text()
    with pytest.raises(BrokerUnavailable, match="cannot be written"):
        jobs.add.enqueue(1)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with running(Fleet(home, consumers=1)):
        assert serves()
