"""`taskq logs`: the log of a fleet."""

from __future__ import annotations

import json
import os
import re
import select
import sys
from collections.abc import Iterator
from datetime import date
from functools import partial
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import closed_pipe, find_directory, moment_of, tell, warn_of_name
from taskq.model.errors import ConfigError, DirectoryError
from taskq.model.settings import LOG_LEVELS
from taskq.telemetry.files import log_path
from taskq.telemetry.reader import Filter, follow, read
from taskq.telemetry.record import Event
from taskq.telemetry.render import render_console
from taskq.telemetry.words import wants_colour

_FOLLOW_LAST = 10


def logs(
    app: FleetArgument = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", metavar="", help="Keep running, and show new lines as they are written.")
    ] = False,
    last: Annotated[
        int | None,
        typer.Option("-n", min=0, metavar="N", help="Only the last N lines.", show_default="all; with -f 10"),
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Only lines about this task.")] = None,
    job: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only lines about this job; the beginning or end of its id is enough."),
    ] = None,
    event: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this event; job.* for all events of jobs.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(LOG_LEVELS),
            help="Only lines of this level or above.",
            autocompletion=lambda: list(LOG_LEVELS),
        ),
    ] = None,
    consumer: Annotated[int | None, typer.Option(metavar="NUMBER", help="Only lines about this consumer.")] = None,
    grep: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only lines in which this regular expression is found.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only lines since 10m, 2h or 7d ago, or since 03:10.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only lines until 10m, 2h or 7d ago, or until 03:20.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the log, even of a fleet that no longer runs.

    $ taskq logs -f
    $ taskq logs app.py:q --level warning --since 1h
    $ taskq logs --consumer 2 --since 03:10 --until 03:20
    $ taskq logs --json | jq 'select(.event == "job.failed")'
    """
    if level is not None and level not in LOG_LEVELS:
        raise ConfigError(f"--level {level!r}: use one of {', '.join(LOG_LEVELS)}")
    wanted = Filter(
        task, job, event, level, moment_of(since, "--since"), moment_of(until, "--until"), consumer, _pattern(grep)
    )
    directory = find_directory(app)
    path = directory.path
    if not is_followed and not log_path(path).exists():
        if not path.is_dir():
            raise DirectoryError(f"there is no directory {path}: has a fleet run there?")
        tell(f"there is no log in {path} yet: no fleet has run there")
        return
    for field, name in (("task", task), ("event", event)):
        if name is not None:
            warn_of_name(directory, field, name)
    if is_followed:
        events = follow(path, wanted, _FOLLOW_LAST if last is None else last, wait=_pause)
    else:
        events = read(path, wanted, last)
    try:
        printed = _print_events(events, as_json, is_followed)
    except BrokenPipeError:
        closed_pipe()
    if not printed and job is not None and last != 0:
        tell(f"no line in the log of {path} is about a job whose id begins or ends with {job}")


def _pattern(grep: str | None) -> re.Pattern[str] | None:
    """The regular expression of --grep."""
    try:
        return None if grep is None else re.compile(grep)
    except re.error as error:
        raise ConfigError(f"--grep {grep!r} is not a regular expression: {error}") from None


def _print_events(events: Iterator[Event], as_json: bool, is_followed: bool) -> int:
    """Prints events, and returns how many there were."""
    printed = 0
    is_terminal = sys.stdout.isatty()
    colour = wants_colour(is_terminal, os.environ)
    render = partial(render_console, colour=colour, show_date=not is_terminal)
    day = date.today().isoformat()
    for printed, event in enumerate(events, 1):  # noqa: B007
        if as_json:
            print(json.dumps(event), flush=is_followed)
            continue
        if is_terminal and (today := _local_day(event, day)) != day:
            day = today
            print(f"--- {day}")
        width = os.get_terminal_size(1).columns or None if is_terminal else None
        print(render(event, width=width), flush=is_followed)
    sys.stdout.flush()
    return printed


def _local_day(event: Event, default: str) -> str:
    """The local date of an event; for people, the lines themselves show only the time."""
    first = render_console({"timestamp": event.get("timestamp"), "event": ""}, show_date=True)[:10]
    return first if first[:1].isdigit() else default


def _pause(seconds: float) -> bool:
    """Waits until there is more to write. Returns whether the reader of our output has gone, which shows without
    writing."""
    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(seconds * 1000))
