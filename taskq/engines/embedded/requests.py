"""What clients ask of the broker besides handing in jobs: the state of one, to cancel it, the state of the fleet.

Requests about many jobs: `taskq.engines.embedded.admin`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import msgpack

from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.server import Peer, Server
from taskq.model.errors import ConfigError, JobNotFound, JobStateError, ProtocolError, StoreFull, TaskQError
from taskq.model.job import LAST_TIME, JobRow, JobState
from taskq.model.schedule import Schedule
from taskq.model.spec import QUEUE_NAME, Spec
from taskq.model.stored import FIRST_FINAL, StoredState
from taskq.protocol import frames
from taskq.protocol.ops import Op
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory

if TYPE_CHECKING:  # the fleet half hands itself in: nothing of it is imported
    from taskq.broker.consumers.handle import ConsumerProcess
    from taskq.broker.consumers.pool import ConsumerPool
    from taskq.broker.consumers.supervisor import Supervisor
    from taskq.broker.core.core import Core

#: Who asked for a pause, as the log tells it.
_MAX_BY_CHARS = 200
#: What is asked about a job that waits in the spool is put off so long; clients wait for an answer a little longer.
_SPOOLED_WAIT_S = 2.0


class Requests:
    """Answers requests. Used by the broker's loop alone, when everything before them is committed."""

    def __init__(
        self,
        directory: Directory,
        core: Core,
        store: Store,
        committer: Committer,
        pool: ConsumerPool,
        supervisor: Supervisor,
        server: Server,
        scheduler: Scheduler,
        on_stop: Callable[[str], None],
        on_reload: Callable[[], int],
        log: Any,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            on_stop: stops the fleet; told who asked.
            on_reload: replaces the consumers; returns the number of that reload.
            log: a structlog logger.
        """
        self._directory = directory
        self._core = core
        self._store = store
        self._committer = committer
        self._pool = pool
        self._supervisor = supervisor
        self._server = server
        self._scheduler = scheduler
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._log = log
        self._clock = clock
        self._bulk = Admin(core, store, committer, pool, log, clock)
        self._put_off: list[tuple[bytes, float, Peer, list[Any]]] = []  # about jobs in the spool, and until when
        self._started_at = clock.time()

    def put_off(self, now: float) -> list[tuple[Peer, list[Any]]]:
        """Requests to be answered now that the jobs which they are about have come out of the spool, or all have."""
        waiting, self._put_off = self._put_off, []
        ready: list[tuple[Peer, list[Any]]] = []
        for job_id, until, peer, envelope in waiting:
            if not self._committer.has_more_spooled or self._store.read(job_id) is not None:
                ready.append((peer, envelope))
            elif until > now:
                self._put_off.append((job_id, until, peer, envelope))
            else:
                told = f"job {job_id.hex()} still waits in the spool, behind many others: try again in a moment"
                self._server.send(peer, frames.error_frame(envelope[1], JobStateError(told)))
        return ready

    def answer(self, peer: Peer, envelope: list[Any]) -> None:
        """Answers one request; one about a job that waits in the spool, behind many others, later."""
        request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            match envelope:
                case [Op.WATCH, bytes(ids)] if len(ids) % 16 == 0:
                    self._committer.watch(peer, [ids[start : start + 16] for start in range(0, len(ids), 16)])
                    return
                case [Op.READ_ITEMS, int(), bytes(job_id), int(start)] if len(job_id) == 16 and 0 <= start < 1 << 62:
                    self._committer.read_items(peer, request, job_id, start)
                    return
                case [Op.INFO, int(), bytes(job_id)] if len(job_id) == 16:
                    value: Any = self._info(job_id)
                case [Op.CANCEL, int(), bytes(job_id), bool(also_running)] if len(job_id) == 16:
                    value = self._cancel(job_id, also_running)
                case [Op.JOBS, int(), str() | None, str() | None, str() | None, before, int()] if _is_place(before):
                    value = self._bulk.jobs(*envelope[2:])
                case [Op.RETRY, int(), bytes(job_id)] if len(job_id) == 16:
                    value = self._bulk.retry_one(job_id)
                case [Op.RETRY_ALL, int(), str() | None, str() | None, span] if _is_span(span):
                    value = self._bulk.retry(*envelope[2:])
                case [Op.PURGE, int(), bytes(job_id)] if len(job_id) == 16:
                    value = self._bulk.purge_one(job_id)
                case [Op.PURGE_ALL, int(), str(), str() | None, str() | None, before, span] if _is_time(
                    before
                ) and _is_span(span):
                    value = self._bulk.purge(*envelope[2:])
                case [Op.PAUSE, int(), list(queues), bool(is_paused), str(by)]:
                    value = self._pause(queues, is_paused, by)
                case [Op.STATUS, int()]:
                    value = self._status()
                case [Op.STOP, int()]:
                    self._on_stop("taskq stop")
                    value = True
                case [Op.RELOAD, int()]:
                    if self._pool.is_stopping:
                        raise TaskQError("the fleet is stopping; the next one starts with the present code")
                    value = self._on_reload()
                case [
                    Op.SCHEDULES | Op.PUT_SCHEDULE | Op.REMOVE_SCHEDULE | Op.PAUSE_SCHEDULE | Op.RUN_SCHEDULE,
                    int(),
                    *fields,
                ]:
                    value = self._schedule(envelope[0], fields)
                case _:
                    self._server.reject(peer, ProtocolError(f"no such request: {envelope[0]!s:.20}"))
                    return
        except StillSpooled as late:
            wait_s = inf if envelope[0] == Op.READ_ITEMS else _SPOOLED_WAIT_S
            self._put_off.append((late.job_id, self._clock.monotonic() + wait_s, peer, envelope))
            return
        except TaskQError as error:
            self._server.send(peer, frames.error_frame(request, error))
            return
        self._server.send(peer, frames.frame([Op.OK, request, None], [msgpack.packb(value)]))

    def _info(self, job_id: bytes) -> list[Any]:
        with suppress(StillSpooled):
            if self._committer.find(job_id) is not None:
                return self._bulk.info(job_id)
        spec = self._spec_in_spool(job_id)
        times = None, None, None
        return [job_id, spec.task, spec.queue, JobState.QUEUED.value, 0, 0, *times, None, None, [], [], []]

    def _spec_in_spool(self, job_id: bytes) -> Spec:
        """The spec of a job that is not in the journal: the disk is full, or many are to be taken in before it.

        Raises:
            JobNotFound: nor does it wait in the spool.
        """
        spec = self._committer.spec_in_spool(job_id)
        if spec is None:
            raise JobNotFound.of(job_id)
        return spec

    def _cancel(self, job_id: bytes, also_running: bool) -> bool | None:
        """Returns whether the job is cancelled now; None: it runs, and is being stopped."""
        stored = self._committer.find(job_id)
        if stored is None:
            self._spec_in_spool(job_id)
            raise StoreFull("the disk that holds the journal is full: the job can be cancelled when there is room")
        row, kept, *_ = stored
        if kept == StoredState.CANCELLED:
            self._keep_off(row)
        if kept >= FIRST_FINAL:
            return kept == StoredState.CANCELLED
        if not self._committer.is_settled:
            raise StoreFull("the disk that holds the journal is full: the job can be cancelled when there is room")
        if not self._pool.withdraw(job_id):
            if not also_running:
                return False
            self._pool.cancel_running(job_id)
            return None
        self._core.cancelled(row, kept)
        self._committer.collect(self._clock.monotonic())
        self._committer.commit(self._clock.monotonic(), self._clock.time())
        if not self._committer.is_settled:
            raise StoreFull("the disk that holds the journal is full: the job is cancelled when there is room")
        return True

    def _keep_off(self, row: JobRow) -> None:
        """A job that was cancelled because of another would come back with that one."""
        if row.constraints is None or not row.constraints.follows:
            return
        try:
            self._store.keep_off(row)
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise

    def _pause(self, queues: list[Any], is_paused: bool, by: str) -> list[str]:
        """Pauses or resumes queues; returns those for which that is a change."""
        for queue in queues:
            if not isinstance(queue, str) or not QUEUE_NAME.match(queue):
                raise ConfigError(f"{queue!r:.80} is no queue's name")
        paused = self._store.paused()
        changed = sorted(set(queues) - paused if is_paused else paused & set(queues or paused))
        try:
            self._store.pause(changed, is_paused)
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise
        self._core.pause(self._store.paused())
        if is_paused and changed:
            self._pool.take_back_all(self._clock.monotonic())
        for queue in changed:
            self._log.info("queue.paused" if is_paused else "queue.resumed", queue=queue, by=by[:_MAX_BY_CHARS])
        return changed

    def _schedule(self, op: int, fields: list[Any]) -> Any:
        scheduler, now, wall = self._scheduler, self._clock.monotonic(), self._clock.time()
        match op, *fields:
            case [Op.SCHEDULES]:
                return scheduler.infos()
            case [Op.PUT_SCHEDULE, list(schedule)]:
                return scheduler.put(Schedule.from_wire(schedule), now, wall)
            case [Op.REMOVE_SCHEDULE, str(name)]:
                return scheduler.remove(name, now, wall)
            case [Op.PAUSE_SCHEDULE, str(name), bool(is_paused)]:
                return scheduler.pause(name, is_paused, now, wall)
            case [Op.RUN_SCHEDULE, str(name), bytes(job_id)] if len(job_id) == 16:
                return scheduler.run(name, job_id, now, wall)
        raise ProtocolError("a request about schedules of another form")

    def _status(self) -> dict[str, Any]:
        consumers = [self._consumer(consumer) for consumer in self._supervisor.consumers.values()]
        return {
            "broker": self._broker(),
            "reload": {
                "number": self._supervisor.code,
                "state": self._supervisor.reload_state,
                "error": self._supervisor.reload_error,
            },
            "queues": self._queues(),
            "paused": sorted(self._store.paused()),
            "totals": self._store.totals.as_dict(),
            "consumers": sorted(consumers, key=lambda consumer: int(consumer["number"])),
        }

    def _broker(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "uptime_s": round(self._clock.time() - self._started_at, 3),
            "directory": str(self._directory.path),
            "rss_bytes": rss_bytes(os.getpid()),
            "state": "stopping" if self._pool.is_stopping else "running",
            "restarts_of_consumers": self._supervisor.restarts,
        }

    def _queues(self) -> dict[str, dict[str, int]]:
        """Counts jobs by queue and state. A job that was sent to a consumer and has not started is queued."""
        claims = self._pool.claims()
        none = {"waiting": 0, "scheduled": 0, "queued": 0, "running": 0}
        queues = {name: {**none, "queued": count} for name, count in self._core.counts().items()}
        for kept in (StoredState.WAITING, StoredState.SCHEDULED):
            for name, count in self._store.counts(kept).items():
                queues.setdefault(name, none.copy())[kept.state.value] = count
        for key, jobs in self._core.leased().items():
            running = {claim.number for claim in claims[key]}
            for number, row in jobs:
                queues[row.spec.queue]["running" if number in running else "queued"] += 1
        return queues

    def _consumer(self, consumer: ConsumerProcess) -> dict[str, Any]:
        claims = sorted(consumer.counters.read(), key=lambda claim: claim.started_at)
        told = [(claim, row) for claim in claims if (row := self._core.running(consumer.key, claim.number))]
        claim, row = told[0] if told else (None, None)  # the one that has been running for the longest time
        now = self._clock.monotonic()
        state = consumer.state.name.lower()
        if state == "ready":
            state = "running" if row else "idle"
        return {
            "number": consumer.number,
            "pid": consumer.pid,
            "state": state,
            "has_old_code": self._supervisor.is_old(consumer),
            "running": len(told),
            "seats": consumer.counters.slots,
            "job_id": row.id.hex() if row else None,
            "task": row.spec.task if row else None,
            "running_s": round(now - claim.started_at, 3) if claim else None,
            "progress": self._pool.progress_of(row.id) if row else None,
            "rss_bytes": rss_bytes(consumer.pid),
            "jobs_done": consumer.counters.jobs_done,
            "busy_s": round(consumer.counters.busy_s + sum(now - each.started_at for each in claims), 3),
        }


def _is_place(before: object) -> bool:
    return before is None or (isinstance(before, bytes) and len(before) == 16) or _is_seq(before)


def _is_span(span: object) -> bool:
    return span is None or (isinstance(span, list) and len(span) == 2 and all(map(_is_seq, span)))


def _is_time(at: object) -> bool:
    return at is None or (isinstance(at, (int, float)) and 0 <= at < LAST_TIME)


def _is_seq(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it is gone."""
    import psutil  # takes 17 ms: a fleet starts without it

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
