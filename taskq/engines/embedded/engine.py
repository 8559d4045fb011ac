"""The embedded engine: a journal on this machine's disk, and clients at a Unix socket, in the broker's own loop.

    clients -- Server -- Requests, Admission -.            .-- Watchers -- clients
    fleet -------------- effects -------------+- Committer +-- log
    time --------------- Scheduler, spool ----'            '-- fleet

It is the only user of its journal, and knows at once what is durable. What it does in a turn of the loop is `step`.
"""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from taskq.engines.contract import Events, Fleet, Jobs
from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer, commit_recovery
from taskq.engines.embedded.counting import EmbeddedFigures
from taskq.engines.embedded.dependencies import release_dependents
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.requests import Requests
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.transaction import first_of, portion
from taskq.engines.server import Peer, Server
from taskq.model.effects import Effects
from taskq.model.errors import EnqueueError, TaskQError
from taskq.model.limits import LINK_US
from taskq.model.partition import Load
from taskq.model.settings import Settings
from taskq.model.stored import StoredState
from taskq.protocol import frames
from taskq.protocol.frames import Message
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Submission, submission_of
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.folders import FolderWatch
from taskq.system.timers import Timers

#: How often to look for spooled jobs, where the system does not tell of them or some were left there; for ended jobs
#: to prune, while there are new ones; for files that crashes left behind; and for clients that are late, while one
#: could be.
_SPOOL_EVERY_S = 0.5
_PRUNE_EVERY_S = 1.0
_SWEEP_EVERY_S = 10.0
_REMOVE_EVERY_S = 0.1
_LATE_EVERY_S = 0.1
#: The same when nothing happens; and how often to look for the socket, which may be gone.
_SPOOL_ANYHOW_EVERY_S = 10.0
_PRUNE_ANYHOW_EVERY_S = 30.0
_REACHABLE_EVERY_S = 5.0
#: Ended jobs that are kept for a shorter time are pruned as soon as it is over, longer ones some seconds later.
_PRUNE_SOON_S = 60.0


@dataclass(frozen=True, slots=True)
class Kinds:
    """The classes of some of its parts: a test may use others."""

    committer: type[Committer] = Committer
    scheduler: type[Scheduler] = Scheduler


class EmbeddedEngine:
    """See `taskq.engines.contract.Engine`. Used by the broker's loop alone."""

    committer: Committer
    scheduler: Scheduler
    requests: Requests

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        store: Store,
        clock: Clock = SYSTEM_CLOCK,
        clients: Clients | None = None,
        kinds: Kinds = Kinds(),
    ) -> None:
        """
        Args:
            store: the journal, open.
            clients: the clients that it answers; None for those that connect to the directory's socket.
        """
        self.store = store
        self.figures = EmbeddedFigures(store, clock)
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._clients = clients
        self._kinds = kinds
        self._timers = Timers(self._next_by_clock)
        self._changed_at = 0.0  # when something was committed last (monotonic), besides what time brings
        self._watch: FolderWatch | None = None  # of the spool
        self._messages: deque[tuple[Peer, Message]] = deque()  # of clients, not taken up yet

    def recover(self, jobs: Jobs, events: Events, running: Iterable[FlightRecord]) -> None:
        effects = recover(self.store, jobs, running, self._clock.monotonic(), self._clock.time())
        commit_recovery(self.store)
        events.notes([*self.store.findings, *effects.notes])
        jobs.pause(self.store.paused())

    def start(self, fleet: Fleet, selector: selectors.BaseSelector | None = None, max_clients: int = 0) -> None:
        self._jobs, self._consumers, self._log = fleet.jobs, fleet.consumers, fleet.events.log
        store, clock, log = self.store, self._clock, fleet.events.log
        now = clock.monotonic()
        if self._clients is None:
            assert selector is not None
            self._clients = self._listen(fleet.events, selector, max_clients, now)
        clients = self._clients
        arguments = store, fleet.jobs, clients, fleet.events, self._directory, fleet.consumers, clock
        self.committer = self._kinds.committer(*arguments)
        self.committer.commits = self.figures.commits
        self.figures.started(self.committer.counting, clients)
        self.scheduler = self._kinds.scheduler(store, log, clock.time())
        admin = Admin(fleet.jobs, store, self.committer, fleet.consumers, clock)
        self._backups = admin.backups
        self.requests = Requests(self._clients, self.committer, admin, self.scheduler, fleet.control, log, clock)
        if selector is not None:
            self._watch = FolderWatch(self._directory.spool)
            if self._watch.descriptor is not None:
                selector.register(self._watch.descriptor, selectors.EVENT_READ, self._on_spool)
        self._changed_at = now
        self._timers.every(_SPOOL_EVERY_S, self._take_spooled, now, self._must_look_into_spool)
        self._timers.every(_SPOOL_ANYHOW_EVERY_S, self._take_spooled_anyhow, now)
        self._timers.every(_PRUNE_EVERY_S, self._prune, now, self._has_new_ends)
        self._timers.every(_PRUNE_ANYHOW_EVERY_S, self._prune_anyhow, now + _PRUNE_ANYHOW_EVERY_S)
        self._timers.every(_SWEEP_EVERY_S, self._sweep, now)
        self._timers.every(_REMOVE_EVERY_S, self._remove_files, now, lambda _now: self.committer.payloads.has_gone)

    def _listen(self, events: Events, selector: selectors.BaseSelector, max_clients: int, now: float) -> Server:
        rejected = lambda reason: events.rejected(reason, self._clock.monotonic())  # noqa: E731
        syncs_files = self._settings.durability == "power"
        server = Server(self._directory, selector, rejected, self.forget, self._clock, max_clients, syncs_files)
        self._timers.every(_LATE_EVERY_S, server.drop_late, now, server.may_be_late)
        self._timers.every(_REACHABLE_EVERY_S, server.stay_reachable, now)
        return server

    # -- what comes in

    def gather(self, now: float) -> None:
        assert self._clients is not None
        self.requests.take_up_again(now)
        messages = self._messages
        messages.extend(self._clients.take_messages())
        while messages and self.committer.has_room:
            peer, (envelope, body) = messages.popleft()
            if peer.closed:
                continue
            if envelope[0] not in (Op.SUBMIT, Op.SUBMIT_FLOW):
                self.requests.take_in(peer, envelope)
                continue
            try:
                submission = submission_of(peer, envelope, body)
                self.committer.payloads.check(submission)
                self.committer.take_in(submission)
            except TaskQError as error:
                number = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
                self._clients.send(peer, frames.error_frame(number, error))
        self._clients.may_read = not messages

    def forget(self, peer: Peer) -> None:
        """Forgets a client that is gone."""
        self.committer.forget(peer)

    def declare(self, app: str, schedules: Sequence[bytes]) -> None:
        self.scheduler.declared(app, schedules)

    def enqueued(self, children: list[Submission]) -> None:
        for submission in children:
            try:
                self.committer.payloads.check(submission)
            except EnqueueError as error:
                self._log.error("job.children_refused", task=submission.spec.task, error=str(error))
            else:
                self._jobs.take_children([submission])

    # -- what is done

    def step(self, now: float, *, at_once: bool = False) -> None:
        wall = self._clock.time()
        committer = self.committer
        self._timers.run(now)
        self.look_at_clock(now, wall)
        committer.collect(now)
        is_used_up = not at_once and self.store.fold_log()  # by that: commits wait for the next turn
        must_commit = at_once or (not is_used_up and committer.must_commit(now))
        if must_commit:
            if not committer.is_settled:
                self._changed_at = now
            committer.commit(now, wall)
            committer.tell_clients()
        if self._backups.has_more and not is_used_up and not at_once:
            self._backups.step(now, is_busy=must_commit)
        committer.tell_deferred()

    def report(self, now: float) -> None:
        self.figures.sample(now)
        self.committer.report(now)
        if (
            self.committer.payloads.has_many_gone and not self._backups.is_open
        ):  # only now: to remove 100 MB takes longer than to answer
            self.committer.payloads.remove_gone()

    def look_at_clock(self, now: float, wall: float) -> None:
        """Stages what is due: jobs, and the fires of schedules."""
        self.committer.come_due(wall)
        if not self._consumers.is_stopping and (fires := self.scheduler.due(now, wall)) is not None:
            self.committer.stage(fires)

    def serve(self, now: float) -> None:
        """Answers what has arrived, and makes durable everything that follows from it. What only the clock brings is
        left alone: for a fleet that does not run, and for one whose clock stands still."""
        self.gather(now)
        self.committer.commit(now, self._clock.time())
        while self._messages or self.committer.must_commit(now):  # it was more than one commit does
            self.gather(now)
            self.committer.commit(now, self._clock.time())
        self.committer.payloads.remove_gone()
        self.committer.tell(now)

    def want(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self._jobs.loaded(load.partition, *self.store.lease(*load))

    def _take_spooled(self, now: float) -> None:
        has_room = self.committer.has_room
        if has_room:
            self.committer.stage_spooled()
        if not has_room or self.committer.has_more_spooled:
            self._timers.hurry(self._take_spooled, now)

    def _take_spooled_anyhow(self, now: float) -> None:
        """Takes in what nobody has told us of."""
        if self._watch is not None:
            self._watch.renew()
        self._take_spooled(now)

    def _on_spool(self, _mask: int) -> None:
        assert self._watch is not None
        self._watch.forget()
        self._timers.hurry(self._take_spooled_anyhow, self._clock.monotonic())

    def _must_look_into_spool(self, _now: float) -> bool:
        is_told = self._watch is not None and self._watch.descriptor is not None
        return not is_told or self.committer.has_left_spooled or self.committer.has_more_spooled

    def take_all_spooled(self, now: float) -> None:
        """Takes in all jobs in the spool, however long that takes."""
        while self.committer.has_more_spooled:
            self.committer.stage_spooled()
            self._commit_all(now)

    def _commit_all(self, now: float) -> None:
        """Makes durable all that was decided and staged, however long that takes."""
        self.committer.commit(now, self._clock.time())
        while self.committer.is_behind:
            self.committer.commit(now, self._clock.time())
        self.committer.tell(now)

    def _prune(self, now: float) -> None:
        self.committer.prune(now, self._settings.keep_results_s, self._settings.keep_results)

    def _prune_anyhow(self, now: float) -> None:
        self._prune(now)

    def _has_new_ends(self, now: float) -> bool:
        """Whether jobs may have ended that are to be pruned soon."""
        keep_s = self._settings.keep_results_s
        return now - self._changed_at < (keep_s if keep_s <= _PRUNE_SOON_S else 0.0) + 2 * _PRUNE_EVERY_S

    def _sweep(self, _now: float) -> None:
        if self._backups.is_open:
            return
        self.committer.payloads.sweep(self._clock.time())

    def _remove_files(self, _now: float) -> None:
        if self._backups.is_open:
            return
        self.committer.payloads.remove_gone()

    # -- when, and whether

    def next_at(self, now: float) -> float:
        return self._timers.next_at(now)

    def _next_by_clock(self, now: float) -> float:
        committer = self.committer
        if self._messages or self._backups.has_more:
            return now
        commit_by = committer.commit_by
        at = inf if commit_by is None else commit_by
        next_fire = None if self._consumers.is_stopping else self.scheduler.next_fire_at
        if next_fire is None and committer.next_due is None and committer.next_expiry is None:
            return at
        by_clock = first_of(next_fire, committer.next_due, committer.next_expiry)
        return at if by_clock is None else min(at, now + by_clock - self._clock.time())

    @property
    def is_settled(self) -> bool:
        return self.committer.is_settled

    @property
    def has_work(self) -> bool:
        committer = self.committer
        has_more = committer.is_handing_over or committer.has_more_spooled or bool(self._messages)
        return committer.next_due is not None or not committer.is_settled or has_more

    def close(self, now: float) -> None:
        self._backups.close()
        self._commit_all(now)
        while self._messages:
            self.gather(now)
            self._commit_all(now)
        self.committer.payloads.remove_gone()
        self.committer.finish()
        if self._clients is not None:
            self._clients.shut()
        if self._watch is not None:
            self._watch.close()
        self.store.close()


def recover(store: Store, jobs: Jobs, running: Iterable[FlightRecord], now: float, wall: float) -> Effects:
    """Charges, at the start, the jobs that were running when a whole fleet died; then counts what waits.

    Args:
        running: the attempts in the flight recorder.
        now, wall: monotonic seconds, and seconds since 1970.

    Returns:
        What was decided. The caller commits it, and then reports it.
    """
    for job_id, attempt, consumer in running:
        stored = store.read(job_id)
        # an attempt that is counted was settled before the fleet died
        if stored is not None and stored.kept == StoredState.QUEUED and stored.row.attempts == attempt - 1:
            jobs.lost(stored.row, consumer)
    effects = Effects()
    effects.add(jobs.take_effects())
    if effects:
        store.settle(effects.ended, effects.rescheduled, wall)
        store.totals.crashed += effects.crashed
    places = store.unrevived()
    while places:
        places = store.revive_dependents(places, portion(LINK_US)).left
    ends = {**dict(store.unfinished_releases()), **{row.id: kept for row, kept, _ in effects.ended}}
    while ends:
        handed = release_dependents(store, ends, wall)
        effects.ended += handed.ended
        effects.notes += handed.notes
        ends = handed.left
    found = store.waiting()  # first: while nothing has changed, it need not be counted
    jobs.restore_limits(store.rates(wall), store.retried_in_order(), now, wall)
    for partition, waiting, first_seq in found:
        jobs.found(partition, waiting, first_seq)
    return effects
