"""The backend for Django's tasks, in one process: `taskq.testing` runs the jobs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction

from taskq import BadArguments, testing
from taskq.testing import Jobs

FOLDER = TemporaryDirectory()  # a database in memory is never closed
settings.configure(
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{FOLDER.name}/site.sqlite3"}},
    INSTALLED_APPS=["taskq.contrib.django"],
    TASKS={
        "default": {
            "BACKEND": "taskq.contrib.django.backend.TaskqBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"NAME": "django", "JOB_OPTIONS": {"timeout": 30}},
        },
        "committing": {
            "BACKEND": "taskq.contrib.django.backend.TaskqBackend",
            "OPTIONS": {"NAME": "committing", "ENQUEUE_ON_COMMIT": True},
        },
        "own": {"BACKEND": "django_tasks.backends.immediate.ImmediateBackend"},
    },
)
django.setup()

from apps import django_tasks_app as tasks  # noqa: E402 - after the settings
from django_tasks import TaskResultStatus, default_task_backend, task_backends  # noqa: E402
from django_tasks.exceptions import InvalidTaskError, TaskResultDoesNotExist  # noqa: E402
from django_tasks.signals import task_enqueued, task_finished, task_started  # noqa: E402

from taskq.contrib.django.backend import TaskqBackend, backend_of  # noqa: E402
from taskq.contrib.django.management.commands.taskq import Command  # noqa: E402
from taskq.model.exits import Exit  # noqa: E402

pytestmark = pytest.mark.not_on_postgres("no queue is asked: taskq.testing")


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    with testing.queue(default_task_backend.q) as jobs:
        yield jobs


@pytest.fixture
def committing() -> Iterator[Jobs]:
    with testing.queue(task_backends["committing"].q) as jobs:
        yield jobs


def test_a_task_succeeds(jobs: Jobs) -> None:
    result = tasks.greet.enqueue("Ada", times=2)
    assert (result.status, result.args, result.kwargs) == (TaskResultStatus.READY, ["Ada"], {"times": 2})
    jobs.drain()
    result.refresh()
    assert result.status == TaskResultStatus.SUCCESSFUL
    assert result.return_value == ["hello Ada"] * 2
    assert tasks.greet.get_result(result.id) == result
    assert result.attempts == 1
    assert result.enqueued_at <= result.started_at <= result.finished_at


def test_async_tasks_and_context(jobs: Jobs) -> None:
    added, told = tasks.add.enqueue(1, b=2), tasks.tell.enqueue("x")
    jobs.drain()
    added.refresh()
    told.refresh()
    assert added.return_value == 3
    assert told.return_value == [1, told.id, "x"]


def test_a_task_fails_after_its_retries(jobs: Jobs) -> None:
    result = tasks.fail.enqueue("why")
    jobs.drain(10)
    result.refresh()
    assert result.status == TaskResultStatus.FAILED
    assert [error.exception_class for error in result.errors] == [KeyError, KeyError]
    assert "raise KeyError(what)" in result.errors[-1].traceback
    assert result.attempts == 2
    assert result.args == ["why"]


def _module_level() -> None: ...


def test_options_of_taskq(jobs: Jobs) -> None:
    first, second = tasks.greet.enqueue("Ada"), tasks.greet.enqueue("Ada", times=5)
    assert first.id == second.id
    spec = default_task_backend.q.tasks[tasks.greet.module_path].spec
    assert (spec.retries, spec.timeout_s) == (1, 30)
    with pytest.raises(InvalidTaskError, match="concurrency"):
        tasks.greet.get_backend().task_class(func=_module_level, concurrency=-1)


def test_priority_queue_and_time(jobs: Jobs) -> None:
    later = tasks.add.using(run_after=datetime.now(UTC) + timedelta(days=400)).enqueue(1, 2)
    tasks.add.using(priority=5, queue_name="mail").enqueue(3, 4)
    jobs.drain()
    later.refresh()
    assert later.status == TaskResultStatus.READY
    [done] = default_task_backend.q.jobs("succeeded")
    assert done.queue == "mail"
    default_task_backend.q.job(later.id).cancel()
    later.refresh()
    assert later.status == TaskResultStatus.FAILED
    assert later.errors[0].exception_class_path == "taskq.JobCancelled"


def test_what_is_refused(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadArguments, match="add"):
        tasks.add.enqueue(1)
    with pytest.raises(TypeError, match="Unsupported type"):
        tasks.greet.enqueue(object())
    result = tasks.make_set.enqueue()
    jobs.drain()
    result.refresh()
    assert result.errors[0].exception_class is TypeError
    for unknown in ("nothing", "0" * 32):
        with pytest.raises(TaskResultDoesNotExist):
            default_task_backend.get_result(unknown)
    with pytest.raises(SystemExit) as ended:
        Command().run_from_argv(["manage.py", "taskq", "--backend=nothing", "status"])
    assert ended.value.code == Exit.APP
    assert capsys.readouterr().err == "taskq: TASKS has no backend 'nothing': it has default, committing, own\n"
    with pytest.raises(
        ImproperlyConfigured, match=r"ImmediateBackend: set its BACKEND to taskq\.contrib\.django\.backend\."
    ):
        backend_of("own")
    with pytest.raises(ImproperlyConfigured, match="ENQUEUE_LATER"):
        TaskqBackend("default", {"OPTIONS": {"ENQUEUE_LATER": True}})


def test_signals(jobs: Jobs) -> None:
    heard: list[tuple[str, str]] = []

    def hear(signal: Any, task_result: Any, **_others: Any) -> None:
        heard.append((names[signal], str(task_result.status)))

    names = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}
    for signal in names:
        signal.connect(hear)
    try:
        tasks.add.enqueue(1, 2)
        jobs.drain()
    finally:
        for signal in names:
            signal.disconnect(hear)
    assert heard == [("enqueued", "READY"), ("started", "RUNNING"), ("finished", "SUCCESSFUL")]


def test_on_commit(committing: Jobs) -> None:
    task = tasks.add.using(backend="committing")
    with transaction.atomic():
        result = task.enqueue(1, 2)
        with pytest.raises(TaskResultDoesNotExist):
            task.get_result(result.id)
    assert task.get_result(result.id) == result
    with pytest.raises(LookupError), transaction.atomic():
        lost = task.enqueue(1, 2)
        raise LookupError
    with pytest.raises(TaskResultDoesNotExist):
        task.get_result(lost.id)


def test_connections_that_are_too_old_are_closed_around_a_job(jobs: Jobs) -> None:
    connection.ensure_connection()
    connection.close_at = 0.0
    tasks.greet.enqueue("Ada")
    jobs.drain()
    assert connection.connection is None
