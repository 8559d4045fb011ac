"""A table that fits the width of the screen, and whose cursor stays on its row while rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from taskq.cli.top.fitting import Col, Row, cut, fitted
from taskq.cli.top.snapshot import Target


class Table(DataTable[Text]):
    """The rows of a view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open"),
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
        Binding("g", "scroll_top", show=False),
        Binding("G", "scroll_bottom", show=False),
        Binding("left", "app.turn(-1)", show=False),
        Binding("right", "app.turn(1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(cursor_type="row", cell_padding=1)
        self._shape: list[tuple[str, int]] = []
        self._shown: list[Row] = []

    @property
    def cursor_key(self) -> str | None:
        """The key of the row under the cursor."""
        return self._shown[self.cursor_row].key if self.cursor_row < len(self._shown) else None

    @property
    def target(self) -> Target | None:
        """What the row under the cursor is about."""
        return self._shown[self.cursor_row].target if self.cursor_row < len(self._shown) else None

    def put(self, columns: Sequence[Col], rows: Sequence[Row], *, cursor: str | None, follows: bool) -> None:
        """Shows rows.

        Args:
            cursor: the key of the row that the cursor goes to, if it is there.
            follows: whether the cursor stays at the end if it is there.
        """
        is_at_end = follows and self.cursor_row >= len(self._shown) - 1
        chosen = fitted(columns, [row.cells for row in rows], max(self.app.size.width - 1, 10))
        cells = [[cut(row.cells[number], width, columns[number].is_right) for number, width in chosen] for row in rows]
        shape = [(columns[number].title, width) for number, width in chosen]
        is_same = shape == self._shape and [row.key for row in rows] == [row.key for row in self._shown]
        self._shown = list(rows)
        if is_same:
            self._change(cells)
        else:
            offset, before = self.scroll_offset.y, self.cursor_row
            self.clear(columns=True)
            for number, width in chosen:
                title = cut(Text(columns[number].title), width, columns[number].is_right)
                self.add_column(title, width=width, key=str(number))
            for row, own in zip(rows, cells, strict=True):
                self.add_row(*own, key=row.key)
            self._shape = shape
            found = next((at for at, row in enumerate(rows) if row.key == cursor), min(before, len(rows) - 1))
            if rows:
                self.move_cursor(row=len(rows) - 1 if is_at_end else found, scroll=is_at_end)
            if not is_at_end:
                self.call_after_refresh(self._scroll_back, offset)

    def _scroll_back(self, offset: int) -> None:
        self.scroll_to(y=offset, animate=False)
        self._scroll_cursor_into_view()

    def _change(self, cells: Sequence[Sequence[Text]]) -> None:
        """Writes the cells that differ, so that nothing moves."""
        for at, own in enumerate(cells):
            known = self.get_row_at(at)
            for column, (cell, old) in enumerate(zip(own, known, strict=True)):
                if cell.plain != old.plain or cell.spans != old.spans or cell.style != old.style:
                    self.update_cell_at((at, column), cell)  # type: ignore[arg-type]
