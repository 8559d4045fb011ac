"""Machines that are lost, and machines that are cut off from the database and come back: in network namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from apps import jobs
from fleet import Gate, running, starts, wait_until
from hosts import Host, Network, need_namespaces
from machines import MachineFleet, use_database
from postgres import Server, running_server

from taskq import JobState

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

#: After so many seconds without a sign of a machine others take its jobs.
LEASE_S = 2


def test_a_lost_machine_costs_what_ran_there(postgres: Server, database: str, tmp_path: Path, gate: Gate) -> None:
    """What it had and had not begun runs elsewhere, uncharged."""
    url, path = f"{postgres.url(database)}&lease={LEASE_S}", tmp_path / "starts"
    use_database(jobs.q, tmp_path / "client", url)
    with running(MachineFleet(tmp_path / "one", url, consumers=1)) as one:
        held = jobs.hold.enqueue(gate.path, str(path), "held")
        behind = jobs.add.enqueue_many((number, 1) for number in range(20))
        starts(path, 1)
        with running(MachineFleet(tmp_path / "two", url, consumers=1)) as two:
            one.kill_all()
            starts(path, 2)
            gate.open()
            assert held.wait(timeout=30)
            assert [job.result(timeout=30) for job in behind] == [number + 1 for number in range(20)]
            assert starts(path)[1].pid in two.consumer_pids()
    assert (held.info().state, held.info().crashes) == (JobState.SUCCEEDED, 1)
    assert [job.info().crashes for job in behind] == [0] * 20


class Machines(NamedTuple):
    """A database and two machines, each a host of its own on one network."""

    network: Network
    database: Host
    one: Host
    two: Host
    url: str


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """The hosts; `apps.jobs` enqueues from none of them."""
    need_namespaces()
    with Network() as network:
        database, one, two = (network.host() for _ in range(3))
        with running_server(settings={"listen_addresses": database.address}, prefix=database.prefix) as server:
            server.allow_network()
            use_database(jobs.q, tmp_path / "client", f"{server.url()}&lease={LEASE_S}")
            url = f"postgresql://postgres@{database.address}/postgres?lease={LEASE_S}"
            yield Machines(network, database, one, two, url)


@pytest.mark.parametrize("how", ["cut", "deaf", "mute"])
def test_a_machine_that_is_cut_off_is_not_believed_when_it_comes_back(
    machines: Machines, tmp_path: Path, gate: Gate, how: str
) -> None:
    """Its job runs elsewhere. What it says of that job afterwards changes nothing, and then it works on."""
    path, network = tmp_path / "starts", machines.network
    alone = MachineFleet(tmp_path / "one", machines.url, prefix=machines.one.prefix, consumers=1)
    other = MachineFleet(tmp_path / "two", machines.url, prefix=machines.two.prefix, consumers=1)
    with running(alone):
        job = jobs.hold.enqueue(gate.path, str(path), "held")
        starts(path, 1)
        with running(other):
            if how == "cut":
                network.cut(machines.one)
            elif how == "deaf":
                network.lose(machines.database, machines.one)
            else:
                network.lose(machines.one, machines.database)
            found = starts(path, 2)
            assert found[1].pid in other.consumer_pids()
            gate.open()
            assert job.wait(timeout=30)
            assert job.info().attempts == 2
            if how == "cut":
                network.mend(machines.one)
            elif how == "deaf":
                network.lose_no_more(machines.database, machines.one)
            else:
                network.lose_no_more(machines.one, machines.database)
            alone.wait_for("job.lost", job_id=job.id, task="hold")
            pids = {*alone.consumer_pids(), *other.consumer_pids()}
            work = tmp_path / "work"

            def both_work() -> bool:
                jobs.nap_and_note.enqueue_many((0.005, str(work), "more") for _ in range(50))
                return {start.pid for start in starts(work, 1)} == pids

            wait_until(both_work, "work on both machines", 120.0)
        assert job.info().state is JobState.SUCCEEDED
        assert [start.label for start in starts(path)].count("held") == 2
