"""Fixtures for pytest, there by themselves once taskq is installed. Name your application in pytest's settings,

    [tool.pytest.ini_options]
    taskq_app = "shop.tasks:q"

or override the fixture `taskq_app` in a conftest.py. What the fixtures give is described in `taskq.testing`.
"""

# pytest loads this in every run: nothing is imported here that is not used in every run

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskq.app import TaskQ
    from taskq.testing import Jobs


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the setting."""
    parser.addini(
        "taskq_app", "the application for the fixtures of taskq: module:attribute or path/to/file.py:attribute"
    )


@pytest.fixture(scope="session")
def taskq_app(pytestconfig: pytest.Config) -> TaskQ:
    """The application under test, from the setting `taskq_app`."""
    from taskq.loader import load_app

    reference = str(pytestconfig.getini("taskq_app"))
    if not reference:
        raise pytest.UsageError(
            'which application? Set taskq_app = "module:attribute" in the settings of pytest, or write a fixture '
            "taskq_app that returns it"
        )
    return load_app(reference)


@pytest.fixture
def taskq_inline(taskq_app: TaskQ) -> Iterator[Jobs]:
    """Jobs run at once where they are enqueued: `taskq.testing.inline`."""
    from taskq import testing

    with testing.inline(taskq_app) as jobs:
        yield jobs


@pytest.fixture
def taskq_queue(taskq_app: TaskQ) -> Iterator[Jobs]:
    """Jobs are kept until the test runs them: `taskq.testing.queue`."""
    from taskq import testing

    with testing.queue(taskq_app) as jobs:
        yield jobs


@pytest.fixture
def taskq_fleet(taskq_app: TaskQ, tmp_path: Path) -> Iterator[TaskQ]:
    """A real fleet of two consumers, in a directory of this test alone; gives the application."""
    from taskq.config import Directory

    before = taskq_app.directory
    taskq_app.use_directory(Directory(tmp_path / "taskq"))
    try:
        with taskq_app.fleet(consumers=2):
            yield taskq_app
    finally:
        taskq_app.use_directory(before)
