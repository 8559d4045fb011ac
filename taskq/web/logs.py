"""The log of a fleet, read in a thread: the newest events, and each new one as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from markupsafe import Markup

from taskq.telemetry.reader import Filter, follow, read
from taskq.telemetry.record import Event, utc_text
from taskq.telemetry.render import render_console
from taskq.web import texts
from taskq.web.pages import Visit, link_maker

#: Events that wait for a slow browser; the reader waits, too, while there are that many.
_MOST_WAITING = 1_000
#: A stream says at least this often that it is alive, so that the end of the connection is noticed.
_ALIVE_S = 15.0
#: How often the thread looks whether its stream has ended, while it waits for a slow browser.
_LOOK_S = 0.5


async def newest(visit: Visit, wanted: Filter, last: int) -> list[Event]:
    """The newest events that fit, oldest first."""
    return await asyncio.to_thread(lambda: list(read(visit.q.directory.path, wanted, last)))


async def kept_newest(visit: Visit, wanted: Filter, last: int) -> list[Event]:
    """`newest` for a page that asks again and again: what was read before is kept, and only what came after it is
    read."""
    return await asyncio.to_thread(visit.kept.newest, visit.q.directory.path, wanted, last)


def in_order(events: Sequence[Event], starts: Mapping[int, float]) -> list[Event]:
    """The events of one job in the order in which they happened: the broker writes that an attempt has started when it
    has been running for a moment, so behind what it has printed by then. Pure.

    Args:
        events: in the order in which they were written.
        starts: when each attempt began, in seconds since 1970.
    """
    placed = [_as_it_began(event, starts) if event.get("event") == "job.started" else event for event in events]
    return sorted(placed, key=lambda event: str(event.get("timestamp", "")))


def _as_it_began(event: Event, starts: Mapping[int, float]) -> Event:
    attempt = event.get("attempt")
    at = starts.get(attempt) if isinstance(attempt, int) else None
    return event if at is None else {**event, "timestamp": min(utc_text(at), str(event.get("timestamp", "")))}


def shown_lines(visit: Visit, events: Iterable[Event]) -> list[tuple[str, Markup]]:
    """For each event its level, and its text with links to what it is about."""
    link = link_maker(visit.request)
    return [(str(event.get("level", "")), texts.line(render_console(event, show_date=True), link)) for event in events]


async def followed(visit: Visit, wanted: Filter, last: int) -> AsyncIterator[Event | None]:
    """The last events that fit, and each new one as it is written; None now and then if there is none."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue(_MOST_WAITING)
    ended = threading.Event()

    def run() -> None:
        for event in follow(visit.q.directory.path, wanted, last, wait=ended.wait):
            handed = asyncio.run_coroutine_threadsafe(events.put(event), loop)
            while not ended.is_set():
                try:
                    handed.result(_LOOK_S)
                    break
                except TimeoutError:
                    pass  # the browser is slow
            if ended.is_set():
                handed.cancel()
                return

    # a thread of its own: those of the loop's executor are few, and this one stays
    threading.Thread(target=run, name="taskq log", daemon=True).start()
    try:
        while True:
            try:
                yield await asyncio.wait_for(events.get(), _ALIVE_S)
            except TimeoutError:
                yield None
    finally:
        ended.set()
