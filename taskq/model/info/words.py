"""Times and numbers in a few words, for the command line and for web pages."""

from __future__ import annotations

#: Below which time, in microseconds, a unit is used, and how long the unit is.
_UNITS = ((1e3, 1.0, "us"), (1e6, 1e3, "ms"), (6e7, 1e6, "s"), (3.6e9, 6e7, "m"), (8.64e10, 3.6e9, "h"))


def count_of(number: int, thing: str) -> str:
    """``1 job``, ``2,000 jobs``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def distance_text(seconds: float) -> str:
    """How far a moment is from now: ``in 12 s``, ``3m 05s ago``, ``just now``."""
    if abs(seconds) < 1:
        return "just now" if seconds <= 0 else "in a moment"
    text = span_text(round(abs(seconds)))
    return f"in {text}" if seconds > 0 else f"{text} ago"


def span_text(seconds: float) -> str:
    """``30 s``, ``0.5 s``, ``3m 05s``, ``1h 02m``, ``2d 03h``."""
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days}d {hours_of_day:02d}h"
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest_s:02d}s"


def time_text(seconds: float) -> str:
    """How long something takes, for pages: ``80 µs``, ``1.2 ms``, ``12 s``, ``3m 05s``."""
    if seconds >= 60:
        return span_text(seconds)
    text = brief_time(seconds * 1e6).removesuffix("s")
    value = text.rstrip("mu").removesuffix(".0")
    return f"{value} {text[len(text.rstrip('mu')) :].replace('u', 'µ')}s"


def brief_count(number: int) -> str:
    """A number below a trillion in at most four characters: ``999``, ``1.2k``, ``12k``, ``1.5M``, ``300G``."""
    if number < 1_000:
        return str(number)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        value = number / size
        if value >= 0.9995 or unit == "k":
            break
    return f"{value:.1f}{unit}" if value < 9.95 else f"{value:,.0f}{unit}"


def brief_time(time_us: float | None) -> str:
    """A time in at most five characters: ``80us``, ``1.2ms``, ``340ms``, ``12s``, ``3m``, ``2h``, ``4d``.

    Args:
        time_us: microseconds; None if nothing is known.
    """
    if time_us is None:
        return "-"
    for limit, size, unit in _UNITS:
        if time_us < limit * 0.9995:
            value = time_us / size
            return f"{value:.1f}{unit}" if value < 9.95 and unit != "us" else f"{value:.0f}{unit}"
    return f"{time_us / 8.64e10:,.0f}d"
