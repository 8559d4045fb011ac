"""`taskq tasks`: how many jobs of each task ended in which way, and how long they waited and ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from rich.text import Text

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import queue_of, tell_if_stopped
from taskq.cli.pictures import console_of, styled
from taskq.cli.tables import Cell, Column, table, width_of_terminal
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.histogram import Histogram
from taskq.model.info.words import brief_count, brief_time

_SHARES = (0.5, 0.95, 0.99)
_COLUMNS = (
    Column("task", is_name=True),
    Column("done", is_right=True),
    Column("failed", "fail", is_right=True),
    Column("again", is_right=True),
    *(Column(f"wait p{share * 100:g}", f"w{share * 100:g}", is_right=True) for share in _SHARES),
    *(Column(f"run p{share * 100:g}", f"r{share * 100:g}", is_right=True) for share in _SHARES),
)


def tasks(app: FleetArgument = None, as_json: JsonOption = False) -> None:
    """Show how long the jobs of each task wait and run, and how they end.

    For the last hour, and in total: the jobs that are done and that failed, the
    attempts that were followed by another (again), and below which time half, 95 %
    and 99 % of the waits and runs were. The tasks with most jobs come first.

    $ taskq tasks app.py:q
    $ taskq tasks --json | jq '.[] | {task, p95: .last_hour.run_s.p95}'
    """
    queue = queue_of(app)
    found = queue.client.counts()
    if as_json:
        print(json.dumps([counts.as_dict() for counts in found]))
        return
    console = console_of()
    if not found:
        console.print("no jobs yet", soft_wrap=True)
    else:
        for line in _picture(found, width_of_terminal()):
            console.print(line, soft_wrap=True)
    tell_if_stopped(queue)


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
            Cell(f"{counts.succeeded:,}", brief_count(counts.succeeded)),
            Cell(f"{counts.failed:,}", brief_count(counts.failed), style="red" if counts.failed else "dim"),
            Cell(f"{counts.again:,}", brief_count(counts.again), style="" if counts.again else "dim"),
            *_times(counts.wait),
            *_times(counts.run),
        )
        for each, counts in used
    ]
    return styled(table(_COLUMNS, rows, width)) if rows else []


def _jobs(counts: Counts) -> int:
    return counts.succeeded + counts.failed + counts.cancelled + counts.expired


def _times(histogram: Histogram) -> list[str]:
    return [brief_time(histogram.percentile_us(share)) for share in _SHARES]
