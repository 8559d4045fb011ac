"""Typos, and things that an application needs but its fleet lacks, are reported at once, with the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from apps import jobs
from fleet import JOBS, Fleet, place_of, running
from terminal import Here, here, taskq

from taskq.model.exits import Exit
from taskq.model.misfits import Needs, did_you_mean, misfits
from taskq.model.settings import Settings
from taskq.telemetry.reader import Filter, read

__all__ = ["here"]  # a fixture
NEEDS: Needs = {"send": ("mail", []), "train": ("default", ["gpu"]), "add": ("default", [])}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(resources=(("gpu", 1),)), []),
        (Settings(queues=("default", "mail"), resources=(("gpu", 1),)), []),
        (Settings(queues=("defualt", "mail"), resources=(("gpu", 1),)), ["did you mean default?", "add, train wait"]),
        (Settings(queues=("default",), resources=(("gpu", 1),)), ["nobody serves the queue mail: jobs of send"]),
        (Settings(lanes=((("mail",), 1),), resources=(("gpu", 1),)), ["nobody serves the queue default"]),
        (Settings(), ["no resource gpu: jobs of train wait for one that has (--resources gpu=1)"]),
        (Settings(resources=(("gpus", 1),)), ["no resource gpu", "did you mean gpus?"]),
    ],
)
def test_what_does_not_fit(settings: Settings, words: list[str]) -> None:
    told = " | ".join(misfits(NEEDS, settings))
    assert bool(told) == bool(words)
    for word in words:
        assert word in told


def test_an_application_without_tasks() -> None:
    """Its tasks stand in modules that it does not import: every job would fail."""
    [told] = misfits({}, Settings())
    assert "has no task" in told
    assert "must import" in told


def test_the_nearest_name() -> None:
    assert did_you_mean("mial", ["mail", "images"]) == "; did you mean mail?"
    assert did_you_mean("x", ["mail", "images"]) == "; there are: images, mail"
    assert did_you_mean("x", []) == ""


def test_a_fleet_tells_at_its_start(home: Path) -> None:
    done = taskq(home, "worker", JOBS, "--queues", "defualt", "--consumers", "1", "--drain", "--log-format", "json")
    assert done.returncode == Exit.OK, done
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(line["event"] == "fleet.misfit" and "did you mean default?" in line["reason"] for line in told)
    assert list(read(place_of(home), Filter(event="fleet.misfit")))


def test_commands_tell(home: Path, here: Here) -> None:
    with running(Fleet(home, consumers=1)) as fleet:
        job = jobs.echo.enqueue(1)
        assert job.result(10) == 1
        fleet.wait_for("job.succeeded", job_id=job.id)  # the names are those in the log
        assert "did you mean default?" in here(home, "pause", "defualt").stderr
        assert here(home, "resume", "defualt").stderr == ""
        assert here(home, "pause", "default").stderr == ""
        here(home, "resume", "default")
        assert "did you mean echo?" in here(home, "jobs", "--task", "ehco").stderr
        done = here(home, "logs", "--task", "ehco")
        assert "did you mean echo?" in done.stderr
        assert not done.stdout
        assert "there is no event 'job.succeded'" in here(home, "logs", "--event", "job.succeded").stderr
        assert here(home, "logs", "--event", "job.*", "--task", "echo").stderr == ""


def test_the_names_of_the_application_are_known(home: Path, here: Here) -> None:
    """Before the first job has left one in the log."""
    with running(Fleet(home, consumers=1)):
        assert jobs.echo.enqueue(1).result(10) == 1
        assert here(home, "jobs", JOBS, "--task", "add").stderr == "taskq: there is no job of task add\n"
        assert "did you mean add?" in here(home, "jobs", JOBS, "--task", "adds").stderr
        for queue in {task.spec.queue for task in jobs.q.tasks.values()}:
            assert here(home, "pause", JOBS, queue).stderr == ""
            here(home, "resume", queue)


def test_a_fleet_that_is_refused_leaves_no_word_in_the_log_of_another(home: Path) -> None:
    with running(Fleet(home, consumers=1)) as fleet:
        done = taskq(home, "worker", JOBS, "--queues", "defualt")
        assert done.returncode == Exit.ALREADY_RUNNING
        assert fleet.count("fleet.misfit") == 0


@pytest.mark.not_on_postgres("a database has no spool")
def test_a_fleet_that_starts_counts_what_is_spooled(home: Path) -> None:
    jobs.add.enqueue(1)
    jobs.add.enqueue(2)
    with running(Fleet(home, consumers=1)) as fleet:
        assert fleet.wait_for("fleet.started")["spooled_files"] == 2
