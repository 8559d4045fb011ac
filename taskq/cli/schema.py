"""`taskq schema`: the JSON Schema of what the commands print with `--json`.

It is made from the classes that are printed: the types of their fields, and what their docstrings say about them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from inspect import getdoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from taskq.cli.bench.figures import Report
from taskq.cli.config.command import OptionValue
from taskq.cli.doctor.checks import Finding
from taskq.cli.schedule import RemovedSchedule, StartedJob
from taskq.cli.watch.job import PrintedJob
from taskq.model.errors import ConfigError
from taskq.model.info.failures import Failures
from taskq.model.info.job import JobInfo
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.stack import ConsumerStack
from taskq.model.info.status import FleetStatus
from taskq.model.info.why import WhyInfo
from taskq.telemetry.catalogue import FIELDS, JOB_FIELDS
from taskq.telemetry.files import OUTPUT_EVENTS
from taskq.telemetry.record import LEVELS

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, in seconds; nothing is known where nothing happened.

    Attributes:
        mean: the mean of all times.
        p50: half of them took no longer.
        p90: 90 % of them took no longer.
        p95: 95 % of them took no longer.
        p99: 99 % of them took no longer.
        longest: the longest of them.
    """

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class PrintedCounts:
    """What happened to jobs.

    Attributes:
        enqueued: jobs that came in.
        started: attempts that ran, counted when they ended.
        succeeded: jobs that succeeded.
        failed: jobs that failed for good.
        cancelled: jobs that were cancelled.
        expired: jobs that were not started in time.
        retried: failed attempts that were followed by another.
        crashed: attempts during which the process died.
        timed_out: attempts that ran for too long.
        failed_by_crash: crashed attempts that were the last: their jobs failed for good.
        wait_s: from when a job could have started to when it did.
        run_s: how long attempts ran.
    """

    enqueued: int
    started: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    retried: int
    crashed: int
    timed_out: int
    failed_by_crash: int
    wait_s: Times
    run_s: Times


@dataclass(frozen=True, slots=True)
class PrintedTask:
    """What happened to the jobs of one task in one queue.

    Attributes:
        task: the name of the task; empty for all that are not counted apart.
        queue: the name of the queue; empty as `task`.
        total: since the fleet began.
        last_hour: in the last 60 minutes.
    """

    task: str
    queue: str
    total: PrintedCounts
    last_hour: PrintedCounts


@dataclass(frozen=True, slots=True)
class PrintedStatus(FleetStatus):
    """What a fleet is doing, or what one that does not run has left.

    Attributes:
        tasks: what happened to the jobs of each task and queue.
    """

    tasks: list[PrintedTask] = field(default_factory=list)


#: What each command prints with `--json`. `logs` and `status --watch` print one such object per line.
PRINTED: dict[str, Any] = {
    "status": PrintedStatus,
    "job": PrintedJob,
    "why": WhyInfo,
    "errors": Failures,
    "tasks": list[PrintedTask],
    "jobs": list[JobInfo],
    "schedule": list[ScheduleInfo],
    "schedule pause": ScheduleInfo,
    "schedule resume": ScheduleInfo,
    "schedule run": StartedJob,
    "schedule remove": RemovedSchedule,
    "config": dict[str, OptionValue],
    "bench": Report,
    "doctor": list[Finding],
    "stack": list[ConsumerStack],
}

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_NONE = re.compile(r"\bNone\b")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: The fields of what jobs and consumers print, besides those that they log themselves.
_OF_OUTPUT = ("timestamp", "level", "event", *JOB_FIELDS, "message", "logger", "traceback", "truncated")


def _line_of(description: str, events: dict[str, Any], names: Iterable[str]) -> Schema:
    """A line of the log with certain fields."""
    properties: dict[str, Schema] = {
        name: {"type": FIELDS[name].kind, "description": FIELDS[name].means} for name in names
    }
    properties["level"] = {"enum": list(LEVELS), "description": FIELDS["level"].means}
    properties["event"] |= events
    required = ["timestamp", "level", "event"]
    return {"type": "object", "description": description, "properties": properties, "required": required}


#: A line of the log.
LOG_LINE: Schema = {
    "$schema": _DIALECT,
    "anyOf": [
        _line_of("One event of the log: what taskq tells.", {}, FIELDS),
        _line_of(
            "What a job or a consumer has printed or logged. It may have more fields, which are its own.",
            {"enum": sorted(OUTPUT_EVENTS)},
            _OF_OUTPUT,
        ),
    ],
}


def schema(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND]", help="The command, such as status or schedule run.", show_default=False),
    ] = None,
) -> None:
    """Print the JSON Schema of what a command prints with --json.

    Without a command, print those of all commands. Fields may be added in later
    versions; none changes its meaning.

    $ taskq schema status
    $ taskq schema schedule run
    """
    name = " ".join(words or ())
    known = {**{command: schema_of(kind) for command, kind in PRINTED.items()}, "logs": LOG_LINE}
    if name and name not in known:
        raise ConfigError(f"{name!r} prints no JSON: use one of {', '.join(known)}")
    print(json.dumps(known[name] if name else known, indent=2))


def schema_of(kind: Any) -> Schema:
    """The JSON Schema of a type. Its values are printed by `json.dumps`, dataclasses as `asdict` makes them."""
    definitions: dict[str, Schema] = {}
    found = _schema(kind, definitions)
    return {"$schema": _DIALECT, **found, **({"$defs": definitions} if definitions else {})}


def _schema(kind: Any, definitions: dict[str, Schema]) -> Schema:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(each, definitions) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    assert is_dataclass(kind), f"nobody knows how {kind} is printed"
    assert isinstance(kind, type)
    name = kind.__name__
    if name not in definitions:
        definitions[name] = {}  # known from now on, in case it is among its own fields
        definitions[name] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _object(kind: Any, definitions: dict[str, Schema]) -> Schema:
    hints = get_type_hints(kind)
    told = {name: text for base in reversed(kind.__mro__) for name, text in _attributes(getdoc(base) or "")}
    properties = {
        each.name: {**_schema(hints[each.name], definitions), "description": _sentence(told[each.name])}
        for each in fields(kind)
    }
    return {
        "type": "object",
        "description": _sentence((getdoc(kind) or "").partition("\n")[0]),
        "properties": properties,
        "required": list(properties),
    }


def _sentence(text: str) -> str:
    """What a docstring says in Python's words, as a sentence about JSON."""
    text = _NONE.sub("null", text)
    return text[:1].upper() + text[1:]


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """What a docstring says under "Attributes:", by the names of the attributes."""
    names: list[str] = []
    words: list[str] = []
    for line in docstring.partition("Attributes:\n")[2].splitlines():
        head, colon, rest = line.strip().partition(": ")
        if colon and len(line) - len(line.lstrip()) == 4:
            yield from ((name, " ".join(words)) for name in names)
            names, words = head.split(", "), [rest]
        else:
            words.append(line.strip())
    yield from ((name, " ".join(words).strip()) for name in names)
