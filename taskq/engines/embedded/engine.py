"""The embedded engine: a journal on this machine's disk, and clients at a Unix socket, in the broker's own loop.

    clients -- Server -- Requests, Admission -.            .-- Watchers -- clients
    fleet -------------- effects -------------+- Committer +-- log
    time --------------- Scheduler, spool ----'            '-- fleet

It is the only user of its journal, and knows at once what is durable. What it does in a turn of the loop is `step`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from selectors import BaseSelector

from taskq.engines.contract import Events, Figures, Fleet, Jobs
from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer, commit_recovery
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.recovery import recover
from taskq.engines.embedded.requests import Requests
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.server import Peer, Server
from taskq.engines.embedded.transaction import first_of
from taskq.model.errors import TaskQError
from taskq.model.partition import Load
from taskq.model.settings import Settings
from taskq.protocol import frames
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Submission, submission_of
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.timers import Timers

#: How often to look for spooled jobs, for ended jobs to prune, for clients that are late, and for the socket, which may
#: be gone.
_SPOOL_EVERY_S = 0.5
_PRUNE_EVERY_S = 1.0
_LATE_EVERY_S = 0.1
_REACHABLE_EVERY_S = 1.0


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
        self._directory = directory
        self._settings = settings
        self._clock = clock
        self._clients = clients
        self._kinds = kinds
        self._timers = Timers(self._next_by_clock)

    @property
    def figures(self) -> Figures:
        return self.store

    def recover(self, jobs: Jobs, events: Events, running: Iterable[FlightRecord]) -> None:
        effects = recover(self.store, jobs, running, self._clock.monotonic(), self._clock.time())
        commit_recovery(self.store)
        for event, fields in self.store.findings:
            (events.log.error if event == "store.damaged" else events.log.info)(event, **fields)
        events.notes(effects.notes)
        jobs.pause(self.store.paused())

    def start(self, fleet: Fleet, selector: BaseSelector | None = None, max_clients: int = 0) -> None:
        self._jobs, self._consumers = fleet.jobs, fleet.consumers
        store, clock, log = self.store, self._clock, fleet.events.log
        now = clock.monotonic()
        if self._clients is None:
            assert selector is not None
            self._clients = self._listen(fleet.events, selector, max_clients, now)
        arguments = store, fleet.jobs, self._clients, fleet.events, self._directory, fleet.consumers, clock
        self.committer = self._kinds.committer(*arguments)
        self.scheduler = self._kinds.scheduler(store, log, clock.time())
        admin = Admin(fleet.jobs, store, self.committer, fleet.consumers, clock)
        self.requests = Requests(self._clients, self.committer, admin, self.scheduler, fleet.control, log, clock)
        self._timers.every(_SPOOL_EVERY_S, self._take_spooled, now)
        self._timers.every(_PRUNE_EVERY_S, self._prune, now)

    def _listen(self, events: Events, selector: BaseSelector, max_clients: int, now: float) -> Server:
        rejected = lambda reason: events.rejected(reason, self._clock.monotonic())  # noqa: E731
        server = Server(self._directory, selector, rejected, self.forget, self._clock, max_clients)
        self._timers.every(_LATE_EVERY_S, server.drop_late, now)
        self._timers.every(_REACHABLE_EVERY_S, server.stay_reachable, now)
        return server

    # -- what comes in

    def gather(self, now: float) -> None:
        assert self._clients is not None
        self.requests.take_up_again(now)
        for peer, (envelope, body) in self._clients.take_messages():
            if peer.closed:
                continue
            if envelope[0] not in (Op.SUBMIT, Op.SUBMIT_FLOW):
                self.requests.take_in(peer, envelope)
                continue
            try:
                self.committer.take_in(submission_of(peer, envelope, body))
            except TaskQError as error:
                number = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
                self._clients.send(peer, frames.error_frame(number, error))

    def forget(self, peer: Peer) -> None:
        """Forgets a client that is gone."""
        self.committer.forget(peer)

    def declare(self, app: str, schedules: Sequence[bytes]) -> None:
        self.scheduler.declared(app, schedules)

    def enqueued(self, children: list[Submission]) -> None:
        self.committer.take_children(children)

    # -- what is done

    def step(self, now: float, *, at_once: bool = False) -> None:
        wall = self._clock.time()
        committer = self.committer
        self._timers.run(now)
        self.look_at_clock(now, wall)
        committer.collect(now)
        if at_once or committer.must_commit(now):
            committer.commit(now, wall)
            committer.tell(now)
        committer.tell_deferred()

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
        while self.committer.must_commit(now):  # more come after a job than one commit releases
            self.gather(now)
            self.committer.commit(now, self._clock.time())
        self.committer.tell(now)

    def want(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self._jobs.loaded(load.partition, *self.store.lease(*load))

    def _take_spooled(self, now: float) -> None:
        self.committer.stage_spooled()
        if self.committer.has_more_spooled:
            self._timers.hurry(self._take_spooled, now)

    def take_all_spooled(self, now: float) -> None:
        """Takes in all jobs in the spool, however long that takes."""
        while self.committer.has_more_spooled:
            self.committer.stage_spooled()
            self.committer.commit(now, self._clock.time())
            self.committer.tell(now)

    def _prune(self, now: float) -> None:
        self.committer.prune(now, self._settings.keep_results_s, self._settings.keep_results)

    # -- when, and whether

    def next_at(self, now: float) -> float | None:
        return now + self._timers.timeout_s(now)

    def _next_by_clock(self, now: float) -> float | None:
        committer = self.committer
        next_fire = None if self._consumers.is_stopping else self.scheduler.next_fire_at
        at = first_of(next_fire, committer.next_due, committer.next_expiry)
        by_clock = None if at is None else now + at - self._clock.time()
        return first_of(committer.commit_by, by_clock)

    @property
    def is_settled(self) -> bool:
        return self.committer.is_settled

    @property
    def has_work(self) -> bool:
        committer = self.committer
        has_more = committer.is_handing_over or committer.has_more_spooled
        return committer.next_due is not None or not committer.is_settled or has_more

    def close(self, now: float) -> None:
        self.committer.collect(now)
        self.committer.commit(now, self._clock.time())
        self.committer.tell(now)
        self.committer.finish()
        if self._clients is not None:
            self._clients.shut()
        self.store.close()
