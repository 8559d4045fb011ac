"""Celery's own tests of its canvas and its tasks, on a fleet: `python tests/product/celery_integration.py [-k WORDS ...]`.

They are in Celery's sdist, which pip downloads, and take some minutes; so pytest does not collect this file. The tasks
of these tests note in a Redis list what they have done: that needs `redis-server` and the package `redis`. Nothing
else uses it. Arguments are those of pytest. This file is also the plugin that gives the tests a fleet as their worker.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

#: Tests that are not run, and why; docs/celery.md has the same list.
_SIGNAL = "it waits in its own process for the signal task_received, which taskq does not send"
_MEMORY = "it looks into the memory of a worker that is in its own process"
_REDIS = "it looks into Redis for what the result backend keeps there"
NOT_RUN = {
    "test_canvas.py::test_chain::test_chord_header_id_duplicated_on_rabbitmq_msg_duplication": "it duplicates a message in RabbitMQ",
    "test_canvas.py::test_chord::test_chord_on_error": _REDIS,
    "test_canvas.py::test_stamping_mechanism::test_err_linking_stamped_sig": _SIGNAL,
    "test_canvas.py::test_stamping_mechanism::test_linking_stamped_sig": _SIGNAL,
    "test_canvas.py::test_stamping_mechanism::test_task_received_has_access_to_stamps": _SIGNAL,
    "test_tasks.py::test_signal_bound_method_receivers::test_disconnect_leaves_other_instance_connected": _SIGNAL,
    "test_tasks.py::test_signal_bound_method_receivers::test_each_instance_receives": _SIGNAL,
    "test_tasks.py::test_signal_bound_method_receivers::test_other_instance_receives_after_garbage_collection": _SIGNAL,
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_forget_cancels_subscription": _REDIS,
    "test_tasks.py::test_task_redis_result_backend::test_asyncresult_get_cancels_subscription": _REDIS,
    "test_tasks.py::test_task_redis_result_backend::test_retry_preserves_ignore_result_false": _MEMORY,
    "test_tasks.py::test_task_redis_result_backend::test_retry_preserves_ignore_result_true": _MEMORY,
    "test_tasks.py::test_task_replacement::test_replaced_task_nesting_chain": _SIGNAL,
    "test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0": _SIGNAL,
    "test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_1": _SIGNAL,
    "test_tasks.py::test_tasks::test_retry": "its task counts in the memory of a worker that must be the only one",
    "test_tasks.py::test_tasks::test_revoked_by_headers_complex_canvas": _MEMORY,
    "test_tasks.py::test_tasks::test_revoked_by_headers_simple_canvas": _MEMORY,
    "test_tasks.py::test_tasks::test_send_task_without_ignore_result_stores_result": _MEMORY,
    "test_tasks.py::test_tasks::test_send_task_without_ignore_result_uses_task_ignore_result": _MEMORY,
    "test_tasks.py::test_tasks::test_task_sent_event_respects_publish_retry_limit": "there are no events",
    "test_tasks.py::test_trace_log_arguments::test_task_failed": _MEMORY,
    "test_tasks.py::test_trace_log_arguments::test_task_success": _MEMORY,
}

FLEET = """
from celery import Celery

app = Celery("celery.tests", broker="memory://", backend="redis://", include=["t.integration.tasks"])
app.conf.update(result_extended=True, task_create_missing_queues=False)
app.set_default()

import celery.contrib.testing.tasks  # celery.ping
from t.integration.tasks import ClassBasedAutoRetryTask

app.register_task(ClassBasedAutoRetryTask)
"""


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """The fleet runs already: puts this in place of Celery's fixture that starts a worker."""
    import celery.contrib.pytest as fixtures

    fixtures.celery_session_worker = celery_session_worker


@pytest.fixture(scope="session")
def celery_session_worker(celery_session_app: Any, celery_includes: set[str], celery_class_tasks: list[type]) -> None:
    """Lets the program that runs the tests know the tasks of the fleet."""
    for module in celery_includes:
        celery_session_app.loader.import_task_module(module)
    for each in celery_class_tasks:
        celery_session_app.register_task(each)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is named in `NOT_RUN`."""
    for item in items:
        reason = NOT_RUN.get(item.nodeid.partition("/integration/")[2].partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"taskq: {reason}"))


def unpack(folder: Path) -> Path:
    """Celery's sdist of the version that is installed, unpacked."""
    wanted = f"celery=={version('celery')}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*pip, "--quiet", "--dest", str(folder), wanted], check=True)
    [archive] = folder.glob("celery-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    [root] = (path for path in folder.glob("celery-*") if path.is_dir())
    # only the tests: Celery itself is the one that is installed
    tests = folder / "tests"
    shutil.copytree(root / "t" / "integration", tests / "t" / "integration")
    for helper in (root / "t").glob("*.py"):
        shutil.copy(helper, tests / "t")
    (tests / "fleet.py").write_text(FLEET)
    return tests


@contextmanager
def program(*command: str, cwd: Path) -> Iterator[None]:
    """Runs a program while the block runs."""
    process = subprocess.Popen(command, cwd=cwd)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for_port(port: int) -> None:
    """Waits until somebody listens there."""
    for _ in range(200):
        with socket.socket() as found:
            if found.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("redis-server did not start")


def main(arguments: list[str]) -> int:
    """Runs the tests. Returns the exit code of pytest."""
    with TemporaryDirectory() as made, socket.socket() as free:
        folder = Path(made)
        tests = unpack(folder)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        os.environ.update(
            TASKQ_URL=str(folder / "queue"),
            REDIS_PORT=str(port),
            CELERY_LOADER="taskq.contrib.celery.loader:Loader",
            TEST_BROKER="memory://",
            TEST_BACKEND="redis://",
            PYTHONPATH=os.pathsep.join([str(tests), str(Path(__file__).parent)]),
            PYTHONDONTWRITEBYTECODE="1",
        )
        redis = ["redis-server", "--port", str(port), "--save", "", "--loglevel", "warning"]
        fleet = [sys.executable, "-m", "taskq", "worker", "fleet:app", "--consumers", "4", "--log-level", "warning"]
        with program(*redis, cwd=folder), program(*fleet, cwd=tests):
            wait_for_port(port)
            files = ["t/integration/test_canvas.py", "t/integration/test_tasks.py"]
            pytest_ = [
                sys.executable,
                "-m",
                "pytest",
                "-p",
                "celery.contrib.pytest",
                "-p",
                Path(__file__).stem,
                "-q",
                "-rfEs",
            ]
            pytest_ += ["--rootdir", str(tests), "-o", "python_classes=test_*"]  # as Celery's own settings
            return subprocess.call([*pytest_, "--timeout", "300", *(arguments or []), *files], cwd=tests)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
