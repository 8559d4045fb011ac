"""An event as text for people: the broker's console and ``taskq logs`` look the same. Pure.

    12:01:07.101   fleet.started     pid 4711  consumers=2
    12:01:07.123   job.started       resize        0197c8a1f2...  attempt 1  consumer 2
    12:01:07.130   job.log           resize        0197c8a1f2...  | reading cat.jpg
    12:01:07.139   job.succeeded     resize        0197c8a1f2...  attempt 1  consumer 2  15.8 ms
    12:01:09.004 E job.failed        resize        0197c8a1f3...  attempt 3  consumer 1  ValueError: no file
                 | Traceback (most recent call last):
                 |   File "app.py", line 12, in resize

A line starts with the local time, a letter if the level is not info (D, W, E, C) and the event, so that the eye finds
them in a column. The job's id is shown in full and in one piece, coloured or not: a double click selects it, and `grep`
finds all lines of the job by it.

What comes from users cannot forge a line or send escape codes: whatever is not printable is escaped, and further lines
of a text come behind a bar, never in the first column.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zlib import crc32

from taskq.telemetry.words import duration_text, escape

_TIME_WIDTH = 12
_EVENT_WIDTH = 16
_TASK_WIDTH = 12
_NO_TIME = "--:--:--.---"
_INDENT = " " * (_TIME_WIDTH + 1) + "| "

_RESET = "\x1b[0m"
_DIM, _BOLD, _RED, _GREEN, _YELLOW, _CYAN = "2", "1", "31", "32", "33", "36"
_JOB_COLOURS = ("36", "35", "34", "96", "95", "94")  # not those that say how a job ended

_MARKS = {"debug": "D", "info": " ", "warning": "W", "error": "E", "critical": "C"}
_LEVEL_STYLES = {"debug": _DIM, "warning": _YELLOW, "error": _RED, "critical": "1;31"}
_EVENT_STYLES = {
    "job.succeeded": _GREEN,
    "job.summary": _GREEN,
    "job.started": _CYAN,
    "job.enqueued": _DIM,
    "job.log": "",
    "job.retrying": _YELLOW,
    "job.cancelled": _YELLOW,
    "jobs.purged": _YELLOW,
    "queue.paused": _YELLOW,
    "job.expired": _YELLOW,
    "job.failed": _RED,
    "job.crashed": _RED,
    "job.timed_out": _RED,
    "consumer.crashed": _RED,
    "consumer.killed": _YELLOW,
    "job.interrupted": _YELLOW,
}
_HEAD = ("timestamp", "level", "event", "task", "job_id")
_BLOCKS = ("traceback", "output")
_SUMMARY = ("enqueued", "started", "succeeded")
_SUMMARY_TIMES = ("mean", "max", "total")

_Segment = tuple[str, str]  # a text and its SGR code, or ""


def render_console(
    event: Mapping[str, Any], colour: bool = False, width: int | None = None, show_date: bool = False
) -> str:
    """One event as a line, or as several if it has a traceback or a text of several lines. There is no newline at the
    end.

    Args:
        event: fields of the event; unknown, missing and odd fields do no harm.
        colour: whether to use ANSI colours.
        width: columns of the terminal; what does not fit goes to a second line.
        show_date: whether to show the local date before the time.
    """
    rest = dict(event)
    head = _head(rest, show_date)
    if event.get("event") == "job.log":
        story, blocks = _user_output(rest)
    else:
        story, blocks = _story(rest)
        story += _others(rest)
    lines = _layout(head, story, width)
    text = "\n".join(_paint(line, colour) for line in lines)
    bar = _paint([(_INDENT, _job_style(event) or _DIM)], colour)
    return "".join([text, *("\n" + bar + line for block in blocks for line in _block_lines(block))])


def _head(rest: dict[str, Any], show_date: bool) -> list[_Segment]:
    """Time, level and event, and the task and id if the event is about a job. Takes these fields out of `rest`."""
    timestamp, level, name, task, job_id = (rest.pop(field, None) for field in _HEAD)
    level = level if isinstance(level, str) else "info"
    name = _text(name) if name is not None else "?"
    event_style = _EVENT_STYLES.get(name, _BOLD if name.startswith("fleet.") else "")
    segments = [
        (_clock_text(timestamp, show_date) + " ", _DIM),
        (_MARKS.get(level, "?") + " ", _LEVEL_STYLES.get(level, "")),
        (f"{name:<{_EVENT_WIDTH}}", event_style or _LEVEL_STYLES.get(level, "")),
    ]
    if task is not None or job_id is not None:
        segments.append((f"  {_text(task) if task is not None else '':<{_TASK_WIDTH}}", _BOLD))
    if job_id is not None:
        segments += [("  ", ""), (_text(job_id), _job_style({"job_id": job_id}))]
    return segments


def _story(rest: dict[str, Any]) -> tuple[list[_Segment], list[str]]:
    """The fields of the contract in words. Takes them out of `rest`.

    Returns:
        Phrases for the line, and texts to show below it.
    """
    phrases: list[_Segment] = []
    blocks: list[str] = []
    queue = rest.pop("queue", None)
    if queue is not None and (queue != "default" or "by" in rest):
        phrases.append((f"queue {_text(queue)}", _DIM))
    for name in ("attempt", "consumer", "pid"):
        if name in rest:
            value = rest.pop(name)
            if (
                name != "pid" or "duration_ms" not in rest
            ):  # if there is a consumer, it only makes the line of a success long
                phrases.append((f"{name} {_text(value)}", _DIM))
    if "duration_ms" in rest:
        phrases.append((_duration_or_text(rest.pop("duration_ms")), ""))
    if "exit_code" in rest:
        phrases.append((f"exit code {_text(rest.pop('exit_code'))}", _YELLOW))
    if "signal" in rest:
        phrases.append((f"signal {_signal_text(rest.pop('signal'))}", _YELLOW))
    phrases += _summary(rest)
    if "error" in rest:
        first, _, more = _text_raw(rest.pop("error")).partition("\n")
        phrases.append((escape(first), _RED))
        if more:
            blocks.append(more)
    return phrases, blocks + _blocks(rest)


def _summary(rest: dict[str, Any]) -> list[_Segment]:
    """The counts and times of ``job.summary``."""
    phrases = [(f"{name} {_text(rest.pop(name))}", "") for name in _SUMMARY if name in rest]
    for name in _SUMMARY_TIMES:
        value = rest.pop(f"duration_{name}_ms", None)
        if value is not None:
            phrases.append((f"{name} {_duration_or_text(value)}", _DIM))
    return phrases


def _user_output(rest: dict[str, Any]) -> tuple[list[_Segment], list[str]]:
    """What a job printed: its text behind a bar, without the fields that the job's other lines have."""
    style = _job_style(rest)
    for name in ("queue", "attempt", "consumer", "pid", "stream"):
        rest.pop(name, None)
    first, _, more = _text_raw(rest.pop("message", "")).partition("\n")
    blocks = [more] if more else []
    blocks += _blocks(rest)
    text = "| " + escape(first.expandtabs(4))
    return [(text, style), *_others(rest)], blocks


def _blocks(rest: dict[str, Any]) -> list[str]:
    """The jobs of an event about several, and texts of several lines. Takes them out of `rest`."""
    job_ids = rest.pop("job_ids", ())
    jobs = [f"job {_text_raw(job_id)}" for job_id in job_ids] if isinstance(job_ids, list) else []
    return jobs + [_text_raw(rest.pop(name)) for name in _BLOCKS if name in rest]


def _others(rest: Mapping[str, Any]) -> list[_Segment]:
    """Fields outside the contract, as key=value."""
    return [(f"{escape(str(name))}={_quoted(value)}", "") for name, value in rest.items()]


def _layout(head: list[_Segment], story: list[_Segment], width: int | None) -> list[list[_Segment]]:
    """Put as many phrases as fit behind the head, at least one, and the others below."""
    line = list(head)
    lines = [line]
    used = sum(len(text) for text, _ in head)
    for phrase in story:
        needed = 2 + len(phrase[0])
        if width is not None and used + needed > width and used > len(_INDENT) and line[-1] is not head[-1]:
            line = [(_INDENT, _DIM), phrase]
            lines.append(line)
            used = len(_INDENT) + len(phrase[0])
        else:
            line += [("  ", ""), phrase]
            used += needed
    if len(lines) == 1:
        text, style = line[-1]
        line[-1] = (text.rstrip(), style)  # an event without phrases is padded
    return lines


def _paint(segments: list[_Segment], colour: bool) -> str:
    if not colour:
        return "".join(text for text, _ in segments)
    return "".join(f"\x1b[{style}m{text}{_RESET}" if style else text for text, style in segments)


def _block_lines(block: str) -> list[str]:
    """The lines of a longer text, each made harmless."""
    return [escape(line.rstrip("\r").expandtabs(4)) for line in block.rstrip("\n").split("\n")]


def _job_style(event: Mapping[str, Any]) -> str:
    """The colour of a job: all its lines have the same, and those of other jobs mostly another."""
    job_id = event.get("job_id")
    if not isinstance(job_id, str):
        return ""
    return _JOB_COLOURS[crc32(job_id.encode("utf-8", "replace")) % len(_JOB_COLOURS)]


def _clock_text(timestamp: object, show_date: bool) -> str:
    """The local time of an ISO 8601 timestamp; dashes if it is not one."""
    try:
        local = datetime.fromisoformat(timestamp).astimezone()  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError, OSError):
        return _NO_TIME
    text = local.isoformat(" ", "milliseconds")
    return text[:23] if show_date else text[11:23]


def _duration_or_text(value: object) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300:
        return duration_text(float(value))
    return _text(value)


def _signal_text(value: object) -> str:
    """``9 (SIGKILL)``; a name or an unknown number as it is."""
    try:
        return f"{value} ({signal.Signals(value).name})" if isinstance(value, int) else _text(value)
    except ValueError:
        return _text(value)


def _quoted(value: object) -> str:
    """A value for key=value, in quotes if it could be taken for more than one."""
    text = _text(value)
    if isinstance(value, str) and (not text or any(c in text for c in ' ="')):
        return '"' + text.replace('"', '\\"') + '"'
    return text


def _text(value: object) -> str:
    return escape(_text_raw(value))


def _text_raw(value: object) -> str:
    """The text of a JSON value, not escaped."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        return f"<{type(value).__name__}>"
