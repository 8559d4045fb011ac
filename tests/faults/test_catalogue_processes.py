"""The catalogue of faults: processes that stop, jobs that end badly, and what surrounds a fleet. See
test_catalogue.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from apps import jobs
from checks import counted, serves, stop_process
from fleet import JOBS, Fleet, Gate, environment_of, in_directory, place_of, starts, use, wait_for_file, wait_until

from taskq import JobFailed, JobState
from taskq.model.exits import Exit
from taskq.telemetry.reader import read

Start = Callable[..., Fleet]


# -- processes that stop and go on


@pytest.mark.parametrize("which", ["broker", "all"])
def test_a_fleet_that_is_stopped_and_goes_on(
    shared: Fleet, gate: Gate, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients wait for a broker that is stopped for a moment, or a machine that was suspended; nothing is lost or runs
    twice. What they do when it takes longer: see test_absence."""
    monkeypatch.setattr(jobs.q, "reply_timeout", 60.0)
    use(jobs.q, shared.home)
    shared.wait_ready()
    path = tmp_path / "starts"
    held = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    broker = shared.broker_pid
    pids = [broker] if which == "broker" else [process.pid for process in shared.processes()]
    with ThreadPoolExecutor(8) as pool:
        for pid in pids:
            stop_process(shared, pid)
        try:
            made = [pool.submit(jobs.note.enqueue, str(path), f"note{number}") for number in range(8)]
            wait_until(lambda: all(future.running() or future.done() for future in made), "the producers at work")
            gate.open()
            if which == "broker":
                starts(path, 2)  # the job has ended, and nobody has been told
            if in_directory():  # a database takes jobs, whatever the fleet does
                assert not any(future.done() for future in made)
        finally:
            for pid in pids:
                shared.kill(pid, signal.SIGCONT)
        for future in made:
            future.result(15).result(timeout=15)
    assert held.result(timeout=15) == "held"
    assert (held.info().attempts, held.info().crashes) == (1, 0)
    assert counted(path) == {"held": 1, "held-end": 1, **{f"note{number}": 1 for number in range(8)}}
    assert shared.broker_pid == broker
    assert serves()


def test_a_stopped_consumer_is_killed_when_the_time_of_its_job_is_over(
    shared: Fleet, gate: Gate, tmp_path: Path
) -> None:
    """SIGSTOP holds off the soft signal, not SIGKILL."""
    path = tmp_path / "starts"
    job = jobs.hold.options(timeout=0.3, retries=0).enqueue(gate.path, str(path))
    [first] = starts(path, 1)
    stop_process(shared, first.pid)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=15)
    assert caught.value.error_type == "TimedOut"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert serves()


def test_a_job_that_holds_the_gil_is_not_taken_for_dead(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    """No thread of the consumer can give a sign of life: it is left alone, and only the hard timeout ends such a
    job."""
    shared.wait_ready()
    path, stuck_path = tmp_path / "starts", tmp_path / "stuck"
    kills = shared.count("consumer.killed")
    job = jobs.hold_gil.enqueue(str(path), gate.path)
    [first] = starts(path, 1)
    stuck = jobs.overdue.enqueue(str(stuck_path), "in-c")
    with pytest.raises(JobFailed, match="TimedOut"):
        stuck.result(timeout=15)
    assert serves()
    wait_until(lambda: job.state() is JobState.RUNNING, "it is told that it runs")
    gate.open()
    assert job.result(timeout=15) == "held"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert first.pid in shared.consumer_pids()
    assert [event["pid"] for event in shared.events("consumer.killed")[kills:]] == [starts(stuck_path)[0].pid]


# -- jobs that end badly


def waits_in(pid: int) -> str:
    """Where in the kernel a process waits."""
    place = Path(f"/proc/{pid}/wchan").read_text()
    if place == "0" and psutil.Process(pid).status() == psutil.STATUS_SLEEPING:
        pytest.skip("this system does not tell where in the kernel a process waits")
    return place


def test_killed_in_the_middle_of_a_large_item(shared: Fleet, tmp_path: Path) -> None:
    """Half a frame has left the consumer when it is killed: it is dropped, and the job runs again, to a whole item.
    (A result of this size is in a file.)"""
    path = tmp_path / "starts"
    broker = shared.broker_pid
    gate = Gate(tmp_path / "late")
    job = jobs.large_item.enqueue(str(path), gate.path, 3_000_000)
    [first] = starts(path, 1)
    stop_process(shared, broker)
    try:
        gate.open()
        wait_until(lambda: "sock_alloc_send" in waits_in(first.pid), "the consumer in the middle of its frame")
        shared.kill(first.pid)
    finally:
        shared.kill(broker, signal.SIGCONT)
    assert [len(item) for item in job.items(timeout=15)] == [3_000_000]
    assert (job.info().attempts, job.info().crashes) == (2, 1)
    assert shared.broker_pid == broker
    assert serves()


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes may use 96 MiB together, under version 1 or 2 of the kernel's interface."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = parent / f"taskq-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this user may make no control group, so no kernel can be made to kill for memory: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("the kernel gives control groups here no limit of memory")
        (group / limit).write_text(str(96 * 1024 * 1024))
        yield group
    finally:
        group.rmdir()


def test_a_job_that_the_kernel_kills_for_want_of_memory(start: Start, small_group: Path) -> None:
    """None of our processes sent that SIGKILL: the error and the log say where it came from, and the fleet goes on."""
    fleet = start(consumers=1)
    with pytest.raises(JobFailed, match="killed by SIGKILL, since memory ran out") as caught:
        jobs.outgrow_group.enqueue(str(small_group)).result(timeout=15)
    assert caught.value.error_type == "Crashed"
    crash = fleet.wait_for("consumer.crashed")
    assert (crash["signal"], crash["out_of_memory"]) == ("SIGKILL", True)
    assert jobs.add.enqueue(1).result(timeout=10) == 2


def test_a_job_that_runs_out_of_memory(shared: Fleet) -> None:
    """MemoryError is an error like others: the consumer lives."""
    before = shared.wait_ready().consumer_pids()
    with pytest.raises(JobFailed, match="MemoryError"):
        jobs.run_out_of_memory.enqueue().result(timeout=15)
    assert shared.consumer_pids() == before
    assert serves()


@pytest.mark.parametrize(
    ("how", "error"), [("does not unpickle", "NeedsTwo"), ("recursive", "RecursionError"), ("huge", "ValueError")]
)
def test_exceptions_that_are_hard_to_tell(shared: Fleet, how: str, error: str) -> None:
    """An error is sent as text, which is cut if it is too long."""
    before = shared.wait_ready().consumer_pids()
    with pytest.raises(JobFailed) as caught:
        jobs.raise_oddly.enqueue(how).result(timeout=15)
    assert caught.value.error_type.endswith(error)
    assert len(str(caught.value)) < 100_000
    assert shared.consumer_pids() == before
    assert serves()


def test_the_deaths_of_a_poison_pill_are_counted_across_brokers(start: Start, gate: Gate, tmp_path: Path) -> None:
    """The process of a job dies, then with it its broker, then again the process: three deaths, and it is parked."""
    fleet = start().wait_ready()
    path = tmp_path / "starts"
    pill = jobs.hold.options(max_crashes=3).enqueue(gate.path, str(path))
    fleet.kill(starts(path, 1)[0].pid)
    starts(path, 2)
    wait_until(lambda: pill.info().crashes == 1, "the first death is stored: a database has it a moment later")
    fleet.kill(fleet.broker_pid)
    fleet.kill(starts(path, 3)[2].pid)
    with pytest.raises(JobFailed, match="Crashed"):
        pill.result(timeout=15)
    assert (pill.info().attempts, pill.info().crashes) == (3, 3)
    assert [start.attempt for start in starts(path)] == [1, 2, 3]
    assert serves()


# -- fleets


@pytest.mark.not_on_postgres("the directory itself, also by another name")
def test_of_twenty_fleets_one_lives(home: Path) -> None:
    """Started at once on one directory, half of them through a link: all but one say who has it, and end."""
    home.mkdir(mode=0o700)
    link = home.parent / "link"
    link.symlink_to(home)
    fleets = [Fleet(link if number % 2 else home, consumers=1) for number in range(20)]
    for number, fleet in enumerate(fleets):
        fleet.errors = home.parent / f"{number}.stderr"
        fleet.start(wait=False)

    def living() -> list[Fleet]:
        return [fleet for fleet in fleets if psutil.Process(fleet.guardian_pid).status() != psutil.STATUS_ZOMBIE]

    wait_until(lambda: len(living()) == 1, "the end of the others", 120.0)
    [last] = living()
    last.wait_ready()
    assert serves()
    assert last.count("fleet.started") == 1
    others = [fleet for fleet in fleets if fleet is not last]
    assert {fleet.wait_for_end() for fleet in others} == {Exit.ALREADY_RUNNING}
    assert all(f"broker process {last.broker_pid}" in fleet.errors.read_text() for fleet in others)
    last.finish()


# -- output


def test_a_job_prints_while_nobody_reads(shared: Fleet, tmp_path: Path) -> None:
    """The broker is stopped while a job prints more than its pipe holds: the job waits, and goes on with the broker."""
    shared.wait_ready()
    gate = Gate(tmp_path / "gate")
    path = tmp_path / "starts"
    broker = shared.broker_pid
    job = jobs.print_behind.enqueue(str(path), gate.path, 20_000)
    [first] = starts(path, 1)
    stop_process(shared, broker)
    try:
        gate.open()
        wait_until(lambda: "pipe_write" in waits_in(first.pid), "a full pipe")
    finally:
        shared.kill(broker, signal.SIGCONT)
    assert job.result(timeout=15) == 20_000
    assert job.info().attempts == 1
    assert shared.broker_pid == broker
    assert serves()


def test_a_worker_whose_output_nobody_reads_or_has_closed(home: Path) -> None:
    """Its standard output and error are first a full pipe, and then a closed one: jobs run, and the log file has
    everything."""
    command = [sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--log-level", "debug"]
    environment = {**os.environ, **environment_of(home)}
    reader, writer = os.pipe()
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True
    )
    os.close(writer)
    try:
        assert jobs.print_much.enqueue(5_000).result(timeout=60) is None  # 5,000 lines are far more than a pipe holds
        os.close(reader)
        last = jobs.print_much.enqueue(100)
        assert last.result(timeout=15) is None
        assert serves()
        wait_until(lambda: any(found.get("job_id") == last.id for found in read(place_of(home))), "the job in the log")
    finally:
        worker.terminate()
        assert worker.wait(15) == 0


# -- process 1


def test_process_one_reaps_orphans_and_stops_in_order(home: Path, tmp_path: Path) -> None:
    """In a container the guardian is process 1: what jobs leave behind does not stay as zombies, and SIGTERM stops."""
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace of processes")
    command = [*container, sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--log-format", "json"]
    environment = {**os.environ, **environment_of(home)}
    with (home.parent / "container.stderr").open("wb") as errors:
        outer = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True)
    try:
        for number in range(3):
            jobs.leave_orphan.enqueue(str(tmp_path / "orphans")).result(timeout=15)
            wait_for_file(tmp_path / "orphans", number + 1)
        [guardian] = outer.children()
        assert guardian.exe() == psutil.Process().exe()
        wait_until(lambda: not any(map(is_zombie, outer.children(recursive=True))), "no zombies")
        assert serves()
        guardian.terminate()
        assert outer.wait(15) == 0
    finally:
        for process in outer.children(recursive=True) if outer.is_running() else []:
            process.kill()
    assert [event["event"] for event in read(place_of(home))][-1] == "fleet.stopped"
    assert json.loads((home.parent / "container.stderr").read_text().splitlines()[-1])["event"] == "fleet.stopped"


def is_zombie(process: psutil.Process) -> bool:
    """Whether a process has ended and was not reaped."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
