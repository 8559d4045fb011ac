"""The disk under the server is full: what comes in is refused with its reason, what has ended is kept until there is
room, and then all goes on in the same processes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest
from apps import jobs
from fleet import Gate, running, starts, wait_until
from machines import MachineFleet, use_database
from postgres import Server, running_server

from taskq import BrokerUnavailable, StoreFull, TaskQError
from taskq.client.job import Job

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

#: Besides what the tables need for a few jobs.
_LEFT_BYTES = 2 << 20
_LARGE_BYTES = 30_000


def enqueue_until(*refusals: type[TaskQError]) -> list[Job[bytes]]:
    """Enqueues large jobs until one is refused. Returns those that were accepted."""
    accepted: list[Job[bytes]] = []
    with pytest.raises(refusals) as refused:
        for _ in range(1_000):
            accepted.append(jobs.echo.enqueue(os.urandom(_LARGE_BYTES)))
    assert ("full" in str(refused.value)) == isinstance(refused.value, StoreFull)
    return accepted


def life(server: Server, tmp_path: Path, gate: Gate, *refusals: type[TaskQError]) -> None:
    """A job runs while the disk becomes full, and ends then."""
    path, url = tmp_path / "starts", server.url()
    use_database(jobs.q, tmp_path / "client", url)

    def takes_jobs() -> bool:
        if server.has_died:
            server.start()
        with suppress(*refusals):
            return jobs.add.enqueue(1, 2).result(timeout=30) == 3
        return False

    with running(MachineFleet(tmp_path / "one", url, consumers=1)) as fleet:
        broker = fleet.broker_pid
        held = jobs.hold.enqueue(gate.path, str(path))
        starts(path, 1)
        waiting = jobs.note.enqueue_many([(str(path), f"note{number}") for number in range(20)])
        server.fill_disk(_LEFT_BYTES)
        accepted = enqueue_until(*refusals)
        gate.open()
        server.make_room()
        wait_until(takes_jobs, "room for jobs", 120.0)
        assert held.result(timeout=30) == "held"
        assert [job.result(timeout=30) for job in waiting] == [f"note{number}" for number in range(20)]
        assert [len(job.result(timeout=30)) for job in accepted] == [_LARGE_BYTES] * len(accepted)
        assert fleet.broker_pid == broker


def test_a_disk_without_room_for_rows(tmp_path: Path, gate: Gate) -> None:
    """The server refuses statements, and lives."""
    with running_server(small_disk="data") as server:
        life(server, tmp_path, gate, StoreFull)


def test_a_disk_without_room_for_the_log_of_changes(tmp_path: Path, gate: Gate) -> None:
    """The server refuses, or ends, and can then be started again when there is room: clients give up in time, and the
    broker waits for it."""
    with running_server(small_disk="wal") as server:
        life(server, tmp_path, gate, StoreFull, BrokerUnavailable)
