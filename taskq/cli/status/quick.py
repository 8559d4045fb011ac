"""`taskq status` of a fleet that runs and whose place is known without importing an application: in a third of the time
that the client and typer take to import.

The status is shown as it travels, since also to import the classes of `taskq.model.info.status` takes long.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from taskq.cli.config.places import default_place
from taskq.cli.config.project import app_of
from taskq.cli.status.show import show
from taskq.client.transport.quick import ask_quickly, counts_quickly
from taskq.model.errors import TaskQError
from taskq.system.directory import Directory, reply_timeout_s

if TYPE_CHECKING:
    from taskq.model.info.status import FleetStatus

_OPTIONS = frozenset({"--json", "--watch"})


def answer_quickly(words: Sequence[str]) -> None:
    """Prints the status and ends the process, if it can be had in this way; otherwise typer reads the words.

    Args:
        words: those after `taskq status`.
    """
    options = [word for word in words if word in _OPTIONS]
    places = [word for word in words if word not in _OPTIONS]
    if len(places) > 1 or any(word.startswith("-") for word in places):
        return
    try:
        directory = _directory(places[0] if places else None)
        if directory is None:
            return
        first = [_status(directory)]
        if "flows" not in first[0]:
            return  # an older broker, which does not tell all of it

        def look() -> Mapping[str, Any]:
            return first.pop() if first else _status(directory)

        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        text = (lambda: _json(look(), directory)) if "--json" in options else None
        show(text, lambda: _seen(look()), goes_on="--watch" in options)
        sys.stdout.flush()
    except TaskQError:
        return  # the other way has more to say: it reads what a fleet that does not run has left
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more at its end
    sys.exit()


def _directory(place: str | None) -> Directory | None:
    """The directory of the fleet; None if only an application knows it, or if its queue is in a database."""
    if place is None and app_of(None) is not None and not os.environ.get("TASKQ_URL"):
        return None
    if place is None and os.environ.get("TASKQ_APP"):
        return None
    if place is None:
        found = default_place()
        if found.database is not None:
            return None
        directory = found.directory
    elif ":" in place or not os.path.isdir(place) or os.path.exists(os.path.join(place, "__init__.py")):
        return None
    else:
        directory = Directory(Path(place).absolute())
    directory.check_owner()
    return directory


def _status(directory: Directory) -> Mapping[str, Any]:
    """The status as it travels: see `taskq.protocol.status`."""
    told = ask_quickly(directory, True, reply_timeout_s())
    if isinstance(told, TaskQError):
        raise told
    return told


def _seen(told: Mapping[str, Any]) -> FleetStatus:
    """A status as it travels, as a picture needs it."""
    unknown = {"cpu_percent": None, "machine": None}  # to an older broker
    found = ({**unknown, **each, "progress": _progress(each["progress"])} for each in told["consumers"])
    consumers = [SimpleNamespace(**each) for each in found]
    named = {name: {queue: SimpleNamespace(**own) for queue, own in told[name].items()} for name in ("queues", "flows")}
    missing = [SimpleNamespace(**each) for each in told["not_started"]]
    parts = {name: SimpleNamespace(**told[name]) for name in ("broker", "reload", "totals")}
    return cast(
        "FleetStatus",
        SimpleNamespace(**{**told, **named, **parts, "consumers": consumers, "not_started": missing, "machines": []}),
    )


def _progress(told: Sequence[Any] | None) -> object:
    if told is None:
        return None
    from taskq.model.job import Progress  # few jobs have any

    return Progress(*told)


def _json(told: Mapping[str, Any], directory: Directory) -> str:
    import json  # few ask for it
    from dataclasses import asdict

    counts = counts_quickly(directory, reply_timeout_s())
    if isinstance(counts, TaskQError):
        raise counts
    for consumer in told["consumers"]:
        progress = _progress(consumer["progress"])
        consumer["progress"] = None if progress is None else asdict(cast(Any, progress))
    return json.dumps({**told, "machines": [], "tasks": [each.as_dict() for each in counts]})
