"""Several jobs at once in a consumer (`--threads N`), in threads and as coroutines, on real fleets."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apps import jobs, slots
from fleet import APPS, Fleet, Gate, running, starts, use, wait_until

from taskq import JobFailed, JobState, TaskQError
from taskq.telemetry.reader import Filter, read

SLOTS = f"{APPS / 'slots.py'}:q"
Start = Callable[..., Fleet]


@pytest.fixture
def start(home: Path, start: Start) -> Start:
    """Starts fleets of consumers with several slots."""
    use(slots.q, home)
    return lambda **options: start(SLOTS, **{"consumers": 1, "threads": 8, **options})


@pytest.fixture(scope="module")
def many_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One consumer with 100 slots, for the tests that leave it as they found it."""
    with running(Fleet(tmp_path_factory.mktemp("many") / "queue", SLOTS, consumers=1, threads=100)) as fleet:
        yield fleet


@pytest.fixture
def many(many_fleet: Fleet) -> Fleet:
    """That fleet, which `apps.slots` uses in this test."""
    use(slots.q, many_fleet.home)
    return many_fleet


# -- many at once


@pytest.mark.parametrize("task", [slots.nap, slots.doze])
def test_many_at_once(start: Start, task: Any) -> None:
    """2,000 jobs that sleep 50 ms take a second, not 100: all slots are used, and no more than there are."""
    fleet = start(threads=100)
    made = task.enqueue_many([(0.05,)] * 2_000)
    assert [job.result(timeout=20) for job in made] == [job.id for job in made]
    assert slots.largest_crowd.enqueue().result(timeout=10) == 100
    fleet.wait_for_totals(succeeded=2_001)


def test_a_thousand_at_once(start: Start, tmp_path: Path) -> None:
    """They all wait for each other, so they all run: no slot stays empty while a job waits."""
    start(threads=1_000)
    (tmp_path / "met").mkdir()
    made = slots.meet.enqueue_many([(str(tmp_path / "met"), str(number), 1_000) for number in range(1_000)])
    for job in made:
        job.result(timeout=60)


def test_mixed(many: Fleet, tmp_path: Path) -> None:
    """Sync and async jobs of one application run side by side, and wait for each other."""
    (tmp_path / "met").mkdir()
    made = []
    for number in range(50):
        for task in (slots.meet, slots.meet_in_thread):
            made.append(task.enqueue(str(tmp_path / "met"), f"{task.name}{number}", 100))
    for job in made:
        job.result(timeout=20)


def test_large_payloads_fill_all_slots(start: Start, gate: Gate, tmp_path: Path) -> None:
    """A batch is bounded in bytes; there are as many batches as the slots need."""
    start(threads=10)
    path = str(tmp_path / "starts")
    for number in range(10):
        slots.hold.enqueue(gate.path, path, f"{number}" + "x" * 200_000)
    assert len({start.label[0] for start in starts(Path(path), 10)}) == 10
    gate.open()


def test_one_slot_is_as_before(start: Start) -> None:
    """Without --threads jobs run one by one in the main thread, and coroutines too."""
    start(threads=1)
    made = slots.nap.enqueue_many([(0.001,)] * 20)
    assert [job.result(timeout=10) for job in made] == [job.id for job in made]
    assert slots.largest_crowd.enqueue().result(timeout=10) == 1


def test_status_tells_all_that_runs(start: Start, gate: Gate, tmp_path: Path) -> None:
    """How many run, which has run for the longest time, and each one's own state."""
    fleet = start(threads=4)
    path = tmp_path / "starts"
    first = slots.hold.enqueue(gate.path, str(path), "first")
    starts(path, 1)
    others = [task.enqueue(gate.path, str(path), "other") for task in (slots.hold, slots.hold_in_thread)]
    starts(path, 3)
    [consumer] = fleet.status()["consumers"]
    assert (consumer["state"], consumer["running"], consumer["slots"]) == ("running", 3, 4)
    assert (consumer["job_id"], consumer["task"]) == (first.id, "hold")
    assert fleet.status()["queues"]["default"]["running"] == 3
    for job in (first, *others):
        info = wait_until(
            lambda job=job: (told := job.info()).state is JobState.RUNNING and told, "it is told that it runs"
        )
        assert info.attempts == 1
        assert info.started_at is not None
        assert not job.cancel(running=False), "it runs"
        fleet.wait_for("job.started", job_id=job.id)
    gate.open()
    for job in (first, *others):
        job.result(timeout=10)


# -- what a job knows and tells


@pytest.mark.parametrize("task", [slots.knows, slots.knows_in_thread])
def test_current_job(many: Fleet, task: Any) -> None:
    """Each job sees itself, in its tasks and in `asyncio.to_thread` too."""
    for job in task.enqueue_many([(0.001 * (number % 7),) for number in range(100)]):
        assert set(job.result(timeout=10)) == {job.id}
    assert [attempt.consumer for attempt in job.info().history] == [1], "its outcome tells who ran it, here as well"
    with pytest.raises(TaskQError, match="outside a job"):
        slots.current_job()


@pytest.mark.parametrize("task", [slots.speak, slots.speak_in_thread])
def test_output_is_reported_with_its_job(many: Fleet, task: Any) -> None:
    """Whatever else prints at the same time: whole lines, each with the job that wrote it."""
    made = {f"{task.name}-{number}": task.enqueue(f"{task.name}-{number}") for number in range(50)}
    for name, job in made.items():
        job.result(timeout=10)
        told = [event["message"] for event in many.events("job.log", job_id=job.id)]
        expected = ["by print"] * 5 + ["by logging", "by job log", "by standard error", "without an end"]
        assert Counter(told) == Counter(f"{name} {words}" for words in expected)
    [line] = many.events("job.log", job_id=job.id, message=f"{name} by job log")
    assert line["size"] == 3


def test_native_output_is_reported_with_the_consumer(many: Fleet) -> None:
    """Nobody knows which job wrote it."""
    slots.write_natively.enqueue("from C").result(timeout=10)
    assert many.wait_for("consumer.log", message="from C")["consumer"] == 1


# -- timeouts


@pytest.mark.parametrize("how", ["awaits", "spins", "sleeps"])
def test_timeout_of_a_coroutine(many: Fleet, tmp_path: Path, how: str) -> None:
    """It is cancelled, or interrupted if it blocks the loop; the others go on."""
    before = many.consumer_pids()
    beside = slots.nap.enqueue_many([(0.4,)] * 10)
    job = slots.overdue.enqueue(str(tmp_path / "starts"), how)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=10)
    assert caught.value.error_type == "TimedOut"
    assert "slots.py" in caught.value.error_traceback, "it says where the job was"
    many.wait_for("job.timed_out", job_id=job.id)
    for other in beside:
        assert other.result(timeout=10) == other.id
    assert many.consumer_pids() == before


def test_timeout_in_a_thread(many: Fleet, tmp_path: Path) -> None:
    """JobTimeout is raised in that thread, and in no other."""
    before = many.consumer_pids()
    beside = slots.doze.enqueue_many([(0.4,)] * 10)
    made = [slots.overdue_in_thread.enqueue(str(tmp_path / "starts"), "spins") for _ in range(10)]
    for job in made:
        with pytest.raises(JobFailed) as caught:
            job.result(timeout=10)
        assert caught.value.error_type == "TimedOut"
        assert "longer than its timeout" in caught.value.error_message
        assert "overdue_in_thread" in caught.value.error_traceback
    for other in beside:
        assert other.result(timeout=10) == other.id
    assert many.consumer_pids() == before


@pytest.mark.parametrize("task", [slots.overdue, slots.overdue_in_thread])
def test_a_job_may_clean_up_at_its_timeout(many: Fleet, tmp_path: Path, task: Any) -> None:
    """A coroutine sees a cancellation, a thread JobTimeout; either may still return."""
    assert task.enqueue(str(tmp_path / "starts"), "caught").result(timeout=10) == "caught"


def test_an_interruption_that_comes_late_harms_nobody(start: Start) -> None:
    """Jobs that end at about the time of their signal succeed or time out, and the threads live on.

    Eight threads: of a hundred that compute, on a busy machine, one may not get its turn within the grace of 2 s.
    """
    fleet = start()
    before = fleet.consumer_pids()
    ends = Counter[str]()
    for job in slots.just_in_time.enqueue_many([(20_000 + 2_000 * (number % 40),) for number in range(400)]):
        try:
            job.result(timeout=20)
            ends["succeeded"] += 1
        except JobFailed as error:
            ends[error.error_type] += 1
    assert set(ends) <= {"succeeded", "TimedOut"}
    assert sum(ends.values()) == 400
    assert slots.doze.enqueue(0.0).result(timeout=10)
    assert fleet.consumer_pids() == before


@pytest.mark.parametrize(("task", "how"), [("overdue", "insists"), ("overdue_in_thread", "blocked")])
def test_a_kill_for_time_is_charged_to_one(
    start: Start, make_gate: Callable[[], Gate], tmp_path: Path, task: str, how: str
) -> None:
    """What does not obey takes its process along; what ran beside it runs again, uncharged."""
    fleet = start(threads=4)
    path, gate = tmp_path / "starts", make_gate()
    beside = [each.enqueue(gate.path, str(path), "beside") for each in (slots.hold, slots.hold_in_thread)]
    starts(path, 2)
    stuck = make_gate()
    more = (stuck.path,) if task == "overdue_in_thread" else ()
    job = slots.q.tasks[task].enqueue(str(tmp_path / "overdue"), how, *more)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=15)
    assert caught.value.error_type == "TimedOut"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    starts(path, 4)
    gate.open()
    for other in beside:
        assert other.result(timeout=10) == "beside"
        assert (other.info().attempts, other.info().crashes) == (1, 0)
    assert fleet.count("job.crashed") == 0


def test_timeout_in_c(start: Start, tmp_path: Path) -> None:
    """Code that keeps the GIL is killed."""
    start(threads=4)
    job = slots.overdue_in_thread.enqueue(str(tmp_path / "starts"), "in-c")
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=15)
    assert caught.value.error_type == "TimedOut"


@pytest.mark.parametrize("threads", [1, 4])
def test_a_coroutine_that_blocks_the_loop_is_killed(start: Start, threads: int) -> None:
    """No cancellation and no signal handler gets through to it: the kill comes after the grace."""
    fleet = start(threads=threads)
    job = slots.block_loop.enqueue()
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=15)
    assert caught.value.error_type == "TimedOut"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert fleet.count("job.timed_out") == 1
    assert slots.doze.enqueue(0.0).result(timeout=10), "its successor has a loop that runs"


# -- deaths


def test_a_kill_with_many_running(start: Start, gate: Gate, tmp_path: Path) -> None:
    """All that ran are charged and run again; what only waited is not charged. Nothing is lost."""
    fleet = start(threads=10)
    path = tmp_path / "starts"
    made = [slots.hold.enqueue(gate.path, str(path), str(number)) for number in range(15)]
    starts(path, 10)
    [pid] = fleet.consumer_pids()
    fleet.kill(pid)
    starts(path, 20)
    gate.open()
    for number, job in enumerate(made):
        assert job.result(timeout=10) == str(number)
    assert sorted(job.info().crashes for job in made) == [0] * 5 + [1] * 10
    assert fleet.count("job.crashed") == 10


def test_what_ended_before_a_kill_does_not_run_again(start: Start, gate: Gate, tmp_path: Path) -> None:
    """Also if other jobs of the process began earlier and are still running."""
    fleet = start(threads=4)
    path, ended = tmp_path / "starts", tmp_path / "ended"
    held = slots.hold.enqueue(gate.path, str(path), "held")
    starts(path, 1)
    short = slots.note.enqueue_many([(str(ended), str(number)) for number in range(100)])
    for job in short:
        job.result(timeout=10)
    fleet.kill(fleet.consumer_pids()[0])
    starts(path, 2)
    gate.open()
    assert held.result(timeout=10) == "held"
    assert len(starts(ended)) == 100
    assert [event["job_id"] for event in fleet.events("job.crashed")] == [held.id]


@pytest.mark.parametrize("task", [slots.end, slots.end_in_thread])
@pytest.mark.parametrize("how", ["segfault", "exit 0"])
def test_a_job_that_ends_its_process(start: Start, tmp_path: Path, task: Any, how: str) -> None:
    """It is parked after its crashes, as without --threads."""
    fleet = start(threads=4)
    job = task.options(max_crashes=2).enqueue(str(tmp_path / "starts"), how)
    with pytest.raises(JobFailed, match="Crashed"):
        job.result(timeout=15)
    assert job.info().crashes == 2
    assert slots.doze.enqueue(0.0).result(timeout=10)
    assert fleet.count("job.crashed", job_id=job.id) == 2


def test_the_death_of_a_whole_fleet(start: Start, gate: Gate, tmp_path: Path) -> None:
    """The flight recorder has a record of each slot: the next fleet charges what ran, and only that."""
    fleet = start(threads=5)
    path = tmp_path / "starts"
    made = [slots.hold.enqueue(gate.path, str(path), str(number)) for number in range(8)]
    starts(path, 5)
    fleet.kill_all()
    fleet.start()
    starts(path, 10)
    gate.open()
    for number, job in enumerate(made):
        assert job.result(timeout=10) == str(number)
    assert sorted(job.info().crashes for job in made) == [0] * 3 + [1] * 5


@pytest.mark.parametrize("how", ["exit", "child exits", "cancels all", "stops itself"])
def test_a_job_that_misuses_the_loop(start: Start, how: str) -> None:
    """It fails, and the consumer goes on."""
    fleet = start(threads=4)
    fleet.expected.add("traceback")
    before = fleet.consumer_pids()
    with pytest.raises(JobFailed):
        slots.go_wrong.enqueue(how).result(timeout=10)
    assert slots.nap.enqueue(0.0).result(timeout=10)
    assert fleet.consumer_pids() == before


@pytest.mark.parametrize("task", [slots.fork_and_return, slots.fork_in_thread_and_return])
def test_a_job_may_fork(start: Start, task: Any) -> None:
    """What returns in the child too is one job, and the child no second consumer."""
    fleet = start(threads=4)
    beside = slots.nap.enqueue_many([(0.01,)] * 50)
    assert task.enqueue().result(timeout=10) in fleet.consumer_pids()
    for job in beside:
        assert job.result(timeout=10) == job.id
    fleet.wait_for_totals(succeeded=51)
    assert fleet.count("job.crashed") == 0


def test_a_job_that_closes_our_descriptors(start: Start, tmp_path: Path) -> None:
    """The process ends, and the job is charged: nothing hangs."""
    start(threads=4)
    job = slots.close_descriptors.options(max_crashes=1).enqueue(str(tmp_path / "starts"))
    with pytest.raises(JobFailed, match="Crashed"):
        job.result(timeout=15)
    assert slots.doze.enqueue(0.0).result(timeout=10)


# -- the fleet


def test_jobs_go_to_free_slots(start: Start, make_gate: Callable[[], Gate], tmp_path: Path) -> None:
    """What waits behind held slots is taken back for a consumer that has free ones."""
    fleet = start(consumers=2, threads=3)
    fleet.wait_ready()
    path, gate = tmp_path / "starts", make_gate()
    for number in range(5):
        slots.hold.enqueue(gate.path, str(path), str(number))
    starts(path, 5)
    short = slots.note.enqueue_many([(str(tmp_path / "short"), str(number)) for number in range(200)])
    for job in short:
        job.result(timeout=10)
    assert len(starts(tmp_path / "short")) == 200
    assert Counter(start.pid for start in starts(path)).most_common()[0][1] == 3
    gate.open()


def test_what_has_no_slot_goes_to_the_successor(start: Start, gate: Gate, tmp_path: Path) -> None:
    """SIGTERM to a consumer: its running jobs go on, the job that it had not begun runs elsewhere, each once."""
    fleet = start(consumers=1, threads=2)
    path = tmp_path / "starts"
    made = [slots.hold.enqueue(gate.path, str(path), str(number)) for number in range(3)]
    starts(path, 2)
    fleet.kill(fleet.consumer_pids()[0], signal.SIGTERM)
    wait_until(lambda: fleet.status()["consumers"], "a consumer")
    gate.open()
    for number, job in enumerate(made):
        assert job.result(timeout=10) == str(number)
    assert len(starts(path)) == 3
    assert fleet.count("job.crashed") == 0


def test_a_stopped_consumer_keeps_no_job(start: Start, tmp_path: Path) -> None:
    """What it was sent and has not begun runs elsewhere, though it has free slots."""
    fleet = start(consumers=2, threads=4)
    first, second = fleet.wait_ready().consumer_pids()
    fleet.kill(first, signal.SIGSTOP)
    made = slots.note.enqueue_many([(str(tmp_path / "starts"), str(number)) for number in range(40)])
    for job in made:
        job.result(timeout=15)
    assert {start.pid for start in starts(tmp_path / "starts")} == {second}
    fleet.kill(first, signal.SIGCONT)


def test_stop_drains_and_the_rest_waits(start: Start, gate: Gate, tmp_path: Path) -> None:
    """Running jobs may end; those that have not begun are there for the next fleet, uncharged."""
    fleet = start(threads=4)
    path = tmp_path / "starts"
    made = [slots.hold.enqueue(gate.path, str(path), str(number)) for number in range(6)]
    starts(path, 4)
    fleet.client.stop()
    fleet.wait_for("fleet.stopping", running=4)
    gate.open()
    fleet.wait_for_end()
    ended = sum(1 for _ in read(fleet.home, Filter(event="job.succeeded")))
    assert ended == len(starts(path)) == 4
    fleet.start()
    for number, job in enumerate(made):
        assert job.result(timeout=10) == str(number)
        assert job.info().attempts == 1


def test_max_jobs_and_drain(start: Start, tmp_path: Path) -> None:
    """Consumers are replaced on the way, and the fleet ends when all is done."""
    fleet = start(threads=4, max_jobs=20)
    made = slots.note.enqueue_many([(str(tmp_path / "starts"), str(number)) for number in range(100)])
    for job in made:
        job.result(timeout=20)
    assert len(starts(tmp_path / "starts")) == 100
    fleet.wait_for("consumer.exited")
    assert fleet.count("job.crashed") == 0


def test_the_tasks_of_the_other_tests(home: Path, start: Start) -> None:
    """An application that knows nothing of threads runs as well."""
    use(jobs.q, home)
    with running(Fleet(home, consumers=2, threads=3)):
        assert [job.result(timeout=10) for job in jobs.double.enqueue_many([(n,) for n in range(50)])] == [
            2 * n for n in range(50)
        ]
        assert list(jobs.echo.map(range(300))) == list(range(300))
        assert jobs.use_multiprocessing.enqueue().result(timeout=10) == 6
        job = jobs.who.enqueue()
        assert job.result(timeout=10)[:3] == [job.id, "who", 1]
