"""`taskq tasks`: how many jobs of each task ended in which way, and how long they waited and ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import find_directory, tell
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import Cell, Column, table, width_of_terminal
from taskq.client.transport.blocking import Client
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.histogram import Histogram

_SHARES = (0.5, 0.95, 0.99)
_COLUMNS = (
    Column("task", is_name=True),
    Column("done", is_right=True),
    Column("failed", "fail", is_right=True),
    Column("again", is_right=True),
    *(Column(f"wait p{share * 100:g}", f"w{share * 100:g}", is_right=True) for share in _SHARES),
    *(Column(f"run p{share * 100:g}", f"r{share * 100:g}", is_right=True) for share in _SHARES),
)

#: Below which time, in microseconds, a unit is used, and how long the unit is.
_UNITS = ((1e3, 1.0, "us"), (1e6, 1e3, "ms"), (6e7, 1e6, "s"), (3.6e9, 6e7, "m"), (8.64e10, 3.6e9, "h"))


def tasks(app: FleetArgument = None, as_json: JsonOption = False) -> None:
    """Show how long the jobs of each task wait and run, and how they end.

    For the last hour, and in total: the jobs that are done and that failed, the
    attempts that were retried or crashed (again), and below which time half, 95 %
    and 99 % of the waits and runs were. The tasks with most jobs come first.

    $ taskq tasks app.py:q
    $ taskq tasks --json | jq '.[] | {task, p95: .last_hour.run_s.p95}'
    """
    client = Client(find_directory(app))
    found = client.counts()
    if as_json:
        print(json.dumps([counts.as_dict() for counts in found]))
        return
    console = console_of()
    if not found:
        console.print("no jobs yet", soft_wrap=True)
    else:
        for line in _picture(found, width_of_terminal()):
            console.print(line, soft_wrap=True)
    if client.is_stopped:
        tell(f"no fleet runs on {client.directory.path}: start one with `taskq worker`")


def _picture(found: Sequence[TaskCounts], width: int | None) -> list[Text]:
    recent = _table(found, lambda counts: counts.last_hour, width)
    total = _table(found, lambda counts: counts.total, width)
    return [
        Text("in the last hour", style="bold"),
        *(recent or [Text("nothing")]),
        Text(),
        Text("in total", style="bold"),
        *total,
    ]


def _table(found: Sequence[TaskCounts], part: Callable[[TaskCounts], Counts], width: int | None) -> list[Text]:
    used = [(each, part(each)) for each in found if _jobs(part(each)) or part(each).started]
    used.sort(key=lambda pair: (-_jobs(pair[1]), pair[0].task, pair[0].queue))
    has_queues = len({each.queue for each, _ in used}) > 1
    rows: list[tuple[Cell | str, ...]] = [
        (
            f"{each.task or '(others)'} ({each.queue})" if has_queues else each.task or "(others)",
            f"{counts.succeeded:,}",
            Cell(f"{counts.failed:,}", style="red" if counts.failed else "dim"),
            Cell(f"{counts.retried + counts.crashed:,}", style="" if counts.retried + counts.crashed else "dim"),
            *_times(counts.wait),
            *_times(counts.run),
        )
        for each, counts in used
    ]
    return styled(table(_COLUMNS, rows, width)) if rows else []


def _jobs(counts: Counts) -> int:
    return counts.succeeded + counts.failed + counts.cancelled + counts.expired


def _times(histogram: Histogram) -> list[str]:
    return [_brief(histogram.percentile_us(share)) for share in _SHARES]


def _brief(time_us: float | None) -> str:
    """A time in at most five characters: ``80us``, ``1.2ms``, ``340ms``, ``12s``, ``3m``, ``2h``, ``4d``."""
    if time_us is None:
        return "-"
    for limit, size, unit in _UNITS:
        if time_us < limit * 0.9995:
            value = time_us / size
            return f"{value:.1f}{unit}" if value < 9.95 and unit != "us" else f"{value:.0f}{unit}"
    return f"{time_us / 8.64e10:,.0f}d"
