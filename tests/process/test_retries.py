"""What follows when an attempt did not succeed: rules, wishes of the job, and what it keeps for the next attempt."""

from __future__ import annotations

import json
import multiprocessing
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from apps import retrying
from apps.retrying import Lasting, Passing
from fleet import APPS, Fleet, Gate, running, starts, use, wait_until
from hypothesis import given
from hypothesis import strategies as st
from terminal import taskq

from taskq import (
    Cancel,
    ConfigError,
    JobCancelled,
    JobFailed,
    JobState,
    JobTimeout,
    Progress,
    Retry,
    Snooze,
    TaskQ,
    TaskQError,
    current_job,
)
from taskq.client import context
from taskq.client.options.call_options import CallOptions
from taskq.consumer.main_thread import SignalledJob
from taskq.consumer.outbox import Outbox
from taskq.model.attempt import failure_in, pack_failure, unpack
from taskq.model.errors import ProtocolError
from taskq.model.job import JobError, JobRow, backoff_s, retry_delay_s
from taskq.model.spec import Spec, spec_after_crash
from taskq.protocol.frames import Decoder
from taskq.protocol.link.unsent import Unsent

APP = f"{APPS / 'retrying.py'}:q"
Start = Callable[..., Fleet]
DELAYS = st.floats(0, 1e6) | st.integers(0, 10**6)


@pytest.fixture(scope="module")
def fleet_of_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet for the tests that leave it as they found it."""
    with running(Fleet(tmp_path_factory.mktemp("retries") / "queue", APP, environment=_PATHS)) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_file: Fleet) -> Fleet:
    use(retrying.q, fleet_of_file.home)
    return fleet_of_file


_PATHS = {"PYTHONPATH": f"{APPS.parent}:{APPS.parents[2]}"}


# -- rules, purely


@given(
    attempts=st.integers(1, 50), steps_s=st.none() | st.lists(DELAYS, min_size=1, max_size=5), wish_s=st.none() | DELAYS
)
def test_the_delay_of_a_retry(attempts: int, steps_s: list[float] | None, wish_s: float | None) -> None:
    """The wish goes first, then the list, whose last one repeats, then the default."""
    row = JobRow(1, b"x" * 16, Spec("t", backoff_s=None if steps_s is None else tuple(steps_s)), b"", attempts)
    delay_s = retry_delay_s(row, wish_s)
    if wish_s is not None:
        assert delay_s == wish_s
    elif steps_s is not None:
        assert delay_s == [*steps_s, *[steps_s[-1]] * attempts][attempts - 1]
    else:
        assert delay_s == backoff_s(row.id, attempts)


@given(ends=st.lists(st.sampled_from(["failed", "crashed", "snoozed"]), min_size=1))
def test_only_failures_count_as_failures(ends: list[str]) -> None:
    row = JobRow(1, b"x" * 16, Spec("t"), b"")
    for end in ends:
        row.attempts += 1
        row.crashes += end == "crashed"
        if end == "snoozed":
            row.snoozes += 1
    assert row.failures == ends.count("failed")
    assert row.snoozes == ends.count("snoozed")
    assert row.attempts == len(ends)


@given(delay_s=st.none() | DELAYS)
def test_the_wish_travels_in_the_outcome(delay_s: float | None) -> None:
    packed = pack_failure(1.0, 2.0, JobError("E", "text"), delay_s)
    assert failure_in(packed) == (JobError("E", "text"), delay_s)
    assert unpack(packed).delay_s == delay_s


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "1", True, [1]])
def test_a_wish_that_is_no_time_is_refused(delay: Any) -> None:
    with pytest.raises(ProtocolError):
        unpack(pack_failure(1.0, 2.0, JobError("E", "text"), delay))
    with pytest.raises(ConfigError, match="seconds"):
        Retry(delay)
    with pytest.raises(ConfigError, match="seconds"):
        Snooze(delay)


def test_a_snooze_takes_time() -> None:
    assert Retry(0).delay == 0
    with pytest.raises(ConfigError, match="greater than 0"):
        Snooze(0)


def test_rules_choose_by_type() -> None:
    rules = TaskQ("choosy").task(name="any", retry_on=(Passing, OSError), give_up_on=Lasting)(int).call_options
    kinds = [Passing(), ConnectionResetError(), Lasting(), ValueError(), SystemExit()]
    assert [rules.gives_up(error) for error in kinds] == [False, False, True, True, True]
    for wish in (JobTimeout("late"), Retry(), Snooze(1), Cancel()):
        assert not rules.gives_up(wish), "it is no error of the code"
    assert not CallOptions().gives_up(ValueError())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backoff": 5}, "a list of seconds"),
        ({"backoff": "1,2"}, "a list of seconds"),
        ({"backoff": []}, "a list of 1 to 100"),
        ({"backoff": [-1]}, "a list of 1 to 100"),
        ({"backoff": [True]}, "a list of 1 to 100"),
        ({"backoff": lambda _: 1.0}, "must take"),
        ({"retry_on": "ValueError"}, "an exception class"),
        ({"retry_on": [ValueError]}, "an exception class"),
        ({"give_up_on": (ValueError, int)}, "an exception class"),
        ({"give_up_on": JobTimeout}, "timeouts"),
        ({"retry_on": Snooze}, "Snooze"),
        ({"retry_on": Lasting, "give_up_on": Passing}, "has no effect"),
        ({"backoff": [1], "retries": 0}, "has no effect with retries=0"),
        ({"retry_on": OSError, "retries": 0}, "has no effect with retries=0"),
        ({"give_up_on": OSError, "retries": 0}, "has no effect with retries=0"),
        ({"crash_queue": "default"}, "is the task's own queue"),
        ({"crash_queue": "big", "max_crashes": 1}, "has no effect with max_crashes=1"),
        ({"crash_queue": "no such name!"}, "queue name"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    """At the declaration, and in words that say what would."""
    q = TaskQ("refuses")
    with pytest.raises(ConfigError, match=says):
        q.task(name="any", **options)(lambda: None)


def test_an_async_backoff_is_refused() -> None:
    async def later(attempt: int, error: BaseException) -> float:
        return 1.0

    with pytest.raises(ConfigError, match="ordinary function"):
        TaskQ("refuses").task(name="any", backoff=later)(lambda: None)


def test_options_of_jobs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot travel"):
        retrying.fails_in_steps.options(backoff=retrying.by_attempt)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is a function"):
        retrying.fails_by_function.options(backoff=[1])
    with pytest.raises(ConfigError, match="retries=0"):
        retrying.fails_in_steps.options(backoff=[1], retries=0)
    assert retrying.fails_in_steps.options(backoff=None)._spec.backoff_s is None
    assert retrying.fails_in_steps.options(backoff=[5, 6])._spec.backoff_s == (5, 6)


def test_a_crash_moves_the_job_once() -> None:
    spec = Spec("t", "small", crash_queue="big", retries=7)
    moved = spec_after_crash(spec)
    assert (moved.queue, moved.crash_queue, moved.retries) == ("big", None, 7)
    assert spec_after_crash(moved) is moved


# -- rules, on a fleet


def _gaps(path: Path, count: int) -> list[float]:
    return [after.at - before.at for before, after in pairwise(starts(path, count))]


def test_a_list_of_delays(fleet: Fleet, tmp_path: Path) -> None:
    job = retrying.fails_in_steps.enqueue(str(tmp_path / "log"))
    with pytest.raises(JobFailed, match="Passing: again"):
        job.result(timeout=10)
    gaps = _gaps(tmp_path / "log", 4)
    assert [gap >= least for gap, least in zip(gaps, (0.01, 0.02, 0.02), strict=True)] == [True] * 3
    told = [event["delay_s"] for event in fleet.events("job.retrying", job_id=job.id)]
    assert told == [0.01, 0.02, 0.02]


def test_options_and_names_take_a_list_too(fleet: Fleet, tmp_path: Path) -> None:
    job = retrying.fails_in_steps.options(backoff=[0.03], retries=1).enqueue(str(tmp_path / "log"))
    with pytest.raises(JobFailed):
        job.result(timeout=10)
    assert [event["delay_s"] for event in fleet.events("job.retrying", job_id=job.id)] == [0.03]


@pytest.mark.parametrize(("wish", "delays"), [("by number", [0.01, 0.02])])
def test_a_function_decides(fleet: Fleet, tmp_path: Path, wish: str, delays: list[float]) -> None:
    job = retrying.fails_by_function.enqueue(str(tmp_path / "log"), wish)
    assert job.result(timeout=10) == 3
    assert [event["delay_s"] for event in fleet.events("job.retrying", job_id=job.id)] == delays


@pytest.mark.parametrize("wish", ["raise", "text"])
def test_a_function_that_fails_is_reported_and_the_default_serves(fleet: Fleet, tmp_path: Path, wish: str) -> None:
    job = retrying.fails_by_function.enqueue(str(tmp_path / "log"), wish)
    event = fleet.wait_for("job.retrying", job_id=job.id)
    assert 0.5 <= event["delay_s"] <= 1.0
    assert event["error"] == f"Passing: {wish}"
    told = fleet.wait_for("job.log", job_id=job.id, level="error")
    assert "backoff function failed" in told["message"]
    job.cancel()


@pytest.mark.parametrize(("kind", "runs"), [("passing", 3), ("connection", 3), ("lasting", 1), ("other", 1)])
def test_errors_are_chosen_by_type(fleet: Fleet, tmp_path: Path, kind: str, runs: int) -> None:
    job = retrying.chooses.enqueue(str(tmp_path / "log"), kind)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    assert caught.value.error_message == kind
    assert "in chooses" in caught.value.error_traceback, "the error is the job's own"
    assert len(starts(tmp_path / "log")) == runs == job.info().attempts


# -- wishes


@pytest.mark.parametrize("task", [retrying.wants, retrying.wants_async])
def test_retry(fleet: Fleet, tmp_path: Path, task: Any) -> None:
    """A failure, with a delay of its own; `except Exception` does not see it."""
    before = fleet.totals()
    job = task.enqueue(str(tmp_path / "log"), "retry")
    assert job.result(timeout=10) == "retry"
    event = fleet.wait_for("job.retrying", job_id=job.id)
    assert (event["delay_s"], event["error"]) == (0.01, "Retry: the server is busy")
    fleet.wait_for_totals(retried=before["retried"] + 1)


def test_retry_is_bounded_by_retries(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="Retry: the server is busy"):
        retrying.wants.options(retries=0).enqueue(str(tmp_path / "log"), "retry").result(timeout=10)


@pytest.mark.parametrize("task", [retrying.wants, retrying.wants_async])
def test_snooze(fleet: Fleet, tmp_path: Path, task: Any) -> None:
    """Runs again later, with no failure counted anywhere."""
    before = fleet.totals()
    job = task.enqueue(str(tmp_path / "log"), "snooze")
    assert job.result(timeout=10) == "snooze"
    event = fleet.wait_for("job.snoozed", job_id=job.id)
    assert (event["level"], event["delay_s"], event["error"]) == ("info", 0.01, "Snoozed: too early")
    fleet.wait_for_totals(**{name: before[name] for name in ("retried", "failed")}, succeeded=before["succeeded"] + 1)


def test_a_snoozing_job_is_scheduled(fleet: Fleet, tmp_path: Path) -> None:
    job = retrying.wants.enqueue(str(tmp_path / "log"), "snooze", 300.0)
    fleet.wait_for("job.snoozed", job_id=job.id)
    info = wait_until(lambda: (found := job.info()).state is JobState.SCHEDULED and found, "it is scheduled")
    assert info.error is not None
    assert info.error.type == "Snoozed"
    assert info.due_at is not None
    assert info.due_at - info.enqueued_at > 290
    assert job.cancel()


def test_snoozes_spend_no_attempt(fleet: Fleet, tmp_path: Path) -> None:
    """Numbers of attempts go on; the budget of retries is whole afterwards."""
    job = retrying.snoozes_then_fails.enqueue(str(tmp_path / "log"), 5)
    with pytest.raises(JobFailed, match="at last"):
        job.result(timeout=10)
    assert [start.attempt for start in starts(tmp_path / "log")] == [1, 2, 3, 4, 5, 6, 7]


def test_snoozes_are_counted_across_a_restart(start: Start, home: Path, tmp_path: Path) -> None:
    """The store knows them: after a kill of the whole fleet no retry is lost, and none is won."""
    use(retrying.q, home)
    fleet = start(APP, environment=_PATHS, consumers=1)
    job = retrying.snoozes_then_fails.options(backoff=[0.2]).enqueue(str(tmp_path / "log"), 3)
    fleet.wait_for("job.retrying", job_id=job.id)
    fleet.kill_all()
    fleet.start()
    with pytest.raises(JobFailed, match="at last"):
        job.result(timeout=10)
    numbers = [begun.attempt for begun in starts(tmp_path / "log")]
    assert numbers == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("what", "reason"), [("cancel", ": nobody wants it"), ("plain cancel", "")])
@pytest.mark.parametrize("task", [retrying.wants, retrying.wants_async])
def test_cancel(fleet: Fleet, tmp_path: Path, task: Any, what: str, reason: str) -> None:
    before = fleet.totals()
    job = task.enqueue(str(tmp_path / "log"), what)
    with pytest.raises(JobCancelled, match=f"job {job.id} was cancelled by itself{reason}$"):
        job.result(timeout=10)
    assert job.state() is JobState.CANCELLED
    event = fleet.wait_for("job.cancelled", job_id=job.id)
    assert event["error"] == f"Cancelled: cancelled by itself{reason}"
    fleet.wait_for_totals(**{name: before[name] for name in ("retried", "failed")}, cancelled=before["cancelled"] + 1)


def test_a_wrong_wish_is_a_failure(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="Passing: swallowed"):
        retrying.wants.options(retries=0).enqueue(str(tmp_path / "log"), "wrong").result(timeout=10)


# -- another queue after a crash


@pytest.mark.parametrize("how", ["kill", "segfault", "exit 3"])
def test_a_crashed_job_runs_from_the_other_queue(fleet: Fleet, tmp_path: Path, how: str) -> None:
    job = retrying.dies_once.enqueue(str(tmp_path / "log"), how)
    assert job.result(timeout=10) == [2]
    assert [job.info().queue, job.info().crashes] == ["big", 1]
    assert fleet.wait_for("job.succeeded", job_id=job.id)["queue"] == "big"


def test_it_stays_there_though_the_fleet_dies(start: Start, home: Path, tmp_path: Path) -> None:
    """A fleet that does not serve the other queue lets the job wait; the next one finds it there."""
    use(retrying.q, home)
    fleet = start(APP, environment=_PATHS, consumers=1, queues=("default",))
    job = retrying.dies_once.enqueue(str(tmp_path / "log"), "kill")
    fleet.wait_for("job.crashed", job_id=job.id)
    wait_until(lambda: job.info().queue == "big", "the job has moved")
    fleet.kill_all()
    other = start(APP, environment=_PATHS, consumers=1, queues=("big",))
    assert job.result(timeout=10) == [2]
    other.wait_for_totals(crashed=1)


def test_a_job_that_takes_the_fleet_down_moves_too(start: Start, home: Path, tmp_path: Path) -> None:
    use(retrying.q, home)
    fleet = start(APP, environment=_PATHS, consumers=1)
    job = retrying.dies_once.enqueue(str(tmp_path / "log"), "kill fleet")
    fleet.wait_for_end()
    fleet.start()
    assert job.result(timeout=10) == [2]
    assert [job.info().queue, job.info().crashes] == ["big", 1]


# -- checkpoints


@pytest.mark.parametrize("size", [0, 250_000])
def test_a_checkpoint_outlives_a_kill_right_behind_it(fleet: Fleet, tmp_path: Path, size: int) -> None:
    """However often: not one is lost, and the job goes on behind each."""
    job = retrying.goes_on.enqueue(str(tmp_path / "log"), 6, size)
    assert job.result(timeout=20) == [1, 2, 3, 4, 5, 6]
    assert [begun.label for begun in starts(tmp_path / "log")] == ["0", "1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("how", ["fail", "snooze"])
def test_a_retried_job_finds_its_checkpoint(fleet: Fleet, tmp_path: Path, gate: Gate, how: str) -> None:
    job = retrying.keeps.enqueue(str(tmp_path / "log"), gate.path, how)
    assert job.result(timeout=10) == ("second", {1, 2})


def test_a_checkpoint_outlives_the_fleet(start: Start, home: Path, tmp_path: Path, gate: Gate) -> None:
    """It is in the journal with the next commit, though its job goes on."""
    use(retrying.q, home)
    fleet = start(APP, environment=_PATHS, consumers=1)
    job = retrying.keeps.enqueue(str(tmp_path / "log"), gate.path, "gate")
    starts(tmp_path / "log", 1)
    later = retrying.no_deadline.enqueue()  # its submission is a commit
    assert later.state() is JobState.QUEUED
    fleet.kill_all()
    fleet.start()
    assert job.result(timeout=10) == ("second", {1, 2})


@pytest.mark.parametrize(("what", "error"), [("object", "PayloadError"), ("large", "PayloadTooLarge")])
def test_a_bad_checkpoint_is_refused(fleet: Fleet, what: str, error: str) -> None:
    with pytest.raises(JobFailed, match=error):
        retrying.keeps_badly.enqueue(what).result(timeout=10)


def test_a_timeout_waits_for_the_end_of_a_message(fleet: Fleet, tmp_path: Path) -> None:
    """Half a checkpoint would confuse the broker, and cost the consumer its life and the job a crash."""
    job = retrying.checkpoints_until_late.enqueue(str(tmp_path / "log"))
    assert job.result(timeout=10) == 200_000
    assert [begun.label for begun in starts(tmp_path / "log")] == ["start", "late"]
    assert job.info().crashes == 0


def test_a_message_is_sent_whole_before_the_timeout_is_raised() -> None:
    """The signal comes when a part of it is sent, for sure: the reader sends it when it has read the first bytes."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)  # so that none fits as a whole
    arrived = bytearray()
    job = SignalledJob(1, time.monotonic(), b"x" * 16, "t", 1, b"")
    me = threading.get_ident()

    def read_all() -> None:
        arrived.extend(ours.recv(1))
        signal.pthread_kill(me, signal.SIGALRM)
        while data := ours.recv(1 << 20):
            arrived.extend(data)

    before = signal.signal(signal.SIGALRM, lambda *_: job.interrupt_code(JobTimeout("late")))
    reader = threading.Thread(target=read_all)
    try:
        context.use_channel(Outbox(theirs, Unsent(multiprocessing.get_context("spawn"))))
        context.this_process.job = job
        reader.start()
        with pytest.raises(JobTimeout):
            for _ in range(1_000):  # more than fits into the socket: so it is in the middle of one when it is late
                current_job().checkpoint(bytes(250_000))
    finally:
        signal.signal(signal.SIGALRM, before)
        context.this_process.job = None
        theirs.close()
        reader.join()
        ours.close()
    decoder = Decoder()
    messages = decoder.feed(bytes(arrived))
    assert messages
    assert not decoder.has_unfinished_frame


def test_a_forked_child_keeps_silent(fleet: Fleet) -> None:
    told = retrying.speaks_from_a_fork.enqueue().result(timeout=10)
    assert "not in one that it forked" in told


# -- progress and time


def test_progress(fleet: Fleet, tmp_path: Path, gate: Gate) -> None:
    """Everybody sees it while the job runs: the last of 10,000 steps, though few were sent."""
    job = retrying.steps.enqueue(str(tmp_path / "log"), gate.path, 10_000)
    starts(tmp_path / "log", 1)
    last = Progress(10_000, 10_000, "step 10000")
    wait_until(lambda: job.info().progress == last, "the last step is known")
    [consumer] = [each for each in fleet.status()["consumers"] if each["job_id"] == job.id]
    assert consumer["progress"] == {"done": 10_000, "total": 10_000, "note": "step 10000"}
    assert "10,000 of 10,000 (100%): step 10000" in _taskq("job", job.id, fleet)
    assert json.loads(_taskq("job", job.id, fleet, "--json"))["progress"]["done"] == 10_000
    shown = "10,000 of 10,000 (100%): step 10000"
    wait_until(lambda: shown in _taskq("status", "", fleet), shown)
    event = fleet.wait_for("job.progress", job_id=job.id)
    assert event["total"] == 10_000
    assert "job.progress" in _taskq("logs", "", fleet, "--event", "job.progress")
    gate.open()
    left_s, deadline, is_aware = job.result(timeout=10)
    info = job.info()
    assert info.progress is None, "it is of running jobs only"
    assert 0 < left_s < 30
    assert is_aware
    assert info.started_at is not None
    assert abs(deadline - info.started_at - 30) < 0.1
    assert fleet.count("job.progress", job_id=job.id) < 20


def test_progress_is_that_of_the_attempt(fleet: Fleet, tmp_path: Path, make_gate: Callable[[], Gate]) -> None:
    """What the previous attempt reported is no longer shown."""
    first, second = make_gate(), make_gate()
    job = retrying.tells_once.enqueue(str(tmp_path / "log"), first.path, second.path)
    wait_until(lambda: job.info().progress == Progress(1, 2), "what the first attempt tells is known")
    first.open()
    starts(tmp_path / "log", 2)
    info = wait_until(lambda: (found := job.info()).state is JobState.RUNNING and found, "the second attempt runs")
    assert (info.attempts, info.progress) == (2, None)
    second.open()
    job.result(timeout=10)


def _taskq(command: str, id: str, fleet: Fleet, *options: str) -> str:
    done = taskq(fleet.home, command, *([id] if id else []), *options)
    assert done.returncode == 0, done
    return done.stdout


def test_a_job_without_limits_has_no_deadline(fleet: Fleet) -> None:
    assert retrying.no_deadline.enqueue().result(timeout=10) == [None, None, None]


@pytest.mark.parametrize("fields", [(-1, None, ""), ("1", None, ""), (1, "2", ""), (1, 2, "x" * 201), (1, 2, None)])
def test_bad_progress_is_refused(fleet: Fleet, fields: tuple[Any, ...]) -> None:
    with pytest.raises(JobFailed, match="ConfigError"):
        retrying.bad_progress.enqueue(*fields).result(timeout=10)


@given(done=st.integers(0, 10**6), total=st.none() | st.integers(0, 10**6), note=st.text(max_size=200))
def test_progress_in_words(done: int, total: int | None, note: str) -> None:
    told = Progress(done, total, note).describe()
    assert told.startswith(f"{done:,}")
    assert told.endswith(note)
    assert (total is None) == ("of" not in told.removesuffix(note))


def test_outside_a_job_there_is_none() -> None:
    with pytest.raises(TaskQError, match="outside a job"):
        current_job()
