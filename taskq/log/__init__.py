"""The structured log: one JSON line per event in ``<directory>/log/taskq.jsonl``, and a console on stderr.

    broker    setup.configure -> record.compose -> fanout -> sink (file), stream (stderr)
    guardian  fanout.announce
    CLI       reader.read, reader.follow -> render.render_console

The broker imports `taskq.log.setup` itself; it is not among the names here, since it imports structlog.
"""

from taskq.log.fanout import Fanout, LogFormat, announce
from taskq.log.files import log_path
from taskq.log.reader import Filter, ago, follow, read
from taskq.log.record import LEVELS, Event
from taskq.log.render import render_console, wants_colour
from taskq.log.throttle import JobLogThrottle, LineLimit

__all__ = [
    "LEVELS",
    "Event",
    "Fanout",
    "Filter",
    "JobLogThrottle",
    "LineLimit",
    "LogFormat",
    "ago",
    "announce",
    "follow",
    "log_path",
    "read",
    "render_console",
    "wants_colour",
]
