"""Measures one peer once, and prints what it found as JSON.

python measure.py MODULE [SECONDS]: a case takes about so many seconds. PEERS_DIRECTORY, PEERS_BOARD and the variables of a server are set by `__main__.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import board
import psutil
from peer import Peer

#: How long one case takes if nothing else is said, and bounds of its jobs.
CASE_S = 1.5
FEWEST, MOST = 100, 200_000
WARM_UP = 50
ROUND_TRIPS, ROUND_TRIPS_S = 500, 3.0
SETTLE_S = 1.0


def seconds_of(action: Callable[[], object]) -> float:
    """How long something takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Measurement:
    """A peer with its workers.

    Args:
        case_s: how long a case takes, roughly.
    """

    def __init__(self, peer: Peer, case_s: float) -> None:
        self._peer = peer
        self._case_s = case_s
        self._workers: list[subprocess.Popen[bytes]] = []

    def start_workers(self) -> None:
        """Runs its commands."""
        quiet = subprocess.DEVNULL
        self._workers = [subprocess.Popen(command, stdout=quiet, stderr=quiet) for command in self._peer.workers()]

    def stop_workers(self) -> None:
        """Ends them with all their children."""
        pids = self._family([worker.pid for worker in self._workers])
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(pids, timeout=5)
        for process in alive:
            process.kill()
        for worker in self._workers:
            worker.wait()
        self._workers = []

    def run(self) -> dict[str, Any]:
        """All figures of this peer."""
        peer, found = self._peer, dict[str, Any]()
        peer.open()
        found["start_s"] = self._start()
        time.sleep(SETTLE_S)
        found["memory_mb"] = sum(each.memory_full_info().pss for each in self._processes()) / 1e6
        self._end_to_end(peer.enqueue, range(WARM_UP))
        found |= self._round_trips()
        count = self._count_for(peer.enqueue)
        before = self._cpu_s()
        found["single"] = count / self._end_to_end(peer.enqueue, range(count))
        found["cpu_us"] = (self._cpu_s() - before) / count * 1e6
        if peer.has_bulk:
            count = self._count_for(peer.enqueue_many)
            found["bulk"] = count / self._end_to_end(peer.enqueue_many, range(count))
        if not peer.is_in_process:
            if not peer.hold():
                self.stop_workers()
            found["enqueue"] = self._enqueue_only()
        return found

    def _start(self) -> float:
        """From the command (or the pool's birth) to the first job that is done."""
        board.clear()
        if self._peer.is_in_process:
            self._peer.close()

            def first() -> None:
                self._peer.open()
                self._peer.enqueue([0])
                board.await_all(1)

            return seconds_of(first)
        self._peer.enqueue([0])

        def from_command() -> None:
            self.start_workers()
            board.await_all(1)

        return seconds_of(from_command)

    def _end_to_end(self, enqueue: Callable[[Sequence[int]], None], numbers: range) -> float:
        board.clear()

        def run() -> None:
            enqueue(numbers)
            board.await_all(len(numbers))

        return seconds_of(run)

    def _count_for(self, enqueue: Callable[[Sequence[int]], None]) -> int:
        """How many jobs take about as long as a case should."""
        count = FEWEST
        while (seconds := self._end_to_end(enqueue, range(count))) < self._case_s / 5 and count < MOST:
            count *= 4
        return int(min(MOST, max(FEWEST, count * self._case_s / seconds)))

    def _enqueue_only(self) -> float:
        count = FEWEST
        while (seconds := seconds_of(partial(self._peer.enqueue, range(count)))) < self._case_s and count < MOST:
            count *= 2
        return count / seconds

    def _round_trips(self) -> dict[str, float]:
        times: list[float] = []
        end = time.monotonic() + ROUND_TRIPS_S
        while len(times) < ROUND_TRIPS and time.monotonic() < end:
            times.append(seconds_of(self._peer.round_trip) * 1e3)
        times.sort()
        return {f"round_trip_p{share}": times[(len(times) - 1) * share // 100] for share in (50, 99)}

    def _processes(self) -> list[psutil.Process]:
        """The workers and the server; of a pool, its processes."""
        roots = [worker.pid for worker in self._workers]
        if "PEERS_SERVER_PID" in os.environ:
            roots.append(int(os.environ["PEERS_SERVER_PID"]))
        if self._peer.is_in_process:
            return psutil.Process().children(recursive=True)
        return self._family(roots)

    def _cpu_s(self) -> float:
        processes = [psutil.Process(), *self._processes()]
        return sum(times.user + times.system for times in (each.cpu_times() for each in processes))

    @staticmethod
    def _family(pids: list[int]) -> list[psutil.Process]:
        parents = [psutil.Process(pid) for pid in pids]
        return [each for parent in parents for each in (parent, *parent.children(recursive=True))]


def main() -> None:
    """Measures, and ends all that was started."""
    board.create()
    peer: Peer = importlib.import_module(sys.argv[1]).Peer()
    measurement = Measurement(peer, float(sys.argv[2]) if len(sys.argv) > 2 else CASE_S)
    try:
        found = measurement.run()
        found["versions"] = {name: version(name) for name in peer.packages}
    finally:
        measurement.stop_workers()
        peer.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
