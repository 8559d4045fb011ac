"""The committer: the only place that commits. What has come in and what was decided becomes durable once in a turn.

    commands and submissions, in order    -.
    effects of the fleet, jobs' children  -+-> one transaction, one sync -> the fleet, answers, watchers, log
    jobs that are due or late             -'

Nothing is reported before its commit. This is also the only place that handles a full disk: what adds jobs is refused
then, and what ends them is kept and tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskq.engines.contract import Consumers, Events, Jobs
from taskq.engines.embedded.admission import Admission, Admitted
from taskq.engines.embedded.counting import Counting, Record
from taskq.engines.embedded.dependencies import Released, release_dependents
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.spooled import SpooledFile, SpooledJobs, TakeSpooled
from taskq.engines.embedded.staged import FULL_AGAIN_S, HELD, Staged
from taskq.engines.embedded.transaction import UNFINISHED, Command, Transaction, first_of
from taskq.engines.embedded.watchers import Watchers
from taskq.engines.payloads import Payloads
from taskq.engines.server import Peer
from taskq.model import limits
from taskq.model.attempt import pack_failure
from taskq.model.effects import NO_EFFECTS, Effects, Event
from taskq.model.errors import BehindSpool, JobNotFound, JournalError, StoreFull, TaskQError
from taskq.model.job import JobError
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredJob, StoredState
from taskq.protocol import frames
from taskq.protocol.submissions import Submission, accepted_frame
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.turns import RecentTimes

#: Outcomes that nobody waits for may go with a later commit, after at most this time. It halves the commits of a
#: producer that enqueues one job at a time while they run.
_COMMIT_WITHIN_S = 0.020
#: The reason for which jobs are refused while the disk is full.
NO_ROOM = "the disk that holds the journal is full: free some space there"

_Staged = Submission | Command


class StillSpooled(Exception):
    """A job that was asked for waits in the spool: ask again when the spool was taken in."""

    def __init__(self, job_id: bytes) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def commit_recovery(store: Store) -> None:
    """Commits what recovery has done, at the start, before there is a committer."""
    store.commit()


class Committer:
    """Commits, then reports. Used by the broker's loop alone."""

    #: How jobs are taken in; a test may have another.
    admission: type[Admission] = Admission

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
        self._jobs, self._consumers, self._events = jobs, consumers, events
        self._clients = clients
        self.payloads = Payloads(directory, store)
        self._spooled = SpooledJobs(directory.spool, events, self.payloads)
        self._staged = Staged()
        self._room_us = limits.TURN_US  # what the turn has room for beside what it commits
        self._effects = NO_EFFECTS  # decided by the fleet, not committed yet
        self._effects_since: float | None = None
        self._left: dict[bytes, StoredState] = {}  # ends that are recorded, but not yet seen by all jobs after them
        self._would_release = False  # whether a job can go on as soon as the effects are committed
        #: How long and how many ended jobs the next commit keeps; None: it removes none.
        self._keep: tuple[float, int] | None = None
        self._committed: list[Effects] = []  # committed, and clients were not informed yet
        self._watchers = Watchers(store, clients)
        self.counting = Counting(store, clock.time())
        self._record = Record(self.counting, events, clock)
        #: How long commits take.
        self.commits = RecentTimes()
        self.next_due = store.next_due()  # when the first scheduled job is due, in seconds since 1970
        self.next_expiry = store.next_expiry()  # when the first job that has not started expires
        self._due_is_staged = self._expiry_is_staged = False

    # -- what comes in

    def stage(self, command: Command) -> None:
        """Notes a command that is applied after those staged before, with the next commit that has room for it, and
        answered then."""
        self._staged.add(command)

    @property
    def has_room(self) -> bool:
        """Whether the next commit has room for more than is staged."""
        return self._staged.has_room

    @property
    def is_behind(self) -> bool:
        """Whether the last commit has left something for the next one, as it was more than a turn of the loop does."""
        return self._staged.due_at is not None or self._jobs.has_effects

    def take_in(self, submission: Submission) -> None:
        """Stages jobs that a client hands in.

        Raises:
            BehindSpool: they must come after others, which wait in the spool.
        """
        if submission.peer is not None and self._comes_after_spooled(submission):
            raise BehindSpool("these jobs come after others that wait in the spool: hand them in there")
        self._staged.add(submission)

    def _comes_after_spooled(self, submission: Submission) -> bool:
        """Whether jobs come after others that are in the spool, and that cannot be taken in with them."""
        if submission.constraints is None and not submission.parts:
            return False
        is_ordered = any(own.order_key is not None for part in submission.each for own in part.constraints or ())
        if is_ordered and self._spooled.holds_more:
            self._stage_spooled_once()
            return self._spooled.holds_more
        unknown = self.admission(self._store, self._jobs, self._consumers).unknown_parents(submission)
        if unknown and self._spooled.unread(unknown):
            self._stage_spooled_once()
            return bool(self._spooled.unread(unknown))
        return False

    @property
    def has_more_spooled(self) -> bool:
        """Whether the spool has more than `stage_spooled` has taken up, and should be looked at again soon."""
        return self._spooled.has_more

    @property
    def has_left_spooled(self) -> bool:
        """Whether something in the spool could not be taken up the last time: it is to be tried again soon."""
        return self._spooled.has_left_some

    def stage_spooled(self) -> None:
        """Takes up the next jobs that were spooled while no broker ran."""
        files: list[SpooledFile] = []
        for file in self._spooled.read():
            files.append(file)
            if sum(file.work_us for file in files) >= limits.TURN_US / 2:
                self.stage(TakeSpooled(self._spooled, files))
                files = []
        if files:
            self.stage(TakeSpooled(self._spooled, files))

    def _stage_spooled_once(self) -> None:
        """Takes up what is in the spool, unless it is already being taken in, portion by portion."""
        if not self._spooled.has_more:
            self.stage_spooled()

    def collect(self, now: float) -> None:
        """Takes over what the core has decided, as much as one commit takes. All of it while the disk is full, as
        nothing is answered before it is settled."""
        jobs = self._jobs
        if not jobs.has_effects:
            return
        is_full = self._store.is_full or now < (self._effects_since or now)
        while jobs.has_effects and (
            is_full or self._effects is NO_EFFECTS or self._effects.work_us + jobs.next_effects_us <= limits.TURN_US
        ):
            effects = jobs.take_some_effects()
            if self._effects is NO_EFFECTS:
                self._effects = effects
            else:
                self._effects.add(effects)
            if effects.ended and self._store.has_waiting and not self._would_release:
                self._would_release = self._store.would_release([row.id for row, _, _ in effects.ended])
            if self._effects_since is None:
                self._effects_since = now

    def come_due(self, wall: float) -> None:
        """Stages what the clock brings: scheduled jobs whose time has come, and jobs that were not started in time."""
        if self.next_due is not None and self.next_due <= wall and not self._due_is_staged:
            self._due_is_staged = True
            self.stage(_ComeDue(self, wall))
        if self.next_expiry is not None and self.next_expiry <= wall and not self._expiry_is_staged:
            self._expiry_is_staged = True
            self.stage(_Expire(self, wall))

    def prune(self, now: float, keep_s: float, keep: int) -> None:
        """Removes ended jobs that are no longer kept, with the next commit.

        Args:
            keep_s: how many seconds an ended job is kept.
            keep: how many ended jobs are kept.
        """
        self._store.keep_room()
        self._keep = keep_s, keep
        if self._effects_since is None:
            self._effects_since = now

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits for a commit."""
        return not self.is_behind and self._effects is NO_EFFECTS

    @property
    def is_handing_over(self) -> bool:
        """Whether jobs after some that ended were not looked at yet: the next commits release them."""
        return bool(self._left) or self._staged.has_unfinished

    @property
    def commit_by(self) -> float | None:
        """When the next commit is due (monotonic): at once, or by time."""
        if (due_at := self._staged.due_at) is not None:
            return due_at
        if self._effects_since is None or self._would_release or self._jobs.has_effects:
            return self._effects_since
        return self._effects_since + _COMMIT_WITHIN_S

    # -- commit

    def must_commit(self, now: float) -> bool:
        """Whether a commit is due: for what came in, for outcomes that somebody waits for, or by time."""
        if (due_at := self._staged.due_at) is not None and due_at <= now:
            return True
        if self._effects_since is None:
            return False
        if now < self._effects_since:
            return False  # the disk was full a moment ago
        if self._would_release or self._effects.children or self._jobs.has_effects:
            return True
        if now - self._effects_since >= _COMMIT_WITHIN_S or self._effects.work_us >= limits.TURN_US:
            return True
        return self._watchers.wait_for(self._effects)

    def commit(self, now: float, wall: float) -> None:
        """Makes durable what was decided and staged, as much as a turn of the loop does, and answers it. If clients
        only look, it begins no transaction."""
        self.collect(now)
        staged = self._take_staged(now)
        outcomes: Sequence[object] = [None] * len(staged)
        done: Transaction | None = None
        if self._writes(staged):
            outcomes, done = self._commit(staged, now, wall)
        else:
            self._effects_since = None
        later: list[tuple[_Staged, object]] = []
        for command, outcome in zip(staged, outcomes, strict=True):
            if self._staged.keeps(command, outcome, now):
                continue
            if later or not isinstance(command, Submission):
                later.append((command, outcome))
            else:  # producers wait for nothing but the disk
                self._answer(command, outcome)
        if done is not None:
            self._conclude(done, now)
        for command, outcome in later:
            self._answer(command, outcome)

    def _take_staged(self, now: float) -> list[Submission | Command]:
        """Takes what this commit applies; nothing, while more was decided than it settles, as commands must see the
        ends of all jobs that have ended."""
        has_effects = self._effects is not NO_EFFECTS
        self._room_us = limits.TURN_US - self._effects.work_us if has_effects else limits.TURN_US
        if has_effects and self._jobs.has_effects:
            return []
        taken, self._room_us = self._staged.take(self._room_us, now)
        return taken

    def _commit(self, staged: Sequence[_Staged], now: float, wall: float) -> tuple[list[object], Transaction | None]:
        """Makes everything durable, as far as the disk has room. Returns the outcomes, and what was done."""
        full = StoreFull(NO_ROOM) if self._store.is_full else None
        outcomes: list[object] = [full] * len(staged)
        done = self._transact(staged, outcomes, now, wall, full)
        if isinstance(done, StoreFull):
            self._make_room(done, 0 if full is not None else _jobs_without(staged, outcomes))
            outcomes = [outcome if isinstance(outcome, TaskQError) else done for outcome in outcomes]
            done = self._transact(staged, outcomes, now, wall, done)
        if isinstance(done, StoreFull):
            # nothing was set aside: what ended is kept here, and tried again until there is room
            self._effects_since = now + FULL_AGAIN_S
            return [outcome if isinstance(outcome, TaskQError) else done for outcome in outcomes], None
        return outcomes, done

    def _transact(
        self,
        staged: Sequence[Submission | Command],
        outcomes: list[object],
        now: float,
        wall: float,
        full: StoreFull | None,
    ) -> Transaction | StoreFull:
        """Runs one transaction. If the disk is already full, commands that add jobs are left out: their outcomes stay.

        Args:
            outcomes: of what was staged; filled in here.

        Returns:
            The transaction, or why nothing was changed.
        """
        tx: Transaction | None = None
        try:
            tx = Transaction(self._store, self._jobs, self._consumers, self._effects, now, wall, self.admission)
            tx.room_us = self._room_us
            busy: list[object] = []  # who has asked for something that is unfinished
            for position, command in enumerate(staged):
                if command.peer in busy:
                    outcomes[position] = HELD
                elif full is None or not (isinstance(command, Submission) or command.adds):
                    outcomes[position] = self._apply(tx, command)
                    if outcomes[position] is UNFINISHED:
                        busy.append(command.peer)
            self._take_in_children(tx)
            self._release(tx)
            if self._keep is not None and full is None:
                self._prune(tx, *self._keep)
            if rates := self._jobs.changed_rates(now, wall):
                self._store.keep_rates(rates)
                tx.then(self._jobs.rates_stored)
            if full is None:
                self.counting.store(now)
            began_at = self._clock.monotonic()
            self._store.commit()
            self.commits.note(self._clock.monotonic() - began_at, now)
        except StoreFull as error:
            self._store.rollback()
            self.counting.not_stored()
            if tx is not None:
                self._effects = tx.decided
                tx.rolled_back()
            return error
        self._effects = tx.decided
        return tx

    def _writes(self, staged: Sequence[Submission | Command]) -> bool:
        """Whether there is more to do than to answer those who look."""
        if self._effects is not NO_EFFECTS or self._left or self._keep is not None:
            return True
        return any(isinstance(command, Submission) or command.changes for command in staged)

    def _conclude(self, tx: Transaction, now: float) -> None:
        """Informs the fleet of a transaction that is durable, and notes what has to be reported."""
        self.counting.stored(now)
        for rows in tx.taken:
            self.counting.enqueued(rows, tx.wall)
            self._events.enqueued(rows, now)
        for row in tx.retried:
            self.counting.add(row.spec, "retried", 1, tx.wall)
        if self.payloads.has_some:
            self.payloads.remove((*self._effects.ended, *tx.ended), tx.removed, tx.pruned)
        if self._effects is not NO_EFFECTS:
            self._committed.append(self._effects)
            self._effects = NO_EFFECTS
        if tx.ended or tx.notes:
            self._committed.append(Effects(ended=tx.ended, notes=tx.notes))
        self._effects_since = None if self._keep is None and not self._jobs.has_effects else now
        self._would_release = False
        if tx.next_due is not None:
            self.next_due = first_of(self.next_due, tx.next_due)
        if tx.next_expiry is not None:
            self.next_expiry = first_of(self.next_expiry, tx.next_expiry)
        tx.committed()

    def _apply(self, tx: Transaction, command: Submission | Command) -> object:
        """Applies one command. Returns its outcome, or the error for which it is refused."""
        try:
            return tx.submit(command) if isinstance(command, Submission) else command.apply(tx)
        except (StoreFull, JournalError):
            raise
        except (TaskQError, StillSpooled) as error:
            return error

    def _take_in_children(self, tx: Transaction) -> None:
        for _, children in tx.decided.children:
            error = tx.try_submit(children)
            if error is not None:
                task = children.spec.task
                tx.then(self._events.log.error, "job.children_refused", task=task, error=str(error))

    def _release(self, tx: Transaction) -> None:
        """Releases or cancels the jobs that waited for those that end in this transaction."""
        if not self._store.has_waiting and not self._left:
            return
        ends = {**self._still_left(), **tx.ends}
        handed = release_dependents(self._store, ends, tx.wall, tx.portion(limits.LINK_US))
        if handed or self._left:
            tx.then(self._follow, handed)

    def _still_left(self) -> dict[bytes, StoredState]:
        """Returns the ends that jobs after them have not seen yet, without jobs that were retried in the meantime."""
        states = self._store.states(list(self._left)) if self._left else {}
        left = {job_id: states.get(job_id, kept) for job_id, kept in self._left.items()}
        return {job_id: kept for job_id, kept in left.items() if kept >= FIRST_FINAL}

    def _follow(self, handed: Released) -> None:
        """Informs the fleet of released and cancelled jobs: that is committed."""
        self._left = handed.left
        self._would_release = bool(self._left)
        if self._left:
            self._effects_since = self._effects_since or self._clock.monotonic()
        self._jobs.came_due(handed.queued)
        self.next_due = first_of(self.next_due, handed.next_due)
        for row, _, _ in handed.ended:
            self._jobs.forget(row, StoredState.WAITING)
        self._committed.append(Effects(ended=handed.ended, notes=handed.notes))

    def _prune(self, tx: Transaction, keep_s: float, keep: int) -> None:
        most = tx.portion(limits.PRUNED_US)
        pruned = tx.pruned if self.payloads.has_some else None
        removed = self._store.prune(tx.wall - keep_s, keep, most, pruned) + self._store.tidy(tx.wall, most)
        if not removed:
            self._keep = None  # else there may be more

    def _make_room(self, error: StoreFull, refused: int) -> None:
        """Frees the space that was set aside for a full disk: the ends of jobs must still be recorded."""
        self._store.make_room()
        self._keep = None
        self._events.log.error("store.full", error=str(error), refused=refused)

    def _answer(self, submission: Submission | Command, outcome: object) -> None:
        """Answers the client that handed in jobs, or a command."""
        if not isinstance(submission, Submission):
            return submission.answer(outcome)
        peer = submission.peer
        if peer is None:
            return None
        if not isinstance(outcome, Admitted):
            assert isinstance(outcome, TaskQError)
            return self._clients.send(peer, frames.error_frame(submission.request, outcome))
        self._clients.send(peer, accepted_frame(submission.request, len(outcome.rows), outcome.earlier))
        if submission.watch:
            for row in outcome.rows:
                self._watchers.add(peer, row.id)
            if len(outcome.rows) < len(submission.ids):  # some were sent again: they may have ended
                fresh = {row.id for row in outcome.rows}
                self.watch(peer, [job_id for job_id in submission.ids if job_id not in fresh])
        return None

    def finish(self) -> None:
        """Stores, at the end, what was counted since the last time, unless the disk is full."""
        try:
            self.counting.store_all()
            self._store.commit()
        except StoreFull:
            self._store.rollback()

    # -- reports

    def tell_deferred(self) -> None:
        """Goes on informing clients that have read what they were sent."""
        self._watchers.tell_deferred()

    def tell(self, now: float) -> None:
        """Informs clients and the log of what is durable now."""
        self.tell_clients()
        self.report(now)

    def tell_clients(self) -> None:
        """Informs clients of what is durable now; `report` follows."""
        committed, self._committed = self._committed, []
        for effects in committed:
            self._watchers.tell(effects)
            self.next_due = first_of(self.next_due, *(change.due_at for change in effects.rescheduled))
        self._record.note(committed)

    def report(self, now: float) -> None:
        """Counts, and writes to the log, what clients know by now."""
        self._record.write(now)

    def watch(self, peer: Peer, job_ids: Iterable[bytes]) -> None:
        """Sends a client the ends of jobs: now for those that have ended, else when they end. Looks into the spool
        once."""
        unknown = [job_id for job_id in job_ids if not self._watchers.watch(peer, job_id)]
        spooled = self._spooled.specs(unknown)
        if spooled:
            self._stage_spooled_once()
        for job_id in unknown:
            if job_id in spooled:
                self._watchers.add(peer, job_id)
            else:
                self._watchers.tell_unknown(peer, job_id)

    def read_items(self, peer: Peer, request: int, stored: StoredJob | None, job_id: bytes, start: int) -> None:
        """Answers with items of a job from a position on, or with its end; if there is neither yet, as soon as there
        is.

        Raises:
            JobNotFound: nothing is known of the job.
            QueueFull: too many wait already.
            ProtocolError: the client does not read what it is sent.
        """
        self._watchers.refuse_clogged(peer)
        if stored is None:
            raise JobNotFound.of(job_id)
        self._watchers.read_items(peer, request, stored, start)

    def gone(self, ids: Iterable[bytes]) -> None:
        """Tells clients that wait for jobs which were removed, and looks again which job is due next."""
        self._watchers.tell_removed(ids)
        self.next_due = self._store.next_due()

    def find(self, job_id: bytes, *, is_late: bool = False) -> StoredJob | None:
        """Reads a job.

        Args:
            is_late: whether everything in the spool that can be taken in now was taken in.

        Raises:
            StillSpooled: it is not known, and waits in the spool, which is taken in now.
        """
        stored = self._store.read(job_id)
        if stored is None and not is_late and self._spooled.specs([job_id]):
            self._stage_spooled_once()
            raise StillSpooled(job_id)
        return stored

    def is_stored(self, job_id: bytes) -> bool:
        """Whether a job is in the journal."""
        return self._store.read(job_id) is not None

    def spec_in_spool(self, job_id: bytes) -> Spec | None:
        """Returns the spec of a job that waits in the spool; None if it does not."""
        return self._spooled.specs([job_id]).get(job_id)

    def forget(self, peer: Peer) -> None:
        """Forgets a client that is gone."""
        self._watchers.forget(peer)


def _jobs_without(staged: Sequence[Submission | Command], outcomes: Sequence[object]) -> int:
    """Counts the jobs handed in that were not refused for another reason."""
    pairs = zip(staged, outcomes, strict=True)
    return sum(len(c.ids) for c, outcome in pairs if isinstance(c, Submission) and not isinstance(outcome, TaskQError))


class _ComeDue(Command):
    """Queues scheduled jobs whose time has come."""

    def __init__(self, committer: Committer, wall: float) -> None:
        self._committer = committer
        self._wall = wall

    def apply(self, tx: Transaction) -> None:
        rows = tx.store.lease_due(tx.wall, tx.portion(limits.DUE_US))
        tx.room_us -= limits.DUE_US * len(rows)
        tx.then(tx.jobs.came_due, rows)
        tx.then(self._look_ahead, tx.store)

    def _look_ahead(self, store: Store) -> None:
        self._committer.next_due = store.next_due()

    def answer(self, outcome: object) -> None:
        self._committer._due_is_staged = False
        if isinstance(outcome, StoreFull):
            self._committer.next_due = self._wall + FULL_AGAIN_S


class _Expire(Command):
    """Ends jobs that were not started in time."""

    def __init__(self, committer: Committer, wall: float) -> None:
        self._committer = committer
        self._wall = wall

    def apply(self, tx: Transaction) -> None:
        jobs = tx.store.expired(tx.wall, tx.portion(limits.EXPIRED_US))
        tx.room_us -= limits.EXPIRED_US * len(jobs)
        for job in jobs:
            row, kept, *_ = job
            if row.attempts or kept >= FIRST_FINAL or not tx.withdraw(row.id) or row.id in tx.ends:
                continue
            outcome = pack_failure(None, None, JobError("Expired", "it was not started in time (expires=)"))
            tx.end(job, StoredState.EXPIRED, outcome, Event("job.expired", {"row": row}))
        tx.then(self._look_ahead, tx.store)

    def _look_ahead(self, store: Store) -> None:
        self._committer.next_expiry = store.next_expiry()

    def answer(self, outcome: object) -> None:
        self._committer._expiry_is_staged = False
        if isinstance(outcome, StoreFull):
            self._committer.next_expiry = self._wall + FULL_AGAIN_S
