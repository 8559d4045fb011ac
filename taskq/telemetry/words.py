"""Texts for people that need no library: `taskq status` has to start at once."""

from __future__ import annotations

from collections.abc import Mapping


def wants_colour(is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """Whether to use colours: NO_COLOR forbids them, FORCE_COLOR demands them; if neither is set, any terminal that is
    not dumb gets them."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return True
    return is_terminal and environ.get("TERM") != "dumb"


def escape(text: str) -> str:
    """`text` with everything unprintable written as ``\\n``, ``\\x1b``, ``\\u202e`` and so on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def duration_text(milliseconds: float) -> str:
    """A duration for people: ``0.25 ms``, ``12.4 ms``, ``3.21 s``, ``2m 05s``, ``1h 02m``."""
    if milliseconds < 0 or milliseconds >= 3.6e12:
        return f"{milliseconds:g} ms"
    if milliseconds < 999.95:
        return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.2f} ms"
    if milliseconds < 59_995:
        return f"{milliseconds / 1000:.2f} s"
    seconds = round(milliseconds / 1000)
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
