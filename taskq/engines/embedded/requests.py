"""The requests of clients other than submitting jobs. Each is staged with the committer in the order in which it came.

changes   applied in the transaction of the turn, and answered after it: `commands`, `scheduler`
looks     answered after the transaction; they change nothing: `admin`, and `FleetControl` for the fleet
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf
from typing import Any

from taskq.engines.contract import FleetControl
from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.commands import Commands
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.engines.embedded.journal.store import Place
from taskq.engines.embedded.ports import Clients
from taskq.engines.embedded.scheduler import Scheduler
from taskq.engines.embedded.transaction import UNFINISHED, Command, Transaction, portion
from taskq.engines.server import Peer
from taskq.model import limits
from taskq.model.errors import JobNotFound, JobStateError, JournalError, ProtocolError, StoreFull, TaskQError
from taskq.model.info.search import JobSearch
from taskq.model.schedule import Schedule
from taskq.model.stored import StoredJob
from taskq.protocol import frames
from taskq.protocol.answers import ok_frame
from taskq.protocol.counts import counts_value
from taskq.protocol.jobs import why_value
from taskq.protocol.requests import (
    BackUp,
    CancelJob,
    ExplainJob,
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
    SearchJobs,
    StopFleet,
    Watch,
    WriteStacks,
    read_request,
)
from taskq.protocol.schedules import schedule_value
from taskq.protocol.status import status_value
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: A request about a job that waits in the spool is put off for this long; clients wait a little longer for an answer.
_SPOOLED_WAIT_S = 2.0
_CANCEL_LATER = "the disk that holds the journal is full: the job can be cancelled when there is room"

#: The requests that change the journal, and those of them that add to it.
_CHANGES = (
    *(CancelJob, RetryJob, RetryJobs, PurgeJob, PurgeJobs, PauseQueues),
    *(PutSchedule, RemoveSchedule, PauseSchedule, RunSchedule),
)
_ADDS = (RetryJob, RetryJobs, PutSchedule, RunSchedule)
#: Those with long answers.
_LONG = (ListJobs, SearchJobs, ReadItems, GetStatus, GetCounts, ListSchedules)


class Requests:
    """Applies and answers requests. Used by the broker's loop alone."""

    def __init__(
        self,
        clients: Clients,
        committer: Committer,
        admin: Admin,
        scheduler: Scheduler,
        control: FleetControl,
        log: Any,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            clients: where the answers go.
            log: the log of the fleet, a `taskq.telemetry.setup.Logger`.
        """
        self._clients = clients
        self._committer = committer
        self._admin = admin
        self._scheduler = scheduler
        self._control = control
        self._commands = Commands(log, committer.gone)
        self._clock = clock
        self._put_off: list[_Asked] = []  # about jobs in the spool

    # -- what comes in

    def take_in(self, peer: Peer, envelope: list[Any]) -> None:
        """Stages a request of a client; disconnects a client whose request does not exist."""
        try:
            request = read_request(envelope)
        except ProtocolError as error:
            self._clients.reject(peer, error)
            return
        number = envelope[1] if len(envelope) > 1 and isinstance(envelope[1], int) else 0
        for part in _parts(request):
            self._committer.stage(_Asked(self, peer, number, part))

    def take_up_again(self, now: float) -> None:
        """Stages requests again when their jobs have come out of the spool, or when the spool is empty."""
        if not self._put_off:
            return
        waiting, self._put_off = self._put_off, []
        for asked in waiting:
            is_late = not self._committer.has_more_spooled
            if is_late or self._committer.is_stored(asked.waits_for):
                asked.is_late = is_late
                self._committer.stage(asked)
            elif asked.until > now:
                self._put_off.append(asked)
            else:
                job_id = asked.waits_for.hex()
                reason = f"job {job_id} still waits in the spool, behind many others: try again in a moment"
                self._clients.send(asked.peer, frames.error_frame(asked.number, JobStateError(reason)))

    def put_off(self, asked: _Asked, job_id: bytes) -> None:
        """Puts off a request about a job that waits in the spool."""
        wait_s = inf if isinstance(asked.request, ReadItems) else _SPOOLED_WAIT_S
        asked.waits_for, asked.until = job_id, self._clock.monotonic() + wait_s
        self._put_off.append(asked)

    # -- in the transaction

    def change(self, tx: Transaction, asked: _Asked) -> Any:
        """Makes the change that is requested, or goes on with it. Returns the value of the answer, or UNFINISHED."""
        if asked.to_revive:
            return asked.revive(tx, asked.value, asked.to_revive)
        commands = self._commands
        match asked.request:
            case CancelJob(job_id):
                try:
                    return commands.cancel(tx, partial(self._find, asked), *asked.request)
                except JobNotFound:
                    if self._committer.spec_in_spool(job_id) is None:
                        raise
                    return StoreFull(_CANCEL_LATER)  # not raised: the other commands of this transaction go on
            case RetryJob(job_id):
                return asked.revive(tx, *commands.retry_one(tx, partial(self._find, asked), job_id))
            case RetryJobs():
                return asked.revive(tx, *commands.retry(tx, *asked.request))
            case PurgeJob(job_id):
                return commands.purge_one(tx, partial(self._find, asked), job_id)
            case PurgeJobs():
                return commands.purge(tx, *asked.request)
            case PauseQueues():
                return commands.pause(tx, *asked.request)
        return self._change_schedule(tx, asked.request)

    def _change_schedule(self, tx: Transaction, request: Request) -> Any:
        scheduler = self._scheduler
        match request:
            case PutSchedule(schedule):
                return schedule_value(scheduler.put(tx, Schedule.from_wire(schedule)))
            case RemoveSchedule(name):
                return scheduler.remove(tx, name)
            case PauseSchedule(name, is_paused):
                return schedule_value(scheduler.pause(tx, name, is_paused))
            case RunSchedule(name, job_id):
                return scheduler.run(tx, name, job_id)
        raise AssertionError(f"nobody answers {request}")

    def _find(self, asked: _Asked, job_id: bytes) -> StoredJob | None:
        return self._committer.find(job_id, is_late=asked.is_late)

    # -- afterwards

    def answer(self, asked: _Asked, outcome: object) -> None:
        """Answers a request; later, if it is about a job that waits in the spool behind many others."""
        try:
            if asked.changes:
                if isinstance(outcome, Exception):
                    raise outcome
                value: Any = outcome
            else:
                match asked.request:
                    case Watch(ids):
                        self._committer.watch(asked.peer, ids)
                        return
                    case ReadItems(job_id, start):
                        stored = self._find(asked, job_id)
                        self._committer.read_items(asked.peer, asked.number, stored, job_id, start)
                        return
                value = self._value(asked)
        except StillSpooled as late:
            self.put_off(asked, late.job_id)
        except JournalError:
            raise
        except TaskQError as error:
            self._clients.send(asked.peer, frames.error_frame(asked.number, error))
        else:
            self._clients.send(asked.peer, ok_frame(asked.number, value))

    def _value(self, asked: _Asked) -> Any:
        """Looks up what is requested. Returns the value of the answer."""
        match asked.request:
            case GetJob(job_id, arguments):
                is_late = asked.is_late or self._committer.has_more_spooled
                return self._admin.info(job_id, self._committer.find(job_id, is_late=is_late), arguments)
            case ExplainJob(job_id):
                is_late = asked.is_late or self._committer.has_more_spooled
                stored = self._committer.find(job_id, is_late=is_late)
                return why_value(self._admin.why(job_id, stored, self._control))
            case ListJobs():
                return self._admin.jobs(*asked.request)
            case SearchJobs():
                listing, search = asked.request[:5], asked.request[5:]
                return self._admin.jobs(*listing, JobSearch(*search))
            case GetStatus():
                return status_value(self._control.status())
            case GetCounts(after):
                return counts_value(self._committer.counting.counts, after)
            case BackUp():
                return self._admin.backups.ask(*asked.request)
            case StopFleet():
                self._control.stop("taskq stop")
                return True
            case ReloadFleet():
                return self._control.reload()
            case WriteStacks(number):
                return self._control.write_stacks(number)
            case ListSchedules():
                return [schedule_value(info) for info in self._scheduler.infos()]
        raise AssertionError(f"nobody answers {asked.request}")


class _Asked(Command):
    """A request of a client: applied if it changes something, answered afterwards."""

    def __init__(self, requests: Requests, peer: Peer, number: int, request: Request) -> None:
        self._requests = requests
        self.peer = peer
        self.number = number
        self.request = request
        self.changes = isinstance(request, _CHANGES)
        self.adds = isinstance(request, _ADDS)
        self.work_us = _work_us(request)
        self.value: object = None  # of the answer, while jobs are still to be revived
        self.to_revive: list[Place] = []
        self.waits_for, self.until = b"", 0.0  # a job in the spool, and for how long
        self.is_late = False  # whether everything in the spool that can be taken in now was taken in

    def apply(self, tx: Transaction) -> object:
        return self._requests.change(tx, self) if self.changes else None

    def revive(self, tx: Transaction, value: object, places: list[Place]) -> object:
        """Goes on to revive jobs that come after others. Returns the value of the answer, or UNFINISHED."""
        left = tx.revive(places)
        tx.then(self._revived, value, left)
        return UNFINISHED if left else value

    def _revived(self, value: object, left: list[Place]) -> None:
        self.value, self.to_revive = value, left

    def answer(self, outcome: object) -> None:
        if not self.peer.closed:
            self._requests.answer(self, outcome)


def _parts(request: Request) -> Iterator[Request]:
    """Cuts a request that needs no answer of its own into parts that take a part of a turn each."""
    if not isinstance(request, Watch):
        yield request
        return
    most = portion(limits.WATCHED_US, limits.TURN_US / 2)
    for start in range(0, len(request.ids), most):
        yield Watch(request.ids[start : start + most])


def _work_us(request: Request) -> float:
    """Returns about how long a request takes, in microseconds."""
    if isinstance(request, Watch):
        return limits.WATCHED_US * len(request.ids)
    if isinstance(request, ExplainJob):
        return limits.EXPLAIN_US
    return limits.LONG_REQUEST_US if isinstance(request, _LONG) else limits.REQUEST_US
