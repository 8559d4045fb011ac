"""Admission of submitted jobs: is there room in the queue, and is there a job with the same unique key already?"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from taskq.engines.contract import Jobs
from taskq.engines.embedded.journal.store import Store
from taskq.model.constraints import Constraints
from taskq.model.errors import EnqueueError
from taskq.model.job import JobRow
from taskq.model.rules.room import check_room
from taskq.model.rules.unique import LEFT_OUT, REPLACED, Leases, decide, duplicate
from taskq.model.stored import FIRST_FINAL, Ended, StoredJob, StoredState
from taskq.protocol.submissions import Submission


class Admitted(NamedTuple):
    """What became of a submission.

    Attributes:
        rows: the jobs that are new, in order.
        earlier: for each job that is left out, its id and that of the earlier job in its place.
        replaced: jobs that had to give way, as they were before.
        ended: all jobs that end with this submission.
        before: jobs that ended before, and that new ones come after.
    """

    rows: list[JobRow]
    earlier: dict[bytes, bytes]
    replaced: list[StoredJob]
    ended: list[Ended]
    before: dict[bytes, StoredState]


class Admission:
    """Takes submissions into the store, in one transaction."""

    def __init__(self, store: Store, jobs: Jobs, leases: Leases) -> None:
        self._store = store
        self._jobs = jobs
        self._leases = leases
        self._taken: dict[str, int] = {}  # how many more (or fewer) jobs each queue has than the core knows

    def count(self, queue: str, jobs: int) -> None:
        """Counts jobs that have come into a queue (or left it, if negative) in this transaction."""
        self._taken[queue] = self._taken.get(queue, 0) + jobs

    def take(self, submission: Submission, wall: float) -> Admitted:
        """Takes in the jobs of a submission, in the store's transaction.

        Raises:
            QueueFull: too many wait.
            EnqueueError: see `Store.submit`.
            StoreFull: the disk is full.
        """
        if submission.parts:
            return self._take_parts(submission)
        constraints = submission.constraints
        before = self._before(submission) if constraints is not None else {}
        if constraints is None or not any(own.unique for own in constraints):
            self._check_room(submission, len(submission.ids))
            rows = self._store.submit(submission.spec, submission.ids, submission.payloads, constraints)
            taken = Admitted(rows, {}, [], [], before)
        else:
            taken = self._take_unique(submission, constraints, wall)._replace(before=before)
        self.count(submission.spec.queue, len(taken.rows))
        return taken

    def _take_parts(self, submission: Submission) -> Admitted:
        """Takes in all parts or, if it raises, none."""
        taken = Admitted([], {}, [], [], {})
        if self._store.states(submission.ids):
            return taken  # it was sent before
        for part in submission.parts:
            self._check_room(part, len(part.ids))
        before = self._before(submission)
        for part in submission.parts:
            rows = self._store.submit(part.spec, part.ids, part.payloads, part.constraints)
            taken.rows.extend(rows)
            self.count(part.spec.queue, len(rows))
        return taken._replace(before=before)

    def unknown_parents(self, submission: Submission) -> list[bytes]:
        """Returns the jobs that new ones come after, and that are not known."""
        parents = _parents(submission)
        known = self._store.states(parents)
        return [parent for parent in parents if parent not in known]

    def _before(self, submission: Submission) -> dict[bytes, StoredState]:
        """Returns the jobs that new ones come after and that have already ended.

        Raises:
            EnqueueError: one of them is not known.
        """
        parents = _parents(submission)
        states = self._store.states(parents)
        unknown = [parent for parent in parents if parent not in states]
        if unknown and not self._store.states(submission.ids):  # otherwise it is sent again, and was checked before
            raise EnqueueError(
                f"there is no job {unknown[0].hex()} to come after: it never existed, or it is no longer kept"
            )
        return {parent: kept for parent, kept in states.items() if kept >= FIRST_FINAL}

    def _check_room(self, submission: Submission, jobs: int) -> None:
        spec = submission.spec
        if spec.max_queued is None or submission.peer is None:
            return  # what was spooled was accepted
        check_room(spec, self._jobs.queued(spec.queue) + self._taken.get(spec.queue, 0), jobs)

    def _check_arguments(self, submission: Submission, known: Collection[bytes]) -> None:
        """Checks, before anything is written, that known ids came with the same arguments as before."""
        for job_id, payload in zip(submission.ids, submission.payloads, strict=True) if known else ():
            stored = self._store.read(job_id) if job_id in known else None
            if stored is not None and stored.row.payload not in (b"", payload):
                raise EnqueueError(f"job id {job_id.hex()} is already used by a job with other arguments")

    def _take_unique(self, submission: Submission, constraints: list[Constraints], wall: float) -> Admitted:
        """Takes in the jobs that get their unique keys; they may have the same key among themselves, too."""
        known = self._store.states(submission.ids)
        self._check_arguments(submission, known)
        holders = self._store.with_keys([own.unique.key for own in constraints if own.unique is not None])
        decision = decide(submission.ids, constraints, known, holders, self._leases, wall)
        taken, replaced = decision.taken, decision.replaced
        self._check_room(submission, len(taken) - len(replaced))  # those that are left out need none
        if decision.released or replaced:
            self._store.release_keys([job.row for job in (*decision.released, *replaced)])
        return self._submit(submission, constraints, taken, decision.earlier, replaced)

    def _submit(
        self,
        submission: Submission,
        constraints: list[Constraints],
        keep: list[int],
        earlier: dict[bytes, bytes],
        replaced: list[StoredJob],
    ) -> Admitted:
        rows: list[JobRow] = []
        spec, ids, payloads = submission.spec, submission.ids, submission.payloads
        if keep:
            own = [constraints[position] for position in keep]
            rows = self._store.submit(spec, [ids[p] for p in keep], [payloads[p] for p in keep], own)
        ended: list[Ended] = [(job.row, StoredState.CANCELLED, duplicate(REPLACED)) for job in replaced]
        if earlier and submission.peer is None:
            ended += self._note_spooled(submission, earlier)
            earlier = {}
        return Admitted(rows, earlier, replaced, ended, {})

    def _note_spooled(self, submission: Submission, earlier: dict[bytes, bytes]) -> list[Ended]:
        """Stores spooled jobs that are left out, as cancelled and with the reason: their producers know only their
        ids."""
        payload_of = dict(zip(submission.ids, submission.payloads, strict=True))
        rows = self._store.submit(submission.spec, list(earlier), [payload_of[job_id] for job_id in earlier])
        return [
            (
                row,
                StoredState.CANCELLED,
                duplicate(LEFT_OUT.format(earlier[row.id].hex())),
            )
            for row in rows
        ]


def _parents(submission: Submission) -> list[bytes]:
    """Returns the jobs that those of this submission come after, without those that are part of it."""
    parts = [part.constraints for part in submission.each if part.constraints is not None]
    parents = {parent for constraints in parts for own in constraints for parent, _ in own.after}
    return list(parents.difference(submission.ids)) if parents else []
