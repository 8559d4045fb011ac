"""Code around jobs, and at both ends of a consumer's life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from apps import hooked
from fleet import APPS, Fleet, running, url_of, use, wait_until

from taskq import ConfigError, CurrentJob, JobCancelled, JobFailed, JobState, TaskQ

APP = f"{APPS / 'hooked.py'}:q"
Start = Callable[..., Fleet]


@pytest.fixture
def begin(home: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a fleet of one consumer on the hooked application."""
    use(hooked.q, home)

    def begin(fails: str = "", wait: bool = True, **options: Any) -> Fleet:
        paths = f"{APPS.parent}:{APPS.parent.parent}"
        environment = {"PYTHONPATH": paths, "HOOKS": str(tmp_path / "hooks"), "HOOK_FAILS": fails}
        fleet = Fleet(home, APP, environment=environment, **{"consumers": 1, **options})
        return stack.enter_context(running(fleet, wait=wait))

    with ExitStack() as stack:
        yield begin


def told(tmp_path: Path) -> list[str]:
    """What the hooks told, without the process."""
    path = tmp_path / "hooks"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("preload", [False, True])
def test_each_consumer_starts_and_stops_once(begin: Start, tmp_path: Path, preload: bool) -> None:
    fleet = begin(consumers=2, preload=preload).wait_ready()
    pids = fleet.consumer_pids()
    assert hooked.works.enqueue().result(timeout=10) in {f"model of {pid}" for pid in pids}
    assert fleet.stop() == 0
    lines = [line.split() for line in (tmp_path / "hooks").read_text().splitlines()]
    for pid in pids:
        own = [line for line, of in lines if of == str(pid)]
        assert own[0] == "start"
        assert own[-2:] == ["stop-first", "stop-last"], "in reverse order"
        assert own.count("start") == 1


def test_a_killed_consumer_is_followed_by_one_that_starts_anew(begin: Start, tmp_path: Path) -> None:
    fleet = begin()
    [pid] = fleet.consumer_pids()
    fleet.kill(pid)
    assert hooked.works.enqueue().result(timeout=10) != f"model of {pid}"
    assert told(tmp_path).count("start") == 2
    assert told(tmp_path).count("stop-last") == 0


def test_a_start_that_fails_is_reported_as_an_import_that_fails(begin: Start, tmp_path: Path) -> None:
    """Clearly, again and again but in no storm; when it succeeds, jobs run, and none was charged."""
    (tmp_path / "hooks.no-model").touch()
    job = hooked.works.enqueue()
    fleet = begin(wait=False)
    fleet.wait_for("consumer.boot_failed", skip=2)
    failed = fleet.events("consumer.boot_failed")
    assert {event["error"] for event in failed} == {"on_consumer_start load_model: FileNotFoundError: no model there"}
    assert all("in load_model" in event["traceback"] for event in failed)
    assert len(failed) < 10
    (tmp_path / "hooks.no-model").unlink()
    job.result(timeout=10)
    assert (job.info().attempts, job.info().crashes) == (1, 0)


def test_a_stop_that_fails_is_reported_and_no_more(begin: Start, tmp_path: Path) -> None:
    fleet = begin("stop")
    assert fleet.stop() == 0
    assert "stop-first" in told(tmp_path)
    output = [event["message"] for event in fleet.events("consumer.log")]
    assert any("it does not unload" in line for line in output)


@pytest.mark.parametrize("task", [hooked.works, hooked.works_async])
def test_middleware_surrounds_a_job(begin: Start, tmp_path: Path, task: Any) -> None:
    begin()
    task.enqueue().result(timeout=10)
    assert told(tmp_path)[1:] == [f"outer-before-{task.name}", "inner-before-1", "job", "outer-after"]


@pytest.mark.parametrize("task", [hooked.works, hooked.works_async])
def test_middleware_sees_the_error_and_cannot_hide_it(begin: Start, tmp_path: Path, task: Any) -> None:
    begin()
    with pytest.raises(JobFailed, match="LookupError: lost") as caught:
        task.enqueue("lookup").result(timeout=10)
    assert "in works" in caught.value.error_traceback
    lines = told(tmp_path)[2:]
    # the outer one is not told: for it the inner one has dealt with the error
    assert lines == ["inner-before-1", "job", "inner-keeps-it", "outer-after"]


def test_middleware_may_say_what_becomes_of_the_job(begin: Start, tmp_path: Path) -> None:
    fleet = begin()
    with pytest.raises(JobCancelled, match="no numbers"):
        hooked.works.enqueue("zero").result(timeout=10)
    assert "outer-error-Cancel" in told(tmp_path)
    job = hooked.late.enqueue()
    fleet.wait_for("job.snoozed", job_id=job.id)
    wait_until(lambda: job.state() is JobState.SCHEDULED, "it snoozes")


def test_wrong_arguments_are_reported_as_such_behind_middleware(begin: Start) -> None:
    begin()
    with pytest.raises(JobFailed, match="BadArguments") as caught:
        TaskQ("elsewhere", url_of(hooked.q.directory.path)).enqueue("takes_one").result(timeout=10)
    assert "number" in caught.value.error_message


# -- registration


async def _coroutine(job: CurrentJob) -> None:
    pass


async def _async_generator(job: CurrentJob) -> AsyncIterator[None]:
    yield


def _no_yield(job: CurrentJob) -> None:
    pass


def _no_argument() -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (_coroutine, "is async"),
        (_async_generator, "is async"),
        (_no_yield, "no `yield`"),
        (_no_argument, "one argument"),
    ],
)
def test_what_is_no_middleware_is_refused(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TaskQ("refuses").middleware(function)


@pytest.mark.parametrize("function", [_coroutine, _async_generator, _no_yield, _no_argument, 7])
def test_what_is_no_hook_is_refused(function: Any) -> None:
    with pytest.raises(ConfigError, match="on_consumer_start"):
        TaskQ("refuses").on_consumer_start(function)
    with pytest.raises(ConfigError, match="on_consumer_stop"):
        TaskQ("refuses").on_consumer_stop(function)


def test_a_module_that_is_imported_again_registers_once() -> None:
    q = TaskQ("again")
    for _ in range(2):

        @q.middleware
        def around(job: CurrentJob) -> Iterator[None]:
            yield

        @q.on_consumer_start
        def begin() -> None: ...

    assert len(q.hooks.middleware) == 1
    assert len(q.hooks._starts) == 1
