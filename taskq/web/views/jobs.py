"""Jobs: the list with its filters, which are the URL, and one job with all that is known of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from taskq.client.app import TaskQ
from taskq.client.job import Job
from taskq.model.errors import ConfigError, JobCancelled, JobFailed, JobNotFound, ResultTimeout
from taskq.model.info.job import JobInfo
from taskq.model.info.search import FoundJobs, JobSearch
from taskq.model.info.sentences import sentence
from taskq.model.info.status import QueueStatus
from taskq.model.info.why import WhyInfo
from taskq.model.job import JobState
from taskq.model.units import seconds_in
from taskq.telemetry.reader import Filter
from taskq.web.charts import life_of, timeline
from taskq.web.graph import drawn
from taskq.web.logs import in_order, newest, shown_lines
from taskq.web.pages import Page, Visit
from taskq.web.texts import as_json, shown

#: Jobs on one page of the list.
PAGE_JOBS = 50
#: Lines of the log about one job that are shown, and those that are looked at to see how many were left out.
_MOST_LOG_LINES = 500
_MOST_LINES_READ = 20_000
_ID_CHARS = 32
_PART_CHARS = 6
#: A part of an id is looked for among this many of the newest jobs.
_NEWEST = 2_000
#: How long one page looks for jobs, in seconds: there may be millions. It leads to the next.
_LOOKS_S = 0.05
#: The digits of the largest place in a list; a job's id has more.
_PLACE_DIGITS = 19


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are listed, as in the URL.

    Attributes:
        state: one of the states, or "".
        task, queue: their names, or "".
        since: enqueued within this time, such as "2h", or "".
        until: enqueued longer ago than this time, or "".
        attempts: at least this many attempts, or "".
        text: a part of the error, of the meta or of the keys, or "".
    """

    state: str = ""
    task: str = ""
    queue: str = ""
    since: str = ""
    until: str = ""
    attempts: str = ""
    text: str = ""

    @classmethod
    def of(cls, query: QueryParams) -> JobFilter:
        """Reads it from a URL.

        Raises:
            ConfigError: a field makes no sense.
        """
        given = cls(**{name: query.get(name, "").strip() for name in cls.__slots__})
        if given.state and given.state not in list(JobState):
            raise ConfigError(f"{given.state!r:.100} is not a state of a job: use one of {', '.join(JobState)}")
        for name in ("since", "until"):
            text = getattr(given, name)
            if text and seconds_in(text) is None:
                raise ConfigError(f"{text!r:.100} is not a time: use a duration such as 90s, 10m, 2h or 7d")
        if given.attempts and not given.attempts.isdecimal():
            raise ConfigError(f"{given.attempts!r:.100} is not a number of attempts")
        return given

    def as_dict(self) -> dict[str, str]:
        """Its fields that say something, by name."""
        return {name: text for name in self.__slots__ if (text := getattr(self, name))}

    @property
    def is_simple(self) -> bool:
        """Whether it looks at nothing but the state, the task and the queue."""
        return not (self.since or self.until or self.attempts or self.text)

    def search(self, now: float) -> JobSearch:
        """Its conditions beside the state, the task and the queue."""
        since_s, until_s = (seconds_in(text) if text else None for text in (self.since, self.until))
        return JobSearch(
            None if since_s is None else now - since_s,
            None if until_s is None else now - until_s,
            int(self.attempts or 0),
            self.text,
        )

    async def jobs(self, q: TaskQ, now: float, before: bytes | None, limit: int) -> list[JobInfo]:
        """The newest jobs that it lets through, before one of them."""
        return (await self.find(q, now, before, limit, None)).jobs

    async def find(
        self, q: TaskQ, now: float, place: bytes | int | None, limit: int, within_s: float | None
    ) -> FoundJobs:
        """The newest jobs that it lets through, from a place on, as far as they are found in some seconds."""
        state = JobState(self.state) if self.state else None
        asked = state, self.task or None, self.queue or None, place, limit, self.search(now), within_s
        return await q.async_client().find(*asked)


async def jobs(visit: Visit) -> Page:
    """The newest jobs that the filters let through."""
    wanted = JobFilter.of(visit.request.query_params)
    before = visit.query("before")
    found, place = await wanted.find(visit.q, visit.now, _place_of(visit, before), PAGE_JOBS, _LOOKS_S)
    status = await visit.q.async_client().look()
    values = {
        "jobs": found,
        "filter": wanted,
        "counts": _counted(status.queues, wanted),
        "states": list(JobState),
        "older": "" if place is None else found[-1].id if len(found) == PAGE_JOBS else _text_of(place),
        "is_whole": place is None or len(found) == PAGE_JOBS,
        "before": before,
        "queues": sorted({*status.queues, *status.paused}),
        "tasks": sorted(visit.q.tasks),
    }
    return Page("jobs", "Jobs", values)


def _counted(queues: Mapping[str, QueueStatus], wanted: JobFilter) -> dict[str, int]:
    """How many jobs are in each state that is counted by queues; nothing, if the filter asks for more than a queue."""
    if wanted.as_dict().keys() - {"state", "queue"}:
        return {}
    chosen = [each for name, each in queues.items() if wanted.queue in ("", name)]
    return {state: sum(getattr(each, state) for each in chosen) for state in _PENDING}


def _place_of(visit: Visit, before: str) -> bytes | int | None:
    """Where a page of the list begins: behind a job, or at the place that an earlier page has told."""
    if before.isdecimal() and len(before) <= _PLACE_DIGITS:
        return int(before)
    return visit.q.job(before)._id if before else None


def _text_of(place: bytes | int) -> str:
    return str(place) if isinstance(place, int) else place.hex()


_PENDING = ("waiting", "scheduled", "queued", "running")


async def find(visit: Visit) -> str:
    """The id of the job that somebody looks for by its id, or by the beginning or end of it.

    Raises:
        ConfigError: this is not a part of an id.
        JobNotFound: there is no such job, or there are several.
    """
    part = visit.query("id").lower()
    if len(part) < _PART_CHARS or set(part) - set("0123456789abcdef") or len(part) > _ID_CHARS:
        raise ConfigError(f"{part!r:.100} is not a job id: give its 32 hexadecimal digits, or at least 6 of them")
    if len(part) == _ID_CHARS:
        return part
    newest_jobs = (await JobFilter().find(visit.q, visit.now, None, _NEWEST, _LOOKS_S)).jobs
    found = [info.id for info in newest_jobs if info.id.startswith(part) or info.id.endswith(part)]
    if len(found) != 1:
        several = f"{len(found)} jobs have" if found else f"none of the newest {len(newest_jobs):,} jobs has"
        raise JobNotFound(f"{several} an id that begins or ends with {part}: give more of it")
    return found[0]


async def job(visit: Visit) -> Page:
    """All that is known of one job: its life, why it does not run, its errors, its arguments and its result."""
    handle = visit.q.job(visit.request.path_params["id"])
    info = await handle.ainfo(arguments=not visit.hides_arguments)
    why = await handle.awhy()
    editable = as_json(info.arguments) if info.arguments is not None else None
    crash = info.error if info.error is not None and (info.error.signal or info.error.exit_code is not None) else None
    values = {
        "info": info,
        "reasons": [sentence(reason, why, visit.now) for reason in why.reasons],
        "on_consumer": _own_consumer(why),
        "timeline": timeline(info, visit.now),
        "life": life_of(info, visit.now),
        "own": os.uname().nodename,
        "result": await _result(visit, info),
        "crash": crash,
        "arguments": None if info.arguments is None else _arguments(info),
        "editable": editable if info.task in visit.q.tasks else None,
        "hides_arguments": visit.hides_arguments,
        "is_final": info.state.is_final,
    }
    return Page("job", f"{info.task or 'Job'} {info.id[-8:]}", values)


def _own_consumer(why: WhyInfo) -> int | None:
    """The number of the consumer that runs the job, if that is of this machine: another's fleet is not asked."""
    running = next((reason for reason in why.reasons if reason.kind == "running"), None)
    return running.consumer if running is not None and running.machine in (None, os.uname().nodename) else None


def _arguments(info: JobInfo) -> list[tuple[str, str]]:
    """The arguments as rows of a name and a text."""
    assert info.arguments is not None
    if info.arguments.left_out is not None:
        return [("", f"({info.arguments.left_out})")]
    rows = [(str(number), shown(value)) for number, value in enumerate(info.arguments.args)]
    return rows + [(f"{name}=", shown(value)) for name, value in info.arguments.kwargs.items()]


async def _result(visit: Visit, info: JobInfo) -> str | None:
    """What the job returned, as Python writes it; None if that is hidden, or there is nothing."""
    if visit.hides_arguments or info.state is not JobState.SUCCEEDED:
        return None
    try:
        return shown(await visit.q.job(info.id).aresult(timeout=1))
    except (JobNotFound, JobFailed, JobCancelled, ResultTimeout) as error:
        return f"({error})"


async def job_log(visit: Visit) -> Page:
    """The lines of the log about one job, with what it printed, and how much of that was left out."""
    handle = visit.q.job(visit.request.path_params["id"])
    events = await newest(visit, Filter(job_id=handle.id), _MOST_LINES_READ)
    dropped = sum(int(each["lines"]) for each in events if each.get("event") == "output.dropped" and "lines" in each)
    shown = in_order(events, await _starts(handle))[-_MOST_LOG_LINES:]
    values = {
        "lines": shown_lines(visit, shown),
        "job_id": handle.id,
        "dropped": dropped,
        "is_cut": len(events) > len(shown),
    }
    return Page("job_log", "Log of a job", values, is_live=False)


async def _starts(handle: Job[Any]) -> dict[int, float]:
    """When each attempt of a job began, in seconds since 1970, as far as that is kept."""
    try:
        info = await handle.ainfo()
    except JobNotFound:
        return {}  # the log knows it longer
    starts = {each.number: each.started_at for each in info.history if each.started_at is not None}
    return {info.attempts: info.started_at, **starts} if info.started_at is not None else starts


async def workflow(visit: Visit) -> Page:
    """The jobs before and after one, as a graph."""
    start = visit.request.path_params["id"]
    known: dict[str, JobInfo] = {}
    missing: set[str] = set()
    wave = [visit.q.job(start).id]
    while wave and len(known) < _MOST_STEPS:
        for job_id, info in await asyncio.gather(*(_step(visit, job_id) for job_id in wave)):
            if info is None:
                missing.add(job_id)
            else:
                known[job_id] = info
        if start in missing:
            raise JobNotFound(f"nothing is known of job {start}")
        around = [other for job_id in wave if job_id in known for other in known[job_id].after + known[job_id].before]
        wave = list(dict.fromkeys(each for each in around if each not in known and each not in missing))
        wave = wave[: _MOST_STEPS - len(known)]
    values = {"steps": list(known.values()), "start": start, "is_cut": len(known) >= _MOST_STEPS}
    graph = drawn(known, start, visit.request.scope.get("root_path", ""))
    return Page("workflow", "Workflow", {**values, "graph": graph})


_MOST_STEPS = 200


async def _step(visit: Visit, job_id: str) -> tuple[str, JobInfo | None]:
    try:
        return job_id, await visit.q.job(job_id).ainfo()
    except JobNotFound:
        return job_id, None
