"""Django's own tests of task backends, with taskq's: `python tests/product/django_tasks_suite.py [TEST ...]`.

They are in Django's sdist, which pip downloads, and are for Django 6.1 or newer, so for Python 3.12 or newer; so pytest
does not collect this file. Each test names one of the two backends of Django, which do not leave their process: in the
place of these stand backends of taskq, whose jobs are run in this process by `taskq.testing`.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import unittest
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django
from django.conf import settings
from django.test.runner import DiscoverRunner

from taskq import testing
from taskq.contrib.django.backend import TaskqBackend

#: Tests that are not run, and why; docs/django.md says the same.
_SETS = "it puts another result into the list of the backend"
_CAN = "it expects that the backend can neither defer a task nor look up a result"
NOT_RUN = {
    "test_dummy_backend.DummyBackendTestCase.test_refresh_result": _SETS,
    "test_dummy_backend.DummyBackendTestCase.test_refresh_result_async": _SETS,
    "test_immediate_backend.ImmediateBackendTestCase.test_cannot_get_result": _CAN,
    "test_immediate_backend.ImmediateBackendTestCase.test_cannot_pass_run_after": _CAN,
    "test_immediate_backend.ImmediateBackendTestCase.test_cannot_refresh_result": _CAN,
}


class DummyBackend(TaskqBackend):
    """Jobs wait in this process, and nothing runs them."""

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self._queue = ExitStack()
        self.clear()

    def clear(self) -> None:
        """Forgets all jobs."""
        self._queue.close()
        self.jobs = self._queue.enter_context(testing.queue(self.q))

    @property
    def results(self) -> list[Any]:
        """Those of all jobs, in the order in which they were enqueued."""
        return [self.get_result(info.id) for info in reversed(self.q.jobs())]


class ImmediateBackend(DummyBackend):
    """Jobs run before `enqueue` returns."""

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Returns the result as it is then."""
        result = super().enqueue(task, args, kwargs)
        self.jobs.drain()
        return self.get_result(result.id)


def unpack(folder: Path) -> None:
    """The tests of the Django that is installed."""
    wanted = f"Django=={django.get_version()}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--quiet"]
    subprocess.run([*pip, "--dest", str(folder), wanted], check=True)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    [tests] = folder.glob("*/tests/tasks")
    tests.rename(folder / "tasks")


def main(labels: list[str]) -> int:
    """Runs the tests. Returns how many do not hold."""
    with TemporaryDirectory() as made:
        folder = Path(made)
        unpack(folder)
        sys.path.insert(0, made)
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(INSTALLED_APPS=["tasks"], DATABASES={"default": database})
        django.setup()
        from django.tasks.backends import dummy, immediate

        dummy.DummyBackend, immediate.ImmediateBackend = DummyBackend, ImmediateBackend
        for name, reason in NOT_RUN.items():
            module, case, test = name.split(".")
            found = getattr(__import__(f"tasks.{module}", fromlist=[case]), case)
            setattr(found, test, unittest.skip(reason)(getattr(found, test)))
        return DiscoverRunner(verbosity=2).run_tests(labels or ["tasks"])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
