"""The committer: what is decided but not durable yet, and who waits to hear of it. It commits once in a tick.

    submissions, effects of the core -> one transaction -> acknowledgements, results, log lines

Nothing is told before its commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from taskq.engines.contract import Consumers, Events, Jobs
from taskq.engines.embedded.admission import Admission, Admitted
from taskq.engines.embedded.counting import Counting
from taskq.engines.embedded.dependencies import Released, release_dependents
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.server import Peer
from taskq.engines.embedded.spooled import SpooledJobs
from taskq.engines.embedded.watchers import Watchers
from taskq.model.constraints import Constraints
from taskq.model.effects import Effects, Event
from taskq.model.errors import BehindSpool, EnqueueError, JobNotFound, StoreFull, TaskQError
from taskq.model.partition import partition_of
from taskq.model.schedule import ScheduleRow
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Ended, StoredJob, StoredState
from taskq.protocol import frames
from taskq.protocol.submissions import Submission, accepted_frame
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory

#: Outcomes that nobody waits for may ride with the next commit, this much later at the most. It halves the commits of
#: a producer that enqueues one job at a time while they run.
_COMMIT_WITHIN_S = 0.020
_COMMIT_COUNT = 2_000
#: What does not fit onto the disk is tried again after this time.
_FULL_AGAIN_S = 0.5
#: Ended jobs that one commit removes at the most, which takes it a millisecond or two.
_PRUNE_JOBS = 3_000
#: Keys that one commit looks at, whether they are to be forgotten: it takes two milliseconds.
_TIDIED_KEYS = 1_000
#: Scheduled jobs that become queued in one commit.
_DUE_JOBS = 1_000
#: Jobs that expire in one tick.
_EXPIRED_JOBS = 1_000


class StillSpooled(Exception):
    """A job that was asked for waits in the spool, behind many others: ask again when it was taken in."""

    def __init__(self, job_id: bytes) -> None:
        super().__init__(job_id)
        self.job_id = job_id


class Committer:
    """Commits, and tells. Used by the broker's loop alone."""

    def __init__(
        self,
        store: Store,
        jobs: Jobs,
        clients: Clients,
        events: Events,
        directory: Directory,
        consumers: Consumers,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._clock = clock
        self._consumers = consumers
        self._admission = Admission(store, jobs, consumers)
        self._jobs = jobs
        self._clients = clients
        self._events = events
        self._spooled = SpooledJobs(directory.spool, events)
        self._submissions: list[Submission] = []
        self._children: list[Submission] = []  # of jobs that succeeded: they commit with that
        self._effects = Effects()  # decided by the core, not committed yet
        self._effects_since: float | None = None
        self._left: dict[bytes, StoredState] = {}  # ends that are recorded, and not handed over to all yet
        self._would_release = False  # whether a job can go on as soon as the effects are committed
        #: Ended jobs that the next commit is to keep: for how long, and how many; None: it removes none.
        self._keep: tuple[float, int] | None = None
        self._committed: list[Effects] = []  # committed, not told yet
        self._watchers = Watchers(store, clients)
        self.counting = Counting(store)
        self._refusals: list[tuple[Submission, TaskQError]] = []  # of the commit that is under way
        self._schedules: dict[str, ScheduleRow | None] = {}  # what changes with this commit; None: removed
        self.next_due = store.next_due()  # when the first scheduled job is due, in seconds since 1970
        self.next_expiry = store.next_expiry()  # when the first job that has not started expires

    # -- what comes in

    def take_in(self, submission: Submission) -> None:
        """Jobs that a client, or the spool, hands in.

        Raises:
            BehindSpool: they must come after others, which wait in the spool.
        """
        if submission.peer is not None and self._comes_after_spooled(submission):
            raise BehindSpool("these jobs come after others that wait in the spool: hand them in there")
        self._submissions.append(submission)

    def _comes_after_spooled(self, submission: Submission) -> bool:
        """Whether jobs come after others that are in the spool, and that cannot be taken in at once."""
        is_ordered = any(own.order_key is not None for part in submission.each for own in part.constraints or ())
        if is_ordered and not self._spooled.is_empty:
            self._take_spooled_once()
            return not self._spooled.is_empty
        unknown = self._admission.unknown_parents(submission)
        if unknown and self._spooled.specs(unknown):
            self._take_spooled_once()
            return bool(self._spooled.specs(self._admission.unknown_parents(submission)))
        return False

    def take_children(self, submissions: list[Submission]) -> None:
        """Jobs that a job has enqueued, which succeeded: the core has just been told of that."""
        self._children += submissions

    @property
    def has_more_spooled(self) -> bool:
        """Whether the spool has more than `take_spooled` has taken in, and it should be called again soon."""
        return self._spooled.has_more

    def take_spooled(self, now: float) -> None:
        """Takes in jobs that were spooled while no broker ran, as many as one commit takes; tells what was committed
        with them."""
        files = self._spooled.read()
        if not files:
            return
        for _, submission in files:
            self.take_in(submission)
        reasons = {id(refused): reason for refused, reason in self.commit(now, self._clock.time())}
        self.tell(now)
        self._spooled.committed(files, reasons)

    def _take_spooled_once(self) -> None:
        """Takes in what lies in the spool, unless it is being taken in, portion by portion, already."""
        if not self._spooled.has_more:
            self.take_spooled(self._clock.monotonic())

    def plan(
        self, schedules: dict[str, ScheduleRow | None], submissions: list[Submission], now: float, wall: float
    ) -> list[tuple[Submission, TaskQError]]:
        """Makes durable, together, what changes in schedules and the jobs that they fire.

        Args:
            schedules: by name; None for one that is removed.

        Returns:
            The submissions that were refused, and why.

        Raises:
            StoreFull: nothing was changed.
        """
        if self._store.is_full:
            raise StoreFull("the disk that holds the journal is full: free some space there")
        self._schedules = schedules
        self._submissions += submissions
        refusals = self.commit(now, wall)
        self.tell(now)
        if self._schedules:
            self._schedules = {}
            raise StoreFull("the disk that holds the journal is full: free some space there")
        return refusals

    def collect(self, now: float) -> None:
        """Takes over what the core has decided."""
        effects = self._jobs.take_effects()
        self._effects.add(effects)
        if effects.ended and self._store.has_waiting and not self._would_release:
            self._would_release = self._store.would_release([row.id for row, _, _ in effects.ended])
        if self._effects and self._effects_since is None:
            self._effects_since = now

    def come_due(self, wall: float) -> None:
        """Hands the core the scheduled jobs whose time has come."""
        if self.next_due is None or self.next_due > wall:
            return
        try:
            rows = self._store.lease_due(wall, _DUE_JOBS)
            self._store.commit()
        except StoreFull as error:
            self._make_room(error, [])
            try:
                rows = self._store.lease_due(wall, _DUE_JOBS)
                self._store.commit()
            except StoreFull:
                self._store.rollback()
                self.next_due = wall + _FULL_AGAIN_S
                return
        self._jobs.came_due(rows)
        self.next_due = self._store.next_due()

    def expire(self, wall: float) -> None:
        """Ends the jobs that were not started in time."""
        if self.next_expiry is None or self.next_expiry > wall:
            return
        try:
            jobs = self._store.expired(wall, _EXPIRED_JOBS)
        except StoreFull:
            self._store.rollback()
            self.next_expiry = wall + _FULL_AGAIN_S
            return
        for job in jobs:
            has_started = job.row.attempts > 0 or not self._consumers.withdraw(job.row.id)
            if job.kept < FIRST_FINAL and not has_started:
                self._jobs.expired(job.row, job.kept)
        self.next_expiry = self._store.next_expiry()

    def prune(self, now: float, keep_s: float, keep: int) -> None:
        """Removes ended jobs that need not be kept any more, with the next commit.

        Args:
            keep_s: for how long an ended job is kept.
            keep: how many ended jobs are kept.
        """
        self._store.keep_room()
        self._keep = keep_s, keep
        if self._effects_since is None:
            self._effects_since = now

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for a commit."""
        return not self._submissions and not self._children and not self._effects

    @property
    def is_handing_over(self) -> bool:
        """Whether more jobs come after some that ended than were looked at: the next commits let them go."""
        return bool(self._left)

    @property
    def commit_by(self) -> float | None:
        """When the next commit is due for reasons of time (monotonic)."""
        return None if self._effects_since is None else self._effects_since + _COMMIT_WITHIN_S

    # -- commit

    def must_commit(self, now: float) -> bool:
        """Whether a commit is due: for jobs that came in, for outcomes that somebody waits for, or for time."""
        if self._submissions:
            return True
        if self._effects_since is None:
            return False
        if now < self._effects_since:
            return False  # the disk was full a moment ago
        if self._would_release or self._children:
            return True
        ended = self._effects.ended
        if now - self._effects_since >= _COMMIT_WITHIN_S or len(ended) >= _COMMIT_COUNT:
            return True
        return self._watchers.wait_for(self._effects)

    def commit(self, now: float, wall: float) -> list[tuple[Submission, TaskQError]]:
        """Makes everything durable that was taken in and decided; answers those who handed in jobs.

        Returns:
            The submissions that were refused, and why.
        """
        self.collect(now)  # with the children that were taken in, since all of a job's end is one
        submissions, self._submissions = self._submissions, []
        if self._store.is_full:
            self._refuse(submissions, StoreFull("the disk that holds the journal is full: free some space there"))
            submissions = []
        try:
            accepted, handed = self._write([*submissions, *self._children], wall)
            self._put_schedules()
            if self._keep is not None:
                self._prune(*self._keep, wall)
            self._store.keep_rates(self._jobs.changed_rates(now, wall))
            self.counting.store(now)
            self._store.commit()
            self.counting.stored(now)
            self._schedules = {}
        except StoreFull as error:
            self._make_room(error, submissions)
            try:
                accepted, handed = self._write(self._children, wall)
                self._store.commit()
            except StoreFull:
                # nothing was set aside: what ended is kept here, and tried again until there is room
                self._store.rollback()
                self._effects_since = now + _FULL_AGAIN_S
                return self._take_refusals()
        self._committed.append(self._effects)
        self._effects, self._effects_since = Effects(), None if self._keep is None else now
        self._children, self._left, self._would_release = [], {}, False
        for submission, taken in accepted:
            self._accept(submission, taken, now)
        self.follow(handed)
        return self._take_refusals()

    def _prune(self, keep_s: float, keep: int, wall: float) -> None:
        removed = self._store.prune(wall - keep_s, keep, _PRUNE_JOBS) + self._store.tidy(wall, _TIDIED_KEYS)
        if not removed:
            self._keep = None  # else there may be more

    def _take_refusals(self) -> list[tuple[Submission, TaskQError]]:
        refusals, self._refusals = self._refusals, []
        return refusals

    def _make_room(self, error: StoreFull, submissions: list[Submission]) -> None:
        """The disk is full. What ends must still be recorded: takes in nothing new, and frees what was set aside."""
        self._store.rollback()
        self.counting.not_stored()
        self._store.make_room()
        self._keep = None
        answered = {id(submission) for submission, _ in self._refusals}  # a second answer would be that of the next one
        submissions = [submission for submission in submissions if id(submission) not in answered]
        self._events.log.error("store.full", error=str(error), refused=sum(len(s.ids) for s in submissions))
        self._refuse(submissions, error)

    def _submit(self, submissions: list[Submission], wall: float) -> list[tuple[Submission, Admitted]]:
        accepted = []
        self._admission.begin()
        for submission in submissions:
            try:
                accepted.append((submission, self._admission.take(submission, wall)))
            except EnqueueError as error:
                if isinstance(error, StoreFull):
                    raise
                self._refuse([submission], error)
        return accepted

    def _put_schedules(self) -> None:
        for name, row in self._schedules.items():
            if row is None:
                self._store.remove_schedule(name)
            else:
                self._store.put_schedule(row)

    def _write(self, submissions: list[Submission], wall: float) -> tuple[list[tuple[Submission, Admitted]], Released]:
        """Records what was decided, takes in what came, and lets go what waited. In this order: a job that has ended
        keeps none out that comes in now, and none takes its place."""
        self._settle(wall)
        accepted = self._submit(submissions, wall)
        return accepted, self._hand_over(wall, [taken for _, taken in accepted])

    def _settle(self, wall: float) -> None:
        effects = self._effects
        if effects.checkpoints:
            self._store.keep_checkpoints(effects.checkpoints)
        for row, first, items in effects.items:
            self._store.add_items(row.seq, first, items)
        if effects.ended or effects.rescheduled:
            self._store.settle(effects.ended, effects.rescheduled, wall)
            self._store.totals.retried += effects.retried
            self._store.totals.crashed += effects.crashed

    def _hand_over(self, wall: float, taken: list[Admitted]) -> Released:
        """What follows from all ends for jobs that wait for others."""
        more: list[Ended] = [ended for own in taken for ended in own.ended]
        if more:
            self._store.settle(more, [], wall)
        if not self._store.has_waiting:
            return Released()
        ends = {**self._still_left(), **{row.id: kept for row, kept, _ in (*self._effects.ended, *more)}}
        for own in taken:
            ends.update(own.before)
        return release_dependents(self._store, ends, wall)

    def _still_left(self) -> dict[bytes, StoredState]:
        """What is left to hand over, but for jobs that were retried meanwhile: these have not ended any more."""
        states = self._store.states(list(self._left)) if self._left else {}
        left = {job_id: states.get(job_id, kept) for job_id, kept in self._left.items()}
        return {job_id: kept for job_id, kept in left.items() if kept >= FIRST_FINAL}

    def follow(self, handed: Released) -> None:
        """What follows from the ends of jobs is committed."""
        self._left.update(handed.left)
        if not handed:
            return
        if self._left:
            self._would_release = True
            self._effects_since = self._effects_since or self._clock.monotonic()
        self._jobs.came_due(handed.queued)
        self.next_due = _first((self.next_due, handed.next_due))
        for row, _, _ in handed.ended:
            self._jobs.forget(row, StoredState.WAITING)
        self._committed.append(Effects(ended=handed.ended, notes=handed.notes))

    def _refuse(self, submissions: Iterable[Submission], error: TaskQError) -> None:
        for submission in submissions:
            self._refusals.append((submission, error))
            if submission.peer is not None:
                self._clients.send(submission.peer, frames.error_frame(submission.request, error))
            elif any(submission is children for children in self._children):
                self._events.log.error("job.children_refused", task=submission.spec.task, error=str(error))

    def _accept(self, submission: Submission, taken: Admitted, now: float) -> None:
        if submission.parts:
            rows = {row.id: row for row in taken.rows}
            for part in submission.parts:
                own = [rows[job_id] for job_id in part.ids if job_id in rows]
                self._accept_part(part, Admitted(own, {}, [], [], {}))
        else:
            self._accept_part(submission, taken)
        self._events.enqueued(taken.rows, now)
        self.counting.enqueued(taken.rows, self._clock.time())
        if submission.peer is None:
            return
        self._clients.send(submission.peer, accepted_frame(submission.request, len(taken.rows), taken.earlier))
        if submission.watch:
            for row in taken.rows:
                self._watchers.add(submission.peer, row.id)
            if len(taken.rows) < len(submission.ids):  # some were sent again: they may have ended
                fresh = {row.id for row in taken.rows}
                self.watch(submission.peer, [job_id for job_id in submission.ids if job_id not in fresh])

    def _accept_part(self, submission: Submission, taken: Admitted) -> None:
        if submission.constraints is None:
            self._jobs.submitted(taken.rows)
        else:
            self._take_over(submission.ids, submission.constraints, taken)

    def _take_over(self, ids: list[bytes], constraints: list[Constraints], taken: Admitted) -> None:
        """Jobs with constraints are committed: some wait for their time, some have taken the place of others."""
        for job in taken.replaced:
            self._jobs.forget(job.row, job.kept)
        effects = Effects(ended=taken.ended, notes=[Event("job.cancelled", {"row": row}) for row, _, _ in taken.ended])
        self._committed.append(effects)
        due = {job_id: own.due_at for job_id, own in zip(ids, constraints, strict=True) if own.due_at is not None}
        waiting = {job_id for job_id, own in zip(ids, constraints, strict=True) if own.after}
        self.next_due = _first((self.next_due, *(at for job_id, at in due.items() if job_id not in waiting)))
        self.next_expiry = _first((self.next_expiry, *(own.expires_at for own in constraints)))
        queued = [row for row in taken.rows if row.id not in due and row.id not in waiting]
        for _, rows in groupby(queued, lambda row: partition_of(row.spec, row.constraints)):
            self._jobs.submitted(list(rows))

    # -- tell

    def tell_deferred(self) -> None:
        """Goes on telling clients that have read what they were sent."""
        self._watchers.tell_deferred()

    def tell(self, now: float) -> None:
        """Tells clients and the log what is durable now."""
        committed, self._committed = self._committed, []
        for effects in committed:
            self._tell_one(effects, now)

    def _tell_one(self, effects: Effects, now: float) -> None:
        self._watchers.tell(effects)
        wall = self._clock.time()
        self.counting.happened(effects, wall)
        for change in effects.rescheduled:
            self.next_due = _first((self.next_due, change.due_at))
            change.row.ready_at = wall if change.due_at is None else change.due_at
        self._events.notes(effects.notes)
        self._events.successes(effects.done, now)

    def watch(self, peer: Peer, job_ids: Iterable[bytes]) -> None:
        """Has a client told of the ends of jobs: now, of those that have ended. Looks into the spool once."""
        unknown = [job_id for job_id in job_ids if not self._watchers.watch(peer, job_id)]
        spooled = self._spooled.specs(unknown)
        if spooled:
            self._take_spooled_once()
            unknown = [job_id for job_id in unknown if not self._watchers.watch(peer, job_id)]
        for job_id in unknown:
            if job_id in spooled:
                self._watchers.add(peer, job_id)
            else:
                self._watchers.tell_unknown(peer, job_id)

    def read_items(self, peer: Peer, request: int, job_id: bytes, start: int) -> None:
        """Answers with items of a job from a position on, or with its end; if there is neither, when there is.

        Raises:
            JobNotFound: nothing is known of the job.
            QueueFull: too many wait already.
            ProtocolError: the client does not read what it is sent.
        """
        self._watchers.refuse_clogged(peer)
        stored = self.find(job_id)
        if stored is None:
            raise JobNotFound.of(job_id)
        self._watchers.read_items(peer, request, stored, start)

    def gone(self, ids: Iterable[bytes]) -> None:
        """Jobs were removed: tells those who wait for their end that there is none, and looks again what is due."""
        self._watchers.tell_removed(ids)
        self.next_due = self._store.next_due()

    def find(self, job_id: bytes) -> StoredJob | None:
        """Reads a job; one that is unknown may still wait in the spool, and is taken in now.

        Raises:
            StillSpooled: there are many before it.
        """
        stored = self._store.read(job_id)
        if stored is None and self._spooled.specs([job_id]):
            self._take_spooled_once()
            stored = self._store.read(job_id)
            if stored is None and self._spooled.has_more:
                raise StillSpooled(job_id)
        return stored

    def spec_in_spool(self, job_id: bytes) -> Spec | None:
        """The spec of a job that waits in the spool; None if it does not."""
        return self._spooled.specs([job_id]).get(job_id)

    def forget(self, peer: Peer) -> None:
        """A client is gone."""
        self._watchers.forget(peer)


def _first(times: Iterable[float | None]) -> float | None:
    return min((at for at in times if at is not None), default=None)
