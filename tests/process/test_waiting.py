"""Waiting for many jobs, with real fleets: all, each as it ends, the first; bars; what each does with failures."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import APPS, Fleet, Gate, environment_of, in_directory, running, starts

from taskq import (
    ConfigError,
    Job,
    JobCancelled,
    JobFailed,
    JobNotFound,
    ResultTimeout,
    TaskQ,
    aas_completed,
    agather,
    as_completed,
    await_any,
    gather,
    wait_any,
)

DEADLINE_S = 60.0
NOBODY = "00" * 16


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on a loop of its own, with a deadline."""
    return asyncio.run(asyncio.wait_for(main, DEADLINE_S))


def a_gather(handles: Any, **options: Any) -> Any:
    """`agather` on a loop of its own."""
    return run(agather(handles, **options))


def a_as_completed(handles: Any, **options: Any) -> list[Job[Any]]:
    """`aas_completed` on a loop of its own."""

    async def main() -> list[Job[Any]]:
        return [job async for job in aas_completed(handles, **options)]

    return run(main())


def a_wait_any(handles: Any, **options: Any) -> Job[Any]:
    """`await_any` on a loop of its own."""
    return run(await_any(handles, **options))


gathers = pytest.mark.parametrize("gather", [gather, a_gather])
completes = pytest.mark.parametrize("as_completed", [as_completed, a_as_completed])
anys = pytest.mark.parametrize("wait_any", [wait_any, a_wait_any])


def connections(pid: int) -> int:
    """How many sockets a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    links = 0
    for descriptor in folder.iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile
            links += os.readlink(descriptor).startswith("socket:")
    return links


@pytest.mark.usefixtures("shared")
@gathers
def test_results_in_the_order_of_the_jobs(gather: Any) -> None:
    handles = jobs.add.enqueue_many((number, 1) for number in range(200))
    assert gather(handles, timeout=20) == list(range(1, 201))
    assert gather(iter(handles[::-1])) == list(range(200, 0, -1))
    assert gather([]) == []
    assert gather(handles[:2] * 3) == [1, 2] * 3, "one that is there twice has its result there twice"


@pytest.mark.usefixtures("shared")
@gathers
def test_timeout_zero_takes_what_has_ended(gather: Any) -> None:
    handles = jobs.add.enqueue_many((number, 1) for number in range(3000))
    gather(handles)
    assert gather(handles, timeout=0) == list(range(1, 3001))


@gathers
def test_ten_thousand_jobs_take_one_connection(shared: Fleet, gather: Any, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    starts(tmp_path / "held", 1)
    handles = [held, *jobs.add.enqueue_many((number, 1) for number in range(10_000))]
    broker = shared.broker_pid
    gather(handles[1:2])  # the connections of before are there
    before = connections(broker)
    seen: list[int] = []
    counts: list[int] = []

    def note(done: int, _total: int | None) -> None:
        seen.append(done)
        if done == 10_000:
            counts.append(connections(broker))
            gate.open()

    assert gather(handles, progress=note, timeout=DEADLINE_S) == ["held", *range(1, 10_001)]
    assert counts[0] - before <= 1
    assert seen == list(range(10_002))


@pytest.mark.usefixtures("shared")
@gathers
def test_the_first_failure_ends_the_wait(gather: Any, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    failing = jobs.fail.enqueue("no such thing")
    with pytest.raises(JobFailed, match="no such thing"):
        gather([held, failing])
    gate.open()
    assert gather([held]) == ["held"], "it went on"
    with pytest.raises(JobNotFound, match=NOBODY):
        gather([jobs.q.job(NOBODY), held])


@pytest.mark.usefixtures("shared")
@gathers
def test_errors_in_the_places_of_their_jobs(gather: Any) -> None:
    ends = gather(
        [jobs.add.enqueue(1), jobs.fail.enqueue("a"), jobs.q.job(NOBODY), jobs.add.enqueue(2)], errors="return"
    )
    assert [type(end) for end in ends] == [int, JobFailed, JobNotFound, int]
    assert ends[1].error_message == "a"
    with pytest.raises(ConfigError, match="'raise' or 'return'"):
        gather([], errors="ignore")


@gathers
def test_cancelled_jobs(home: Path, gate: Gate, gather: Any, tmp_path: Path) -> None:
    with running(Fleet(home, consumers=1)):
        jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
        starts(tmp_path / "held", 1)
        waiting = jobs.add.enqueue(1)
        assert waiting.cancel()
        [end] = gather([waiting], errors="return")
        assert isinstance(end, JobCancelled)
        gate.open()


@pytest.mark.usefixtures("shared")
@gathers
def test_a_timeout_tells_how_many_are_left(gather: Any, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    done = jobs.add.enqueue(1)
    done.result()
    with pytest.raises(ResultTimeout, match=r"^1 of 2 jobs has not ended within 0.2 s; it goes on$"):
        gather([held, done], timeout=0.2)
    with pytest.raises(ResultTimeout, match=r"^1 of 1 jobs"):
        gather([held], timeout=0)
    gate.open()
    assert gather([held, done]) == ["held", 2]


@pytest.mark.usefixtures("shared")
@completes
def test_handles_in_the_order_of_their_ends(as_completed: Any, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    gates = [make_gate() for _ in range(2)]
    first, second = (jobs.hold.enqueue(gate.path, str(tmp_path / f"{number}")) for number, gate in enumerate(gates))
    for number in range(2):
        starts(tmp_path / f"{number}", 1)
    gates[1].open()
    assert second.result(timeout=20) == "held"
    gates[0].open()
    assert first.result(timeout=20) == "held"
    failed = jobs.fail.enqueue("x")
    assert set(as_completed([first, second, failed, second])) == {first, second, failed}
    assert list(as_completed([])) == []
    with pytest.raises(JobNotFound, match=NOBODY):
        list(as_completed([jobs.q.job(NOBODY)]))


@pytest.mark.usefixtures("shared")
def test_each_is_there_when_it_ends(make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    gates = [make_gate() for _ in range(2)]
    handles = [jobs.hold.enqueue(gate.path, str(tmp_path / f"{number}")) for number, gate in enumerate(gates)]
    ended = as_completed(handles, timeout=20)
    gates[1].open()
    assert next(ended) == handles[1]
    gates[0].open()
    assert next(ended) == handles[0]
    assert list(ended) == []


@pytest.mark.usefixtures("shared")
def test_each_is_there_when_it_ends_in_asyncio(make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    gates = [make_gate() for _ in range(2)]
    handles = [jobs.hold.enqueue(gate.path, str(tmp_path / f"{number}")) for number, gate in enumerate(gates)]

    async def main() -> None:
        ended = aas_completed(handles, timeout=20)
        gates[1].open()
        assert await anext(ended) == handles[1]
        gates[0].open()
        assert await anext(ended) == handles[0]
        assert await anext(ended, None) is None

    run(main())


@completes
def test_a_handle_brings_its_result_along(home: Path, as_completed: Any) -> None:
    with running(Fleet(home, consumers=1)):
        handles = [jobs.add.enqueue(1), jobs.echo.enqueue((2, 3)), jobs.fail.enqueue("x")]
        ended = {job: job for job in as_completed(handles)}
    assert [ended[job].result(timeout=0) for job in handles[:2]] == [2, (2, 3)], "with no fleet to ask"
    assert asyncio.run(ended[handles[0]].aresult(timeout=0)) == 2
    with pytest.raises(ResultTimeout if in_directory() else JobFailed):  # a database is there to ask
        ended[handles[2]].result(timeout=0)  # a failed one may have been run again


@pytest.mark.usefixtures("shared")
@completes
def test_a_stream_that_is_left_early_disturbs_nobody(as_completed: Any) -> None:
    handles = jobs.add.enqueue_many((number, 1) for number in range(100))
    for job in as_completed(handles):
        assert job in handles
        break
    assert gather(handles) == list(range(1, 101))


@pytest.mark.usefixtures("shared")
@anys
def test_the_first_of_some(wait_any: Any, gate: Gate, tmp_path: Path) -> None:
    held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
    with pytest.raises(ResultTimeout, match="1 of 1 jobs has not ended within 0.1 s; it goes on"):
        wait_any([held], timeout=0.1)
    quick = jobs.add.enqueue(1)
    assert wait_any([held, quick], timeout=20) == quick
    gate.open()
    assert wait_any([held], timeout=20).result() == "held"
    with pytest.raises(ConfigError, match="no job"):
        wait_any([])


@gathers
def test_jobs_of_other_directories(home: Path, tmp_path: Path, gather: Any) -> None:
    other = TaskQ("other", url=tmp_path / "other")
    with pytest.raises(ConfigError, match="different queues"):
        gather([jobs.q.job(NOBODY), other.job("11" * 16)])


@gathers
def test_a_broker_that_dies_meanwhile(home: Path, gather: Any, gate: Gate, tmp_path: Path) -> None:
    with running(Fleet(home)) as fleet:
        handles = jobs.add.enqueue_many((number, 1) for number in range(100))
        held = jobs.hold.enqueue(gate.path, str(tmp_path / "held"))
        starts(tmp_path / "held", 1)

        def kill(done: int, _total: int | None) -> None:
            if done == 100:
                fleet.kill(fleet.broker_pid)
                starts(tmp_path / "held", 2)
                gate.open()

        assert gather([*handles, held], progress=kill, timeout=20) == [*range(1, 101), "held"]
        fleet.expected.add("broker.died")


@pytest.mark.usefixtures("shared")
def test_more_results_than_the_broker_keeps_for_one_client() -> None:
    """The broker reads nothing from a client that leaves 8 MiB unread: then ids must not block what reads them."""
    large = jobs.echo.enqueue_many([(bytes(1_000_000),) for _ in range(40)])
    unknown = [jobs.q.job(f"{number:032x}") for number in range(40_000)]
    gather(large)
    ends = gather([*large, *unknown], errors="return", timeout=20)
    assert [len(end) for end in ends[:40] if isinstance(end, bytes)] == [1_000_000] * 40
    assert {type(end) for end in ends[40:]} == {JobNotFound}


# -- jobs without a result


@pytest.mark.usefixtures("shared")
def test_a_result_that_nobody_wants() -> None:
    assert jobs.drop.enqueue(1).result(timeout=20) is None
    assert jobs.add.options(result=False).enqueue(1).result(timeout=20) is None
    mixed = [jobs.add.enqueue(1), jobs.add.options(result=False).enqueue(1), jobs.add.enqueue(2)]
    assert gather(mixed, timeout=20) == [2, None, 3]
    with pytest.raises(JobFailed, match="UnserializableResult"):
        jobs.drop.options(result=True).enqueue(1).result(timeout=20)
    with pytest.raises(JobFailed, match="no luck"):
        jobs.fail.options(result=False).enqueue("no luck").result(timeout=20)
    with pytest.raises(ConfigError, match="result='no'"):
        jobs.add.options(result="no")  # type: ignore[arg-type]


def test_a_result_that_nobody_wants_waits_in_the_spool(home: Path) -> None:
    job = jobs.add.options(result=False).enqueue(1)
    with running(Fleet(home, consumers=1)):
        assert job.result(timeout=20) is None


# -- progress


@pytest.mark.usefixtures("shared")
def test_progress_of_map() -> None:
    told: list[tuple[int, int | None]] = []
    assert list(jobs.add.map(range(3), progress=lambda done, total: told.append((done, total)))) == [1, 2, 3]
    assert told == [(number, 3) for number in range(4)]
    told.clear()
    list(jobs.add.starmap(((number, 1) for number in range(2)), progress=lambda *told_of: told.append(told_of)))
    assert told == [(number, None) for number in range(3)]


_SHOWS = """
from apps import jobs
from taskq import gather
from taskq.system.place import place_of
jobs.q.use_place(place_of("tests"))
print(sum(jobs.add.map(range(50), progress=True)), sum(gather(jobs.add.enqueue_many([(1,)] * 30), progress=True)))
"""


def test_a_bar_on_a_terminal(shared: Fleet) -> None:
    ours, theirs = pty.openpty()
    arguments, environment = [sys.executable, "-c", _SHOWS], {**os.environ, **environment_of(shared.home)}
    with subprocess.Popen(
        arguments, env=environment, cwd=APPS.parent, stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as program:
        os.close(theirs)
        shown = io.BytesIO()
        try:
            while data := os.read(ours, 65536):
                shown.write(data)
        except OSError:
            pass  # a terminal's end
        assert program.stdout is not None
        assert program.stdout.read() == "1275 60\n"
    os.close(ours)
    text = shown.getvalue().decode()
    assert "add" in text
    assert "50/50" in text
    assert "30/30" in text


def test_no_bar_elsewhere(shared: Fleet) -> None:
    arguments, environment = [sys.executable, "-c", _SHOWS], {**os.environ, **environment_of(shared.home)}
    done = subprocess.run(
        arguments, env=environment, cwd=APPS.parent, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "1275 60\n"
    assert done.stderr == ""
