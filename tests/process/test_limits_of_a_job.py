"""Memory and CPU time of one attempt: measured, limited, and told exactly."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from apps import limited
from fleet import APPS, Fleet, Gate, running, starts, use
from hypothesis import given
from hypothesis import strategies as st

from taskq import ConfigError, CpuTimeout, JobFailed, JobTimeout, TaskQ
from taskq.broker.core.core import Core
from taskq.broker.core.watchdog import MEASURE_EVERY_S
from taskq.model.attempt import Claim, Usage
from taskq.model.effects import ProcessExit
from taskq.model.job import JobError, JobRow
from taskq.model.spec import Spec
from taskq.model.units import bytes_of_text, text_of_bytes
from taskq.system.platform import IS_LINUX
from taskq.system.usage import CpuMeter, _linux_usage, _portable_usage, cpu_s_of, own_cpu_s, usage_of

APP = f"{APPS / 'limited.py'}:q"
_PATHS = {"PYTHONPATH": f"{APPS.parent}:{APPS.parents[2]}"}
only_on_linux = pytest.mark.skipif(not IS_LINUX, reason="RLIMIT_DATA is Linux's")


@pytest.fixture(scope="module")
def fleet_of_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for all tests of this file."""
    home = tmp_path_factory.mktemp("limits") / "queue"
    with running(Fleet(home, APP, environment=_PATHS, consumers=1)) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_file: Fleet) -> Fleet:
    use(limited.q, fleet_of_file.home)
    return fleet_of_file


# -- memory


@only_on_linux
@pytest.mark.parametrize("how", ["python", "malloc"])
def test_a_job_that_wants_too_much_gets_a_memory_error(fleet: Fleet, tmp_path: Path, how: str) -> None:
    """Early: before it has the memory; its process lives on, and the retry runs from the other queue."""
    before = fleet.consumer_pids()
    job = limited.eats.enqueue(str(tmp_path / "log"), how, 1_000)
    assert job.result(timeout=20) == "enough"
    event = fleet.wait_for("job.retrying", job_id=job.id)
    assert event["error"] == "MemoryLimit: the job may use 300 MB of memory, and asked for more"
    assert fleet.consumer_pids() == before
    assert [job.info().queue, job.info().crashes] == ["big", 0]


@only_on_linux
def test_a_memory_error_can_be_dealt_with(fleet: Fleet, tmp_path: Path) -> None:
    assert limited.eats.enqueue(str(tmp_path / "log"), "caught", 1_000).result(timeout=10) == "caught"


def test_a_job_within_its_limit_is_left_alone(fleet: Fleet, tmp_path: Path) -> None:
    assert limited.eats.enqueue(str(tmp_path / "log"), "python", 100).result(timeout=10) == "eaten"


@pytest.mark.parametrize("how", ["shared", "children"])
def test_what_the_kernel_does_not_count_is_seen_and_killed(fleet: Fleet, tmp_path: Path, how: str) -> None:
    """With the figures. It is handled like a timeout, so it is not a crash."""
    before = fleet.consumer_pids()
    job = limited.eats.enqueue(str(tmp_path / "log"), how, 450)
    assert job.result(timeout=20) == "enough"
    event = fleet.wait_for("job.retrying", job_id=job.id)
    assert event["error"].startswith("MemoryLimit: the job may use 300 MB of memory, it used ")
    assert int(event["error"].split("it used ")[1].split()[0]) >= 300  # in whole megabytes
    assert fleet.consumer_pids() != before
    assert [job.info().queue, job.info().crashes] == ["big", 0]


def test_no_limit_is_left_over(fleet: Fleet, tmp_path: Path) -> None:
    limited.eats.enqueue(str(tmp_path / "log"), "python", 10).result(timeout=10)
    assert limited.free_memory.enqueue(600).result(timeout=10) == 600_000_000


def test_a_limit_by_options_and_the_last_attempt(fleet: Fleet, tmp_path: Path) -> None:
    small = limited.eats.options(memory_limit="200MB", retries=0)
    with pytest.raises(JobFailed, match="MemoryLimit: the job may use 200 MB of memory"):
        small.enqueue(str(tmp_path / "log"), "python" if IS_LINUX else "shared", 250).result(timeout=10)


# -- CPU time


@pytest.mark.parametrize("how", ["python", "children"])
def test_a_job_that_computes_too_long(fleet: Fleet, tmp_path: Path, how: str) -> None:
    job = limited.burns.enqueue(str(tmp_path / "log"), how)
    assert job.result(timeout=30) == "enough"
    told = fleet.wait_for("job.timed_out", job_id=job.id)
    assert told["cpu_timeout_s"] == 0.3
    assert 0.3 <= told["cpu_s"] < 2.0
    event = fleet.wait_for("job.retrying", job_id=job.id)
    assert event["error"].startswith("CpuTimeout: the job may use 0.3 s of CPU time; it used ")
    assert job.info().crashes == 0


def test_a_job_may_clean_up(fleet: Fleet, tmp_path: Path) -> None:
    told = limited.burns.enqueue(str(tmp_path / "log"), "caught").result(timeout=30)
    assert told.startswith("the job may use 0.3 s of CPU time")


def test_a_job_that_takes_no_notice_is_killed(fleet: Fleet, tmp_path: Path) -> None:
    job = limited.burns.enqueue(str(tmp_path / "log"), "in-c")
    assert job.result(timeout=30) == "enough"
    assert fleet.wait_for("job.retrying", job_id=job.id)["error"].endswith("and was killed")
    assert job.info().crashes == 0


def test_waiting_is_no_computing(fleet: Fleet, tmp_path: Path, gate: Gate) -> None:
    """Three times as long as its limit."""
    job = limited.burns.enqueue(str(tmp_path / "log"), "waits", gate.path)
    [begun] = starts(tmp_path / "log", 1)
    assert not job.wait(timeout=max(0.0, begun.at + 0.9 - time.monotonic()))
    gate.open()
    assert job.result(timeout=10) == "waited"


@pytest.mark.parametrize(("how", "error"), [("sleeps", "TimedOut"), ("computes", "CpuTimeout|TimedOut")])
def test_both_times(fleet: Fleet, how: str, error: str) -> None:
    with pytest.raises(JobFailed, match=error):
        limited.both.enqueue(how).result(timeout=10)


# -- what is measured


def test_usage_of_this_process() -> None:
    mine = usage_of(os.getpid())
    assert mine is not None
    held = bytearray(os.urandom(1)) * 60_000_000
    more = usage_of(os.getpid())
    assert more is not None
    assert 50_000_000 < more.rss_bytes - mine.rss_bytes < 80_000_000
    assert len(held) == 60_000_000
    assert more.cpu_s >= own_cpu_s() - 0.1, "and what the fleet of this file uses, which we have started"


@pytest.mark.skipif(not IS_LINUX, reason="compares with what Linux says")
def test_the_portable_way_measures_the_same() -> None:
    linux, portable = _linux_usage(os.getpid()), _portable_usage(os.getpid())
    assert linux is not None
    assert portable is not None
    assert abs(linux.cpu_s - portable.cpu_s) < 0.3
    assert abs(linux.rss_bytes - portable.rss_bytes) < 10_000_000


def test_how_much_of_a_core_a_process_uses() -> None:
    """By the older of the last two looks at it."""
    meter = CpuMeter(os.getpid())
    assert meter.read(100.0)[1] is None, "there was no look yet"
    for now in (100.0, 101.0, 102.0):
        meter.sample(now)
    before_s = cpu_s_of(os.getpid())
    assert before_s is not None
    while (used_s := cpu_s_of(os.getpid()) or 0.0) < before_s + 0.1:
        pass
    _, percent = meter.read(103.0)
    assert percent is not None
    assert 4 <= percent <= 100 * used_s / 2 + 1, "0.1 s or more in the 2 s since 101"


def test_usage_of_nobody() -> None:
    assert cpu_s_of(2**22 + 1) is None
    nobody = CpuMeter(2**22 + 1)
    nobody.sample(1.0)
    assert nobody.read(2.0) == (None, None)
    assert usage_of(2**22 + 1) is None
    assert _portable_usage(2**22 + 1) is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("512MB", 512_000_000), ("2 GiB", 2 << 30), ("1.5gb", 1_500_000_000), ("4096kib", 4 << 20), (7 << 20, 7 << 20)],
)
def test_sizes_in_words(text: Any, count: int) -> None:
    assert bytes_of_text(text, "memory_limit") == count


@given(count=st.integers(1 << 20, 1 << 50))
def test_sizes_are_measured_near_enough(count: int) -> None:
    told = bytes_of_text(text_of_bytes(count).replace(",", ""), "memory_limit")
    assert told is not None
    assert abs(told - count) <= 500_000


@pytest.mark.parametrize(
    "options",
    [
        {"memory_limit": "much"},
        {"memory_limit": "5 parsecs"},
        {"memory_limit": 1_000},
        {"memory_limit": -1},
        {"memory_limit": 3.5},
        {"memory_limit": True},
        {"cpu_timeout": 0},
        {"cpu_timeout": "1"},
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    q = TaskQ("refuses")
    with pytest.raises(ConfigError, match=next(iter(options))):
        q.task(name="any", **options)(lambda: None)
    task = q.task(name="any")(lambda: None)
    with pytest.raises(ConfigError, match=next(iter(options))):
        task.options(**options)


# -- decisions


def _core(**limits: Any) -> tuple[Core, JobRow]:
    core = Core()
    core.joined(1, 0.0)
    row = JobRow(1, b"x" * 16, Spec("t", **limits), b"")
    core.submitted([row])
    core.dispatch(0.0, 0.0)
    return core, row


def test_nobody_is_measured_without_need() -> None:
    core, _ = _core(timeout_s=5.0)
    assert core.measurements(1e9) == []
    assert core.next_time_check(1.0) == 5.0
    core, _ = _core(cpu_timeout_s=5.0)
    assert core.next_time_check(0.0) == MEASURE_EVERY_S
    assert core.measurements(MEASURE_EVERY_S) == [1]
    core.died(1, [], ProcessExit(), 0.0)
    assert core.next_time_check(MEASURE_EVERY_S) is None


@given(
    before_s=st.floats(0, 1e3),
    used_s=st.lists(st.floats(0, 0.4), min_size=1, max_size=20),
)
def test_cpu_time_is_that_of_the_attempt(before_s: float, used_s: list[float]) -> None:
    """Counted from the first look at the job: never too much; signalled once."""
    core, _ = _core(cpu_timeout_s=1.0)
    claim, total, answers = [Claim(1, 0.0)], before_s, []
    answers.append(core.measured(1, claim, Usage(total, 0), 0.1))
    for each in used_s:
        total += each
        answers.append(core.measured(1, claim, Usage(total, 0), 0.1))
    is_over = total - before_s >= 1.0
    assert answers.count("signal") == is_over
    assert not any(isinstance(answer, JobError) for answer in answers), "the time to clean up is not over"
    if is_over:
        killed = core.measured(1, claim, Usage(total, 0), 60.0)
        assert isinstance(killed, JobError)
        assert killed.type == "CpuTimeout"


def test_the_next_job_is_not_charged_with_the_time_of_the_one_before() -> None:
    core, _ = _core(cpu_timeout_s=1.0)
    core.submitted([JobRow(2, b"y" * 16, Spec("t", cpu_timeout_s=1.0), b"")])
    core.dispatch(0.0, 0.0)
    assert core.measured(1, [Claim(1, 0.0)], Usage(0.0, 0), 0.1) is None
    assert core.measured(1, [Claim(2, 0.0)], Usage(5.0, 0), 0.1) is None
    assert core.measured(1, [Claim(2, 0.0)], Usage(6.1, 0), 0.1) == "signal"


def test_too_much_memory_is_killed_at_once_and_retried_from_the_other_queue() -> None:
    core, row = _core(memory_limit_bytes=100_000_000, crash_queue="big", retries=1)
    claim = [Claim(1, 0.0)]
    assert core.measured(1, claim, Usage(0.0, 100_000_000), 0.1) is None
    assert core.measured(1, [], Usage(0.0, 1 << 40), 0.1) is None, "it has ended"
    error = core.measured(1, claim, Usage(0.0, 123_000_000), 0.1)
    assert error == JobError("MemoryLimit", "the job may use 100 MB of memory, it used 123 MB and was killed")
    core.died(1, claim, ProcessExit(signal="SIGKILL", timed_out=1, over_limit=error), 1e9)
    effects = core.take_effects()
    [again] = effects.rescheduled
    assert (again.row.spec.queue, row.failures, row.crashes) == ("big", 1, 0)
    assert (effects.retried, effects.crashed) == (1, 0)


def test_names() -> None:
    """`except JobTimeout` catches both, `except Exception` neither."""
    assert issubclass(CpuTimeout, JobTimeout)
    assert not issubclass(CpuTimeout, Exception)
