"""`taskq errors`: which tasks fail, how often, since when, and of what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import queue_of, seconds_of, tell, warn_of_name
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import Column, table, width_of_terminal
from taskq.client.app import TaskQ
from taskq.client.failures import group_failed_jobs
from taskq.model.info.failures import AGAIN_EVENTS, FailureGroup, FailureGroups, Failures
from taskq.model.info.words import count_of, distance_text
from taskq.system.directory import Directory
from taskq.telemetry.reader import Filter, ago, read
from taskq.telemetry.record import Event
from taskq.telemetry.words import escape

#: Failed jobs that are counted, of those that were enqueued last: they take some seconds.
MOST_JOBS = 30_000
#: How far back the log is read, unless --since says it.
_LOG_S = 86_400.0
_MOST_MESSAGE_CHARS = 200


def errors(
    app: FleetArgument = None,
    *,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Only failures of this task.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Only failures in this queue.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only failures of the last 10m, 2h, 7d ...")] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", metavar="", help="Show the newest traceback of each kind of failure.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which tasks fail, how often, since when, and of what.

    Failures of one task, with one type of error, at one place in your code, are one
    line. It counts the failed jobs that are kept (failed), and in the log attempts
    that were followed by another (again), by default of the last day.

    $ taskq errors app.py:q --since 1h
    $ taskq errors --task resize --traceback
    """
    asked = queue_of(app)
    directory = asked.directory
    for name, value in (("task", task), ("queue", queue)):
        if value is not None:
            warn_of_name(directory, name, value)
    found = _failures(asked, task, queue, None if since is None else seconds_of(since, "--since"))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    console = console_of()
    for line in _picture(found, width_of_terminal(), time.time(), traceback or len(found.groups) == 1):
        console.print(line, soft_wrap=True)
    if found.has_more:
        tell(f"only the newest {count_of(found.failed, 'failed job')} are counted: give --task, or purge old ones")


def _failures(asked: TaskQ, task: str | None, queue: str | None, since_s: float | None) -> Failures:
    now = time.time()
    groups = FailureGroups(now, None if since_s is None else now - since_s)
    client = asked.client
    has_more = client.run(group_failed_jobs(client.queue, groups, task, queue, MOST_JOBS))
    log_s = _LOG_S if since_s is None else since_s
    for event in _attempts(asked.directory, task, log_s):
        if queue in (None, event.get("queue")):
            groups.add_event(event)
    return Failures(groups.all(), groups.failed, groups.again, has_more, now - log_s)


def _attempts(directory: Directory, task: str | None, since_s: float) -> Iterator[Event]:
    """The attempts in the log that were followed by another."""
    for name in AGAIN_EVENTS:
        for event in read(directory.path, Filter(task, None, name, None, ago(since_s))):
            if event.get("runs_again") is not False:
                yield event


def _picture(found: Failures, width: int | None, now: float, has_traceback: bool) -> Iterator[Text]:
    if not found.groups:
        yield Text("no failures")
        return
    columns = (
        Column("failed", is_right=True),
        Column("again", is_right=True),
        Column("10 min", "10m", is_right=True),
        Column("hour", is_right=True),
        Column("day", is_right=True),
        Column("last", is_name=True),
        Column("task", is_name=True),
        Column("error, place and newest job", is_story=True),
    )
    rows = [
        (
            *map("{:,}".format, _counts(group)),
            distance_text(group.last_at - now),
            group.task,
            _story(group),
        )
        for group in found.groups
    ]
    lines = styled(table(columns, rows, width))
    yield from lines
    if has_traceback:
        for group in found.groups:
            yield from _newest(group, now)
    yield Text()
    since = datetime.fromtimestamp(found.log_since).isoformat(" ", "seconds")
    told = f"failed: {count_of(found.failed, 'job')} kept; again: {count_of(found.again, 'attempt')} in the log"
    yield Text(f"{told}\nthe log was read from {since} on", style="dim")


def _counts(group: FailureGroup) -> tuple[int, int, int, int, int]:
    return group.failed, group.again, group.last_10_minutes, group.last_hour, group.last_day


def _story(group: FailureGroup) -> str:
    message = group.message.partition("\n")[0].strip()[:_MOST_MESSAGE_CHARS]
    said = f"{group.type}: {message}" if message else group.type
    path, _, rest = group.place.rpartition("/")
    place = f", at {rest or path}" if group.place else ""
    return f"{said}{place}; {group.jobs[0]}" if group.jobs else f"{said}{place}"


def _newest(group: FailureGroup, now: float) -> Iterator[Text]:
    """The newest traceback of a group, and when it began."""
    yield Text()
    first, last = distance_text(group.first_at - now), distance_text(group.last_at - now)
    yield Text(escape(f"{group.task}: {group.type}, first {first}, last {last}"), style="bold")
    for line in group.traceback.splitlines():
        yield Text(f"| {escape(line)}")
    for job_id in group.jobs:
        yield Text(f"  taskq job {job_id}", style="dim")
