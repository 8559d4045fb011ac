"""What the commands print with `--json` is what `taskq schema` says, field for field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import JOBS, Fleet, Gate, starts, use
from json_schema import misfits
from terminal import Here, here, refused, terminal

from taskq.cli.schema import PRINTED, schema_of
from taskq.model.exits import Exit

__all__ = ["here", "terminal"]  # fixtures

Start = Callable[..., Fleet]
Printed = Callable[..., Any]


@pytest.fixture
def printed(here: Here) -> Printed:
    """Runs a command with `--json`, and returns what it printed, which fits its schema."""

    def run(home: Path, command: str, *arguments: str) -> Any:
        done = here(home, *command.split(), *arguments, "--json")
        assert done.returncode == Exit.OK, done.stderr
        schema = json.loads(here(home, "schema", *command.split()).stdout)
        if command == "logs":
            lines = list(map(json.loads, done.stdout.splitlines()))
            assert lines
            assert [wrong for line in lines for wrong in misfits(line, schema, may_have_more=True)] == []
            return lines
        value = json.loads(done.stdout)
        assert misfits(value, schema) == []
        return value

    return run


@pytest.fixture
def fleet(start: Start) -> Fleet:
    """A fleet of this test alone."""
    return start(consumers=2)


def test_a_fleet_in_full_swing(fleet: Fleet, printed: Printed, tmp_path: Path, gate: Gate) -> None:
    """Jobs in all states, with errors, progress and neighbours; consumers that run and that are idle."""
    log = tmp_path / "log"
    held = jobs.hold.enqueue(gate.path, str(log))
    starts(log, 1)
    failed = jobs.fail.enqueue("no")
    crashed = jobs.die_once.enqueue(str(tmp_path / "died"), "kill")
    later = jobs.add.options(delay=600).enqueue(1)
    cancelled = jobs.add.options(delay=600).enqueue(2)
    cancelled.cancel()
    after = jobs.note.options(after=[held]).enqueue(str(log), "after")
    for job in (failed, crashed):
        job.wait(20)
    jobs.q.pause("mail")

    status = printed(fleet.home, "status")
    assert [each["job_id"] for each in status["consumers"] if each["state"] == "running"] == [held.id]
    assert (status["paused"], status["queues"]["default"]["waiting"]) == (["mail"], 1)
    listed = printed(fleet.home, "jobs")
    assert {job["state"] for job in listed} >= {"running", "failed", "scheduled", "cancelled", "waiting"}
    for job in (held, failed, crashed, later, cancelled, after):
        assert printed(fleet.home, "job", job.id, JOBS)["id"] == job.id
    assert printed(fleet.home, "job", failed.id)["error"]["type"] == "LookupError"
    assert printed(fleet.home, "job", crashed.id)["history"][0]["error"]["signal"] == "SIGKILL"
    assert printed(fleet.home, "job", held.id)["before"] == [after.id]
    assert {line["event"] for line in printed(fleet.home, "logs")} >= {"fleet.started", "job.failed", "job.crashed"}
    jobs.q.resume("mail")
    gate.open()
    held.result(20)


def test_schedules(shared: Fleet, printed: Printed) -> None:
    """What is listed, and the answer to each action."""
    jobs.q.schedules.add("nightly", jobs.add, "0 3 * * *", args=(1,), jitter=5)
    jobs.q.schedules.add("pulse", jobs.add, every="1h", args=(1,))
    job_id = printed(shared.home, "schedule run", "nightly")["job_id"]
    assert jobs.q.job(job_id).result(20) == 2
    assert printed(shared.home, "schedule pause", "pulse")["is_paused"]
    assert [each["name"] for each in printed(shared.home, "schedule")] == ["nightly", "pulse"]
    assert not printed(shared.home, "schedule resume", "pulse")["is_paused"]
    for name in ("nightly", "pulse"):
        assert printed(shared.home, "schedule remove", name) == {"removed": name}


def test_without_a_fleet(home: Path, printed: Printed) -> None:
    """A job that waits in the spool, and what one can see of it."""
    use(jobs.q, home)
    job = jobs.add.enqueue(1)
    status = printed(home, "status")
    assert (status["broker"]["state"], status["queues"]["default"]["queued"]) == ("stopped", 1)
    assert printed(home, "job", job.id)["state"] == "queued"


def test_options_of_a_fleet(home: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their values are, and wherever they come from."""
    monkeypatch.setenv("TASKQ_LANE", "gpu:1;default,mail:2")
    monkeypatch.setenv("TASKQ_MAX_JOBS", "100")
    monkeypatch.setenv("TASKQ_APP", JOBS)
    found = printed(home, "config")
    assert found["lane"]["value"] == ["gpu:1", "default,mail:2"]
    assert (found["max-jobs"]["value"], found["max-jobs"]["source"]) == (100, "environment")


def test_each_field_is_described(here: Here, home: Path) -> None:
    """In words, in the schema of all commands."""
    told = json.loads(here(home, "schema").stdout)
    assert set(told) == {*PRINTED, "logs"}
    objects = [each for schema in told.values() for each in (schema, *schema.get("$defs", {}).values())]
    described = [each for schema in objects for each in schema.get("properties", {}).values()]
    assert len(described) > 80
    assert all(len(each["description"]) > 10 for each in described), described
    for text in (each["description"] for each in (*described, *objects) if "description" in each):
        assert not re.search(r"\bNone\b|\btaskq\.|\bTaskQ\b", text), f"this is not about JSON: {text}"


def test_commands_without_json(here: Here, home: Path) -> None:
    """They are refused by name, with those that have it."""
    refused(here(home, "schema", "purge"), Exit.USAGE, "'purge' prints no JSON", "status", "logs")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(int, "1"), (int, True), (list[int], [None]), (dict[str, bool], {"a": 1}), (int | None, 1.5)],
)
def test_this_test_sees_misfits(kind: Any, value: Any) -> None:
    """The reader of schemas itself."""
    assert misfits(value, schema_of(kind))
