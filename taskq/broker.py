"""The broker process: one loop in which everything meets. It owns the queues and the journal, and never blocks.

    sockets, pipes, process deaths, signals, time
        -> gather   what has arrived, into the core and into lists
        -> commit   one transaction, one sync, for all of it
        -> answer   the clients, since it is durable now
        -> dispatch jobs to consumers, and take back what waits in the wrong place

Nothing is acknowledged before its commit. The decisions are the core's; the processes are the supervisor's.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import msgpack
import psutil

from taskq import spool, wire
from taskq.client import Call
from taskq.config import UNSAFE_FILESYSTEMS, Directory, Settings
from taskq.core import Core, Death, Effects
from taskq.counters import Claim, read_flight_records
from taskq.errors import (
    ConfigError,
    DirectoryError,
    EnqueueError,
    JobNotFound,
    ProtocolError,
    StoreFull,
    TaskQError,
)
from taskq.exits import Exit
from taskq.locks import end_old_consumers, take_broker_lock
from taskq.model import JobRow, JobState, Spec
from taskq.narrator import Narrator
from taskq.server import Peer, Server
from taskq.store import FIRST_FINAL, Kept, StoredJob
from taskq.store.sqlite import SQLiteStore
from taskq.supervisor import Slot, SlotState, Supervisor
from taskq.wire import Op

#: Outcomes that nobody waits for may ride with the next commit, this much later at the most. It halves the commits of
#: a producer that enqueues one job at a time while they run.
_COMMIT_WITHIN_S = 0.005
_COMMIT_COUNT = 2_000
#: How often to look for jobs in the spool, for long-running jobs to announce, and for ended jobs to prune.
_SPOOL_EVERY_S = 0.5
_LOOK_EVERY_S = 0.1
_PRUNE_EVERY_S = 1.0
_PRUNE_JOBS = 1_000
_MEMORY_EVERY_S = 1.0
#: A job is told as started in the log if it is still running after this time.
_ANNOUNCE_AFTER_S = 0.1


class _Submission(NamedTuple):
    """A submit frame that waits for its commit."""

    peer: Peer | None
    request: int
    watch: bool
    spec: Spec
    calls: list[Call]


class Broker:
    """The loop and what it owns."""

    def __init__(self, directory: Directory, app: str, title: str, settings: Settings, log: Any) -> None:
        """Opens the directory's journal and brings it in order. Nothing runs yet.

        Raises:
            DirectoryError, JournalError: the directory or the journal cannot be used.
        """
        self._directory = directory
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._started_at = time.time()
        _check_filesystem(directory)
        end_old_consumers(directory.consumers_lock)
        self._store = SQLiteStore(directory.journal, settings.durability)
        self._core = Core(settings.queues, settings.memory_mb * 1024 * 1024)
        self._narrator = Narrator(log, self._slot, tells_enqueued=settings.log_level == "debug")
        self._log = log
        self._recover()
        self._supervisor = Supervisor(app, title, directory, settings)
        self._server = Server(directory, self._selector, self._on_rejected, self._on_client_gone)
        self._submissions: list[_Submission] = []
        self._requests: list[tuple[Peer, list[Any]]] = []
        self._dead: list[Slot] = []
        self._buried: list[Slot] = []
        self._effects = Effects()  # decided by the core, not committed yet
        self._effects_since: float | None = None
        self._committed: list[Effects] = []  # committed, not told yet
        self._watchers: dict[bytes, set[Peer]] = {}
        self._next_due = self._store.next_due()
        self._timers: dict[Callable[[float], None], tuple[float, float]] = {}  # function: (every, next)
        self._stop_at: float | None = None  # when running jobs are killed; set once the fleet is stopping
        self._is_ready = False

    def _slot(self, key: int) -> Slot | None:
        return self._supervisor.slots.get(key)

    # -- the beginning

    def _recover(self) -> None:
        """Charges the jobs that were running when a whole fleet died; then counts what waits."""
        wall = time.time()
        for job_id, attempt in read_flight_records(self._directory.running):
            stored = self._store.read(job_id)
            # an attempt that is counted was settled before the fleet died
            if stored is not None and stored.kept == Kept.QUEUED and stored.row.attempts == attempt - 1:
                self._core.lost(stored.row, wall)
        effects = self._core.take_effects()
        if effects:
            self._store.settle(effects.ended, effects.rescheduled, wall)
            self._store.totals.crashed += effects.crashed
            self._store.commit()
        for event, fields in self._store.findings:
            (self._log.error if event == "store.damaged" else self._log.info)(event, **fields)
        self._narrator.notes(effects.notes)
        for queue, counts in self._store.counts().items():
            self._core.found(queue, counts.get(Kept.QUEUED, 0))

    def run(self, guardian: socket.socket) -> None:
        """Runs until the fleet has stopped.

        Args:
            guardian: the socket to the guardian; its end is the guardian's end.
        """
        self._selector.register(guardian, selectors.EVENT_READ, self._on_guardian_gone)
        self._guardian = guardian
        self._wake_on_signals()
        now = time.monotonic()
        self._timers = {
            self._take_spooled: (_SPOOL_EVERY_S, now),
            self._announce: (_LOOK_EVERY_S, now),
            self._prune: (_PRUNE_EVERY_S, now),
            self._check_memory: (_MEMORY_EVERY_S, now),
        }
        self._log.info(
            "fleet.started",
            pid=os.getpid(),
            consumers=self._settings.consumers,
            directory=str(self._directory.path),
            waiting=sum(self._core.counts().values()),
        )
        while self._stop_at is None or self._supervisor.slots:
            self._tick()
        self._close()

    def _wake_on_signals(self) -> None:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._signal_sockets = reader, writer
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)  # the number arrives at the socket
        self._selector.register(reader, selectors.EVENT_READ, self._on_signals)

    # -- the loop

    def _tick(self) -> None:
        for key, mask in self._selector.select(self._timeout_s()):
            key.data(mask)
        now, wall = time.monotonic(), time.time()
        self._handle_messages()
        self._bury_dead(now, wall)
        self._check_times(now)
        self._collect(self._core.take_effects(), now)
        if self._must_commit(now):
            self._commit(now, wall)
            self._answer(now)
        self._run_timers(now)
        self._come_due(wall)
        self._dispatch(now)
        self._supervise(now)

    def _timeout_s(self) -> float:
        now = time.monotonic()
        times = [
            self._core.next_recall(now),
            self._core.next_time_check(),
            self._supervisor.next_due(),
            self._server.next_deadline(),
            self._narrator.next_summary(),
            self._stop_at,
            None if self._effects_since is None else self._effects_since + _COMMIT_WITHIN_S,
            None if self._next_due is None else now + self._next_due - time.time(),
            *(due for _, due in self._timers.values()),
        ]
        return max(0.0, min(at for at in times if at is not None) - now)

    # -- gather: clients

    def _handle_messages(self) -> None:
        for peer, (envelope, body) in self._server.take_messages():
            if peer.closed:
                continue
            try:
                if envelope[0] == Op.SUBMIT:
                    self._submissions.append(_submission(peer, envelope, body))
                else:
                    self._requests.append((peer, envelope))
            except TaskQError as error:
                request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
                self._server.send(peer, wire.frame([Op.ERROR, request, type(error).__name__, str(error)]))

    def _on_rejected(self, reason: str) -> None:
        self._log.warning("client.rejected", reason=reason)

    def _on_client_gone(self, peer: Peer) -> None:
        for job_id in peer.watched:
            watchers = self._watchers.get(job_id)
            if watchers is not None:
                watchers.discard(peer)
                if not watchers:
                    del self._watchers[job_id]

    # -- gather: consumers

    def _register(self, slot: Slot) -> None:
        self._selector.register(slot.socket, selectors.EVENT_READ, partial(self._on_consumer, slot))
        self._selector.register(slot.output, selectors.EVENT_READ, partial(self._on_output, slot))
        self._selector.register(slot.death_fd, selectors.EVENT_READ, partial(self._on_death, slot))

    def _on_consumer(self, slot: Slot, _mask: int) -> None:
        try:
            for envelope, body in slot.read_messages():
                self._hear(slot, envelope, body)
        except (EOFError, OSError):
            self._selector.unregister(slot.socket)  # its death is told by its own descriptor
        except TaskQError as error:
            self._log.error("consumer.confused", consumer=slot.number, pid=slot.pid, error=str(error))
            slot.kill()

    def _hear(self, slot: Slot, envelope: list[Any], body: memoryview) -> None:
        match envelope:
            case [Op.OUTCOMES, list(numbers), list(verdicts), list(durations_us), list(lengths)]:
                outcomes = wire.split(body, lengths)
                self._core.settled(
                    slot.key, numbers, verdicts, durations_us, outcomes, time.monotonic(), time.time()
                )
                self._after_outcomes(slot)
            case [Op.READY, int(), list(tasks)]:
                self._on_ready(slot, tasks)
            case [Op.BOOT_FAILED, str(message), str(traceback)]:
                slot.boot_error = message, traceback
            case _:
                raise ProtocolError(f"a message that no consumer sends: {envelope[0]}")

    def _after_outcomes(self, slot: Slot) -> None:
        if slot.state is SlotState.RETIRING and self._core.holds_nothing(slot.key):
            self._supervisor.expect_exit(slot, time.monotonic())
        elif self._settings.max_jobs is not None and slot.counters.jobs_done >= self._settings.max_jobs:
            self._supervisor.replace(slot)

    def _on_ready(self, slot: Slot, tasks: list[Any]) -> None:
        now = time.monotonic()
        replaced = self._supervisor.ready(slot)
        self._core.joined(slot.key, now)
        self._log.info("consumer.started", consumer=slot.number, pid=slot.pid, boot_ms=round((now - slot.started_at) * 1e3))
        if replaced is not None:
            self._retire(replaced)
        if self._stop_at is not None:
            self._retire(slot)
        if not self._is_ready:
            self._is_ready = True
            self._guardian.send(msgpack.packb(["ready", os.getpid(), tasks[:500]]))

    def _on_output(self, slot: Slot, _mask: int) -> None:
        claim = slot.counters.read()  # before the lines: they cannot be from a later job
        try:
            lines = slot.read_output()
        except OSError:
            lines = []
        self._tell_output(slot, claim, lines)

    def _tell_output(self, slot: Slot, claim: Claim, lines: list[str]) -> None:
        slot.keep_last_lines(claim.number, lines)
        if lines:
            row = self._core.running(slot.key, claim) if slot.state is not SlotState.STARTING else None
            self._narrator.output(slot, row, lines, time.monotonic())

    def _on_death(self, slot: Slot, _mask: int) -> None:
        self._selector.unregister(slot.death_fd)
        self._dead.append(slot)

    def _bury_dead(self, now: float, wall: float) -> None:
        dead, self._dead = self._dead, []
        for slot in dead:
            self._hear_last_words(slot)
            claim = slot.counters.read()
            death = self._supervisor.bury(slot, now)
            if slot.state is SlotState.STARTING:
                if not death.stopped or slot.boot_error:
                    self._boot_failed(slot, death)
                continue
            was_expected = death.stopped or (death.exit_code == 0 and not claim.running)
            self._narrator.buried(slot, death, was_expected)
            self._core.died(slot.key, claim, death, wall)
            self._buried.append(slot)

    def _hear_last_words(self, slot: Slot) -> None:
        """Takes in all that a dead consumer sent: results outlive their writer."""
        claim = slot.counters.read()
        if slot.socket in self._selector.get_map():
            self._selector.unregister(slot.socket)
            try:
                while messages := slot.read_messages():
                    for envelope, body in messages:
                        self._hear(slot, envelope, body)
            except (EOFError, OSError, TaskQError):
                pass  # the end, or a frame that it did not finish
        self._selector.unregister(slot.output)
        while True:
            try:
                lines = slot.read_output()
            except OSError:
                break
            if not lines:
                break
            self._tell_output(slot, claim, lines)
        self._tell_output(slot, claim, slot.lines.flush())

    def _boot_failed(self, slot: Slot, death: Death) -> None:
        message, traceback = slot.boot_error or (f"the process {death.describe()}", "")
        fields = {"traceback": traceback} if traceback else {}
        output = list(death.output)
        if not self._is_ready:
            self._guardian.send(msgpack.packb(["failed", int(Exit.APP), f"a consumer could not start: {message}"]))
        self._log.error(
            "consumer.boot_failed", consumer=slot.number, error=message, **fields, **({"output": output} if output else {})
        )

    # -- gather: time

    def _check_times(self, now: float) -> None:
        for key in self._core.time_checks(now):
            slot = self._supervisor.slots[key]
            claim = slot.counters.read()
            match self._core.check_time(key, claim, now):
                case "signal":
                    slot.signal_timeout(claim.number)
                case "kill":
                    slot.timed_out = claim.number
                    slot.kill()

    def _announce(self, now: float) -> None:
        for slot in self._supervisor.slots.values():
            if slot.state is SlotState.STARTING:
                continue
            claim = slot.counters.read()
            if claim.running and claim.number != slot.announced and now - claim.started_at >= _ANNOUNCE_AFTER_S:
                row = self._core.running(slot.key, claim)
                if row is not None:
                    slot.announced = claim.number
                    self._narrator.started(row, slot.key, now)

    def _check_memory(self, _now: float) -> None:
        limit_mb = self._settings.max_memory_mb
        for slot in list(self._supervisor.slots.values()) if limit_mb is not None else ():
            if slot.state is SlotState.READY and _rss_bytes(slot.pid) > (limit_mb or 0) * 1024 * 1024:
                self._supervisor.replace(slot)

    def _run_timers(self, now: float) -> None:
        for function, (every_s, due) in list(self._timers.items()):
            if due <= now:
                self._timers[function] = every_s, now + every_s
                function(now)
        self._narrator.summaries(now)
        self._server.drop_late(now)

    def _prune(self, _now: float) -> None:
        before = time.time() - self._settings.keep_results_s
        removed = self._store.prune(before, self._settings.keep_results, _PRUNE_JOBS)
        if removed:
            self._store.commit()
        every_s = 0.0 if removed == _PRUNE_JOBS else _PRUNE_EVERY_S
        self._timers[self._prune] = _PRUNE_EVERY_S, time.monotonic() + every_s

    # -- commit

    def _collect(self, effects: Effects, now: float) -> None:
        mine = self._effects
        mine.ended += effects.ended
        mine.rescheduled += effects.rescheduled
        mine.done += effects.done
        mine.notes += effects.notes
        mine.retried += effects.retried
        mine.crashed += effects.crashed
        if mine and self._effects_since is None:
            self._effects_since = now

    def _must_commit(self, now: float) -> bool:
        if self._submissions or self._requests or self._buried:
            return True
        if self._effects_since is None:
            return False
        ended = self._effects.ended
        if now - self._effects_since >= _COMMIT_WITHIN_S or len(ended) >= _COMMIT_COUNT:
            return True
        watchers = self._watchers
        return bool(watchers) and any(row.id in watchers for row, _, _ in ended)

    def _commit(self, now: float, wall: float) -> None:
        submissions, self._submissions = self._submissions, []
        try:
            accepted = self._submit(submissions)
            self._settle(wall)
            self._store.commit()
        except StoreFull as error:
            # what ends must still be recorded: take in nothing new, and try that alone
            self._store.rollback()
            self._refuse(submissions, error)
            accepted = []
            self._settle(wall)
            self._store.commit()
        self._committed.append(self._effects)
        self._effects, self._effects_since = Effects(), None
        for slot in self._buried:
            self._supervisor.clear_record(slot)
        self._buried.clear()
        for submission, rows in accepted:
            self._accept(submission, rows, now)

    def _submit(self, submissions: list[_Submission]) -> list[tuple[_Submission, list[JobRow]]]:
        accepted = []
        for submission in submissions:
            ids = [call.id for call in submission.calls]
            try:
                rows = self._store.submit(submission.spec, ids, [call.payload for call in submission.calls])
                accepted.append((submission, rows))
            except EnqueueError as error:
                if isinstance(error, StoreFull):
                    raise
                self._refuse([submission], error)
        return accepted

    def _settle(self, wall: float) -> None:
        effects = self._effects
        if effects.ended or effects.rescheduled:
            self._store.settle(effects.ended, effects.rescheduled, wall)
            self._store.totals.retried += effects.retried
            self._store.totals.crashed += effects.crashed

    def _refuse(self, submissions: Iterable[_Submission], error: TaskQError) -> None:
        for submission in submissions:
            if submission.peer is not None:
                envelope = [Op.ERROR, submission.request, type(error).__name__, str(error)]
                self._server.send(submission.peer, wire.frame(envelope))

    def _accept(self, submission: _Submission, rows: list[JobRow], now: float) -> None:
        self._core.submitted(rows)
        self._narrator.enqueued(rows, now)
        if submission.peer is not None:
            self._server.send(submission.peer, wire.frame([Op.OK, submission.request, len(rows)]))
            if submission.watch:
                known = {row.id for row in rows}
                for call in submission.calls:
                    if call.id in known:
                        self._add_watcher(call.id, submission.peer)
                    else:
                        self._watch(submission.peer, call.id)  # sent again: it may have ended

    # -- answer

    def _answer(self, now: float) -> None:
        requests, self._requests = self._requests, []
        for peer, envelope in requests:
            if not peer.closed:
                self._handle_request(peer, envelope)
        for peer in list(self._server.drained()):
            while peer.deferred and not self._server.is_clogged(peer):
                self._watch(peer, peer.deferred.popleft())
        committed, self._committed = self._committed, []
        for effects in committed:
            self._tell(effects, now)

    def _tell(self, effects: Effects, now: float) -> None:
        """Tells clients and the log what is durable now."""
        if self._watchers:
            for row, kept, outcome in effects.ended:
                for peer in self._watchers.pop(row.id, ()):
                    peer.watched.discard(row.id)
                    self._push(peer, row.id, kept, outcome)
        for change in effects.rescheduled:
            if change.due_at is not None:
                self._next_due = change.due_at if self._next_due is None else min(self._next_due, change.due_at)
        self._narrator.notes(effects.notes)
        self._narrator.successes(effects.done, now)

    def _push(self, peer: Peer, job_id: bytes, kept: Kept, outcome: bytes) -> None:
        if self._server.is_clogged(peer):
            peer.deferred.append(job_id)  # read from the store again when the client has read what it was sent
        else:
            self._server.send(peer, wire.frame([Op.RESULT, job_id, kept.state.value], [outcome]))

    def _handle_request(self, peer: Peer, envelope: list[Any]) -> None:
        request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            match envelope:
                case [Op.WATCH, bytes(ids)] if len(ids) % 16 == 0:
                    for start in range(0, len(ids), 16):
                        self._watch(peer, ids[start : start + 16])
                    return
                case [Op.INFO, int(), bytes(job_id)]:
                    value: Any = self._info(job_id)
                case [Op.CANCEL, int(), bytes(job_id)]:
                    value = self._cancel(job_id)
                case [Op.STATUS, int()]:
                    value = self._status()
                case [Op.STOP, int()]:
                    self._begin_stop("taskq stop")
                    value = True
                case [Op.RELOAD, int()]:
                    self._reload()
                    value = True
                case _:
                    self._server.reject(peer, ProtocolError(f"no such request: {str(envelope[0]):.20}"))
                    return
        except TaskQError as error:
            self._server.send(peer, wire.frame([Op.ERROR, request, type(error).__name__, str(error)]))
            return
        self._server.send(peer, wire.frame([Op.OK, request, None], [msgpack.packb(value)]))

    def _find(self, job_id: bytes) -> StoredJob | None:
        stored = self._store.read(job_id)
        if stored is None:
            self._take_spooled(time.monotonic())
            if self._submissions:
                self._commit(time.monotonic(), time.time())
                stored = self._store.read(job_id)
        return stored

    def _watch(self, peer: Peer, job_id: bytes) -> None:
        stored = self._find(job_id)
        if stored is None:
            self._server.send(peer, wire.frame([Op.RESULT, job_id, ""]))
        elif stored.kept >= FIRST_FINAL:
            self._push(peer, job_id, stored.kept, stored.outcome or b"")
        else:
            self._add_watcher(job_id, peer)

    def _add_watcher(self, job_id: bytes, peer: Peer) -> None:
        if not peer.closed:
            self._watchers.setdefault(job_id, set()).add(peer)
            peer.watched.add(job_id)

    def _info(self, job_id: bytes) -> list[Any]:
        row, kept, due_at, outcome, finished_at = self._stored(job_id)
        state, started_at, attempts = kept.state, None, row.attempts
        if kept == Kept.QUEUED:
            claims = {slot.key: slot.counters.read() for slot in self._ready_slots()}
            state = self._core.state_of(row, claims)
            key = self._core.holder_of(job_id)
            if state == JobState.RUNNING and key is not None:
                started_at = time.time() - (time.monotonic() - claims[key].started_at)
                attempts += 1
        spec = row.spec
        return [spec.task, spec.queue, state.value, attempts, row.crashes, due_at, started_at, finished_at, outcome]

    def _stored(self, job_id: bytes) -> StoredJob:
        stored = self._find(job_id)
        if stored is None:
            raise JobNotFound(f"job {job_id.hex()} is not known here: it never was, or it is no longer kept")
        return stored

    def _cancel(self, job_id: bytes) -> bool:
        row, kept, *_ = self._stored(job_id)
        if kept >= FIRST_FINAL:
            return kept == Kept.CANCELLED
        key = self._core.holder_of(job_id)
        if key is not None:
            self._take_back(key, time.monotonic())
            if self._core.holder_of(job_id) is not None:
                return False  # it runs
        self._core.cancelled(row, kept)
        self._collect(self._core.take_effects(), time.monotonic())
        self._commit(time.monotonic(), time.time())
        return True

    # -- dispatch

    def _come_due(self, wall: float) -> None:
        if self._next_due is not None and self._next_due <= wall:
            rows = self._store.lease_due(wall, 1_000)
            self._store.commit()
            self._core.came_due(rows)
            self._next_due = self._store.next_due()

    def _dispatch(self, now: float) -> None:
        if self._stop_at is not None:
            return
        for load in self._core.loads():
            rows, is_all = self._store.lease(*load)
            self._core.loaded(load.queue, rows, is_all)
        for key in self._core.recalls(now):
            self._take_back(key, now)
        for batch in self._core.dispatch(now):
            self._supervisor.slots[batch.key].send(batch)

    def _take_back(self, key: int, now: float) -> None:
        claimed = self._supervisor.slots[key].counters.take_back(self._core.sent(key))
        if claimed is not None:
            self._core.recalled(key, claimed, now)

    # -- the fleet

    def _supervise(self, now: float) -> None:
        for slot in self._supervisor.start_due(now):
            self._register(slot)
        for slot in self._supervisor.kill_overdue(now):
            self._log.warning("consumer.killed", consumer=slot.number, pid=slot.pid, reason="it did not start or end in time")
        if self._settings.drain and self._stop_at is None and self._is_ready and not self._has_work():
            self._begin_stop("drained")
        if self._stop_at is not None and now >= self._stop_at:
            self._stop_at = now + 60.0
            self._kill_all()

    def _has_work(self) -> bool:
        return self._core.has_work or self._next_due is not None or bool(self._submissions) or bool(self._effects)

    def _retire(self, slot: Slot) -> None:
        self._core.retire(slot.key)
        self._take_back(slot.key, time.monotonic())
        self._supervisor.retire(slot)
        if self._core.holds_nothing(slot.key):
            self._supervisor.expect_exit(slot, time.monotonic())

    def _ready_slots(self) -> list[Slot]:
        return [slot for slot in self._supervisor.slots.values() if slot.state is not SlotState.STARTING]

    def _reload(self) -> None:
        self._log.info("fleet.reloading")
        self._supervisor.reload()

    def _begin_stop(self, reason: str) -> None:
        if self._stop_at is not None:
            self._stop_at = time.monotonic()  # asked twice: do not wait for running jobs
            return
        timeout_s = self._settings.stop_timeout_s
        self._stop_at = time.monotonic() + timeout_s
        running = sum(1 for slot in self._ready_slots() if slot.counters.read().running)
        self._log.info("fleet.stopping", reason=reason, running=running, timeout_s=timeout_s)
        self._supervisor.stop()
        for slot in list(self._supervisor.slots.values()):
            if slot.state is SlotState.READY:
                self._retire(slot)
            elif slot.state is SlotState.STARTING:
                slot.is_stopped = True
                slot.kill()

    def _kill_all(self) -> None:
        for slot in self._supervisor.slots.values():
            slot.is_stopped = True
            slot.kill()

    def _on_signals(self, _mask: int) -> None:
        try:
            numbers = self._signal_sockets[0].recv(64)
        except BlockingIOError:
            return
        for number in numbers:
            if number == signal.SIGHUP:
                self._reload()
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._begin_stop(signal.Signals(number).name)

    def _on_guardian_gone(self, _mask: int) -> None:
        if self._guardian.recv(64):
            return
        self._selector.unregister(self._guardian)
        self._log.error("fleet.stopping", reason="the guardian died")
        self._begin_stop("the guardian died")
        self._stop_at = time.monotonic()

    def _take_spooled(self, now: float) -> None:
        for path, content in spool.spooled(self._directory.spool):
            try:
                [(envelope, body)] = wire.Decoder().feed(content)
                submission = _submission(None, envelope, body)
            except (TaskQError, ValueError) as error:
                kept = spool.set_aside(path)
                self._log.error("spool.unreadable", path=str(kept), error=str(error))
                continue
            self._submissions.append(submission)
            self._commit(now, time.time())
            path.unlink(missing_ok=True)
            self._log.info("spool.taken", jobs=len(submission.calls), task=submission.spec.task)

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        leased = self._core.leased()
        queues: dict[str, dict[str, int]] = {}
        for name, waiting in self._core.counts().items():
            queues[name] = {"scheduled": 0, "queued": waiting, "running": 0}
        for name, counts in self._store.counts().items():
            queues.setdefault(name, {"scheduled": 0, "queued": 0, "running": 0})
            queues[name]["scheduled"] = counts.get(Kept.SCHEDULED, 0)
        consumers = []
        for slot in self._supervisor.slots.values():
            claim = slot.counters.read()
            jobs = dict(leased.get(slot.key, ()))
            row = jobs.get(claim.number) if claim.running else None
            for number, job in jobs.items():
                is_running = claim.running and number == claim.number
                queues[job.spec.queue]["running" if is_running else "queued"] += 1
            state = slot.state.name.lower() if slot.state is not SlotState.READY else "running" if row else "idle"
            consumers.append(
                {
                    "number": slot.number,
                    "pid": slot.pid,
                    "state": state,
                    "job_id": row.id.hex() if row else None,
                    "task": row.spec.task if row else None,
                    "running_s": round(now - claim.started_at, 3) if row else None,
                    "rss_bytes": _rss_bytes(slot.pid),
                    "jobs_done": slot.counters.jobs_done,
                    "busy_s": round(slot.counters.busy_s, 3),
                }
            )
        return {
            "broker": {
                "pid": os.getpid(),
                "uptime_s": round(time.time() - self._started_at, 3),
                "directory": str(self._directory.path),
                "rss_bytes": _rss_bytes(os.getpid()),
                "state": "running" if self._stop_at is None else "stopping",
                "restarts_of_consumers": self._supervisor.restarts,
            },
            "queues": queues,
            "totals": self._store.totals.as_dict(),
            "consumers": sorted(consumers, key=lambda consumer: consumer["number"]),
        }

    # -- the end

    def _close(self) -> None:
        now = time.monotonic()
        self._collect(self._core.take_effects(), now)
        self._commit(now, time.time())
        self._answer(now)
        self._narrator.summaries(now, is_last=True)
        self._server.shut()
        self._store.close()
        self._log.info("fleet.stopped", waiting=sum(self._core.counts().values()), **self._store.totals.as_dict())


def _submission(peer: Peer | None, envelope: list[Any], body: memoryview) -> _Submission:
    """Reads a submit frame.

    Raises:
        ProtocolError, ConfigError: it makes no sense.
    """
    match envelope:
        case [Op.SUBMIT, int(request), list(spec), bool(), bool(watch), bytes(ids), list(lengths)]:
            if not ids or len(ids) != 16 * len(lengths):
                raise ProtocolError("a submit frame must have an id of 16 bytes for each payload")
            payloads = wire.split(body, lengths)
            calls = [Call(ids[16 * index : 16 * index + 16], payload) for index, payload in enumerate(payloads)]
            try:
                return _Submission(peer, request, watch, Spec.from_wire(spec), calls)
            except (TypeError, ConfigError) as error:
                raise ConfigError(str(error)) from error
    raise ProtocolError("a submit frame of another form")


def _check_filesystem(directory: Directory) -> None:
    kind = directory.filesystem()
    if kind in UNSAFE_FILESYSTEMS:
        raise DirectoryError(
            f"{directory.path} is on {kind}, where a journal is not safe (its locks or syncs may do nothing): "
            "choose a local disk with TASKQ_URL"
        )


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
