"""What pages make of numbers, times and ids. Everything is escaped, since most of it comes from jobs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from taskq.model.info.job import JobArguments
from taskq.model.info.words import time_text
from taskq.model.job import JobError, JobState

_MIB = 1_048_576
#: The id of a job, and a consumer by its number.
_NAMED = re.compile(r"\b(?P<job>[0-9a-f]{32})\b|\b[Cc]onsumer (?P<consumer>\d{1,4})\b")
#: Characters of an argument or a result that are shown.
MOST_SHOWN_CHARS = 4_000
#: Ids begin with their time, so their ends tell them apart.
_SHORT_ID = 8
_TONES = {
    JobState.SUCCEEDED: "good",
    JobState.FAILED: "bad",
    JobState.RUNNING: "busy",
    JobState.SCHEDULED: "later",
    JobState.WAITING: "later",
    JobState.CANCELLED: "off",
    JobState.EXPIRED: "off",
}


def number(value: float) -> str:
    """``12,345``."""
    return f"{value:,}"


def moment(at: float | None) -> Markup:
    """A moment, which the script shows as its distance from now.

    Args:
        at: seconds since 1970, or None.
    """
    return _time(at, "", "")


def since(at: float | None) -> Markup:
    """From which moment on something lasts, which the script shows as how long that is: ``for 5 s``.

    Args:
        at: seconds since 1970, or None.
    """
    return _time(at, " data-since", "since ")


def _time(at: float | None, attribute: str, before: str) -> Markup:
    if at is None:
        return Markup("")
    utc = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    local = datetime.fromtimestamp(at)
    day = "" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d} "
    tag = '<time datetime="{}"' + attribute + ">{}{}{}</time>"
    return Markup(tag).format(utc, before, day, f"{local:%H:%M:%S}")


def clock(at: float) -> str:
    """``03:10`` in the time zone of this machine, with the date if it is not of today."""
    local = datetime.fromtimestamp(at)
    return f"{local:%H:%M}" if local.date() == datetime.now().date() else f"{local:%Y-%m-%d %H:%M}"


def at(moment_at: float | None) -> Markup:
    """A moment that comes, as a time of the day and its distance from now."""
    return Markup("") if moment_at is None else Markup("{} ({})").format(clock(moment_at), moment(moment_at))


def exact(at: float | None) -> Markup:
    """A moment to the millisecond, in the time zone of this machine, with its distance from now."""
    if at is None:
        return Markup("")
    local = datetime.fromtimestamp(at).isoformat(" ", "milliseconds")
    return Markup('{} <span class="dim">({})</span>').format(local, moment(at))


def logged(timestamp: object) -> Markup:
    """The moment of an event of the log."""
    try:
        return moment(datetime.fromisoformat(str(timestamp)).timestamp())
    except ValueError:
        return Markup("")  # a line that somebody wrote by hand


def code(text: str) -> Markup:
    """A sentence in which commands stand between backticks."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(text.split("`"))
    )


def linked(text: str, link: Callable[..., str], *, is_brief: bool = False) -> Markup:
    """A sentence with commands, ids of jobs and numbers of consumers, which become links.

    Args:
        link: makes the URL of a path.
        is_brief: whether ids are shortened.
    """
    return _with_links(code(text), link, is_brief=is_brief)


def line(text: str, link: Callable[..., str]) -> Markup:
    """A line of the log, with links as in a sentence."""
    return _with_links(escape(text), link, is_brief=False)


def _with_links(escaped: Markup, link: Callable[..., str], *, is_brief: bool) -> Markup:
    def anchor(found: re.Match[str]) -> str:
        number, job_id = found["consumer"], found["job"]
        if number is not None:
            return f'<a href="{escape(link("/consumers", number))}">{found[0]}</a>'
        shown = short_id(job_id) if is_brief else job_id
        return f'<a class="id" href="{escape(link("/jobs", job_id))}" title="{job_id}">{shown}</a>'

    return Markup(_NAMED.sub(anchor, escaped))


def span(seconds: float | None) -> str:
    """How long something takes: ``80 µs``, ``1.2 s``, ``3m 05s``; empty if nobody knows."""
    return "" if seconds is None else time_text(seconds)


def megabytes(count: int | None) -> str:
    """``31 MB``."""
    return "" if count is None else f"{count / _MIB:,.0f} MB"


def percent(share: float) -> str:
    """``12 %``, and ``0.4 %`` below one."""
    return f"{share * 100:.1f} %" if 0 < share < 0.01 else f"{share * 100:.0f} %"


def short_id(job_id: str) -> str:
    """The end of an id."""
    return job_id[-_SHORT_ID:]


def tone(state: str) -> str:
    """The colour of a state: good, bad, busy, later, off or plain."""
    return _TONES.get(JobState(state), "plain")


def headline(error: JobError | None) -> str:
    """The type of an error, and the first line of its message."""
    if error is None:
        return ""
    first = next((line.strip() for line in error.message.splitlines() if line.strip()), "")
    return f"{error.type}: {first}" if first else error.type


def shown(value: Any) -> str:
    """A value as Python writes it; a long one is cut."""
    text = repr(value)
    left_out = len(text) - MOST_SHOWN_CHARS
    return text if left_out <= 0 else f"{text[:MOST_SHOWN_CHARS]} ... {left_out:,} characters left out"


def as_json(arguments: JobArguments) -> tuple[str, str] | None:
    """The arguments of a job as two JSON texts, to edit them: empty ones if its own are not shown; None if JSON cannot
    hold them."""
    if arguments.left_out is not None:
        return "[]", "{}"
    try:
        args = json.dumps(arguments.args, ensure_ascii=False)
        kwargs = json.dumps(arguments.kwargs, ensure_ascii=False)
    except (TypeError, ValueError):
        return None
    is_same = json.loads(args) == arguments.args and json.loads(kwargs) == arguments.kwargs
    return (args, kwargs) if is_same else None
