"""Tables that fit the screen: which columns are shown, and how wide. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from taskq.cli.top.snapshot import Target
from taskq.telemetry.words import escape

#: Columns of the screen between two cells.
GAP = 2
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Col:
    """A column.

    Attributes:
        title: its heading.
        is_right: whether it is aligned right, as numbers are.
        least: how narrow it may become, the end of its texts being left out; 0: not narrower than its texts.
        leaves: the columns with the highest number are left out first where there is no room; 0: it stays.
    """

    title: str
    is_right: bool = False
    least: int = 0
    leaves: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A row.

    Attributes:
        key: what tells it apart from the others.
        cells: one for each column.
        target: what it is about, or None.
    """

    key: str
    cells: Sequence[Text]
    target: Target | None = None

    def has(self, part: str) -> bool:
        """Whether a text is in it, in small or capital letters."""
        return part.casefold() in " ".join([self.key, *(cell.plain for cell in self.cells)]).casefold()


@dataclass(frozen=True, slots=True)
class View:
    """What a tab shows.

    Attributes:
        about: the lines above the table.
        columns: of the table.
        rows: of the table.
        empty: what is told if there are no rows.
        follows: whether the newest rows are at the end, and the cursor stays there.
    """

    about: Sequence[Text]
    columns: Sequence[Col]
    rows: Sequence[Row]
    empty: str
    follows: bool = False


def text(told: object, style: str = "") -> Text:
    """What a job or somebody else wrote, as it is: nothing in it is markup, and no character does anything."""
    return Text(escape(str(told)), style, no_wrap=True)


def fitted(columns: Sequence[Col], rows: Sequence[Sequence[Text]], width: int) -> list[tuple[int, int]]:
    """The numbers of the columns that are shown, and how wide each is.

    Args:
        width: of the whole table.
    """
    shown = [number for number, column in enumerate(columns) if not column.leaves or _is_used(rows, number)]
    while True:
        widths = {
            number: max([cell_len(columns[number].title), *(row[number].cell_len for row in rows)]) for number in shown
        }
        over = sum(widths.values()) + GAP * len(shown) - width
        while over > 0:
            able = [number for number in shown if 0 < columns[number].least < widths[number]]
            if not able:
                break
            widest = max(able, key=lambda number: widths[number])
            others = [widths[number] for number in able if number != widest]
            to = max(columns[widest].least, widths[widest] - over, min(max(others, default=0), widths[widest] - 1))
            over -= widths[widest] - to
            widths[widest] = to
        leaving = [number for number in shown if columns[number].leaves]
        if over <= 0 or not leaving:
            return [(number, widths[number]) for number in shown]
        shown.remove(max(leaving, key=lambda number: columns[number].leaves))


def _is_used(rows: Sequence[Sequence[Text]], number: int) -> bool:
    return any(row[number].plain for row in rows)


def cut(cell: Text, width: int, is_right: bool) -> Text:
    """A cell that is exactly so wide; dots stand for the end of a longer one."""
    done = cell.copy()
    done.no_wrap = True
    done.truncate(width, overflow="ellipsis")
    missing = " " * (width - done.cell_len)
    return Text(missing) + done if is_right else done + Text(missing)


def sparkline(values: Sequence[int]) -> str:
    """Numbers as a row of bars, the highest of them full."""
    highest = max(values, default=0) or 1
    return "".join(_BLOCKS[min(value * 8 // highest, 7)] if value else " " for value in values)
