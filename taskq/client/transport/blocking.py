"""The blocking client: submits jobs, waits for results, asks for the state of things.

Safe across threads (each call borrows a connection of its own), `fork` (a child opens new ones) and the end of the
interpreter (nothing is buffered). A broker that is away for a moment is not an error: jobs go to the spool, and whoever
waits for a result waits on and asks the next broker.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from taskq.client.transport.absence import Absence
from taskq.model import errors
from taskq.model.errors import (
    BehindSpool,
    BrokerUnavailable,
    DirectoryError,
    JobNotFound,
    JobStateError,
    ResultTimeout,
    ScheduleNotFound,
)
from taskq.model.info.job import JobInfo
from taskq.model.info.status import FleetStatus
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_LISTED
from taskq.model.spec import Spec
from taskq.protocol import spool as spool_module
from taskq.protocol.ops import Op
from taskq.protocol.spool import spool_frame
from taskq.protocol.submissions import Call, Flow, flow_frame
from taskq.system.clock import SYSTEM_CLOCK, ClientClock
from taskq.system.directory import Directory, reply_timeout_s, user_of
from taskq.system.platform import is_listening

if TYPE_CHECKING:
    from taskq.client.transport.reading import StoppedFleet
from taskq.client.transport.connection import CANCEL_AGAIN_S, SHORTEST_WAIT_S, Connection
from taskq.protocol.answers import BrokerSilent, ConnectionLost
from taskq.protocol.endings import Ending, ending_of
from taskq.protocol.frames import error_of
from taskq.protocol.jobs import info_of
from taskq.protocol.status import status_of
from taskq.protocol.submissions import chunks, ids_of, submit_frame

logger = logging.getLogger("taskq")


#: A fleet may start while its journal is being read, and be gone when it is asked: so often in one call.
_MOST_ROUNDS = 20


#: What changes nothing.
_LOOKS = frozenset({Op.INFO, Op.JOBS, Op.STATUS, Op.SCHEDULES})


#: Bounds of the pauses between attempts to reach a broker that is away, and when to tell that it still is.
_RECONNECT_FIRST_S = 0.01


_RECONNECT_LONGEST_S = 0.25


_TELL_AWAY_AFTER_S = 3.0


#: Whoever waits for a shorter time than this waits so long for a broker's first word: it may be busy.
_GREETING_S = 1.0


_FOREVER_S = 1e9


_MAX_IDLE_CONNECTIONS = 16


#: Frames that are on their way while the next is made: the broker syncs one while we make another.
_FRAMES_AHEAD = 3


class Client:
    """The calls of one application to one queue's directory."""

    def __init__(
        self, directory: Directory, reply_timeout: float | None = None, clock: ClientClock = SYSTEM_CLOCK
    ) -> None:
        """
        Args:
            reply_timeout: seconds; see `taskq.system.directory.reply_timeout_s`.
        """
        self.directory = directory
        self.clock = clock
        self.absence = Absence(directory, reply_timeout_s(reply_timeout))
        self._socket_path = directory.socket_path()
        self._idle: list[Connection] = []  # appended to and popped by any thread: both are atomic
        self._pid = os.getpid()
        self._stopped: StoppedFleet | None = None  # made when it is asked for the first time
        #: Whether the last answer came from the journal of a fleet that does not run.
        self.is_stopped = False

    # -- connections

    def connect(self, *, is_looking: bool = False, within_s: float | None = None) -> Connection:
        """Opens a connection, or takes an idle one.

        Args:
            is_looking: whether nothing is to be changed; root may look at the fleets of others.
            within_s: how long to wait for a broker's first word, if not as long as for any answer.

        Raises:
            BrokerSilent: one is there that has not answered for a while.
            ConnectionLost: no broker listens.
            DirectoryError: the directory belongs to another user.
        """
        if self.absence.is_silent:
            self._idle.clear()  # to the same broker
            raise BrokerSilent(self.absence.describe())
        if self._pid != os.getpid():
            self._idle = []  # after a fork these belong to the parent; closing our copies does not disturb it
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        owner = self.directory.other_owner() if os.geteuid() == 0 else None
        if owner is not None and not is_looking:
            told = f"{self.directory.path} belongs to {user_of(owner)}: root may look at it; for this run as that user"
            raise DirectoryError(told)
        try:
            return Connection(self._socket_path, self.absence, owner=owner, within_s=within_s)
        except ConnectionLost:
            self.directory.check_owner()  # else nobody ever could answer
            raise

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection, with no answer outstanding, for the next call."""
        if connection.owner is None and len(self._idle) < _MAX_IDLE_CONNECTIONS and self._pid == os.getpid():
            self._idle.append(connection)
        else:
            connection.close()

    @contextmanager
    def _borrowed(self, *, is_looking: bool = False) -> Iterator[Connection]:
        connection = self.connect(is_looking=is_looking)
        try:
            yield connection
        except (errors.EnqueueError, JobNotFound, JobStateError, ScheduleNotFound):
            self.give_back(connection)  # an answer like others
            raise
        except BaseException:
            connection.close()  # an answer may still be on its way
            raise
        self.give_back(connection)

    def ask(self, op: Op, *fields: Any) -> Any:
        """A request that may be repeated. An idle connection may have been closed since, so a lost one is renewed. A
        fleet that does not run is asked by way of its journal, but for what only one that runs can do.

        Raises:
            TaskQError: what the broker says.
            BrokerUnavailable: no broker answers.
        """
        return self._ask(op, fields, also_stopped=op != Op.STATUS)

    def _ask(self, op: Op, fields: Sequence[Any], *, also_stopped: bool) -> Any:
        rounds = 0
        while True:
            is_idle = bool(self._idle)
            try:
                with self._borrowed(is_looking=op in _LOOKS) as connection:
                    self.is_stopped = False
                    return connection.request(op, *fields)
            except ConnectionLost as error:
                if is_idle and not isinstance(error, BrokerSilent):
                    continue
                is_there = not also_stopped or is_listening(self._socket_path)
                if is_there or not self._stopped_fleet.knows(op):
                    raise BrokerUnavailable(self.absence.describe()) from error
            try:
                self.is_stopped = True
                return self._stopped_fleet.ask(op, *fields)
            except ConnectionLost as error:  # a fleet is there again
                rounds += 1
                if rounds == _MOST_ROUNDS:
                    raise BrokerUnavailable(str(error)) from error

    @property
    def _stopped_fleet(self) -> StoppedFleet:
        if self._stopped is None:
            from taskq.client.transport.reading import StoppedFleet  # what starts a process takes a few ms to import

            self._stopped = StoppedFleet(self.directory)
        return self._stopped

    # -- jobs

    def submit(self, spec: Spec, calls: Iterable[Call]) -> list[bytes]:
        """Submits jobs; each is durable when this returns. With no broker there, they go to the spool.

        Returns:
            The ids; an EarlierId for each job that was left out since there is one of its kind.

        Raises:
            EnqueueError: they were not accepted.
            BrokerUnavailable: neither a broker nor the spool takes them.
        """
        ids: list[bytes] = []
        remaining = chunks(calls)
        unanswered: deque[tuple[int, list[Call]]] = deque()
        try:
            connection = self.connect()
            try:
                for chunk in remaining:
                    unanswered.append((0, chunk))
                    unanswered[-1] = connection.send_submit(spec, chunk), chunk
                    if len(unanswered) > _FRAMES_AHEAD:
                        ids += self._accepted(connection, spec, *unanswered[0])
                        unanswered.popleft()
                while unanswered:
                    ids += self._accepted(connection, spec, *unanswered[0])
                    unanswered.popleft()
            except BaseException:
                connection.close()  # an answer may still be on its way
                raise
            self.give_back(connection)
            return ids
        except ConnectionLost:
            pass
        for _, chunk in unanswered:
            ids += self._resubmit(spec, chunk)
        for chunk in remaining:
            ids += self._resubmit(spec, chunk)
        return ids

    def _accepted(self, connection: Connection, spec: Spec, number: int, chunk: Sequence[Call]) -> list[bytes]:
        """The ids of the jobs of one frame, when they are durable: in the journal, or behind others in the spool."""
        try:
            return ids_of(chunk, connection.answer(number))
        except BehindSpool:
            self.spool(spec, chunk)
            return [call.id for call in chunk]

    def _resubmit(self, spec: Spec, chunk: Sequence[Call]) -> list[bytes]:
        """Submits over a new connection; these may have arrived before: the broker leaves out ids that it knows."""
        self._idle.clear()  # made to the same broker as the one that was lost
        try:
            with self._borrowed() as connection:
                number = connection.send_submit(spec, chunk, resend=True)
                return self._accepted(connection, spec, number, chunk)
        except ConnectionLost:
            self.spool(spec, chunk)
            self.absence.warn_of_spool()
            return [call.id for call in chunk]

    def submit_flow(self, flow: Flow) -> None:
        """Submits jobs of several kinds together: all are durable when this returns, or none is accepted.

        Raises:
            As `submit`; PayloadTooLarge: they do not fit into one frame.
        """
        for resend in (False, True):
            try:
                with self._borrowed() as connection:
                    connection.submit_flow(flow, resend=resend)
                    return
            except BehindSpool:
                self.spool_flow(flow)
                return
            except ConnectionLost:
                self._idle.clear()
        self.spool_flow(flow)
        self.absence.warn_of_spool()

    def spool(self, spec: Spec, chunk: Sequence[Call]) -> None:
        """Writes jobs to the spool, from where the next broker takes them.

        Raises:
            StoreFull: the disk is full.
            BrokerUnavailable: the spool cannot be written.
        """
        self._spool([call.id for call in chunk], submit_frame(0, spec, chunk, resend=True, watch=False))

    def spool_flow(self, flow: Flow) -> None:
        """Writes jobs of several kinds to the spool, in one file. Raises as `spool`."""
        self._spool([call.id for _, call in flow], flow_frame([Op.SUBMIT_FLOW, 0, True, False], flow))

    def _spool(self, ids: Sequence[bytes], frame: bytes) -> None:
        try:
            self.directory.create()
        except DirectoryError as error:
            told = f"{self.absence.describe_briefly()}, and the job cannot be spooled: {error}"
            raise BrokerUnavailable(told) from error
        spool_frame(self.directory.spool, ids, frame, self.absence.describe_briefly())

    def wait(self, job_id: bytes, timeout_s: float | None) -> Ending:
        """Waits for the end of a job.

        Raises:
            ResultTimeout: it did not end in time.
            JobNotFound: the broker does not know the job.
        """
        with self.watching([job_id]) as endings:
            try:
                _, ending = endings.next(timeout_s)
            except ResultTimeout:
                raise ResultTimeout(f"job {job_id.hex()} has not ended within {timeout_s:g} s; it goes on") from None
        if ending is None:
            raise JobNotFound.of(job_id)
        return ending

    @contextmanager
    def watching(self, ids: Iterable[bytes] = ()) -> Iterator[Endings]:
        """Opens a stream of the endings of jobs."""
        endings = Endings(self, ids)
        try:
            yield endings
        finally:
            endings.close()

    def info(self, job_id: bytes) -> JobInfo:
        """All that is known of a job.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no broker answers.
        """
        return info_of(self.ask(Op.INFO, job_id))

    def is_spooled(self, job_id: bytes) -> bool:
        """Whether a job waits in the spool."""
        return job_id in spool_module.find(self.directory.spool, [job_id])

    def cancel(self, job_id: bytes, also_running: bool) -> bool:
        """Cancels a job; if it runs, waits for its end. Returns whether it is cancelled now."""
        while (is_cancelled := self.ask(Op.CANCEL, job_id, also_running)) is None:
            try:
                return self.wait(job_id, CANCEL_AGAIN_S).state == JobState.CANCELLED
            except ResultTimeout:
                pass  # a new broker has run it again, and does not know that it is not wanted
        return bool(is_cancelled)

    # -- many jobs: the broker does a little for each request, and says where to go on

    def jobs(
        self, state: JobState | None, task: str | None, queue: str | None, before: bytes | None, limit: int | None
    ) -> list[JobInfo]:
        """Jobs, newest first."""
        infos: list[JobInfo] = []
        place: bytes | int | None = before
        with self._stopped_fleet.keeping():
            while limit is None or len(infos) < limit:
                most = MAX_JOBS_LISTED if limit is None else min(limit - len(infos), MAX_JOBS_LISTED)
                found, place = self.ask(Op.JOBS, state and state.value, task, queue, place, most)
                infos.extend(map(info_of, found))
                if place is None:
                    break
        return infos

    def retry(self, job_id: bytes) -> None:
        """Queues a failed job again. Raises as `Job.retry`."""
        self.ask(Op.RETRY, job_id)

    def retry_all(self, task: str | None, queue: str | None) -> int:
        """Queues all failed jobs again, or those of a task or queue. Returns how many."""
        return self._ask_on(Op.RETRY_ALL, task, queue)

    def purge(self, job_id: bytes) -> None:
        """Removes a job. Raises as `Job.purge`."""
        self.ask(Op.PURGE, job_id)

    def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> int:
        """Removes the jobs in a state that ended before a time. Returns how many."""
        return self._ask_on(Op.PURGE_ALL, state.value, task, queue, before)

    def drop_unfinished(self, before: float) -> int:
        """Removes the jobs that have not ended and were enqueued before a time, where no fleet runs. Returns how many.

        Raises:
            ConnectionLost: a fleet has the directory.
        """
        stopped = self._stopped_fleet
        dropped = 0
        with stopped.keeping():
            if not stopped.knows(Op.JOBS):
                return 0
            for state in (JobState.WAITING, JobState.SCHEDULED, JobState.QUEUED):  # what waits for others goes first
                span: list[int] | None = None
                while True:
                    count, span = stopped.ask(Op.PURGE_ALL, state.value, None, None, before, span)
                    dropped += int(count)
                    if span is None:
                        break
        return dropped

    def _ask_on(self, op: Op, *fields: Any) -> int:
        """Repeats a request until there is nothing left to do; returns how many jobs it did it to."""
        done = 0
        span: list[int] | None = None
        with self._stopped_fleet.keeping():
            while True:
                count, span = self.ask(op, *fields, span)
                done += int(count)
                if span is None:
                    return done

    def pause(self, queues: Sequence[str], is_paused: bool, by: str) -> list[str]:
        """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change."""
        changed: list[str] = self.ask(Op.PAUSE, list(queues), is_paused, by)
        return changed

    # -- the fleet

    def status(self) -> FleetStatus:
        """What the fleet is doing."""
        return status_of(self.ask(Op.STATUS))

    def look(self) -> FleetStatus:
        """The status of a fleet, or what one that does not run has left; then the state of its broker is "stopped".

        Raises:
            BrokerUnavailable: there never was a fleet.
        """
        return status_of(self._ask(Op.STATUS, (), also_stopped=True))

    def stop(self) -> None:
        """Asks the fleet to stop: running jobs may end first."""
        self.ask(Op.STOP)

    def reload(self) -> int:
        """Asks the fleet to replace its consumers, one by one, by ones with the present code.

        Returns:
            The number of this reload; the status tells how far it is.
        """
        number: int = self.ask(Op.RELOAD)
        return number

    def tell_away(self) -> None:
        """Tells, once in a long wait, that there is no fleet."""
        logger.warning("%s; still waiting", self.absence.describe())

    def close(self) -> None:
        """Closes the idle connections."""
        self.absence.close()
        while self._idle:
            self._idle.pop().close()


def reconnect_pauses(client: Client) -> Iterator[float]:
    """The pauses between attempts to reach a broker: a tenth of the time waited so far, so that nobody waits much
    longer than the broker is away. Once in a long wait, tells that there is none."""
    began = client.clock.monotonic()
    is_told = False
    while True:
        waited_s = client.clock.monotonic() - began
        if waited_s >= _TELL_AWAY_AFTER_S and not is_told:
            client.tell_away()
            is_told = True
        yield min(max(waited_s / 10, _RECONNECT_FIRST_S), _RECONNECT_LONGEST_S)


class Endings:
    """A stream of the endings of jobs, over a connection of its own, which is renewed when it is lost."""

    def __init__(self, client: Client, ids: Iterable[bytes]) -> None:
        self._client = client
        self.clock = client.clock
        self._connection: Connection | None = None
        self.waiting: dict[bytes, None] = dict.fromkeys(ids)  # in order

    def submit(self, spec: Spec, chunk: Sequence[Call]) -> None:
        """Submits jobs (of one frame) and watches them."""
        try:
            connection = self._connected(0.0)
            if connection is not None:
                connection.submit(spec, chunk, resend=False, watch=True)
                self.waiting.update((call.id, None) for call in chunk)
                return
        except (ConnectionLost, BehindSpool):
            self._drop_connection()
        self._client.submit(spec, chunk)
        self.waiting.update((call.id, None) for call in chunk)
        self._drop_connection()  # the next one asks for these as well

    def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how; None for one that the broker does not know.

        Raises:
            ResultTimeout: none ended in time.
        """
        # the operating system's timers end at some hundred years
        deadline = None if timeout_s is None or timeout_s > _FOREVER_S else self.clock.monotonic() + timeout_s
        while True:
            try:
                connection = self._connected(deadline)
                left_s = None if deadline is None else max(SHORTEST_WAIT_S, deadline - self.clock.monotonic())
                message = None if connection is None else connection.next_result(left_s)
            except ConnectionLost:
                self._drop_connection()
                continue
            if message is None:
                raise ResultTimeout(f"nothing ended within {timeout_s} s")
            if message[0][0] == Op.ERROR:
                raise error_of(message[0])
            job_id, ending = ending_of(message)
            if job_id in self.waiting:
                del self.waiting[job_id]
                return job_id, ending

    def _connected(self, deadline: float | None) -> Connection | None:
        """The connection, on which all waiting jobs are watched; None if there is no broker until the deadline."""
        pauses = reconnect_pauses(self._client)
        while self._connection is None:
            try:
                left_s = max(_GREETING_S, deadline - self.clock.monotonic()) if deadline else None
                connection = self._client.connect(within_s=left_s)
                connection.watch(list(self.waiting))
                self._connection = connection
            except ConnectionLost:
                now = self.clock.monotonic()
                if deadline is not None and now >= deadline:
                    return None
                pause_s = next(pauses)
                self.clock.sleep(pause_s if deadline is None else min(pause_s, max(0.0, deadline - now)))
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Ends the stream. Its connection is kept for others only if nothing can come on it any more."""
        if self._connection is not None and not self.waiting:
            self._client.give_back(self._connection)
        elif self._connection is not None:
            self._connection.close()
        self._connection = None
