"""The text that people see."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.telemetry.record import FIELDS
from taskq.telemetry.render import render_console
from taskq.telemetry.words import duration_text, escape, wants_colour

JOB = "0197c8a1f2b34c5d8e9f0a1b2c3d4e5f"
ANSI = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is two hours before UTC."""
    monkeypatch.setenv("TZ", "XXX+02")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def event(name: str, level: str = "info", **fields: Any) -> dict[str, Any]:
    return {"timestamp": "2026-05-09T12:01:07.123456Z", "level": level, "event": name, **fields}


def test_successful_job() -> None:
    """The line of a job: local time, event, task, full id, then the story, then other fields."""
    told = event(
        "job.succeeded",
        queue="default",
        task="resize",
        job_id=JOB,
        attempt=1,
        consumer=2,
        duration_ms=12.4321,
        size="1 GB",
    )
    assert render_console(told) == (
        f'10:01:07.123   job.succeeded     resize        {JOB}  attempt 1  consumer 2  12.4 ms  size="1 GB"'
    )


def test_failed_job_with_traceback() -> None:
    """A failure has a mark, its error in the line, and the traceback beneath."""
    told = event(
        "job.failed",
        "error",
        queue="images",
        task="resize",
        job_id=JOB,
        attempt=3,
        error="ValueError: no",
        traceback='Traceback:\n  File "a.py"\n\tx',
    )
    assert render_console(told).splitlines() == [
        f"10:01:07.123 E job.failed        resize        {JOB}  queue images  attempt 3  ValueError: no",
        "             | Traceback:",
        '             |   File "a.py"',
        "             |     x",
    ]


def test_crashed_consumer() -> None:
    """Signals have names."""
    told = event("consumer.crashed", "error", consumer=2, pid=77, exit_code=-9, signal=9)
    assert render_console(told) == (
        "10:01:07.123 E consumer.crashed  consumer 2  pid 77  exit code -9  signal 9 (SIGKILL)"
    )


def test_killed_consumer_with_its_jobs_and_last_words() -> None:
    """Each job's id on a line of its own, and the words as they were written."""
    told = event("consumer.killed", "warning", consumer=2, pid=77, job_ids=["0a", "0b"], output="one\n  two")
    assert render_console(told).splitlines()[1:] == [
        "             | job 0a",
        "             | job 0b",
        "             | one",
        "             |   two",
    ]


def test_summary() -> None:
    """A summary reads as counts and times."""
    told = event("job.summary", task="resize", succeeded=480, duration_mean_ms=0.5, duration_max_ms=1500.0)
    assert render_console(told) == (
        "10:01:07.123   job.summary       resize        succeeded 480  mean 0.50 ms  max 1.50 s"
    )


def test_user_output_stands_behind_a_bar() -> None:
    """What a job prints stands out, and its further lines stand beneath a bar too."""
    told = event("job.log", task="resize", job_id=JOB, attempt=1, consumer=2, message="one\ntwo\x1b[31m")
    assert render_console(told).splitlines() == [
        f"10:01:07.123   job.log           resize        {JOB}  | one",
        "             | two\\x1b[31m",
    ]


def test_event_without_a_story() -> None:
    """Padding is not left at the end of a line."""
    assert render_console(event("fleet.stopped")) == "10:01:07.123   fleet.stopped"


def test_date_on_request() -> None:
    """For logs of several days the date can be shown."""
    assert render_console(event("fleet.stopped"), show_date=True).startswith("2026-05-09 10:01:07.123 ")


def test_what_does_not_fit_goes_to_further_lines() -> None:
    """On a narrow terminal phrases move to further lines, whole, and nothing is lost."""
    told = event("job.failed", "error", task="resize", job_id=JOB, attempt=1, a="x" * 30, b="y" * 30)
    lines = render_console(told, width=90).splitlines()
    assert lines[0].endswith(f"{JOB}  attempt 1")
    assert all(line.startswith("             | ") for line in lines[1:])
    assert all(len(line) <= 90 for line in lines)
    assert "b=" + "y" * 30 in lines[-1]


def test_colours_change_nothing_but_the_colour() -> None:
    """Without its colours a coloured line is the plain line, and a job's id stays in one piece."""
    told = event("job.log", task="resize", job_id=JOB, message="one\ntwo", error="x\ny")
    coloured = render_console(told, colour=True)
    assert ANSI.sub("", coloured) == render_console(told)
    assert JOB in coloured
    assert coloured != render_console(told)


HOSTILE = ["a\nb", "a\r\nb", "\x1b[2J", "\x9b31m", "\u202eabc", "\u2028", "\x07", "\ud800"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_escaped(hostile: str) -> None:
    """No field can start a line or send a terminal a command."""
    for name in ("event", "level", "task", "job_id", "queue", "consumer", "timestamp", "signal", "other"):
        text = render_console({**event("job.failed"), name: hostile})
        assert "\n" not in text
        assert text.isprintable()
    assert render_console({**event("job.failed"), hostile: 1}).isprintable()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    ["timestamp", "level", "event", *FIELDS, "traceback", "message", "stream", "succeeded", "duration_max_ms"]
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names | st.text(), values | st.sampled_from(["job.log", "job.summary"]), max_size=8),
    st.sampled_from([None, 1, 40, 120]),
)
def test_any_event_can_be_shown(told: dict[str, Any], width: int | None) -> None:
    """Whatever stands in the file is shown, each line printable, all but the first beneath a bar."""
    first, *others = render_console(told, width=width).split("\n")
    assert all(line.isprintable() for line in (first, *others))
    assert all(line.startswith("             | ") for line in others)
    assert ANSI.sub("", render_console(told, colour=True, width=width)) == "\n".join([first, *others])


@given(st.text())
def test_escape_keeps_what_is_printable(text: str) -> None:
    """Printable text is not changed, other text becomes printable."""
    assert escape(text).isprintable()
    if text.isprintable():
        assert escape(text) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0.00 ms"), (0.254, "0.25 ms"), (12.44, "12.4 ms"), (999.96, "1.00 s"), (3210, "3.21 s")]
    + [(59_996, "1m 00s"), (125_000, "2m 05s"), (3_599_600, "1h 00m"), (3_720_000, "1h 02m")],
)
def test_durations(milliseconds: float, text: str) -> None:
    """Durations have the unit that fits them."""
    assert duration_text(milliseconds) == text


def test_when_to_colour() -> None:
    """NO_COLOR wins over FORCE_COLOR, and that over the kind of terminal."""
    assert wants_colour(True, {"TERM": "xterm"})
    assert not wants_colour(True, {"TERM": "dumb"})
    assert not wants_colour(False, {})
    assert wants_colour(False, {"FORCE_COLOR": "1"})
    assert not wants_colour(True, {"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert wants_colour(True, {"NO_COLOR": ""}), "an empty NO_COLOR does not count (no-color.org)"
