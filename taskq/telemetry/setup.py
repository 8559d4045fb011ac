"""The broker's logger: structlog in front, the file and stderr behind.

    log.info("job.failed", task=...) -> level filter -> compose (stamp, order, make plain), redacted -> Fanout -> files
                                                                                                 \\-> stderr

The logger is a value that is handed on, not a global: neither `logging` nor structlog is configured here, so whatever
users configure there is theirs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, cast

from taskq.telemetry.fanout import Fanout, LogFormat, open_stream
from taskq.telemetry.files import log_path, output_path
from taskq.telemetry.record import LEVELS, Event, compose
from taskq.telemetry.redaction import Redaction, redacted
from taskq.telemetry.sink import DEFAULT_KEEP, DEFAULT_MAX_BYTES, RotatingFile
from taskq.telemetry.slim_structlog import FilteringBoundLogger, make_filtering_bound_logger, wrap_logger

Logger = FilteringBoundLogger


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
    redaction: Redaction | None = None,
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
        redaction: the application's function that takes secrets out of events.

    Returns:
        The logger, and what it writes to (see `Fanout.dropped` and `Fanout.close`).
    """
    file = RotatingFile(log_path(directory), max_bytes, keep)
    output = RotatingFile(output_path(directory), output_max_bytes or max_bytes, keep)
    levels = list(LEVELS)
    stderr_levels = levels[levels.index(stderr_level or levels[0]) :]
    fanout = Fanout(file, open_stream(log_format, stderr_fd), stderr_levels, output)
    return bound_logger(fanout, level, redaction=redaction), fanout


def bound_logger(
    fanout: Fanout, level: str, wall: Callable[[], float] = time.time, redaction: Redaction | None = None
) -> Logger:
    """Builds a structlog logger that writes to `fanout`.

    Args:
        fanout: where events go.
        level: the lowest level that is written.
        wall: the time in seconds since the epoch.
        redaction: the application's function that takes secrets out of events.
    """

    def finish(_logger: Any, method: str, fields: MutableMapping[str, Any]) -> tuple[tuple[Event], Event]:
        event = compose(method, cast(Event, fields), wall())
        return (event if redaction is None else redacted(event, redaction),), {}

    lazy = wrap_logger(
        fanout,
        processors=[finish],
        wrapper_class=make_filtering_bound_logger(level),
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast(Logger, lazy.bind())
