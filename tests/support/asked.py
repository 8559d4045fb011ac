"""Has a committer do what a client may ask for, without a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.transaction import Command, Transaction


class Asked(Command):
    """A command that is a function, and what became of it."""

    outcome: object = None
    is_answered = False

    def __init__(self, change: Callable[[Transaction], object], adds: bool = False) -> None:
        self._change = change
        self.adds = adds

    def apply(self, tx: Transaction) -> object:
        return self._change(tx)

    def answer(self, outcome: object) -> None:
        assert not self.is_answered
        self.outcome, self.is_answered = outcome, True


def asked(committer: Committer, change: Callable[[Transaction], object], now: float = 0.0, wall: float = 1e9) -> Any:
    """Stages, commits and tells. Returns the outcome, or raises the error for which it was refused."""
    command = Asked(change)
    committer.stage(command)
    while not command.is_answered:
        committer.commit(now, wall)
        committer.tell(now)
    if isinstance(command.outcome, Exception):
        raise command.outcome
    return command.outcome


def take_spooled(committer: Committer, now: float = 0.0, wall: float = 1e9) -> None:
    """Takes in a portion of what lies in the spool."""
    committer.stage_spooled()
    committer.commit(now, wall)
    committer.tell(now)
