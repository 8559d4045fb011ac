"""`taskq errors` and `taskq tasks`, asked of a fleet whose jobs fail in many ways."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, running, shown
from json_schema import misfits
from terminal import Here, Terminal, here, taskq, terminal

from taskq.cli.schema import PRINTED, schema_of
from taskq.model.exits import Exit
from taskq.model.info.words import brief_count, brief_time

__all__ = ["here", "terminal"]  # fixtures

Start = Callable[..., Fleet]
Asked = Callable[..., Any]


@pytest.fixture
def asked(here: Here) -> Asked:
    """What a command prints with `--json`, which fits its schema."""

    def run(fleet: Fleet, command: str, *arguments: str) -> Any:
        done = here(fleet.home, command, *arguments, "--json")
        assert done.returncode == Exit.OK, done
        value = json.loads(done.stdout)
        assert misfits(value, schema_of(PRINTED[command])) == []
        return value

    return run


def misbehave(folder: Path) -> None:
    """Jobs fail by an exception (each time, or once), crash, and have no task."""
    made = [
        *(jobs.fail.options(queue="mail").enqueue(f"number {number}") for number in range(3)),
        jobs.fail_once.options(backoff=[0]).enqueue(str(folder / "failed")),
        jobs.die_once.enqueue(str(folder / "died"), "segfault"),
        jobs.q.enqueue("no_such_task"),
        jobs.add.enqueue(1),
    ]
    for job in made:
        assert job.wait(20)


def test_what_fails(start: Start, asked: Asked, here: Here, tmp_path: Path) -> None:
    fleet = start(consumers=1)
    misbehave(tmp_path)
    told = asked(fleet, "errors")
    groups = {(group["task"], group["type"]): group for group in told["groups"]}
    failed = groups["fail", "LookupError"]
    assert (failed["failed"], failed["again"], failed["last_10_minutes"], failed["last_day"]) == (3, 0, 3, 3)
    assert re.search(r"apps/jobs\.py:\d+ in fail$", failed["place"])
    assert failed["traceback"].endswith("LookupError: number 2\n")
    assert len(failed["jobs"]) == 3
    once = next(group for (task, _), group in groups.items() if task == "fail_once")
    assert (once["failed"], once["again"]) == (0, 1)
    crashed = groups["die_once", "Crashed"]
    assert (crashed["failed"], crashed["again"]) == (0, 1)
    assert groups["no_such_task", "UnknownTask"]["failed"] == 1
    assert (told["failed"], told["again"], told["has_more"]) == (4, 2, False)

    assert {group["task"] for group in asked(fleet, "errors", "--task", "fail")["groups"]} == {"fail"}
    assert {group["task"] for group in asked(fleet, "errors", "--queue", "mail")["groups"]} == {"fail"}
    one = here(fleet.home, "errors", "--task", "fail").stdout
    assert "| LookupError: number 2" in one, "the only kind is shown with its traceback"
    many = here(fleet.home, "errors").stdout
    assert "| LookupError" not in many
    assert "| LookupError" in here(fleet.home, "errors", "--traceback").stdout
    assert "failed: 4 jobs kept; again: 2 attempts in the log" in many


def test_nothing_fails(shared: Fleet) -> None:
    done = taskq(shared.home, "errors", "--since", "1s", "--task", "no_such_task")
    assert done.stdout == "no failures\n"


def test_a_portion_of_the_failed_jobs_is_counted(
    start: Start, asked: Asked, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = start(consumers=1)
    made = [jobs.fail.enqueue(str(number)) for number in range(4)]
    for job in made:
        assert job.wait(20)
    monkeypatch.setattr("taskq.client.failures.MAX_JOBS_LISTED", 2)
    assert asked(fleet, "errors")["failed"] == 4
    monkeypatch.setattr("taskq.cli.watch.errors.MOST_JOBS", 2)
    told = asked(fleet, "errors")
    assert (told["failed"], told["has_more"]) == (2, True)
    assert "only the newest 2 failed jobs are counted" in here(fleet.home, "errors").stderr


def test_how_long_tasks_wait_and_run(start: Start, asked: Asked, here: Here, tmp_path: Path) -> None:
    fleet = start(consumers=1)
    misbehave(tmp_path)
    told = {(each["task"], each["queue"]): each for each in asked(fleet, "tasks")}
    failed = told["fail", "mail"]
    assert failed["total"]["failed"] == failed["last_hour"]["failed"] == 3
    assert 0 < failed["total"]["run_s"]["p50"] <= failed["total"]["run_s"]["p95"] <= failed["total"]["run_s"]["p99"]
    lines = here(fleet.home, "tasks").stdout.splitlines()
    assert lines[0] == "in the last hour"
    assert lines[1].split()[:4] == ["task", "done", "failed", "again"]
    assert lines[2].split()[:5] == ["fail", "(mail)", "0", "3", "0"], "the task with most jobs comes first"
    total = lines[lines.index("in total") + 1 :]
    assert {line.split()[0] for line in total[1:]} == {"fail", "fail_once", "die_once", "no_such_task", "add"}


def test_they_fit_a_narrow_terminal(start: Start, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    fleet = start(consumers=1)
    misbehave(tmp_path)
    for command in ("errors", "tasks"):
        narrow = terminal(fleet.home, command, COLUMNS="60", LANG="C", NO_COLOR="1")
        assert narrow.read_to_end() == Exit.OK
        assert max(map(len, narrow.text.splitlines())) <= 60
        assert narrow.text.isascii()


def test_a_stopped_fleet_is_asked(home: Path, asked: Asked, here: Here, tmp_path: Path) -> None:
    with running(Fleet(home, consumers=1)) as fleet:
        misbehave(tmp_path)
    assert asked(fleet, "errors")["failed"] == 4
    assert len(asked(fleet, "tasks")) == 5
    assert f"no fleet runs on {shown(home)}" in here(home, "tasks").stderr


@pytest.mark.parametrize(
    ("time_us", "text"),
    [
        (None, "-"),
        (80, "80us"),
        (1_240, "1.2ms"),
        (340_000, "340ms"),
        (999_900, "1.0s"),
        (12e6, "12s"),
        (200e6, "3.3m"),
        (7.2e9, "2.0h"),
        (9e11, "10d"),
    ],
)
def test_times_arebrief_time(time_us: float | None, text: str) -> None:
    assert brief_time(time_us) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.0k"),
        (12_434, "12k"),
        (999_400, "999k"),
        (999_600, "1.0M"),
        (1_530_000, "1.5M"),
        (3e11, "300G"),
    ],
)
def test_numbers_are_brief(number: int, text: str) -> None:
    assert brief_count(number) == text
