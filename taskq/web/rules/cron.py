"""Cron expressions in words, and the times at which schedules fire next. Pure."""

from __future__ import annotations

import re

from taskq.model.errors import ConfigError
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.words import span_text
from taskq.model.schedule import Schedule, next_fire
from taskq.model.spec import Spec

_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_SHORT_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMED = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = 5
_EACH = re.compile(r"\*/(\d+)")
_SHOWN_TIMES = 3


def words_of(info: ScheduleInfo) -> str:
    """When a schedule fires, in words."""
    if info.every is not None:
        when = f"every {span_text(info.every)}"
    else:
        words = in_words(info.cron or "")
        when = f"{words or info.cron} ({info.timezone})"
    return f"{when}, up to {span_text(info.jitter)} later" if info.jitter else when


def in_words(cron: str) -> str:
    """``daily at 03:00`` for ``0 3 * * *``; empty for an expression that has no short form in words."""
    fields = _NAMED.get(cron.strip().lower(), cron).split()
    if len(fields) != _FIELDS:
        return ""
    minute, hour, day, month, weekday = fields
    every = (day, month, weekday) == ("*", "*", "*")
    if every and hour == "*":
        return _minutes_in_words(minute)
    each = _EACH.fullmatch(hour)
    if every and each and minute.isdecimal():
        return f"every {int(each[1])} hours, {int(minute)} minutes past"
    if not (minute.isdecimal() and hour.isdecimal()):
        return ""
    time = f"{int(hour):02d}:{int(minute):02d}"
    if every:
        return f"daily at {time}"
    if (day, month) == ("*", "*"):
        days = _days_in_words(weekday)
        return f"{days} at {time}" if days else ""
    if (month, weekday) == ("*", "*") and day.isdecimal():
        return f"on day {int(day)} of each month at {time}"
    return ""


def _minutes_in_words(minute: str) -> str:
    if minute == "*":
        return "every minute"
    each = _EACH.fullmatch(minute)
    if each:
        return f"every {int(each[1])} minutes"
    return f"hourly, {int(minute)} minutes past" if minute.isdecimal() else ""


def _days_in_words(weekday: str) -> str:
    text = weekday.lower()
    if text in ("1-5", "mon-fri"):
        return "Monday to Friday"
    names = [_day(part) for part in text.split(",")]
    if not all(names):
        return ""
    return "every " + (names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}")


def _day(part: str) -> str:
    if part in _SHORT_DAYS:
        return _DAYS[_SHORT_DAYS.index(part)]
    return _DAYS[int(part)] if part in "01234567" and len(part) == 1 else ""


def next_times(info: ScheduleInfo) -> list[float]:
    """The next times at which a schedule fires, in seconds since 1970; none while it is paused."""
    if info.next_at is None:
        return []
    times = [info.next_at]
    try:
        schedule = Schedule(info.name, Spec(info.task), b"", info.cron, every_s=info.every, zone=info.timezone)
        while len(times) < _SHOWN_TIMES:
            times.append(next_fire(schedule, times[-1]))
    except ConfigError:
        pass  # it never fires again, or its time zone is not known here
    return times
