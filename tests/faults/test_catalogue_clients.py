"""The catalogue of faults: clocks that jump, clients that misbehave, and journals of other versions. See
test_catalogue.py."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import cast

import apsw
import psutil
import pytest
from apps import jobs
from checks import serves
from deaf import Deaf
from fleet import Fleet, running, wait_until

from taskq import JobError
from taskq.broker.core.core import Core
from taskq.broker.events import EventLog
from taskq.client.transport.blocking import Client
from taskq.engines.contract import Consumers
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.server import Server
from taskq.model.attempt import Attempts, Claim, Verdict, pack_failure
from taskq.model.exits import Exit
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.ops import Op
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")

Start = Callable[..., Fleet]


# -- clocks


def come_due(committer: Committer, wall: float) -> None:
    """The clock shows this."""
    committer.come_due(wall)
    committer.commit(0.0, wall)


def test_a_jump_of_the_wall_clock_neither_repeats_nor_loses(home: Path) -> None:
    """A retry is due by the wall clock: not before its time on a clock set back, once on one set forward."""
    directory = Directory(home).create()
    store, core = SQLiteStore(directory.journal), Core()
    committer = Committer(store, core, cast(Server, Deaf()), cast(EventLog, Deaf()), directory, cast(Consumers, Deaf()))
    wall = 1e9
    [job_id] = new_job_ids(1)
    core.joined(1, 0.0)
    core.submitted(store.submit(Spec("add"), [job_id], [b"payload"]))
    core.dispatch(0.0, 0.0)
    outcome = pack_failure(wall, 0.0, JobError("Error", "no"))
    core.settled(1, Attempts([1], [Verdict.FAILED], [5], [outcome]), 0.0, wall)
    committer.collect(0.0)
    committer.commit(0.0, wall)
    committer.tell(0.0)
    for jumped in (wall - 1e8, wall, wall + 0.4):
        come_due(committer, jumped)
        assert core.dispatch(0.0, 0.0) == []
    come_due(committer, wall + 1e8)
    assert [row.id for batch in core.dispatch(1.0, 0.0) for row in batch.rows] == [job_id]
    for jumped in (wall - 1e8, wall, wall + 2e8):
        come_due(committer, jumped)
        assert core.dispatch(2.0, 0.0) == []
    store.close()


def test_time_limits_do_not_know_the_wall_clock(home: Path) -> None:
    """The core knows limits in monotonic seconds only: a job is late when these are over, and not earlier."""
    directory = Directory(home).create()
    with closing(SQLiteStore(directory.journal)) as store:
        core = Core()
        core.joined(1, 100.0)
        core.submitted(store.submit(Spec("add", timeout_s=10.0), list(new_job_ids(1)), [b"payload"]))
        core.dispatch(100.0, 0.0)
        claims = [Claim(1, 100.0)]
        assert core.check_time(1, claims, 109.9) == []
        assert core.check_time(1, claims, 110.0) == [(1, "signal")]


class ClockOnTheWall:
    """A clock that was set to a time, and shows that; spans are real."""

    monotonic, sleep = staticmethod(time.monotonic), staticmethod(time.sleep)

    def __init__(self, at_ns: int) -> None:
        self._at_ns = at_ns

    def time_ns(self) -> int:
        """What it was set to."""
        return self._at_ns

    def time(self) -> float:
        """The same in seconds."""
        return self._at_ns / 1e9


def test_a_producer_whose_clock_was_set_back(shared: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids begin with the time; jobs whose ids are older than all others, or in the future, run like others."""
    now_ns = time.time_ns()
    year_ns = 365 * 86_400 * 10**9
    for jumped_ns in (now_ns + year_ns, now_ns - year_ns, now_ns):
        monkeypatch.setattr(jobs.q, "clock", ClockOnTheWall(jumped_ns))
        made = jobs.echo.enqueue_many([(number,) for number in range(20)])
        assert [job.result(timeout=15) for job in made] == list(range(20))
        assert abs(made[0].info().enqueued_at - jumped_ns / 1e9) < 1.0
    monkeypatch.undo()
    assert serves()


# -- clients


def connect(home: Path, first: bytes) -> socket.socket:
    """A raw connection, on which the first bytes were sent."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(15)
    raw.connect(str(home / "taskq.sock"))
    with suppress(BrokenPipeError):  # it was refused already
        raw.sendall(first)
    return raw


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_more_clients_than_descriptors(start: Start) -> None:
    """A broker out of descriptors goes on serving those who are connected, at rest, and takes the others in later."""
    fleet = start().wait_ready()
    pid = fleet.broker_pid
    existing = Client(Directory(fleet.home))
    assert existing.status().broker.pid == pid, "it has a connection, and keeps it"
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + 40, before[1]))
    with ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(closing(connect(fleet.home, frames.hello(1))))
        fleet.wait_for("client.rejected")
        used_s, began = cpu_s(pid), time.monotonic()
        while time.monotonic() < began + 1.5:  # longer than the broker's own rounds
            assert existing.status().broker.pid == pid
            time.sleep(0.1)
        assert cpu_s(pid) - used_s < 0.4, "it does not spin"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    existing.close()
    assert serves()
    assert fleet.broker_pid == pid
    assert fleet.count("broker.died") == 0


def test_a_listener_that_was_out_of_descriptors_listens_again_without_a_client_going(start: Start) -> None:
    """Descriptors may also become free in other ways, and perhaps there is no client that could leave."""
    fleet = start().wait_ready()
    fleet.client.close()
    pid = fleet.broker_pid
    fleet.client.close()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    wait_until(lambda: clients_of(fleet) == 0, "no client")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with closing(connect(fleet.home, frames.hello(1))) as raw:
        fleet.wait_for("client.rejected")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        raw.settimeout(30)
        assert frames.Decoder().feed(raw.recv(65536))[0][0][0] == Op.HELLO
    assert serves()


def clients_of(fleet: Fleet) -> int:
    """How many connections to the broker's socket there are."""
    path = str(fleet.home / "taskq.sock")
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(path) and line.split()[5] == "03" for line in lines)


def test_two_hundred_clients_that_say_one_byte(shared: Fleet) -> None:
    """They cost the others nothing: the round trips of an honest client stay as they were (the shortest ones, which do
    not depend on what else the machine does)."""

    def round_trips_s() -> list[float]:
        took_s = []
        for _ in range(40):
            begin = time.monotonic()
            assert jobs.add.enqueue(1).result(timeout=15) == 2
            took_s.append(time.monotonic() - begin)
        return took_s

    alone = min(round_trips_s())
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(closing(connect(shared.home, frames.hello(1)[:1])))
        beside = min(round_trips_s())
    assert beside < 3 * alone + 0.01
    assert serves()


def test_clients_of_other_versions(shared: Fleet) -> None:
    """A client that also speaks our version is served; another one is told which side must be upgraded."""
    lowest, highest = frames.VERSIONS
    with closing(connect(shared.home, frames.frame([Op.HELLO, frames.MAGIC, lowest, highest + 98, 1]))) as raw:
        assert frames.Decoder().feed(raw.recv(65536))[0][0][0] == Op.HELLO
    newer, older = (highest + 1, highest + 2), (lowest - 1, lowest - 1)
    for versions, remedy in ((newer, "upgrade taskq in the fleet"), (older, "upgrade taskq in the client")):
        with closing(connect(shared.home, frames.frame([Op.HELLO, frames.MAGIC, *versions, 1]))) as raw:
            envelope, _ = frames.Decoder().feed(raw.recv(65536))[0]
        assert envelope[:3] == [Op.ERROR, 0, "ProtocolError"]
        assert remedy in envelope[3]
    assert serves()


def test_a_journal_of_a_newer_version(home: Path, tmp_path: Path) -> None:
    """It is refused, in words, and not a byte of it changes; the version that wrote it finds all jobs."""
    with running(Fleet(home, consumers=1)):
        job = jobs.add.enqueue(1)
        assert job.result(timeout=15) == 2
    journal = home / "journal.db"
    with closing(apsw.Connection(str(journal))) as db:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        db.execute(f"PRAGMA user_version={version + 1}")
    content = journal.read_bytes()
    fleet = Fleet(home)
    fleet.expected.add("store.failed")
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.JOURNAL
    assert "written by a newer taskq" in fleet.errors.read_text()
    assert journal.read_bytes() == content
    with closing(apsw.Connection(str(journal))) as db:
        db.execute(f"PRAGMA user_version={version}")
    again = Fleet(home, consumers=1)
    again.expected.add("store.failed")  # the log still tells of it
    with running(again):
        assert job.result(timeout=15) == 2
        assert serves()


def test_a_flood_of_jobs_waits_on_disk(start: Start) -> None:
    """Ten times the memory that the broker may hold waits, and it does not grow by that."""
    fleet = start(consumers=1, queues=("served",), memory_mb=8)
    before = fleet.status()["broker"]["rss_bytes"]
    jobs.echo.enqueue_many((bytes(100_000),) for _ in range(1_000))
    status = fleet.status()
    assert status["queues"]["default"]["queued"] == 1_000
    assert status["broker"]["rss_bytes"] - before < 70 * 1024 * 1024  # 8, and SQLite's cache of 32, and what it reads
    assert jobs.add.options(queue="served").enqueue(1).result(timeout=15) == 2
