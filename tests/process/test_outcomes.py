"""However a job ends, its end is reported in a form that the broker can read; one that it cannot read harms no other
job."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apps import misbehaved
from apps.misbehaved import RAISED
from fleet import APPS, Fleet, Gate, hurried, running, starts, url_of, use, wait_until
from hypothesis import given
from hypothesis import strategies as st

from taskq import Job, JobCancelled, JobFailed, Retry, Snooze, TaskQ, gather
from taskq.broker.consumers.silence import SILENT_LOOKS, Silences
from taskq.broker.core.core import Core
from taskq.client.context import RunningJob
from taskq.consumer.own_descriptors import OwnDescriptors
from taskq.consumer.runner import Runner
from taskq.model.attempt import Attempts, Claim, Verdict, failure_in, pack_failure, pack_success, unpack
from taskq.model.errors import ProtocolError, is_delay
from taskq.model.exits import LOST_DESCRIPTORS
from taskq.model.job import JobError, JobRow
from taskq.model.spec import Spec
from taskq.model.stored import StoredState
from taskq.protocol.codec import encode_call

APP = f"{APPS / 'misbehaved.py'}:q"
_PATHS = {"PYTHONPATH": f"{APPS.parent}:{APPS.parent.parent}"}
ID = bytes(range(16))
GOOD = pack_success(1.0, 0.001, None)
BAD = pack_failure(1.0, 0.001, JobError("ValueError", "no"))
Start = Callable[..., Fleet]


# -- what the runner makes of it


def run(raised: BaseException, **rules: Any) -> tuple[Verdict, JobError, float | None]:
    """The end of a job that raises this."""
    app = TaskQ("ends", url="/proc/nonexistent")

    @app.task(name="ends", **rules)
    def ends() -> None:
        raise raised

    job = RunningJob(1, time.monotonic(), ID, "ends", 1, encode_call(ID, (), {}))
    verdict, duration_s, outcome = Runner(app).run(job)
    assert duration_s >= 0
    error, delay_s = failure_in(outcome)
    assert all(type(text) is str for text in (error.type, error.message, error.traceback))
    return verdict, error, delay_s


@pytest.mark.parametrize("how", RAISED)
def test_every_exception_makes_an_outcome(how: str) -> None:
    make, kind = RAISED[how]
    verdict, error, delay_s = run(make())
    assert verdict is (Verdict.CANCELLED if kind is None else Verdict.FAILED)
    assert error.type == (kind or "Cancelled")
    assert delay_s is None
    assert kind is None or "in ends" in error.traceback, "it says where"


def test_the_error_of_a_wrong_wish_says_what_to_do() -> None:
    _, error, _ = run(misbehaved.TooMany("30"))
    assert error.message == "TooMany.delay is '30': use seconds, 0 or more, or None for the task's backoff"
    _, error, _ = run(misbehaved.Early())
    assert error.message == "Early.delay is None: use seconds greater than 0, and call super().__init__(delay)"


def test_a_rule_that_cannot_be_asked_does_not_end_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    verdict, error, _ = run(ValueError("known"), give_up_on=misbehaved.Doubtful)
    assert (verdict, error.type, error.message) == (Verdict.FAILED, "ValueError", "known")
    assert "give_up_on" in capfd.readouterr().err


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.just([])
)


@given(kind=st.sampled_from([Retry, Snooze]), delay=anything, reason=anything)
def test_every_wish_is_sent_as_one_that_can_be_granted(kind: Any, delay: Any, reason: Any) -> None:
    raised = kind.__new__(type("Wild", (kind,), {}))
    raised.delay, raised.reason = delay, reason
    verdict, error, delay_s = run(raised)
    if kind is Snooze and is_delay(delay) and delay > 0:
        assert (verdict, delay_s) == (Verdict.SNOOZED, float(delay))
    elif kind is Retry and (delay is None or is_delay(delay)):
        assert (verdict, delay_s) == (Verdict.FAILED, delay)
    else:
        assert (verdict, error.type, delay_s) == (Verdict.FAILED, "ConfigError", None)


# -- what the broker makes of it


def core_with(count: int, retries: int = 0) -> Core:
    """One consumer, to which this many jobs were sent."""
    core = Core()
    core.joined(1, 0.0)
    core.submitted(
        [JobRow(seq, seq.to_bytes(16, "big"), Spec("t", retries=retries), b"") for seq in range(1, count + 1)]
    )
    assert [len(batch.rows) for batch in core.dispatch(0.0, 0.0)] == [count]
    return core


UNREADABLE = {
    "garbage": (Verdict.FAILED, b"\xc1 garbage"),
    "empty": (Verdict.FAILED, b""),
    "without an error": (Verdict.FAILED, GOOD),
    "a text as delay": (Verdict.FAILED, pack_failure(1.0, 0.1, JobError("Busy", ""), "30")),  # type: ignore[arg-type]
    "a negative delay": (Verdict.SNOOZED, pack_failure(1.0, 0.1, JobError("Snoozed", ""), -0.5)),
    "a snooze without a delay": (Verdict.SNOOZED, BAD),
    "a snooze of no time": (Verdict.SNOOZED, pack_failure(1.0, 0.1, JobError("Snoozed", ""), 0)),
    "a verdict that nobody gives": (77, BAD),
    "too large": (Verdict.FAILED, BAD + bytes(300_000)),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_outcome_is_a_failure_of_its_own_job(what: str) -> None:
    """What stands before and behind it in the same report is settled as it says."""
    verdict, outcome = UNREADABLE[what]
    core = core_with(4)
    core.settled(1, Attempts([1, 2, 3], [0, verdict, 0], [5, 5, 5], [GOOD, outcome, GOOD]), 0.0, 1e9)
    effects = core.take_effects()
    assert [(row.seq, kept) for row, kept, _ in effects.ended] == [
        (1, StoredState.SUCCEEDED),
        (2, StoredState.FAILED),
        (3, StoredState.SUCCEEDED),
    ]
    [_, (row, _, told), _] = effects.ended
    found = unpack(told)
    assert row.attempts == 1
    assert found.error is not None
    assert found.error.type == "UnreadableOutcome"
    assert found.duration_s == 5e-6
    assert [row.seq for _, row in core.leased()[1]] == [4]


def test_an_unreadable_outcome_is_retried_as_other_failures_are() -> None:
    core = core_with(1, retries=1)
    core.settled(1, Attempts([1], [Verdict.SNOOZED], [5], [b"\xc1"]), 0.0, 1e9)
    [change] = core.take_effects().rescheduled
    assert (change.row.attempts, change.row.failures) == (1, 1)
    assert (change.due_at or 0) > 1e9


def test_an_unreadable_end_of_a_cancelled_job_is_its_end() -> None:
    core = core_with(1)
    core.cancel_running(1, (1).to_bytes(16, "big"), 0.0)
    core.settled(1, Attempts([1], [Verdict.FAILED], [5], [b"\xc1"]), 0.0, 1e9)
    [(row, kept, _)] = core.take_effects().ended
    assert (row.attempts, kept) == (1, StoredState.CANCELLED)


verdicts = st.sampled_from(Verdict) | st.integers(-1, 9) | st.none() | st.text(max_size=2)
outcomes = st.sampled_from([GOOD, BAD, *(outcome for _, outcome in UNREADABLE.values())]) | st.binary(max_size=60)


@given(
    reports=st.lists(st.tuples(st.integers(-1, 8), verdicts, st.integers(-5, 2**64), outcomes), max_size=12),
    unwanted=st.sets(st.integers(1, 6)),
    retries=st.integers(0, 1),
)
def test_whatever_is_reported_each_job_ends_once_or_stays(reports: Any, unwanted: set[int], retries: int) -> None:
    """No report raises; a job of it has one more attempt, and an outcome that can be read; no other is touched."""
    core = core_with(6, retries)
    for number in unwanted:
        core.cancel_running(1, number.to_bytes(16, "big"), 0.0)
    core.settled(1, Attempts(*map(list, zip(*reports, strict=True))) if reports else Attempts([], [], [], []), 0.0, 1e9)
    effects = core.take_effects()
    settled = [row for row, *_ in (*effects.ended, *effects.rescheduled)]
    reported = {number for number, *_ in reports if 1 <= number <= 6}
    assert Counter(row.seq for row in settled) == Counter(reported)
    assert all(row.attempts == 1 for row in settled)
    assert {row.seq for _, row in core.leased()[1]} == set(range(1, 7)) - reported
    for row, kept, outcome in effects.ended:
        assert kept == StoredState.SUCCEEDED or failure_in(outcome), row
    for change in effects.rescheduled:
        assert failure_in(change.outcome or b"")
        assert change.due_at is not None
        assert change.due_at > 1e9 or change.row.failures  # a snooze takes time


@pytest.mark.parametrize("times", [(float("nan"), 1.0), (1.0, float("inf")), (2**64 - 1, 1.0)])
def test_times_that_cannot_be_shown_are_unreadable(times: tuple[float, float]) -> None:
    """A job may have replaced `time.time`: `taskq job` ended in a traceback."""
    with pytest.raises(ProtocolError, match="its times are out of range"):
        unpack(pack_success(*times, None))


# -- in a fleet


@pytest.fixture(scope="module", params=[1, 4])
def fleet_of_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet of one consumer, with one slot or several, for the tests that leave it as they found it."""
    home = tmp_path_factory.mktemp("outcomes") / "queue"
    with running(Fleet(home, APP, environment=_PATHS, consumers=1, threads=request.param)) as fleet:
        yield fleet


@pytest.fixture
def fleet(fleet_of_file: Fleet) -> Fleet:
    use(misbehaved.q, fleet_of_file.home)
    return fleet_of_file


@pytest.mark.parametrize("task", [misbehaved.ends_by, misbehaved.ends_by_async], ids=lambda task: str(task.name))
def test_who_ends_badly_takes_nobody_along(fleet: Fleet, tmp_path: Path, task: Any) -> None:
    """Good jobs before, between and behind them run once each; the bad ones as often as they may."""
    path = str(tmp_path / "log")
    [pid] = fleet.consumer_pids()
    before = fleet.totals()["crashed"]
    bad = {}
    good = []
    for how in RAISED:
        good += misbehaved.fine.enqueue_many([(path,)] * 5)
        bad[how] = task.enqueue(path, how)
    good += misbehaved.fine.enqueue_many([(path,)] * 5)
    for how, job in bad.items():
        with pytest.raises(JobFailed if RAISED[how][1] else JobCancelled) as raised:
            job.result(timeout=30)
        assert not isinstance(raised.value, JobFailed) or raised.value.error_type == RAISED[how][1], how
    for job in good:
        job.result(timeout=30)
    runs = Counter(start.label for start in starts(tmp_path / "log"))
    assert runs.pop("fine") == len(good)
    assert runs == {how.replace(" ", "_"): 1 if kind is None else 2 for how, (_, kind) in RAISED.items()}
    assert fleet.consumer_pids() == [pid]
    fleet.wait_for_totals(crashed=before)


def test_a_rule_of_the_task_that_raises(fleet: Fleet, tmp_path: Path) -> None:
    job = misbehaved.asks_the_doubtful.enqueue(str(tmp_path / "log"))
    with pytest.raises(JobFailed, match="ValueError: known"):
        job.result(timeout=10)
    assert job.info().attempts == 2
    fleet.wait_for("job.log", job_id=job.id, level="error")


@pytest.mark.parametrize("size", [1, 5_000, 3_000_000])
def test_a_success_that_cannot_be_read_is_reported_with_its_job_alone(start: Start, tmp_path: Path, size: int) -> None:
    """By whatever way it is asked for, and by whoever has it as an argument."""
    fleet = start(APP, environment=_PATHS, consumers=1)
    use(misbehaved.q, fleet.home)
    good = [misbehaved.fine.enqueue(str(tmp_path / "log"))]
    bad = misbehaved.scribbles.enqueue(size)
    child = misbehaved.takes.enqueue(bad)  # type: ignore[arg-type]
    good.append(misbehaved.fine.enqueue(str(tmp_path / "log")))
    found = gather([*good, bad], errors="return", timeout=30)
    assert [type(each) for each in found] == [type(None), type(None), JobFailed]
    with pytest.raises(JobFailed, match="UnreadableOutcome: the job succeeded, but what it returned cannot be read"):
        asyncio.run(both(good[0], bad))
    with pytest.raises(JobFailed, match="has none that can be read"):
        child.result(timeout=30)
    for is_stopped in (False, True):
        if is_stopped:
            fleet.stop()
        infos = {info.id: info for info in misbehaved.q.jobs()}
        assert infos.keys() == {job.id for job in (*good, bad, child)}
        assert [infos[job.id].error for job in good] == [None, None]
        told = {info.error and info.error.type for info in (infos[bad.id], bad.info())}
        assert told == (
            {"UnreadableOutcome"} if size < 4096 else {"UnreadableOutcome", None}
        )  # lists read none so large
        assert infos[bad.id].state == bad.state() == "succeeded"


async def both(good: Job[Any], bad: Job[Any]) -> None:
    """Waits for one job after the other, over one connection."""
    ends = await asyncio.gather(good.aresult(30), bad.aresult(30), return_exceptions=True)
    assert ends[0] is None
    assert await good.aresult(30) is None
    assert isinstance(ends[1], JobFailed)
    raise ends[1]


def test_who_stops_the_event_loop_stops_no_other_job(fleet: Fleet, tmp_path: Path) -> None:
    """Neither those that run on it, nor the next one."""
    path = str(tmp_path / "log")
    [pid] = fleet.consumer_pids()
    jobs = []
    for _ in range(3):
        jobs += misbehaved.fine_async.enqueue_many([(path,)] * 3)
        jobs.append(misbehaved.stops_the_loop.enqueue(path))
    jobs += misbehaved.fine_async.enqueue_many([(path,)] * 3)
    for job in jobs:
        job.result(timeout=10)
    assert Counter(start.label for start in starts(tmp_path / "log")) == {"fine": 12, "stops": 3}
    assert fleet.consumer_pids() == [pid]


# -- what a job leaves as its standard output


@pytest.mark.parametrize("how", ["closed", "none", "deleted", "error", "exit", "interrupt"])
def test_a_broken_output_is_neither_an_end_nor_inherited(start: Start, tmp_path: Path, how: str) -> None:
    """The job has succeeded, once; the next one in its process is heard."""
    fleet = start(APP, environment=_PATHS, consumers=1)
    use(misbehaved.q, fleet.home)
    [pid] = fleet.consumer_pids()
    job = misbehaved.leaves_output.enqueue(str(tmp_path / "log"), how)
    job.result(timeout=10)
    assert job.info().attempts == 1
    assert misbehaved.speaks.enqueue("hear me").result(timeout=10) == pid
    fleet.wait_for("job.log", message="hear me", skip=1)
    stream = "stderr" if how == "interrupt" else "stdout"
    told = [event["message"] for event in fleet.events("job.log", job_id=job.id, level="warning")]
    assert any(f"sys.{stream} that cannot be flushed" in message for message in told), told


@pytest.mark.parametrize("how", ["closed", "none", "deleted", "error", "exit", "interrupt"])
def test_a_broken_output_among_several_jobs(start: Start, tmp_path: Path, how: str) -> None:
    """With --threads nobody flushes it for the job."""
    fleet = start(APP, environment=_PATHS, consumers=1, threads=4)
    use(misbehaved.q, fleet.home)
    [pid] = fleet.consumer_pids()
    misbehaved.leaves_output.enqueue(str(tmp_path / "log"), how).result(timeout=10)
    misbehaved.fine.enqueue(str(tmp_path / "log")).result(timeout=10)
    assert fleet.consumer_pids() == [pid]


def test_a_record_does_not_depend_on_the_output(fleet: Fleet) -> None:
    job = misbehaved.logs_with_stuck_output.enqueue()
    assert job.result(timeout=10) == "logged"
    fleet.wait_for("job.log", job_id=job.id, message="told all the same")


@pytest.mark.parametrize("how", ["closed", "null", "folder", "file", "dead socket", "full pipe"])
@pytest.mark.parametrize("threads", [1, 4])
def test_what_stands_in_the_place_of_the_output_is_not_inherited(
    start: Start, tmp_path: Path, threads: int, how: str
) -> None:
    """The job has succeeded, once; the next ones in its process print, and are heard."""
    fleet = start(APP, environment=_PATHS, consumers=1, threads=threads)
    use(misbehaved.q, fleet.home)
    [pid] = fleet.consumer_pids()
    job = misbehaved.leaves_descriptors.enqueue(str(tmp_path / "log"), how)
    job.result(timeout=10)
    assert job.info().attempts == 1
    assert misbehaved.speaks.enqueue("hear me").result(timeout=10) == pid
    fleet.wait_for("job.log", message="hear me", skip=1)
    told = fleet.wait_for("job.log" if threads == 1 else "consumer.log", level="warning")
    assert "it is put back" in told["message"]


def test_the_application_may_send_its_output_elsewhere(start: Start, tmp_path: Path) -> None:
    app = tmp_path / "mute.py"
    app.write_text(
        "import os\n"
        "from taskq import TaskQ\n"
        "q = TaskQ('mute')\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "@q.task(retries=0, max_crashes=1)\n"
        "def hush() -> int:\n"
        "    print('not heard', flush=True)\n"
        "    return os.getpid()\n"
    )
    fleet = start(f"{app}:q", consumers=1)
    client = TaskQ("mute", url_of(fleet.home))
    assert {client.enqueue("hush").result(timeout=10) for _ in range(3)} == set(fleet.consumer_pids())
    assert not fleet.events("job.log")


@pytest.mark.parametrize("threads", [1, 4])
def test_who_goes_on_writing_does_not_hold_up_a_burial(start: Start, threads: int) -> None:
    """What was in the pipe when the consumer died is logged. What other processes go on writing to it belongs to no
    job."""
    fleet = start(APP, environment=_PATHS, consumers=1, threads=threads)
    use(misbehaved.q, fleet.home)
    job = misbehaved.leaves_a_writer_and_dies.enqueue()
    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        job.result(timeout=10)
    misbehaved.speaks.enqueue("here I am").result(timeout=10)


# -- what a job does to the descriptors of its consumer


def test_a_descriptor_is_known_by_what_is_behind_it(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, (tmp_path / "file").open("w") as file:
        own = OwnDescriptors({one.fileno(): "one", other.fileno(): "other"})
        assert own.lost() is None
        copy = os.dup(other.fileno())
        os.dup2(file.fileno(), other.fileno())
        assert own.lost() == other.fileno()
        os.dup2(copy, other.fileno())
        assert own.lost() is None
        os.close(copy)
        descriptor = one.detach()
        os.close(descriptor)
        assert own.lost() == descriptor


@pytest.mark.parametrize(
    "task", [misbehaved.takes_descriptors, misbehaved.takes_descriptors_async], ids=lambda t: t.name
)
@pytest.mark.parametrize("threads", [1, 4])
def test_who_takes_the_descriptors_of_its_consumer_is_charged(
    start: Start, tmp_path: Path, task: Any, threads: int
) -> None:
    """At once, and the reason is logged; the jobs behind it run in the next consumer."""
    fleet = start(APP, environment=_PATHS, consumers=1, threads=threads)
    use(misbehaved.q, fleet.home)
    job = task.enqueue(str(tmp_path / "log"))
    good = misbehaved.fine.enqueue_many([(str(tmp_path / "log"),)] * 20)
    with pytest.raises(JobFailed, match=r"Crashed: .* descriptors of its own had been closed"):
        job.result(timeout=15)
    for other in good:
        other.result(timeout=15)
    assert Counter(start.label for start in starts(tmp_path / "log"))["start"] == 2
    event = fleet.wait_for("consumer.crashed", exit_code=LOST_DESCRIPTORS)
    assert "Close only what you have opened" in str(event["output"])


@pytest.mark.parametrize("threads", [1, 4])
def test_nothing_is_sent_to_who_has_the_number_now(start: Start, tmp_path: Path, threads: int) -> None:
    fleet = start(APP, environment=_PATHS, consumers=1, threads=threads)
    use(misbehaved.q, fleet.home)
    job = misbehaved.takes_them_and_speaks.enqueue(str(tmp_path / "log"))
    with pytest.raises(JobFailed, match="descriptors of its own had been closed"):
        job.result(timeout=15)
    assert (tmp_path / "log.foreign").read_bytes() == b""


@pytest.mark.parametrize(("threads", "reads_anew"), [(1, True), (1, False), (4, False)])
def test_a_consumer_that_hears_nothing_is_dead(start: Start, gate: Gate, threads: int, reads_anew: bool) -> None:
    """Its jobs run in its successor, uncharged; what has happened stands in the log. A read that waits goes on with the
    right pipe, and what comes is seen to be the last; one that begins anew, after a signal, waits at another's."""
    hurry = hurried({"taskq.broker.consumers.silence": {"LOOK_EVERY_S": 0.3}}, _PATHS["PYTHONPATH"])
    fleet = start(APP, environment=hurry, consumers=1, threads=threads)
    use(misbehaved.q, fleet.home)
    pid = misbehaved.leaves_a_closer.enqueue(gate.path).result(timeout=10)
    gate.open()
    wait_until(lambda: Path(f"/proc/{pid}/fd/501").is_symlink(), "the last of the pipes")
    if reads_anew:
        os.kill(pid, signal.SIGHUP)
    job = misbehaved.speaks.enqueue("here I am")
    assert job.result(timeout=40) != pid
    assert job.info().attempts == 1
    event = fleet.wait_for("consumer.*", pid=pid, level="error")
    if reads_anew and "reason" in event:  # unless it was not reading yet when the signal came
        assert "started none and sent nothing" in event["reason"]
    elif threads == 1:
        assert event["exit_code"] == LOST_DESCRIPTORS


def test_silence_is_counted_while_there_is_something_to_say() -> None:
    silences = Silences()

    def looks(count: int, *, jobs_done: int = 5, running: int = 0, messages: int = 7, awaited: bool = True) -> bool:
        claims = [Claim(running, 0.0)] if running else []
        seen = {"claims": claims, "jobs_done": jobs_done, "messages": messages}
        return [silences.look(1, is_awaited=awaited, **seen) for _ in range(count)][-1]

    assert not looks(SILENT_LOOKS)
    assert looks(1)
    assert not looks(1, jobs_done=6), "it has ended a job"
    assert not looks(SILENT_LOOKS - 1, jobs_done=6)
    assert not looks(100, jobs_done=6, running=7), "it runs one"
    assert not looks(100, jobs_done=6, awaited=False), "it has nothing to do"
    assert not looks(1, jobs_done=6, messages=8), "it was heard"
    assert not looks(SILENT_LOOKS - 1, jobs_done=6, messages=8)
    assert looks(1, jobs_done=6, messages=8)
    silences.forget_others({2})
    assert not looks(SILENT_LOOKS, jobs_done=6, messages=8), "another of that name"
