"""What visitors do: to one job, to those that they have chosen, to all that a filter lets through, to queues, schedules
and the fleet. Each is logged with who did it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from taskq.client.job import Job
from taskq.client.transport.aio import async_client
from taskq.model.errors import ConfigError, JobNotFound, JobStateError
from taskq.model.info.words import count_of
from taskq.model.job import JobState
from taskq.web.access import Right
from taskq.web.pages import Visit
from taskq.web.views.jobs import JobFilter

#: An action on all jobs that a filter lets through is done to this many at the most, unless the fleet does it as one.
MOST_JOBS = 10_000
_AT_ONCE = 50
_MOST_TOLD = 3

logger = logging.getLogger("taskq.web")


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to be done: the fields of a form.

    Attributes:
        action: the name in `ACTIONS`.
        ids: of jobs.
        match: a filter as in the URL of the list of jobs: all that it lets through; None if jobs are named.
        name: of a queue or a schedule, or the number of a consumer.
        args, kwargs: of a job that is enqueued again, as JSON.
        is_sure: whether the question was answered.
    """

    action: str
    ids: Sequence[str] = ()
    match: str | None = None
    name: str = ""
    args: str = "[]"
    kwargs: str = "{}"
    is_sure: bool = False

    @classmethod
    def of(cls, body: bytes) -> Wish:
        """Reads the body of a form.

        Raises:
            ConfigError: it makes no sense.
        """
        try:
            fields = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=10_000)
        except ValueError as error:
            raise ConfigError(f"the form cannot be read: {error}") from None
        given = dict(fields)
        if given.get("action") not in ACTIONS:
            raise ConfigError(f"{given.get('action', '')!r:.60} is not something that can be done")
        texts = {name: given[name] for name in ("match", "name", "args", "kwargs") if name in given}
        ids = list(dict.fromkeys(value for name, value in fields if name == "id"))
        return cls(given["action"], ids, **texts, is_sure=given.get("sure") == "1")


@dataclass(frozen=True, slots=True)
class Done:
    """What became of an action.

    Attributes:
        told: what was done, or the question that has to be answered first.
        go: the path of the page to go to, or "".
        is_question: whether it is a question.
        failed: whether not all of it could be done.
    """

    told: str
    go: str = ""
    is_question: bool = False
    failed: bool = False


async def act(visit: Visit, wish: Wish) -> Done:
    """Does what somebody wants, if they may.

    Raises:
        HTTPException: they may not.
        TaskQError: it cannot be done.
    """
    right, does = ACTIONS[wish.action]
    if right not in visit.visitor.rights:
        raise HTTPException(403, f"You may not {wish.action.replace('_', ' ')} here: that takes the right {right!r}.")
    done = await does(visit, wish)
    if not done.is_question:
        about = {name: value for name, value in (("name", wish.name), ("match", wish.match)) if value}
        if wish.ids:
            about["ids"] = ",".join(wish.ids)
        fields = " ".join(f"{name}={value!r}" for name, value in {"by": visit.visitor.name, **about}.items())
        logger.info("%s: %s (%s)", wish.action, done.told, fields)
    return done


# -- jobs


async def _retry(visit: Visit, wish: Wish) -> Done:
    return await _to_jobs(visit, wish, "Retry", "queued again", lambda job: job.aretry())


async def _cancel(visit: Visit, wish: Wish) -> Done:
    async def cancel(job: Job[Any]) -> None:
        if not await job.acancel():
            raise JobStateError(f"job {job.id} has ended already")

    return await _to_jobs(visit, wish, "Cancel", "cancelled", cancel)


async def _purge(visit: Visit, wish: Wish) -> Done:
    return await _to_jobs(visit, wish, "Remove for good", "removed", lambda job: job.apurge())


async def _to_jobs(
    visit: Visit, wish: Wish, verb: str, done: str, does: Callable[[Job[Any]], Awaitable[object]]
) -> Done:
    """Does something to the jobs that are named or matched, after a question unless it is harmless."""
    if wish.match is not None:
        return await _to_matched(visit, wish, verb, done, does)
    if not wish.ids:
        raise ConfigError("which jobs? Choose some of the list first")
    if wish.action != "retry" and not wish.is_sure:
        which = f"job {wish.ids[0]}" if len(wish.ids) == 1 else count_of(len(wish.ids), "job")
        return Done(f"{verb}: {which}?", is_question=True)
    told = await _each(visit, wish.ids, done, does)
    is_gone = wish.action == "purge" and len(wish.ids) == 1 and not told.failed
    return Done(told.told, "/jobs" if is_gone else "", failed=told.failed)


async def _to_matched(
    visit: Visit, wish: Wish, verb: str, done: str, does: Callable[[Job[Any]], Awaitable[object]]
) -> Done:
    wanted = JobFilter.of(QueryParams(wish.match or ""))
    if wish.action == "retry" and wanted.state != JobState.FAILED:
        raise ConfigError("only failed jobs can be retried: choose the state failed first")
    found = await wanted.jobs(visit.q, visit.now, None, MOST_JOBS + 1)
    is_one_request = wanted.is_simple and (wish.action == "retry" or (wish.action == "purge" and wanted.state))
    is_too_much = len(found) > MOST_JOBS
    if not wish.is_sure:
        count = f"more than {MOST_JOBS:,} jobs" if is_too_much else count_of(len(found), "job")
        only = f" (the newest {MOST_JOBS:,} of them now)" if is_too_much and not is_one_request else ""
        such = ", ".join(f"{name} {text}" for name, text in wanted.as_dict().items()) or "all jobs"
        return Done(f"{verb}: {count} ({such}){only}?", is_question=True)
    if is_one_request:
        task, queue = wanted.task or None, wanted.queue or None
        if wish.action == "retry":
            number = await visit.q.aretry_failed(task=task, queue=queue)
        else:
            number = await visit.q.apurge(wanted.state, task=task, queue=queue)
        return Done(f"{count_of(number, 'job')} {done}.")
    return await _each(visit, [info.id for info in found[:MOST_JOBS]], done, does)


async def _each(visit: Visit, ids: Sequence[str], done: str, does: Callable[[Job[Any]], Awaitable[object]]) -> Done:
    """Does something to each job, some at a time; goes on after errors."""
    errors: list[str] = []
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(job: Job[Any]) -> None:
        async with gate:
            try:
                await does(job)
            except (JobStateError, JobNotFound) as error:
                errors.append(str(error))

    await asyncio.gather(*(one(job) for job in [visit.q.job(job_id) for job_id in ids]))
    told = f"{count_of(len(ids) - len(errors), 'job')} {done}."
    if not errors:
        return Done(told)
    more = f" ... and {len(errors) - _MOST_TOLD:,} more" if len(errors) > _MOST_TOLD else ""
    return Done(f"{told} Not done: {'; '.join(errors[:_MOST_TOLD])}{more}", failed=True)


async def _enqueue(visit: Visit, wish: Wish) -> Done:
    """Enqueues a job of the task of another, with other arguments."""
    [job_id] = wish.ids or [""]
    info = await visit.q.job(job_id).ainfo()
    task = visit.q.tasks.get(info.task)
    if task is None:
        raise ConfigError(f"task {info.task} is not known here: start the dashboard with the application that has it")
    args, kwargs = _value(wish.args, list, "arguments"), _value(wish.kwargs, dict, "keyword arguments")
    job = await task.options(queue=info.queue).aenqueue(*args, **kwargs)
    return Done(f"Job {job.id} is enqueued.", f"/jobs/{job.id}")


def _value(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"the {what} are not JSON: {error}") from None
    if not isinstance(value, kind):
        raise ConfigError(f"the {what} must be a JSON {'array' if kind is list else 'object'}")
    return value


# -- queues, schedules, the fleet


async def _pause(visit: Visit, wish: Wish) -> Done:
    changed = await visit.q.async_client().pause([wish.name], True, f"{visit.visitor.name}, on the web")
    return Done(f"Queue {wish.name} {'is paused' if changed else 'was paused already'}.")


async def _resume(visit: Visit, wish: Wish) -> Done:
    changed = await visit.q.async_client().pause([wish.name], False, f"{visit.visitor.name}, on the web")
    return Done(f"Queue {wish.name} {'is resumed' if changed else 'was not paused'}.")


async def _pause_schedule(visit: Visit, wish: Wish) -> Done:
    await visit.q.schedules.apause(wish.name)
    return Done(f"Schedule {wish.name} is paused.")


async def _resume_schedule(visit: Visit, wish: Wish) -> Done:
    await visit.q.schedules.aresume(wish.name)
    return Done(f"Schedule {wish.name} is resumed.")


async def _run_schedule(visit: Visit, wish: Wish) -> Done:
    job = await visit.q.schedules.arun(wish.name)
    return Done(f"Job {job.id} of schedule {wish.name} is enqueued.", f"/jobs/{job.id}")


async def _reload(visit: Visit, wish: Wish) -> Done:
    if not wish.is_sure:
        return Done("Reload: replace the consumers one by one, so that they run the present code?", is_question=True)
    number = await async_client(visit.q.directory).reload()
    return Done(f"Reload {number} has begun: this page shows how far it is.", "/broker")


async def _stack(visit: Visit, wish: Wish) -> Done:
    if not wish.name.isdecimal():
        raise ConfigError(f"{wish.name!r:.60} is not the number of a consumer")
    asked = await async_client(visit.q.directory).write_stacks(int(wish.name))
    if not asked:
        raise JobNotFound(f"there is no consumer {wish.name} now")
    told = f"Consumer {wish.name} writes its stack; it is here in a moment."
    return Done(told, f"/consumers/{wish.name}")


Does = Callable[[Visit, Wish], Awaitable[Done]]

#: What can be done, the right that it takes, and what does it.
ACTIONS: dict[str, tuple[Right, Does]] = {
    "retry": (Right.RETRY, _retry),
    "cancel": (Right.CANCEL, _cancel),
    "purge": (Right.PURGE, _purge),
    "enqueue": (Right.ENQUEUE, _enqueue),
    "pause": (Right.PAUSE, _pause),
    "resume": (Right.PAUSE, _resume),
    "pause_schedule": (Right.SCHEDULE, _pause_schedule),
    "resume_schedule": (Right.SCHEDULE, _resume_schedule),
    "run_schedule": (Right.SCHEDULE, _run_schedule),
    "reload": (Right.RELOAD, _reload),
    "stack": (Right.STACK, _stack),
}
