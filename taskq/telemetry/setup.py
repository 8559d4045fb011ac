"""The broker's logger.

    log.info("job.failed", task=...) -> level filter -> compose (stamp, order, make plain) -> Fanout -> files
                                                                                                 \\-> stderr

The logger is a value that is handed on, not a global: `logging` and structlog are not configured here, so whatever
users configure there is theirs alone. It is called as a logger of structlog is, but it is our own: importing structlog
would add 120 ms of CPU time to the start of a fleet.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from taskq.telemetry.fanout import Fanout, LogFormat, open_stream
from taskq.telemetry.files import log_path, output_path
from taskq.telemetry.record import LEVELS, compose
from taskq.telemetry.sink import DEFAULT_KEEP, DEFAULT_MAX_BYTES, RotatingFile


class Logger:
    """Writes events with their fields: ``log.info("job.failed", task="resize", job_id=...)``."""

    def __init__(self, fanout: Fanout, level: str) -> None:
        """
        Args:
            fanout: where the events go.
            level: the lowest level that is written.
        """
        self._fanout = fanout
        self._lowest = LEVELS[level]

    def debug(self, event: str, **fields: Any) -> None:
        """Writes an event that matters only when something is being looked for."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Writes an event of normal operation."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Writes an event that somebody should look at in time."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Writes that something failed."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Writes an error with the traceback of the exception that is being handled."""
        self._write("error", event, {"exc_info": True, **fields})

    def critical(self, event: str, **fields: Any) -> None:
        """Writes an event after which the fleet cannot go on as it is."""
        self._write("critical", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._lowest:
            self._fanout.emit(compose(level, {"event": event, **fields}, time.time()))


def configure(
    directory: Path,
    log_format: LogFormat = "auto",
    level: str = "info",
    *,
    stderr_level: str | None = None,
    stderr_fd: int = 2,
    max_bytes: int = DEFAULT_MAX_BYTES,
    output_max_bytes: int | None = None,
    keep: int = DEFAULT_KEEP,
) -> tuple[Logger, Fanout]:
    """Build the logger of the broker. It never raises and never waits, whatever happens to disk and terminal.

    Args:
        directory: the fleet's directory; the log goes to its ``log/taskq.jsonl``.
        log_format: the format on stderr; ``auto`` is ``console`` on a terminal and ``json`` otherwise.
        level: the lowest level that is written: debug, info, warning, error or critical.
        stderr_level: the lowest level that goes to stderr; by default all that is written.
        stderr_fd: the descriptor to use as stderr.
        max_bytes: the size at which the file is rotated.
        output_max_bytes: the same for the file with what jobs print; by default equal.
        keep: how many rotated files are kept.

    Returns:
        The logger, and what it writes to (see `Fanout.dropped` and `Fanout.close`).
    """
    file = RotatingFile(log_path(directory), max_bytes, keep)
    output = RotatingFile(output_path(directory), output_max_bytes or max_bytes, keep)
    levels = list(LEVELS)
    stderr_levels = levels[levels.index(stderr_level or levels[0]) :]
    fanout = Fanout(file, open_stream(log_format, stderr_fd), stderr_levels, output)
    return Logger(fanout, level), fanout
