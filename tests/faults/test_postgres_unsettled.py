"""A broker is killed while the database is away: what has ended meanwhile does not run again."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import msgpack
import pytest
from apps import jobs
from fleet import Gate, running, starts, wait_until
from machines import MachineFleet, use_database
from postgres import Server, running_server

from taskq import JobState

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that may be killed."""
    with running_server(is_safe=True) as server:
        yield server


def test_what_ended_while_the_database_was_away_outlives_the_broker(server: Server, tmp_path: Path, gate: Gate) -> None:
    """A success is told with its result, and deaths are charged, once each."""
    url = server.url(server.create_database())
    use_database(jobs.q, tmp_path / "client", url)
    path = tmp_path / "starts"
    with running(MachineFleet(tmp_path / "one", url, consumers=2)) as fleet:
        held = jobs.hold.enqueue(gate.path, str(path), "held")
        dies = jobs.mixed.options(max_crashes=2).enqueue(str(path), "dies", "kill", gate.path)
        starts(path, 2)
        server.kill()
        gate.open()
        file = fleet.place.directory.path / "unsettled"
        wait_until(lambda: kept_in(file) == {held.id, dies.id}, "both outcomes in the file")
        pid = fleet.broker_pid
        fleet.kill(pid)
        server.start()
        assert held.result(timeout=30) == "held"
        wait_until(lambda: not file.exists(), "the database has taken them")
        assert dies.wait(timeout=30)
        assert (held.info().attempts, held.info().crashes) == (1, 0)
        assert (dies.state(), dies.info().crashes) == (JobState.FAILED, 2)
    assert sorted(start.label for start in starts(path)) == ["dies", "dies", "held", "held-end"]


def kept_in(path: Path) -> set[str]:
    """The jobs whose outcomes are in a file."""
    return {fields[0].hex() for fields in msgpack.Unpacker(BytesIO(path.read_bytes()))} if path.exists() else set()
