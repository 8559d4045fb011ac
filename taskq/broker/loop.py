"""The broker's loop, in which everything meets. It owns the queues and the journal, and never blocks.

sockets, pipes, process deaths, signals, time
    -> gather   what has arrived, into the core and the committer
    -> commit   one transaction, one sync, for all of it
    -> tell     clients and log, since it is durable now
    -> dispatch jobs to consumers, and take back what waits in the wrong place

clients    engines/embedded/server.py, requests.py      consumers   consumers/pool.py, supervisor.py
decisions  core/core.py                                 durability  engines/embedded/committer.py, journal/
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from typing import Any

import msgpack

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.pool import ConsumerPool
from taskq.broker.consumers.silence import LOOK_EVERY_S
from taskq.broker.consumers.succession import ProcessState
from taskq.broker.consumers.supervisor import Supervisor
from taskq.broker.events import EventLog
from taskq.broker.parts import Parts, core_of
from taskq.broker.status import rss_bytes
from taskq.broker.timers import Timers
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.server import Peer, Server
from taskq.model.effects import Key
from taskq.model.errors import ConfigError, DirectoryError, JournalError, TaskQError
from taskq.model.exits import Exit
from taskq.model.job import check_clock
from taskq.model.settings import Settings
from taskq.model.stored import StoredState
from taskq.protocol import frames
from taskq.protocol.link.flight_recorder import read_flight_records
from taskq.protocol.ops import Op
from taskq.protocol.spool import count_files
from taskq.protocol.submissions import submission_of
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.descriptors import room_for_clients
from taskq.system.directory import UNSAFE_FILESYSTEMS, Directory
from taskq.system.locks import end_old_consumers

#: How often to look for spooled jobs, for long-running jobs to announce, for ended jobs to prune, for fat consumers.
_SPOOL_EVERY_S = 0.5
_ANNOUNCE_EVERY_S = 0.1
_PRUNE_EVERY_S = 1.0
_MEMORY_EVERY_S = 1.0
#: How often to look for lines of the log that were counted instead of written, and for clients that are late.
_SUMMARIES_EVERY_S = 0.1
_LATE_EVERY_S = 0.1
#: How often to look whether the socket is still there.
_REACHABLE_EVERY_S = 1.0
#: SIGTERMs within this time are one.
_ONE_SIGTERM_S = 1.0


class Broker:
    """The loop and what it owns."""

    def __init__(
        self,
        directory: Directory,
        app: str,
        title: str,
        settings: Settings,
        log: Any,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Opens the directory's journal and brings it in order. Nothing runs yet.

        Args:
            app: the application that consumers import.
            title: its name, for `ps`.
            log: a structlog logger.

        Raises:
            DirectoryError, JournalError: the directory or the journal cannot be used.
        """
        self._selector = selectors.DefaultSelector()
        _check_filesystem(directory)
        _check_clock(clock)
        end_old_consumers(directory.consumers_lock)
        self._events = EventLog(log, self._consumer, tells_enqueued=settings.log_level == "debug")
        store = SQLiteStore(directory.journal, settings.durability, clock=clock)
        parts = Parts(directory, settings, store, core_of(settings, settings.threads), self._events, clock)
        parts.recover(read_flight_records(directory.running))
        self._supervisor = Supervisor(app, title, directory, settings)  # clears these records
        room = room_for_clients(settings.consumers)
        self._server = Server(directory, self._selector, self._on_rejected, self._on_client_gone, clock, room)
        self._pool = ConsumerPool(
            parts, self._events, self._supervisor, self._selector, self._on_first_ready, self._on_boot_failed
        )
        parts.connect(self._server, self._pool, self._supervisor, self._stop, self._reload_when_asked)
        self._begin(parts)

    # -- the beginning

    def _begin(self, parts: Parts) -> None:
        """Takes over what it runs."""
        self._directory, self._settings = parts.directory, parts.settings
        self._log, self._clock = parts.log, parts.clock
        self._store, self._core, self._committer = parts.store, parts.core, parts.committer
        self._scheduler, self._requests = parts.scheduler, parts.requests
        self._timers = Timers(self._next_for_jobs, self._next_for_fleet)
        self._left: dict[str, int] = {}  # jobs that it found
        self._sigterm_until = 0.0  # another one that comes by then says nothing new
        self._stop_at: float | None = None  # when running jobs are killed; set once the fleet is stopping

    def run(self, guardian: socket.socket, signals: socket.socket) -> None:
        """Runs until the fleet has stopped.

        Args:
            guardian: the socket to the guardian; its end is the guardian's end.
            signals: where the signals arrive that stop or reload the fleet, one byte each.
        """
        self._guardian = guardian
        self._selector.register(guardian, selectors.EVENT_READ, self._on_guardian_gone)
        self._signals = signals
        self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
        now = self._clock.monotonic()
        for every_s, function in (
            (_SPOOL_EVERY_S, self._take_spooled),
            (_ANNOUNCE_EVERY_S, self._pool.announce),
            (_PRUNE_EVERY_S, self._prune),
            (_MEMORY_EVERY_S, self._check_memory),
            (LOOK_EVERY_S, self._pool.end_the_silent),
            (_REACHABLE_EVERY_S, self._server.stay_reachable),
            (_LATE_EVERY_S, self._server.drop_late),
            (_SUMMARIES_EVERY_S, self._events.summaries),
        ):
            self._timers.every(every_s, function, now)
        self._left = self._backlog()
        self._log.info(
            "fleet.started",
            pid=os.getpid(),
            consumers=self._settings.consumers,
            **({"threads": self._settings.threads} if self._settings.threads > 1 else {}),
            directory=str(self._directory.path),
            **self._left,
            **({"spooled_files": spooled} if (spooled := count_files(self._directory.spool)) else {}),
        )
        while self._stop_at is None or self._supervisor.consumers:
            self._tick()
        self._close()

    # -- the loop

    def _tick(self) -> None:
        for key, mask in self._selector.select(self._timers.timeout_s(self._clock.monotonic())):
            key.data(mask)
        now, wall = self._clock.monotonic(), self._clock.time()
        requests = [*self._requests.put_off(now), *self._take_messages()]
        self._pool.bury_dead(now, wall)
        self._pool.check_times(now)
        self._committer.collect(now)
        if requests or self._pool.has_buried or self._committer.must_commit(now):
            self._committer.commit(now, wall)
            if self._committer.is_settled:
                self._pool.forget_buried()
            for peer, envelope in requests:
                if not peer.closed:
                    self._requests.answer(peer, envelope)
            self._committer.tell(now)
        self._committer.tell_deferred()
        self._timers.run(now)
        self._committer.come_due(wall)
        self._committer.expire(wall)
        if self._stop_at is None:
            self._scheduler.fire_due(now, wall)
            self._load()
            self._core.ready.open_due(now)
            self._pool.dispatch(now, wall)
        self._pool.supervise(now)
        self._end_in_time(now)

    # -- when to wake up

    def _next_for_jobs(self, now: float) -> float | None:
        """When jobs are to be committed, become due, expire, or are fired by a schedule."""
        committer, wall = self._committer, self._clock.time()
        next_fire = self._scheduler.next_fire_at if self._stop_at is None else None
        moments = (next_fire, committer.next_due, committer.next_expiry)
        times = [now + at - wall for at in moments if at is not None]
        return min((at for at in (committer.commit_by, *times) if at is not None), default=None)

    def _next_for_fleet(self, now: float) -> float | None:
        """When jobs are to be sent, taken back or stopped, and consumers are to be started or killed."""
        core = self._core
        times = [core.next_time_check(now), self._supervisor.next_due(now), self._stop_at]
        if self._stop_at is None:
            times += [core.next_recall(now), core.next_look(now), core.ready.next_opening()]
            times += [now if core.must_load else None]
        return min((at for at in times if at is not None), default=None)

    # -- clients

    def _take_messages(self) -> list[tuple[Peer, list[Any]]]:
        """Hands submissions to the committer; returns the other requests, to be answered after the commit."""
        requests = []
        for peer, (envelope, body) in self._server.take_messages():
            if peer.closed:
                continue
            if envelope[0] not in (Op.SUBMIT, Op.SUBMIT_FLOW):
                requests.append((peer, envelope))
                continue
            try:
                self._committer.take_in(submission_of(peer, envelope, body))
            except TaskQError as error:
                request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
                self._server.send(peer, frames.error_frame(request, error))
        return requests

    def _load(self) -> None:
        for load in self._core.loads():
            rows, is_all = self._store.lease(*load)
            self._core.loaded(load.partition, rows, is_all)

    # -- again and again

    def _take_spooled(self, now: float) -> None:
        self._committer.take_spooled(now)
        if self._committer.has_more_spooled:
            self._timers.hurry(self._take_spooled, now)

    def _prune(self, now: float) -> None:
        self._committer.prune(now, self._settings.keep_results_s, self._settings.keep_results)

    def _check_memory(self, _now: float) -> None:
        limit_mb = self._settings.max_memory_mb
        if limit_mb is None:
            return
        for consumer in list(self._supervisor.consumers.values()):
            if consumer.state is ProcessState.READY and rss_bytes(consumer.pid) > limit_mb * 1024 * 1024:
                self._supervisor.replace(consumer)

    # -- the fleet

    def _consumer(self, key: Key) -> ConsumerProcess | None:
        return self._supervisor.consumers.get(key)

    def _on_rejected(self, reason: str) -> None:
        self._events.rejected(reason, self._clock.monotonic())

    def _on_client_gone(self, peer: Peer) -> None:
        self._committer.forget(peer)

    def _on_first_ready(self) -> None:
        self._tell_guardian(["ready", os.getpid(), self._left])

    def _on_boot_failed(self, message: str) -> None:
        if not self._pool.is_ready:
            self._tell_guardian(["failed", int(Exit.APP), f"a consumer could not start: {message}"])

    def _tell_guardian(self, message: list[Any]) -> None:
        try:
            self._guardian.send(msgpack.packb(message))
        except OSError:
            pass  # its end is heard in the loop

    def _reload_when_asked(self) -> int:
        if self._pool.is_stopping:
            raise TaskQError("the fleet is stopping; the next one starts with the present code")
        return self._reload()

    def _reload(self) -> int:
        self._log.info("fleet.reloading")
        self._supervisor.reload()
        return self._supervisor.code

    # -- the end

    def _on_signals(self, _mask: int) -> None:
        for number in self._signals.recv(64):
            if number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGINT or (number == signal.SIGTERM and self._is_first_sigterm()):
                self._stop(signal.Signals(number).name)

    def _is_first_sigterm(self) -> bool:
        """Whether it is not that of a moment ago, which reached us in two ways: `timeout` sends one to its child and
        one to all, systemd one to the guardian and one to us."""
        now = self._clock.monotonic()
        if now < self._sigterm_until:
            return False
        self._sigterm_until = now + _ONE_SIGTERM_S
        return True

    def _on_guardian_gone(self, _mask: int) -> None:
        if not self._guardian.recv(64):
            self._selector.unregister(self._guardian)
            self._stop("the guardian died")
            self._stop_at = self._clock.monotonic()

    def _stop(self, reason: str) -> None:
        """Begins to stop; asked twice, it does not wait for running jobs."""
        if self._stop_at is not None:
            self._stop_at = self._clock.monotonic()
            return
        timeout_s = self._settings.stop_timeout_s
        self._stop_at = self._clock.monotonic() + timeout_s
        self._tell_guardian(["stopping"])  # should we die on the way, no other broker is wanted
        running = self._pool.stop()
        self._log.info("fleet.stopping", reason=reason, running=running, timeout_s=timeout_s)

    def _end_in_time(self, now: float) -> None:
        if self._settings.drain and self._stop_at is None and self._pool.is_ready and not self._has_work():
            self._stop("drained")
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = now + 1.0  # again, should one have come up meanwhile
            self._pool.kill_all()

    def _has_work(self) -> bool:
        committer = self._committer
        has_more = committer.is_handing_over or committer.has_more_spooled
        return self._core.has_work or committer.next_due is not None or not committer.is_settled or has_more

    def _close(self) -> None:
        now = self._clock.monotonic()
        self._committer.collect(now)
        self._committer.commit(now, self._clock.time())
        self._pool.forget_buried()
        self._committer.tell(now)
        self._events.summaries(now, is_last=True)
        self._server.shut()
        backlog, totals = self._backlog(), self._store.totals.as_dict()
        self._store.close()
        self._log.info("fleet.stopped", **backlog, **totals)

    def _backlog(self) -> dict[str, int]:
        """How many jobs there are to run, now or later, by state; none of them was sent to a consumer."""
        later = {
            kept.state.value: sum(self._store.counts(kept).values())
            for kept in (StoredState.SCHEDULED, StoredState.WAITING)
        }
        return {"queued": sum(self._core.counts().values()), **later}


def _check_clock(clock: Clock) -> None:
    try:
        check_clock(clock.time())
    except ConfigError as error:
        raise JournalError(str(error)) from None  # what would be written there would have wrong times


def _check_filesystem(directory: Directory) -> None:
    kind = directory.filesystem()
    if kind in UNSAFE_FILESYSTEMS:
        raise DirectoryError(
            f"{directory.path} is on {kind}, where a journal is not safe (its locks or syncs may do nothing): "
            "choose a local disk with TASKQ_URL"
        )
