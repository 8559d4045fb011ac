"""APP stands before or after the other words of a command: a job's id, a queue, a schedule."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from apps import jobs
from fleet import JOBS, Fleet
from terminal import NO_JOB, Here, here, refused

from taskq.cli.positions import id_first, looks_like_app
from taskq.model.exits import Exit

__all__ = ["here"]  # a fixture


@pytest.mark.parametrize(
    "place", ["module", pytest.param("directory", marks=pytest.mark.not_on_postgres("APP is a directory"))]
)
def test_a_job_and_its_application(shared: Fleet, here: Here, place: str) -> None:
    app = JOBS if place == "module" else str(shared.home)
    job = jobs.add.enqueue(1)
    assert job.result(10) == 2
    for words in itertools.permutations([app, job.id]):
        assert json.loads(here(shared.home, "job", *words, "--json").stdout)["id"] == job.id
    assert json.loads(here(shared.home, "job", app, job.id[-8:], "--json").stdout)["id"] == job.id
    refused(here(shared.home, "cancel", app, job.id), Exit.FAILED, f"job {job.id} is succeeded")
    refused(here(shared.home, "retry", app, job.id), Exit.FAILED, f"job {job.id} is succeeded")
    assert here(shared.home, "purge", app, job.id).stdout == f"{job.id} is purged\n"


def test_queues_and_their_application(shared: Fleet, here: Here) -> None:
    assert here(shared.home, "pause", JOBS, "mail", "images").stdout == "mail is paused\nimages is paused\n"
    assert here(shared.home, "resume", "mail", JOBS, "images").stdout == "mail is resumed\nimages is resumed\n"


def test_a_schedule_and_its_application(shared: Fleet, here: Here) -> None:
    jobs.q.schedules.add("night:ly", jobs.add, "0 3 * * *", args=(1,))
    try:
        for words in (["pause", "night:ly", JOBS], [JOBS, "pause", "night:ly"]):
            assert here(shared.home, "schedule", *words).stdout == "night:ly is paused\n"
        refused(here(shared.home, "schedule", "pause", JOBS, "nightly"), Exit.NOT_FOUND, "'nightly'")
        assert here(shared.home, "schedule", "pause", "night:ly").stdout == "night:ly is paused\n"
        for words in ([JOBS, "pause"], [JOBS, "pause", "a", "b"]):
            refused(here(shared.home, "schedule", *words), Exit.USAGE, "taskq schedule pause NAME [APP]")
    finally:
        jobs.q.schedules.remove("night:ly")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([NO_JOB, "app.py:q"], [NO_JOB, "app.py:q"]),
        (["app.py:q", NO_JOB], [NO_JOB, "app.py:q"]),
        (["app.py:q", "17"], ["17", "app.py:q"]),
        (["17", "app.py:q"], ["17", "app.py:q"]),
        (["app", NO_JOB], [NO_JOB, "app"]),
        ([".", "abcdef"], ["abcdef", "."]),
        (["abcdef", "facade"], ["abcdef", "facade"]),
        (["17", "18"], ["17", "18"]),
        (["17", None], ["17", None]),
        (["decade", "abcdef"], ["abcdef", "decade"]),  # for there is decade.py
    ],
)
def test_which_of_two_words_is_the_id(
    words: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "decade.py").touch()
    assert list(id_first(*words)) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("app.py", True),
        ("shop.tasks:q", True),
        ("/srv/q", True),
        ("./q", True),
        (".", True),
        ("mail", False),
    ],
)
def test_what_looks_like_an_application(word: str, expected: bool) -> None:
    assert looks_like_app(word) is expected
