"""Fixtures for pytest, which finds them as soon as taskq is installed. Name your application in pytest's settings,

    [tool.pytest.ini_options]
    taskq_app = "shop.tasks:q"

or override the fixture `taskq_app` in a conftest.py. `taskq.testing` describes what the fixtures return.

With that setting, a test that uses the real queue of the application fails: it has forgotten its fixture, and the next
fleet would run its jobs. `taskq_real_queue = true` allows it.
"""

# pytest loads this in every run: nothing is imported here that is not used in every run

from __future__ import annotations

import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from taskq.client.app import TaskQ
    from taskq.client.transport.clients import FleetConnection
    from taskq.testing.jobs import Jobs


T = TypeVar("T")

_PACKAGE = str(Path(__file__).parents[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the settings."""
    parser.addini(
        "taskq_app", "the application for the fixtures of taskq: module:attribute or path/to/file.py:attribute"
    )
    parser.addini("taskq_real_queue", "whether tests may use the application's own queue", type="bool", default=False)


@pytest.fixture(scope="session")
def taskq_app(pytestconfig: pytest.Config) -> TaskQ:
    """The application under test, from the setting `taskq_app`."""
    return _load_app(pytestconfig)


def _load_app(config: pytest.Config) -> TaskQ:
    from taskq.client.loader import load_app

    reference = _reference(config)
    if not reference:
        raise pytest.UsageError(
            'which application? Set taskq_app = "module:attribute" in the settings of pytest, or write a fixture '
            "taskq_app that returns it"
        )
    return load_app(reference)


def _reference(config: pytest.Config) -> str:
    """The setting, without quotes: in pytest.ini they are part of the value, in pyproject.toml they are not."""
    reference = str(config.getini("taskq_app")).strip()
    return reference[1:-1] if reference[:1] in ("'", '"') and reference[-1:] == reference[:1] else reference


@pytest.fixture
def taskq_inline(taskq_app: TaskQ) -> Iterator[Jobs]:
    """Runs jobs at once where they are enqueued: `taskq.testing.inline`."""
    from taskq import testing

    with testing.inline(taskq_app) as jobs:
        yield jobs


@pytest.fixture
def taskq_queue(taskq_app: TaskQ) -> Iterator[Jobs]:
    """Keeps jobs until the test runs them: `taskq.testing.queue`."""
    from taskq import testing

    with testing.queue(taskq_app) as jobs:
        yield jobs


@pytest.fixture
def taskq_fleet(taskq_app: TaskQ, tmp_path: Path) -> Iterator[TaskQ]:
    """Runs a real fleet of two consumers, in a directory of this test alone. Returns the application."""
    from taskq.system.directory import Directory

    before = taskq_app.directory
    taskq_app.use_directory(Directory(tmp_path / "taskq"))
    try:
        with taskq_app.fleet(consumers=2):
            yield taskq_app
    finally:
        taskq_app.use_directory(before)


# -- tests that forgot their fixture


class _Guard:
    """Refuses the use of the application's own queue, and remembers it: whatever the test does with the error, and in
    whatever thread it was raised, the test has to fail."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._home: Path | None = None
        self._is_loading = False
        self._refused: list[str] = []

    def check(self, app: FleetConnection) -> None:
        """Fails the test unless this is another application, or it uses another directory."""
        __tracebackhide__ = True
        if app.directory.path != self._own_path(app):
            return
        thread = threading.current_thread()
        where = _place(sys._getframe(1), self._config.rootpath)
        by = "" if thread is threading.main_thread() else f" in thread {thread.name!r}"
        told = (
            f"{where}{by} uses the queue of {app!r} in {app.directory.path}, whose next fleet would run what a test "
            "enqueues:\ngive the test one of the fixtures taskq_inline, taskq_queue or taskq_fleet (or say "
            "taskq_real_queue = true in the settings of pytest)"
        )
        self._refused.append(told)
        pytest.fail(told)  # no Exception, so that nobody's `except Exception` swallows it

    def _own_path(self, app: FleetConnection) -> Path:
        """The directory of the application that the settings name. It is not imported before any is used."""
        if self._home is None:
            if self._is_loading:
                return app.directory.path  # the application's own module enqueues when it is imported
            self._is_loading = True
            try:
                self._home = _load_app(self._config).home.path
            finally:
                self._is_loading = False
        return self._home

    def take(self) -> str | None:
        """Returns the first refusal since the last call; None if there was none."""
        told = self._refused[0] if self._refused else None
        self._refused.clear()
        return told


_GUARD = pytest.StashKey[_Guard]()


def pytest_configure(config: pytest.Config) -> None:
    """Guards the queue of the application, if the settings name one."""
    if _reference(config) and not config.getini("taskq_real_queue"):
        from taskq.client.transport.clients import Guard

        guard = config.stash[_GUARD] = _Guard(config)
        before, Guard.check = Guard.check, guard.check

        def restore() -> None:
            Guard.check = before

        config.add_cleanup(restore)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, T, T]:
    """Fails if a queue was used, as the next two do."""
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, T, T]:
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, T, T]:
    return (yield from _watched(item))


def _watched(item: pytest.Item) -> Generator[None, T, T]:
    guard = item.config.stash.get(_GUARD, None)
    try:
        result = yield
    except (KeyboardInterrupt, pytest.exit.Exception):
        raise
    except BaseException as raised:
        told = None if guard is None else guard.take()
        if told is None or str(raised) == told:
            raise
        pytest.fail(told)  # pytest shows what the test made of the error with it
    told = None if guard is None else guard.take()
    if told is not None:
        pytest.fail(told, pytrace=False)
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run if threads that tests have left use a queue after the last test."""
    guard = session.config.stash.get(_GUARD, None)
    told = None if guard is None else guard.take()
    if told is None:
        return
    session.exitstatus = pytest.ExitCode.TESTS_FAILED
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.ensure_newline()
        reporter.write_line(f"after the last test: {told}", red=True)


def _place(frame: FrameType | None, root: Path) -> str:
    """Returns the innermost line on the stack that is the user's own; else the innermost that is not ours."""
    innermost = ""
    while frame is not None:
        path, line = frame.f_code.co_filename, frame.f_lineno
        if not path.startswith(_PACKAGE):
            innermost = innermost or f"{path}:{line}"
            if Path(path).is_relative_to(root):
                return f"{Path(path).relative_to(root)}:{line}"
        frame = frame.f_back
    return innermost
