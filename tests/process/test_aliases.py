"""A task that was renamed runs what was enqueued under its earlier names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, url_of

from taskq import ConfigError, JobFailed, TaskQ, testing

q = TaskQ("renamed", url="/proc/nonexistent")


@q.task(name="new", aliases=["old", "oldest"], retries=0)
def renamed(number: int) -> int:
    return 2 * number


@q.task(aliases=["was_async"])
async def is_async(number: int) -> int:
    await asyncio.sleep(0)
    return 3 * number


@pytest.mark.parametrize("threads", [1, 2])
def test_waiting_jobs_of_an_earlier_name_are_run(start: Callable[..., Fleet], home: Path, threads: int) -> None:
    """The producers do not know that the task was renamed, and their jobs waited while it was."""
    producer = TaskQ("producer", url_of(home))
    names = ["renamed", "once_renamed", "first_renamed"]
    found = [producer.enqueue(name, number) for number, name in enumerate(names)]
    failing = producer.enqueue("once_renamed", -1)
    start(threads=threads)
    assert [job.result(timeout=20) for job in found] == [0, 10, 20]
    with pytest.raises(JobFailed, match="KeyError"):
        failing.result(timeout=20)
    assert failing.info().attempts == 1, "the rules of the task count: it gives up on KeyError"
    assert failing.info().task == "once_renamed"
    producer.schedules.add("often", "once_renamed", every="1h", args=(4,))
    assert producer.schedules.run("often").result(timeout=20) == 40
    assert jobs.q.enqueue("once_renamed", 5).info().task == "renamed", "where it is known, the new name is taken"


def test_earlier_names_in_tests() -> None:
    stranger = TaskQ("stranger", url="/proc/nonexistent")
    with testing.queue(q) as kept, stranger.use_client(q.client, q.async_client(), q.clock):
        found = [stranger.enqueue("old", 1), q.enqueue("oldest", 2), renamed.enqueue(3)]
        asynchronous = stranger.enqueue("was_async", 1)
        assert len(kept.enqueued("old")) == len(kept.enqueued("new")) == len(kept.enqueued(renamed)) == 3
        kept.assert_enqueued("oldest", 1, count=1)
        kept.assert_enqueued(renamed, 2, count=1)
        assert [job.result() for job in found] == [2, 4, 6]
        assert asynchronous.result() == 3


def test_names_are_taken_once() -> None:
    app = TaskQ("names", url="/proc/nonexistent")
    app.task(name="one", aliases=["first"])(renamed.function)
    app.task(name="one", aliases=["first"])(renamed.function)  # a module that is imported again
    for options in ({"name": "first"}, {"name": "other", "aliases": ["one"]}, {"name": "other", "aliases": ["first"]}):
        with pytest.raises(ConfigError, match=r"is taken by test_aliases\.renamed"):
            app.task(**options)(is_async.function)  # type: ignore[call-overload]
    assert set(app.tasks) == {"one", "first"}, "all or none of its names"


@pytest.mark.parametrize("aliases", ["old", 5, ["same"], ["no good"], [5], None])
def test_aliases_that_make_no_sense(aliases: Any) -> None:
    app = TaskQ("names", url="/proc/nonexistent")
    with pytest.raises(ConfigError, match="aliases=|task name"):
        app.task(name="same", aliases=aliases)(renamed.function)
    assert app.tasks == {}
