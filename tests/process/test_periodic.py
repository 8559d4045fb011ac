"""Schedules on real fleets: they fire on time and never twice, whatever dies, and obey commands."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apps import jobs, periodic
from fleet import APPS, Fleet, Gate, Started, environment_of, starts, use, wait_until

from taskq import (
    BrokerUnavailable,
    ConfigError,
    JobState,
    PayloadError,
    ScheduleInfo,
    ScheduleNotFound,
    TaskQ,
    TaskQError,
)
from taskq.model.exits import Exit
from taskq.model.job import enqueued_at
from taskq.model.limits import MAX_DECLARED_SCHEDULES
from taskq.model.schedule import fired_id
from taskq.model.spec import Spec
from taskq.protocol.answers import value_of
from taskq.protocol.frames import frame
from taskq.protocol.ops import Op
from taskq.protocol.requests import GetStatus

Start = Callable[..., Fleet]
PERIODIC = f"{APPS / 'periodic.py'}:q"
EVERY_S = 0.2
KILLS = 10


@pytest.fixture
def declare(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes the schedules that `apps.periodic` declares when it is imported."""
    path = tmp_path / "schedules.json"
    monkeypatch.setenv("TASKQ_TEST_SCHEDULES", str(path))
    use(periodic.q, home)

    def write(*schedules: dict[str, Any]) -> None:
        path.write_text(json.dumps(schedules))

    write()
    return write


@pytest.fixture
def schedules(shared: Fleet) -> Iterator[Any]:
    """The schedules of the shared fleet. None of them is left afterwards."""
    yield jobs.q.schedules
    for info in jobs.q.schedules.list():
        jobs.q.schedules.remove(info.name)


def names(app: TaskQ = jobs.q) -> list[str]:
    """The names of all schedules."""
    return [info.name for info in app.schedules.list()]


def info_of(app: TaskQ, name: str) -> ScheduleInfo:
    """What is known of one schedule."""
    [info] = [info for info in app.schedules.list() if info.name == name]
    return info


def let_pass(fires: int) -> None:
    """Waits until this many multiples of EVERY_S are over."""
    end = time.time() + fires * EVERY_S
    wait_until(lambda: time.time() > end, "time for some fires")


def multiples(first: float, last: float) -> list[float]:
    """The nominal times of EVERY_S from one to another."""
    return [number * EVERY_S for number in range(round(first / EVERY_S), round(last / EVERY_S) + 1)]


def times_of(lines: list[Started], name: str) -> list[float]:
    """The nominal times of the jobs of a schedule, by their ids, which nothing else has."""
    found = {line.job_id for line in lines}
    around = enqueued_at(bytes.fromhex(min(found))) - 1, enqueued_at(bytes.fromhex(max(found))) + 1
    times = {fired_id(name, at).hex(): at for at in multiples(*around)}
    return sorted(times[job_id] for job_id in found)


def fired_at(line: Started) -> float:
    """For which time a job was made."""
    return enqueued_at(bytes.fromhex(line.job_id))


# -- fires


@pytest.mark.parametrize("misfire", ["all", "once"])
def test_kills_of_the_broker_double_nothing(start: Start, declare: Any, tmp_path: Path, misfire: str) -> None:
    """With "all" nothing is left out either: each multiple of the interval has one job."""
    path = tmp_path / "starts"
    declare({"task": "note", "name": "pulse", "every": EVERY_S, "misfire": misfire, "args": [str(path), "pulse"]})
    fleet = start(PERIODIC, consumers=1)
    for _ in range(KILLS):
        seen = len(starts(path))
        starts(path, seen + 2)
        pid = fleet.broker_pid
        fleet.kill(pid)
        wait_until(lambda pid=pid: fleet.broker_pid != pid, "another broker")
    starts(path, len(starts(path)) + 3)
    periodic.q.schedules.pause("pulse")
    last_at = info_of(periodic.q, "pulse").last_at
    assert last_at is not None
    wait_until(lambda: all(job.state.is_final for job in periodic.q.jobs(limit=None)), "all jobs done")
    times = times_of(starts(path), "pulse")
    assert len(times) == len(periodic.q.jobs(limit=None)), "a job for each time, and no other"
    fleet.wait_for_totals(enqueued=len(times), succeeded=len(times))
    expected = multiples(times[0], last_at)
    assert times[-1] == pytest.approx(last_at)
    if misfire == "all":
        assert times == pytest.approx(expected)
    else:  # how many are left out depends on how long it takes until another broker is there
        assert {round(at / EVERY_S) for at in times} <= {round(at / EVERY_S) for at in expected}
        assert len(times) >= KILLS + 3  # two starts before each kill, of which one may be that of a job that runs again
    assert fleet.count("schedule.refused") == 0


def test_fires_are_on_time(start: Start, declare: Any, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    declare({"task": "note", "every": "200ms", "args": [str(path), "x"]})
    fleet = start(PERIODIC)
    offset_s = time.time() - time.monotonic()

    def late_s() -> list[float]:
        lines = starts(path, 12)
        times = zip(lines, times_of(lines, "note"), strict=True)
        return [line.at + offset_s - nominal for line, nominal in times]

    wait_until(lambda: min(late_s()) < 0.1, "a fire that is on time: the machine may be busy")
    assert min(late_s()) > -0.001, "never early"
    assert fleet.count("schedule.missed") == 0


def test_schedules_fire_with_threads(start: Start, declare: Any, tmp_path: Path) -> None:
    """A consumer that runs several jobs at once also reports the schedules in the code."""
    path = tmp_path / "starts"
    declare({"task": "note", "every": "200ms", "args": [str(path), "x"]})
    start(PERIODIC, threads=4)
    assert len(starts(path, 3)) >= 3


def test_a_power_cut_keeps_schedules(start: Start, home: Path, tmp_path: Path) -> None:
    """What was added at run time, with its pause and its last time."""
    path = tmp_path / "starts"
    fleet = start()
    jobs.q.schedules.add("pulse", jobs.note, every=EVERY_S, misfire="all", args=(str(path), "x"))
    jobs.q.schedules.add("later", "note", "0 0 1 1 *", timezone="Europe/Berlin", jitter="1m", args=("", ""))
    jobs.q.schedules.pause("later")
    before = starts(path, 2)
    fleet.kill_all()
    let_pass(5)
    fleet.start()
    starts(path, len(before) + 6)
    later = info_of(jobs.q, "later")
    assert (later.is_paused, later.timezone, later.jitter, later.next_at) == (True, "Europe/Berlin", 60.0, None)
    jobs.q.schedules.remove("pulse")
    wait_until(lambda: all(job.state.is_final for job in jobs.q.jobs(limit=None)), "all jobs done")
    times = times_of(starts(path), "pulse")
    assert times == pytest.approx(multiples(times[0], times[-1])), "made up for"
    assert fleet.wait_for("schedule.missed")["misfire"] == "all"


def test_overlap(start: Start, declare: Any, gate: Gate, tmp_path: Path) -> None:
    path, other = tmp_path / "starts", tmp_path / "other"
    held = {"task": "hold", "every": EVERY_S, "args": [str(path), gate.path], "overlap": "skip"}
    declare(held, {"task": "note", "every": EVERY_S, "args": [str(other), "x"]})
    fleet = start(PERIODIC)
    [first] = starts(path, 1)
    seen = len(starts(other))
    starts(other, seen + 6)
    assert starts(path) == [first], "the first one has not ended"
    skipped = fleet.wait_for("schedule.skipped")
    assert (skipped["schedule"], skipped["job_id"]) == ("hold", first.job_id)
    assert fleet.count("schedule.skipped") == 1, "told once, not with each fire"
    gate.open()
    again = starts(path, 3)
    assert len({line.job_id for line in again}) == len(again)


def test_a_fire_is_kept_back(start: Start, declare: Any, gate: Gate, tmp_path: Path) -> None:
    """At most one, even across a power cut; it starts when the one before has ended."""
    path = tmp_path / "starts"
    declare({"task": "hold", "every": EVERY_S, "args": [str(path), gate.path], "overlap": "buffer_one"})
    fleet = start(PERIODIC, consumers=2)
    [first] = starts(path, 1)
    told = fleet.wait_for("schedule.buffered")
    kept_back = periodic.q.job(told["job_id"])
    assert (told["schedule"], told["after"]) == ("hold", first.job_id)
    assert kept_back.state() is JobState.WAITING
    assert fleet.wait_for("schedule.skipped")["reason"] == "the job of the last fire is still kept back"
    fleet.kill_all()
    fleet.start()
    assert [line.job_id for line in starts(path, 2)] == [first.job_id] * 2, "the one that was running, again"
    fleet.wait_for("schedule.skipped", skip=1)
    assert kept_back.state() is JobState.WAITING
    assert info_of(periodic.q, "hold").last_job_id == kept_back.id
    gate.open()
    assert starts(path, 3)[2].job_id == kept_back.id
    assert periodic.q.job(first.job_id).state() is JobState.SUCCEEDED


def test_what_was_kept_back_is_cancelled(start: Start, declare: Any, gate: Gate, tmp_path: Path) -> None:
    """The next fire is kept back in its place: it does not start beside what runs."""
    path = tmp_path / "starts"
    declare({"task": "hold", "every": EVERY_S, "args": [str(path), gate.path], "overlap": "buffer_one"})
    fleet = start(PERIODIC, consumers=2)
    [first] = starts(path, 1)
    assert periodic.q.job(fleet.wait_for("schedule.buffered")["job_id"]).cancel()
    again = fleet.wait_for("schedule.buffered", skip=1)
    assert again["after"] == first.job_id
    assert [line.job_id for line in starts(path)] == [first.job_id]
    assert periodic.q.job(first.job_id).cancel()
    assert starts(path, 2)[1].job_id == again["job_id"], "in whatever way the one before has ended"
    gate.open()


# -- at run time


def test_add_list_remove(schedules: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "starts")
    added = schedules.add("nightly", jobs.note, "30 3 * * *", timezone="Europe/Berlin", args=(path, "x"), jitter=30)
    schedules.add("by.name", "unknown_here", every=timedelta(minutes=1), misfire="skip", overlap="skip")
    assert names() == ["by.name", "nightly"]
    assert info_of(jobs.q, "nightly") == added
    assert (added.task, added.cron, added.every, added.is_declared, added.last_at) == (
        "note",
        "30 3 * * *",
        None,
        False,
        None,
    )
    assert 0 < added.next_at - time.time() < 86_400 + 3_600 + 30
    other = info_of(jobs.q, "by.name")
    assert (other.every, other.misfire, other.overlap, other.task) == (60.0, "skip", "skip", "unknown_here")
    assert other.next_at % 60 == 0
    changed = schedules.add("nightly", jobs.note.options(queue="slow"), "0 4 * * *", args=(path, "y"))
    assert (changed.cron, changed.queue, changed.timezone, names()) == (
        "0 4 * * *",
        "slow",
        "UTC",
        ["by.name", "nightly"],
    )
    schedules.remove("nightly")
    assert names() == ["by.name"]
    with pytest.raises(ScheduleNotFound, match=r"nightly.*there are: by\.name"):
        schedules.remove("nightly")


def test_pause_resume_run(shared: Fleet, schedules: Any, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    schedules.add("pulse", jobs.note, every=EVERY_S, args=(str(path), "x"))
    starts(path, 2)
    assert schedules.pause("pulse").is_paused
    assert schedules.pause("pulse").is_paused, "asked again, it stays so"
    wait_until(lambda: (totals := shared.totals())["succeeded"] == totals["enqueued"], "all jobs done")
    before = starts(path)
    let_pass(3)
    job = schedules.run("pulse")
    assert job.result(timeout=10) == "x", "also while it is paused"
    assert [line.job_id for line in starts(path)] == [*(line.job_id for line in before), job.id]
    asked_at = time.time()
    resumed = schedules.resume("pulse")
    assert resumed.next_at > asked_at
    fired = starts(path, len(before) + 3)[len(before) + 1 :]
    assert times_of(fired, "pulse")[0] == pytest.approx(resumed.next_at), "what was not fired is not made up for"
    for action in (schedules.pause, schedules.resume, schedules.run):
        with pytest.raises(ScheduleNotFound):
            action("other")


def test_run_again_with_the_same_id_is_one_job(shared: Fleet, schedules: Any) -> None:
    """A client that lost its answer asks again."""
    schedules.add("yearly", jobs.add, "@yearly", args=(1,))
    job_id = bytes.fromhex("01a1fd9994187eccaf4d32842f4a7646")
    enqueued = shared.totals()["enqueued"]
    for _ in range(2):
        jobs.q.client.run_schedule("yearly", job_id)
    shared.wait_for_totals(enqueued=enqueued + 1)
    assert jobs.q.job(job_id.hex()).result(timeout=10) == 2


def test_asyncio(schedules: Any) -> None:
    async def program() -> list[Any]:
        added = await schedules.aadd("yearly", jobs.add, "@yearly", args=(20,), kwargs={"b": 22}, misfire="skip")
        paused, resumed = await schedules.apause("yearly"), await schedules.aresume("yearly")
        value = await (await schedules.arun("yearly"))
        listed = await schedules.alist()
        await schedules.aremove("yearly")
        with pytest.raises(ScheduleNotFound):
            await schedules.aremove("yearly")
        return [added.misfire, paused.is_paused, resumed.is_paused, value, len(listed), len(await schedules.alist())]

    assert asyncio.run(program()) == ["skip", True, False, 42, 1, 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cron": "* * * *"}, "five fields"),
        ({}, "or an interval"),
        ({"cron": "* * * * *", "every": 5}, "give it a cron expression"),
        ({"every": "soon"}, "every='soon'"),
        ({"every": 5, "misfire": "never"}, "misfire"),
        ({"cron": "* * * * *", "timezone": "Nowhere"}, "no time zone"),
        ({"every": 5, "args": (1, 2, 3)}, "too many positional arguments"),
        ({"every": 5, "kwargs": {"c": 3}}, "unexpected keyword"),
        ({"every": 5, "args": "text"}, "tuple of arguments"),
        ({"every": 5, "args": ("x" * 40_000,)}, "path of a file"),
    ],
)
def test_what_makes_no_sense_is_refused(schedules: Any, given: dict[str, Any], words: str) -> None:
    """The same when it is added and when it is declared."""
    fields: dict[str, Any] = {"args": (1,), **given}
    with pytest.raises(ConfigError, match=words):
        schedules.add("bad", jobs.add, **fields)
    app = TaskQ("bad")
    cron = fields.pop("cron", None)
    with pytest.raises(ConfigError, match=words):
        app.periodic(cron, **fields)(jobs.add.function)
    assert not app.schedules.declared
    assert names() == []


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(TypeError, match=r"no such option: 'evry'; there are .*every"):
        jobs.q.schedules.add("bad", "add", evry=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no such option: 'evry'"):
        TaskQ("bad").periodic(evry=5)(jobs.add.function)  # type: ignore[call-arg]


def test_arguments_that_cannot_travel() -> None:
    with pytest.raises(PayloadError, match=r"args\[0\]"):
        jobs.q.schedules.add("bad", "add", every=5, args=(object(),))


@pytest.mark.not_on_postgres("a database is there without a fleet")
def test_without_a_fleet(home: Path) -> None:
    for action in (jobs.q.schedules.list, lambda: jobs.q.schedules.add("x", "add", every=5, args=(1,))):
        with pytest.raises(BrokerUnavailable):
            action()


# -- in code


def test_decorators() -> None:
    app = TaskQ("decorated")

    @app.periodic("*/5 * * * *", name="often", args=(1,))
    @app.periodic(every="1h", args=(2,), kwargs={"b": 3})
    @app.task(queue="other")
    def both(a: int, b: int = 0) -> int:
        return a + b

    @app.periodic("@daily", timezone="Europe/Berlin")
    def plain() -> str:
        return "plain"

    assert (both(1, b=2), plain()) == (3, "plain")
    assert set(app.tasks) == {"both", "plain"}
    assert len(app.schedules.declared) == 3
    with pytest.raises(ConfigError, match="name='both'|'both' is taken"):
        app.periodic(every=5, args=(1,))(both)
    with pytest.raises(ConfigError, match="another application"):
        TaskQ("stranger").periodic(every=5)(plain)
    with pytest.raises(ConfigError, match=r"write @q\.periodic\(.* or @q\.periodic\(every=30\)"):
        app.periodic(plain)  # type: ignore[arg-type]


def test_a_module_that_is_imported_again() -> None:
    """Its functions are made anew, its schedules are the same."""
    app = TaskQ("again")
    for every in (5, 6):
        source = "@app.periodic(every=every)\ndef f(): pass"
        exec(compile(source, "again.py", "exec"), {"app": app, "every": every, "__name__": "again"})
    assert len(app.schedules.declared) == 1


def test_too_many_in_code() -> None:
    app = TaskQ("many")
    task = app.task(jobs.add.function)
    for number in range(MAX_DECLARED_SCHEDULES):
        app.periodic(every=5, args=(1,), name=f"n{number}")(task)
    with pytest.raises(ConfigError, match="at run time"):
        app.periodic(every=5, args=(1,))(task)


def test_code_that_changes(start: Start, declare: Any, tmp_path: Path) -> None:
    """A reload adds, changes and removes; what was added at run time stays, and so does a pause."""
    schedules, path = periodic.q.schedules, str(tmp_path / "starts")
    stays = {"task": "note", "name": "stays", "cron": "0 3 * * *", "args": [path, "x"]}
    changes = {"task": "note", "name": "changes", "cron": "0 3 * * *", "args": [path, "x"]}
    declare(stays, changes, {**stays, "name": "goes"})
    fleet = start(PERIODIC, consumers=1)
    schedules.add("added", "note", every=3600, args=(path, "x"))
    assert names(periodic.q) == ["added", "changes", "goes", "stays"]
    for name in ("stays", "changes"):
        schedules.pause(name)
    with pytest.raises(ConfigError, match=r"is declared in the code of periodic.*pause it"):
        schedules.remove("goes")
    with pytest.raises(ConfigError, match="is declared in the code"):
        schedules.add("stays", "note", every=5, args=(path, "x"))
    declare(stays, {**changes, "cron": "0 4 * * *"}, {**stays, "name": "comes", "every": 3600, "cron": None})
    fleet.client.reload()
    fleet.wait_for("schedule.declared", skip=1)
    assert names(periodic.q) == ["added", "changes", "comes", "stays"]
    assert [info.is_paused for info in schedules.list()] == [False, True, False, True]
    assert schedules.resume("changes").cron == "0 4 * * *"
    assert schedules.resume("changes").next_at % 86_400 == 4 * 3600
    assert not info_of(periodic.q, "added").is_declared


def test_what_left_the_code_while_no_fleet_ran_does_not_fire(start: Start, declare: Any, tmp_path: Path) -> None:
    """Not even what was missed: the code is asked first."""
    path = tmp_path / "starts"
    pulse = {"task": "note", "every": EVERY_S, "misfire": "all", "args": [str(path), "pulse"]}
    declare(pulse)
    fleet = start(PERIODIC)
    starts(path, 2)
    fleet.stop()
    stopped_at = time.time()
    let_pass(3)
    declare({**pulse, "name": "other", "args": [str(path), "other"]})
    fleet.start()
    wait_until(lambda: sum(line.label == "other" for line in starts(path)) >= 3, "the other one")
    assert [line for line in starts(path) if line.label == "pulse" and fired_at(line) > stopped_at] == []
    assert names(periodic.q) == ["other"]


def test_an_application_that_is_not_run_does_not_fire(start: Start, declare: Any, home: Path, tmp_path: Path) -> None:
    """Its tasks are not there. Its schedules are kept for it, and can be removed."""
    path = tmp_path / "starts"
    declare({"task": "note", "name": "theirs", "every": EVERY_S, "args": [str(path), "x"]})
    fleet = start(PERIODIC)
    starts(path, 1)
    fleet.stop()
    stopped_at = time.time()
    other = start()
    jobs.q.schedules.add("ours", jobs.note, every=EVERY_S, args=(str(path), "ours"))
    wait_until(lambda: sum(line.label == "ours" for line in starts(path)) >= 5, "ours")
    assert [line for line in starts(path) if line.label == "x" and fired_at(line) > stopped_at] == []
    assert names() == ["ours", "theirs"]
    jobs.q.schedules.remove("theirs")
    assert names() == ["ours"]
    other.wait_for_totals(failed=0)


def test_fired_jobs_are_jobs_of_their_task(start: Start, declare: Any, tmp_path: Path) -> None:
    path = tmp_path / "starts"
    declare({"task": "note", "every": EVERY_S, "args": [str(path)], "kwargs": {"label": "named"}})
    start(PERIODIC)
    line, following = starts(path, 2)[:2]
    assert line.label == "named"
    info = periodic.q.job(line.job_id).info()
    assert (info.task, info.queue, info.state) == ("note", "default", JobState.SUCCEEDED)
    assert line.job_id < following.job_id
    assert all(one.at < other.at for one, other in pairwise(starts(path)))


def test_constraints_of_the_task_count(start: Start, gate: Gate, tmp_path: Path) -> None:
    """Times are counted from the fire; a job that is not unique ends as cancelled, and says so."""
    path = tmp_path / "starts"
    start()
    running = jobs.hold.options(unique="one", queue="held").enqueue(gate.path, str(path))
    starts(path, 1)
    schedules = jobs.q.schedules
    schedules.add("unique", jobs.hold.options(unique="one"), "@yearly", args=(gate.path, str(path)))
    assert schedules.run("unique").info().state is JobState.CANCELLED
    schedules.add("late", jobs.note.options(delay=0.3), "@yearly", args=(str(path), "late"))
    began = time.time()
    late = schedules.run("late")
    due_at = late.info().due_at
    assert due_at is not None
    assert began + 0.299 < due_at < time.time() + 0.3
    assert late.result(timeout=10) == "late"
    assert time.time() >= began + 0.3
    gate.open()
    assert running.result(timeout=10) == "held"
    with pytest.raises(ConfigError, match="fires again and again"):
        schedules.add("fixed", jobs.add.options(at=datetime.now(UTC)), every=5, args=(1,))


# -- the command line


def taskq(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    environment = {**os.environ, **environment_of(home)}
    command = [sys.executable, "-m", "taskq", "schedule", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.not_on_postgres("APP is a directory")
def test_command_line(shared: Fleet, schedules: Any, tmp_path: Path) -> None:
    path, home = tmp_path / "starts", shared.home
    assert taskq(home).stdout == "no schedules\n"
    schedules.add("nightly", jobs.note, "0 3 * * *", timezone="Europe/Berlin", jitter="5m", args=(str(path), "x"))
    schedules.add("hourly", jobs.note, every="1h", args=(str(path), "x"))
    head, first, second = taskq(home, str(home)).stdout.splitlines()
    assert head.split() == ["schedule", "task", "when", "next", "last"]
    assert first.startswith("hourly     note   every 1h 00m")
    assert "0 3 * * * Europe/Berlin + up to 5m 00s" in second
    assert taskq(home, "pause", "nightly").stdout == "nightly is paused\n"
    listed = json.loads(taskq(home, "--json").stdout)
    assert [(each["name"], each["is_paused"], each["next_at"] is None) for each in listed] == [
        ("hourly", False, False),
        ("nightly", True, True),
    ]
    assert "paused" in taskq(home).stdout
    assert taskq(home, "resume", "nightly", str(home)).stdout.startswith("nightly fires next 20")
    assert json.loads(taskq(home, "resume", "nightly", "--json").stdout)["is_paused"] is False
    job_id = taskq(home, "run", "nightly").stdout.strip()
    assert jobs.q.job(job_id).result(timeout=10) == "x"
    assert taskq(home, "remove", "nightly").stdout == "nightly is removed\n"
    assert names() == ["hourly"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["pause"], Exit.USAGE, "taskq schedule pause NAME"),
        (["pause", "a", "b", "c"], Exit.USAGE, "which schedule"),
        (["stop", "a"], Exit.USAGE, "pause, resume, run, remove"),
        (["run", "nothing"], Exit.NOT_FOUND, "there is no schedule 'nothing'"),
    ],
)
def test_command_lines_that_make_no_sense(shared: Fleet, arguments: list[str], code: Exit, words: str) -> None:
    done = taskq(shared.home, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


# -- what others send


@pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")
@pytest.mark.parametrize(
    ("op", "fields"),
    [
        (Op.PUT_SCHEDULE, [[]]),
        (Op.PUT_SCHEDULE, [["x", ["t"], b"", "* * * * *", None, "UTC", "once", "allow", 0.0, None]]),
        (Op.PUT_SCHEDULE, [["x", Spec("t").to_wire(), b"", "0 0 30 2 *", None, "UTC", "once", "allow", 0.0, None]]),
        (Op.PUT_SCHEDULE, [["x", Spec("t").to_wire(), b"", "* * * * *", None, "Nowhere", "once", "allow", 0.0, None]]),
        (Op.PUT_SCHEDULE, [["x", Spec("t").to_wire(), b"", "* * * * *", None, 5, "once", "allow", 0.0, None]]),
        (Op.PUT_SCHEDULE, [["x", Spec("t").to_wire(), b"", None, 1e-9, "UTC", "once", "allow", 0.0, None]]),
        (Op.PUT_SCHEDULE, []),
        (Op.REMOVE_SCHEDULE, [5]),
        (Op.PAUSE_SCHEDULE, ["x"]),
        (Op.PAUSE_SCHEDULE, ["x" * 10_000, True]),
        (Op.RUN_SCHEDULE, ["x", b"short"]),
        (Op.SCHEDULES, [1]),
    ],
)
def test_hostile_requests_cost_their_sender_only(shared: Fleet, schedules: Any, op: Op, fields: list[Any]) -> None:
    pid = shared.broker_pid
    with closing(shared.client.connect()) as connection:
        number, _ = connection.talk.request(GetStatus())  # in its place:
        connection.send(frame([op, number, *fields]))
        with pytest.raises(TaskQError):
            value_of(connection.answer(number), number)
    assert names() == []
    assert shared.broker_pid == pid
