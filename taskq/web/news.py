"""What the newest lines of the log say about what is wrong: the error of a task, who has paused a queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from taskq.model.info.counts import TaskCounts
from taskq.model.info.status import FleetStatus
from taskq.telemetry.reader import Filter, ago
from taskq.telemetry.record import Event, time_of
from taskq.web.backlog import Standing
from taskq.web.logs import kept_newest
from taskq.web.pages import Visit
from taskq.web.rules.concerns import Concern

#: Lines of each kind that are read, and how old they may be, in seconds.
_MOST_LINES = 200
_HOUR_S, _WEEK_S = 3_600.0, 7 * 86_400.0
_MOST_CHARS = 200


@dataclass(frozen=True, slots=True)
class News:
    """What is known of what is wrong, beside the counts.

    Attributes:
        errors: by task, the newest error of the last hour, and its job.
        deaths: by task, how its process died last in the last hour, and its job.
        paused: by queue, since when it is paused, in seconds since 1970, and by whom.
        standing: by queue, why it stands.
    """

    errors: Mapping[str, str] = field(default_factory=dict)
    deaths: Mapping[str, str] = field(default_factory=dict)
    paused: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    standing: Mapping[str, Standing] = field(default_factory=dict)


async def news(visit: Visit, status: FleetStatus, counts: Sequence[TaskCounts]) -> News:
    """Reads what is new of what went wrong, and asks why backlogs stand."""
    has_failed = any(each.last_hour.failed for each in counts)
    has_crashed = any(each.last_hour.crashed for each in counts)
    return News(
        {_text(each, "task"): _error(each) for each in await _lines(visit, "job.failed", _HOUR_S, has_failed)},
        {_text(each, "task"): _death(each) for each in await _lines(visit, "consumer.crashed", _HOUR_S, has_crashed)},
        {
            _text(each, "queue"): (time_of(each), _text(each, "by"))
            for each in await _lines(visit, "queue.paused", _WEEK_S, bool(status.paused))
        },
        await visit.reasons.of(visit.q, status, visit.now),
    )


def explained(concerns: Sequence[Concern], known: News) -> list[Concern]:
    """The concerns with what is known of their causes."""
    return [_explained(concern, known) for concern in concerns]


def _explained(concern: Concern, known: News) -> Concern:
    match concern.kind:
        case "failed":
            return replace(concern, why=known.errors.get(concern.subject, ""))
        case "died":
            return replace(concern, why=known.deaths.get(concern.subject, ""))
        case "paused" if concern.subject in known.paused:
            since, by = known.paused[concern.subject]
            return replace(concern, since=since, why=f"Paused by {by}." if by else "")
        case "unserved" if concern.subject in known.standing:
            return replace(concern, since=known.standing[concern.subject].since)
        case "waits" if concern.subject in known.standing:
            found = known.standing[concern.subject]
            return replace(concern, since=found.since, why=f"Job {found.job_id} {found.place}. {found.told}")
    return concern


async def _lines(visit: Visit, event: str, within_s: float, is_wanted: bool) -> list[Event]:
    return await kept_newest(visit, Filter(event=event, since=ago(within_s)), _MOST_LINES) if is_wanted else []


def _error(event: Event) -> str:
    first = _text(event, "error").strip().partition("\n")[0]
    return f"{first[:_MOST_CHARS]} (job {_text(event, 'job_id')})"


def _death(event: Event) -> str:
    how = f"exit code {event['exit_code']}" if "exit_code" in event else f"signal {_text(event, 'signal')}"
    memory = ", out of memory" if event.get("out_of_memory") else ""
    return f"{how}{memory} (job {_text(event, 'job_id')})" if "job_id" in event else f"{how}{memory}"


def _text(event: Event, name: str) -> str:
    return str(event.get(name, ""))
