"""The newest events of the log for somebody who asks again and again, such as a page: only new lines are read."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from taskq.telemetry.reader import Filter, read
from taskq.telemetry.record import Event, utc_text

#: Lines reach the log this much later than their times say, at the most.
_LATE_S = 5.0
#: How many readings are kept.
_MOST_KEPT = 20

_Key = tuple[Path, Filter, int, int | None]


class KeptLog:
    """What was read of the log before: when, in seconds since 1970, and the events. Any thread may ask."""

    def __init__(self) -> None:
        self._kept: dict[_Key, tuple[float, list[Event]]] = {}
        self._lock = Lock()

    def newest(self, directory: Path, wanted: Filter, last: int) -> list[Event]:
        """The newest events that fit, oldest first.

        Args:
            directory: the fleet's directory.
            wanted: its time is how far back it goes at the most when it is read for the first time.
            last: how many.
        """
        now = time.time()
        span_s = None if wanted.since is None else round(now - wanted.since.timestamp())
        key = directory, replace(wanted, since=None), last, span_s
        with self._lock:
            known = self._kept.get(key)
        if known is None:
            events = list(read(directory, wanted, last))
        else:
            since_at = known[0] - _LATE_S
            fresh = read(directory, replace(wanted, since=datetime.fromtimestamp(since_at, UTC)), last)
            first = utc_text(since_at)
            events = [*(event for event in known[1] if str(event.get("timestamp", "")) < first), *fresh][-last:]
        with self._lock:
            while len(self._kept) >= _MOST_KEPT and key not in self._kept:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = now, events
        return events
