"""The user interface of `taskq top`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Static

from taskq.cli.top import details
from taskq.cli.top.asking import Reader, in_background, is_told
from taskq.cli.top.details import Told
from taskq.cli.top.fitting import text
from taskq.cli.top.pane import Pane, PaneScreen
from taskq.cli.top.replay import ReplaySource
from taskq.cli.top.screens import JobsScreen, Question, TextScreen
from taskq.cli.top.snapshot import TABS, Snapshot, Source, Tab, Target
from taskq.cli.top.views import VIEWS, headline
from taskq.cli.top.wishes import Wish, wish_of
from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError
from taskq.model.info.status import BrokerStatus
from taskq.telemetry.words import escape

#: Below this many columns, tabs have short titles.
_NARROW = 80
_MINUTE_S = 60.0

_HELP = """
1 ... 7, left, right   a tab
up, down, j, k, g, G   a row
Enter                  open it: a job's life, the jobs of a queue or task, the newest traceback, a stack
s                      where a job or a consumer is in its code now, while it goes on
/                      only rows with a text; Escape: all rows
R                      retry a failed job, or all of a task or of a kind of failure
C                      cancel a job
P                      pause or resume a queue or a schedule
[ and ]                with --at: a minute back, a minute on
Escape, q              back; leave

Upper-case keys change something, and ask before.
""".strip()


class TabLabel(Static):
    """The title of a tab."""

    def __init__(self, tab: Tab) -> None:
        super().__init__()
        self.tab = tab

    def on_click(self) -> None:
        """Shows the tab."""
        assert isinstance(self.app, Top)
        self.app.action_tab(self.tab)


class Main(PaneScreen):
    """The tabs."""

    def compose(self) -> ComposeResult:
        yield Static(id="head", classes="head")
        with Horizontal(id="tabs"):
            for tab in TABS:
                yield TabLabel(tab)
        yield Pane()
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begins."""
        assert isinstance(self.app, Top)
        self.app.begin()

    def on_resize(self) -> None:
        """Fits everything to the new width."""
        assert isinstance(self.app, Top)
        self.app.draw()


class Top(App[None]):
    """The monitor of a fleet."""

    TITLE = "taskq top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    .head { height: 1; padding: 0 1; background: $panel; }
    #tabs { height: 1; background: $panel; }
    TabLabel { width: auto; padding: 0 1; }
    TabLabel.-now { text-style: bold reverse; }
    .about { height: auto; max-height: 60%; padding: 0 1; }
    .empty { padding: 1 1; height: auto; }
    Pane { height: 1fr; }
    Table { height: 1fr; scrollbar-size-vertical: 1; background: $background; }
    Table:nocolor > .datatable--cursor { text-style: reverse; }
    Table > .datatable--header { background: $background; color: $text-muted; text-style: bold; }
    .told { padding: 0 1; }
    Question { align: center middle; }
    Question > Vertical {
        width: 80%; max-width: 76; height: auto; border: round $warning; padding: 1 2; background: $panel;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(number), f"tab('{tab}')", show=False) for number, tab in enumerate(TABS, 1)),
        Binding("slash", "filter", "Find", key_display="/"),
        Binding("s", "stack", "Stack"),
        Binding("R", "act('R')", "Retry", key_display="R"),
        Binding("C", "act('C')", "Cancel", key_display="C"),
        Binding("P", "act('P')", "Pause", key_display="P"),
        Binding("left_square_bracket", "step(-1)", "Minute back", key_display="["),
        Binding("right_square_bracket", "step(1)", "Minute on", key_display="]"),
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, q: TaskQ, source: Source, *, read_only: bool = False, hide_args: bool = False) -> None:
        """
        Args:
            q: the queue, for what keys do.
            source: where everything is read from.
            read_only: whether keys change nothing.
            hide_args: whether arguments of jobs are hidden.
        """
        super().__init__()
        self._q = q
        self._source = source
        self._is_read_only = read_only or source.is_past
        self._hides_arguments = hide_args
        self._tab: Tab = "fleet"
        self._snapshots: dict[Tab, Snapshot] = {}
        self._cursors: dict[Tab, str | None] = {}
        self._newest: Snapshot | None = None
        self._last_pid: int | None = None
        self._trouble: str | None = None
        self._reader = Reader(self, source, self._take, self._sorry)
        if self.no_color:
            self.theme = "ansi-dark"

    def get_default_screen(self) -> Screen[None]:
        """The tabs."""
        self._main = Main()
        return self._main

    def begin(self) -> None:
        """Begins to read: the tabs are there."""
        self._main.pane.show(None)
        self._reader.start()

    def on_unmount(self) -> None:
        """Ends reading."""
        self._reader.end()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Whether a key does something here."""
        if action in ("act", "stack") and self._is_read_only:
            return False
        if action == "step":
            return self._source.is_past
        if action == "filter":
            return isinstance(self.screen, Main | JobsScreen)
        return True

    # -- what is read

    def _take(self, snapshot: Snapshot) -> None:
        """Takes what was read."""
        before = self._newest
        self._trouble = None
        self._newest = self._snapshots[snapshot.tab] = snapshot
        if before is not None and not snapshot.is_past:
            self._tell_change(before.status.broker, snapshot.status.broker)
        self._last_pid = snapshot.status.broker.pid or self._last_pid
        self.draw()

    def _sorry(self, error: Exception) -> None:
        """Tells what went wrong; what was read before stays."""
        if not is_told(error):
            raise error
        self._trouble = str(error).partition("\n")[0]
        self.draw()

    def _tell_change(self, before: BrokerStatus, now: BrokerStatus) -> None:
        """Says that a fleet has begun, ended, or has another broker."""
        if before.pid == now.pid and before.state == now.state:
            return
        if now.state == "stopped":
            self.tell("the fleet has stopped", is_wrong=True)
        elif now.state == "stopping":
            self.tell("the fleet is stopping")
        elif before.pid is None:
            # Between the death of a broker and the start of the next there is none to ask, as after the end of a fleet.
            after = "" if self._last_pid is None else f", after {self._last_pid}"
            self.tell(f"a fleet runs: broker {now.pid}{after}")
        elif before.pid != now.pid:
            self.tell(f"the broker was replaced: {now.pid}, after {before.pid}", is_wrong=True)

    def tell(self, told: str, *, is_wrong: bool = False) -> None:
        """Shows a sentence for a while."""
        self.notify(escape(told), severity="warning" if is_wrong else "information", markup=False)

    # -- what is shown

    def draw(self) -> None:
        """Shows the present tab."""
        if not self._main.query("#head"):
            return  # it is being closed
        width = self.size.width
        head = self._main.query_one("#head", Static)
        head.update(self._headline(width - 2))
        for number, (tab, titles) in enumerate(TABS.items(), 1):
            label = next(each for each in self._main.query(TabLabel) if each.tab == tab)
            label.update(Text(f"{number} {titles[width < _NARROW]}"))
            label.set_class(tab == self._tab, "-now")
        shown = self._snapshots.get(self._tab)
        view = None if shown is None else VIEWS[self._tab](shown, width)
        self._main.pane.show(view, self._cursors.pop(self._tab, None))

    def _headline(self, width: int) -> Text:
        if self._trouble is not None:
            old = "" if self._newest is None else f" (what is shown is {time.time() - self._newest.at:.0f} s old)"
            told = text(f"! {self._trouble}{old}", "bold red")
        elif self._newest is None:
            told = text("reading ...", "dim")
        else:
            shown = self._newest
            return headline(shown.status, shown.at, width, is_past=shown.is_past)
        told.truncate(width, overflow="ellipsis")
        return told

    def action_tab(self, tab: Tab) -> None:
        """Shows a tab."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        if tab != self._tab:
            self._cursors[self._tab] = self._main.pane.cursor
            self._main.pane.drop_filter()
            self._tab = tab
            self._reader.want(tab)
        self.draw()

    def action_turn(self, by: int) -> None:
        """Shows the tab beside this one."""
        tabs = list(TABS)
        if self.screen is self._main:
            self.action_tab(tabs[(tabs.index(self._tab) + by) % len(tabs)])

    def action_step(self, by: int) -> None:
        """Goes some minutes back or on in the past."""
        if isinstance(self._source, ReplaySource):
            self._source.at = min(self._source.at + by * _MINUTE_S, time.time())
            self._reader.want(self._tab)

    def action_filter(self) -> None:
        """Asks for a part of the wanted rows."""
        if isinstance(self.screen, Main | JobsScreen):
            self.screen.pane.ask_filter()

    async def action_back(self) -> None:
        """Closes the uppermost screen."""
        if len(self.screen_stack) > 1:
            self.pop_screen()

    async def action_quit(self) -> None:
        """Leaves, or closes the uppermost screen."""
        if len(self.screen_stack) > 1:
            self.pop_screen()
        else:
            self.exit()

    def action_keys(self) -> None:
        """Shows the keys."""
        if not isinstance(self.screen, Question):
            lines = [text(line) for line in _HELP.splitlines()]
            self.push_screen(TextScreen("the keys", lambda: Told(lines, is_final=True), None))

    # -- drilling down

    @on(DataTable.RowSelected)
    def _open_row(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Opens what the cursor is on."""
        target = self._target()
        match target:
            case Target(kind="failures", failures=group) if group is not None and self.screen is self._main:
                at = self._newest.at if self._newest is not None else time.time()
                self._push(f"failures of task {target.task}", lambda: details.failure(group, at), target)
            case Target(kind="consumer") if not self._is_read_only:
                self.action_stack()
            case Target(kind="queue", queue=queue):
                self.push_screen(JobsScreen(f"jobs of queue {queue}", partial(self._source.jobs, None, queue)))
            case Target(kind="task", task=task, queue=queue):
                ask = partial(self._source.jobs, task or None, queue or None)
                self.push_screen(JobsScreen(f"jobs of task {task} in queue {queue}", ask))
            case Target(job_id=job_id) if job_id and not self._is_shown(target):
                self._open_job(job_id, target)
            case Target(kind="event", event=event) if event is not None:
                self._push("a line of the log", lambda: details.event(event, target), target)

    def _is_shown(self, target: Target) -> bool:
        """Whether the life of this job is what the screen shows."""
        return isinstance(self.screen, TextScreen) and target.kind == "job"

    def _open_job(self, job_id: str, target: Target) -> None:
        def ask() -> Told:
            return details.job(self._source.life(job_id), hides_arguments=self._hides_arguments)

        self._push(f"job {job_id}", ask, target)

    def action_stack(self) -> None:
        """Asks a consumer where it is in its code."""
        target = self._target()
        if target is None or not (target.job_id or target.consumer is not None):
            self.tell("s shows the stack of a consumer or a running job: choose one first")
            return
        which = f"job {target.job_id}" if target.job_id else f"consumer {target.consumer and target.consumer.number}"
        self._push(f"stack of {which}", lambda: details.stacks(self._source.stacks(target), target), target)

    def _push(self, title: str, ask: Callable[[], Told], target: Target) -> None:
        self.push_screen(TextScreen(title, ask, target))

    def _target(self) -> Target | None:
        screen = self.screen
        return screen.target if isinstance(screen, Main | JobsScreen | TextScreen) else None

    # -- doing something

    def action_act(self, key: str) -> None:
        """Does what an upper-case key is for, after a question."""
        if isinstance(self.screen, Question):
            return
        try:
            wish = wish_of(key, self._target(), self._q)
        except ConfigError as error:
            self.tell(str(error))
            return
        self.push_screen(Question(wish.question), partial(self._answered, wish))

    def _answered(self, wish: Wish, is_yes: bool | None) -> None:
        if is_yes:
            in_background(self, wish.does, self._done, self._not_done)

    def _done(self, told: str) -> None:
        self.tell(told)
        self._reader.want(self._tab)
        if isinstance(self.screen, JobsScreen | TextScreen):
            self.screen.read_now()

    def _not_done(self, error: Exception) -> None:
        if not is_told(error):
            raise error
        self.tell(str(error), is_wrong=True)
