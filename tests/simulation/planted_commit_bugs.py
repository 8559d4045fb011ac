"""Bugs in how commands are applied and committed, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from simulation import Parts

from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.transaction import UNFINISHED, Command, Transaction
from taskq.model.effects import Effects
from taskq.model.errors import StoreFull
from taskq.protocol.submissions import Submission


class AnswersBeforeCommit(Committer):
    """A command is answered when it is decided."""

    def _apply(self, tx: Transaction, command: Submission | Command) -> object:
        outcome = super()._apply(tx, command)
        if not isinstance(command, Submission) and outcome is not UNFINISHED:
            command.answer(outcome)
            command.answer = lambda _outcome: None  # type: ignore[method-assign]
        return outcome


class SettlesTwice(Committer):
    """A report that is durable is settled once more with the next commit."""

    _again: Effects | None = None

    def _conclude(self, tx: Transaction, now: float) -> None:
        reported, again = self._effects, self._again is not self._effects
        super()._conclude(tx, now)
        if again and reported.ended:
            self._effects = self._again = Effects(ended=list(reported.ended))
            self._effects_since = now


class KeepsHalfOfIt(MemoryStore):
    """When the disk is full, what was written before it was is not taken back."""

    def rollback(self) -> None:
        pass


class ForgetsWhatEnded(Committer):
    """When the disk is full, what has ended is lost with what is refused."""

    def _make_room(self, error: StoreFull, refused: int) -> None:
        super()._make_room(error, refused)
        self._effects = Effects()


class TellsTheFleetFirst(Committer):
    """The fleet hears of new jobs before they are durable."""

    def _release(self, tx: Transaction) -> None:
        super()._release(tx)
        for follow_up in tx._follow_ups:
            follow_up()
        tx._follow_ups.clear()


class CommandsFirst(Committer):
    """Commands go before the jobs that were handed in before them."""

    def _transact(self, staged: Sequence[Submission | Command], outcomes: list[object], *more: Any) -> Any:
        order = sorted(range(len(staged)), key=lambda position: isinstance(staged[position], Submission))
        found = [outcomes[position] for position in order]
        done = super()._transact([staged[position] for position in order], found, *more)
        for position, outcome in zip(order, found, strict=True):
            outcomes[position] = outcome
        return done


class RefusesWhatItDid(Committer):
    """Jobs are written, and refused then: the transaction goes on with half of it."""

    def _apply(self, tx: Transaction, command: Submission | Command) -> object:
        outcome = super()._apply(tx, command)
        if isinstance(command, Submission) and len(command.ids) == 5:
            return StoreFull("no room for these")
        return outcome


class ForgetsToTellTheFleet(Committer):
    """The fleet does not hear of what commands have ended."""

    def _conclude(self, tx: Transaction, now: float) -> None:
        tx._follow_ups[:] = [follow_up for follow_up in tx._follow_ups if follow_up.func != tx.jobs.forget]  # type: ignore[attr-defined]
        super()._conclude(tx, now)


COMMIT_BUGS: dict[str, tuple[Parts, Iterable[str]]] = {
    "a command that is answered before its commit": (
        Parts(committer=AnswersBeforeCommit, commit_kills=0.02),
        {"cancelled_is_cancelled", "purged_is_gone", "retried_is_retried", "schedules_fire_when_they_are_to"},
    ),
    "a report that is applied twice": (Parts(committer=SettlesTwice), {"totals_add_up"}),
    "a refused turn of which half stays": (
        Parts(store=KeepsHalfOfIt, full_disks=0.1),
        {"nothing_refused_is_there", "totals_add_up"},
    ),
    "an end that a full disk makes forgotten": (
        Parts(committer=ForgetsWhatEnded, full_disks=0.1),
        {"no_acked_job_is_lost"},
    ),
    "jobs that run before they are durable": (
        Parts(committer=TellsTheFleetFirst, full_disks=0.1),
        {"nothing_refused_is_there", "never_twice_at_a_time", "attempts_are_numbered_once"},
    ),
    "commands before what was said before them": (
        Parts(committer=CommandsFirst),
        {"what_is_said_takes_effect_in_order"},
    ),
    "a refused command that is half done": (Parts(committer=RefusesWhatItDid), {"nothing_refused_is_there"}),
    "a fleet that does not hear of a cancel": (
        Parts(committer=ForgetsToTellTheFleet),
        {"cancelled_is_cancelled", "the_end_is_the_end"},
    ),
}
