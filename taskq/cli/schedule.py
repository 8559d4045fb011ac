"""`taskq schedule`: what a fleet enqueues by the clock."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from taskq.cli.arguments import JsonOption
from taskq.cli.common import queue_of, tell_if_stopped
from taskq.cli.pictures import console_of, styled
from taskq.cli.positions import name_first
from taskq.cli.tables import Cell, Column, table, width_of_terminal
from taskq.model.errors import ConfigError
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.words import distance_text, span_text

_ACTIONS = ("pause", "resume", "run", "remove")
_TITLES = ("schedule", "task", "when", "next", "last")
_MAX_WORDS = 3


@dataclass(frozen=True, slots=True)
class StartedJob:
    """A job that was made of a schedule.

    Attributes:
        job_id: the id of the job.
    """

    job_id: str


@dataclass(frozen=True, slots=True)
class RemovedSchedule:
    """A schedule that was removed.

    Attributes:
        removed: the name of the schedule.
    """

    removed: str


def schedule(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[pause|resume|run|remove NAME] [APP]",
            help="What to do with a schedule, and the application or its directory.",
            show_default=False,
            autocompletion=lambda: list(_ACTIONS),
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the schedules; pause or resume one, run it now, or remove it.

    A schedule that is declared in the code cannot be removed here: pause it.
    run prints the id of the job.

    $ taskq schedule app.py:q
    $ taskq schedule pause nightly app.py:q
    """
    action, name, app = _split(words or [])
    application = queue_of(app)
    schedules = application.schedules
    match action:
        case "pause":
            _print_one(schedules.pause(name), as_json)
        case "resume":
            _print_one(schedules.resume(name), as_json)
        case "run":
            job = schedules.run(name)
            print(json.dumps(asdict(StartedJob(job.id))) if as_json else job.id)
        case "remove":
            schedules.remove(name)
            print(json.dumps(asdict(RemovedSchedule(name))) if as_json else f"{name} is removed")
        case _:
            _print_all(list(schedules.list()), as_json)
    tell_if_stopped(application)


def _split(words: list[str]) -> tuple[str, str, str | None]:
    """The action, the name of a schedule, and APP, which may come anywhere."""
    action = next((word for word in words[:2] if word in _ACTIONS), None)
    if action is None:
        if len(words) > 1:
            raise ConfigError(f"{words[0]!r}: use one of {', '.join(_ACTIONS)}, with the name of a schedule")
        return "", "", words[0] if words else None
    first = words.index(action)
    others = words[:first] + words[first + 1 :]
    if not first < len(others) < _MAX_WORDS:
        raise ConfigError(f"which schedule? write: taskq schedule {action} NAME [APP]")
    if first:
        return action, others[1], others[0]
    return action, *name_first(others[0], others[1] if len(others) > 1 else None)


def _print_one(info: ScheduleInfo, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(info)))
    elif info.is_paused:
        print(f"{info.name} is paused")
    else:
        print(f"{info.name} fires next {_time(info.next_at)}")


def _print_all(infos: list[ScheduleInfo], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(info) for info in infos]))
        return
    if not infos:
        print("no schedules")
        return
    columns = [Column(title, is_name=title in ("schedule", "task", "when")) for title in _TITLES]
    rows = [
        (info.name, info.task, _when(info), _next(info), Cell(_time(info.last_at), _distance(info.last_at)))
        for info in infos
    ]
    console_of().print(Text("\n").join(styled(table(columns, rows, width_of_terminal(), gap=3))), soft_wrap=True)


def _when(info: ScheduleInfo) -> str:
    text = f"every {span_text(info.every)}" if info.every is not None else f"{info.cron} {info.timezone}"
    return text + (f" + up to {span_text(info.jitter)}" if info.jitter else "")


def _next(info: ScheduleInfo) -> Cell:
    if info.is_paused:
        return Cell("paused", style="yellow")
    return Cell(_time(info.next_at), _distance(info.next_at))


def _time(at: float | None) -> str:
    if at is None:
        return ""
    return f"{datetime.fromtimestamp(at).isoformat(' ', 'seconds')} ({_distance(at)})"


def _distance(at: float | None) -> str:
    return "" if at is None else distance_text(at - time.time())
