"""`taskq job`: the whole life of a job."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any

import typer

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import named_application, queue_of, tell_if_stopped
from taskq.cli.ids import whole_id
from taskq.cli.jobs import IdArgument
from taskq.cli.life import rows_of
from taskq.cli.positions import id_first
from taskq.cli.tables import width_of_terminal
from taskq.client.app import TaskQ
from taskq.model.errors import JobNotFound
from taskq.model.info.job import JobInfo
from taskq.model.info.why import Reason, WhyInfo
from taskq.telemetry.reader import Filter, read
from taskq.telemetry.record import Event
from taskq.telemetry.render import render_console

#: The newest lines of its log that are shown.
_MAX_LINES = 20
_INDENT = 10
_LEAST_WIDTH = 20
_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
#: What a line of its log need not say: the job is known.
_KNOWN = ("queue", "task", "job_id", "meta", "traceback")


@dataclass(frozen=True, slots=True)
class PrintedJob(JobInfo):
    """All that is known of a job.

    Attributes:
        why: why it does not run, the nearest obstacle first; empty if it runs or has ended.
        log: the newest lines of the log about it, at most 20, each as `taskq logs --json` prints it.
    """

    why: list[Reason] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)


def job(
    id: IdArgument,
    app: FleetArgument = None,
    as_json: JsonOption = False,
    hide_args: Annotated[bool, typer.Option("--hide-args", metavar="", help="Do not show its arguments.")] = False,
) -> None:
    """Show everything that is known about a job.

    Each attempt, with where it ran and how it ended; why it does not run; and the
    last lines of its log. Its arguments are shown if the application is named,
    which may hide some of them, and until the job has succeeded or was cancelled.

    $ taskq job 019c8a1f2e0b7a30a5f1d2c3b4a59687
    $ taskq job app.py:q 019c8a1f
    """
    given, app = id_first(id, app)
    application = queue_of(app)
    job_id = whole_id(application, given)
    owner = None if hide_args else named_application(app)
    application.redaction = None if owner is None else owner.redaction
    info = application.job(job_id).info(arguments=owner is not None)
    tell_if_stopped(application)
    why, log = _why(application, info), _log(application, info)
    if as_json:
        reasons = [asdict(reason) for reason in why.reasons if reason.kind != "running"]
        print(json.dumps({**asdict(info), "why": reasons, "log": log}, default=repr))
        return
    width = width_of_terminal()
    for name, text in [*rows_of(info, why), *_told(log)]:
        for line in _wrapped(f"{name:<{_INDENT}}{text}", width):
            print(line)


def _why(application: TaskQ, info: JobInfo) -> WhyInfo:
    """Why it does not run, or where it does; nothing if it has ended."""
    if info.state in _ENDED:
        return WhyInfo(info.id, info.task, info.queue, info.state, [])
    try:
        found = application.job(info.id).why()
    except JobNotFound:  # it was removed just now
        return WhyInfo(info.id, info.task, info.queue, info.state, [])
    return replace(found, reasons=[reason for reason in found.reasons if reason.kind != "ended"])


def _log(application: TaskQ, info: JobInfo) -> list[Event]:
    """The newest lines of the log about it. What is older than the job is not read."""
    since = datetime.fromtimestamp(info.enqueued_at - 1.0).astimezone()
    return list(read(application.directory.path, Filter(job_id=info.id, since=since), _MAX_LINES))


def _told(log: list[Event]) -> Iterator[tuple[str, str]]:
    """Lines of the log, as short as they can be below a job."""
    texts = [render_console({name: own for name, own in event.items() if name not in _KNOWN}) for event in log]
    lines = [line for text in texts for line in text.splitlines()]
    return (("log" if number == 0 else "", line) for number, line in enumerate(lines))


def _wrapped(line: str, width: int | None) -> list[str]:
    if width is None or len(line) <= width:
        return [line.rstrip()]
    indent = " " * (_INDENT + 2)
    room = max(width, _LEAST_WIDTH + len(indent))
    return textwrap.wrap(line, room, subsequent_indent=indent, break_on_hyphens=False)
