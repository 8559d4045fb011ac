"""Bugs in what is done with unreadable outcomes and with silent consumers, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterator

from simulation import Parts, SimPool

from taskq.broker.core.core import Core
from taskq.model.attempt import Attempts, Verdict, read_failure
from taskq.model.effects import Key
from taskq.model.errors import ProtocolError


def unreadable(attempts: Attempts) -> Iterator[int]:
    """The positions of the rows that cannot be read."""
    for position, (verdict, outcome) in enumerate(zip(attempts.verdicts, attempts.outcomes, strict=True)):
        if verdict != Verdict.SUCCEEDED and read_failure(verdict, outcome, 0).outcome is not outcome:
            yield position


class IsConfused(Core):
    """A report is settled up to the first outcome that cannot be read; then its consumer is killed."""

    def settled(self, key: Key, attempts: Attempts, now: float, wall: float) -> None:
        end = next(unreadable(attempts), len(attempts.numbers))
        super().settled(key, Attempts(*(column[:end] for column in attempts)), now, wall)
        if end < len(attempts.numbers):
            raise ProtocolError("not an outcome")


class PassesOver(Core):
    """A job whose outcome cannot be read stays with its consumer."""

    def settled(self, key: Key, attempts: Attempts, now: float, wall: float) -> None:
        left_out = set(unreadable(attempts))
        kept = [row for position, row in enumerate(zip(*attempts, strict=True)) if position not in left_out]
        if kept:
            super().settled(key, Attempts(*zip(*kept, strict=True)), now, wall)


class CountsNothing(Core):
    """What cannot be read was no attempt: the job begins anew, as often as it likes."""

    def settled(self, key: Key, attempts: Attempts, now: float, wall: float) -> None:
        again = [row for at in unreadable(attempts) if (row := self.running(key, attempts.numbers[at])) is not None]
        super().settled(key, attempts, now, wall)
        for row in again:
            if any(change.row is row for change in self._effects.rescheduled):
                row.attempts -= 1


class WaitsForTheDeaf(SimPool):
    """Who holds jobs and says nothing will begin them some day."""

    def end_the_silent(self, _now: float) -> None:
        pass


OUTCOME_BUGS = {
    "a deaf consumer that keeps its jobs": (Parts(pool=WaitsForTheDeaf, deafness=0.5), {"no_acked_job_is_lost"}),
    "a report that an unreadable outcome ends": (Parts(core=IsConfused), {"runs_again_only_for_a_reason"}),
    "an unreadable outcome that is passed over": (Parts(core=PassesOver), {"no_acked_job_is_lost"}),
    "an unreadable outcome that does not count": (Parts(core=CountsNothing), {"attempts_are_numbered_once"}),
}
