"""The requests of clients other than submitting jobs: each goes to the part that answers it.

About jobs and queues: `taskq.engines.embedded.admin`. About schedules: `taskq.engines.embedded.scheduler`. About the
fleet: `FleetControls`, which the fleet hands in.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.server import Peer
from taskq.model.errors import JobStateError, ProtocolError, TaskQError
from taskq.model.info.status import FleetStatus
from taskq.model.job import LAST_TIME
from taskq.model.schedule import Schedule
from taskq.protocol import frames
from taskq.protocol.answers import ok_frame
from taskq.protocol.endings import watched_ids
from taskq.protocol.ops import Op
from taskq.protocol.schedules import schedule_value
from taskq.protocol.status import status_value
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: What is asked about a job that waits in the spool is put off so long; clients wait for an answer a little longer.
_SPOOLED_WAIT_S = 2.0


class FleetControls(NamedTuple):
    """What clients may ask of the fleet around the queue.

    Attributes:
        status: draws its status.
        stop: stops it; told who asked.
        reload: replaces the consumers; returns the number of that reload.
    """

    status: Callable[[], FleetStatus]
    stop: Callable[[str], None]
    reload: Callable[[], int]


class Requests:
    """Answers requests. Used by the broker's loop alone, when everything before them is committed."""

    def __init__(
        self,
        clients: Clients,
        committer: Committer,
        admin: Admin,
        scheduler: Scheduler,
        fleet: FleetControls,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            clients: where the answers go.
        """
        self._clients = clients
        self._committer = committer
        self._admin = admin
        self._scheduler = scheduler
        self._fleet = fleet
        self._clock = clock
        self._put_off: list[tuple[bytes, float, Peer, list[Any]]] = []  # about jobs in the spool, and until when

    def put_off(self, now: float) -> list[tuple[Peer, list[Any]]]:
        """Requests to be answered now that the jobs which they are about have come out of the spool, or all have."""
        waiting, self._put_off = self._put_off, []
        ready: list[tuple[Peer, list[Any]]] = []
        for job_id, until, peer, envelope in waiting:
            if not self._committer.has_more_spooled or self._admin.is_stored(job_id):
                ready.append((peer, envelope))
            elif until > now:
                self._put_off.append((job_id, until, peer, envelope))
            else:
                told = f"job {job_id.hex()} still waits in the spool, behind many others: try again in a moment"
                self._clients.send(peer, frames.error_frame(envelope[1], JobStateError(told)))
        return ready

    def answer(self, peer: Peer, envelope: list[Any]) -> None:
        """Answers one request; one about a job that waits in the spool, behind many others, later."""
        request = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            match envelope:
                case [Op.WATCH, bytes(ids)] if len(ids) % 16 == 0:
                    self._committer.watch(peer, watched_ids(ids))
                    return
                case [Op.READ_ITEMS, int(), bytes(job_id), int(start)] if len(job_id) == 16 and 0 <= start < 1 << 62:
                    self._committer.read_items(peer, request, job_id, start)
                    return
                case [Op.INFO, int(), bytes(job_id)] if len(job_id) == 16:
                    value: Any = self._admin.info(job_id)
                case [Op.CANCEL, int(), bytes(job_id), bool(also_running)] if len(job_id) == 16:
                    value = self._admin.cancel(job_id, also_running)
                case [Op.JOBS, int(), str() | None, str() | None, str() | None, before, int()] if _is_place(before):
                    value = self._admin.jobs(*envelope[2:])
                case [Op.RETRY, int(), bytes(job_id)] if len(job_id) == 16:
                    value = self._admin.retry_one(job_id)
                case [Op.RETRY_ALL, int(), str() | None, str() | None, span] if _is_span(span):
                    value = self._admin.retry(*envelope[2:])
                case [Op.PURGE, int(), bytes(job_id)] if len(job_id) == 16:
                    value = self._admin.purge_one(job_id)
                case [Op.PURGE_ALL, int(), str(), str() | None, str() | None, before, span] if _is_time(
                    before
                ) and _is_span(span):
                    value = self._admin.purge(*envelope[2:])
                case [Op.PAUSE, int(), list(queues), bool(is_paused), str(by)]:
                    value = self._admin.pause(queues, is_paused, by)
                case [Op.STATUS, int()]:
                    value = status_value(self._fleet.status())
                case [Op.STOP, int()]:
                    self._fleet.stop("taskq stop")
                    value = True
                case [Op.RELOAD, int()]:
                    value = self._fleet.reload()
                case [
                    Op.SCHEDULES | Op.PUT_SCHEDULE | Op.REMOVE_SCHEDULE | Op.PAUSE_SCHEDULE | Op.RUN_SCHEDULE,
                    int(),
                    *fields,
                ]:
                    value = self._schedule(envelope[0], fields)
                case _:
                    self._clients.reject(peer, ProtocolError(f"no such request: {envelope[0]!s:.20}"))
                    return
        except StillSpooled as late:
            wait_s = inf if envelope[0] == Op.READ_ITEMS else _SPOOLED_WAIT_S
            self._put_off.append((late.job_id, self._clock.monotonic() + wait_s, peer, envelope))
            return
        except TaskQError as error:
            self._clients.send(peer, frames.error_frame(request, error))
            return
        self._clients.send(peer, ok_frame(request, value))

    def _schedule(self, op: int, fields: list[Any]) -> Any:
        scheduler, now, wall = self._scheduler, self._clock.monotonic(), self._clock.time()
        match op, *fields:
            case [Op.SCHEDULES]:
                return [schedule_value(info) for info in scheduler.infos()]
            case [Op.PUT_SCHEDULE, list(schedule)]:
                return schedule_value(scheduler.put(Schedule.from_wire(schedule), now, wall))
            case [Op.REMOVE_SCHEDULE, str(name)]:
                return scheduler.remove(name, now, wall)
            case [Op.PAUSE_SCHEDULE, str(name), bool(is_paused)]:
                return schedule_value(scheduler.pause(name, is_paused, now, wall))
            case [Op.RUN_SCHEDULE, str(name), bytes(job_id)] if len(job_id) == 16:
                return scheduler.run(name, job_id, now, wall)
        raise ProtocolError("a request about schedules of another form")


def _is_place(before: object) -> bool:
    return before is None or (isinstance(before, bytes) and len(before) == 16) or _is_seq(before)


def _is_span(span: object) -> bool:
    return span is None or (isinstance(span, list) and len(span) == 2 and all(map(_is_seq, span)))


def _is_time(at: object) -> bool:
    return at is None or (isinstance(at, (int, float)) and 0 <= at < LAST_TIME)


def _is_seq(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
