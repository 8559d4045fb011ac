"""The screen of `taskq top`, without a terminal: what stands on it, and keys that are pressed."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import Awaitable, Callable

from fleet import DEADLINE_S, Late
from textual.pilot import Pilot

from taskq.cli.top.app import Top

_TEXT = re.compile(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', re.S)
#: How wide a character is in these pictures.
_CHAR = 12.2


def text_of(svg: str) -> str:
    """The lines of a picture of the screen."""
    lines: dict[float, dict[int, str]] = {}
    body = svg[svg.index('-matrix"') :]
    for x, y, told in _TEXT.findall(body):
        lines.setdefault(float(y), {})[round(float(x) / _CHAR)] = html.unescape(told).replace("\xa0", " ")
    shown = []
    for y in sorted(lines):
        line = ""
        for at, told in sorted(lines[y].items()):
            line = line.ljust(at) + told
        shown.append(line.rstrip())
    return "\n".join(shown)


class Screen:
    """A monitor that runs."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def text(self) -> str:
        """What stands on it."""
        return text_of(self.app.export_screenshot())

    async def press(self, *keys: str) -> None:
        """Presses keys."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, *parts: str, without: str = "") -> str:
        """Waits until all of these stand on it, and returns its text."""
        give_up_at = time.monotonic() + DEADLINE_S
        while True:
            shown = self.text
            if all(part in shown for part in parts) and not (without and without in shown):
                return shown
            if self.app._exception is not None:
                raise self.app._exception
            if time.monotonic() > give_up_at:
                missing = [part for part in parts if part not in shown]
                raise Late(f"{missing} or not {without!r}: not within {DEADLINE_S:g} s; the screen:\n{shown}")
            await self.pilot.pause(0.02)


def watch(app: Top, look: Callable[[Screen], Awaitable[None]], size: tuple[int, int] = (120, 32)) -> None:
    """Runs a monitor on a screen of so many columns and rows while somebody looks at it."""

    async def run() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await look(Screen(app, pilot))

    asyncio.run(run())
