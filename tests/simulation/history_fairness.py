"""The judge of who waits for whom: more invariants of a history, asked by history.py with its own.

What is promised: jobs start by priority and age, to within one batch, as long as any consumer ends jobs; so none waits
behind a job that hangs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from history import History

#: How long others of its queue may run, of those that begin after it was known that a job of the highest priority waits:
#: what consumers were sent before, and one that each runs while it waits there to be taken back.
URGENT_WITHIN_S = 1.0
#: Until then what was on its way to a consumer has arrived there.
_KNOWN_WITHIN_S = 0.2
#: A pause and its end may overtake their acknowledgements.
_ON_ITS_WAY_S = 0.5


def urgent_jobs_do_not_starve(h: History) -> Iterator[str]:
    """I49: while a job of the highest priority waits, consumers run others of its queue for a bounded time only. It
    counts anew when a broker starts, when a paused queue goes on, and when a process goes on that was stopped, maybe
    with the lock."""
    attempts = h.attempts_of()
    runs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for job, all_of_job in attempts.items():
        if job not in h.urgent:
            spans = [(start.at, end.at if end else h.deaths.get(start.process, inf)) for start, end in all_of_job]
            runs[h.queues.get(job, "")] += spans
    rests = _rests(h)
    for job in sorted(h.urgent & h.acked.keys() - h.cancels - h.purges):
        begins_at = attempts[job][0][0].at if job in attempts else h.ended_at
        since = max([h.acked[job], *(min(until, begins_at) for began_at, until in rests if began_at <= begins_at)])
        others = [(at, min(until, begins_at)) for at, until in runs[h.queues.get(job, "")]]
        others_s = _covered_s([span for span in others if since + _KNOWN_WITHIN_S < span[0]])
        if others_s > URGENT_WITHIN_S:
            yield f"job {job} has the highest priority and waited, while others ran for {others_s:.1f} s"


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """The time that spans cover together."""
    covered_s, reached = 0.0, -inf
    for since, until in sorted(spans):
        covered_s += max(0.0, until - max(since, reached))
        reached = max(reached, until)
    return covered_s


def _rests(h: History) -> list[tuple[float, float]]:
    """From when to when nobody can be expected to begin."""
    rests = [(since, until) for _, since, until in h.stops]
    rests += h.broker_rests
    for _, since in h.pauses:
        until = min((at for at in h.resumes if at >= since - _ON_ITS_WAY_S), default=inf)
        rests.append((since - _ON_ITS_WAY_S, until + _ON_ITS_WAY_S))
    return rests


INVARIANTS: tuple[Callable[[History], Iterator[str]], ...] = (urgent_jobs_do_not_starve,)
