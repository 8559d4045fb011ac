"""Lines, a table below them, and a filter."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Input, Static

from taskq.cli.top.fitting import View
from taskq.cli.top.snapshot import Target
from taskq.cli.top.table import Table


class Pane(Vertical):
    """Shows a view, of which a filter leaves out rows."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "end_filter", show=False)]

    def __init__(self) -> None:
        super().__init__()
        self._view: View | None = None
        self._part = ""

    def compose(self) -> ComposeResult:
        yield Static(classes="about")
        yield Table()
        yield Static(classes="empty")
        yield Input(placeholder="a part of a row; Enter: done, Escape: all rows", compact=True)

    def on_mount(self) -> None:
        self.query_one(Input).display = False
        self.query_one(".empty").display = False
        self.query_one(Table).focus()

    @property
    def target(self) -> Target | None:
        """What the row under the cursor is about."""
        return self.query_one(Table).target

    @property
    def cursor(self) -> str | None:
        """The key of the row under the cursor."""
        return self.query_one(Table).cursor_key

    def show(self, view: View | None, cursor: str | None = None) -> None:
        """Shows a view; None: it is not known yet.

        Args:
            cursor: the key of the row that the cursor goes to; None for the present one.
        """
        self._view = view
        self.draw(cursor)

    def draw(self, cursor: str | None = None) -> None:
        """Shows the view again: the filter or the size of the screen has changed."""
        table, empty = self.query_one(Table), self.query_one(".empty", Static)
        view = self._view or View([], (), (), "reading ...")
        rows = [row for row in view.rows if not self._part or row.has(self._part)]
        about = list(view.about)
        if self._part and not self.query_one(Input).display:
            about.append(Text(f"rows with {self._part!r}: {len(rows)} of {len(view.rows)}; Escape: all", "reverse"))
        told = self.query_one(".about", Static)
        told.display = bool(about)
        told.update(Text("\n").join(about))
        table.put(view.columns, rows, cursor=cursor or table.cursor_key, follows=view.follows)
        empty.display = not rows
        empty.update(Text("no such rows" if view.rows else view.empty, "dim"))

    # -- the filter

    def ask_filter(self) -> None:
        """Lets somebody type a part of the wanted rows."""
        field = self.query_one(Input)
        field.display = True
        field.focus()

    def drop_filter(self) -> None:
        """Shows all rows again."""
        field = self.query_one(Input)
        field.display = False
        field.value = self._part = ""
        self.query_one(Table).focus()

    @on(Input.Changed)
    def _filter(self, changed: Input.Changed) -> None:
        self._part = changed.value
        self.draw()

    @on(Input.Submitted)
    def _keep_filter(self) -> None:
        self.query_one(Input).display = False
        self.query_one(Table).focus()
        self.draw()

    async def action_end_filter(self) -> None:
        """Drops the filter; without one, goes back."""
        if self._part or self.query_one(Input).display:
            self.drop_filter()
            self.draw()
        else:
            await self.app.run_action("back")


class PaneScreen(Screen[None]):
    """A screen with a pane."""

    @property
    def pane(self) -> Pane:
        """The only one on it."""
        return self.query_one(Pane)

    @property
    def target(self) -> Target | None:
        """What the row under the cursor is about."""
        return self.pane.target
