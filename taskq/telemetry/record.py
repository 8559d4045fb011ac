"""One log event: which fields it has, in which order, and how they become one line of JSON.

The names of events and fields are a contract with everybody who searches or ships the log. A line starts with
`timestamp`, `level` and `event`. Then come the fields of `FIELDS` that the event has, then all others in the order in
which they were given. Fields without a value (None) are left out.

Nothing that is logged can break the line or the disk: values are reduced to plain JSON, long ones are cut,
and the line is pure ASCII, so that not even `cat` of the file can be made to colour or rewrite a terminal.
"""

from __future__ import annotations

import json
import math
import reprlib
import sys
import traceback
from datetime import UTC, date, datetime
from enum import Enum
from itertools import islice
from typing import Any

Event = dict[str, Any]

FIELDS = (
    "queue",
    "task",
    "job_id",
    "attempt",
    "consumer",
    "pid",
    "duration_ms",
    "exit_code",
    "signal",
    "error",
)
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

TEXT_MAX_CHARS = 8 * 1024
LONG_TEXT_MAX_CHARS = 16 * 1024
LONG_TEXT_FIELDS = frozenset({"error", "traceback"})
MAX_LAST_WORDS_CHARS = 32 * 1024
NAME_MAX_CHARS = 64
OTHER_FIELDS_MAX = 64
ITEMS_MAX = 64
DEPTH_MAX = 4
LINE_MAX_BYTES = 256 * 1024

# What users pass to jobs may be secret or huge. No caller logs it; this makes sure.
NEVER_LOGGED = frozenset({"args", "kwargs", "payload", "result"})

_encoder = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False, check_circular=False)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = TEXT_MAX_CHARS
_INT_LIMIT = 2**63
_SEQUENCES = (list, tuple, set, frozenset)
_EPOCH_TEXT = "1970-01-01T00:00:00.000000Z"


def compose(level: str, fields: Event, now: float) -> Event:
    """Make the event that is written: ordered, plain and bounded.

    Args:
        level: a key of `LEVELS`.
        fields: the fields, with the name of the event under ``event``. The dict is used up. A *number* as
            ``timestamp`` (seconds since the epoch) says when the event happened if that is not now: what a job
            printed reaches the broker a little later.
        now: the time, in seconds since the epoch.
    """
    happened = fields.pop("timestamp", now)
    event: Event = {
        "timestamp": utc_text(happened if isinstance(happened, (int, float)) else now),
        "level": level,
        "event": _plain(fields.pop("event", "log.unnamed"), NAME_MAX_CHARS),
    }
    fields.pop("level", None)
    if "exc_info" in fields:
        _add_traceback(fields)
    for name in FIELDS:
        value = fields.pop(name, None)
        if value is not None:
            event[name] = _plain(value, LONG_TEXT_MAX_CHARS if name == "error" else TEXT_MAX_CHARS)
    if fields:
        _add_others(event, fields)
    return event


def encode(event: Event) -> bytes:
    """The event of `compose` as one line of ASCII JSON, with its newline, of at most `LINE_MAX_BYTES`."""
    line = _encoder.encode(event)
    if len(line) >= LINE_MAX_BYTES:
        line = _encoder.encode(_shrunk(event))
    return (line + "\n").encode("ascii")


def plain_fields(fields: Event) -> Event:
    """Fields that somebody else may have changed, plain and bounded again; those without a value are left out."""
    plain: Event = {}
    _add_others(plain, fields)
    return plain


def utc_text(seconds: float) -> str:
    """A time in seconds since the epoch as ``2026-05-09T07:35:25.123456Z``; always 27 characters, so that
    such texts sort by time."""
    try:
        text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError):
        return _EPOCH_TEXT
    return text[:26] + "Z"


def time_of(event: Event) -> float:
    """When it happened, in seconds since 1970; 0 for a line that somebody wrote by hand."""
    try:
        return datetime.fromisoformat(str(event.get("timestamp", ""))).timestamp()
    except ValueError:
        return 0.0


def _add_others(event: Event, fields: Event) -> None:
    """Add the fields outside the contract."""
    for name, value in islice(fields.items(), OTHER_FIELDS_MAX):
        if value is not None and name not in NEVER_LOGGED:
            limit = LONG_TEXT_MAX_CHARS if name in LONG_TEXT_FIELDS else TEXT_MAX_CHARS
            if name == "output":
                limit = 2 * MAX_LAST_WORDS_CHARS
            event[_cut(name, NAME_MAX_CHARS)] = _plain(value, limit)
    if len(fields) > OTHER_FIELDS_MAX:
        event["truncated"] = True


def _add_traceback(fields: Event) -> None:
    """Turn structlog's `exc_info` (True, an exception or a triple) into ``error`` and ``traceback``."""
    told = fields.pop("exc_info")
    if isinstance(told, tuple) and len(told) == 3:
        told = told[1]
    error = told if isinstance(told, BaseException) else sys.exc_info()[1] if told else None
    if error is None:
        return
    fields.setdefault("error", error)
    try:
        fields.setdefault("traceback", "".join(traceback.format_exception(error)).rstrip())
    except Exception:  # a broken __str__ in the chain
        fields.setdefault("traceback", "".join(traceback.format_tb(error.__traceback__)).rstrip())


def _plain(value: object, limit: int, depth: int = DEPTH_MAX) -> Any:
    """`value` as plain JSON: unchanged if it is that already, or else as text."""
    kind = type(value)
    if kind is str:
        return value if len(value) <= limit else _cut(value, limit)  # type: ignore[arg-type]
    if kind is int:
        return value if -_INT_LIMIT <= value < _INT_LIMIT else _safe_text(value, limit)  # type: ignore[operator]
    if kind is float:
        return round(value, 6) if math.isfinite(value) else str(value)  # type: ignore[call-overload, arg-type]
    if kind is bool or value is None:
        return value
    if depth > 0:
        if isinstance(value, Enum):  # such as signal.SIGKILL
            return _plain(value.value, limit, depth - 1)
        if isinstance(value, float):  # such as numpy.float64
            return _plain(float.__float__(value), limit, depth - 1)
        # exactly these types: iterating a subclass may do anything
        if kind in _SEQUENCES:
            return [_plain(item, limit, depth - 1) for item in islice(value, ITEMS_MAX)]  # type: ignore[call-overload]
        if kind is dict:
            items = islice(value.items(), ITEMS_MAX)  # type: ignore[attr-defined]
            return {_safe_text(key, NAME_MAX_CHARS): _plain(item, limit, depth - 1) for key, item in items}
    return _safe_text(value, limit)


def _safe_text(value: object, limit: int) -> str:
    """The text of any object, whatever its ``__repr__`` does."""
    try:
        if isinstance(value, BaseException):
            return _cut(f"{type(value).__name__}: {value}", limit)
        if isinstance(value, (bytes, bytearray)):
            return _cut(bytes(value[: limit + 1]).decode("utf-8", "backslashreplace"), limit)
        if isinstance(value, (date, datetime)):
            return value.isoformat()
        if isinstance(value, str):
            return _cut(str.__str__(value), limit)
        return _cut(_repr.repr(value), limit)
    except Exception:
        return f"<{type(value).__name__}: its text cannot be had>"


def _cut(text: str, limit: int) -> str:
    """`text` if it is short enough; if not, its beginning and how much is missing."""
    return text if len(text) <= limit else f"{text[:limit]}... [{len(text) - limit} characters cut]"


def _shrunk(event: Event) -> Event:
    """The event with only the fields of the contract, each cut short, as its line was too long."""
    kept = ("timestamp", "level", "event", *FIELDS)
    small = {name: _plain(event[name], 1024, depth=0) for name in kept if name in event}
    return {**small, "truncated": True}
