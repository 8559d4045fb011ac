"""The table of events in docs/events.md, and which lines of a log are not as it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from pages import text_of

from taskq.telemetry.catalogue import FIELDS, JOB_FIELDS

_ROW: Final = re.compile(r"^\| `(\w+\.\w+)` \| ([^|]+) \|.*\| ([^|]*)\|$", re.M)
_ALWAYS: Final = {"timestamp", "level", "event", "truncated", "redaction_failed"}
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Row(NamedTuple):
    """What the table says of an event; "any" stands for all levels, or all fields."""

    levels: set[str]
    fields: set[str]


@cache
def log_table() -> dict[str, Row]:
    """The table, by the names of events."""
    rows: dict[str, Row] = {}
    for event, levels, fields in _ROW.findall(text_of("events.md")):
        names = set(re.findall(r"`(\w+)`", fields)) | ({"any"} if "*any*" in fields else set())
        rows[event] = Row(set(levels.split(", ")), names | (set(JOB_FIELDS) if "*job*" in fields else set()))
    return rows


def unlisted(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """What lines have that the table does not have, or in another way; each once."""
    wrong: dict[str, None] = {}
    for event in events:
        name = str(event.get("event"))
        row = log_table().get(name)
        if row is None:
            wrong[f"the event {name}"] = None
            continue
        if event.get("level") not in row.levels and "any" not in row.levels:
            wrong[f"{name} with the level {event.get('level')}"] = None
        if "any" in row.fields:
            continue  # the others are the job's own
        for field, value in event.items():
            if field not in _ALWAYS | row.fields:
                wrong[f"{name} with the field {field}"] = None
            elif type(value) not in _KINDS[FIELDS[field].kind]:
                wrong[f"{name} with {field} = {value!r}"] = None
    return list(wrong)
