"""A test that forgot its fixture must fail, before anything of it reaches the queue of the user."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from projects import SHOP, pytest_in, run_pytest

pytestmark = pytest.mark.not_on_postgres("no queue is asked: taskq.testing")

FORGETFUL = """
import asyncio
import threading
import pytest
from shop import double, q
from taskq import TaskQ, chain, group, testing

WAYS = {
    "enqueue": lambda: double.enqueue(4),
    "options": lambda: double.options(delay=60).enqueue(4),
    "many": lambda: double.enqueue_many([(4,)]),
    "map": lambda: list(double.map([4])),
    "name": lambda: q.enqueue("double", 4),
    "unknown": lambda: q.enqueue("unknown", 4),
    "async": lambda: asyncio.run(double.aenqueue(4)),
    "chain": lambda: chain(double.step(4), double.step()).enqueue(),
    "group": lambda: asyncio.run(group([double.step(4)]).aenqueue()),
    "schedule": lambda: q.schedules.add("often", double, every="1h", args=(4,)),
    "retry": lambda: q.retry_failed(),
    "purge": lambda: q.purge("failed"),
    "handle": lambda: q.job("00" * 16).cancel(),
    "fleet": lambda: q.fleet(consumers=1).__enter__(),
}
ways = pytest.mark.parametrize("way", WAYS)

@ways
def test_forgotten(way):
    WAYS[way]()

@ways
def test_forgotten_and_swallowed(way):
    try:
        WAYS[way]()
    except BaseException:
        pass

@ways
def test_forgotten_in_a_thread(way):
    thread = threading.Thread(target=WAYS[way])
    thread.start()
    thread.join()

def test_forgotten_and_skipped():
    try:
        double.enqueue(4)
    except BaseException:
        pytest.skip("it does not work")

@pytest.fixture
def prepared():
    double.enqueue(4)

def test_forgotten_in_a_fixture(prepared):
    pass

def test_called_only():
    assert double(4) == 8

def test_remembered(taskq_queue):
    thread = threading.Thread(target=WAYS["enqueue"])
    thread.start()
    thread.join()
    assert len(taskq_queue.enqueued(double)) == 1

def test_remembered_fleet(taskq_fleet):
    assert double.enqueue(4).result(timeout=30) == 8

def test_remembered_context():
    with testing.inline(q):
        assert double.enqueue(4).result() == 8

def test_another_application(tmp_path):
    TaskQ("other", url=tmp_path / "other").enqueue("anything")
"""
WAYS = FORGETFUL.count(": lambda: ")


def project(folder: Path, tests: str, *settings: str) -> None:
    """Writes a project with an application, tests and settings of pytest."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "test_shop.py").write_text(tests)
    (folder / "pytest.ini").write_text("\n".join(["[pytest]", *settings, ""]))


def test_a_forgotten_fixture_fails_the_test(tmp_path: Path) -> None:
    """Whatever way it goes, and whatever the test does with the error."""
    project(tmp_path, FORGETFUL, "taskq_app = shop:q")
    said = pytest_in(tmp_path, "-rA")
    assert not (tmp_path / "state").exists(), "nothing was made there"
    ended = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) .*::test_([a-z]+)", said, re.MULTILINE)
    assert ended.count(("FAILED", "forgotten")) == 3 * WAYS + 1, said
    assert ended.count(("ERROR", "forgotten")) == 1, said
    assert sorted(name for outcome, name in ended if outcome == "PASSED") == [
        *("another", "called", "remembered", "remembered", "remembered")
    ], said
    assert len(ended) == 3 * WAYS + 7, said
    assert said.count("taskq_inline, taskq_queue or taskq_fleet") >= 3 * WAYS + 2, said
    assert re.search(r"test_shop\.py:\d+ .*uses the queue of <TaskQ shop> in \S+/state/taskq/shop", said), said


def test_a_quoted_application(tmp_path: Path) -> None:
    """In pytest.ini quotes are part of the value; in pyproject.toml they are not."""
    project(
        tmp_path,
        "from shop import double\n\ndef test_it(taskq_queue):\n    double.enqueue(4)\n",
        'taskq_app = "shop:q"',
    )
    assert "1 passed" in pytest_in(tmp_path)


def test_the_real_queue_may_be_used_on_purpose(tmp_path: Path) -> None:
    tests = "from shop import double\n\ndef test_it():\n    double.enqueue(4)\n"
    project(tmp_path, tests, "taskq_app = shop:q", "taskq_real_queue = true")
    assert "1 passed" in pytest_in(tmp_path)
    assert (tmp_path / "state/taskq/shop/spool").is_dir()


def test_what_enqueues_while_tests_are_collected_fails_them(tmp_path: Path) -> None:
    project(tmp_path, "from shop import double\n\ndouble.enqueue(4)\n\ndef test_it(): pass\n", "taskq_app = shop:q")
    said = pytest_in(tmp_path)
    assert "1 error" in said, said
    assert "taskq_inline, taskq_queue or taskq_fleet" in said, said
    assert not (tmp_path / "state").exists()


def test_what_enqueues_after_the_last_test_fails_the_run(tmp_path: Path) -> None:
    project(tmp_path, "def test_it(): pass\n", "taskq_app = shop:q")
    (tmp_path / "conftest.py").write_text(
        "import threading\n"
        "from shop import double\n"
        "def pytest_sessionfinish(session):\n"
        "    thread = threading.Thread(target=double.enqueue, args=(4,))\n"
        "    thread.start()\n"
        "    thread.join()\n"
    )
    ended = run_pytest(tmp_path)
    said = ended.stdout
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED
    assert "after the last test" in said, said
    assert "taskq_inline, taskq_queue or taskq_fleet" in said, said
    assert not (tmp_path / "state").exists()
