"""`meta=` and `TaskQ.on_enqueue`: texts that travel with a job, and are seen wherever the job is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import JOBS, Fleet, use, wait_until
from terminal import Here, here, terminal

from taskq import ConfigError, TaskQ, chain, current_job, testing
from taskq.model.limits import MAX_META_BYTES

__all__ = ["here", "terminal"]  # fixtures

Start = Callable[..., Fleet]
q = jobs.q


@pytest.fixture
def hook() -> Iterator[list[str]]:
    """A hook of the application that adds to the meta, and notes what it was called for."""
    called: list[str] = []

    def trace(task: str, meta: dict[str, str]) -> None:
        called.append(task)
        meta["call"] = str(len(called))

    q.on_enqueue(trace)
    yield called
    q.enqueue_hooks = ()


def test_a_job_knows_its_meta(shared: Fleet) -> None:
    """In the job, in what is known of it, in lists, whatever its state."""
    job = jobs.tell_meta.options(meta={"tenant": "acme", "name": "Zoë"}).enqueue()
    expected = {"app": "jobs", "tenant": "acme", "name": "Zoë"}
    assert job.result(20) == expected
    assert job.info().meta == expected
    [listed] = q.jobs(task="tell_meta", limit=1)
    assert listed.meta == expected
    assert jobs.add.enqueue(1).info().meta == {}
    waiting = jobs.add.options(meta={"a": "b"}, delay=600).enqueue(1)
    assert waiting.info().meta == {"a": "b"}
    waiting.cancel()
    assert waiting.info().meta == {"a": "b"}


def test_all_attempts_have_it(shared: Fleet, tmp_path: Path) -> None:
    """A retry, and one that somebody asked for after the job had failed."""
    job = jobs.fail_with_meta.options(meta={"tenant": "acme"}).enqueue(str(tmp_path / "log"))
    wait_until(lambda: job.wait(0), "its end")
    job.retry()
    wait_until(lambda: job.wait(0), "its other end")
    assert (tmp_path / "log").read_text().splitlines() == ["acme"] * 4
    assert job.info().meta == {"tenant": "acme"}


def test_the_log_tells_it(shared: Fleet, here: Here) -> None:
    """Each line about the job, for machines and for people; `taskq job` too."""
    job = jobs.fail.options(meta={"tenant": "acme"}).enqueue("no")
    event = shared.wait_for("job.failed", job_id=job.id)
    assert event["meta"] == {"tenant": "acme"}
    assert "meta      tenant=acme" in here(shared.home, "job", job.id).stdout
    assert json.loads(here(shared.home, "job", job.id, "--json").stdout)["meta"] == {"tenant": "acme"}
    assert "acme" in here(shared.home, "logs", "--job", job.id).stdout


def test_many_at_once(shared: Fleet) -> None:
    """Jobs of one call have the same meta, or each its own key beside it; large ones are cut into several frames."""
    meta = {"text": "x" * (MAX_META_BYTES - 100)}
    many = jobs.tell_meta.options(meta=meta).enqueue_many([()] * 1500)
    assert [job.result(30)["text"] for job in many[::100]] == [meta["text"]] * 15
    own = jobs.add.options(meta=meta, unique=["a", "b"], delay=600).enqueue_many([(number,) for number in range(50)])
    assert {job.info().meta["text"] for job in own} == {meta["text"]}
    for job in own:
        job.cancel()


def test_it_waits_in_the_spool(home: Path, start: Start) -> None:
    """A job that is enqueued while no fleet runs has it, too."""
    use(q, home)
    job = jobs.tell_meta.options(meta={"tenant": "acme"}).enqueue()
    start()
    assert job.result(20)["tenant"] == "acme"


def test_hooks_add_to_it(shared: Fleet, hook: list[str]) -> None:
    """Once for each call, on every way to enqueue."""
    assert jobs.tell_meta.enqueue().result(20) == {"app": "jobs", "call": "1"}
    many = jobs.tell_meta.options(meta={"a": "b"}).enqueue_many([(), ()])
    assert [job.result(20) for job in many] == [{"app": "jobs", "a": "b", "call": "2"}] * 2
    assert q.enqueue("tell_meta").result(20)["call"] == "3"
    assert asyncio.run(jobs.tell_meta.aenqueue()).result(20)["call"] == "4"
    last = chain(jobs.tell_meta.step(), jobs.echo.step()).enqueue()
    assert last.result(20)["call"] == "5"
    assert hook == ["tell_meta"] * 5 + ["echo"]


def test_a_hook_that_raises(shared: Fleet) -> None:
    """Nothing is enqueued, and who called hears why."""

    def refuse(task: str, meta: dict[str, str]) -> None:
        raise PermissionError(f"{task} is not for you")

    before = q.status().totals.enqueued
    q.on_enqueue(refuse)
    try:
        with pytest.raises(PermissionError, match="add is not for you"):
            jobs.add.enqueue(1)
    finally:
        q.enqueue_hooks = ()
    assert q.status().totals.enqueued == before


def test_a_hook_that_returns_a_meta(shared: Fleet) -> None:
    """It has added nothing: an error says how to."""
    q.on_enqueue(lambda _task, _meta: {"request": "1"})
    try:
        with pytest.raises(ConfigError, match="must change the meta in place"):
            jobs.add.enqueue(1)
    finally:
        q.enqueue_hooks = ()


def test_schedules_have_that_of_their_task(shared: Fleet, hook: list[str]) -> None:
    """Hooks are for calls."""
    q.schedules.add("told", jobs.tell_meta.options(meta={"by": "clock"}), every="1h")
    assert q.schedules.run("told").result(20) == {"app": "jobs", "by": "clock"}
    assert hook == []
    q.schedules.remove("told")


def test_what_a_job_enqueues_may_take_it_over(tmp_path: Path) -> None:
    """By a hook that looks at the job which runs; here without a fleet."""
    app = TaskQ("shop", url=str(tmp_path))

    @app.on_enqueue
    def pass_on(task: str, meta: dict[str, str]) -> None:
        try:
            meta.update(current_job().meta)
        except Exception:
            meta["request_id"] = "17"

    @app.task
    def child() -> dict[str, str]:
        return current_job().meta

    @app.task
    def parent() -> str:
        return child.enqueue().id

    with testing.queue(app) as made:
        job = parent.enqueue()
        made.drain()
        assert app.job(job.result()).result() == {"request_id": "17"}


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ("tenant", "use a dict of texts"),
        ({"tenant": 7}, "tenant is 7"),
        ({7: "tenant"}, "7 is not a name"),
        ({"": "tenant"}, "is not a name"),
        ({"a\nb": "tenant"}, "is not a name"),
        ({"a": "\ud800"}, "cannot be encoded"),
        ({"a": "x" * MAX_META_BYTES}, "the limit is 4,096"),
    ],
)
def test_a_meta_that_makes_no_sense(meta: Any, words: str) -> None:
    """It is refused where it is given."""
    with pytest.raises(ConfigError, match=words):
        jobs.add.options(meta=meta)


def test_together_it_may_be_too_large() -> None:
    """That of the task and that of the call."""
    with pytest.raises(ConfigError, match="the limit is 4,096"):
        jobs.add.options(meta={"a": "x" * 3_000}).options(meta={"b": "x" * 3_000})
    assert jobs.add.options(meta={"a": "x" * 3_000}).options(meta={"a": "y"}).call_options.meta == (("a", "y"),)


@pytest.mark.parametrize("function", [lambda: None, str.upper, "trace"])
def test_hooks_that_are_none(function: Any) -> None:
    """They are refused where they are given."""
    with pytest.raises(ConfigError, match="on_enqueue"):
        q.on_enqueue(function)


def test_from_the_command_line(shared: Fleet, here: Here) -> None:
    """As any option of a job."""
    done = here(shared.home, "enqueue", JOBS, "tell_meta", "-o", 'meta={"tenant": "acme"}', "--wait")
    assert json.loads(done.stdout) == {"app": "jobs", "tenant": "acme"}
