"""Jobs that come after others: what follows from the end of a job, in the transaction that records that end.

ended jobs -> edges -> becomes (a pure rule) -> queued | cancelled -> ended jobs -> ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from taskq.engines.dependents import Fate, becomes, parent_failed
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.transaction import portion
from taskq.model.attempt import pack_failure
from taskq.model.effects import Event
from taskq.model.job import JobError, JobRow
from taskq.model.limits import LINK_US
from taskq.model.stored import Edge, Ended, StoredState

#: So many jobs that ended are looked up in the time that a link takes.
_ENDS_PER_LINK = 5


@dataclass(slots=True)
class Released:
    """What the end of jobs has brought about.

    Attributes:
        queued: jobs that run now.
        next_due: when the first of the released jobs with a later time is due.
        ended: jobs that do not run, since one before them did not succeed.
        notes: lines for the log.
        left: ended jobs that have more jobs after them than were looked at: the next commit goes on with them.
    """

    queued: list[JobRow] = field(default_factory=list)
    next_due: float | None = None
    ended: list[Ended] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)
    left: dict[bytes, StoredState] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.queued or self.ended or self.next_due or self.left)


def release_dependents(
    store: Store, ends: Mapping[bytes, StoredState], wall: float, limit: int | None = None
) -> Released:
    """Releases or cancels the jobs that waited for these, and those that waited for them in turn. Commits nothing.

    Args:
        limit: how many links are looked at; None: as many as fit into a turn. What is left follows with the next
            commits, or at the next start.
    """
    limit = portion(LINK_US) if limit is None else limit
    handed = Released(left=dict(ends))
    reasons: dict[bytes, JobError] = {}  # why jobs were cancelled here: the first that did not succeed
    while handed.left and store.has_waiting:
        ends = dict(islice(handed.left.items(), _ENDS_PER_LINK * limit))
        later = dict(islice(handed.left.items(), len(ends), None))
        by_child: dict[int, list[Edge]] = {}
        edges = store.close_edges(list(ends), limit)
        if len(edges) == limit:  # the last of these may have more, and those behind it were not looked at
            parents = list(ends)
            later = {parent: ends[parent] for parent in parents[parents.index(edges[-1].parent) :]} | later
        limit -= len(edges) + len(ends) // _ENDS_PER_LINK
        for edge in edges:
            by_child.setdefault(edge.child, []).append(edge)
        decided = {
            child: becomes([(ends[edge.parent], edge.goes_on) for edge in edges], edges[0].is_last)
            for child, edges in by_child.items()
        }
        _release(store, [child for child, what in decided.items() if what is Fate.GOES], handed, wall)
        stopped = [child for child, what in decided.items() if what is Fate.CANCELLED]
        more = _cancel(store, stopped, by_child, ends, reasons, handed, wall) if stopped else {}
        handed.left = more | later  # those after them first: then it stays small, however many come after one job
        if limit <= 0:
            return handed
    handed.left = {}
    return handed


def _release(store: Store, seqs: list[int], handed: Released, wall: float) -> None:
    jobs = store.read_waiting(seqs)
    if not jobs:
        return
    store.release_waiting(jobs, wall)
    for job in jobs:
        if job.due_at is None or job.due_at <= wall:
            handed.queued.append(job.row)
        else:
            handed.next_due = min(job.due_at, handed.next_due or job.due_at)


def _cancel(
    store: Store,
    seqs: list[int],
    edges: Mapping[int, list[Edge]],
    ends: Mapping[bytes, StoredState],
    reasons: dict[bytes, JobError],
    handed: Released,
    wall: float,
) -> dict[bytes, StoredState]:
    """Cancels jobs. Returns their ends."""
    ended: list[Ended] = []
    for job in store.read_waiting(seqs):
        parent = next(e.parent for e in edges[job.row.seq] if ends[e.parent] != StoredState.SUCCEEDED and not e.goes_on)
        if parent not in reasons:
            reasons[parent] = _reason(store, parent, ends[parent])
        reasons[job.row.id] = error = reasons[parent]
        ended.append((job.row, StoredState.CANCELLED, pack_failure(None, None, error)))
        handed.notes.append(Event("job.cancelled", {"row": job.row, "error": error}))
    store.cancel_dependents(ended, wall)
    handed.ended += ended
    return dict.fromkeys((row.id for row, _, _ in ended), StoredState.CANCELLED)


def _reason(store: Store, culprit: bytes, kept: StoredState) -> JobError:
    """Returns why the jobs after this one are cancelled."""
    job = store.read(culprit)  # None: it was purged
    return parent_failed(culprit, "" if job is None else job.row.spec.task, kept, None if job is None else job.outcome)
