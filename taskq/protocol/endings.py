"""The ends of jobs: a client asks for them, and the broker sends each when it comes.

WATCH   [op, ids]               ids of 16 bytes each, one after the other; there is no other answer than RESULT frames
RESULT  [op, id, state] | outcome   the state is "" if nothing is known of the job
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from taskq.model.attempt import Outcome, read_outcome
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_PER_FRAME
from taskq.protocol.frames import Message, frame
from taskq.protocol.ops import Op

_ID_BYTES = 16


class Ending(NamedTuple):
    """How a job ended."""

    state: JobState
    outcome: Outcome


def watch_frames(ids: Sequence[bytes]) -> Iterator[bytes]:
    """Makes the frames that ask for the ends of jobs."""
    for start in range(0, len(ids), MAX_JOBS_PER_FRAME):
        yield frame([Op.WATCH, b"".join(ids[start : start + MAX_JOBS_PER_FRAME])])


def watched_ids(ids: bytes) -> list[bytes]:
    """Reads the ids in a WATCH frame."""
    return [ids[start : start + _ID_BYTES] for start in range(0, len(ids), _ID_BYTES)]


def result_frame(job_id: bytes, state: JobState, outcome: bytes) -> bytes:
    """Makes the frame that tells how a job ended.

    Args:
        outcome: as made by `taskq.model.attempt`, or empty.
    """
    return frame([Op.RESULT, job_id, state.value], [outcome])


def unknown_frame(job_id: bytes) -> bytes:
    """Makes the frame that tells that nothing is known of a job."""
    return frame([Op.RESULT, job_id, ""])


def ending_of(message: Message) -> tuple[bytes, Ending | None]:
    """Reads a RESULT frame: the id and the ending of a job; None if the broker does not know the job."""
    envelope, body = message
    _, job_id, state = envelope
    if not state:
        return job_id, None
    return job_id, Ending(JobState(state), read_outcome(bytes(body)))
