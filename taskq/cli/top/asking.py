"""Asks in threads, so that the keys answer at once. Their answers come back as callbacks of the user interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from taskq.cli.top.snapshot import Snapshot, Source, Tab
from taskq.model.errors import TaskQError

T = TypeVar("T")

#: Between two looks at a fleet.
EVERY_S = 2.0
#: A look that takes long is repeated after this many times as long.
_REST = 4


class Screenful(Protocol):
    """The user interface, as threads see it."""

    def call_later(self, callback: Callable[..., object], *args: object) -> bool:
        """Has the user interface call something. Any thread may ask for that."""


def in_background(
    app: Screenful, ask: Callable[[], T], answer: Callable[[T], object], sorry: Callable[[Exception], object]
) -> None:
    """Asks something in a thread of its own.

    Args:
        answer: is called with the answer, by the user interface.
        sorry: is called in place of that with what went wrong.
    """

    def run() -> None:
        try:
            found = ask()
        except Exception as error:  # the user interface tells it, and raises those that are bugs
            _tell(app, sorry, error)
        else:
            _tell(app, answer, found)

    threading.Thread(target=run, name="taskq top asks", daemon=True).start()


def is_told(error: Exception) -> bool:
    """Whether an error is one that people are told; others are bugs."""
    return isinstance(error, TaskQError | OSError)


def _tell(app: Screenful, callback: Callable[..., object], value: object) -> None:
    try:
        app.call_later(callback, value)
    except RuntimeError:
        pass  # its event loop was closed meanwhile: nobody looks any more


class Reader(threading.Thread):
    """Reads what a tab needs, again and again."""

    def __init__(
        self, app: Screenful, source: Source, answer: Callable[[Snapshot], object], sorry: Callable[[Exception], object]
    ) -> None:
        """
        Args:
            answer: is called with each snapshot, by the user interface.
            sorry: is called in place of that with what went wrong.
        """
        super().__init__(name="taskq top", daemon=True)
        self._app = app
        self._source = source
        self._answer = answer
        self._sorry = sorry
        self._tab: Tab = "fleet"  # written by the user interface
        self._wanted = threading.Event()
        self._ended = False

    def want(self, tab: Tab) -> None:
        """Has a tab read now, and from now on."""
        self._tab = tab
        self._wanted.set()

    def end(self) -> None:
        """Ends it; the look that is under way goes on until it has an answer."""
        self._ended = True
        self._wanted.set()

    def run(self) -> None:
        """Reads until it is ended."""
        while not self._ended:
            self._wanted.clear()
            began = time.monotonic()
            try:
                found = self._source.read(self._tab)
            except Exception as error:  # the user interface tells it, and raises those that are bugs
                _tell(self._app, self._sorry, error)
            else:
                _tell(self._app, self._answer, found)
            took_s = time.monotonic() - began
            self._wanted.wait(max(EVERY_S, _REST * took_s))
