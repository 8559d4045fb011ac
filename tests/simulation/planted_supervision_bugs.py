"""Bugs in how consumers are replaced, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from simulation import Parts, SimSupervisor

from taskq.broker.consumers.succession import ProcessState

#: What is found where an exception ends the broker.
BREAKS_THE_BROKER = "breaks_the_broker"


class RetiresTheDead(SimSupervisor):
    """A successor remembers whom it replaces, and does not ask whether that one is there."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._known: dict[int, Any] = {}

    def _spawn(self, *arguments: Any) -> Any:
        consumer = super()._spawn(*arguments)
        self._known[consumer.key] = consumer
        return consumer

    def ready(self, consumer: Any) -> Any:
        replaced = self._known.get(consumer.replaces)
        super().ready(consumer)
        return replaced


class ReplacesTheUnready(SimSupervisor):
    """Also who is starting may be replaced."""

    def _next_to_replace(self, now: float) -> Any:
        waiting = [consumer for consumer in self.consumers.values() if consumer.state is not ProcessState.RETIRING]
        return (
            next((consumer for consumer in waiting if self._is_due(consumer, now)), None)
            if not self._is_replacing
            else None
        )

    def reload(self) -> list[Any]:
        self.code += 1
        self.is_reloading = True
        return []

    def ready(self, consumer: Any) -> Any:
        replaced = self.consumers.get(consumer.replaces)
        super().ready(consumer)
        return replaced


class TrustsTheDead(SimSupervisor):
    """Who has a successor is taken care of, also if both die."""

    def ended(self, consumer: Any, now: float, *, did_jobs: bool) -> None:
        was_replacing = consumer.replaces is not None
        super().ended(consumer, now, did_jobs=did_jobs)
        if was_replacing:
            self._start_at.pop(consumer.number, None)


class StartsTwo(SimSupervisor):
    """Who dies gets a successor, also if one is starting already."""

    def _is_taken(self, number: int) -> bool:
        consumers = self.consumers.values()
        return any(consumer.number == number and consumer.state is ProcessState.READY for consumer in consumers)


class ReloadsTheReadyOnly(SimSupervisor):
    """Who starts while a reload is asked for is taken for one with the new code."""

    def reload(self) -> list[Any]:
        super(SimSupervisor.__mro__[1], self).reload()
        for consumer in self.consumers.values():
            if consumer.state is ProcessState.STARTING:
                consumer.code = self.code
        return []


class GivesUpInSilence(SimSupervisor):
    """A reload that fails counts as one that is done."""

    def boot_failed(self, code: int, error: str) -> bool:
        has_failed = super().boot_failed(code, error)
        if has_failed:
            self.code -= 1
        return has_failed


class DoesNotWaitForJobs(SimSupervisor):
    """Who retires is killed."""

    def retire(self, consumer: Any) -> bool:
        is_sent = super().retire(consumer)
        consumer.kill()
        return is_sent


class ChargesForTheForkServer(SimSupervisor):
    """Who dies with the process that it was forked from has died of its jobs."""

    def bury(self, consumer: Any, now: float) -> Any:
        consumer.server = None
        return super().bury(consumer, now)


class ChargesForTheStop(SimSupervisor):
    """Who is killed since the fleet stops has died of its jobs."""

    def bury(self, consumer: Any, now: float) -> Any:
        return super().bury(consumer, now)._replace(stopped=False)


SUPERVISION_BUGS: dict[str, tuple[Parts, Iterable[str]]] = {
    "a dead one that is to retire": (Parts(supervisor=RetiresTheDead), {BREAKS_THE_BROKER}),
    "one that starts and is to retire": (Parts(supervisor=ReplacesTheUnready), {BREAKS_THE_BROKER}),
    "a number that nobody has": (Parts(supervisor=TrustsTheDead), {"the_fleet_is_whole"}),
    "a number that two have": (Parts(supervisor=StartsTwo), {"the_fleet_is_whole"}),
    "a reload that misses those that start": (
        Parts(supervisor=ReloadsTheReadyOnly),
        {"a_reload_reaches_all_or_is_told"},
    ),
    "a reload that fails and is not told": (Parts(supervisor=GivesUpInSilence), {"a_reload_reaches_all_or_is_told"}),
    "a death of the fork server that is charged": (
        Parts(supervisor=ChargesForTheForkServer),
        {"only_the_guilty_are_charged"},
    ),
    "a kill for the stop that is charged": (Parts(supervisor=ChargesForTheStop), {"only_the_guilty_are_charged"}),
    "a replacement that interrupts jobs": (
        Parts(supervisor=DoesNotWaitForJobs),
        {"a_replacement_interrupts_no_job"},
    ),
}
