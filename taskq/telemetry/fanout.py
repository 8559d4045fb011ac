"""One event to all places: JSON to the file, and text or JSON to stderr. Needs no structlog."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from taskq.telemetry.files import OUTPUT_EVENTS, log_path
from taskq.telemetry.journald import is_journal, with_priority
from taskq.telemetry.record import LEVELS, Event, compose, encode
from taskq.telemetry.render import render_console
from taskq.telemetry.sink import append_once
from taskq.telemetry.stream import Stream
from taskq.telemetry.words import wants_colour

LogFormat = Literal["auto", "console", "json"]


class LineSink(Protocol):
    """Takes lines and never raises OSError."""

    @property
    def dropped(self) -> int:
        """How many lines were lost since the start."""

    def write(self, line: bytes) -> None:
        """Write one line, which ends with a newline."""

    def close(self) -> None:
        """Release the descriptor."""


class Fanout:
    """Gives each event to the file and to stderr. The methods have the names of the levels, since that is how
    structlog calls the logger it wraps."""

    def __init__(
        self,
        file: LineSink,
        stream: Stream,
        stderr_levels: Collection[str] = LEVELS,
        output: LineSink | None = None,
    ) -> None:
        """
        Args:
            stderr_levels: the levels of the events that go to stderr; the file gets all events.
            output: the file for what jobs print; by default `file`.
        """
        self._file = file
        self._output = file if output is None else output
        self._stream = stream
        self._stderr_levels = frozenset(stderr_levels)
        self._failed = 0

    @property
    def dropped(self) -> int:
        """How many lines of the *files* were lost. What stderr lost is still in the files."""
        lost_output = 0 if self._output is self._file else self._output.dropped
        return self._file.dropped + lost_output + self._failed

    def emit(self, event: Event) -> None:
        """Write an event that `compose` made."""
        try:
            line = encode(event)
            (self._output if event["event"] in OUTPUT_EVENTS else self._file).write(line)
            stream = self._stream
            if stream.alive and event["level"] in self._stderr_levels:
                stream.write(line if stream.render is encode else stream.render(event))
        except Exception:  # a bug in here must not stop the fleet
            self._failed += 1

    debug = info = warning = error = critical = emit

    def close(self) -> None:
        """Close the files and the stream."""
        self._file.close()
        self._output.close()
        self._stream.close()


def open_stream(log_format: LogFormat, fd: int = 2, environ: Mapping[str, str] = os.environ) -> Stream:
    """Open stderr for log lines. If it is systemd's journal, each line says its priority.

    Args:
        log_format: ``auto`` is ``console`` on a terminal and ``json`` otherwise.
        fd: the descriptor.
        environ: the environment, for NO_COLOR, FORCE_COLOR, TERM and JOURNAL_STREAM.
    """
    render = _renderer(log_format, fd, environ)
    if not is_journal(fd, environ):
        return Stream(fd, render)
    return Stream(fd, lambda event: with_priority(render(event), event["level"]))


def _renderer(log_format: LogFormat, fd: int, environ: Mapping[str, str]) -> Callable[[Event], bytes]:
    """What makes the lines of an event."""
    try:
        is_terminal = os.isatty(fd)
    except OSError:
        is_terminal = False
    if log_format == "json" or (log_format == "auto" and not is_terminal):
        return encode
    colour = wants_colour(is_terminal, environ)

    def render(event: Event) -> bytes:
        width = _terminal_width(fd) if is_terminal else None
        return (render_console(event, colour=colour, width=width) + "\n").encode("utf-8", "backslashreplace")

    return render


def announce(directory: Path, log_format: LogFormat, level: str, event: str, *, fd: int = 2, **fields: Any) -> None:
    """Log one event without keeping anything open: for the guardian, beside the broker that owns the log."""
    told = compose(level, {"event": event, **fields}, time.time())
    append_once(log_path(directory), encode(told))
    stream = open_stream(log_format, fd)
    if stream.alive:
        stream.write(stream.render(told))
    stream.close()


def _terminal_width(fd: int) -> int | None:
    """The terminal's width in columns. It is asked each time, since windows are resized."""
    try:
        return os.get_terminal_size(fd).columns or None
    except OSError:
        return None
