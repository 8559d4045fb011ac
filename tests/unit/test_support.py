"""What an engine cannot do: it refuses options by name, when a task is declared, and where a call implies one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskq import ConfigError, JobOptions, TaskQ, chain, group
from taskq.client.options.support import EMBEDDED, EngineSupport

#: An engine that refuses some things, each with the way out.
SCRIPTED = EngineSupport(
    "scripted",
    "scripted",
    {
        "max_queued": "it does not count what is queued; leave it out",
        "resources": "each machine has its own; use a queue for each kind of machine",
        "after": "it knows no workflows; enqueue the next job at the end of this one",
        "at": "it has no clock; use delay=",
        "meta": "it keeps no meta; use an argument",
    },
)
REFUSED = r"^t: the scripted engine \(scripted://\.\.\.\) does not support {}=: .+; .+"

#: For each option a value that is not its default, and what it needs beside it.
VALUES: dict[str, dict[str, Any]] = {
    "queue": {"queue": "mail"},
    "priority": {"priority": 1},
    "delay": {"delay": 5},
    "at": {"at": datetime(2040, 1, 1, tzinfo=UTC)},
    "expires": {"expires": 60},
    "retries": {"retries": 1},
    "backoff": {"backoff": [1.0]},
    "max_crashes": {"max_crashes": 1},
    "crash_queue": {"crash_queue": "big"},
    "timeout": {"timeout": 1},
    "cpu_timeout": {"cpu_timeout": 1},
    "memory_limit": {"memory_limit": "1GB"},
    "unique": {"unique": True},
    "result": {"result": False},
    "meta": {"meta": {"tenant": "a"}},
    "after": {"after": []},  # filled in by the test
    "on_success": {"on_success": True},
    "concurrency": {"concurrency": 1},
    "rate": {"rate": "1/m"},
    "limit_by": {"limit_by": "key", "concurrency": 1},
    "ordered_by": {"ordered_by": "key"},
    "resources": {"resources": {"gpu": 1}},
    "max_queued": {"max_queued": 10},
    "when_full": {"when_full": "wait", "max_queued": 10},
}


def refused(option: str) -> Any:
    return pytest.raises(ConfigError, match=REFUSED.format(option))


def work(x: object = None) -> None:
    """What the tasks do; never run here."""


@pytest.fixture
def q(tmp_path: Path) -> TaskQ:
    """An application without a fleet, whose engine refuses some things."""
    q = TaskQ("support", tmp_path / "queue")
    q.engine = SCRIPTED
    return q


@pytest.mark.parametrize("option", JobOptions.__annotations__)
def test_each_option_can_be_refused(option: str, tmp_path: Path) -> None:
    """By its own name, if it has another value than its default; and the embedded engine supports it."""
    q = TaskQ("support", tmp_path / "queue")
    task = q.task(name="t")(work)
    given = {"after": [q.job("0" * 32)]} if option == "after" else VALUES[option]
    used = task.options(**given)

    q.engine = EngineSupport("scripted", "scripted", {option: "it cannot; leave it out"})
    assert q.named("t").options().spec == task.spec
    with refused(option):
        task.options(**given)
    with refused(option):
        q.engine.check(used.spec, used.call_options)


@pytest.mark.parametrize("option", ["delay", "at"])
def test_a_moment_is_not_a_delay(option: str, tmp_path: Path) -> None:
    q = TaskQ("support", tmp_path / "queue")
    q.engine = EngineSupport("scripted", "scripted", {option: "it cannot; leave it out"})
    task = q.task(name="t")(work)
    [other] = {"delay", "at"} - {option}
    task.options(**VALUES[other])


def test_a_task_is_refused_when_it_is_declared(q: TaskQ) -> None:
    for options in (JobOptions(max_queued=5), JobOptions(resources={"gpu": 1})):
        [option] = options
        with refused(option):
            q.task(name="t", **options)(work)
    assert not q.tasks
    q.task(name="t", concurrency=5, unique=True)(work)


def test_a_job_is_refused_when_it_is_enqueued_by_name(q: TaskQ) -> None:
    with refused("max_queued"):
        q.named("t").options(max_queued=5)
    with refused("max_queued"):
        q.named("t").options(priority=5).options(max_queued=5, when_full="wait")


def test_the_jobs_of_a_schedule_are_refused(q: TaskQ) -> None:
    with refused("resources"):
        q.schedules.add("nightly", q.task(name="t")(work).options(resources={"gpu": 1}), "@daily")
    with refused("resources"):
        q.periodic("@daily")(q.task(name="t", resources={"gpu": 1})(work))
    assert not q.schedules.declared


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_call_implies_is_refused(q: TaskQ, is_async: bool) -> None:
    """A step comes after another, a job among the arguments is waited for, and a hook adds meta: without an option."""
    task = q.task(name="t")(work)
    earlier = q.job("0" * 32)

    def enqueue(of: Any, *args: Any) -> object:
        return asyncio.run(of.aenqueue(*args)) if is_async else of.enqueue(*args)

    with refused("after"):
        enqueue(chain(task.step(1), task.step()))
    with refused("after"):
        enqueue(task, earlier)
    with refused("after"):
        task.enqueue_many([(1,), (earlier,)])
    enqueue(group(task.step(1), task.step(2)))

    @q.on_enqueue
    def trace(name: str, meta: dict[str, str]) -> None:
        if name == "t":
            meta["request"] = "1"

    with refused("meta"):
        enqueue(task, 1)
    with refused("meta"):
        enqueue(task.step(1))
    enqueue(q.named("other"), 1)


def test_a_job_costs_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a declaration and `options()` ask what the engine supports."""
    asked: list[str] = []

    def counted(check: Callable[..., None]) -> Callable[..., None]:
        def counting(self: EngineSupport, *args: Any) -> None:
            asked.append(check.__name__)
            check(self, *args)

        return counting

    q = TaskQ("support", tmp_path / "queue")
    assert q.engine is EMBEDDED
    assert not EMBEDDED.unsupported
    monkeypatch.setattr(EngineSupport, "check", counted(EngineSupport.check))
    monkeypatch.setattr(EngineSupport, "check_option", counted(EngineSupport.check_option))
    task = q.task(name="t", max_queued=100)(work)
    urgent = task.options(priority=5)
    assert asked == ["check", "check"]

    task.enqueue(1)
    urgent.enqueue(1)
    task.enqueue_many([(1,)] * 100)
    asyncio.run(task.aenqueue(1))
    group(task.step(1)).enqueue()
    assert asked == ["check", "check"]
