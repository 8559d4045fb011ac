"""Producers that enqueue one job at a time: threads of this process, or processes of their own.

python -m taskq.cli.bench.producers taskq|service PATH: enqueues as many jobs as each line that it reads says.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from taskq.cli.bench.app import BenchApp
from taskq.cli.bench.children import uninterrupted
from taskq.cli.bench.limits.service import ServiceClient
from taskq.model.errors import TaskQError
from taskq.system.platform import die_with_parent

Action = Callable[[], object]


def timed(action: Action) -> float:
    """The seconds that something takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def repeat(action: Action, count: int) -> list[float]:
    """Does something many times. Returns the seconds that each took."""
    return [timed(action) for _ in range(count)]


def rate(action: Action, count: int) -> float:
    """How many times a second something can be done, one after the other."""
    return count / sum(repeat(action, count))


def percentiles_ms(key: str, seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile of some times, as `KEY_p50` and `KEY_p99`."""
    ordered = sorted(seconds)
    return {f"{key}_p{share}": ordered[(len(ordered) - 1) * share // 100] * 1e3 for share in (50, 99)}


def together(actions: Sequence[Action]) -> float:
    """Does some things at once, each in a thread of its own. Returns how many seconds they took.

    Raises:
        TaskQError: one of them failed.
    """
    errors: list[Exception] = []
    gate = threading.Barrier(len(actions) + 1)

    def run(action: Action) -> None:
        gate.wait()
        try:
            action()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(action,), daemon=True) for action in actions]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed_s = time.perf_counter() - start
    if errors:
        raise TaskQError(f"what was measured failed: {errors[0]}") from errors[0]
    return elapsed_s


class Producers:
    """Processes that enqueue when they are told to.

    Args:
        count: how many.
        kind: "taskq", or "service" for a limit.
        path: the directory of the fleet, or the socket of the limit.
    """

    def __init__(self, count: int, kind: str, path: Path) -> None:
        command = [sys.executable, "-m", __name__, kind, str(path)]
        self._processes: list[subprocess.Popen[str]] = []
        try:
            for _ in range(count):
                with uninterrupted():
                    process = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
                    )
                    self._processes.append(process)
            self._await_lines()
        except BaseException:
            self.close()
            raise

    def enqueue(self, each: int) -> float:
        """Has each of them enqueue so many jobs. Returns how many seconds that took."""
        start = time.perf_counter()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{each}\n")
            process.stdin.flush()
        self._await_lines()
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def _await_lines(self) -> None:
        for process in self._processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise TaskQError("a process of the benchmark that enqueues jobs has failed")


def _serve(kind: str, path: Path) -> None:
    if kind == "taskq":
        app = BenchApp(path)

        def enqueue() -> object:
            return app.noop.enqueue(1)
    else:
        enqueue = ServiceClient(path).enqueue
    enqueue()  # connects
    print("up", flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            enqueue()
        print("done", flush=True)


if __name__ == "__main__":
    die_with_parent()
    _serve(sys.argv[1], Path(sys.argv[2]))
