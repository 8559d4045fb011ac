"""`taskq status` and `taskq logs`: look at a fleet."""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from typing import Annotated

import typer
from rich.live import Live
from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import closed_pipe, find_directory, moment_of, queue_of, tell, warn_of_name
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import Cell, Column, table, width_of_terminal
from taskq.model.errors import ConfigError, DirectoryError
from taskq.model.info.status import ConsumerStatus, FleetStatus, JobTotals, MachineStatus, MissingConsumer, QueueStatus
from taskq.model.settings import LOG_LEVELS
from taskq.telemetry.files import log_path
from taskq.telemetry.reader import Filter, follow, read
from taskq.telemetry.record import Event
from taskq.telemetry.render import duration_text, escape, render_console, wants_colour

_WATCH_EVERY_S = 1.0
_FOLLOW_LAST = 10
_BETWEEN = "   "
_STATE_STYLES = {
    "running": "green",
    "idle": "dim",
    "starting": "cyan",
    "retiring": "yellow",
    "stopping": "yellow",
    "stopped": "yellow",
}

# -- status


def status(
    app: FleetArgument = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", metavar="", help="Update it every second.")] = False,
) -> None:
    """Show what the fleet is doing.

    $ taskq status app.py:q
    $ taskq status --json | jq .totals
    """
    client = queue_of(app).client
    console = console_of()
    if as_json or not (watch and console.is_terminal):
        while True:
            found = client.look()
            if as_json:
                tasks = [counts.as_dict() for counts in client.counts()]
                print(json.dumps({**asdict(found), "tasks": tasks}), flush=True)
            else:
                console.print(_picture(found, width_of_terminal()), soft_wrap=True)
            if not watch:
                return
            time.sleep(_WATCH_EVERY_S)
    with Live(_picture(client.look(), console.width), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_EVERY_S)
            live.update(_picture(client.look(), console.width), refresh=True)


def _picture(found: FleetStatus, width: int | None) -> Text:
    parts = [
        [_headline(found)],
        _machines(found.machines),
        _consumers(found.consumers, width),
        _queues(found.queues, found.paused, width),
        _totals(found.totals, width),
    ]
    return Text("\n\n").join(Text("\n").join(part) for part in parts if part)


def _headline(found: FleetStatus) -> Text:
    broker = found.broker
    line = Text()
    line.append(broker.state, style=f"bold {_STATE_STYLES[broker.state]}")
    if broker.pid is not None:
        line.append(f"  broker {broker.pid}, {_megabytes(broker.rss_bytes or 0)}, up {_span(broker.uptime_s or 0.0)}")
    line.append(f"  {broker.directory}", style="dim")
    if broker.longest_turn_s is not None:
        recently_s = broker.longest_turn_last_minute_s or 0.0
        told = f"{broker.longest_turn_s * 1e3:,.1f} ms, in the last minute {recently_s * 1e3:,.1f} ms"
        line.append(f"\nlongest turn of the broker: {told}", style="dim")
        line.append(f"; CPU time at the most {(broker.longest_turn_cpu_s or 0.0) * 1e3:,.1f} ms", style="dim")
    line.append_text(_reload(found))
    line.append_text(_not_started(found.not_started))
    line.append_text(_spooled(found.spooled_files))
    return line


def _machines(machines: Sequence[MachineStatus]) -> list[Text]:
    """The fleets that share a database, one a line, if there are several."""
    if len(machines) < 2:
        return []
    return [
        Text.assemble(
            f"{machine.host}, broker {machine.pid}: ",
            (machine.state, _STATE_STYLES[machine.state]),
            f", {machine.running} running in {machine.consumers} consumers",
            (f"  heard of {machine.seen_s:.0f} s ago", "dim"),
        )
        for machine in machines
    ]


def _reload(found: FleetStatus) -> Text:
    """What to say of the code that the fleet runs: nothing if all of it is new."""
    old = sum(1 for consumer in found.consumers if consumer.has_old_code)
    consumers = f"old code in {old} of {len(found.consumers)} consumers"
    if found.reload.state == "failed":
        first = str(found.reload.error).partition("\n")[0]
        return Text(f"\n{escape(f'{consumers}: the last reload failed ({first})')}", style="red")
    return Text(f"\nreloading: {consumers}", style="yellow") if found.reload.state == "running" else Text()


def _spooled(files: int) -> Text:
    """The jobs that were enqueued while the fleet did not answer, or for which the disk has no room."""
    if not files:
        return Text()
    return Text(f"\n{files:,} {'file' if files == 1 else 'files'} with jobs still in the spool", style="yellow")


def _not_started(consumers: Sequence[MissingConsumer]) -> Text:
    """The consumers that do not come up, with the reason, which is mostly the same for all."""
    told = Text()
    numbers_of: dict[str, list[str]] = {}
    for consumer in consumers:
        numbers_of.setdefault(consumer.error.partition("\n")[0], []).append(str(consumer.number))
    for error, numbers in numbers_of.items():
        one_or_more = "consumer {} does" if len(numbers) == 1 else "consumers {} do"
        told.append(f"\n{one_or_more.format(', '.join(numbers))} not start: {escape(error)}", style="red")
    return told


def _consumers(consumers: Sequence[ConsumerStatus], width: int | None) -> list[Text]:
    if not consumers:
        return []
    columns = (
        Column("consumer", "no.", is_right=True),
        Column("pid", is_right=True),
        Column("state"),
        Column("task", is_name=True),
        Column("progress", is_name=True),
        Column("for", is_right=True),
        Column("jobs", is_right=True),
        Column("memory", is_right=True),
    )
    rows = [
        (
            str(each.number),
            str(each.pid),
            Cell(_activity(each), style=_STATE_STYLES.get(each.state, "")),
            each.task or "",
            each.progress.describe() if each.progress else "",
            _span(each.running_s) if each.running_s is not None else "",
            f"{each.jobs_done:,}",
            _megabytes(each.rss_bytes),
        )
        for each in consumers
    ]
    return styled(table(columns, rows, width, gap=3))


def _activity(consumer: ConsumerStatus) -> str:
    """The state of a consumer, and how many of its slots are taken. The task beside it is that of the oldest job."""
    return consumer.state if consumer.slots == 1 else f"{consumer.state} {consumer.running} of {consumer.slots}"


def _queues(queues: Mapping[str, QueueStatus], paused: Sequence[str], width: int | None) -> list[Text]:
    if not queues and not paused:
        return [Text("no pending or running jobs")]
    states = ("queued", "running", "scheduled", "waiting")
    # a script that reads a pipe counts the columns
    some = [state for state in states if width is None or any(getattr(counts, state) for counts in queues.values())]
    columns = [Column("queue", is_name=True), *(Column(state, is_right=True) for state in some)]
    columns += [Column("")] if paused else []
    rows: list[tuple[Cell | str, ...]] = [
        (
            name,
            *(f"{getattr(queues.get(name, QueueStatus()), state):,}" for state in some),
            *([Cell("paused" if name in paused else "", style="yellow")] if paused else []),
        )
        for name in sorted({*queues, *paused})
    ]
    return styled(table(columns, rows, width, gap=3))


def _totals(totals: JobTotals, width: int | None) -> list[Text]:
    """The totals since the queue exists, in as many lines as needed."""
    lines = [Text()]
    for part in _counts(totals):
        if width is not None and lines[-1].cell_len and lines[-1].cell_len + len(_BETWEEN) + part.cell_len > width:
            lines.append(Text())
        lines[-1] = Text(_BETWEEN).join([lines[-1], part]) if lines[-1].cell_len else part
    return lines


def totals_line(totals: JobTotals) -> Text:
    """The totals since the queue exists, in one line."""
    return Text(_BETWEEN).join(_counts(totals))


def _counts(totals: JobTotals) -> list[Text]:
    parts = []
    for name in ("enqueued", "succeeded", "failed", "retried", "crashed", "cancelled"):
        count, is_bad = getattr(totals, name), name in ("failed", "crashed")
        parts.append(Text(f"{count:,} {name}", style="dim" if not count else "red" if is_bad else ""))
    return parts


def _span(seconds: float) -> str:
    if seconds >= 60:
        return duration_text(seconds * 1000)
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _megabytes(count: int) -> str:
    return f"{count / 1_048_576:,.0f} MB"


# -- logs


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
