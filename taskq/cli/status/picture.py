"""The status of a fleet as text. It needs no library, since these take longer to import than all the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taskq.cli.tables import Cell, Column, Line, table
from taskq.model.info.words import count_of, span_text
from taskq.telemetry.words import duration_text, escape

if TYPE_CHECKING:  # whoever has a status has imported them; `taskq.cli.status.quick` shows one without
    from taskq.model.info.status import (
        BrokerStatus,
        ConsumerStatus,
        FleetStatus,
        JobTotals,
        MachineStatus,
        MissingConsumer,
        QueueFlow,
        QueueStatus,
    )

_BETWEEN = "   "
#: A terminal with fewer columns has no room for the machines of consumers beside all that there is of one machine.
_MACHINES_WIDTH = 80
_STATE_STYLES = {
    "running": "green",
    "idle": "dim",
    "starting": "cyan",
    "retiring": "yellow",
    "stopping": "yellow",
    "stopped": "yellow",
}
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def picture(found: FleetStatus, width: int | None) -> list[Line]:
    """The status as lines.

    Args:
        width: in columns; None for no limit.
    """
    parts = [
        _headline(found, width),
        machines(found.machines, width),
        _consumers(found.consumers, width, has_machines=len(found.machines) > 1),
        _queues(found, width),
        _totals(found.totals, width),
    ]
    lines: list[Line] = []
    for part in parts:
        if part:
            lines += [[], *part] if lines else part
    return lines


def painted(line: Line) -> str:
    """A line with its styles, as a terminal understands them."""
    return "".join(_painted(text, style) for text, style in line).rstrip()


def _painted(text: str, style: str) -> str:
    codes = ";".join(_CODES[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text


# -- the broker


def _headline(found: FleetStatus, width: int | None) -> list[Line]:
    broker = found.broker
    line: Line = [(broker.state, f"bold {_STATE_STYLES[broker.state]}")]
    if broker.pid is not None:
        told = f"  broker {broker.pid}, {_megabytes(broker.rss_bytes or 0)}, up {_span(broker.uptime_s or 0.0)}"
        line.append((told, ""))
    lines: list[Line] = [line]
    if width is None or sum(len(text) for text, _ in line) + 2 + len(broker.directory) <= width:
        line.append((f"  {broker.directory}", "dim"))
    else:
        lines.append([(broker.directory, "dim")])
    lines += [[(part, "dim")] for part in _health(broker, width)]
    lines += _reload(found)
    lines += _not_started(found.not_started)
    if found.spooled_files:
        lines.append([(f"{count_of(found.spooled_files, 'file')} with jobs still in the spool", "yellow")])
    return lines


def _health(broker: BrokerStatus, width: int | None) -> list[str]:
    """How the broker itself is."""
    turns = []
    if broker.longest_turn_s is not None:
        recently_s = broker.longest_turn_last_minute_s or 0.0
        turns = [
            f"longest turn of the broker: {_ms(broker.longest_turn_s)}",
            f"in the last minute {_ms(recently_s)}",
            f"CPU time at the most {_ms(broker.longest_turn_cpu_s or 0.0)}",
        ]
    figures = []
    if broker.commit_mean_s is not None:
        figures.append(f"a commit takes {_ms(broker.commit_mean_s)}, at the most {_ms(broker.commit_longest_s or 0.0)}")
    if broker.journal_bytes is not None:
        figures.append(f"journal {_size(broker.journal_bytes)}")
    if broker.clients is not None:
        figures.append(count_of(broker.clients, "client"))
    if broker.rejected_clients:
        figures.append(f"{broker.rejected_clients:,} refused")
    return [*_filled(turns, ", ", width), *_filled(figures, ", ", width)]


def _filled(parts: Sequence[str], between: str, width: int | None) -> list[str]:
    """Texts in as many lines as needed."""
    lines: list[str] = []
    for part in parts:
        if lines and (width is None or len(lines[-1]) + len(between) + len(part) <= width):
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines


def machines(machines: Sequence[MachineStatus], width: int | None = None) -> list[Line]:
    """The fleets that share a database, if there are several."""
    if len(machines) < 2:
        return []
    columns = (
        Column("machine", is_name=True),
        Column("broker", is_right=True),
        Column("state"),
        Column("running", is_right=True),
        Column("consumers", is_right=True),
        Column("heard of", is_right=True),
    )
    rows = [
        (
            each.host,
            str(each.pid),
            Cell(each.state, style=_STATE_STYLES.get(each.state, "")),
            f"{each.running:,}",
            f"{each.consumers:,}",
            f"{each.seen_s:.0f} s ago",
        )
        for each in machines
    ]
    return table(columns, rows, width, gap=3)


def _reload(found: FleetStatus) -> list[Line]:
    """What to say of the code that the fleet runs: nothing if all of it is new."""
    old = sum(1 for consumer in found.consumers if consumer.has_old_code)
    consumers = f"old code in {old} of {len(found.consumers)} consumers"
    if found.reload.state == "failed":
        first = str(found.reload.error).partition("\n")[0]
        return [[(escape(f"{consumers}: the last reload failed ({first})"), "red")]]
    return [[(f"reloading: {consumers}", "yellow")]] if found.reload.state == "running" else []


def _not_started(consumers: Sequence[MissingConsumer]) -> list[Line]:
    """The consumers that do not come up, with the reason, which is mostly the same for all."""
    numbers_of: dict[str, list[str]] = {}
    for consumer in consumers:
        numbers_of.setdefault(consumer.error.partition("\n")[0], []).append(str(consumer.number))
    lines: list[Line] = []
    for error, numbers in numbers_of.items():
        one_or_more = "consumer {} does" if len(numbers) == 1 else "consumers {} do"
        lines.append([(f"{one_or_more.format(', '.join(numbers))} not start: {escape(error)}", "red")])
    return lines


# -- consumers


def _consumers(consumers: Sequence[ConsumerStatus], width: int | None, *, has_machines: bool) -> list[Line]:
    if not consumers:
        return []
    has_all = not (has_machines and width is not None and width < _MACHINES_WIDTH)
    columns = (
        *((Column("machine", is_name=True),) if has_machines else ()),
        Column("consumer", "no.", is_right=True),
        Column("pid", is_right=True),
        Column("state"),
        Column("task", is_name=True),
        Column("progress", is_name=True),
        Column("for", is_right=True),
        *((Column("jobs", is_right=True), Column("cpu", is_right=True)) if has_all else ()),
        Column("memory", is_right=True),
    )
    rows = [
        (
            *((each.machine or "",) if has_machines else ()),
            str(each.number),
            str(each.pid),
            Cell(_activity(each), style=_STATE_STYLES.get(each.state, "")),
            each.task or "",
            each.progress.describe() if each.progress else "",
            _span(each.running_s) if each.running_s is not None else "",
            *((f"{each.jobs_done:,}", _percent(each.cpu_percent)) if has_all else ()),
            _megabytes(each.rss_bytes),
        )
        for each in consumers
    ]
    return table(columns, rows, width, gap=3)


def _percent(cpu_percent: int | None) -> str:
    return "" if cpu_percent is None else f"{cpu_percent} %"


def _activity(consumer: ConsumerStatus) -> str:
    """The state of a consumer, and how many of its slots are taken. The task beside it is that of the oldest job."""
    return consumer.state if consumer.slots == 1 else f"{consumer.state} {consumer.running} of {consumer.slots}"


# -- queues


def _queues(found: FleetStatus, width: int | None) -> list[Line]:
    """The jobs of each queue, how long the oldest waits, and how fast they go: in two tables if one is too wide."""
    queues = found.queues
    names = sorted({*queues, *found.paused, *found.flows})
    if not names:
        return [[("no pending or running jobs", "")]]
    jobs, flows, pauses = _jobs(names, queues, width), _flows(names, found.flows), _obstacles(names, found)
    name = {Column("queue", is_name=True): names}
    together = _columns({**name, **jobs, **pauses, **flows}, width)
    if width is None or not flows or max(sum(len(text) for text, _ in line) for line in together) <= width:
        return together
    return [*_columns({**name, **jobs, **pauses}, width), [], *_columns({**name, **flows}, width)]


_Columns = dict[Column, Sequence[Cell | str]]


def _columns(columns: Mapping[Column, Sequence[Cell | str]], width: int | None) -> list[Line]:
    return table(tuple(columns), list(zip(*columns.values(), strict=True)), width, gap=3)


def _jobs(names: Sequence[str], queues: Mapping[str, QueueStatus], width: int | None) -> _Columns:
    states = ("queued", "running", "scheduled", "waiting")
    # a script that reads a pipe counts the columns
    some = [state for state in states if width is None or any(getattr(counts, state) for counts in queues.values())]
    counts = [queues.get(name) for name in names]
    return {Column(state, is_right=True): [f"{getattr(own, state, 0):,}" for own in counts] for state in some}


def _flows(names: Sequence[str], flows: Mapping[str, QueueFlow]) -> _Columns:
    """How fast jobs come and go; nothing if no fleet runs."""
    if not flows:
        return {}
    own = [flows.get(name) for name in names]
    return {
        Column("oldest", is_right=True): [_oldest(flow) for flow in own],
        Column("in/s", is_right=True): [rate_text(flow.came_per_s) if flow else "0" for flow in own],
        Column("out/s", is_right=True): [rate_text(flow.ended_per_s) if flow else "0" for flow in own],
        Column("backlog"): [trend_of(flow) if flow else "" for flow in own],
    }


def _oldest(flow: QueueFlow | None) -> str:
    return "" if flow is None or flow.oldest_waiting_s is None else _span(flow.oldest_waiting_s)


def _obstacles(names: Sequence[str], found: FleetStatus) -> _Columns:
    """What keeps all jobs of a queue from running."""
    told = ["paused" if name in found.paused else "not served" if name in found.unserved else "" for name in names]
    return {Column(""): [Cell(text, style="yellow") for text in told]} if any(told) else {}


def trend_of(flow: QueueFlow) -> Cell:
    """Where the backlog of a queue goes: ``empty in 3m 05s``, ``growing``, ``steady``; nothing if there is none."""
    if flow.empty_in_s is not None and flow.oldest_waiting_s is not None:
        return Cell(f"empty in {span_text(max(1, round(flow.empty_in_s)))}")
    if flow.oldest_waiting_s is None:
        return Cell("")
    return Cell(flow.trend, style="yellow" if flow.trend == "growing" else "")


def rate_text(per_s: float) -> str:
    """A number of jobs a second: ``1,200``, ``12.3``, ``0.25``, ``0``."""
    if per_s >= 99.95:
        return f"{per_s:,.0f}"
    return f"{per_s:.1f}" if per_s >= 9.995 else f"{per_s:.2f}" if per_s else "0"


# -- totals


def _totals(totals: JobTotals, width: int | None) -> list[Line]:
    """The totals since the queue exists, in as many lines as needed."""
    lines: list[Line] = []
    for part in _counts(totals):
        used = sum(len(text) for text, _ in lines[-1]) if lines else 0
        if lines and (width is None or used + len(_BETWEEN) + len(part[0]) <= width):
            lines[-1] += [(_BETWEEN, ""), part]
        else:
            lines.append([part])
    return lines


def totals_line(totals: JobTotals) -> Line:
    """The totals since the queue exists, in one line."""
    return _totals(totals, None)[0]


def _counts(totals: JobTotals) -> list[tuple[str, str]]:
    parts = []
    for name in ("enqueued", "succeeded", "failed", "retried", "crashed", "cancelled"):
        count, is_bad = getattr(totals, name), name in ("failed", "crashed")
        parts.append((f"{count:,} {name}", "dim" if not count else "red" if is_bad else ""))
    return parts


def _span(seconds: float) -> str:
    if seconds >= 60:
        return duration_text(seconds * 1000)
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1_048_576:,.0f} MB"


def _size(count: int) -> str:
    return f"{count / 1024:,.0f} KB" if count < 1_048_576 else _megabytes(count)
