"""The figures as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from taskq.cli.bench.figures import Comparison, Figure, Machine, Spread, Unit
from taskq.cli.tables import Cell, Column, Line, table

_STYLES = {True: "green", False: "red", None: ""}


def machine_lines(machine: Machine, consumers: int) -> list[str]:
    """What the figures depend on."""
    lines = [
        f"taskq {machine.taskq}, Python {machine.python}, SQLite {machine.sqlite}, {machine.kernel}",
        f"{machine.processor or 'processor unknown'}, {machine.cores} cores; {consumers} consumers; "
        f"files on {machine.file_system or 'a file system of unknown kind'}",
    ]
    if machine.file_system in ("tmpfs", "ramfs"):
        lines.append("a sync costs nothing in memory: use --directory for figures of a disk")
    if machine.others_cores >= 0.2:
        lines.append(f"other programs use {machine.others_cores:.1f} cores: figures are better on an idle machine")
    return lines


def lines_of(figures: Sequence[Figure], width: int | None) -> list[Line]:
    """The table of one part.

    Args:
        width: in columns; None for no limit.
    """
    columns = (
        Column("", is_name=True),
        Column("taskq", is_right=True),
        Column("limit", is_right=True),
        Column("", is_name=True),
        Column("ratio", is_right=True),
        Column("goal", is_right=True),
    )
    return table(columns, [row for figure in figures for row in _rows(figure)], width)


def _rows(figure: Figure) -> list[tuple[Cell | str, ...]]:
    """One row for each limit; the first has the figure itself."""
    median = number_text(figure.value.median, figure.unit)
    own = Cell(median + _spread_text(figure.value), median)
    goal = Cell(figure.goal, style=_STYLES[figure.is_met])
    if not figure.limits:
        return [(figure.name, own, "", "", "", goal)]
    first, *others = [_cells(limit, figure.unit) for limit in figure.limits]
    rows: list[tuple[Cell | str, ...]] = [(figure.name, own, *first)]
    if figure.goal and figure.limits[0].goal:
        rows.append(("", "", "", "", "", goal))
    elif figure.goal:
        rows = [(figure.name, own, *first[:-1], goal)]
    return [*rows, *(("", "", *each) for each in others)]


def _cells(limit: Comparison, unit: Unit) -> tuple[Cell | str, ...]:
    style, median = _STYLES[limit.is_met], digits(limit.ratio.median)
    return (
        number_text(limit.value.median, unit),
        limit.name,
        Cell(median + _spread_text(limit.ratio), median, style=style),
        Cell(limit.goal, style=style),
    )


def _spread_text(value: Spread) -> str:
    """The smallest and the largest value, unless it was measured once."""
    return "" if value.low == value.high else f" ({digits(value.low)}-{digits(value.high)})"


def number_text(number: float, unit: Unit) -> str:
    """A number with its unit: ``2,012/s``, ``1.05 ms``, ``97 %``."""
    return digits(number) + (unit if unit in ("/s", "x") else f" {unit}")


def digits(number: float) -> str:
    """A number in three digits, or in full if it is large."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
