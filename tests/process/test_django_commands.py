"""`manage.py taskq` in a project that `startproject` has made: a real fleet, its status, its log and its dashboard."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from taskq.model.exits import Exit

pytestmark = pytest.mark.timeout(300)
SETTINGS = """
INSTALLED_APPS += ["shop", "taskq.contrib.django"]
BACKEND = "taskq.contrib.django.backend.TaskqBackend"
TASKS = {
    "default": {"BACKEND": BACKEND, "OPTIONS": {"URL": str(BASE_DIR / "queue")}},
    "mail": {"BACKEND": BACKEND, "OPTIONS": {"URL": str(BASE_DIR / "mail")}},
}
"""
TASK = """
import logging
from django_tasks import task

@task
def greet(name):
    logging.getLogger("django.shop").warning("greeting %s", name)
    return f"hello {name}"
"""
ENQUEUE = """
from django_tasks import default_task_backend
from shop.tasks import greet
result = greet.enqueue("Ada")
default_task_backend.q.job(result.id).wait(30)
print(result.id)
"""
#: A command imports Django, which takes a while on a busy machine.
LONG_S = 100.0


class Project:
    """A project of Django, and its `manage.py`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKQ_")}
        self._environment = {**kept, "COLUMNS": "100"}
        subprocess.run([sys.executable, "-m", "django", "startproject", "shop", str(folder)], check=True)
        with (folder / "shop/settings.py").open("a") as settings:
            settings.write(SETTINGS)
        (folder / "shop/tasks.py").write_text(TASK)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [sys.executable, "manage.py", *words],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        """Runs a command; returns its exit code, and what it printed."""
        with self.begin(*words) as process:
            printed, errors = process.communicate(timeout=LONG_S)
        return process.returncode, printed + errors


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def fleet(project: Project) -> Iterator[subprocess.Popen[str]]:
    worker = project.begin("taskq", "worker", "--consumers", "1", "--log-format", "json")
    try:
        assert worker.stderr is not None
        next(line for line in worker.stderr if "consumer.started" in line)
        yield worker
    finally:
        worker.terminate()
        worker.communicate(timeout=LONG_S)


@pytest.fixture(scope="module")
def job_id(project: Project, fleet: subprocess.Popen[str]) -> str:
    """A task that has run."""
    code, printed = project.run("shell", "--verbosity", "0", "--command", ENQUEUE)
    assert code == Exit.OK, printed
    return printed.split()[-1]


def test_status_job_and_log(project: Project, job_id: str) -> None:
    code, printed = project.run("taskq", "--settings", "shop.settings", "--backend", "default", "status")
    assert code == Exit.OK, printed
    assert str(project.folder / "queue") in printed
    assert "1 succeeded" in printed
    _, printed = project.run("taskq", "logs", "--job", job_id)
    assert printed.count("greeting Ada") == 1, "Django has a handler of its own for this logger"
    assert "shop.tasks.greet" in printed


def test_the_dashboard(project: Project, job_id: str) -> None:
    with project.begin("taskq", "web", "--port", "0") as served:
        assert served.stdout is not None
        link = served.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/?\?token=\S+", link)
        with httpx.Client(base_url=link.partition("?")[0], timeout=LONG_S) as browser:
            assert browser.get(link).status_code == 200
            page = browser.get(f"/jobs/{job_id}")
        assert "shop.tasks.greet" in page.text
        served.terminate()
        _, errors = served.communicate(timeout=LONG_S)
    assert served.returncode == Exit.OK, errors
    assert "Traceback" not in errors


def test_another_backend(project: Project) -> None:
    code, printed = project.run("taskq", "--backend=mail", "status")
    assert code == Exit.NO_FLEET
    assert str(project.folder / "mail") in printed
