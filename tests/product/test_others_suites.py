"""Other people's test suites on taskq, as the pages say: those of CPython, Django, joblib and Celery.

They take some minutes in all, and those of CPython and Django need a newer Python than 3.11, which uv looks for. CPython's
have time limits of their own (a first result after 5 s), so they want a machine that does little else.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
PYTHON = "3.13"
#: They use the backend in a worker in which nobody has imported it.
NOT_JOBLIB = ("loky-taskq", "taskq-taskq", "back_compat_backend-taskq")


def run(*words: str, cwd: Path = ROOT) -> str:
    """Runs a command to its end; returns what it printed."""
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:]
    return done.stdout


def run_with(extra: str, *words: str) -> str:
    """Runs Python with taskq in an environment of its own."""
    python = runpy.run_path(str(ROOT / "tools/smoke.py"))["interpreter"](PYTHON)
    if python is None:
        pytest.skip(f"there is no Python {PYTHON} here")
    environment = ["--no-project", "--python", python, "--with", "pip", "--with", f"{ROOT}[{extra}]"]
    return run(sys.executable, "-m", "uv", "run", *environment, "python", *words)


def test_cpython() -> None:
    printed = run_with("executor", "-m", "unittest", "tests/product/cpython_executors.py")
    assert "Ran 31 tests" in printed
    assert "OK (skipped=3)" in printed


def test_django() -> None:
    printed = run_with("django", "tests/product/django_tasks_suite.py")
    assert "Ran 85 tests" in printed  # 9 of them are of a backend of Django's own
    assert "OK (skipped=5)" in printed


def test_joblib(tmp_path: Path) -> None:
    """In a folder without our settings of pytest."""
    names = " and ".join(["taskq", *(f"not nested_loop[{name}]" for name in NOT_JOBLIB)])
    tests = ["--pyargs", "joblib.test.test_parallel", "-k", names]
    assert "75 passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "taskq.contrib.joblib", *tests, cwd=tmp_path)


def test_celery() -> None:
    printed = run(sys.executable, "tests/product/celery_integration.py")
    assert "270 passed, 26 skipped, 2 xfailed, 5 xpassed" in printed
