"""Output with rich: the only module that knows about styles."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from taskq.cli.tables import Line, width_of_terminal


def console_of() -> Console:
    """A console on standard output, as wide as its terminal, or as the text. With NO_COLOR there are no styles at
    all."""
    has_style = not os.environ.get("NO_COLOR")
    return Console(highlight=False, width=width_of_terminal(), color_system="auto" if has_style else None)


def styled(lines: Sequence[Line]) -> list[Text]:
    """The lines of a table."""
    return [Text.assemble(*line) for line in lines]
