"""The log of a fleet, read in a thread: the newest events, and each new one as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace

from taskq.telemetry.reader import Filter, follow, read
from taskq.telemetry.record import Event
from taskq.web.pages import Visit

#: Events that wait for a slow browser; the reader waits, too, while there are that many.
_MOST_WAITING = 1_000
#: How many readings are kept.
_MOST_KEPT = 20
#: A stream says at least this often that it is alive, so that the end of the connection is noticed.
_ALIVE_S = 15.0
#: How often the thread looks whether its stream has ended, while it waits for a slow browser.
_LOOK_S = 0.5


async def newest(visit: Visit, wanted: Filter, last: int, kept_s: float = 0.0) -> list[Event]:
    """The newest events that fit, oldest first.

    Args:
        kept_s: for how many seconds what was read before may be returned again.
    """
    span_s = None if wanted.since is None else round(visit.now - wanted.since.timestamp())
    key = replace(wanted, since=None), last, span_s
    read_at, events = visit.kept.get(key, (0.0, []))
    if not visit.now - kept_s < read_at <= visit.now:
        events = await asyncio.to_thread(lambda: list(read(visit.q.directory.path, wanted, last)))
        if kept_s:
            while len(visit.kept) >= _MOST_KEPT:
                visit.kept.pop(next(iter(visit.kept)))
            visit.kept[key] = visit.now, events
    return events


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
