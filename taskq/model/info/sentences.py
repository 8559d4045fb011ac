"""Why a job does not run, in sentences that say what to do about it. Pure."""

from __future__ import annotations

from datetime import datetime

from taskq.model.info.why import LimitState, OtherJob, Reason, WhyInfo
from taskq.model.info.words import count_of, distance_text, span_text
from taskq.model.job import JobState

_DAY_S = 86_400.0


def sentence(reason: Reason, info: WhyInfo, now: float) -> str:
    """A reason in words, with what to do about it.

    Args:
        now: seconds since 1970.
    """
    match reason.kind:
        case "ended":
            return _ended(reason, info, now)
        case "running":
            ran = "" if reason.since is None else f", for {span_text(round(max(0.0, now - reason.since)))}"
            on = "" if reason.consumer is None else f", on consumer {reason.consumer}"
            return f"It runs{ran}: attempt {reason.attempt}{on}{f' of {reason.machine}' if reason.machine else ''}."
        case "sent":
            before = f"after {count_of(reason.ahead, 'job')} that it has" if reason.ahead else "in a moment"
            who = "A fleet" if reason.consumer is None else f"Consumer {reason.consumer}"
            return f"{who} has it, and begins it {before}."
        case "spooled":
            return "It waits in the spool until a fleet takes it in: `taskq doctor` says if the disk is full."
        case "waiting":
            return _waits(reason, now)
        case "scheduled":
            return _scheduled(reason, now)
        case "limit":
            assert reason.limit is not None
            return _limited(reason, reason.limit, now)
        case "behind":
            return _behind(reason, now)
    return _wrong(reason, info)


def _wrong(reason: Reason, info: WhyInfo) -> str:
    """What does not go away by itself."""
    match reason.kind:
        case "no_fleet":
            return "No fleet runs: start one with `taskq worker`."
        case "stopping":
            return "The fleet is stopping, and starts no more jobs: start it again with `taskq worker`."
        case "no_consumers" if reason.error:
            told = reason.error.partition("\n")[0]
            return f"No consumer is ready, since they do not start: {told}. Mend that, and run `taskq reload`."
        case "no_consumers":
            return "No consumer is ready: they are still starting."
        case "paused":
            return f"Queue {info.queue} is paused: `taskq resume {info.queue}` lets it run."
        case "not_served":
            return f"No consumer of this fleet serves queue {info.queue}: start one with `--queues {info.queue}`."
        case "unknown_task":
            return (
                f"The application of the consumers has no task {info.task}, so the job will fail: deploy code that has "
                "it, and run `taskq reload`."
            )
    return f"{reason.kind}: this is told by a newer taskq."


def _ended(reason: Reason, info: WhyInfo, now: float) -> str:
    when = "" if reason.since is None else f" {distance_text(reason.since - now)}"
    if info.state is JobState.SUCCEEDED:
        return f"It succeeded{when}."
    said = "" if reason.error is None else f": {_first_line(reason.error)}"
    if info.state is JobState.FAILED:
        return f"It failed{when}, at attempt {reason.attempt}{said}. `taskq retry {info.id}` queues it again."
    if info.state is JobState.EXPIRED:
        return f"It was not started in time, and expired{when}."
    return f"It was cancelled{when}{said}."


def _waits(reason: Reason, now: float) -> str:
    known = len(reason.jobs) + reason.others
    if not reason.jobs:
        return "The jobs before it have ended: it is queued in a moment."
    return f"It waits for {count_of(known, 'job')}: {_named(reason, now)}."


def _scheduled(reason: Reason, now: float) -> str:
    due = reason.until or now
    when = f"for {_moment(due, now)}" if due > now else f"since {_moment(due, now)}"
    if reason.attempt is None:
        return f"It is scheduled {when}."
    said = "" if reason.error is None else f", which ended with {_first_line(reason.error)}"
    return f"It is scheduled {when}: it runs again after attempt {reason.attempt}{said}."


def _limited(reason: Reason, limit: LimitState, now: float) -> str:
    task, _, key = limit.name.partition(" ")
    of = f"task {task} with key {key}" if key else f"task {task}"
    match limit.kind:
        case "concurrency":
            held = f": {_named(reason, now)}" if reason.jobs else ""
            does = "does" if limit.used == 1 else "do"
            return f"At most {count_of(limit.amount, 'job')} of {of} may run at once, and {limit.used:,} {does}{held}."
        case "rate":
            opens = "" if reason.until is None else f": it opens {_moment(max(reason.until, now), now)}"
            return f"At most {count_of(limit.amount, 'job')} of {of} may start in {span_text(limit.period_s)}{opens}."
        case "order":
            return f"Jobs of {of} run one after the other, and this one is before it: {_named(reason, now)}."
    needs = f"It needs {limit.needed:,} of resource {limit.name}"
    if limit.amount < limit.needed:
        want = f"`--resources {limit.name}={limit.needed}`"
        return f"{needs}, and the fleet has {limit.amount:,}: start it with {want}."
    return f"{needs}, and {limit.used:,} of {limit.amount:,} are taken: {_named(reason, now)}."


def _behind(reason: Reason, now: float) -> str:
    before = f"About {count_of(reason.ahead, 'job')} of its queue {'goes' if reason.ahead == 1 else 'go'} first"
    if reason.consumers and reason.busy == reason.consumers:
        is_one = reason.consumers == 1
        busy = "the only consumer for it is busy" if is_one else f"all {reason.consumers} consumers for it are busy"
        told = f"{busy}: {_named(reason, now)}" if reason.jobs else busy
        return f"{before}, and {told}." if reason.ahead else f"It is next, and {told}."
    return f"{before}." if reason.ahead else "Nothing is in its way: it starts in a moment."


def _named(reason: Reason, now: float) -> str:
    more = [f"and {reason.others:,} more"] if reason.others else []
    return ", ".join([*(_job(job, now) for job in reason.jobs), *more]) or "a job that is not known any more"


def _job(job: OtherJob, now: float) -> str:
    due = "" if job.due_at is None else f" for {_clock(job.due_at, now)}"
    told = [*([] if job.task is None else [job.task]), *([] if job.state is None else [job.state.value + due])]
    return f"{job.id} ({', '.join(told)})" if told else job.id


def _moment(at: float, now: float) -> str:
    return f"{_clock(at, now)} ({distance_text(at - now)})"


def _clock(at: float, now: float) -> str:
    local = datetime.fromtimestamp(at)
    return local.isoformat(" ", "seconds") if abs(at - now) >= _DAY_S else f"{local:%H:%M:%S}"


def _first_line(error: str) -> str:
    return error.partition("\n")[0].rstrip(" .")
