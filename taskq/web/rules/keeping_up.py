"""Whether a broker keeps up, in a sentence. Pure."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from taskq.model.info.status import FleetStatus
from taskq.model.info.words import time_text

#: From these on, what the broker does takes too long: a commit, in seconds; the share of the time in which it is busy;
#: and a pause in which it answers nobody, in seconds.
_SLOW_COMMIT_S: Final = 0.1
_BUSY: Final = 0.9
_LONG_TURN_S: Final = 1.0


class Verdict(NamedTuple):
    """How a broker does.

    Attributes:
        tone: "good" if it keeps up; "look" if it may soon not, or does not answer at once; "bad" if no jobs run.
        told: that in a sentence.
    """

    tone: Literal["good", "look", "bad"]
    told: str


def verdict_of(status: FleetStatus, why_not_ready: str = "") -> Verdict:
    """Returns whether the broker keeps up with what is asked of it.

    Args:
        why_not_ready: why it is not ready for jobs; empty if it is.
    """
    broker = status.broker
    if broker.state == "stopped":
        return Verdict("bad", "No fleet runs: start one with `taskq worker`.")
    if why_not_ready:
        return Verdict("bad", f"It is not ready for jobs: {why_not_ready}.")
    slow = []
    if broker.commit_mean_s is not None and broker.commit_mean_s >= _SLOW_COMMIT_S:
        slow.append(f"a commit takes {time_text(broker.commit_mean_s)}, since the disk is slow or shared")
    if broker.busy_share is not None and broker.busy_share >= _BUSY:
        slow.append(f"its loop is busy for {_percent(broker.busy_share)} of the time")
    if (broker.longest_turn_last_minute_s or 0.0) >= _LONG_TURN_S:
        slow.append(f"it answered nobody for {time_text(broker.longest_turn_last_minute_s or 0.0)} in the last minute")
    if slow:
        return Verdict("look", f"It hardly keeps up: {_joined(slow)}.")
    does = [
        "nothing was written in the last minute"
        if broker.commit_mean_s is None
        else f"a commit takes {time_text(broker.commit_mean_s)}"
    ]
    if broker.busy_share is not None:
        does.append(f"its loop is busy for {_percent(broker.busy_share)} of the time")
    return Verdict("good", f"It keeps up: {_joined(does)}.")


def _joined(parts: list[str]) -> str:
    return ", and ".join(parts)


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{share * 100:.0f} %"
