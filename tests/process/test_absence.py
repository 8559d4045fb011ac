"""A broker that is there, and does not answer: clients know it after a short time, remember it, and see the end of
it."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apps import jobs
from fleet import Fleet, Gate, starts, use, wait_until

from taskq import chain
from taskq.client.job import Job
from taskq.client.transport import absence
from taskq.client.transport.absence import Absence
from taskq.model.errors import BrokerUnavailable, ConfigError, ResultTimeout
from taskq.model.exits import Exit
from taskq.protocol import frames, spool
from taskq.system.directory import Directory, reply_timeout_s

pytestmark = pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")

#: Calls that would each wait for an answer, if it were not remembered that none comes.
CALLS = 30
#: Far less than these would take together, and far more than they need.
SOON_S = 20.0


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was told in this process before."""
    monkeypatch.setattr(absence, "_told", set())
    monkeypatch.setattr(jobs.q, "reply_timeout", 2.0)


def spooled(home: Path) -> int:
    """Frames in the spool."""
    return sum(len(file.frames) for file in spool.spooled(home / "spool"))


def enqueue(count: int, is_async: bool) -> list[Job[int]]:
    """Enqueues jobs, one after the other."""

    async def enqueue_them() -> list[Job[int]]:
        made = [await jobs.add.aenqueue(number) for number in range(count)]
        with pytest.raises(BrokerUnavailable, match=r"broker \d+ holds .* but does not answer"):
            await jobs.q.apause("mail")
        return made

    if is_async:
        return asyncio.run(enqueue_them())
    made = [jobs.add.enqueue(number) for number in range(count)]
    with pytest.raises(BrokerUnavailable, match=r"broker \d+ holds .* but does not answer"):
        jobs.q.pause("mail")
    return made


@pytest.mark.parametrize("is_async", [False, True])
def test_a_broker_that_is_stopped(
    start: Callable[..., Fleet], home: Path, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    fleet = start().wait_ready()
    first, pid = jobs.add.enqueue(0), fleet.broker_pid
    assert first.result(timeout=10) == 1
    fleet.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    made = enqueue(CALLS, is_async)
    assert time.monotonic() - began < SOON_S
    assert spooled(home) == CALLS
    [warning] = [record for record in caplog.records if record.name == "taskq" and record.levelno == logging.WARNING]
    assert f"broker {pid} holds {home} but does not answer: it is stopped" in warning.getMessage()
    fleet.kill(pid, signal.SIGCONT)
    assert [job.result(timeout=10) for job in made] == list(range(1, CALLS + 1))

    def goes_to_the_broker() -> bool:
        before = fleet.count("spool.taken")
        jobs.add.enqueue(1).result(timeout=10)
        return fleet.count("spool.taken") == before

    wait_until(goes_to_the_broker, "jobs handed in as before")
    assert fleet.broker_pid == pid


@pytest.mark.parametrize("how", ["result", "aresult", "items"])
def test_who_waits_while_the_broker_is_stopped_is_told_and_waits_on(
    start: Callable[..., Fleet], gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Its connection stays open: nothing comes, as if the job just took its time."""
    fleet = start().wait_ready()
    pid, job = fleet.broker_pid, jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    waits: dict[str, Callable[[], object]] = {
        "result": lambda: job.result(timeout=60),
        "aresult": lambda: asyncio.run(job.aresult(timeout=60)),
        "items": lambda: list(job.items(timeout=60)),
    }
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(waits[how])
        fleet.kill(pid, signal.SIGSTOP)
        told = (
            f"broker {pid} holds {fleet.home} but does not answer: it is stopped, and `kill -CONT {pid}` lets it go on"
        )
        wait_until(lambda: f"{told}; still waiting" in caplog.messages, "the one who waits is told")
        fleet.kill(pid, signal.SIGCONT)
        gate.open()
        assert found.result(30) == ([] if how == "items" else "held")
    assert caplog.messages.count(f"{told}; still waiting") == 1


def test_who_waits_long_for_a_job_is_not_told_that_the_broker_is_silent(
    start: Callable[..., Fleet],
    gate: Gate,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is asked again and again, and answers."""
    monkeypatch.setattr(absence, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(jobs.q, "reply_timeout", 0.5)
    start().wait_ready()
    job = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    with pytest.raises(ResultTimeout):
        job.result(timeout=2.5)
    gate.open()
    assert job.result(timeout=20) == "held"
    assert caplog.messages == []


def test_jobs_that_were_sent_to_a_broker_that_stopped_are_taken_once(start: Callable[..., Fleet], home: Path) -> None:
    """What it had not answered is in its socket and in the spool."""
    fleet = start().wait_ready()
    jobs.add.enqueue(1).result(timeout=10)
    before, pid = fleet.totals()["enqueued"], fleet.broker_pid
    fleet.kill(pid, signal.SIGSTOP)
    made = jobs.add.enqueue_many([(number,) for number in range(2_500)])
    made += list(asyncio.run(many_at_once(100)))
    fleet.kill(pid, signal.SIGCONT)
    assert [job.result(timeout=20) for job in made] == [*range(1, 2_501), *range(1, 101)]
    wait_until(lambda: spooled(home) == 0, "the spool taken in")
    assert fleet.totals()["enqueued"] == before + 2_600


async def many_at_once(count: int) -> list[Job[int]]:
    """Enqueues jobs side by side."""
    return list(await asyncio.gather(*(jobs.add.aenqueue(number) for number in range(count))))


def test_a_stopped_broker_that_is_killed_is_replaced(start: Callable[..., Fleet], home: Path) -> None:
    fleet = start().wait_ready()
    pid = fleet.broker_pid
    fleet.kill(pid, signal.SIGSTOP)
    job = jobs.add.enqueue(1)
    assert spooled(home) == 1
    fleet.kill(pid)
    assert job.result(timeout=20) == 2
    assert jobs.add.enqueue(2).result(timeout=20) == 3


def test_who_waits_for_a_stopped_broker_waits_no_longer_than_asked_and_is_told(
    start: Callable[..., Fleet], home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The time of a wait counts more than the time that a broker has to answer."""
    fleet = start().wait_ready()
    job = jobs.add.enqueue(1)
    assert job.result(timeout=10) == 2
    monkeypatch.setattr(jobs.q, "reply_timeout", 100.0)
    use(jobs.q, home)  # a new client, without a connection
    pid = fleet.broker_pid
    fleet.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ResultTimeout):
        jobs.q.job(job.id).result(timeout=0.1)
    assert time.monotonic() - began < SOON_S
    monkeypatch.setattr(jobs.q, "reply_timeout", 1.0)
    use(jobs.q, home)

    async def wait() -> None:
        await jobs.q.job(job.id).aresult(timeout=5.5)

    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(jobs.q.job(job.id).result, timeout=5.5), pool.submit(lambda: asyncio.run(wait()))
        for one in waits:
            with pytest.raises(ResultTimeout):
                one.result()
    fleet.kill(pid, signal.SIGCONT)
    told = [record.getMessage() for record in caplog.records if record.getMessage().endswith("still waiting")]
    assert len(told) == 2
    assert all("does not answer" in text for text in told)


@pytest.mark.parametrize("is_async", [False, True])
def test_that_no_fleet_runs_is_reported_once(home: Path, caplog: pytest.LogCaptureFixture, is_async: bool) -> None:
    if is_async:
        asyncio.run(many_at_once(5))
        asyncio.run(many_at_once(5))
    else:
        for number in range(5):
            jobs.add.enqueue(number)
        jobs.add.enqueue_many([(1,), (2,)])
    chain(jobs.add.step(1), jobs.add.step()).enqueue()
    [told] = [record.getMessage() for record in caplog.records if record.name == "taskq"]
    assert f"no fleet answers on {home}" in told
    assert told.endswith("jobs are kept in its spool")


def test_a_socket_that_was_removed_is_made_again(start: Callable[..., Fleet], home: Path) -> None:
    """Who is connected stays so; whoever comes next is heard."""
    fleet = start().wait_ready()
    path = Directory(home).socket_path()
    with socket.socket(socket.AF_UNIX) as before:
        before.connect(str(path))
        path.unlink()
        wait_until(path.exists, "another socket")
        assert jobs.add.enqueue(2).result(timeout=10) == jobs.add.function(2)
        before.sendall(frames.hello(1))
        assert before.recv(100)
    assert fleet.stop() == Exit.OK
    assert not path.exists()


def test_status_says_who_does_not_answer(start: Callable[..., Fleet], home: Path) -> None:
    fleet = start().wait_ready()
    pid = fleet.broker_pid
    fleet.kill(pid, signal.SIGSTOP)
    command = [sys.executable, "-m", "taskq", "status", str(home)]
    told = {"TASKQ_REPLY_TIMEOUT": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=told, capture_output=True, text=True, timeout=120, check=False)
    fleet.kill(pid, signal.SIGCONT)
    assert done.returncode == Exit.NO_FLEET
    assert f"broker {pid} holds {home} but does not answer" in done.stderr
    assert f"kill -CONT {pid}" in done.stderr
    assert "start one" not in done.stderr


def test_a_loop_that_was_busy_does_not_take_the_broker_for_a_silent_one(
    start: Callable[..., Fleet], home: Path
) -> None:
    """The answer has arrived by the time that the loop looks, however late that is."""
    start().wait_ready()

    async def main() -> None:
        await jobs.add.aenqueue(1)
        waiting = asyncio.create_task(jobs.add.aenqueue(2))
        connection = jobs.q.async_client()._connection
        assert connection is not None
        while not connection._answers:
            await asyncio.sleep(0)
        connection._flush()
        time.sleep(2.5)  # longer than an answer may take
        await waiting
        assert jobs.q.async_client()._connection is connection, "it was not given up"

    asyncio.run(main())
    assert spooled(home) == 0


# -- Absence


@pytest.fixture
def listener(home: Path) -> Iterator[socket.socket]:
    """Stands for a broker."""
    directory = Directory(home).create()
    directory.lock.write_text("7961 7960")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory.socket_path()))
        listener.listen(1)
        yield listener


def test_silence_ends_with_the_first_word(home: Path, listener: socket.socket) -> None:
    away = Absence(Directory(home), 1.0)
    assert not away.is_silent
    away.begin_silence()
    assert away.is_silent
    assert f"broker 7961 holds {home} but does not answer within 1 s" in away.describe()
    connection, _ = listener.accept()
    assert away.is_silent
    with connection:
        connection.sendall(frames.hello(1))
        assert not away.is_silent
    assert "no fleet answers" in away.describe()


@pytest.mark.usefixtures("listener")
def test_whoever_forgets_a_silent_broker_leaves_nothing_open(home: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Absence(Directory(home), 1.0).begin_silence()
        gc.collect()
    assert not [warning for warning in told if warning.category is ResourceWarning]


def test_silence_ends_with_the_broker(home: Path, listener: socket.socket) -> None:
    away = Absence(Directory(home), 1.0)
    away.begin_silence()
    listener.close()
    assert not away.is_silent
    away.begin_silence()
    assert not away.is_silent, "nobody is there"


def test_a_broker_to_which_too_many_knock_is_silent(home: Path, listener: socket.socket) -> None:
    absences = [Absence(Directory(home), 1.0) for _ in range(5)]
    for away in absences:
        away.begin_silence()
    assert all(away.is_silent for away in absences)
    accepted = []
    for _ in range(10):  # each makes room for another, which knocks when it is asked
        if all(not away.is_silent for away in absences):
            break
        connection, _ = listener.accept()
        connection.sendall(frames.hello(1))
        accepted.append(connection)
    assert not any(away.is_silent for away in absences)
    for connection in accepted:
        connection.close()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_time_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TASKQ_REPLY_TIMEOUT", value)
    with pytest.raises(ConfigError, match="TASKQ_REPLY_TIMEOUT"):
        reply_timeout_s()
    with pytest.raises(ConfigError, match="reply_timeout"):
        reply_timeout_s(float("nan"))


def test_the_time_to_wait_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reply_timeout_s() == 5.0
    monkeypatch.setenv("TASKQ_REPLY_TIMEOUT", "2.5")
    assert reply_timeout_s() == 2.5
    assert reply_timeout_s(7) == 7.0
