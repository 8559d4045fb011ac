"""What an operator reads in the log: whose output it was, why a job or a process ended, and where a hang stood."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from apps import log_lines
from fleet import APPS, Fleet, Gate, starts, url_of, use, wait_for_file, wait_until

from taskq import JobFailed, TaskQ
from taskq.model.limits import MAX_OUTPUT_LINE_BYTES
from taskq.telemetry.reader import Filter, read
from taskq.telemetry.render import render_console

LOG_LINES = f"{APPS / 'log_lines.py'}:q"
Start = Callable[..., Fleet]


@pytest.fixture
def one(start: Start, home: Path) -> Fleet:
    """A fleet of one consumer: jobs run one behind the other."""
    use(log_lines.q, home)
    return start(LOG_LINES, consumers=1)


def messages(fleet: Fleet, job_id: str) -> list[str]:
    """What a job has printed, as the log tells it."""
    return [event["message"] for event in fleet.events("job.log", job_id=job_id)]


# -- whose output it was


@pytest.mark.parametrize("how", ["print", "descriptor"])
@pytest.mark.parametrize("text", ["partial", "z" * (MAX_OUTPUT_LINE_BYTES + 100)])
def test_output_without_a_line_end_is_reported_with_its_job(one: Fleet, how: str, text: str) -> None:
    made = [
        job
        for number in range(5)
        for job in (
            log_lines.print_without_end.enqueue(f"{number} {text}", how),
            log_lines.print_whole.enqueue(f"whole {number}"),
        )
    ]
    for job in made:
        job.result(timeout=10)
    assert messages(one, made[-1].id) == ["whole 4"]
    for number, (partial, whole) in enumerate(zip(made[::2], made[1::2], strict=True)):
        assert messages(one, partial.id) == [f"{number} {text}"[:MAX_OUTPUT_LINE_BYTES]]
        assert messages(one, whole.id) == [f"whole {number}"]


def test_the_last_line_is_reported_when_its_job_ends(one: Fleet) -> None:
    """Not when the next job prints."""
    job = log_lines.print_without_end.enqueue("the end")
    job.result(timeout=10)
    one.wait_for("job.log", job_id=job.id, message="the end")


def test_an_event_behind_text_without_a_line_end(one: Fleet) -> None:
    """It is an event, and the text a line of its own."""
    job = log_lines.log_behind.enqueue("50 % ")
    job.result(timeout=10)
    assert messages(one, job.id) == ["50 % ", "an event"]
    assert one.events("job.log", job_id=job.id, size=3)


@pytest.mark.parametrize("length", [0, 30_000])
def test_an_exception_is_reported_as_a_block(one: Fleet, length: int) -> None:
    """With its traceback as one, unescaped, also if it is long."""
    job = log_lines.log_exceptions.enqueue(length)
    job.result(timeout=10)
    told = one.events("job.log", job_id=job.id)
    assert [(event["message"], event["level"]) for event in told] == [("by job log", "error"), ("by logging", "error")]
    for event in told:
        lines = render_console(event).splitlines()
        assert "| Traceback (most recent call last):" in lines[1]
        assert '|   File "' in lines[2]
        assert lines[-1].endswith(" no such thing")
        assert "\\n" not in lines[0]


def test_what_the_application_has_logged_itself_is_not_repeated(start: Start, home: Path, tmp_path: Path) -> None:
    """A handler of its own below the root writes to the output; what passes its level and filters is written once."""
    path = tmp_path / "own_handler.py"
    path.write_text(
        "import logging, sys, taskq\n"
        "q = taskq.TaskQ('own_handler')\n"
        "logging.getLogger('shop').addHandler(handler := logging.StreamHandler())\n"
        "logging.getLogger('shop').setLevel('INFO')\n"
        "handler.setLevel('WARNING')\n"
        "handler.addFilter(lambda record: 'unwanted' not in record.msg)\n"
        "@q.task\n"
        "def sell():\n"
        "    logging.getLogger('shop.till').warning('by its own handler')\n"
        "    logging.getLogger('shop.till').info('below its level')\n"
        "    logging.getLogger('shop.till').warning('unwanted there')\n"
        "    logging.getLogger('other').info('of another logger')\n"
    )
    fleet = start(f"{path}:q", consumers=1)
    job = TaskQ("own_handler", url=url_of(home)).enqueue("sell")
    job.result(timeout=10)
    assert messages(fleet, job.id) == [
        "by its own handler",
        "below its level",
        "unwanted there",
        "of another logger",
    ]


# -- how much of it is reported


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("how", ["", "raise", "kill"])
def test_a_chatty_job_is_reported_by_its_beginning_and_its_end(
    start: Start, home: Path, how: str, threads: int
) -> None:
    """The number of lines left out in between is reported with the job, before its last lines and its end."""
    use(log_lines.q, home)
    fleet = start(LOG_LINES, consumers=1, threads=threads)
    count = 30_000
    job = log_lines.chat.options(max_crashes=1).enqueue(count, how)
    with suppress(JobFailed):
        job.result(timeout=20)
    end = fleet.wait_for("job.failed" if how else "job.succeeded", job_id=job.id)
    told = [event for event in fleet.events("*", job_id=job.id) if event["event"] != "job.started"]
    numbers = [int(event["message"].split()[1]) for event in told if event["event"] == "job.log"]
    drops = [event for event in told if event["event"] == "output.dropped"]
    assert numbers[:1_000] == list(range(1_000))
    assert numbers[-90:] == list(range(count - 90, count))
    assert len(numbers) + sum(dropped["lines"] for dropped in drops) == count
    position = told.index(drops[-1])
    assert told[position - 1]["event"] == "job.log"
    assert told[position + 1]["event"] == "job.log"
    assert told.index(end) > position + 90


def test_events_outlive_a_flood_of_output(start: Start, home: Path) -> None:
    """Output has files of its own, whose size is a setting; `read` and `follow` see one log, in order."""
    use(log_lines.q, home)
    fleet = start(LOG_LINES, consumers=1, output_mb=2)
    jobs = log_lines.chat.enqueue_many([(2_000, "", 900)] * 16)
    for job in jobs:
        job.result(timeout=30)
    for job in jobs:
        fleet.wait_for("job.succeeded", job_id=job.id)
    assert fleet.count("fleet.started") == 1
    assert messages(fleet, jobs[0].id) == [], "the output of the first is gone"
    last = messages(fleet, jobs[-1].id)
    assert last[-1].split() == ["chatter", "1999"]
    sizes = [path.stat().st_size for path in (fleet.home / "log").iterdir() if path.name.startswith("output")]
    assert sum(sizes) <= 2 * 1024 * 1024
    told = [event for event in fleet.events() if event.get("job_id") == jobs[-1].id]
    assert told[-1]["event"] == "job.succeeded", "what a job prints comes before its end"
    times = [event["timestamp"] for event in fleet.events()]
    assert times == sorted(times)


# -- why a job ended


def test_a_timeout_is_reported_with_the_attempt_that_it_ended(one: Fleet, gate: Gate, tmp_path: Path) -> None:
    """Not with the next, although the outcome may be there before the line is written."""
    job = log_lines.hang_once.enqueue(str(tmp_path / "starts"), gate.path)
    job.result(timeout=15)
    one.wait_for("job.succeeded", job_id=job.id)
    told = [(event["event"], event["attempt"]) for event in one.events("job.*", job_id=job.id)]
    assert [each for each in told if each[0] != "job.started"] == [
        ("job.timed_out", 1),
        ("job.retrying", 1),
        ("job.succeeded", 2),
    ]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("timeout", "why"), [(0.3, "the job ran longer than its timeout of 0.3 s"), (60, "the job was cancelled")]
)
def test_a_job_is_told_why_it_is_to_end(
    start: Start, home: Path, tmp_path: Path, timeout: float, why: str, threads: int
) -> None:
    """For its time, or since it was cancelled: the broker knows which."""
    use(log_lines.q, home)
    start(LOG_LINES, consumers=1, threads=threads)
    path = tmp_path / "starts"
    job = log_lines.note_why_it_ends.options(timeout=timeout).enqueue(str(path))
    starts(path, 1)
    if timeout == 60:
        assert job.cancel()
    assert wait_for_file(Path(f"{path}.why")) == [why]


def test_a_killed_job_took_as_long_as_it_took(one: Fleet, tmp_path: Path) -> None:
    """Not as long as it may: a kill comes 2 s after the signal that it did not hear."""
    job = log_lines.hang_in_c.enqueue(str(tmp_path / "starts"))
    with pytest.raises(JobFailed, match=r"longer than its timeout of 0\.3 s and was killed after \d+\.\d\d s"):
        job.result(timeout=15)
    info = job.info()
    assert info.duration_s is not None
    assert info.duration_s >= 2.3
    assert info.started_at is not None


# -- how a process ended


def test_a_hang_has_a_stack(one: Fleet, tmp_path: Path) -> None:
    """A kill by the broker is reported as such, with the job and the stacks of all threads; it is not a crash."""
    job = log_lines.hang_in_c.enqueue(str(tmp_path / "starts"))
    with pytest.raises(JobFailed):
        job.result(timeout=15)
    killed = one.wait_for("consumer.killed", job_id=job.id)
    assert killed["reason"] == f"job {job.id} ran longer than its timeout and did not end"
    assert "block_forever_in_c" in killed["output"]
    assert "(most recent call first)" in killed["output"]
    assert one.count("consumer.crashed") == one.count("consumer.stacks") == 0
    failed = one.wait_for("job.failed", job_id=job.id)
    assert (failed["consumer"], failed["pid"]) == (killed["consumer"], killed["pid"])
    error = job.info().error
    assert error is not None
    assert any("hang_in_c" in line for line in error.output), "it is kept with the job"
    assert messages(one, job.id) == ["going in"], "stacks are no output of the job"


def test_stacks_can_be_asked_for(one: Fleet, gate: Gate, tmp_path: Path) -> None:
    """`kill -QUIT` of a consumer tells where it stands, and does no harm."""
    job = log_lines.wait_at.enqueue(gate.path, str(tmp_path / "starts"))
    [began] = starts(tmp_path / "starts", 1)
    one.kill(began.pid, signal.SIGQUIT)
    told = one.wait_for("consumer.stacks", job_id=job.id)
    assert "wait_at" in told["output"]
    gate.open()
    job.result(timeout=10)
    assert began.pid in one.consumer_pids()


@pytest.mark.parametrize("how", ["segfault", "kill"])
def test_last_words_are_reported_once_as_a_block(one: Fleet, how: str) -> None:
    """With the process; the lines of its job have the same ids."""
    job = log_lines.crash.enqueue(how, 50)
    with pytest.raises(JobFailed):
        job.result(timeout=10)
    one.wait_for("job.failed", job_id=job.id)
    [died] = one.events("consumer.crashed", job_id=job.id)
    assert [event["event"] for event in one.events() if "output" in event] == ["consumer.crashed"]
    for name in ("job.crashed", "job.failed"):
        [event] = one.events(name, job_id=job.id)
        assert (event["consumer"], event["pid"]) == (died["consumer"], died["pid"])
    block = render_console(died).splitlines()[1:]
    assert "             | word 49" in block
    assert any("string_at" in line for line in block) == (how == "segfault")
    assert not any("Fatal Python error" in text for text in messages(one, job.id))


def test_what_goes_down_with_another_is_reported(
    start: Start, home: Path, make_gate: Callable[[], Gate], tmp_path: Path
) -> None:
    """Jobs beside one that is killed for its time run again, and the log says why: above info, with the culprit."""
    use(log_lines.q, home)
    fleet = start(LOG_LINES, consumers=1, threads=3)
    gate, path = make_gate(), tmp_path / "beside"
    beside = [log_lines.wait_at.enqueue(gate.path, str(path)) for _ in range(2)]
    starts(path, 2)
    culprit = log_lines.hang_in_c.enqueue(str(tmp_path / "starts"))
    with pytest.raises(JobFailed):
        culprit.result(timeout=15)
    for job in beside:
        told = fleet.wait_for("job.interrupted", job_id=job.id)
        assert told["level"] == "warning"
        assert culprit.id in told["reason"]
    killed = fleet.wait_for("consumer.killed")
    assert set(killed["job_ids"]) == {culprit.id, *(job.id for job in beside)}
    error = culprit.info().error
    assert error is not None
    assert "going in" in error.output
    assert not [line for line in error.output if line.startswith("waiting")], "what the others wrote is not its own"
    assert f"job {culprit.id}:\ngoing in" in killed["output"]
    assert f"job {beside[0].id}:\nwaiting at" in killed["output"]
    for job in (culprit, *beside):
        assert killed in read(fleet.home, Filter(job_id=job.id)), "found with each of them"
    gate.open()
    for job in beside:
        job.result(timeout=10)


# -- how busy it is


def test_a_long_job_is_seen_while_it_runs(one: Fleet, gate: Gate, tmp_path: Path) -> None:
    """The seconds that a consumer spent in jobs include those of the job that it is running."""
    job = log_lines.wait_at.enqueue(gate.path, str(tmp_path / "starts"))
    starts(tmp_path / "starts", 1)
    wait_until(lambda: one.status()["consumers"][0]["busy_s"] > 0.05, "a consumer that is busy")
    gate.open()
    job.result(timeout=10)
