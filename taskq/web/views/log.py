"""The log: its newest lines that fit the filters, and a stream of those that follow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from taskq.model.errors import ConfigError
from taskq.model.units import seconds_in
from taskq.telemetry.reader import Filter, ago
from taskq.telemetry.record import LEVELS, Event, utc_text
from taskq.telemetry.render import render_console
from taskq.web.logs import followed, newest, shown_lines
from taskq.web.pages import Page, Visit

_SHOWN_LINES = 300
#: Of so many lines those are shown that contain a text.
_SEARCHED_LINES = 20_000


def filter_of(visit: Visit) -> tuple[Filter, str]:
    """The filter in the URL, and a text that each line must contain.

    Raises:
        ConfigError: it makes no sense.
    """
    level, since = visit.query("level"), visit.query("since")
    if level and level not in LEVELS:
        raise ConfigError(f"{level!r:.60} is not a level: use one of {', '.join(LEVELS)}")
    since_s = seconds_in(since) if since else None
    if since and since_s is None:
        raise ConfigError(f"{since!r:.60} is not a time: use a duration such as 90s, 10m, 2h or 7d")
    task, job, event = (visit.query(name) or None for name in ("task", "job", "event"))
    return Filter(task, job, event, level or None, None if since_s is None else ago(since_s)), visit.query("text")


async def log(visit: Visit) -> Page:
    """The newest lines of the log."""
    wanted, text = filter_of(visit)
    events = await newest(visit, wanted, _SEARCHED_LINES if text else _SHOWN_LINES)
    found = [event for event in events if text in _line(event)][-_SHOWN_LINES:]
    fields = {name: visit.query(name) for name in ("level", "task", "job", "event", "since", "text")}
    # a stream begins with what came after the newest line that was read, since the page is older than the stream
    after = str(events[-1].get("timestamp", "")) if events else utc_text(visit.now)
    values = {"lines": shown_lines(visit, found), "fields": fields, "levels": list(LEVELS), "after": after}
    return Page("log", "Log", values, is_live=False)


def _line(event: Event) -> str:
    return render_console(event, show_date=True)


async def stream(visit: Visit) -> AsyncIterator[str]:
    """The lines that follow as server-sent events: their level, and how they look, as HTML. They begin after the time
    `after` of the URL."""
    wanted, text = filter_of(visit)
    after = visit.query("after")
    yield ": the lines of the log follow\n\n"
    async for event in followed(visit, wanted, _SHOWN_LINES if after else 0):
        if event is None:
            yield ": nothing new\n\n"
        elif str(event.get("timestamp", "")) > after and text in _line(event):
            [(level, html)] = shown_lines(visit, [event])
            yield f"data: {json.dumps({'level': level, 'html': html})}\n\n"
