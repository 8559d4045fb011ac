"""Limits over two fleets on one PostgreSQL database: they hold whatever is killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from apps import shared_limits as tasks
from fleet import APPS, Gate, running, wait_until
from machines import MachineFleet, use_database
from postgres import Server, running_server

from taskq import Job

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

APP = f"{APPS / 'shared_limits.py'}:q"
Start = Callable[..., MachineFleet]
MakeGate = Callable[[], Gate]


class Line(NamedTuple):
    """What a job has noted: the limit that it has, "start" or "end", its number, and its place there."""

    limit: str
    what: str
    number: int
    place: str


def lines(path: Path) -> list[Line]:
    """What all jobs have noted, in order."""
    if not path.exists():
        return []
    return [Line(limit, what, int(number), place) for limit, what, number, place in map(str.split, path.open())]


def wait_for_lines(path: Path, count: int, what: str = "start") -> list[Line]:
    """Waits until jobs have noted so much."""
    return wait_until(
        lambda: found if len(found := [each for each in lines(path) if each.what == what]) >= count else None,
        f"{count} lines {what!r} in {path}",
    )


def judge(path: Path) -> None:
    """Checks that no job was one too many, and that none of a line began before those ahead of it had ended."""
    ended: dict[str, set[int]] = {}
    for limit, what, number, place in lines(path):
        assert place != "none", f"{limit} {number} ran beside others"
        own = ended.setdefault(limit, set())
        if what == "end":
            own.add(number)
        elif limit.startswith("line"):
            assert own >= set(range(number)), f"{limit} {number} began before {set(range(number)) - own} had ended"


@pytest.fixture(autouse=True)
def apps_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(APPS.parent))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lines"


@pytest.fixture
def start(postgres: Server, database: str, tmp_path: Path) -> Iterator[Start]:
    """Starts fleets of machines by name on a database of the test's own."""
    url = f"{postgres.url(database)}&lease=2"
    use_database(tasks.q, tmp_path / "client", url)

    def start(name: str, **settings: object) -> MachineFleet:
        return stack.enter_context(running(MachineFleet(tmp_path / name, url, APP, **{"consumers": 3, **settings})))

    with ExitStack() as stack:
        yield start


def enqueue_some(path: Path, few: int, in_line: int) -> list[Job]:
    """Jobs that are one of few, and jobs of two lines."""
    made = tasks.one_of_few.enqueue_many((str(path), number) for number in range(few))
    for number in range(in_line):
        made += tasks.in_line.enqueue_many((str(path), key, number) for key in "ab")
    return made


def test_limits_hold_over_machines_whatever_is_killed(start: Start, path: Path) -> None:
    """Consumers and brokers of both are killed at any time, and a whole machine at last, whose share comes back."""
    one, two = start("one"), start("two")
    made = enqueue_some(path, few=40, in_line=8)
    for number, kill in enumerate(
        (
            lambda: one.kill(one.consumer_pids()[0]),
            lambda: two.kill(two.broker_pid),
            lambda: two.kill(two.consumer_pids()[-1]),
            lambda: one.kill(one.broker_pid),
            two.kill_all,
        ),
        1,
    ):
        wait_for_lines(path, 8 * number)
        kill()
        if number in (2, 4):
            wait_until(lambda: one.consumer_pids() and two.consumer_pids(), "consumers of both")
    for job in made:
        job.result(timeout=60)
    judge(path)
    found = lines(path)
    assert {each.place for each in found if each.limit == "few"} != {"none"}
    assert len({each.number for each in found if (each.limit, each.what) == ("few", "end")}) == 40
    assert tasks.one_of_few.enqueue(str(path), 100).wait(timeout=30), "nobody holds what the lost machine had"


def test_why_names_the_limit_and_its_holders_on_another_machine(start: Start, path: Path, gate: Gate) -> None:
    start("one", consumers=1)
    holder = tasks.hold.enqueue(gate.path, str(path), "k", 1)
    wait_for_lines(path, 1)
    start("two", consumers=1)
    other = tasks.hold.enqueue(gate.path, str(path), "other", 2)
    wait_for_lines(path, 2)
    waiting = tasks.hold.enqueue(gate.path, str(path), "k", 3)

    def told() -> bool:
        limits = [reason for reason in waiting.why().reasons if reason.limit is not None]
        return [(r.limit.kind, r.limit.name, r.limit.used, [j.id for j in r.jobs]) for r in limits if r.limit] == [
            ("concurrency", f"{tasks.hold.name} k", 1, [holder.id])
        ]

    wait_until(told, "the limit and its holder")
    gate.open()
    assert all(job.wait(timeout=30) for job in (holder, other, waiting))


def test_a_fleet_that_is_cut_off_stops_what_must_be_alone(tmp_path: Path, path: Path, make_gate: MakeGate) -> None:
    """Before another machine may take it, and uncharged. What need not be alone goes on."""
    with running_server() as server:
        url = f"{server.url(server.create_database())}&lease=2"
        use_database(tasks.q, tmp_path / "client", url)
        with running(MachineFleet(tmp_path / "one", url, APP, consumers=2)) as fleet:
            gate = make_gate()
            alone = tasks.hold.enqueue(gate.path, str(path), "k", 1)
            shared = tasks.hold_shared.enqueue(gate.path, str(path), 2)
            wait_for_lines(path, 2)
            server.freeze()
            fleet.wait_for("consumer.exited", signal="SIGKILL")
            server.thaw()
            found = wait_for_lines(path, 3)
            gate.open()
            assert alone.wait(timeout=30)
            assert shared.wait(timeout=30)
            assert sorted(line.limit for line in found) == ["hold-k", "hold-k", "shared"]
            assert (alone.info().crashes, shared.info().attempts) == (0, 1)


def test_a_rate_holds_over_machines(start: Start, path: Path) -> None:
    """Some of what it allows would start at once on each machine."""
    start("one")
    start("two")
    made = tasks.rated.enqueue_many((str(path), number) for number in range(8))
    for job in made:
        job.result(timeout=30)
    at = sorted(job.info().started_at or 0.0 for job in made)  # a busy machine may run the job itself later
    assert len(lines(path)) == 8
    assert all(later - first > 2.0 for first, later in zip(at, at[6:], strict=False)), at


def test_a_job_runs_on_a_machine_that_has_what_it_needs(start: Start, path: Path) -> None:
    start("one")
    with_gpu = start("two", resources=(("gpu", 2),))
    made = tasks.on_gpu.enqueue_many((str(path), number) for number in range(20))
    for job in made:
        job.result(timeout=30)
    assert {int(line.place) for line in lines(path)} <= set(with_gpu.consumer_pids())
