"""Executors: the contract of concurrent.futures, what a killed worker does to it, and the libraries that take one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
from apscheduler.executors.pool import BasePoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from fleet import Fleet, running, url_of, wait_until

import taskq
from taskq import Executor, JobFailed, JobState, TaskQ

APP = """
from taskq import TaskQ

q = TaskQ("calls")
executor = q.executor()
closed = TaskQ("closed")
"""


class Unhappy(Exception):
    """Its class is known here alone: it travels with its code."""

    def __init__(self, code: int, told: str) -> None:
        super().__init__(code, told)
        self.code = code


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


def unhappy() -> None:
    raise Unhappy(7, "as expected")


def killed_at_first(flag: Path) -> str:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "ran again"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read(fifo: str) -> str:
    return Path(fifo).read_text()


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor(2) as executor:
        yield executor


# -- a private fleet


def test_functions_and_closures(executor: Executor) -> None:
    offset = 3
    future = executor.submit(lambda x, *, by: x * by + offset, 4, by=10)
    assert future.result(30) == 43
    assert future.done()
    assert not future.running()
    assert not future.cancel()
    assert future.job.state() == JobState.SUCCEEDED
    assert future.job.info().meta["function"].endswith("<lambda>")


def test_an_exception_arrives_as_it_was_raised(executor: Executor) -> None:
    error = executor.submit(unhappy).exception(30)
    assert type(error) is Unhappy
    assert error.code == 7
    assert "in unhappy" in str(error.__cause__)
    assert "raise Unhappy" in str(error.__cause__)
    assert "pickled_calls" not in str(error.__cause__)


def test_an_exception_that_cannot_be_pickled_arrives_as_text(executor: Executor) -> None:
    def refuse() -> None:
        raise Unpicklable("never")

    error = executor.submit(refuse).exception(30)
    assert isinstance(error, JobFailed)
    assert error.error_type == "Unpicklable"


def test_sys_exit_ends_the_call_alone(executor: Executor) -> None:
    error = executor.submit(sys.exit, 3).exception(30)
    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert executor.submit(int).result(30) == 0


def test_a_result_that_cannot_be_pickled_is_an_error(executor: Executor) -> None:
    assert isinstance(executor.submit(threading.Lock).exception(30), TypeError)


def test_a_killed_worker_breaks_nothing(executor: Executor, tmp_path: Path) -> None:
    again = executor.submit(killed_at_first, tmp_path / "flag")
    hopeless = executor.submit(die)
    others = [executor.submit(pow, 2, n) for n in range(20)]
    assert [other.result(30) for other in others] == [2**n for n in range(20)]
    assert again.result(30) == "ran again"
    error = hopeless.exception(30)
    assert isinstance(error, JobFailed)
    assert error.error_type == "Crashed"
    assert executor.submit(abs, -1).result(30) == 1


@pytest.mark.parametrize("options", [{}, {"chunksize": 7}, {"buffersize": 3}, {"chunksize": 2, "buffersize": 2}])
def test_map(executor: Executor, options: dict[str, int]) -> None:
    assert list(executor.map(pow, range(20), [2] * 20, **options)) == [n * n for n in range(20)]
    assert list(executor.map(abs, [], **options)) == []


def test_map_with_a_buffer_takes_an_endless_iterable(executor: Executor) -> None:
    def numbers() -> Iterator[int]:
        n = 0
        while True:
            yield n
            n += 1

    results = executor.map(abs, numbers(), buffersize=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_map_gives_up_in_time(executor: Executor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    results = executor.map(read, [str(tmp_path / "fifo")], timeout=0.2)
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "fifo").write_text("")


def test_sizes_are_checked(executor: Executor) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(abs, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        executor.map(abs, [1], buffersize=0)
    with pytest.raises(ValueError, match="max_workers"):
        Executor(0)
    with pytest.raises(TypeError, match="callable"):
        Executor(initializer=3)  # type: ignore[arg-type]


def test_waiting_for_many(executor: Executor) -> None:
    opened = [executor.submit(pow, n, 2) for n in range(30)]
    assert {future.result() for future in futures.as_completed(opened, timeout=30)} == {n * n for n in range(30)}
    assert futures.wait(opened, timeout=30).not_done == set()


def test_cancel_asks_the_fleet(executor: Executor, tmp_path: Path) -> None:
    fifos = [str(tmp_path / f"fifo{n}") for n in range(2)]
    for fifo in fifos:
        os.mkfifo(fifo)
    running_calls = [executor.submit(read, fifo) for fifo in fifos]
    waiting = executor.submit(int)
    wait_until(lambda: all(future.running() for future in running_calls), "both workers busy")
    assert not running_calls[0].cancel()
    assert not waiting.running()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert futures.wait([waiting], timeout=30).done == {waiting}
    for fifo in fifos:
        Path(fifo).write_text("through")
    assert [future.result(30) for future in running_calls] == ["through", "through"]


def test_calls_of_many_threads(executor: Executor) -> None:
    with futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: executor.submit(abs, -n).result(30), range(64))) == list(range(64))


def test_in_asyncio(executor: Executor) -> None:
    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, n) for n in range(8)))

    assert asyncio.run(run()) == [2**n for n in range(8)]


def test_in_dask(executor: Executor) -> None:
    base = 10
    parts = [dask.delayed(lambda n: n + base)(n) for n in range(6)]
    (total,) = dask.compute(dask.delayed(sum)(parts), scheduler=executor)
    assert total == 75


class FleetExecutor(BasePoolExecutor):
    """An executor of APScheduler that uses ours; its base class is abstract."""

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor)


def test_in_apscheduler(executor: Executor, tmp_path: Path) -> None:
    scheduler = BackgroundScheduler(executors={"default": FleetExecutor(executor)})
    scheduler.add_job(Path.touch, args=[tmp_path / "touched"])
    scheduler.start()
    wait_until((tmp_path / "touched").exists, "the job of the scheduler")
    scheduler.shutdown()  # shuts the executor down, too
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_shutdown_cancels_what_has_not_started(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = Executor(1)
    first = executor.submit(read, str(fifo))
    others = [executor.submit(int) for _ in range(50)]
    wait_until(first.running, "the first call")
    executor.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    assert all(other.cancelled() for other in others)
    fifo.write_text("done")
    assert first.result(30) == "done"
    executor.shutdown()


def test_an_initializer_runs_in_each_worker() -> None:
    def initialize(value: str) -> None:
        os.environ["INITIALIZED"] = value

    with Executor(2, initializer=initialize, initargs=("yes",)) as executor:
        assert set(executor.map(os.getenv, ["INITIALIZED"] * 10)) == {"yes"}


def test_an_initializer_that_fails_breaks_the_executor() -> None:
    def fail() -> None:
        raise ValueError("no such database")

    with Executor(1, initializer=fail) as executor:
        for _ in range(2):
            with pytest.raises(BrokenExecutor, match="no such database"):
                executor.submit(int)


def test_a_fleet_that_is_killed_breaks_the_executor(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Executor(1) as executor:
        future = executor.submit(read, str(tmp_path / "fifo"))
        wait_until(future.running, "the call")
        guardian = executor.submit(os.getpid)  # never runs
        os.kill(executor._fleet.guardian_pid, signal.SIGKILL)
        for lost in (future, guardian):
            assert isinstance(lost.exception(30), BrokenExecutor)
        with pytest.raises(BrokenExecutor, match="has ended"):
            executor.submit(int)


def test_the_end_of_the_program_waits_for_its_calls(tmp_path: Path) -> None:
    program = """if True:
        import atexit, sys, time
        from pathlib import Path
        from taskq import Executor

        @atexit.register
        def run_last():
            try:
                executor.submit(int)
            except RuntimeError as error:
                print(error)

        executor = Executor(1)
        def write(path):
            time.sleep(0.3)
            Path(path).write_text("written")
        executor.submit(write, sys.argv[1])
    """
    written = tmp_path / "written"
    done = subprocess.run(
        [sys.executable, "-c", program, str(written)], capture_output=True, text=True, timeout=120, check=True
    )
    assert written.read_text() == "written"
    assert done.stdout == "cannot schedule new futures after shutdown\n"
    assert done.stderr == ""


def test_an_executor_that_is_forgotten_ends_its_fleet() -> None:
    executor = Executor(1)
    assert executor.submit(abs, -4).result(30) == 4
    folder = executor._fleet.app.directory.path
    del executor
    wait_until(lambda: not folder.exists(), "the end of the fleet")


# -- the fleet of an application


@pytest.fixture
def application(tmp_path: Path, home: Path) -> TaskQ:
    """An application that has opted in, and a second one in the same file that has not."""
    (tmp_path / "calls.py").write_text(APP)
    return TaskQ("calls", url_of(home))


def test_jobs_of_the_application(application: TaskQ, tmp_path: Path, home: Path) -> None:
    executor = application.executor(retries=1, backoff=[0.01])
    future = executor.submit(pow, 2, 5)
    assert future.job.state() == JobState.QUEUED  # in the spool: it is durable, and outlives this program
    with running(Fleet(home, f"{tmp_path / 'calls.py'}:q")):
        assert future.result(30) == 32
        failed = executor.submit(lambda: 1 // 0)
        assert isinstance(failed.exception(30), ZeroDivisionError)
        assert failed.job.info().attempts == 2
        assert failed.job.state() == JobState.FAILED
        executor.shutdown()
        assert application.job(future.job.id).state() == JobState.SUCCEEDED


def test_a_message_cannot_enable_pickle(application: TaskQ, tmp_path: Path, home: Path) -> None:
    executor = application.executor()
    with running(Fleet(home, f"{tmp_path / 'calls.py'}:closed")):
        future = executor.submit(Path.touch, tmp_path / "touched")
        with pytest.raises(taskq.ConfigError, match=r"q\.executor\(\)"):
            future.result(30)
    assert not (tmp_path / "touched").exists()
    executor.shutdown()


def test_a_cancel_does_not_leave_a_module_half_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports it again in the same process would find a part of it, and get an error in each later call."""
    begun, never = tmp_path / "begun", tmp_path / "never"
    os.mkfifo(never)
    package = tmp_path / "half_package"
    package.mkdir()
    package.joinpath("part.py").write_text("value = 5\n")
    package.joinpath("__init__.py").write_text(
        "from pathlib import Path\n"
        "from .part import value\n"
        f"if not Path({str(begun)!r}).exists():\n"
        f"    Path({str(begun)!r}).touch()\n"
        f"    Path({str(never)!r}).read_text()\n"
        "again = part.value\n"  # the name is bound by the first import of the part
    )
    monkeypatch.syspath_prepend(tmp_path)

    class Importing:
        def __reduce__(self) -> Any:
            return __import__, ("half_package",)

    with Executor(1) as executor:
        future = executor.submit(repr, Importing())
        wait_until(begun.exists, "the import")
        executor.cancel([future])
        assert futures.wait([future], 30).done
        assert "half_package" in executor.submit(repr, Importing()).result(30)
