"""`taskq config`, and fleets that find their options in the environment and in pyproject.toml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet import JOBS
from terminal import Here, here, refused, taskq

from taskq.cli.config.options import FLEET_OPTIONS, defaults
from taskq.model.exits import Exit
from taskq.model.settings import default_consumers
from taskq.telemetry.reader import read

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

__all__ = ["here"]  # a fixture


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with settings for a fleet, and its application."""
    folder = tmp_path / "project"
    (folder / "docs").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[tool.taskq]\napp = "src/shop.py:q"\nconsumers = 3\nthreads = 2\nqueues = ["high=3", "default"]\ndrain = true\n'
    )
    (folder / "src").mkdir()
    (folder / "src" / "shop.py").write_text(
        "import taskq\nq = taskq.TaskQ('shop')\n@q.task\ndef double(x: int) -> int:\n    return 2 * x\n"
    )
    return folder


def test_each_option_and_where_it_comes_from(
    project: Path, home: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "docs")
    monkeypatch.setenv("TASKQ_THREADS", "4")
    path = project / "pyproject.toml"
    done = here(home, "config")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["option", "app", *(option.name for option in FLEET_OPTIONS)]
    assert lines["app"].split() == [f"{project}/src/shop.py:q", "app", "in", str(path)]
    assert lines["consumers"].split() == ["3", "consumers", "in", str(path)]
    assert lines["threads"].split() == ["4", "TASKQ_THREADS"]
    assert lines["queues"].split() == ["high=3,default", "queues", "in", str(path)]
    assert lines["max-jobs"].split() == ["none", "default"]
    told = json.loads(here(home, "config", JOBS, "--json").stdout)
    assert list(told) == list(lines)[1:]
    assert told["app"] == {"value": JOBS, "source": "command line", "place": "APP"}
    assert told["threads"] == {"value": 4, "source": "environment", "place": "TASKQ_THREADS"}
    assert told["drain"] == {"value": True, "source": "file", "place": f"drain in {path}"}
    assert told["max-jobs"] == {"value": None, "source": "default", "place": None}


def test_what_makes_no_sense(project: Path, home: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("TASKQ_THREADS", "many")
    for command in (["config"], ["worker"]):
        refused(here(home, *command), Exit.USAGE, "TASKQ_THREADS 'many': use a whole number")
    monkeypatch.setenv("TASKQ_CONSUMRES", "3")
    assert "did you mean TASKQ_CONSUMERS?" in here(home, "config").stderr
    (project / "pyproject.toml").write_text("[tool.taskq]\nconsumres = 3\n")
    for command in (["worker", JOBS], ["config"]):
        assert "unknown key 'consumres'; did you mean consumers?" in here(home, *command).stderr


def test_a_fleet_of_a_project(project: Path, home: Path) -> None:
    """None of these commands names the application; the command line and the environment go before the file."""
    place = {"cwd": project / "docs"}
    assert "no fleet answers" in taskq(home, "enqueue", "double", "21", **place).stderr
    done = taskq(home, "worker", "--threads", "1", TASKQ_CONSUMERS="1", **place)
    assert done.returncode == Exit.OK, done.stderr
    [started] = [event for event in read(home) if event["event"] == "fleet.started"]
    assert started["consumers"] == 1
    [listed] = json.loads(taskq(home, "jobs", "--json", **place).stdout)
    assert (listed["task"], listed["state"]) == ("double", "succeeded")


def test_the_application_of_a_project_leads_to_its_queue(project: Path) -> None:
    """Unless TASKQ_URL does: then the application is not even imported."""
    state = {"XDG_STATE_HOME": str(project)}
    refused(taskq(None, "status", cwd=project, **state), Exit.NO_FLEET, str(project / "taskq" / "shop"))
    (project / "src" / "shop.py").write_text("1 / 0\n")
    refused(taskq(None, "status", cwd=project, **state), Exit.APP, "ZeroDivisionError")
    refused(taskq(project / "elsewhere", "status", cwd=project, **state), Exit.NO_FLEET, "elsewhere")


def test_a_fleet_of_our_own_does_not_heed_the_project(project: Path, home: Path) -> None:
    """`taskq demo` and `taskq bench` start theirs with all defaults, wherever they are called."""
    more = {"TASKQ_THREADS": "4", "TASKQ_LANE": "gpu:1; cpu:2"}
    done = taskq(home, "worker", JOBS, *defaults(), "--drain", cwd=project, **more)
    assert done.returncode == Exit.OK, done.stderr
    [started] = [event for event in read(home) if event["event"] == "fleet.started"]
    assert started["consumers"] == default_consumers()
