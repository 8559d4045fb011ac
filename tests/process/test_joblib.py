"""The backend for joblib: results, errors, cancels and generators, with the real joblib on a real fleet."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy
import pytest
from fleet import Fleet, running, url_of, wait_until

import taskq.contrib.joblib
from taskq import Executor, TaskQ


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


@pytest.fixture
def backend(executor: Executor) -> Iterator[None]:
    """joblib uses our backend."""
    with joblib.parallel_config("taskq", executor=executor, n_jobs=2):
        yield


def fail_at(number: int, limit: int) -> int:
    if number == limit:
        raise ArithmeticError(number)
    return number


@pytest.mark.usefixtures("backend")
def test_results_come_in_order() -> None:
    assert joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(100)) == [n * n for n in range(100)]
    assert joblib.Parallel()(()) == []


@pytest.mark.usefixtures("backend")
def test_an_error_is_raised_and_the_next_call_works() -> None:
    with pytest.raises(ArithmeticError, match="5"):
        joblib.Parallel(batch_size=1)(joblib.delayed(fail_at)(n, 5) for n in range(50))
    assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("backend")
def test_an_error_stops_the_calls_that_run() -> None:
    def fail_or_sleep(number: int) -> None:
        if number == 0:
            raise ArithmeticError(number)
        time.sleep(60)

    with pytest.raises(ArithmeticError):
        joblib.Parallel(batch_size=1)(joblib.delayed(fail_or_sleep)(n) for n in range(4))
    assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]


@pytest.mark.usefixtures("backend")
def test_results_as_a_generator_and_in_any_order() -> None:
    calls = [joblib.delayed(pow)(n, 2) for n in range(20)]
    assert list(joblib.Parallel(return_as="generator")(calls)) == [n * n for n in range(20)]
    assert sorted(joblib.Parallel(return_as="generator_unordered")(calls)) == [n * n for n in range(20)]


@pytest.mark.usefixtures("backend")
def test_a_timeout_ends_the_wait() -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        joblib.Parallel(timeout=0.2)(joblib.delayed(time.sleep)(30) for _ in range(2))


@pytest.mark.usefixtures("backend")
def test_a_killed_worker_breaks_nothing(tmp_path: Path) -> None:
    def killed_once(number: int, flag: Path) -> int:
        if number == 3 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    calls = (joblib.delayed(killed_once)(n, tmp_path / "flag") for n in range(8))
    assert joblib.Parallel(batch_size=1)(calls) == list(range(8))


@pytest.mark.usefixtures("backend")
def test_large_arrays() -> None:
    array = numpy.arange(1_000_000, dtype=float)
    doubled = joblib.Parallel()(joblib.delayed(numpy.multiply)(array, n) for n in range(2))
    assert numpy.array_equal(doubled[1], array)


@pytest.mark.usefixtures("backend")
def test_nested_calls() -> None:
    def inner(number: int) -> list[int]:
        return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(number, n) for n in range(3))

    assert joblib.Parallel()(joblib.delayed(inner)(n) for n in range(3)) == [[1, 0, 0], [1, 1, 1], [1, 2, 4]]


def test_the_private_fleet_stays_and_has_the_variables() -> None:
    with joblib.parallel_config("taskq", n_jobs=2, inner_max_num_threads=3):
        assert joblib.Parallel()(joblib.delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2)) == ["3", "3"]
        made = taskq.contrib.joblib._shared._executor
        assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
        assert taskq.contrib.joblib._shared._executor is made
        taskq.contrib.joblib.end_fleet()
        assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
    taskq.contrib.joblib.end_fleet()


def test_the_fleet_of_an_application(tmp_path: Path, home: Path) -> None:
    (tmp_path / "calls.py").write_text("from taskq import TaskQ\nq = TaskQ('calls')\nexecutor = q.executor()\n")
    q = TaskQ("calls", url_of(home))
    with running(Fleet(home, f"{tmp_path / 'calls.py'}:q")), q.executor() as executor:
        with joblib.parallel_config("taskq", executor=executor, n_jobs=2):
            assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(5)) == list(range(5))
        wait_until(lambda: q.jobs("succeeded"), "jobs of the fleet")


def test_one_job_at_a_time_needs_no_fleet() -> None:
    with joblib.parallel_config("taskq", n_jobs=1):
        assert joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(2)) == [os.getpid()] * 2
    with joblib.parallel_config("taskq"), pytest.raises(ValueError, match="no meaning"):
        joblib.Parallel(n_jobs=0)(joblib.delayed(abs)(n) for n in range(2))
