"""A directory without a fleet can be looked at: through a reader, which no broker ever meets at the journal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
from apps import jobs
from fleet import JOBS, Fleet, Gate, in_directory, running, shown, starts, wait_until
from terminal import Here, here, refused, taskq

from taskq import BrokerUnavailable, JobNotFound, JobState
from taskq.client.job import Job
from taskq.client.transport import reading
from taskq.client.transport.blocking import Client
from taskq.client.transport.operations import FleetIsThere, Requests
from taskq.model.errors import AlreadyRunning
from taskq.model.exits import Exit
from taskq.protocol.requests import GetJob, GetStatus, RetryJob
from taskq.system.directory import Directory
from taskq.system.launch import Child, spawn_reader
from taskq.system.locks import ReaderLock, take_broker_lock

#: Marks what is about the process that reads a journal which no fleet has open.
about_readers = pytest.mark.not_on_postgres("the reader of a journal")

__all__ = ["here"]  # a fixture
q = jobs.q


@pytest.fixture
def left(home: Path, tmp_path: Path) -> Iterator[tuple[Job[int], Job[int]]]:
    """A job that failed and one that succeeded, of a fleet that has stopped."""
    with running(Fleet(home, consumers=1)):
        bad, good = jobs.need.enqueue(str(tmp_path / "needed")), jobs.add.enqueue(1, 2)
        assert bad.wait(10)
        assert good.result(10) == 3
        q.schedules.add("nightly", "add", "0 3 * * *", args=(1,))
    yield bad, good
    assert readers() == []


def readers() -> list[psutil.Process]:
    """The readers that this process has started and that have not ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "taskq: reader" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


def test_by_command(home: Path, left: tuple[Job[int], Job[int]], here: Here) -> None:
    bad, good = left
    done = here(home, "jobs")
    assert done.returncode == Exit.OK, done
    assert bad.id in done.stdout
    assert good.id in done.stdout
    assert shown(home) in done.stderr, "no fleet runs, and it says so"
    listed = json.loads(here(home, "jobs", "--state", "failed", "--json").stdout)
    assert [job["id"] for job in listed] == [bad.id]
    assert "FileNotFoundError" in here(home, "job", bad.id).stdout
    status = json.loads(here(home, "status", "--json").stdout)
    assert status["broker"] == {**status["broker"], "state": "stopped", "pid": None, "directory": shown(home)}
    assert (status["totals"]["succeeded"], status["totals"]["failed"], status["consumers"]) == (1, 1, [])
    assert here(home, "status").stdout.startswith("stopped")
    assert "nightly" in here(home, "schedule").stdout
    done = here(home, "retry", bad.id)
    assert done.returncode == Exit.OK, done
    assert bad.state() is JobState.QUEUED
    refused(here(home, "stop"), Exit.NO_FLEET, "taskq worker" if in_directory() else "runs here")


def test_from_python(home: Path, left: tuple[Job[int], Job[int]], tmp_path: Path) -> None:
    bad, good = left
    assert [info.id for info in q.jobs("failed")] == [bad.id]
    assert good.state() is JobState.SUCCEEDED
    assert asyncio.run(bad.ainfo()).error is not None
    assert [info.name for info in q.schedules.list()] == ["nightly"]
    with pytest.raises(JobNotFound):
        q.job("0" * 32).info()
    with pytest.raises(BrokerUnavailable):
        q.client.status()
    assert q.pause("mail") == ["mail"]
    assert q.retry_failed() == 1
    (tmp_path / "needed").touch()
    with running(Fleet(home, consumers=1)) as fleet:
        assert bad.result(10) == 2
        assert q.resume("mail") == ["mail"]
        assert not fleet.events("store.recovered"), "each reader has closed the journal cleanly"


@contextmanager
def one_reader(home: Path) -> Iterator[Callable[..., Any]]:
    """Asks the journal of a directory, through one reader as long as the block runs."""
    client = Client(Directory(home))
    requests = Requests(client.queue, only_stopped=True)
    try:
        yield lambda request: client.run(requests.ask(request))
    finally:
        client.run(requests.end())


@about_readers
def test_many_jobs_are_read_by_one_reader(
    home: Path, left: tuple[Job[int], Job[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a list, and slices of what is done to many, are one call."""
    with running(Fleet(home, consumers=1)):
        q.pause("default")
        jobs.add.enqueue_many([(number,) for number in range(1_000)])
    children = []

    def start(path: str, patience_s: float) -> Child:
        children.append(spawn_reader(path, patience_s))
        return children[-1]

    monkeypatch.setattr(reading, "spawn_reader", start)
    assert len(q.jobs("queued", limit=1_000)) == 1_000
    assert len(children) == 1
    assert q.purge("queued") == 1_000
    assert len(children) == 2
    assert all(child.process.returncode == 0 for child in children)
    q.resume("default")


@about_readers
@pytest.mark.parametrize("crowd", ["threads", "tasks"])
def test_a_crowd_reads_one_after_the_other(
    home: Path, left: tuple[Job[int], Job[int]], monkeypatch: pytest.MonkeyPatch, crowd: str
) -> None:
    """A process for each would only keep the others, and a fleet that starts, from the journal."""
    bad, _ = left
    children: list[Child] = []
    together: list[int] = []

    def start(path: str, patience_s: float) -> Child:
        together.append(1 + sum(child.process.poll() is None for child in children))
        children.append(spawn_reader(path, patience_s))
        return children[-1]

    async def ask_all() -> list[JobState]:
        return await asyncio.gather(*[bad.astate() for _ in range(8)])

    monkeypatch.setattr(reading, "spawn_reader", start)
    if crowd == "threads":
        with ThreadPoolExecutor(8) as pool:
            states = list(pool.map(lambda _: bad.state(), range(8)))
    else:
        states = asyncio.run(ask_all())
    assert states == [JobState.FAILED] * 8
    assert together == [1] * 8


@about_readers
def test_jobs_in_the_spool_are_reported(home: Path, here: Here) -> None:
    """Before the first fleet, too, and beside what a journal holds."""
    refused(here(home, "jobs"), Exit.NO_FLEET, str(home))
    first = jobs.add.enqueue(1)
    assert json.loads(here(home, "status", "--json").stdout)["queues"]["default"]["queued"] == 1
    second = jobs.add.enqueue(2)
    assert [info.id for info in q.jobs()] == [second.id, first.id]
    assert jobs.add.enqueue(3).info().task == "add"
    with running(Fleet(home, consumers=1)):
        assert (first.result(10), second.result(10)) == (2, 3)


def test_what_ran_when_a_fleet_was_killed_is_charged_by_the_next(home: Path, tmp_path: Path, gate: Gate) -> None:
    """A reader shows it as queued, and leaves the record of its crash to the broker."""
    fleet = Fleet(home, consumers=1).start()
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    fleet.kill_all()
    assert (job.info().state, job.info().crashes) == (JobState.QUEUED, 0)
    with running(fleet):
        starts(tmp_path / "held", 2)
        assert job.info().crashes == 1
        gate.open()


@about_readers
def test_a_fleet_that_starts_sees_a_reader_off(home: Path, left: tuple[Job[int], Job[int]]) -> None:
    bad, _ = left
    with one_reader(home) as ask:
        ask(GetJob(bytes.fromhex(bad.id)))
        [reader] = readers()
        with running(Fleet(home, consumers=1)):
            reader.wait(10)
            assert bad.state() is JobState.FAILED
            with pytest.raises(FleetIsThere):
                ask(GetStatus())  # of the reader that is gone
            with pytest.raises(FleetIsThere, match="a fleet runs"):
                ask(GetStatus())


@about_readers
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_reader_that_is_killed_or_stopped_is_in_nobodys_way(
    home: Path, left: tuple[Job[int], Job[int]], number: int
) -> None:
    bad, _ = left
    with one_reader(home) as ask:
        ask(RetryJob(bytes.fromhex(bad.id)))
        [reader] = readers()
        os.kill(reader.pid, number)
        with running(Fleet(home, consumers=1)) as fleet:
            reader.wait(10)
            bad.wait(10)
            assert bad.info().attempts == 2
            assert fleet.events("store.recovered"), "it did not close the journal"


@about_readers
def test_readers_and_fleets_that_come_and_go(home: Path, left: tuple[Job[int], Job[int]]) -> None:
    """Whoever asks all the time is answered all the time, and no fleet is kept from starting."""
    bad, _ = left
    is_over = Event()
    wrong: list[object] = []

    def ask() -> None:
        client = Client(Directory(home), reply_timeout=30)  # on a busy machine a broker may take 5 s to start
        while not is_over.is_set():
            try:
                state = client.info(bytes.fromhex(bad.id)).state
            except BaseException as error:
                wrong.append(error)
            else:
                if state is not JobState.FAILED:
                    wrong.append(state)
        client.close()

    threads = [Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(4):
            with running(Fleet(home, consumers=1)) as fleet:
                if number % 2:
                    seen = fleet.count("consumer.started")
                    fleet.kill(fleet.broker_pid)  # its guardian starts another, which may meet a reader
                    fleet.wait_for("consumer.started", skip=seen)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []


@about_readers
def test_the_lock_of_a_reader_is_not_taken_for_that_of_a_fleet(tmp_path: Path) -> None:
    """The guardian of a broker that died starts the next one while a reader is at the journal: it waits, not ends."""
    path = tmp_path / "lock"
    path.write_text(f"{os.getpid()} {os.getppid()}")  # a broker, and our guardian
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # commands that ran in this process may have left a handler
        lock = ReaderLock(path, tmp_path / "nobody", 60)
        (tmp_path / "is_locked").touch()
        signal.pause()  # until it is told to go
        lock.release()
        os._exit(0)
    wait_until((tmp_path / "is_locked").exists, "the reader")
    os.close(take_broker_lock(path, os.getppid()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@about_readers
def test_two_fleets_are_distinguished_from_a_reader(home: Path) -> None:
    """A second fleet still refuses at once, and names the first."""
    with running(Fleet(home, consumers=1)) as fleet:
        done = taskq(home, "worker", JOBS)
        refused(done, Exit.ALREADY_RUNNING, str(fleet.broker_pid))
        with pytest.raises(AlreadyRunning, match="a fleet runs"):
            ReaderLock(Directory(home).lock, Directory(home).socket_path(), 60)


@about_readers
def test_a_broker_that_does_not_answer_is_named(home: Path, left: tuple[Job[int], Job[int]]) -> None:
    """It has the lock, and nobody listens: it starts, ends or hangs. A client waits for it as long as for a reply."""
    directory = Directory(home)
    descriptor = take_broker_lock(directory.lock, os.getppid())
    for patience_s in (0.1, 0.2):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=f"broker process {os.getpid()} has {directory.path}"):
            Client(directory, reply_timeout=patience_s).look()
        assert time.monotonic() - began >= patience_s
    os.close(descriptor)
