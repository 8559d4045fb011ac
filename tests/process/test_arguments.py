"""What a job was called with can be read back, as far as that is kept, wanted, and not hidden."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from apps import jobs
from fleet import JOBS, Fleet
from terminal import Here, here, terminal

from taskq import ConfigError
from taskq.model.limits import MAX_SHOWN_ARGUMENTS_BYTES

__all__ = ["here", "terminal"]  # fixtures

q = jobs.q
SOON = {"delay": 600}


@pytest.fixture
def redaction() -> Iterator[None]:
    """The application hides passwords, and fails for one task."""

    def hide(task: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        if task == "add":
            raise ValueError("secret")
        kwargs.update((name, "***") for name in kwargs if name == "password")

    q.redact(hide)
    yield
    q.redaction = None


def test_they_are_read_back(shared: Fleet) -> None:
    """As values; only if that is wanted."""
    job = jobs.nap_and_note.options(delay=600).enqueue(0.5, path="/tmp/x", label="Zo\u00eb")
    found = job.info(arguments=True).arguments
    assert found is not None
    assert (found.args, found.kwargs) == ([0.5], {"path": "/tmp/x", "label": "Zo\u00eb"})
    assert (found.left_out, found.size_bytes > 10) == (None, True)
    assert job.info().arguments is None
    assert asyncio.run(job.ainfo(arguments=True)).arguments == found
    job.cancel()


def test_a_failed_job_keeps_them(shared: Fleet) -> None:
    """It may be run again; others lose theirs, and it is said why."""
    failed = jobs.fail.enqueue("no")
    failed.wait(20)
    found = failed.info(arguments=True).arguments
    assert found is not None
    assert found.args == ["no"]
    done = jobs.add.enqueue(1, 2)
    done.result(20)
    found = done.info(arguments=True).arguments
    assert found is not None
    assert (found.args, found.left_out) == ([], "they are not kept once the job has succeeded or was cancelled")


def test_large_ones_are_left_out(shared: Fleet) -> None:
    """The fleet sends no more than it may."""
    job = jobs.echo.options(delay=600).enqueue("x" * MAX_SHOWN_ARGUMENTS_BYTES)
    found = job.info(arguments=True).arguments
    assert found is not None
    assert (found.args, found.kwargs, found.size_bytes > MAX_SHOWN_ARGUMENTS_BYTES) == ([], {}, True)
    assert "65,536 are shown" in str(found.left_out)
    job.cancel()


def test_the_result_of_another_job(shared: Fleet) -> None:
    """It stands for itself: it is not known yet."""
    before = jobs.add.options(delay=600).enqueue(1)
    job = jobs.add.enqueue(before, 5)
    found = job.info(arguments=True).arguments
    assert found is not None
    assert found.args == [f"<the result of job {before.id}>", 5]
    before.cancel()


def test_secrets_are_hidden(shared: Fleet, redaction: None) -> None:
    """By the application; what it could not look at is not shown at all."""
    job = q.named("log_in").options(delay=600).enqueue("ann", password="hunter2")
    found = job.info(arguments=True).arguments
    assert found is not None
    assert (found.args, found.kwargs) == (["ann"], {"password": "***"})
    job.cancel()
    job = jobs.add.options(delay=600).enqueue(1)
    found = job.info(arguments=True).arguments
    assert found is not None
    assert (found.args, found.left_out) == ([], "the function that hides secrets raised ValueError")
    job.cancel()


def test_a_function_that_returns_other_arguments_shows_none(shared: Fleet) -> None:
    """It has changed nothing in place, so the secrets are still there."""
    q.redact(lambda _task, args, kwargs: (args, {**kwargs, "password": "***"}))
    try:
        job = q.named("log_in").options(delay=600).enqueue("ann", password="hunter2")
        found = job.info(arguments=True).arguments
    finally:
        q.redaction = None
    job.cancel()
    assert found is not None
    assert (found.args, found.kwargs) == ([], {})
    assert found.left_out == "the function that hides secrets returned a tuple, not None: it must change them in place"


@pytest.mark.parametrize("function", ["hide", str.upper, lambda: None])
def test_functions_that_hide_nothing(function: Any) -> None:
    """They are refused where they are given."""
    with pytest.raises(ConfigError, match="redact"):
        q.redact(function)


def test_on_the_command_line(shared: Fleet, here: Here) -> None:
    """If the application is named, which may hide some, and unless they are not wanted."""
    job = jobs.echo.options(delay=600).enqueue({"size": 128, "to": "a\x1b[2Jb"})
    shown = here(shared.home, "job", job.id, JOBS).stdout
    assert "arguments {'size': 128, 'to': 'a\\x1b[2Jb'}\n" in shown
    told = json.loads(here(shared.home, "job", job.id, JOBS, "--json").stdout)
    assert told["arguments"]["args"] == [{"size": 128, "to": "a\x1b[2Jb"}]
    for words in ([job.id], [job.id, JOBS, "--hide-args"]):
        assert "arguments" not in here(shared.home, "job", *words).stdout
    job.cancel()
    assert "arguments (they are not kept" in here(shared.home, "job", job.id, JOBS).stdout
