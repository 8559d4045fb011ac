"""`taskq jobs`, `retry`, `purge`, `pause` and `resume`: many jobs at a time, and whole queues."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, NoReturn

import typer

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import names_in_code, queue_of, seconds_of, tell, tell_if_stopped, warn_of_name
from taskq.cli.ids import is_id, whole_id
from taskq.cli.positions import looks_like_app, split
from taskq.cli.tables import Cell, Column, plain, short_ids, table, width_of_terminal
from taskq.cli.words import headline_of
from taskq.client.app import TaskQ
from taskq.client.options.search import SearchOptions
from taskq.model.errors import ConfigError, JobNotFound, JobStateError
from taskq.model.exits import Exit
from taskq.model.info.job import JobInfo
from taskq.model.info.words import count_of, distance_text
from taskq.model.job import JobState
from taskq.telemetry.words import duration_text

StateOption = Annotated[
    str | None,
    typer.Option(
        metavar="STATE", help=f"Only jobs in this state: {', '.join(JobState)}.", autocompletion=lambda: list(JobState)
    ),
]
TaskOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this task.")]
QueueOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only jobs of this queue.")]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID]... [APP]", help="The ids of jobs, and the application.", show_default=False),
]
QueuesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="QUEUE... [APP]", help="The names of queues, and the application.", show_default=False),
]

# -- jobs


def jobs(
    app: FleetArgument = None,
    state: StateOption = None,
    task: TaskOption = None,
    queue: QueueOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="List at most N jobs.")] = 50,
    before: Annotated[
        str | None,
        typer.Option(metavar="ID", help="List jobs enqueued before this one, such as the last of a list."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only jobs enqueued within this time, such as 12h or 7d.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only jobs enqueued longer ago than this, such as 30m.")
    ] = None,
    attempts: Annotated[int, typer.Option(min=0, metavar="N", help="Only jobs with N attempts or more.")] = 0,
    text: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Only jobs with TEXT in their error, meta or keys; upper and lower case are distinguished.",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first.

    --state scheduled lists them in the order in which they come due.
    --state failed lists the dead letters: jobs that have no retries left. They
    are kept until they are retried or purged.

    $ taskq jobs --state failed
    $ taskq jobs app.py:q --state failed --task thumbnail --json | jq .[].error
    $ taskq jobs --since 1d --text "Connection refused"
    """
    application = _application(app)
    last = None if before is None else whole_id(application, before)
    first, end = _ago("since", since), _ago("until", until)
    if first is not None and end is not None and first >= end:
        raise ConfigError(f"--since {since} must be longer ago than --until {until}: no job is in both")
    search: SearchOptions = {"since": first, "until": end}
    if attempts or text:
        search |= {"attempts": attempts, "text": text}
    found = application.jobs(state, task=task, queue=queue, limit=limit, before=last, **search)
    tell_if_stopped(application)
    if as_json:
        print(json.dumps([asdict(info) for info in found]))
        return
    if not found:
        is_search = since or until or attempts or text
        such = " like that" if is_search else ""
        tell(f"there is no {_said(state, 'job', task, queue)}{such}{' before that one' if before else ''}")
        for field, name in (("task", task), ("queue", queue)):
            if name is not None:
                warn_of_name(application.directory, field, name, names_in_code(app, field))
        return
    _print_table(found)
    if len(found) == limit:
        tell(f"there may be more: go on with --before {found[-1].id}")


def _ago(name: str, span: str | None) -> float | None:
    return None if span is None else time.time() - seconds_of(span, f"--{name}")


_COLUMNS = (
    Column("id"),
    Column("state"),
    Column("task", is_name=True),
    Column("queue", is_name=True),
    Column("attempts", "tries", is_right=True),
    Column("when", is_right=True),
    Column("error", is_story=True),
)


def _print_table(found: Sequence[JobInfo]) -> None:
    ids = short_ids([info.id for info in found])
    rows = [
        (
            Cell(info.id, ids[info.id]),
            _state(info),
            info.task,
            info.queue,
            str(info.attempts),
            _when(info),
            "" if info.error is None else headline_of(info.error),
        )
        for info in found
    ]
    print(plain(table(_COLUMNS, rows, width_of_terminal())))


def _state(info: JobInfo) -> Cell:
    """Its state, and whether it is to be run again."""
    if info.state == JobState.SCHEDULED and info.attempts:
        return Cell("scheduled (retry)", "retry")
    return Cell(info.state.value)


def _when(info: JobInfo) -> str:
    """The time that matters most in the state of the job."""
    now = time.time()
    if info.due_at is not None:
        return distance_text(info.due_at - now) if info.due_at > now else "due"
    if info.state == JobState.RUNNING and info.started_at is not None:
        return f"for {duration_text((now - info.started_at) * 1000)}"
    return distance_text(min(0.0, (info.finished_at or info.enqueued_at) - now))


# -- retry


def retry(
    words: IdsArgument = None,
    every: Annotated[bool, typer.Option("--all", metavar="", help="All failed jobs.")] = False,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="All failed jobs of this task.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="All failed jobs of this queue.")] = None,
) -> None:
    """Queue failed jobs again, with all their retries.

    They go to the end of their queues. The count of their attempts goes on, and
    their history is kept.

    $ taskq retry 019c8a1f2e0b7a30a5f1d2c3b4a59687
    $ taskq retry app.py:q --task thumbnail
    $ taskq retry --all
    """
    ids, app = split(words, is_id)
    if bool(ids) == bool(every or task or queue):
        raise ConfigError("which jobs? name some by their ids, or say --all, --task NAME or --queue NAME")
    application = _application(app)
    if ids:
        _each(application, ids, "retry", "is queued again")
    count = application.retry_failed(task=task, queue=queue)
    tell_if_stopped(application)
    if count:
        print(f"{count_of(count, 'failed job')} {'is' if count == 1 else 'are'} queued again")
    else:
        tell(f"nothing to retry: there is no {_said('failed', 'job', task, queue)}")


def _each(application: TaskQ, ids: Sequence[str], action: str, done: str) -> NoReturn:
    """Does something to each of these jobs. Goes on after an error, which sets the exit code."""
    code = Exit.OK
    for given in ids:
        try:
            job_id = whole_id(application, given)
            getattr(application.job(job_id), action)()
        except (JobStateError, JobNotFound) as error:
            tell(str(error))
            code = Exit.NOT_FOUND if isinstance(error, JobNotFound) and code is not Exit.FAILED else Exit.FAILED
        else:
            print(f"{job_id} {done}")
    tell_if_stopped(application)
    raise typer.Exit(code)


# -- purge


def purge(
    words: IdsArgument = None,
    state: StateOption = None,
    task: TaskOption = None,
    queue: QueueOption = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only jobs that ended (or, if pending, were enqueued) more than 10m, 2h, 7d ... ago."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Do not ask.")] = False,
) -> None:
    """Remove jobs for good, in any state but running.

    --state queued empties queues: programs that wait for these jobs are told
    that they are gone.

    $ taskq purge 019c8a1f2e0b7a30a5f1d2c3b4a59687
    $ taskq purge --state failed --older-than 7d
    $ taskq purge app.py:q --state queued --queue mail --yes
    """
    ids, app = split(words, is_id)
    if bool(ids) == bool(state) or (ids and (task or queue or older_than)):
        raise ConfigError("which jobs? name some by their ids, or say --state failed, --state queued ...")
    older_than_s = None if older_than is None else seconds_of(older_than, "--older-than")
    application = _application(app)
    if ids:
        _confirm(f"remove {count_of(len(ids), 'job')} for good", yes)
        _each(application, ids, "purge", "is purged")
    assert state is not None
    older = "" if older_than is None else f", older than {older_than}"
    _confirm(f"remove all {_said(state, 'jobs', task, queue)}{older} from {application.place.shown} for good", yes)
    count = application.purge(state, task=task, queue=queue, older_than=older_than_s)
    if count:
        print(f"{count_of(count, 'job')} purged")
    else:
        tell(f"nothing to purge: there is no {_said(state, 'job', task, queue)}{older}")


def _confirm(question: str, yes: bool) -> None:
    """Asks for confirmation on a terminal. A script is not asked."""
    if not yes and sys.stdin.isatty():
        typer.confirm(f"taskq: {question}?", abort=True, err=True)


# -- pause and resume


def pause(words: QueuesArgument = None) -> None:
    """Pause queues: running jobs may finish, and no other job starts.

    New jobs are accepted. The pause lasts until `taskq resume`, also across
    restarts. A fleet with --drain does not wait for jobs of paused queues.

    $ taskq pause mail
    $ taskq pause mail images app.py:q
    """
    queues, app = split(words, _is_queue)
    if not queues:
        raise ConfigError("which queues? write: taskq pause QUEUE...")
    application = _application(app)
    for queue in queues:
        warn_of_name(application.directory, "queue", queue, names_in_code(app, "queue"))
    changed = application.pause(*queues)
    for queue in queues:
        print(f"{queue} {'is paused' if queue in changed else 'was paused already'}")


def resume(
    words: QueuesArgument = None,
    every: Annotated[bool, typer.Option("--all", metavar="", help="All paused queues.")] = False,
) -> None:
    """Let the jobs of paused queues run again.

    $ taskq resume mail
    $ taskq resume --all
    """
    queues, app = split(words, _is_queue)
    if bool(queues) == every:
        raise ConfigError("which queues? write: taskq resume QUEUE..., or taskq resume --all")
    application = _application(app)
    if every:
        queues = application.client.status().paused
        if not queues:
            tell("nothing to resume: no queue is paused")
            return
    changed = application.resume(*queues)
    for queue in queues:
        print(f"{queue} {'is resumed' if queue in changed else 'was not paused'}")


# -- helpers


def _application(app: str | None) -> TaskQ:
    return queue_of(app)


def _is_queue(word: str) -> bool:
    return not looks_like_app(word)


def _said(state: str | None, noun: str, task: str | None, queue: str | None) -> str:
    """``failed jobs of task add in queue mail``, with those parts that were given."""
    parts = (
        "" if state is None else f"{state} ",
        noun,
        "" if task is None else f" of task {task}",
        "" if queue is None else f" in queue {queue}",
    )
    return "".join(parts)
