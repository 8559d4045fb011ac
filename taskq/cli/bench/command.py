"""`taskq bench`: speed and memory on this machine.

Absolute figures say little on a shared machine. Where something is compared, each round measures both sides, one after
the other, and the ratio in the report is the median over the rounds.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import psutil
import typer

from taskq.cli.bench import app
from taskq.cli.bench.app import burn, noop, pid, q
from taskq.cli.config.options import defaults
from taskq.client.job import Job
from taskq.model.settings import Settings
from taskq.system.directory import Directory

CONSUMERS = 2
BULK_JOBS = 60_000
SINGLE_JOBS = 1_500
ROUND_TRIPS = 1_000
BURN_MS = 2.0
BURN_JOBS = 2_500
SMALL_BACKLOG, LARGE_BACKLOG = 10_000, 300_000
WAITING_JOBS = 100_000


@dataclass
class Figure:
    """A measurement: what, ours, the others', and the ratio wanted."""

    name: str
    ours: str
    other: str = ""
    ratio: float | None = None
    wanted: str = ""


Action = Callable[[], object]


class Rival(Protocol):
    """Something else that runs jobs that do nothing; `python tests/bench` in the repository compares with one."""

    def run(self, count: int) -> None:
        """Enqueues jobs and waits until all are done."""

    def enqueue(self) -> None:
        """Enqueues one job, durable on return."""

    def round_trip(self) -> None:
        """Enqueues one job and waits for its end."""


def timed(action: Action) -> float:
    """The seconds that something takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _enqueue_and_finish(count: int) -> None:
    _finish(noop.enqueue_many((number,) for number in range(count)))


def _finish(jobs: Sequence[Job[Any]]) -> None:
    jobs[-1].wait()  # asking for the status all the time would cost what is measured
    while any(queue.queued or queue.running for queue in q.client.status().queues.values()):
        time.sleep(0.005)


def _percentile_ms(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)] * 1e3


def _in_turns(count: int, rounds: int, ours: Action, others: Action | None) -> tuple[list[float], list[float]]:
    """Measures in turns how often in a second each does something that it does `count` times when it is called."""
    rates: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        rates[0].append(count / timed(ours))
        if others is not None:
            rates[1].append(count / timed(others))
    return rates


def bulk(rival: Rival | None, rounds: int) -> Figure:
    """Jobs that do nothing, enqueued many at a time, to their end."""
    others = None if rival is None else partial(rival.run, BULK_JOBS)
    rates = _in_turns(BULK_JOBS, rounds, lambda: _enqueue_and_finish(BULK_JOBS), others)
    return _rates("no-op jobs, enqueue_many, end to end", *rates, ">= 0.55")


def single(rival: Rival | None, rounds: int) -> Figure:
    """Single durable enqueues from one thread, while the jobs run."""
    others = None if rival is None else partial(_repeat, rival.enqueue)
    rates = _in_turns(SINGLE_JOBS, rounds, partial(_repeat, lambda: noop.enqueue(1)), others)
    return _rates("single enqueue(), durable on return", *rates, ">= 0.60")


def _repeat(enqueue: Action) -> None:
    for _ in range(SINGLE_JOBS):
        enqueue()


def producers(rounds: int, count: int = 8) -> Figure:
    """Several producers, each enqueueing one job at a time, against one."""
    one, many = [], []
    for _ in range(rounds):
        one.append(SINGLE_JOBS / timed(partial(_repeat, lambda: noop.enqueue(1))))
        many.append(count * SINGLE_JOBS / _run_producers(count))
    return _rates(f"{count} producer processes against one", many, one, ">= 3")


def _run_producers(count: int) -> float:
    code = (
        "import sys; from taskq.cli.bench.app import noop; noop.enqueue(1); print(flush=True); sys.stdin.readline();"
        f"[noop.enqueue(1) for _ in range({SINGLE_JOBS})]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    start = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    return time.perf_counter() - start


def round_trip(rival: Rival | None) -> list[Figure]:
    """enqueue() and result() on an idle fleet."""
    ours, others = [], []
    for _ in range(ROUND_TRIPS):
        ours.append(timed(lambda: noop.enqueue(1).result(timeout=10)))
        if rival is not None:
            others.append(timed(rival.round_trip))
    mine, other = _percentile_ms(ours, 50), _percentile_ms(others, 50) if others else None
    return [
        Figure("round trip, median", f"{mine:.2f} ms")
        if other is None
        else Figure("round trip, median", f"{mine:.2f} ms", f"{other:.2f} ms", mine / other, "<= 1.6"),
        Figure(
            "round trip, 99th percentile",
            f"{_percentile_ms(ours, 99):.2f} ms",
            f"{_percentile_ms(others, 99):.2f} ms" if others else "",
            None,
            "<= 3 ms",
        ),
    ]


def _burn_all() -> None:
    _finish(burn.enqueue_many((BURN_MS,) for _ in range(BURN_JOBS)))


def cpu_bound(rounds: int) -> list[Figure]:
    """2 ms jobs: how much of both cores is user code; the same in a process pool."""
    ours_s = statistics.median([timed(_burn_all) for _ in range(rounds)])
    with ProcessPoolExecutor(CONSUMERS) as pool:
        list(pool.map(app.nothing, range(10)))
        burn_in_pool = partial(pool.map, app.burn_here, [BURN_MS] * BURN_JOBS)
        pool_s = statistics.median([timed(lambda: list(burn_in_pool())) for _ in range(rounds)])
        noop_rate = 5_000 / timed(lambda: [f.result() for f in [pool.submit(app.nothing, n) for n in range(5_000)]])
    busy = [BURN_JOBS * BURN_MS / 1000 / CONSUMERS / seconds for seconds in (ours_s, pool_s)]
    return [
        Figure("2 ms jobs: cores in user code", f"{busy[0]:.1%}", f"{busy[1]:.1%} (pool)", None, ">= 95 %"),
        Figure("ProcessPoolExecutor, no-op submit", "", f"{noop_rate:,.0f}/s"),
    ]


def backlog(rounds: int) -> list[Figure]:
    """The rate at which waiting jobs drain, for a small and a large backlog, and the broker's memory."""
    small, large = [], []
    peak = 0
    for _ in range(rounds):
        # a small one takes a tenth of a second only, so it is measured more often
        small.append(statistics.median([_drain(SMALL_BACKLOG)[0] for _ in range(7)]))
        rate, rss = _drain(LARGE_BACKLOG)
        large.append(rate)
        peak = max(peak, rss)
    figure = _rates(f"drain {LARGE_BACKLOG:,} waiting jobs, against {SMALL_BACKLOG:,}", large, small, ">= 0.75")
    return [figure, Figure("broker memory with the large backlog", f"{peak / 1e6:.0f} MB")]


def _drain(count: int) -> tuple[float, int]:
    """Lets jobs wait behind consumers that are stopped (SIGSTOP), then times how they drain."""
    status = q.client.status()
    pids = [consumer.pid for consumer in status.consumers]
    for number in pids:
        os.kill(number, signal.SIGSTOP)
    try:
        jobs = noop.enqueue_many((number,) for number in range(count))
        rss = psutil.Process(status.broker.pid).memory_info().rss
    finally:
        for number in pids:
            os.kill(number, signal.SIGCONT)
    return count / timed(lambda: _finish(jobs)), rss


def longest_turn() -> Figure:
    """For how long a broker with many waiting jobs answers nobody, while they come in, are cancelled, purged, listed
    and worked off. It has a fleet of its own, since a broker keeps that figure from its start on."""
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as path:
        q.use_directory(Directory(Path(path)))
        with q.fleet(settings=Settings(consumers=CONSUMERS, stderr_level="critical")):
            q.pause("default")
            jobs = noop.enqueue_many((number,) for number in range(WAITING_JOBS))
            for job in jobs[:SINGLE_JOBS]:
                job.cancel()
            q.purge("cancelled")
            q.jobs(task="none")
            q.resume("default")
            _finish(jobs[SINGLE_JOBS:])
            longest_s = q.client.status().broker.longest_turn_s or 0.0
    name = f"longest turn of the broker, {WAITING_JOBS:,} jobs waiting"
    return Figure(name, f"{longest_s * 1e3:.1f} ms", "", None, "<= 10 ms")


def start_up(rounds: int) -> Figure:
    """From the `taskq worker` command to the first job done, for a small application."""
    seconds = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="taskq-bench-") as path:
            q.use_directory(Directory(Path(path)))
            job = pid.enqueue()  # waits in the spool
            start = time.perf_counter()
            command = [sys.executable, "-m", "taskq", "worker", "taskq.cli.bench.app:q", *defaults()]
            environment = {**os.environ, "TASKQ_URL": path}
            options = ["--consumers", str(CONSUMERS), "--log-level", "error"]
            process = subprocess.Popen([*command, *options], env=environment)
            job.result(timeout=30)
            seconds.append(time.perf_counter() - start)
            process.terminate()
            process.wait()
    return Figure("first job done after `taskq worker`", f"{statistics.median(seconds):.2f} s", "", None, "<= 0.5 s")


def replacement(rounds: int) -> Figure:
    """From the kill of a consumer to a job done by its successor."""
    seconds = []
    for _ in range(rounds):
        before = {consumer.pid for consumer in q.client.status().consumers}
        victim = before.pop()
        blocker = burn.enqueue(1_500.0) if before else None  # keeps the other one busy
        threading.Event().wait(0.05)
        running = {c.pid for c in q.client.status().consumers if c.state == "running"}
        victim = next(p for p in {victim, *before} if p not in running)
        start = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        pid.enqueue().result(timeout=30)
        seconds.append(time.perf_counter() - start)
        if blocker is not None:
            blocker.wait()
    return Figure("a killed consumer replaced and working", f"{statistics.median(seconds):.2f} s", "", None, "<= 0.3 s")


def _rates(name: str, ours: list[float], others: list[float], wanted: str) -> Figure:
    if not others:
        return Figure(name, f"{statistics.median(ours):,.0f}/s")
    ratio = statistics.median(mine / other for mine, other in zip(ours, others, strict=True))
    return Figure(name, f"{statistics.median(ours):,.0f}/s", f"{statistics.median(others):,.0f}/s", ratio, wanted)


def bench(
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Measure each ratio N times, and show the median.")
    ] = 3,
) -> None:
    """Measure speed and memory here, in part beside a process pool.

    It takes a minute or two.

    $ taskq bench --rounds 5
    """
    report(rounds)


def report(rounds: int, rival: Rival | None = None) -> None:
    """Measures everything and prints the figures.

    Args:
        rounds: how often each ratio is measured.
        rival: measured in turns with taskq.
    """
    print(f"{'':<54}{'taskq':>14}{'compared':>18}{'ratio':>8}  wanted")
    _print(start_up(rounds))
    _print(longest_turn())
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as path:
        os.environ["TASKQ_URL"] = path
        q.use_directory(Directory(Path(path)))
        with q.fleet(settings=Settings(consumers=CONSUMERS, stderr_level="critical")):
            noop.enqueue(1).result(timeout=30)
            _print(bulk(rival, rounds))
            _print(single(rival, rounds))
            for figure in round_trip(rival):
                _print(figure)
            _print(producers(rounds))
            for figure in [*cpu_bound(rounds), *backlog(max(1, rounds // 2)), replacement(rounds)]:
                _print(figure)


def _print(figure: Figure) -> None:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    print(f"{figure.name:<54}{figure.ours:>14}{figure.other:>18}{ratio:>8}  {figure.wanted}", flush=True)
