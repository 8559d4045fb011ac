"""Jobs that come after others: what becomes of one when some before it have ended. A pure rule for any engine."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from taskq.model.attempt import unpack
from taskq.model.errors import ProtocolError
from taskq.model.job import JobError
from taskq.model.stored import StoredState

#: How many characters of the failed job's error each job has that is cancelled because of it.
_TOLD_CHARS = 200


class Fate(Enum):
    """What becomes of a job when some of those before it have ended."""

    WAITS = auto()
    GOES = auto()
    CANCELLED = auto()


def becomes(ends: Iterable[tuple[StoredState, bool]], is_last: bool) -> Fate:
    """Returns what becomes of a job.

    Args:
        ends: how jobs before it ended, each with whether the job goes on if that one did not succeed.
        is_last: whether it waits for no other job.
    """
    if any(kept != StoredState.SUCCEEDED and not goes_on for kept, goes_on in ends):
        return Fate.CANCELLED  # at once: the other jobs that it waits for cannot change that
    return Fate.GOES if is_last else Fate.WAITS


def parent_failed(parent: bytes, task: str, kept: StoredState, outcome: bytes | None) -> JobError:
    """Returns why the jobs after one are cancelled. If that one was itself cancelled because of another, this is the
    reason for them, too.

    Args:
        parent: the id of the one that did not succeed.
        task: its task; "" if it is not known any more.
        kept: how it ended.
        outcome: of its last attempt.
    """
    error = _error_in(outcome)
    if error is not None and error.type == "ParentFailed":
        return error
    of_task = f" of {task}" if task else ""
    return JobError("ParentFailed", f"job {parent.hex()}{of_task}, which it comes after, {_told(kept, error)}")


def _error_in(outcome: bytes | None) -> JobError | None:
    try:
        return None if outcome is None else unpack(outcome).error
    except ProtocolError:
        return None  # reported where the outcome itself is read; here it must not hold up the jobs after it


def _told(kept: StoredState, error: JobError | None) -> str:
    text = "" if error is None else " ".join(error.message.split())
    if len(text) > _TOLD_CHARS:
        text = f"{text[:_TOLD_CHARS]}..."
    if kept == StoredState.FAILED:
        return "failed" if error is None else f"failed: {error.type}: {text}"
    return "expired" if kept == StoredState.EXPIRED else f"was {text or 'cancelled'}"
