"""Bugs in how work is cut into turns of the loop, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterable

from simulation import Parts

from taskq.broker.core.core import Core
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.transaction import UNFINISHED, Command, Transaction
from taskq.model.effects import Effects
from taskq.protocol.submissions import Submission


class TakesAllAtOnce(Committer):
    """A turn takes on whatever was asked for."""

    @property
    def has_room(self) -> bool:
        return True

    def _take_staged(self, now: float) -> list[Submission | Command]:
        taken = super()._take_staged(now)
        while self._staged and not self._jobs.has_effects:
            taken += self._staged.take(1e9, now)[0]
        return taken


class ForgetsTheRest(Committer):
    """A command is over when its first part is done."""

    def _apply(self, tx: Transaction, command: Submission | Command) -> object:
        outcome = super()._apply(tx, command)
        return True if outcome is UNFINISHED else outcome


class BeginsAgain(Committer):
    """A command that goes on does not know what is done, and begins again."""

    def _apply(self, tx: Transaction, command: Submission | Command) -> object:
        outcome = super()._apply(tx, command)
        if outcome is UNFINISHED:
            tx._follow_ups[:] = [each for each in tx._follow_ups if each.func.__name__ != "_revived"]  # type: ignore[attr-defined]
        return outcome


class SettlesPortionsTwice(Core):
    """The first of several portions stays where it is when it is taken."""

    _is_again = False

    def take_some_effects(self) -> Effects:
        is_first, self._is_again = self.has_enough and not self._is_again, False
        effects = super().take_some_effects()
        if is_first and effects.ended:
            self._is_again = True
            self._pending._full.appendleft(Effects(ended=list(effects.ended)))
        return effects


class LosesPortions(Core):
    """What does not fit into a turn is forgotten."""

    def take_some_effects(self) -> Effects:
        has_more = self.has_enough
        effects = super().take_some_effects()
        if has_more:
            self._pending.current = Effects()
        return effects


TURN_BUGS: dict[str, tuple[Parts, Iterable[str]]] = {
    "a turn that takes all that was asked for": (Parts(committer=TakesAllAtOnce), {"turns_are_bounded"}),
    "a part of a command whose rest is forgotten": (Parts(committer=ForgetsTheRest), {"a_step_has_its_turn"}),
    "a part of a command that is done again": (Parts(committer=BeginsAgain), {"a_step_has_its_turn"}),
    "a portion of ends that is settled twice": (Parts(core=SettlesPortionsTwice), {"totals_add_up"}),
    "a portion of ends that is lost": (Parts(core=LosesPortions), {"no_acked_job_is_lost"}),
}
