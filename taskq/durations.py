"""Spans of time as people write them, such as ``90``, ``30s`` or ``1.5h``."""

from __future__ import annotations

import re
from typing import Final

#: The seconds in each unit; a number without one counts seconds.
UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w|)")


def seconds_in(text: str) -> float | None:
    """The seconds in a duration such as ``"30s"``; None if the text is none."""
    match = _DURATION.fullmatch(text.strip().lower())
    return None if match is None else float(match[1]) * UNITS_S[match[2]]
