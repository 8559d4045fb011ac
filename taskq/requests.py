"""What clients ask of the broker besides handing in jobs: the state of one, to cancel it, the state of the fleet."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import msgpack

from taskq import wire
from taskq.config import Directory
from taskq.core import Core
from taskq.crew import Crew
from taskq.errors import JobNotFound, ProtocolError, StoreFull, TaskQError
from taskq.ledger import Ledger
from taskq.model import JobState, Spec
from taskq.server import Peer, Server
from taskq.store import FIRST_FINAL, Kept, Store
from taskq.supervisor import Slot, SlotState, Supervisor
from taskq.wire import Op


class Requests:
    """Answers requests. Used by the broker's loop alone, when everything before them is committed."""

    def __init__(
        self,
        directory: Directory,
        core: Core,
        store: Store,
        ledger: Ledger,
        crew: Crew,
        supervisor: Supervisor,
        server: Server,
        on_stop: Callable[[str], None],
        on_reload: Callable[[], None],
    ) -> None:
        """
        Args:
            on_stop: stops the fleet; told who asked.
            on_reload: replaces the consumers.
        """
        self._directory = directory
        self._core = core
        self._store = store
        self._ledger = ledger
        self._crew = crew
        self._supervisor = supervisor
        self._server = server
        self._on_stop = on_stop
        self._on_reload = on_reload
        self._started_at = time.time()

    def answer(self, peer: Peer, envelope: list[Any]) -> None:
        """Answers one request."""
        request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            match envelope:
                case [Op.WATCH, bytes(ids)] if len(ids) % 16 == 0:
                    self._ledger.watch(peer, [ids[start : start + 16] for start in range(0, len(ids), 16)])
                    return
                case [Op.INFO, int(), bytes(job_id)] if len(job_id) == 16:
                    value: Any = self._info(job_id)
                case [Op.CANCEL, int(), bytes(job_id)] if len(job_id) == 16:
                    value = self._cancel(job_id)
                case [Op.STATUS, int()]:
                    value = self._status()
                case [Op.STOP, int()]:
                    self._on_stop("taskq stop")
                    value = True
                case [Op.RELOAD, int()]:
                    self._on_reload()
                    value = True
                case _:
                    self._server.reject(peer, ProtocolError(f"no such request: {envelope[0]!s:.20}"))
                    return
        except TaskQError as error:
            self._server.send(peer, wire.error_frame(request, error))
            return
        self._server.send(peer, wire.frame([Op.OK, request, None], [msgpack.packb(value)]))

    def _info(self, job_id: bytes) -> list[Any]:
        stored = self._ledger.find(job_id)
        if stored is None:
            spec = self._spec_in_spool(job_id)
            return [spec.task, spec.queue, JobState.QUEUED.value, 0, 0, None, None, None, None, None]
        row, kept, due_at, outcome, finished_at = stored
        state, started_at, attempts, progress = kept.state, None, row.attempts, None
        if kept == Kept.QUEUED:
            claims = self._crew.claims()
            state = self._core.state_of(row, claims)
            key = self._core.holder_of(job_id)
            if state == JobState.RUNNING and key is not None:
                started_at = time.time() - (time.monotonic() - claims[key].started_at)
                attempts += 1
                progress = _progress_fields(self._supervisor.slots[key], job_id)
        spec, counts, times = row.spec, (attempts, row.crashes), (due_at, started_at, finished_at)
        return [spec.task, spec.queue, state.value, *counts, *times, outcome, progress]

    def _spec_in_spool(self, job_id: bytes) -> Spec:
        """The spec of a job that is not in the journal, since the disk is full.

        Raises:
            JobNotFound: nor does it wait in the spool.
        """
        spec = self._ledger.spec_in_spool(job_id)
        if spec is None:
            raise JobNotFound.of(job_id)
        return spec

    def _cancel(self, job_id: bytes) -> bool:
        stored = self._ledger.find(job_id)
        if stored is None:
            self._spec_in_spool(job_id)
            raise StoreFull("the disk that holds the journal is full: the job can be cancelled when there is room")
        row, kept, *_ = stored
        if kept >= FIRST_FINAL:
            return kept == Kept.CANCELLED
        if not self._crew.withdraw(job_id):
            return False  # it runs
        self._core.cancelled(row, kept)
        self._ledger.collect(time.monotonic())
        self._ledger.commit(time.monotonic(), time.time())
        if not self._ledger.is_settled:
            raise StoreFull("the disk that holds the journal is full: the job is cancelled when there is room")
        return True

    def _status(self) -> dict[str, Any]:
        consumers = [self._consumer(slot) for slot in self._supervisor.slots.values()]
        return {
            "broker": {
                "pid": os.getpid(),
                "uptime_s": round(time.time() - self._started_at, 3),
                "directory": str(self._directory.path),
                "rss_bytes": rss_bytes(os.getpid()),
                "state": "stopping" if self._crew.is_stopping else "running",
                "restarts_of_consumers": self._supervisor.restarts,
            },
            "queues": self._queues(),
            "totals": self._store.totals.as_dict(),
            "consumers": sorted(consumers, key=lambda consumer: int(consumer["number"])),
        }

    def _queues(self) -> dict[str, dict[str, int]]:
        """Counts jobs by queue and state. A job that was sent to a consumer and has not started is queued."""
        claims = self._crew.claims()
        queues = {name: {"scheduled": 0, "queued": count, "running": 0} for name, count in self._core.counts().items()}
        for name, scheduled in self._store.counts(Kept.SCHEDULED).items():
            queue = queues.setdefault(name, {"scheduled": 0, "queued": 0, "running": 0})
            queue["scheduled"] = scheduled
        for key, jobs in self._core.leased().items():
            claim = claims[key]
            for number, row in jobs:
                is_running = claim.running and number == claim.number
                queues[row.spec.queue]["running" if is_running else "queued"] += 1
        return queues

    def _consumer(self, slot: Slot) -> dict[str, Any]:
        claim = slot.counters.read()
        row = None if slot.state is SlotState.STARTING else self._core.running(slot.key, claim)
        state = slot.state.name.lower() if slot.state is not SlotState.READY else "running" if row else "idle"
        return {
            "number": slot.number,
            "pid": slot.pid,
            "state": state,
            "job_id": row.id.hex() if row else None,
            "task": row.spec.task if row else None,
            "running_s": round(time.monotonic() - claim.started_at, 3) if row else None,
            "progress": _progress_fields(slot, row.id) if row else None,
            "rss_bytes": rss_bytes(slot.pid),
            "jobs_done": slot.counters.jobs_done,
            "busy_s": round(slot.counters.busy_s, 3),
        }


def _progress_fields(slot: Slot, job_id: bytes) -> tuple[float, float | None, str] | None:
    progress = slot.progress.get(job_id)
    return None if progress is None else (progress.done, progress.total, progress.note)


def rss_bytes(pid: int) -> int:
    """The resident memory of a process; 0 if it is gone."""
    import psutil  # takes 17 ms: a fleet starts without it

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
