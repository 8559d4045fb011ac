"""The broker's loop, in which both halves meet. It never blocks.

sockets, pipes, process deaths, signals, time
    -> gather   what has arrived, into the engine and the core
    -> step     the engine makes durable what was decided, all in one transaction, and answers clients
    -> dispatch jobs to consumers, and take back what waits in the wrong place
    -> report   to the log, and everything else that nobody waits for

queue half  the engine: engines/contract.py      fleet half  core/core.py decides, consumers/pool.py has the processes
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from math import inf
from typing import Any

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.pool import ConsumerPool
from taskq.broker.consumers.silence import LOOK_EVERY_S
from taskq.broker.consumers.succession import ProcessState
from taskq.broker.consumers.supervisor import Supervisor
from taskq.broker.events import EventLog
from taskq.broker.parts import Parts, core_of, engine_of
from taskq.broker.service_manager import ServiceManager
from taskq.engines.contract import Engine
from taskq.model.effects import Key
from taskq.model.errors import ConfigError, DirectoryError, JournalError, TaskQError
from taskq.model.exits import Exit
from taskq.model.job import check_clock
from taskq.model.settings import Settings
from taskq.model.stored import StoredState
from taskq.protocol.guardian import Failed, Notice, Ready, Stopping, pack_notice
from taskq.protocol.link.flight_recorder import read_flight_records
from taskq.protocol.spool import count_files
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.descriptors import room_for_clients
from taskq.system.directory import UNSAFE_FILESYSTEMS, Directory
from taskq.system.locks import end_old_consumers
from taskq.system.place import Place
from taskq.system.timers import Timers
from taskq.system.usage import peak_bytes_of, rss_bytes

#: How often to look for long-running jobs to announce, for fat consumers, and for lines of the log that were counted
#: instead of written.
_ANNOUNCE_EVERY_S = 0.1
_MEMORY_EVERY_S = 1.0
_USAGE_EVERY_S = 1.0
_SUMMARIES_EVERY_S = 0.1
#: How often to tell systemd what the fleet does, and whether a reload has ended.
_STATUS_EVERY_S = 5.0
_RELOADED_EVERY_S = 0.1
#: SIGTERMs within this time are one.
_ONE_SIGTERM_S = 1.0


class Broker:
    """The loop and what it owns."""

    def __init__(
        self,
        place: Place,
        app: str,
        title: str,
        settings: Settings,
        log: Any,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Opens the engine and brings what it has in order. Nothing runs yet.

        Args:
            place: where the queue is kept.
            app: the application that consumers import.
            title: its name, for `ps`.
            log: a structlog logger.

        Raises:
            DirectoryError, JournalError: the directory or the journal cannot be used.
        """
        self._selector = selectors.DefaultSelector()
        directory = place.directory
        _check_filesystem(directory)
        _check_clock(clock)
        end_old_consumers(directory.consumers_lock)
        level = settings.log_level
        self._events = EventLog(
            log, self._consumer, tells_enqueued=level == "debug", tells_successes=level in ("debug", "info")
        )
        engine = engine_of(place, settings, clock)
        parts = Parts(directory, settings, engine, core_of(settings, settings.threads), self._events, clock)
        parts.recover(read_flight_records(directory.running))
        self._supervisor = Supervisor(app, title, place, settings)  # clears these records
        if self._supervisor.helper.needed is not None:
            self._selector.register(self._supervisor.helper.needed, selectors.EVENT_READ, self._on_helper_needed)
        self._pool = ConsumerPool(
            parts, self._events, self._supervisor, self._selector, self._on_first_ready, self._on_boot_failed
        )
        control = self._stop, self._reload_when_asked
        parts.start(self._pool, self._supervisor, *control, self._selector, room_for_clients(settings.consumers))
        self._begin(parts)

    # -- the beginning

    def _begin(self, parts: Parts) -> None:
        """Takes over the parts that it runs."""
        self._directory, self._settings = parts.directory, parts.settings
        self._log, self._clock = parts.log, parts.clock
        self._core, self._turns = parts.core, parts.turns
        self._engine: Engine = parts.engine
        self._timers = Timers(self._engine.next_at, self._next_at)
        self._service = ServiceManager(os.environ)
        self._tells_reload = False  # systemd waits for the end of a reload
        self._left: dict[str, int] = {}  # jobs that it found at the start
        self._sigterm_until = 0.0  # another SIGTERM before this moment is the same one
        self._stop_at: float | None = None  # when running jobs are killed; set once the fleet is stopping

    def run(self, guardian: socket.socket, signals: socket.socket) -> None:
        """Runs until the fleet has stopped.

        Args:
            guardian: the socket to the guardian; when it ends, the guardian is gone.
            signals: where the signals arrive that stop or reload the fleet, one byte each.
        """
        self._guardian = guardian
        self._selector.register(guardian, selectors.EVENT_READ, self._on_guardian_gone)
        self._signals = signals
        self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
        now = self._clock.monotonic()
        for every_s, function, is_needed in (
            (_ANNOUNCE_EVERY_S, self._pool.announce, self._pool.has_to_announce),
            (_MEMORY_EVERY_S, self._check_memory, lambda _now: self._settings.max_memory_mb is not None),
            (_USAGE_EVERY_S, self._note_usage, lambda _now: self._core.has_work),
            (LOOK_EVERY_S, self._pool.end_the_silent, self._pool.waits_for_some),
            (_SUMMARIES_EVERY_S, self._events.summaries, self._events.has_summaries),
        ):
            self._timers.every(every_s, function, now, is_needed)
        self._serve_manager(now)
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
        now = self._clock.monotonic()
        self._turns.ended(now)
        ready = self._selector.select(self._timers.timeout_s(now))
        self._turns.began(self._clock.monotonic())
        first = self._turns.number % len(ready) if ready else 0  # each is the first one now and then: a turn may not
        for key, mask in ready[first:] + ready[:first]:  # have room for all of them
            key.data(mask)
        now, wall = self._clock.monotonic(), self._clock.time()
        self._engine.gather(now)
        self._pool.bury_dead(now, wall)
        self._pool.check_times(now)
        self._engine.step(now, at_once=self._pool.has_buried)
        if self._stop_at is None:
            if self._core.must_load:
                self._engine.want(self._core.loads())
            self._core.ready.open_due(now)
            self._pool.dispatch(now, wall)
        self._engine.report(now)
        if self._pool.has_buried and self._engine.is_settled:
            self._pool.forget_buried()
        self._timers.run(now)
        self._pool.supervise(now)
        self._end_in_time(now)

    def _next_at(self, now: float) -> float:
        """When jobs have to be sent, taken back or stopped, or consumers have to be started or killed."""
        core, due = self._core, self._supervisor.next_due(now)
        at = inf if due is None else due
        if self._stop_at is None:
            return now if core.must_load else min(at, core.next_moment(now))
        check = core.next_time_check(now)
        return min(at, self._stop_at, inf if check is None else check)

    def _check_memory(self, _now: float) -> None:
        limit_mb = self._settings.max_memory_mb
        if limit_mb is None:
            return
        for consumer in list(self._supervisor.consumers.values()):
            if consumer.state is ProcessState.READY and rss_bytes(consumer.pid) > limit_mb * 1024 * 1024:
                self._supervisor.replace(consumer)

    def _note_usage(self, now: float) -> None:
        """Notes how much CPU and memory consumers have used: of a dead one, the system does not tell."""
        for consumer in self._supervisor.consumers.values():
            consumer.cpu.sample(now)
            consumer.peak_bytes = peak_bytes_of(consumer.pid) or consumer.peak_bytes

    # -- the fleet

    def _consumer(self, key: Key) -> ConsumerProcess | None:
        return self._supervisor.consumers.get(key)

    def _on_helper_needed(self, _mask: int) -> None:
        helper = self._supervisor.helper
        assert helper.needed is not None
        self._selector.unregister(helper.needed)
        helper.start()

    def _on_first_ready(self) -> None:
        self._tell_guardian(Ready(os.getpid(), self._left))
        self._service.tell(READY="1")

    def _on_boot_failed(self, message: str) -> None:
        if not self._pool.is_ready:
            self._tell_guardian(Failed(Exit.APP, f"a consumer could not start: {message}"))

    def _tell_guardian(self, notice: Notice) -> None:
        try:
            self._guardian.send(pack_notice(notice))
        except OSError:
            pass  # the loop sees its end

    def _reload_when_asked(self) -> int:
        if self._pool.is_stopping:
            raise TaskQError("the fleet is stopping; the next one will start with the current code")
        return self._reload()

    def _reload(self) -> int:
        self._log.info("fleet.reloading")
        self._supervisor.reload()
        if self._service.is_there:
            self._tells_reload = True
            self._service.tell(RELOADING="1", MONOTONIC_USEC=str(int(self._clock.monotonic() * 1e6)))
        return self._supervisor.code

    # -- systemd

    def _serve_manager(self, now: float) -> None:
        """Tells a service manager that the loop turns, and what the fleet does; of its watchdog, the loop does not know
        more than when to tell."""
        service = self._service
        if service.watchdog_s is not None:
            self._timers.every(service.watchdog_s / 2, lambda _now: service.tell(WATCHDOG="1"), now)
        if service.is_there:
            self._timers.every(_STATUS_EVERY_S, self._tell_status, now)
            self._timers.every(_RELOADED_EVERY_S, self._tell_reloaded, now, lambda _now: self._tells_reload)

    def _tell_status(self, _now: float) -> None:
        waiting = sum(self._backlog().values())
        self._service.tell_status(f"{waiting:,} jobs to run, {len(self._supervisor.consumers)} consumers")

    def _tell_reloaded(self, _now: float) -> None:
        """After a reload that failed, the service is ready, too: its consumers run the code that they had."""
        if self._supervisor.reload_state != "running":
            self._tells_reload = False
            self._service.tell(READY="1")

    # -- the end

    def _on_signals(self, _mask: int) -> None:
        for number in self._signals.recv(64):
            if number == signal.SIGHUP:
                self._reload()
            elif number == signal.SIGINT or (number == signal.SIGTERM and self._is_first_sigterm()):
                self._stop(signal.Signals(number).name)

    def _is_first_sigterm(self) -> bool:
        """Whether it is not the one of a moment ago, which reached us in two ways: `timeout` sends one to its child and
        one to the whole group, systemd one to the guardian and one to us."""
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
        """Begins to stop. The second time, it does not wait for running jobs."""
        if self._stop_at is not None:
            self._stop_at = self._clock.monotonic()
            return
        timeout_s = self._settings.stop_timeout_s
        self._stop_at = self._clock.monotonic() + timeout_s
        self._service.tell(STOPPING="1")
        self._tell_guardian(Stopping())  # if we die before the end, no other broker is needed
        running = self._pool.stop()
        self._log.info("fleet.stopping", reason=reason, running=running, timeout_s=timeout_s)

    def _end_in_time(self, now: float) -> None:
        if self._settings.drain and self._stop_at is None and self._pool.is_ready and not self._has_work():
            self._stop("drained")
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = now + 1.0  # again, if another has come up meanwhile
            self._pool.kill_all()

    def _has_work(self) -> bool:
        return self._core.has_work or self._engine.has_work

    def _close(self) -> None:
        now = self._clock.monotonic()
        self._engine.step(now, at_once=True)
        self._engine.report(now)
        self._pool.forget_buried()
        self._events.summaries(now, is_last=True)
        backlog, totals = self._backlog(), self._engine.figures.totals.as_dict()
        self._engine.close(now)
        self._log.info("fleet.stopped", **backlog, **totals)

    def _backlog(self) -> dict[str, int]:
        """How many jobs there are to run, now or later, by state, without those that were sent to consumers."""
        later = {
            kept.state.value: sum(self._engine.figures.counts(kept).values())
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
