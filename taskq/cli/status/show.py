"""Prints what a fleet is doing, once or again and again, wherever it comes from."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from taskq.cli.status.picture import painted, picture
from taskq.cli.tables import Line, plain, width_of_terminal
from taskq.telemetry.words import wants_colour

if TYPE_CHECKING:
    from taskq.model.info.status import FleetStatus

_EVERY_S = 1.0


def show(text: Callable[[], str] | None, look: Callable[[], FleetStatus], *, goes_on: bool) -> None:
    """Prints the status of a fleet.

    Args:
        text: makes the JSON that is printed; None: what `look` returns is printed for people.
        look: asks for the status.
        goes_on: whether to print it again each second, for ever; on a terminal, in its place.
    """
    is_terminal = sys.stdout.isatty()
    shown = 0
    while True:
        if text is not None:
            print(text(), flush=True)
        else:
            lines = picture(look(), width_of_terminal())
            shown = _print(lines, is_terminal, shown if goes_on and is_terminal else None)
        if not goes_on:
            return
        time.sleep(_EVERY_S)


def _print(lines: list[Line], is_terminal: bool, shown: int | None) -> int:
    """Prints lines, and returns their number.

    Args:
        shown: in place of so many lines above the cursor, and no more than the terminal is high; None: behind all
            others.
    """
    if shown is not None:
        height = os.get_terminal_size(1).lines  # 0 if it is not known
        lines = lines[: height - 1] if height > 1 else lines
    if wants_colour(is_terminal, os.environ):
        texts = [painted(line) for line in lines]
    else:
        texts = plain(lines).split("\n")
    back = f"\x1b[{shown}F" if shown else ""
    clear = "" if shown is None else "\x1b[K"
    sys.stdout.write(back + "".join(f"{text}{clear}\n" for text in texts) + ("\x1b[J" if shown else ""))
    sys.stdout.flush()
    return len(lines)
