"""How long jobs take, by task: batches and the shares of queues follow it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from taskq.broker.core.leases import UNKNOWN_RUN_S
from taskq.model.effects import ProcessExit

#: Also a job that takes no time that can be measured uses up its queue's share.
SHORTEST_RUN_S: Final = 1e-6
#: A new mean counts as much as this many jobs did before.
_INERTIA_JOBS: Final = 8


class RunTimes:
    """Used by the core alone."""

    def __init__(self) -> None:
        self.mean_s: dict[str, float] = {}  # by task; newer jobs count more

    def of(self, task: str) -> float:
        """Returns the seconds that a job of a task takes, as far as is known."""
        return self.mean_s.get(task, UNKNOWN_RUN_S)

    def ended(self, durations_of: Mapping[str, Sequence[int]]) -> None:
        """Notes how long jobs took, in microseconds by task."""
        for task, durations_us in durations_of.items():
            mean_s = max(SHORTEST_RUN_S, sum(durations_us) / len(durations_us) / 1e6)
            known_s = self.mean_s.get(task)
            weight = 1.0 if known_s is None else len(durations_us) / (len(durations_us) + _INERTIA_JOBS)
            self.mean_s[task] = mean_s if known_s is None else known_s + (mean_s - known_s) * weight

    def died(self, task: str, number: int, ran_s: float | None, death: ProcessExit) -> None:
        """Notes an attempt that ended with its process: it reported nothing, but it used its queue's share. It counts
        as no shorter than an unknown task, since another process has to start. One that was interrupted says nothing
        about its task."""
        if ran_s is not None and not death.stopped and death.timed_out in (None, number):
            self.ended({task: [round(max(UNKNOWN_RUN_S, ran_s) * 1e6)]})
