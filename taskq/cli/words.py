"""Times and errors in a few words."""

from __future__ import annotations

from taskq.model.job import JobError
from taskq.telemetry.render import duration_text, escape


def distance_text(seconds: float) -> str:
    """How far a moment is from now: ``in 12 s``, ``3m 05s ago``, ``just now``."""
    if abs(seconds) < 1:
        return "just now" if seconds <= 0 else "in a moment"
    text = span_text(round(abs(seconds)))
    return f"in {text}" if seconds > 0 else f"{text} ago"


def span_text(seconds: float) -> str:
    """``30 s``, ``0.5 s``, ``3m 05s``, ``1h 02m``, ``2d 03h``."""
    if seconds < 60:
        return f"{seconds:g} s"
    days, rest = divmod(round(seconds), 86_400)
    return f"{days}d {rest // 3600:02d}h" if days else duration_text(seconds * 1000)


def headline_of(error: JobError) -> str:
    """The type of an error, and the first line of its message that is not empty."""
    lines = [line for line in error.message.splitlines() if line.strip()]
    return escape(f"{error.type}: {lines[0].strip()}" if lines else error.type)
