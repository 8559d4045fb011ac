"""Bugs in how running jobs are stopped, to be found by the simulation; see test_simulation.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulation import Parts, SimPool

from taskq.broker.core.core import Core
from taskq.broker.core.leases import ConsumerLeases
from taskq.model.attempt import Claim, Usage
from taskq.model.effects import Key, ProcessExit


class LetsThemGrow(Core):
    """Nobody looks at how much memory a job takes."""

    def measured(self, key: Key, claims: Sequence[Claim], _usage: Usage | None, now: float) -> None:
        super().measured(key, claims, None, now)


class ForgivesTheFat(Core):
    """A job that is killed for its memory limit counts as one that was interrupted, and begins anew for ever."""

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        super().died(key, claims, death._replace(stopped=death.stopped or death.over_limit is not None), wall)


class ForgetsToStop(Core):
    """A running job that is cancelled is told as being stopped, and runs on."""

    def cancel_running(self, _key: Key, _job_id: bytes, _now: float) -> None:
        pass


class RunsTheUnwanted(Core):
    """Who is killed since it was cancelled has failed, and may be retried."""

    def died(self, key: Key, claims: Sequence[Claim], death: ProcessExit, wall: float) -> None:
        self._watchdog.forget(key)
        super().died(key, claims, death, wall)


class TakesBackWhatRuns(SimPool):
    """A running job counts as one that the consumer has not begun."""

    def withdraw(self, job_id: bytes) -> bool:
        if not super().withdraw(job_id):
            key = self._core.consumer_of(job_id)
            assert key is not None
            consumer: ConsumerLeases = self._core._consumers[key]
            del consumer.leased[self._core.number_of(key, job_id)]
        return True


CANCEL_BUGS: dict[str, tuple[Parts, Iterable[str]]] = {
    "a limit of memory that nobody watches": (Parts(core=LetsThemGrow), {"no_acked_job_is_lost"}),
    "a limit of memory that charges nobody": (Parts(core=ForgivesTheFat), {"no_acked_job_is_lost"}),
    "an unwanted job that runs on": (Parts(core=ForgetsToStop), {"the_unwanted_end_soon"}),
    "an unwanted job that is retried": (Parts(core=RunsTheUnwanted), {"the_unwanted_end_soon"}),
    "an unwanted job that is told as cancelled while it runs": (
        Parts(pool=TakesBackWhatRuns),
        {"nothing_cancelled_runs_on"},
    ),
}
