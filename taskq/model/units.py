"""Spans of time as people write them, such as ``90``, ``30s`` or ``1.5h``."""

from __future__ import annotations

import re
from typing import Final

from taskq.model.errors import ConfigError

#: The seconds in each unit; a number without one counts seconds.
UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}


_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|)")


def seconds_in(text: str) -> float | None:
    """The seconds in a duration such as ``"30s"``; None if the text is none."""
    match = _DURATION.fullmatch(text.strip().lower())
    return None if match is None else float(match[1]) * UNITS_S[match[2]]


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


def bytes_of_text(value: int | str | None, option: str) -> int | None:
    """The bytes in ``512MB``, ``2 GiB``, or a plain number.

    Raises:
        ConfigError: it is none.
    """
    if value is None or isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f'{option}={value!r:.50}: use bytes, or a text such as "512MB" or "2GiB"')
    return int(float(match[1]) * _UNITS[match[2].lower()])


def text_of_bytes(count: int) -> str:
    """``512 MB``."""
    return f"{count / 1e6:,.0f} MB" if count >= 10_000_000 else f"{count / 1e6:,.1f} MB"
