"""Errors in a few words."""

from __future__ import annotations

from taskq.model.job import JobError
from taskq.telemetry.words import escape


def headline_of(error: JobError) -> str:
    """The type of an error, and the first line of its message that is not empty."""
    lines = [line for line in error.message.splitlines() if line.strip()]
    return escape(f"{error.type}: {lines[0].strip()}" if lines else error.type)
