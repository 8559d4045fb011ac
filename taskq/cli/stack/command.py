"""`taskq stack`: where the consumers are in their code at this moment, while their jobs go on.

The broker asks them by a signal, so the answer also comes from a consumer that is stuck in C code, and it goes to the
log, where this command reads it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from taskq.cli.arguments import FleetArgument, JsonOption
from taskq.cli.common import queue_of
from taskq.cli.ids import is_id, whole_id
from taskq.cli.positions import looks_like_app
from taskq.client.app import TaskQ
from taskq.client.transport.blocking import Client
from taskq.model.errors import ConfigError, JobNotFound, JobStateError, TaskQError
from taskq.model.info.stack import ConsumerStack, stack_of
from taskq.model.info.status import FleetStatus
from taskq.system.directory import Directory
from taskq.telemetry.reader import Filter, ago, follow
from taskq.telemetry.words import duration_text, escape

#: The broker tells of stacks when no more lines of them have come for a second.
_WAIT_S = 10.0
_POLL_S = 0.1
#: The clocks of the broker and of this process are one, and lines come late, not early.
_EARLIER_S = 1.0


def stack(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONSUMER|JOB]", help="The number of a consumer, or the id of a running job.", show_default=False
        ),
    ] = None,
    app: FleetArgument = None,
    as_json: JsonOption = False,
) -> None:
    """Show where consumers are in their code, while their jobs go on.

    Without a number or an id, show all consumers. It also works where a job is
    stuck in C code.

    $ taskq stack app.py:q
    $ taskq stack 2 app.py:q
    $ taskq stack 019c8a1f app.py:q
    """
    if which is not None and not _is_consumer_or_job(which) and (app is None or _is_consumer_or_job(app)):
        which, app = app, which
    application = queue_of(app)
    directory = application.directory
    client = Client(directory)
    status = client.status()
    number = None if which is None else _number_of(which, status, application)
    asked = client.write_stacks(number)
    if number is not None and not asked:
        raise ConfigError(f"there is no consumer {number}: the fleet has {_numbers(status)}")
    found = list(answers(directory, dict(asked), status))
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    elif found:
        print("\n\n".join(map(text_of, found)))
    silent = sorted({number for number, _ in asked} - {each.consumer for each in found})
    if silent:
        numbers = ", ".join(map(str, silent))
        raise TaskQError(
            f"consumer {numbers} did not write its stacks within {_WAIT_S:g} s: "
            "is it stopped, or has a job replaced the handler of SIGQUIT?"
        )


def _is_consumer_or_job(word: str) -> bool:
    return (word.isdecimal() or is_id(word)) and not looks_like_app(word)


def _number_of(which: str, status: FleetStatus, application: TaskQ) -> int | None:
    """The consumer that is meant; None for all, if it runs several jobs and nobody knows which has this one."""
    if which.isdecimal() and len(which) < 6:
        return int(which)
    job_id = whole_id(application, which)
    for consumer in status.consumers:
        if consumer.job_id == job_id:
            return consumer.number
    state = application.job(job_id).state()
    if state != "running":
        raise JobStateError(f"job {job_id} is {state}: only a running job has a stack; taskq job {job_id} tells more")
    if any(consumer.slots > 1 for consumer in status.consumers):
        return None
    raise JobNotFound(f"job {job_id} has just begun or ended: try again")


def _numbers(status: FleetStatus) -> str:
    return ", ".join(str(consumer.number) for consumer in status.consumers) or "none"


def answers(directory: Directory, asked: dict[int, int], status: FleetStatus) -> Iterator[ConsumerStack]:
    """What consumers write, as it comes, until all have answered or the time is over.

    Args:
        asked: the process ids of the consumers that were asked, by their numbers.
        status: what they did then.
    """
    until = time.monotonic() + _WAIT_S
    waiting = {pid: number for number, pid in asked.items()}
    runs = {consumer.pid: consumer for consumer in status.consumers}

    def wait(seconds: float) -> bool:
        time.sleep(min(seconds, _POLL_S))
        return time.monotonic() > until

    wanted = Filter(event="consumer.stacks", since=ago(_EARLIER_S))
    if not waiting:
        return
    for event in follow(directory.path, wanted, last=len(waiting), wait=wait):
        number = waiting.pop(event.get("pid", 0), None)
        if number is not None:
            yield stack_of(number, event, runs.get(event["pid"]))
        if not waiting:
            return


def text_of(found: ConsumerStack) -> str:
    """A stack as lines for people."""
    runs = "" if found.task is None else f": {found.task}, job {found.job_id}"
    span = "" if found.running_s is None else f", for {duration_text(found.running_s * 1e3)}"
    lines: Sequence[str] = found.stack.splitlines() or ["is idle"]
    return "\n".join([f"consumer {found.consumer} (pid {found.pid}){escape(runs)}{span}", *map(_indented, lines)])


def _indented(line: str) -> str:
    return f"  {escape(line)}"
