"""Unique jobs: which of the jobs that come in stay, and which existing ones give way. A pure rule for any engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from taskq.model.attempt import pack_failure
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.job import JobError, enqueued_at
from taskq.model.stored import FIRST_FINAL, StoredJob

#: Why jobs are cancelled for the sake of others with their keys: the latter with the id of the job in their place.
REPLACED: Final = "a later job with the same unique key took its place"
LEFT_OUT: Final = "job {} with the same unique key was there before"


def duplicate(reason: str) -> bytes:
    """The outcome of a job that is cancelled for the sake of another with its key."""
    return pack_failure(None, None, JobError("Duplicate", reason))


class Leases(Protocol):
    """Knows which jobs consumers have."""

    def withdraw(self, job_id: bytes, /) -> bool:
        """Takes a job back from the consumer that has it. Returns False if it runs."""

    def is_running(self, job_id: bytes, /) -> bool:
        """Whether a job runs now."""


class Decision(NamedTuple):
    """What becomes of jobs that come in together.

    Attributes:
        taken: the positions of those that are taken in, in order, including those that are known already.
        earlier: for each job that is left out, its id and that of the job in its place.
        released: existing jobs that no longer keep others out.
        replaced: existing jobs that give way.
    """

    taken: list[int]
    earlier: dict[bytes, bytes]
    released: list[StoredJob]
    replaced: list[StoredJob]


def decide(
    ids: Sequence[bytes],
    constraints: Sequence[Constraints],
    known: Collection[bytes],
    holders: Mapping[str, StoredJob],
    leases: Leases,
    wall: float,
) -> Decision:
    """Decides what becomes of jobs that come in together. They may have the same key among themselves, too: then the
    first stays, or the last if it replaces.

    Args:
        ids, constraints: of the jobs that come in.
        known: those of them that were taken in before, and are sent again: they stay.
        holders: by unique key, the jobs that have it.
        wall: seconds since 1970.
    """
    stands: dict[str, int] = {}  # by key: the position of the job that has it now
    for position, (job_id, own) in enumerate(zip(ids, constraints, strict=True)):
        if job_id in known and own.unique is not None:
            stands[own.unique.key] = position
    left_out: dict[int, str] = {}  # positions, and the keys that other jobs have
    decision = Decision([], {}, [], [])
    for position, (job_id, own) in enumerate(zip(ids, constraints, strict=True)):
        unique = own.unique
        if unique is None or job_id in known:
            continue
        before = stands.get(unique.key)
        if before is not None:
            gives_way = unique.replaces and ids[before] not in known
            last, stands[unique.key] = (before, position) if gives_way else (position, before)
            left_out[last] = unique.key
        elif _may_have_the_key(unique, holders.get(unique.key), leases, wall, decision):
            stands[unique.key] = position
        else:
            left_out[position] = unique.key
    decision.taken.extend(position for position in range(len(ids)) if position not in left_out)
    for position, key in left_out.items():
        decision.earlier[ids[position]] = ids[stands[key]] if key in stands else holders[key].row.id
    return decision


def _may_have_the_key(
    unique: UniqueKey, holder: StoredJob | None, leases: Leases, wall: float, decision: Decision
) -> bool:
    """Whether a job gets its key. Notes what becomes of the job that has it."""
    if holder is None:
        return True
    if not keeps_others_out(holder, unique, leases, wall):
        decision.released.append(holder)
        return True
    if unique.replaces and holder.kept < FIRST_FINAL and leases.withdraw(holder.row.id):
        decision.replaced.append(holder)
        return True
    return False


def keeps_others_out(holder: StoredJob, unique: UniqueKey, leases: Leases, wall: float) -> bool:
    """Whether the job that has the key keeps out another that wants it."""
    if unique.period_s is not None and enqueued_at(holder.row.id) + unique.period_s > wall:
        return True
    if holder.kept >= FIRST_FINAL:
        return False
    return not (unique.until_start and leases.is_running(holder.row.id))
