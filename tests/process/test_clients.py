"""Client processes: threads, forks, the end of the interpreter, brokers that are away, directories that cannot be
used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from apps import jobs
from fleet import APPS, Fleet, Gate, environment_of, running, starts, use

from taskq import BrokerUnavailable, EnqueueError, JobFailed, JobState, ResultTimeout, TaskQ
from taskq.client.transport.connection import Connection
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.codec import encode_call
from taskq.protocol.submissions import Call

Start = Callable[..., Fleet]


def program(code: str, home: Path, timeout: float = 20) -> str:
    """Runs a program that uses `jobs` on a directory; returns what it printed."""
    head = "import os, sys; from pathlib import Path; from apps import jobs; from taskq.system.place import place_of\n"
    head += "jobs.q.use_place(place_of('tests'))\n"
    arguments, environment = [sys.executable, "-c", head + code], {**os.environ, **environment_of(home)}
    done = subprocess.run(
        arguments, env=environment, cwd=APPS.parent, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_threads_share_an_application(shared: Fleet) -> None:
    barrier = threading.Barrier(16)

    def work(thread: int) -> list[int]:
        barrier.wait()
        singles = [jobs.add.enqueue(thread, number) for number in range(20)]
        many = jobs.add.enqueue_many((thread, number) for number in range(20, 100))
        mapped = list(jobs.add.starmap((thread, number) for number in range(100, 120)))
        return [job.result(timeout=20) for job in (*singles, *many)] + mapped

    with ThreadPoolExecutor(16) as pool:
        for thread, results in enumerate(pool.map(work, range(16))):
            assert results == [thread + number for number in range(120)]


def test_fork_after_connecting(shared: Fleet) -> None:
    printed = program(
        """
from concurrent.futures import ThreadPoolExecutor
assert jobs.add.enqueue(1).result(timeout=10) == 2      # connected now
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        made = [jobs.echo.enqueue((child, number)) for number in range(100)]
        assert [job.result(timeout=10) for job in made] == [(child, number) for number in range(100)]
        os._exit(0)
    children.append(pid)
made = [jobs.echo.enqueue(number) for number in range(100)]
assert [job.result(timeout=10) for job in made] == list(range(100))
print([os.waitpid(pid, 0)[1] for pid in children])
""",
        shared.home,
    )
    assert printed == "[0, 0, 0]\n"


def test_enqueue_at_the_end_of_the_interpreter(shared: Fleet) -> None:
    printed = program(
        """
import atexit
class Late:
    def __del__(self):
        print(jobs.echo.enqueue("in __del__").id, flush=True)
late = Late()
atexit.register(lambda: print(jobs.echo.enqueue("at exit").id, flush=True))
print(jobs.echo.enqueue("before").id)
""",
        shared.home,
    )
    ids = printed.split()
    assert [jobs.q.job(job_id).result(timeout=10) for job_id in ids] == ["before", "at exit", "in __del__"]


def test_enqueue_in_a_signal_handler(shared: Fleet) -> None:
    printed = program(
        """
import os
import signal
made = []
def enqueue_again(*_):
    made.append(jobs.add.enqueue(1))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
signal.signal(signal.SIGALRM, enqueue_again)
signal.setitimer(signal.ITIMER_REAL, 0.02)
results = []
while len(results) < 100 or len(made) < 4:
    results.append(jobs.add.enqueue(len(results)).result(timeout=30))
signal.signal(signal.SIGALRM, signal.SIG_IGN)  # the handler may just be setting the next one
assert results == list(range(1, len(results) + 1))
assert {job.result(timeout=30) for job in made} == {2}
print(len(made) > 3)
""",
        shared.home,
    )
    assert printed == "True\n"


@pytest.mark.not_on_postgres("a database has no spool")
def test_a_job_that_is_sent_again_is_one_job(shared: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    spec = Spec("note")
    ids = list(new_job_ids(3))
    calls = [Call(job_id, encode_call(job_id, (str(path), str(number)), {})) for number, job_id in enumerate(ids)]
    client = jobs.q.client
    before = shared.totals()["enqueued"]
    client.submit(spec, calls[:2])
    client.submit(spec, calls)
    for job_id in ids:
        client.wait(job_id, 10)
    client.submit(spec, calls)
    client.spool(spec, calls)
    client.submit(spec, [calls[0], calls[0]])
    last = jobs.note.enqueue(str(path), "last")
    last.result(timeout=10)
    shared.wait_for("spool.taken", task="note")
    shared.wait_for_totals(enqueued=before + 4)
    assert sorted(start.label for start in starts(path)) == ["0", "1", "2", "last"]
    waiting, [other] = Spec("hold"), list(new_job_ids(1))
    client.submit(waiting, [Call(other, b"one")])
    with pytest.raises(EnqueueError, match="other arguments"):
        client.submit(waiting, [Call(other, b"another")])
    with pytest.raises(JobFailed):
        jobs.q.job(other.hex()).result(timeout=10)


@pytest.mark.not_on_postgres("a database has no spool")
def test_a_spooled_job_whose_id_is_taken_is_set_aside(shared: Fleet) -> None:
    [job_id] = new_job_ids(1)
    client = jobs.q.client
    # failed jobs keep their arguments, so these can be compared
    client.submit(Spec("add", retries=0), [Call(job_id, b"one")])
    with pytest.raises(JobFailed):
        jobs.q.job(job_id.hex()).result(timeout=10)
    client.spool(Spec("add"), [Call(job_id, b"another")])
    event = shared.wait_for("spool.refused")
    assert Path(event["path"]).exists()
    assert "other arguments" in event["error"]


@pytest.mark.not_on_postgres("it is about the directory itself")
def test_a_path_too_long_for_a_socket(tmp_path: Path, gate: Gate) -> None:
    home = tmp_path / ("long" * 25) / ("path" * 25) / "queue"
    use(jobs.q, home)
    early = jobs.add.enqueue(1)
    with running(Fleet(home, consumers=1)) as fleet:
        assert early.result(timeout=10) == 2
        assert list(jobs.add.map(range(10))) == list(range(1, 11))
        assert program("print(jobs.add.enqueue(2).result(timeout=10))", home) == "3\n"
        link = tmp_path / "link"
        link.symlink_to(home)
        assert TaskQ("other", url=link).enqueue("add", 3).result(timeout=10) == 4
        assert fleet.status()["broker"]["directory"] == str(home)


def test_a_burst_of_clients_waits_its_turn(tmp_path: Path) -> None:
    """More clients than the kernel queues, at a broker that is busy for a moment: they wait, and none is refused."""
    path = tmp_path / "taskq.sock"
    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor(4) as pool:
        listener.bind(str(path))
        listener.listen(0)
        listener.settimeout(10)
        clients = [pool.submit(Connection, path) for _ in range(4)]
        accepted = []
        for _ in clients:
            accepted.append(listener.accept()[0])
            accepted[-1].sendall(frames.hello(1))
        for client in clients:
            client.result(10).close()
        for sock in accepted:
            sock.close()


@pytest.mark.not_on_postgres("it is about the directory itself")
def test_no_fleet_and_no_directory(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    for home in (place, place / "below"):
        use(jobs.q, home)
        with pytest.raises(BrokerUnavailable, match="no fleet answers"):
            jobs.add.enqueue(1)
        with pytest.raises(BrokerUnavailable):
            jobs.add.enqueue_many([(1,)])
        with pytest.raises(BrokerUnavailable):
            jobs.q.job("0" * 32).info()


@pytest.mark.not_on_postgres("a database is there without a fleet")
def test_no_fleet(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = jobs.add.enqueue(1)
    assert job.state() is JobState.QUEUED
    with pytest.raises(ResultTimeout):
        job.result(timeout=0)
    with pytest.raises(ResultTimeout):
        job.result(timeout=0.1)
    with pytest.raises(BrokerUnavailable, match="taskq worker"):
        job.cancel()
    with pytest.raises(BrokerUnavailable):
        jobs.q.client.status()
    [told] = caplog.records
    assert told.getMessage().endswith("jobs are kept in its spool")


def test_whoever_waits_is_told_and_gets_the_result_of_a_fleet_that_starts_later(home: Path) -> None:
    made = [jobs.add.enqueue(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(job.result, 30) for job in made]
        mapped = pool.submit(lambda: list(jobs.add.map(range(100))))
        with running(Fleet(home)):
            assert [result.result(20) for result in results] == list(range(1, 9))
            assert mapped.result(20) == list(range(1, 101))


def test_a_client_of_a_fleet_that_ended_finds_the_next(home: Path) -> None:
    for _ in range(2):
        with running(Fleet(home, consumers=1)) as fleet:
            assert jobs.add.enqueue(1).result(timeout=10) == 2
            assert jobs.q.client.status().broker.pid == fleet.broker_pid
        assert jobs.add.enqueue(1).state() is JobState.QUEUED


def test_a_producer_that_is_killed_leaves_whole_jobs(shared: Fleet) -> None:
    before = shared.totals()["enqueued"]
    code = "for number in range(1_000_000): print(jobs.echo.enqueue(number).id, flush=True)"
    code = (
        f"from apps import jobs; from taskq.system.place import place_of; jobs.q.use_place(place_of('tests'))\n{code}"
    )
    environment = {**os.environ, **environment_of(shared.home)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=APPS.parent, stdout=subprocess.PIPE, text=True
    ) as producer:
        assert producer.stdout is not None
        ids = [producer.stdout.readline() for _ in range(100)]
        producer.kill()
        ids += producer.stdout.read().splitlines()
    whole = [job_id.strip() for job_id in ids if len(job_id.strip()) == 32]
    assert [jobs.q.job(job_id).result(timeout=10) for job_id in whole] == list(range(len(whole)))
    assert shared.totals()["enqueued"] - before - len(whole) in (0, 1)
