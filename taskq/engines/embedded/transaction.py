"""One transaction of the journal: what commands see and change in it, and what follows once it is durable.

    effects of the fleet, commands in the order in which they came -> rows -> COMMIT -> follow-ups -> answers

A command looks before it writes, and raises before it has written, so a refused one leaves nothing half done. Each sees
the changes of those before it. What follows in memory (which jobs wait, what is logged) is put off until the commit, in
the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, Final

from taskq.engines.contract import Consumers, Jobs
from taskq.engines.embedded.admission import Admission, Admitted
from taskq.engines.embedded.journal.store import Place, Store
from taskq.model import limits
from taskq.model.effects import NO_EFFECTS, Effects, Event
from taskq.model.errors import EnqueueError, StoreFull
from taskq.model.job import JobRow
from taskq.model.limits import REQUEST_US
from taskq.model.partition import partition_of
from taskq.model.stored import FIRST_FINAL, Ended, StoredJob, StoredState
from taskq.protocol.submissions import Submission

#: What a command returns that has done a part of its work: see `Command.apply`.
UNFINISHED: Final = object()


class Command:
    """Something that changes the journal, or is answered when everything before it is durable."""

    #: Whether it adds jobs or schedules: then it is refused while the disk is full. What ends jobs is still tried.
    adds = False
    #: Whether it changes anything: if not, it is only answered.
    changes = True
    #: About how long it takes, with its answer, in microseconds; see `taskq.model.limits.TURN_US`.
    work_us: float = REQUEST_US
    #: Who asked. While a command of somebody is unfinished, what else the same one has asked for waits.
    peer: Any = None

    def apply(self, tx: Transaction) -> object:
        """Decides and writes, in the transaction. It may be called again after a rollback.

        Returns:
            The outcome; or UNFINISHED, if this part is to be committed, and the rest to be done in later turns: then it
            is applied again and again, while other clients are served, and answered with its last part. What it has
            done, and where to go on, it notes with `Transaction.then`.

        Raises:
            TaskQError: it is refused, and has changed nothing.
            StoreFull: the disk is full.
        """

    def answer(self, outcome: object, /) -> None:
        """Answers whoever asked: the transaction is durable, or could not be made so.

        Args:
            outcome: what `apply` has returned, or the error for which it was refused.
        """


def portion(each_us: float, room_us: float | None = None) -> int:
    """Returns how many pieces of work fit into a turn of the loop; at least one.

    Args:
        each_us: what each takes, in microseconds.
        room_us: what is left of the turn, in microseconds; None: all of it.
    """
    return max(1, int((limits.TURN_US if room_us is None else room_us) // each_us))


class Transaction:
    """Used by the committer, and by the commands that it applies."""

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        consumers: Consumers,
        decided: Effects,
        now: float,
        wall: float,
        admission: type[Admission] = Admission,
    ) -> None:
        """
        Args:
            decided: what the fleet has decided; NO_EFFECTS if that is nothing. It is settled here, and extended by what
                the fleet decides in the meantime.
            now, wall: monotonic seconds, and seconds since 1970.
        """
        self.store, self.jobs, self.consumers = store, jobs, consumers
        self.now, self.wall = now, wall
        #: What the fleet has decided, also in the meantime.
        self.decided = decided
        self._admission = admission(store, jobs, self)
        #: The jobs that are new, as they were handed in together.
        self.taken: list[list[JobRow]] = []
        self.retried: list[JobRow] = []  # by hand
        #: What commands have ended, and lines for the log: reported after the commit.
        self.ended: list[Ended] = []
        #: The jobs that commands have removed.
        self.removed: list[StoredJob] = []
        #: The ids and outcomes of jobs that were pruned and may have a result in a file.
        self.pruned: list[tuple[bytes, bytes]] = []
        self.notes: list[Event] = []
        #: The jobs that have ended, for those that come after them.
        self.ends: dict[bytes, StoredState] = {}
        #: When the first of the new jobs is due, and when the first of them expires.
        self.next_due: float | None = None
        self.next_expiry: float | None = None
        #: What the turn still has room for, in microseconds.
        self.room_us = limits.TURN_US
        self._follow_ups: list[Callable[[], object]] = []
        self._undo: list[Callable[[], object]] = []
        if decided is not NO_EFFECTS:
            self._settle(decided)

    # -- what the fleet has decided

    def _settle(self, effects: Effects) -> None:
        store = self.store
        if effects.checkpoints:
            store.keep_checkpoints(effects.checkpoints)
        for row, first, items in effects.items:
            store.add_items(row.seq, first, items)
        if effects.ended or effects.rescheduled:
            store.settle(effects.ended, effects.rescheduled, self.wall)
            store.totals.retried += effects.retried
            store.totals.crashed += effects.crashed
            for row, kept, _ in effects.ended:
                self.ends[row.id] = kept

    def _settle_more(self) -> None:
        """Settles jobs that a consumer gave back and that are over, since they had to be stopped."""
        effects = self.jobs.take_effects()
        if effects:
            if self.decided is NO_EFFECTS:
                self.decided = Effects()
            self.decided.add(effects)
            self._settle(effects)

    # -- what commands ask

    def withdraw(self, job_id: bytes) -> bool:
        """Takes a job back from the consumer that has it. Returns False if it runs. It may be in `ends` afterwards."""
        is_free = self.consumers.withdraw(job_id)
        self._settle_more()
        return is_free

    def take_back_all(self) -> None:
        """Takes back the jobs that no consumer has started. Some of them may be in `ends` afterwards."""
        self.consumers.take_back_all(self.now)
        self._settle_more()

    def is_running(self, job_id: bytes) -> bool:
        """Whether a job runs now."""
        return self.consumers.is_running(job_id)

    # -- what commands do

    def portion(self, each_us: float) -> int:
        """How many pieces of work that nobody waits for the turn has room for; some, even if it is full.

        Args:
            each_us: what each takes, in microseconds.
        """
        return portion(each_us, max(self.room_us, limits.TURN_US / 8))

    def submit(self, submission: Submission) -> Admitted:
        """Takes in jobs.

        Raises:
            EnqueueError: they are refused.
        """
        taken = self._admission.take(submission, self.wall)
        if taken.before:
            self.ends.update(taken.before)
        if taken.ended:
            self._give_way(taken)
        if submission.parts:
            rows = {row.id: row for row in taken.rows}
            for part in submission.parts:
                self._took_in(part, [rows[job_id] for job_id in part.ids if job_id in rows])
        else:
            self._took_in(submission, taken.rows)
        if taken.rows:
            self.taken.append(taken.rows)
        return taken

    def try_submit(self, submission: Submission) -> EnqueueError | None:
        """Takes in jobs for which nobody waits. Returns why they are refused."""
        try:
            self.submit(submission)
        except StoreFull:
            raise
        except EnqueueError as error:
            return error
        return None

    def _give_way(self, taken: Admitted) -> None:
        """Ends jobs whose unique key another has now."""
        kept_before = {job.row.id: job.kept for job in taken.replaced}
        for row, kept, outcome in taken.ended:
            if row.id not in self.ends:
                note = Event("job.cancelled", {"row": row})
                self.end(
                    StoredJob(row, kept_before.get(row.id, StoredState.WAITING), None, None, None), kept, outcome, note
                )

    def _took_in(self, submission: Submission, rows: list[JobRow]) -> None:
        if submission.constraints is None:
            self._follow_ups.append(partial(self.jobs.submitted, rows))
            return
        ids, constraints = submission.ids, submission.constraints
        due = {job_id: own.due_at for job_id, own in zip(ids, constraints, strict=True) if own.due_at is not None}
        waiting = {job_id for job_id, own in zip(ids, constraints, strict=True) if own.after}
        self.next_due = first_of(self.next_due, *(at for job_id, at in due.items() if job_id not in waiting))
        self.next_expiry = first_of(self.next_expiry, *(own.expires_at for own in constraints))
        queued = [row for row in rows if row.id not in due and row.id not in waiting]
        for _, alike in groupby(queued, lambda row: partition_of(row.spec, row.constraints)):
            self._follow_ups.append(partial(self.jobs.submitted, list(alike)))

    def end(self, job: StoredJob, kept: StoredState, outcome: bytes, note: Event) -> None:
        """Ends a job that has not ended, and that no consumer has."""
        ended = job.row, kept, outcome
        self.store.settle([ended], [], self.wall)
        self.ends[job.row.id] = kept
        self.ended.append(ended)
        self.notes.append(note)
        self._forget(job)

    def remove(self, jobs: list[StoredJob]) -> None:
        """Removes jobs that no consumer has."""
        self.store.remove(jobs)
        self.removed += jobs
        for job in jobs:
            if job.kept < FIRST_FINAL:
                self.ends[job.row.id] = StoredState.CANCELLED
                self._forget(job)

    def _forget(self, job: StoredJob) -> None:
        if job.kept == StoredState.QUEUED:
            self._admission.count(job.row.spec.queue, -1)
        self._follow_ups.append(partial(self.jobs.forget, job.row, job.kept))

    def requeue(self, jobs: list[StoredJob]) -> list[Place]:
        """Queues failed jobs again. Returns what to `revive`."""
        rows = self.store.requeue(jobs, self.wall)
        self.store.totals.retried += len(rows)
        self.retried += rows
        for row in rows:
            self.ends.pop(row.id, None)
            self._admission.count(row.spec.queue, 1)
        self._follow_ups.append(partial(self.jobs.requeued, rows))
        return [(row.id, 0) for row in rows]

    def revive(self, places: list[Place]) -> list[Place]:
        """Has jobs that were cancelled because of others, which are run again, wait again, as many as the turn has room
        for. Returns where to go on. A broker that dies goes on at its start."""
        revival = self.store.revive_dependents(places, self.portion(limits.LINK_US))
        self.ends.update(revival.ends)
        if revival.left:
            self.room_us = 0.0
        return revival.left

    # -- afterwards

    def then(self, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """Has a function called when the transaction is durable, in the order of these calls."""
        self._follow_ups.append(partial(function, *arguments, **named))

    def or_else(self, function: Callable[[], object]) -> None:
        """Has a function called if the transaction is rolled back."""
        self._undo.append(function)

    def committed(self) -> None:
        """Runs what follows: the transaction is durable."""
        for follow_up in self._follow_ups:
            follow_up()
        self._end_cycle()

    def rolled_back(self) -> None:
        """Undoes what was changed in memory: the transaction did not happen."""
        for undo in self._undo:
            undo()
        self._end_cycle()

    def _end_cycle(self) -> None:
        """Breaks the cycle of references with the admission: otherwise payloads would stay in memory until the garbage
        collector runs, which is rare here."""
        del self._admission


def first_of(*times: float | None) -> float | None:
    """Returns the earliest of some times; None if there is none."""
    first: float | None = None
    for at in times:
        if at is not None and (first is None or at < first):
            first = at
    return first
