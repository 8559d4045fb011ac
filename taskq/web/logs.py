"""The log of a fleet, read in a thread: the newest events, and each new one as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from taskq.telemetry.reader import Filter, follow, read
from taskq.telemetry.record import Event
from taskq.web.pages import Visit

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
