"""What an operator reads in the log: whose output it was, why a job or a process ended, and where a hang stood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from apps import telling
from fleet import APPS, Fleet, Gate, starts, use, wait_until

from taskq.limits import MAX_OUTPUT_LINE_BYTES
from taskq.log.render import render_console

TELLING = f"{APPS / 'telling.py'}:q"
Start = Callable[..., Fleet]


@pytest.fixture
def one(start: Start, home: Path) -> Fleet:
    """A fleet of one consumer: jobs run one behind the other."""
    use(telling.q, home)
    return start(TELLING, consumers=1)


def messages(fleet: Fleet, job_id: str) -> list[str]:
    """What a job has printed, as the log tells it."""
    return [event["message"] for event in fleet.events("job.log", job_id=job_id)]


# -- whose output it was


@pytest.mark.parametrize("how", ["print", "descriptor"])
@pytest.mark.parametrize("text", ["partial", "z" * (MAX_OUTPUT_LINE_BYTES + 100)])
def test_output_without_a_line_end_is_told_with_its_job(one: Fleet, how: str, text: str) -> None:
    made = [
        job
        for number in range(5)
        for job in (
            telling.print_without_end.enqueue(f"{number} {text}", how),
            telling.print_whole.enqueue(f"whole {number}"),
        )
    ]
    for job in made:
        job.result(timeout=10)
    assert messages(one, made[-1].id) == ["whole 4"]
    for number, (partial, whole) in enumerate(zip(made[::2], made[1::2], strict=True)):
        assert messages(one, partial.id) == [f"{number} {text}"[:MAX_OUTPUT_LINE_BYTES]]
        assert messages(one, whole.id) == [f"whole {number}"]


def test_the_last_line_is_told_when_its_job_ends(one: Fleet) -> None:
    """Not when the next job prints."""
    job = telling.print_without_end.enqueue("the end")
    job.result(timeout=10)
    one.wait_for("job.log", job_id=job.id, message="the end")


def test_an_event_behind_text_without_a_line_end(one: Fleet) -> None:
    """It is an event, and the text a line of its own."""
    job = telling.log_behind.enqueue("50 % ")
    job.result(timeout=10)
    assert messages(one, job.id) == ["50 % ", "an event"]
    assert one.events("job.log", job_id=job.id, size=3)


@pytest.mark.parametrize("length", [0, 30_000])
def test_an_exception_is_told_as_a_block(one: Fleet, length: int) -> None:
    """With its traceback as one, unescaped, also if it is long."""
    job = telling.log_exceptions.enqueue(length)
    job.result(timeout=10)
    told = one.events("job.log", job_id=job.id)
    assert [(event["message"], event["level"]) for event in told] == [("by job log", "error"), ("by logging", "error")]
    for event in told:
        lines = render_console(event).splitlines()
        assert "| Traceback (most recent call last):" in lines[1]
        assert '|   File "' in lines[2]
        assert lines[-1].endswith(" no such thing")
        assert "\\n" not in lines[0]


# -- how busy it is


def test_a_long_job_is_seen_while_it_runs(one: Fleet, gate: Gate, tmp_path: Path) -> None:
    """The seconds that a consumer spent in jobs include those of the job that it is running."""
    job = telling.wait_at.enqueue(gate.path, str(tmp_path / "starts"))
    starts(tmp_path / "starts", 1)
    wait_until(lambda: one.status()["consumers"][0]["busy_s"] > 0.05, "a consumer that is busy")
    gate.open()
    job.result(timeout=10)
