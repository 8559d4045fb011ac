"""Two machines on one database, under load, while the server is killed, restarted, frozen, and cuts off its sessions; and
while brokers and consumers are killed.

The judge believes nobody: producers note what was acknowledged, and jobs note their starts in a file. A server that dies
costs nothing but time: each acknowledged job starts exactly once. What dies on a machine costs the attempts that ran
there, each with its charge.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import proof
import pytest
from apps import jobs
from fleet import running, starts, wait_until
from machines import MachineFleet, use_database
from postgres import Server, running_server

from taskq import BrokerUnavailable, JobState, as_completed
from taskq.client.job import Job

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

#: Jobs that wait at most.
_AHEAD = 200
SEED = os.environ.get("TASKQ_STORM_SEED", "20")


class Producer:
    """Enqueues jobs as fast as they are acknowledged, but never far ahead of their starts, until it is told to stop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_over = Event()
        self._thread = Thread(target=self._run)
        self.acknowledged: dict[str, Job[str]] = {}  # by label
        self.unknown: set[str] = set()  # labels whose enqueue has failed: that job is there as a whole, or not at all

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Enqueues while a block runs."""
        self._thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._is_over.is_set():
            if number > progress(self._path) + _AHEAD or self._is_over.wait(0.005):
                continue
            labels = [str(number := number + 1) for _ in range(1 if number % 2 else 20)]
            try:
                made = jobs.write.enqueue_many((str(self._path), label) for label in labels)
            except BrokerUnavailable:
                self.unknown.update(labels)
            else:
                self.acknowledged.update(zip(labels, made, strict=True))


def progress(path: Path) -> int:
    """How many starts jobs have noted."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def storm(path: Path, blows: list[Callable[[], object]]) -> Producer:
    """Blows each blow while jobs are enqueued and run, and waits for the end of all."""
    producer = Producer(path)
    with producer.at_work():
        for blow in blows:
            seen = progress(path)
            wait_until(lambda seen=seen: progress(path) > seen + 20, "jobs that start", 120.0)
            blow()
        seen = len(producer.acknowledged)
        wait_until(lambda: len(producer.acknowledged) > seen + 20, "jobs that are acknowledged", 120.0)
    ended = sum(1 for _ in as_completed(producer.acknowledged.values(), timeout=40))
    assert ended == len(producer.acknowledged)
    return producer


@pytest.mark.timeout(300)
def test_a_server_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    path = tmp_path / "starts"
    with running_server() as server:
        url = server.url()
        use_database(jobs.q, tmp_path / "client", url)

        def freeze() -> None:
            server.freeze()
            signal.sigtimedwait([], 0.3)
            server.thaw()

        def kill() -> None:
            server.kill()
            proof.count("kills")
            server.start()

        def cut() -> None:
            for _ in range(5):
                server.end_sessions("taskq%")

        blows = [kill, cut, freeze, server.restart, lambda: server.restart(signal.SIGQUIT)] * 2
        chance.shuffle(blows)
        with (
            running(MachineFleet(tmp_path / "one", url, consumers=1)) as one,
            running(MachineFleet(tmp_path / "two", url, consumers=1)) as two,
        ):
            brokers = [one.broker_pid, two.broker_pid]
            producer = storm(path, blows)
            assert [one.broker_pid, two.broker_pid] == brokers, "no broker has ended"
    started = Counter(start.label for start in starts(path))
    assert [label for label in producer.acknowledged if started[label] != 1] == [], "each has started exactly once"
    assert max(started.values()) == 1
    assert started.keys() <= producer.acknowledged.keys() | producer.unknown


def kill_broker(fleet: MachineFleet) -> None:
    fleet.kill(fleet.broker_pid)


@pytest.mark.timeout(300)
def test_what_dies_on_a_machine_costs_the_attempts_that_ran_there(
    tmp_path: Path, postgres: Server, database: str
) -> None:
    chance = random.Random(SEED)
    path = tmp_path / "starts"
    url = postgres.url(database)
    use_database(jobs.q, tmp_path / "client", url)
    with (
        running(MachineFleet(tmp_path / "one", url, consumers=1)) as one,
        running(MachineFleet(tmp_path / "two", url, consumers=1)) as two,
    ):
        blows = [partial(kill, fleet) for fleet in (one, two) for kill in (kill_broker, MachineFleet.kill_consumer) * 2]
        chance.shuffle(blows)
        producer = storm(path, blows)
        infos = {info.id: info for info in jobs.q.jobs(limit=100_000)}
    started = Counter(start.label for start in starts(path))
    assert {info.state for info in infos.values()} == {JobState.SUCCEEDED}
    labels = {job.id: label for label, job in producer.acknowledged.items()}
    assert labels.keys() <= infos.keys()
    assert [label for label in labels.values() if not started[label]] == []
    assert sum(info.crashes for info in infos.values()) <= len(blows), "each death is charged to one job at most"
