"""`taskq enqueue`, `taskq job` and `taskq cancel`: one job at a time."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from taskq.cli.arguments import FleetArgument
from taskq.cli.common import (
    UnknownTask,
    load,
    queue_of,
    reference_of,
    seconds_of,
    tell,
    tell_warnings,
)
from taskq.cli.config.project import app_of
from taskq.cli.ids import whole_id
from taskq.cli.positions import id_first
from taskq.client.app import TaskQ
from taskq.client.options.functions import misfit, signature_of
from taskq.client.options.options import JobOptions, option_types
from taskq.client.task import Task
from taskq.model.errors import BrokerUnavailable, ConfigError
from taskq.model.exits import Exit
from taskq.telemetry.words import escape

IdArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="The job's id, or a unique part of it. APP may come first.", show_default=False),
]

# -- enqueue


def enqueue(
    app: Annotated[
        str,
        typer.Argument(metavar="APP", help="The application; leave it out if TASKQ_APP or pyproject.toml names it."),
    ],
    task: Annotated[str | None, typer.Argument(metavar="TASK", help="The task's name.", show_default=False)] = None,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="The task's arguments. Each is read as JSON, or else taken as text.",
            show_default=False,
        ),
    ] = None,
    *,
    kwargs: Annotated[str, typer.Option(metavar="JSON", help="Keyword arguments, as a JSON object.")] = "{}",
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="The queue.", show_default="the task's own")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="An option of the job, such as delay=5m, priority=3 or unique=KEY. Can be repeated.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", metavar="", help="Wait until the job has ended, and print its result as JSON.")
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long to wait; the job goes on after that.", show_default="no limit"),
    ] = None,
) -> None:
    """Enqueue a job, and print its id. Without a fleet, it goes to the spool.

    With --wait, the exit code is 8 if the job fails.

    $ taskq enqueue app.py:q thumbnail cat.jpg --kwargs '{"size": 128}'
    $ taskq enqueue app.py:q add 1 2 --wait
    $ taskq enqueue app.py:q thumbnail cat.jpg -o delay=5m -o priority=3
    """
    reference, name, texts = _split([app, *([] if task is None else [task]), *(args or [])])
    timeout_s = None if timeout is None else seconds_of(timeout, "--timeout")
    named = _keywords(kwargs)
    options = dict(_option(text) for text in option or ())
    if queue is not None:
        options["queue"] = queue
    arguments = [_value(text) for text in texts]
    application = load(reference)
    found = _task(application, reference, name)
    _check_call(found, arguments, named)
    tell_warnings()
    job = _with_options(found, options).enqueue(*arguments, **named)
    if wait:
        try:
            _tell_if_paused(application, options.get("queue", found.spec.queue))
            _print_value(job.result(timeout_s))
        except KeyboardInterrupt:
            tell(f"job {job.id} goes on")
            raise
        return
    print(job.id, flush=True)
    if job.is_duplicate:
        tell("a job of the same kind has not ended yet: this is its id")


def _tell_if_paused(application: TaskQ, queue: str) -> None:
    """Tells somebody who waits why nothing happens."""
    try:
        paused = application.client.status().paused
    except BrokerUnavailable:
        return  # which is reported elsewhere
    if queue in paused:
        tell(f"queue {queue} is paused, so the job waits: `taskq resume {queue}` lets it run")


def _option(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE, as the type of the option says: a float is a duration."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--option {text!r}: write NAME=VALUE, such as delay=5m")
    types = option_types(name)
    if float in types:
        return name, seconds_of(value, f"--option {name}=")
    if datetime in types:
        try:
            return name, datetime.fromisoformat(value)
        except ValueError:
            raise ConfigError(f"--option {text!r}: write a moment as 2030-12-31T23:59:00+01:00") from None
    return name, value if str in types else _value(value)


def _with_options(task: Task[..., Any], options: dict[str, Any]) -> Any:
    try:
        return task.options(**options) if options else task  # the options are checked there
    except TypeError as error:
        raise ConfigError(str(error)) from None


def _check_call(task: Task[..., Any], arguments: list[Any], named: dict[str, Any]) -> None:
    """Raises ConfigError if the function cannot be called like this: better here than in a job that fails."""
    told = misfit(task.function, arguments, named)
    if told is not None:
        raise ConfigError(f"{task.name}{signature_of(task.function)}: {told}")


def _print_value(value: Any) -> None:
    try:
        print(escape(json.dumps(value, default=repr, ensure_ascii=False)))
    except (TypeError, ValueError):  # such as a tuple as a key
        print(repr(value))


def _split(words: list[str]) -> tuple[str, str, list[str]]:
    """APP, TASK and ARGS. APP may be left out if it is set elsewhere: the name of a task does not look like APP."""
    if ":" not in words[0] and not words[0].endswith(".py"):
        default = app_of(None)
        if default is not None:
            return default.text, words[0], words[1:]
    reference, *rest = words
    if not rest:
        raise ConfigError(f"which task of {reference_of(reference)}? write: taskq enqueue APP TASK [ARGS]...")
    return reference, rest[0], rest[1:]


def _keywords(text: str) -> dict[str, Any]:
    try:
        named = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kwargs {text!r} is not JSON ({error}): write it as '{{\"size\": 128}}'") from None
    if not isinstance(named, dict):
        raise ConfigError(f"--kwargs {text!r} is not a JSON object: write it as '{{\"size\": 128}}'")
    return named


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        if text.startswith("-") and (text[1:2].isalpha() or text.startswith("--")):
            name = text.lstrip("-").partition("=")[0].replace("-", "_")
            hint = f"for an option of the job write -o {name}=..." if name in JobOptions.__annotations__ else ""
            hint = hint or f"as an argument of the task: '\"{text}\"'"
            raise ConfigError(f"no such option: {text} ({hint})") from None
        return text


def _refuse(_name: str) -> None:
    raise ValueError("NaN and Infinity are not JSON: taken as text")


def _task(app: TaskQ, reference: str, name: str) -> Task[..., Any]:
    task = app.tasks.get(name)
    if task is None:
        known = ", ".join(sorted(app.tasks)) or "none at all"
        raise UnknownTask(f"{reference} has no task {name!r}; it has: {known}")
    return task


# -- cancel


def cancel(
    id: IdArgument,
    app: FleetArgument = None,
    *,
    running: Annotated[
        bool, typer.Option("--running/--not-running", help="Also stop it if it is running.", show_default="--running")
    ] = True,
) -> None:
    """Cancel a job. A running job is told to stop, and killed 2 s later.

    $ taskq cancel 019c8a1f2e0b7a30a5f1d2c3b4a59687
    """
    given, app = id_first(id, app)
    application = _application(app)
    handle = application.job(whole_id(application, given))
    if handle.cancel(running=running):
        print(f"{handle.id} is cancelled")
        return
    state = handle.state()
    tell(f"job {handle.id} is {state.value} and was not cancelled")
    raise typer.Exit(Exit.FAILED)


def _application(app: str | None) -> TaskQ:
    return queue_of(app)
