"""The requests of clients other than submitting jobs: each goes to the part that answers it.

About jobs and queues: `taskq.engines.embedded.admin`. About schedules: `taskq.engines.embedded.scheduler`. About the
fleet: `FleetControl`, which the fleet hands in.
"""

from __future__ import annotations

from math import inf
from typing import Any

from taskq.engines.contract import FleetControl
from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.server import Peer
from taskq.model.errors import JobStateError, ProtocolError, TaskQError
from taskq.model.schedule import Schedule
from taskq.protocol import frames
from taskq.protocol.answers import ok_frame
from taskq.protocol.counts import counts_value
from taskq.protocol.requests import (
    CancelJob,
    GetCounts,
    GetJob,
    GetStatus,
    ListJobs,
    ListSchedules,
    PauseQueues,
    PauseSchedule,
    PurgeJob,
    PurgeJobs,
    PutSchedule,
    ReadItems,
    ReloadFleet,
    RemoveSchedule,
    Request,
    RetryJob,
    RetryJobs,
    RunSchedule,
    StopFleet,
    Watch,
    read_request,
)
from taskq.protocol.schedules import schedule_value
from taskq.protocol.status import status_value
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: What is asked about a job that waits in the spool is put off so long; clients wait for an answer a little longer.
_SPOOLED_WAIT_S = 2.0


class Requests:
    """Answers requests. Used by the broker's loop alone, when everything before them is committed."""

    def __init__(
        self,
        clients: Clients,
        committer: Committer,
        admin: Admin,
        scheduler: Scheduler,
        fleet: FleetControl,
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
        number = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        try:
            request = read_request(envelope)
        except ProtocolError as error:
            self._clients.reject(peer, error)
            return
        try:
            match request:
                case Watch(ids):
                    self._committer.watch(peer, ids)
                    return
                case ReadItems(job_id, start):
                    self._committer.read_items(peer, number, job_id, start)
                    return
            value = self._value(request)
        except StillSpooled as late:
            wait_s = inf if isinstance(request, ReadItems) else _SPOOLED_WAIT_S
            self._put_off.append((late.job_id, self._clock.monotonic() + wait_s, peer, envelope))
            return
        except TaskQError as error:
            self._clients.send(peer, frames.error_frame(number, error))
            return
        self._clients.send(peer, ok_frame(number, value))

    def _value(self, request: Request) -> Any:
        """Does what is asked. Returns the value of the answer."""
        match request:
            case GetJob(job_id):
                return self._admin.info(job_id)
            case ListJobs():
                return self._admin.jobs(*request)
            case CancelJob():
                return self._admin.cancel(*request)
            case RetryJob(job_id):
                return self._admin.retry_one(job_id)
            case RetryJobs():
                return self._admin.retry(*request)
            case PurgeJob(job_id):
                return self._admin.purge_one(job_id)
            case PurgeJobs():
                return self._admin.purge(*request)
            case PauseQueues():
                return self._admin.pause(*request)
            case GetStatus():
                return status_value(self._fleet.status())
            case GetCounts(after):
                return counts_value(self._committer.counting.counts, after)
            case StopFleet():
                self._fleet.stop("taskq stop")
                return True
            case ReloadFleet():
                return self._fleet.reload()
        return self._schedule(request)

    def _schedule(self, request: Request) -> Any:
        scheduler, now, wall = self._scheduler, self._clock.monotonic(), self._clock.time()
        match request:
            case ListSchedules():
                return [schedule_value(info) for info in scheduler.infos()]
            case PutSchedule(schedule):
                return schedule_value(scheduler.put(Schedule.from_wire(schedule), now, wall))
            case RemoveSchedule(name):
                return scheduler.remove(name, now, wall)
            case PauseSchedule(name, is_paused):
                return schedule_value(scheduler.pause(name, is_paused, now, wall))
            case RunSchedule(name, job_id):
                return scheduler.run(name, job_id, now, wall)
        raise AssertionError(f"nobody answers {request}")
