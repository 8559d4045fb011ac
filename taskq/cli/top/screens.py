"""What opens above the tabs: a text, a list of jobs, and the question before something is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from taskq.cli.top.asking import EVERY_S, in_background, is_told
from taskq.cli.top.details import Told
from taskq.cli.top.fitting import View, text
from taskq.cli.top.pane import Pane, PaneScreen
from taskq.cli.top.snapshot import Target
from taskq.cli.top.views import JOB_COLUMNS, job_rows
from taskq.model.info.job import JobInfo


class TextScreen(Screen[None]):
    """A text that may change, such as the life of a job."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.back", "Back"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
        Binding("enter", "app.open", show=False),
    ]

    def __init__(self, title: str, ask: Callable[[], Told], target: Target | None) -> None:
        """
        Args:
            ask: returns what is shown; it may take a while.
            target: what keys act on while that is not known.
        """
        super().__init__()
        self._title = title
        self._ask = ask
        self._is_asking = False
        self._told: Told | None = None
        self.target = target

    def compose(self) -> ComposeResult:
        yield Static(text(self._title), classes="head")
        with VerticalScroll():
            yield Static(Text("reading ...", "dim"), classes="told")
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.read_now()
        self.set_interval(EVERY_S, self._read_again)

    def _read_again(self) -> None:
        if self._told is None or not self._told.is_final:
            self.read_now()

    def read_now(self) -> None:
        """Reads it again, unless it is being read."""
        if not self._is_asking:
            self._is_asking = True
            in_background(self.app, self._ask, self._show, self._tell)

    def _show(self, told: Told) -> None:
        self._is_asking = False
        self._told = told
        self.target = told.target or self.target
        self._draw(told.lines)

    def _tell(self, error: Exception) -> None:
        self._is_asking = False
        if not is_told(error):
            raise error
        if self._told is None:
            self._draw([text(line, "red") for line in str(error).splitlines()])
        else:
            self._draw([text(f"! {error}", "red"), *self._told.lines])

    def _draw(self, lines: object) -> None:
        assert isinstance(lines, list | tuple)
        shown = Text("\n").join(lines)
        shown.no_wrap, shown.overflow = False, "fold"
        if self.is_attached:
            self.query_one(".told", Static).update(shown)

    def action_down(self) -> None:
        """Scrolls."""
        self.query_one(VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        """Scrolls."""
        self.query_one(VerticalScroll).scroll_up(animate=False)


class JobsScreen(PaneScreen):
    """A list of jobs."""

    def __init__(self, title: str, ask: Callable[[], list[JobInfo]]) -> None:
        super().__init__()
        self._title = title
        self._ask = ask
        self._is_asking = False

    def compose(self) -> ComposeResult:
        yield Static(text(self._title), classes="head")
        yield Pane()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self.query_one(Pane).show(None)
        self.read_now()

    def on_resize(self) -> None:
        self.query_one(Pane).draw()

    def read_now(self) -> None:
        """Reads it again, unless it is being read."""
        if not self._is_asking:
            self._is_asking = True
            in_background(self.app, self._read, self._show, self._tell)

    def _read(self) -> tuple[list[JobInfo], float]:
        began = time.monotonic()
        return self._ask(), time.monotonic() - began

    def _show(self, found: tuple[list[JobInfo], float]) -> None:
        infos, took_s = found
        self._is_asking = False
        if self.is_attached:
            told = [text(f"the newest {len(infos)}", "dim")] if infos else []
            self.pane.show(View(told, JOB_COLUMNS, job_rows(infos, time.time()), "no jobs"))
            self.set_timer(max(EVERY_S, 5 * took_s), self.read_now)

    def _tell(self, error: Exception) -> None:
        self._is_asking = False
        if not is_told(error):
            raise error
        if self.is_attached:
            self.pane.show(View([text(f"! {error}", "red")], JOB_COLUMNS, (), ""))
            self.set_timer(EVERY_S, self.read_now)


class Question(ModalScreen[bool]):
    """Asks before something is done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n", "answer(False)", "No"),
        Binding("escape,q", "answer(False)", show=False),
    ]

    def __init__(self, asked: str) -> None:
        super().__init__()
        self._asked = asked

    def compose(self) -> ComposeResult:
        asked = text(self._asked)
        asked.no_wrap = False
        with Vertical():
            yield Static(asked)
            yield Static(Text("\ny: yes   n: no", "bold"))

    def action_answer(self, is_yes: bool) -> None:
        """Takes the answer."""
        self.dismiss(is_yes)
