"""What each tab shows of a snapshot. Pure. Figures are those of `taskq status`, `taskq tasks` and `taskq errors`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from rich.text import Text

from taskq.cli.status.picture import machines, rate_text, totals_line, trend_of
from taskq.cli.top.fitting import Col, Row, View, sparkline, text
from taskq.cli.top.snapshot import Snapshot, Tab, Target
from taskq.cli.words import headline_of
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.failures import FailureGroup
from taskq.model.info.job import JobInfo
from taskq.model.info.status import ConsumerStatus, FleetStatus, QueueStatus
from taskq.model.info.words import brief_time, count_of, distance_text, span_text
from taskq.telemetry.record import Event
from taskq.telemetry.render import render_console
from taskq.telemetry.words import escape
from taskq.web.rules.concerns import concerns_of
from taskq.web.rules.cron import words_of
from taskq.web.rules.rates import Flow, ended, flow_of

STYLES = {
    "running": "green",
    "succeeded": "green",
    "idle": "dim",
    "starting": "cyan",
    "retiring": "yellow",
    "stopping": "bold yellow",
    "stopped": "bold red",
    "failed": "red",
    "scheduled": "cyan",
    "waiting": "cyan",
    "cancelled": "dim",
    "expired": "dim",
}
_LEVELS = {"warning": "yellow", "error": "red", "critical": "bold red"}
_SHARES = (0.5, 0.95, 0.99)
_MOST_CONCERNS = 5
_MOST_DEATHS = 3
_SHORT_ID = 8
_NO_QUEUES = "no jobs have come in yet"
_BACKLOG = Col("backlog", leaves=3)
#: Columns beside the bars of the minutes.
_BESIDE = 20


def headline(status: FleetStatus, at: float, width: int, *, is_past: bool) -> Text:
    """What stands above each tab: the state of the fleet, and when that was so."""
    broker = status.broker
    clock = f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}" if is_past else f"{datetime.fromtimestamp(at):%H:%M:%S}"
    parts = [text(broker.state, STYLES[broker.state])]
    if broker.pid is not None:
        parts.append(text(f"broker {broker.pid}"))
    if broker.uptime_s is not None:
        parts.append(text(f"up {span_text(round(broker.uptime_s))}"))
    if broker.rss_bytes is not None:
        parts.append(text(_megabytes(broker.rss_bytes)))
    parts.append(text(broker.directory, "dim"))
    told = Text("  ").join(parts)
    room = width - len(clock) - 2
    told.truncate(room, overflow="ellipsis")
    return told + Text(" " * (room - told.cell_len + 2)) + Text(clock, "reverse" if is_past else "dim")


# -- the fleet


def fleet(shown: Snapshot, width: int) -> View:
    """What to look at, how fast jobs come and go, and the queues."""
    status = shown.status
    flow = flow_of(shown.counts, shown.at)
    names = sorted({*status.queues, *status.paused, *(each.queue for each in shown.counts if each.queue)})
    columns = (
        Col("queue", least=8),
        *(() if shown.is_past else (Col("queued", True),)),
        Col("running", True),
        *(() if shown.is_past else (Col("scheduled", True, leaves=4), Col("waiting", True, leaves=5))),
        *_flow_columns(status),
        Col("", leaves=1),
    )
    return View([*_about(shown, flow, width)], columns, [_queue_row(name, shown) for name in names], _NO_QUEUES)


def _flow_columns(status: FleetStatus) -> tuple[Col, ...]:
    """How fast jobs come and go: as the broker says, or by the minutes if it does not."""
    if status.flows:
        return Col("oldest", True, leaves=2), Col("in/s", True, leaves=6), Col("out/s", True, leaves=7), _BACKLOG
    return Col("in/min", True, leaves=6), Col("out/min", True, leaves=7)


def _about(shown: Snapshot, flow: Flow, width: int) -> Iterator[Text]:
    status = shown.status
    yield from _machines(status)
    concerns = [] if shown.is_past else concerns_of(status, shown.counts, flow)
    for concern in concerns[:_MOST_CONCERNS]:
        told = text(f"! {concern.told}", "red" if concern.tone == "bad" else "yellow")
        told.truncate(2 * (width - 2), overflow="ellipsis")
        yield told
    if len(concerns) > _MOST_CONCERNS:
        yield text(f"! and {len(concerns) - _MOST_CONCERNS} more", "yellow")
    slots = sum(each.slots for each in status.consumers)
    running = sum(queue.running for queue in status.queues.values())
    if status.consumers:
        yield text(f"{running:,} running in {count_of(slots, 'slot')} of {count_of(len(status.consumers), 'consumer')}")
    done = [sum(each) for each in zip(flow.succeeded, flow.failed, flow.other, strict=True)]
    minutes = max(width - _BESIDE, 10)
    yield text(f"in  {flow.came_a_minute:>7,.0f}/min {sparkline(flow.enqueued[-minutes:])}", "cyan")
    yield text(f"out {flow.ended_a_minute:>7,.0f}/min {sparkline(done[-minutes:])}", "green")
    if any(flow.failed):
        yield text(f"bad {sum(flow.failed):>9,}/h {sparkline(flow.failed[-minutes:])}", "red")
    yield _totals(shown)


def _machines(status: FleetStatus) -> Iterator[Text]:
    """The fleets that share a database, if there are several."""
    for line in machines(status.machines):
        yield Text.assemble(*((escape(part), style) for part, style in line))


def _totals(shown: Snapshot) -> Text:
    told = Text.assemble(*totals_line(shown.status.totals))
    return text("in the hour before: ") + told if shown.is_past else told


def _queue_row(name: str, shown: Snapshot) -> Row:
    status = shown.status
    kept = status.queues.get(name, QueueStatus())
    is_paused = name in status.paused
    states = ("running",) if shown.is_past else ("queued", "running", "scheduled", "waiting")
    cells = (
        text(name),
        *(_number(getattr(kept, state)) for state in states),
        *_flow_cells(name, shown),
        text("paused" if is_paused else "", "bold yellow"),
    )
    return Row(name, cells, Target("queue", queue=name, is_paused=is_paused))


def _flow_cells(name: str, shown: Snapshot) -> tuple[Text, ...]:
    """The cells of `_flow_columns`."""
    if not shown.status.flows:
        flow = flow_of([each for each in shown.counts if each.queue == name], shown.at)
        return text(f"{flow.came_a_minute:,.0f}"), text(f"{flow.ended_a_minute:,.0f}")
    own = shown.status.flows.get(name)
    if own is None:
        return text(""), text("0"), text("0"), text("")
    oldest = "" if own.oldest_waiting_s is None else span_text(round(own.oldest_waiting_s))
    trend = trend_of(own)
    return (
        text(oldest),
        text(rate_text(own.came_per_s)),
        text(rate_text(own.ended_per_s)),
        text(trend.text, trend.style),
    )


# -- tasks


def tasks(shown: Snapshot, _width: int) -> View:
    """How the jobs of each task ended in the last hour, and how long they waited and ran."""
    used = [each for each in shown.counts if ended(each.last_hour) or each.last_hour.started or each.last_hour.enqueued]
    used.sort(key=lambda each: (-ended(each.last_hour), each.task, each.queue))
    columns = (
        Col("task", least=10),
        Col("queue", least=6, leaves=7),
        Col("done", True),
        Col("failed", True),
        Col("again", True, leaves=2),
        *(Col(f"wait p{share * 100:g}", True, leaves=leaves) for share, leaves in zip(_SHARES, (6, 4, 8), strict=True)),
        *(Col(f"run p{share * 100:g}", True, leaves=leaves) for share, leaves in zip(_SHARES, (5, 3, 9), strict=True)),
        Col("last 30 minutes", leaves=10),
    )
    about = [
        text("in the last hour: jobs that are done and failed, attempts that ran again, how long they waited and ran")
    ]
    return View(about, columns, [_task_row(each, shown.at) for each in used], "nothing in the last hour")


def _task_row(each: TaskCounts, at: float) -> Row:
    counts: Counts = each.last_hour
    flow = flow_of([each], at)
    cells = (
        text(each.task or "(others)"),
        text(each.queue),
        _number(counts.succeeded),
        _number(counts.failed, "red"),
        _number(counts.again, "yellow"),
        *(text(brief_time(counts.wait.percentile_us(share))) for share in _SHARES),
        *(text(brief_time(counts.run.percentile_us(share))) for share in _SHARES),
        text(sparkline([good + bad for good, bad in zip(flow.succeeded, flow.failed, strict=True)][-30:])),
    )
    return Row(f"{each.task}\0{each.queue}", cells, Target("task", task=each.task, queue=each.queue))


# -- jobs


JOB_COLUMNS = (
    Col("job"),
    Col("task", least=10),
    Col("queue", least=6, leaves=4),
    Col("state"),
    Col("attempts", True, leaves=3),
    Col("enqueued", True, leaves=2),
    Col("error", least=10, leaves=1),
)


def job_rows(infos: Sequence[JobInfo], now: float) -> list[Row]:
    """The rows of a list of jobs, whose columns are `JOB_COLUMNS`."""
    return [
        Row(
            info.id,
            (
                text(info.id[-_SHORT_ID:]),
                text(info.task),
                text(info.queue),
                text(info.state.value, STYLES.get(info.state.value, "")),
                text(str(info.attempts)),
                text(distance_text(info.enqueued_at - now), "dim"),
                text("" if info.error is None else headline_of(info.error), "red"),
            ),
            job_target(info),
        )
        for info in infos
    ]


def job_target(info: JobInfo) -> Target:
    """What keys act on where a job is shown."""
    return Target("job", job_id=info.id, task=info.task, queue=info.queue)


def running(shown: Snapshot, _width: int) -> View:
    """The jobs that run, the one that has run for longest first."""
    by_job = {each.job_id: each for each in shown.status.consumers if each.job_id}
    infos = sorted(shown.jobs, key=lambda info: info.started_at or shown.at)
    columns = (
        Col("for", True),
        Col("task", least=10),
        Col("job"),
        Col("queue", least=6, leaves=5),
        Col("attempt", True, leaves=4),
        Col("consumer", True, leaves=3),
        Col("cpu", True, leaves=6),
        Col("memory", True, leaves=2),
        Col("progress", least=8, leaves=1),
    )
    rows = [_running_row(info, by_job.get(info.id), shown.at) for info in infos]
    empty = "nothing ran for longer than 0.1 s then" if shown.is_past else "no job runs"
    count = sum(queue.running for queue in shown.status.queues.values())
    told = f"{count_of(max(count, len(rows)), 'job')} running, the oldest first; s: where it is in its code"
    about = [text(told)]
    return View(about, columns, rows, empty)


def _running_row(info: JobInfo, consumer: ConsumerStatus | None, at: float) -> Row:
    ran_s = None if info.started_at is None else max(0.0, at - info.started_at)
    cells = (
        text("" if ran_s is None else span_text(round(ran_s))),
        text(info.task),
        text(info.id[-_SHORT_ID:]),
        text(info.queue),
        text(str(info.attempts)),
        text("" if consumer is None else _where(consumer)),
        text("" if consumer is None else _cpu(consumer)),
        text("" if consumer is None or not consumer.rss_bytes else _megabytes(consumer.rss_bytes)),
        text("" if info.progress is None else info.progress.describe()),
    )
    return Row(info.id, cells, job_target(info))


def _cpu(consumer: ConsumerStatus) -> str:
    """How much of one core its process uses now."""
    return "" if consumer.cpu_percent is None else f"{consumer.cpu_percent} %"


def _where(consumer: ConsumerStatus) -> str:
    return f"{consumer.number} on {consumer.machine}" if consumer.machine else str(consumer.number)


# -- failures


def failures(shown: Snapshot, _width: int) -> View:
    """What fails, in groups of one task, one type of error and one place."""
    found = shown.failures
    groups = [] if found is None else found.groups
    columns = (
        Col("failed", True),
        Col("again", True, leaves=2),
        Col("10 min", True, leaves=5),
        Col("hour", True, leaves=4),
        Col("day", True, leaves=6),
        Col("last", True, leaves=3),
        Col("task", least=8),
        Col("error", least=24),
    )
    about = []
    if found is not None:
        more = ", the newest" if found.has_more else ""
        kept = "in the log of the day before" if shown.is_past else "kept"
        again = f"{count_of(found.again, 'attempt')} ran again in the last day"
        about = [text(f"{count_of(found.failed, 'failed job')} {kept}{more}; {again}")]
    return View(about, columns, [_failure_row(group, shown.at) for group in groups], "no failures")


def _failure_row(group: FailureGroup, at: float) -> Row:
    message = next((line.strip() for line in group.message.splitlines() if line.strip()), "")
    said = f"{group.type}: {message}" if message else group.type
    cells = (
        _number(group.failed, "red"),
        _number(group.again, "yellow"),
        _number(group.last_10_minutes),
        _number(group.last_hour),
        _number(group.last_day),
        text(distance_text(group.last_at - at)),
        text(group.task),
        text(said),
    )
    return Row(f"{group.task}\0{group.type}\0{group.place}", cells, Target("failures", task=group.task, failures=group))


# -- consumers


def consumers(shown: Snapshot, _width: int) -> View:
    """The processes that run jobs, and the last that died."""
    status = shown.status
    has_machines = len(status.machines) > 1
    columns = (
        *((Col("machine", least=8),) if has_machines else ()),
        Col("no.", True),
        Col("pid", True, leaves=3),
        Col("state"),
        Col("task", least=8),
        Col("for", True),
        Col("job", leaves=5),
        Col("jobs", True, leaves=4),
        Col("busy", True, leaves=7),
        Col("cpu", True, leaves=6),
        Col("memory", True, leaves=1),
        Col("progress", least=8, leaves=2),
    )
    about = [*_machines(status)]
    for missing in status.not_started:
        first = missing.error.partition("\n")[0]
        about.append(text(f"! consumer {missing.number} does not start: {first}", "red"))
    for event in list(shown.events)[-_MOST_DEATHS:][::-1]:
        about.append(_event_line(event))
    rows = [_consumer_row(each, with_machine=has_machines) for each in status.consumers]
    return View(about, columns, rows, "no consumers")


def _consumer_row(each: ConsumerStatus, *, with_machine: bool) -> Row:
    state = each.state if each.slots == 1 else f"{each.state} {each.running} of {each.slots}"
    cells = (
        *((text(each.machine or ""),) if with_machine else ()),
        text(str(each.number)),
        text(str(each.pid)),
        text(state, STYLES.get(each.state, "")),
        text(each.task or ""),
        text("" if each.running_s is None else span_text(round(each.running_s))),
        text("" if each.job_id is None else each.job_id[-_SHORT_ID:]),
        _number(each.jobs_done),
        text(span_text(round(each.busy_s)) if each.busy_s else ""),
        text(_cpu(each)),
        text(_megabytes(each.rss_bytes) if each.rss_bytes else ""),
        text("" if each.progress is None else each.progress.describe()),
    )
    target = Target("consumer", job_id=each.job_id or "", task=each.task or "", consumer=each)
    return Row(f"{each.number} {each.pid}", cells, target)


# -- what comes next


def schedules(shown: Snapshot, _width: int) -> View:
    """What the fleet does by the clock, in the order of the times: schedules, delayed jobs and retries."""
    columns = (
        Col("in", True),
        Col("at"),
        Col("what", least=32),
        Col("task", least=8, leaves=2),
        Col("queue", least=6, leaves=4),
        Col("last", True, leaves=3),
        Col("", leaves=1),
    )
    timed: list[tuple[float, Row]] = []
    for each in shown.schedules:
        at = each.next_at
        target = Target("schedule", each.last_job_id or "", each.task, each.queue, each.name, each.is_paused)
        cells = (
            text("" if at is None else distance_text(at - shown.at).removeprefix("in ")),
            text("" if at is None else _clock(at, shown.at)),
            text(f"{each.name}: {words_of(each)}"),
            text(each.task),
            text(each.queue),
            text("" if each.last_at is None else distance_text(each.last_at - shown.at), "dim"),
            text("paused" if each.is_paused else "", "bold yellow"),
        )
        timed.append((float("inf") if at is None else at, Row(f"schedule {each.name}", cells, target)))
    for info in shown.jobs:
        at = info.due_at or shown.at
        kind = f"retry {info.attempts} of" if info.attempts else "delayed"
        cells = (
            text(distance_text(at - shown.at).removeprefix("in ")),
            text(_clock(at, shown.at)),
            text(f"{kind} job {info.id[-_SHORT_ID:]}", "cyan"),
            text(info.task),
            text(info.queue),
            text(""),
            text("" if info.error is None else headline_of(info.error), "red"),
        )
        timed.append((at, Row(info.id, cells, job_target(info))))
    scheduled = sum(queue.scheduled for queue in shown.status.queues.values())
    told = f"{count_of(len(shown.schedules), 'schedule')}, {count_of(scheduled, 'delayed job')}"
    told += f", the newest {len(shown.jobs)} are shown" if scheduled > len(shown.jobs) else ""
    empty = "what was scheduled then is not in the log" if shown.is_past else "nothing is scheduled"
    rows = [row for _, row in sorted(timed, key=lambda pair: pair[0])]
    return View([] if shown.is_past else [text(told)], columns, rows, empty)


def _clock(at: float, now: float) -> str:
    local = datetime.fromtimestamp(at)
    return f"{local:%H:%M:%S}" if abs(at - now) < 86_400 else f"{local:%m-%d %H:%M}"


# -- the log


def log(shown: Snapshot, _width: int) -> View:
    """The newest lines of the log."""
    rows = []
    seen: dict[str, int] = {}
    for event in shown.events:
        stamp = str(event.get("timestamp", ""))
        seen[stamp] = number = seen.get(stamp, 0) + 1
        job_id, task = str(event.get("job_id", "")), str(event.get("task", ""))
        target = Target("event", job_id=job_id, task=task, event=event)
        rows.append(Row(f"{stamp} {number} {job_id}", (_event_line(event),), target))
    return View([], (Col("the newest lines of the log", least=20),), rows, "nothing is in the log", follows=True)


def _event_line(event: Event) -> Text:
    first, *more = render_console(event).split("\n")
    return text(f"{first} ..." if more else first, _LEVELS.get(str(event.get("level", "")), ""))


def _number(count: int, style: str = "") -> Text:
    return text(f"{count:,}", style if count else "dim")


def _megabytes(count: int) -> str:
    return f"{count / 1_048_576:,.0f} MB"


VIEWS: dict[Tab, Callable[[Snapshot, int], View]] = {
    "fleet": fleet,
    "tasks": tasks,
    "running": running,
    "failures": failures,
    "consumers": consumers,
    "schedules": schedules,
    "log": log,
}
