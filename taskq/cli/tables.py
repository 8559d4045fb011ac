"""Tables for people. They fit the width of the terminal, and nothing is cut off.

What does not fit is made narrower in this order: cells take their short form (as git shortens ids), the last column
moves below its row, names are broken. On a terminal, empty columns are left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from taskq.telemetry.words import escape

_GAP = 2
#: A text of several words does not become a column that is narrower than this.
_STORY_WIDTH = 30
_INDENT = "    "
_NAME_WIDTH = 8
_SHORT_ID = 8
_BREAKS = " ._-/:"


class Column(NamedTuple):
    """A column.

    Attributes:
        title: its heading.
        short: its heading if the table does not fit.
        is_right: whether it is aligned right, as numbers are.
        is_name: whether its cells may be broken anywhere.
        is_story: whether its cells are sentences, which may be moved below the row; only the last column can be one.
    """

    title: str
    short: str = ""
    is_right: bool = False
    is_name: bool = False
    is_story: bool = False


class Cell(NamedTuple):
    """One cell of a row.

    Attributes:
        text: in full.
        short: its short form if that does not fit.
        style: a style of rich.
    """

    text: str
    short: str | None = None
    style: str = ""


#: A line of the table: texts with their styles.
Line = list[tuple[str, str]]


def width_of_terminal() -> int | None:
    """The columns of the terminal; None if the output goes elsewhere and may have any width."""
    if not sys.stdout.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    return int(told) if told.isdecimal() and int(told) else os.get_terminal_size(sys.stdout.fileno()).columns or 80


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """The ends of ids, long enough to distinguish them. Their beginnings are times."""
    length = _SHORT_ID
    while len({each[-length:] for each in ids}) < len(set(ids)):
        length += 1
    return {each: each[-length:] for each in ids}


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell | str]], width: int | None, gap: int = _GAP
) -> list[Line]:
    """The lines of a table with its headings.

    Args:
        rows: the cells of each row; what is not printable in them is escaped.
        width: in columns; None for no limit.
        gap: between two columns, if there is room.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    is_pipe = width is None  # since scripts count the columns
    used = [n for n in range(len(columns)) if is_pipe or not cells or any(row[n].text for row in cells)]
    columns = [columns[number] for number in used]
    cells = [[row[number] for number in used] for row in cells]
    if width is not None and sum(_widths(columns, cells)) + gap * (len(columns) - 1) > width:
        gap = _GAP
        columns = [column._replace(title=column.short or column.title) for column in columns]
        cells = [[Cell(cell.short or cell.text, style=cell.style) for cell in row] for row in cells]
    widths = _widths(columns, cells)
    beneath = False
    if width is not None:
        room = width - sum(widths[:-1]) - gap * (len(widths) - 1)
        beneath = columns[-1].is_story and room < min(widths[-1], _STORY_WIDTH)
        if columns[-1].is_story and not beneath:
            widths[-1] = min(widths[-1], room)
        shown = len(columns) - beneath
        if not _narrow(columns[:shown], widths, width - gap * (shown - 1)):
            gap = 1
    shown = len(columns) - beneath
    heading = [Cell(column.title, style="dim") for column in columns[:shown]]
    lines = _row(columns[:shown], heading, widths, gap)
    for row in cells:
        lines += _row(columns[:shown], row[:shown], widths, gap)
        if beneath and row[-1].text:
            lines += [[(_INDENT + part, row[-1].style)] for part in _wrapped(row[-1].text, (width or 0) - len(_INDENT))]
    return lines


def plain(lines: Sequence[Line]) -> str:
    """The lines without their styles."""
    return "\n".join("".join(text for text, _ in line).rstrip() for line in lines)


def _cell(cell: Cell | str) -> Cell:
    given = cell if isinstance(cell, Cell) else Cell(cell)
    return Cell(escape(given.text), None if given.short is None else escape(given.short), given.style)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[Cell]]) -> list[int]:
    return [
        max(len(column.title), *(_width(row[number].text) for row in cells), 0) for number, column in enumerate(columns)
    ]


def _narrow(columns: Sequence[Column], widths: list[int], room: int) -> bool:
    """Makes the widest names narrower. Returns whether the table fits then."""
    while sum(widths[: len(columns)]) > room:
        able = [n for n, column in enumerate(columns) if column.is_name and widths[n] > _NAME_WIDTH]
        if not able:
            return False
        widths[max(able, key=lambda number: widths[number])] -= 1
    return True


def _row(columns: Sequence[Column], cells: Sequence[Cell], widths: Sequence[int], gap: int) -> list[Line]:
    parts = [
        (_wrapped if column.is_story else _broken)(cell.text, width)
        for column, cell, width in zip(columns, cells, widths, strict=False)
    ]
    lines: list[Line] = []
    for texts in zip_longest(*parts, fillvalue=""):
        line: Line = []
        for column, cell, width, text in zip(columns, cells, widths, texts, strict=False):
            padding = " " * (width - _width(text))
            line.append((padding + text if column.is_right else text + padding, cell.style))
            line.append((" " * gap, ""))
        line.pop()
        while line and not line[-1][0].strip():  # nothing but padding
            line.pop()
        if line:
            line[-1] = line[-1][0].rstrip(), line[-1][1]
        lines.append(line)
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    width = max(width, 1)
    if _width(text) == len(text):
        from textwrap import wrap  # few tables have sentences

        return wrap(text, width, break_on_hyphens=False) or [""]
    lines: list[str] = []
    for word in text.split():
        if lines and _width(lines[-1]) + 1 + _width(word) <= width:
            lines[-1] += f" {word}"
            continue
        rest = word
        while _width(rest) > width:
            at = _fitting(rest, width)
            lines.append(rest[:at])
            rest = rest[at:]
        lines.append(rest)
    return lines


def _broken(text: str, width: int) -> list[str]:
    """Breaks a name into parts, after a punctuation mark if there is one."""
    parts = []
    while _width(text) > width:
        most = _fitting(text, width)
        at = max((text.rfind(mark, 0, most) + 1 for mark in _BREAKS), default=0)
        at = at if at > most // 3 else most
        parts.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*parts, text]


def _width(text: str) -> int:
    """The columns that a text takes: two for a wide East Asian character, none for a combining character."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # most tables have no such characters

    return cell_len(text)


def _fitting(text: str, width: int) -> int:
    """How many characters of a text fit; at least one, so that this ends."""
    at = min(len(text), max(width, 1))
    while at > 1 and _width(text[:at]) > width:
        at -= 1
    return at
