"""The calls of a client to the fleet of a directory, each written once, as operations (`verbs.py`).

A broker that is away for a moment is not an error: jobs go to the spool, and whoever waits for a result waits on and
asks the next broker. A directory without a fleet is asked by way of its journal, except for what only a fleet can do.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from taskq.client.transport.absence import Absence
from taskq.client.transport.endings import Endings, Items, only_ending
from taskq.client.transport.handing_in import CallFiles, ToSpool, with_room
from taskq.client.transport.verbs import Answer, Ask, EndReader, Line, Open, OpenReader, Operation, Send, UseDisk
from taskq.model.errors import (
    AlreadyRunning,
    BehindSpool,
    BrokerUnavailable,
    EnqueueError,
    ResultTimeout,
)
from taskq.model.info.search import ALL_JOBS, FoundJobs, JobSearch
from taskq.model.job import JobState
from taskq.model.limits import MAX_JOBS_LISTED
from taskq.model.spec import Spec
from taskq.protocol import spool
from taskq.protocol.answers import BrokerSilent, ConnectionLost, value_of
from taskq.protocol.endings import Ending
from taskq.protocol.ops import LOOKS, OPS, Op
from taskq.protocol.payloads.files import PayloadFiles
from taskq.protocol.requests import (
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
    ReloadFleet,
    RemoveSchedule,
    Request,
    RetryJob,
    RetryJobs,
    RunSchedule,
    SearchJobs,
    StopFleet,
    WriteStacks,
    op_of,
)
from taskq.protocol.submissions import Call, Flow, chunks, filed_among, flow_frame, submit_frame
from taskq.system.clock import ClientClock
from taskq.system.directory import Directory
from taskq.system.platform import is_listening

if TYPE_CHECKING:
    from taskq.model.info.counts import TaskCounts
    from taskq.model.info.job import JobInfo
    from taskq.model.info.schedule import ScheduleInfo
    from taskq.model.info.status import FleetStatus
    from taskq.model.info.why import WhyInfo
    from taskq.model.schedule import Schedule

#: Longer than a running job that is cancelled may take to clean up.
CANCEL_AGAIN_S = 5.0
#: Frames that are on their way while the next is made: the broker syncs one while we make another.
_FRAMES_AHEAD = 3
_OPEN, _RENEW = Open(), Open(must_be_fresh=True)
#: A fleet may start while its journal is being read, and be gone when it is asked: the most times in one call.
_MOST_ROUNDS = 20


class DirectoryQueue:
    """The queue of a directory: a `taskq.client.transport.api.QueueApi`, and what else its fleet can be asked."""

    def __init__(self, directory: Directory, absence: Absence, clock: ClientClock) -> None:
        """
        Args:
            absence: what is known of a fleet that does not answer.
            clock: tells the time, and lets it pass where an operation sleeps.
        """
        self.directory = directory
        self.absence = absence
        self.clock = clock
        #: The files of large arguments and results.
        self.payloads = PayloadFiles(directory)
        self._files = CallFiles(self.payloads)
        self._to_spool = ToSpool(directory, absence, self.payloads)
        #: Whether the last answer came from the journal of a fleet that does not run. Any thread writes it.
        self.is_stopped = False

    # -- submitting

    def submit(self, spec: Spec, calls: Iterable[Call], waits_for_room: bool = False) -> Operation[list[bytes]]:
        """Submits jobs of one kind; each is durable when this returns. With no broker there, they go to the spool.

        Args:
            waits_for_room: try again while the queue is full.

        Returns:
            The ids; an EarlierId for each job that was left out since there is one of its kind.

        Raises:
            EnqueueError: they were not accepted.
            BrokerUnavailable: neither a broker nor the spool takes them.
        """
        if waits_for_room:
            return self._submit_to_room(spec, calls)
        if isinstance(calls, list) and len(calls) == 1:
            return self._submit_frame(spec, calls)  # no generator around it: most calls are of one job
        return self._submit(spec, calls)

    def _submit_to_room(self, spec: Spec, calls: Iterable[Call]) -> Operation[list[bytes]]:
        ids: list[bytes] = []
        for chunk in chunks(calls, spec.max_queued):
            ids += yield from with_room(partial(self.submit, spec, chunk), True)
        return ids

    def _submit(self, spec: Spec, calls: Iterable[Call]) -> Operation[list[bytes]]:
        ids: list[bytes] = []
        remaining = chunks(calls)
        unanswered: deque[tuple[int, list[Call]]] = deque()
        try:
            line: Line = yield _OPEN
            try:
                for chunk in remaining:
                    unanswered.append((0, chunk))
                    yield from self._files.write(line, chunk)
                    number, frame = line.talk.submit(spec, chunk)
                    unanswered[-1] = number, chunk
                    yield Send(line, number, frame)
                    if len(unanswered) > _FRAMES_AHEAD:
                        ids += yield from self._accepted(line, spec, unanswered)
                while unanswered:
                    ids += yield from self._accepted(line, spec, unanswered)
                return ids
            except EnqueueError:
                yield from self._files.remove_refused(line, unanswered)
                raise
            finally:
                line.leave()
        except ConnectionLost:
            pass
        for _, chunk in unanswered:
            ids += yield from self._resubmit(spec, chunk)
        for chunk in remaining:
            ids += yield from self._resubmit(spec, chunk)
        return ids

    def _accepted(self, line: Line, spec: Spec, unanswered: deque[tuple[int, list[Call]]]) -> Operation[list[bytes]]:
        """The ids of the jobs of the first of some frames, which are durable now."""
        number, chunk = unanswered[0]
        try:
            ids = yield from self._files.ids_of(chunk, (yield Answer(line, number)), number)
        except BehindSpool:
            ids = yield from self.spool(spec, chunk)
        except EnqueueError:
            unanswered.popleft()
            yield from self._files.remove(chunk)
            raise
        unanswered.popleft()
        return ids

    def _submit_frame(self, spec: Spec, chunk: Sequence[Call], resend: bool = False) -> Operation[list[bytes]]:
        """Submits jobs of one frame."""
        if self.absence.was_refused:
            return (yield from self._spool_instead(spec, chunk))
        try:
            line: Line = yield _RENEW if resend else _OPEN
            try:
                if filed_among(chunk):
                    yield from self._files.write(line, chunk)
                number, frame = line.talk.submit(spec, chunk, resend=resend)
                return (yield from self._files.ids_of(chunk, (yield Ask(line, number, frame)), number))
            finally:
                line.leave()
        except BehindSpool:
            return (yield from self.spool(spec, chunk))
        except EnqueueError:
            if not resend:  # else the first answer was lost, and may have said that they are accepted
                yield from self._files.remove(chunk)
            raise
        except ConnectionLost:
            if not resend:
                return (yield from self._resubmit(spec, chunk))
            raise

    def _resubmit(self, spec: Spec, chunk: Sequence[Call]) -> Operation[list[bytes]]:
        """Submits over a new connection; these may have arrived before: the broker leaves out ids that it knows."""
        try:
            return (yield from self._submit_frame(spec, chunk, resend=True))
        except ConnectionLost:
            return (yield from self._spool_instead(spec, chunk))

    def _spool_instead(self, spec: Spec, chunk: Sequence[Call]) -> Operation[list[bytes]]:
        ids = yield from self.spool(spec, chunk)
        self.absence.warn_of_spool()
        return ids

    def submit_flow(self, flow: Flow, waits_for_room: bool = False) -> Operation[None]:
        """Submits jobs of several kinds together: all are durable when this returns, or none is accepted.

        Raises:
            As `submit`; PayloadTooLarge: they do not fit into one frame.
        """
        yield from with_room(partial(self._submit_flow, flow), waits_for_room)

    def _submit_flow(self, flow: Flow) -> Operation[None]:
        calls = [call for _, call in flow]
        for resend in (False, True):
            if self.absence.was_refused:
                break
            try:
                line: Line = yield Open(must_be_fresh=resend)
                try:
                    yield from self._files.write(line, calls)
                    number, frame = line.talk.submit_flow(flow, resend=resend)
                    value_of((yield Ask(line, number, frame)), number)
                    return
                finally:
                    line.leave()
            except BehindSpool:
                yield from self.spool_flow(flow)
                return
            except EnqueueError:
                if not resend:
                    yield from self._files.remove(calls)
                raise
            except ConnectionLost:
                pass
        yield from self.spool_flow(flow)
        self.absence.warn_of_spool()

    # -- the spool

    def spool(self, spec: Spec, chunk: Sequence[Call]) -> Operation[list[bytes]]:
        """Writes jobs to the spool, from where the next broker takes them. Returns their ids.

        Raises:
            StoreFull: the disk is full.
            BrokerUnavailable: the spool cannot be written.
        """
        frame = submit_frame(0, spec, chunk, resend=True, watch=False)
        yield UseDisk(self._to_spool.write, (chunk, frame))
        return [call.id for call in chunk]

    def spool_flow(self, flow: Flow) -> Operation[None]:
        """Writes jobs of several kinds to the spool, in one file. Raises as `spool`."""
        frame = flow_frame([Op.SUBMIT_FLOW, 0, True, False], flow)
        yield UseDisk(self._to_spool.write, ([call for _, call in flow], frame))

    def is_spooled(self, job_id: bytes) -> Operation[bool]:
        """Whether a job waits in the spool."""
        return job_id in (yield UseDisk(spool.find, (self.directory.spool, [job_id])))

    # -- one job

    def watching(self, ids: Iterable[bytes] = ()) -> Endings:
        """Opens a stream of the endings of jobs, to be closed."""
        return Endings(self.clock, ids, self._submit, self._files)

    def items(self, job_id: bytes, start: int, timeout_s: float | None) -> Items:
        """Opens a stream of the items that a job yields, from a number on, to be closed."""
        return Items(self.clock, job_id, start, timeout_s)

    def wait(self, job_id: bytes, timeout_s: float | None) -> Operation[Ending]:
        """Waits for the end of a job.

        Raises:
            ResultTimeout: it did not end in time.
            JobNotFound: the broker does not know the job.
        """
        return only_ending(self.watching([job_id]), job_id, timeout_s)

    def info(self, job_id: bytes, arguments: bool = False) -> Operation[JobInfo]:
        """All that is known of a job; little, if it is in the spool. Its arguments only if they are wanted.

        Raises:
            JobNotFound: nothing is known of it.
            BrokerUnavailable: no broker answers, and the job is not in the spool either.
        """
        from taskq.protocol.jobs import info_of

        try:
            return info_of((yield from self.ask(GetJob(job_id, arguments))))
        except BrokerUnavailable:
            if not (yield from self.is_spooled(job_id)):
                raise
        return info_of((job_id, "", "", JobState.QUEUED))

    def why(self, job_id: bytes) -> Operation[WhyInfo]:
        """Why a job does not run. Raises as `info`."""
        from taskq.model.info.why import Reason, WhyInfo
        from taskq.protocol.jobs import why_of

        try:
            return why_of((yield from self.ask(ExplainJob(job_id))))
        except BrokerUnavailable:
            if not (yield from self.is_spooled(job_id)):
                raise
        return WhyInfo(job_id.hex(), "", "", JobState.QUEUED, [Reason("no_fleet"), Reason("spooled")])

    def cancel(self, job_id: bytes, also_running: bool) -> Operation[bool]:
        """Cancels a job; if it runs, waits for its end. Returns whether it is cancelled now."""
        while True:
            is_cancelled = yield from self.ask(CancelJob(job_id, also_running))
            if is_cancelled is not None:
                return bool(is_cancelled)
            try:
                ending = yield from self.wait(job_id, CANCEL_AGAIN_S)
                return ending.state == JobState.CANCELLED
            except ResultTimeout:
                pass  # a new broker has run it again, and does not know that it is not wanted

    def retry(self, job_id: bytes) -> Operation[None]:
        """Queues a failed job again. Raises as `Job.retry`."""
        yield from self.ask(RetryJob(job_id))

    def purge(self, job_id: bytes) -> Operation[None]:
        """Removes a job. Raises as `Job.purge`."""
        yield from self.ask(PurgeJob(job_id))

    # -- many jobs: the broker does a little for each request, and says where to go on

    def find(
        self,
        state: JobState | None,
        task: str | None,
        queue: str | None,
        place: bytes | int | None,
        limit: int | None,
        search: JobSearch = ALL_JOBS,
        within_s: float | None = None,
    ) -> Operation[FoundJobs]:
        """Lists jobs, newest first, as far as it comes in some seconds."""
        from taskq.protocol.jobs import info_of

        until = inf if within_s is None else self.clock.monotonic() + within_s
        infos: list[JobInfo] = []
        requests = Requests(self)
        try:
            while limit is None or len(infos) < limit:
                most = MAX_JOBS_LISTED if limit is None else min(limit - len(infos), MAX_JOBS_LISTED)
                asked = state and state.value, task, queue, place, most
                is_search = search != ALL_JOBS
                found, place = yield from requests.ask(SearchJobs(*asked, *search) if is_search else ListJobs(*asked))
                infos.extend(map(info_of, found))
                if place is None or self.clock.monotonic() >= until:
                    break
        except GeneratorExit:
            requests.abandon()
            raise
        finally:
            yield from requests.end()
        return FoundJobs(infos, place)

    def retry_all(self, task: str | None, queue: str | None) -> Operation[int]:
        """Queues all failed jobs again, or those of a task or queue. Returns their number."""
        return (yield from self._repeat(Requests(self), RetryJobs(task, queue, None)))

    def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> Operation[int]:
        """Removes the jobs in a state that ended before a time. Returns their number."""
        return (yield from self._repeat(Requests(self), PurgeJobs(state.value, task, queue, before, None)))

    def drop_unfinished(self, before: float) -> Operation[int]:
        """Removes the jobs that have not ended and were enqueued before a time, where no fleet runs. Returns their
        number.

        Raises:
            ConnectionLost: a fleet has the directory.
        """
        dropped = 0
        if self.journal_answers(Op.JOBS):
            for state in (JobState.WAITING, JobState.SCHEDULED, JobState.QUEUED):  # what waits for others goes first
                requests = Requests(self, only_stopped=True)
                dropped += yield from self._repeat(requests, PurgeJobs(state.value, None, None, before, None))
        return dropped

    @staticmethod
    def _repeat(requests: Requests, request: RetryJobs | PurgeJobs) -> Operation[int]:
        """Repeats a request until nothing is left to do; returns the number of jobs that it was done to."""
        done = 0
        try:
            while True:
                count, span = yield from requests.ask(request)
                done += int(count)
                if span is None:
                    return done
                request = request._replace(span=span)
        except GeneratorExit:
            requests.abandon()
            raise
        finally:
            yield from requests.end()

    def pause(self, queues: Sequence[str], is_paused: bool, by: str) -> Operation[list[str]]:
        """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change."""
        changed: list[str] = yield from self.ask(PauseQueues(list(queues), is_paused, by))
        return changed

    # -- schedules

    def schedules(self) -> Operation[list[ScheduleInfo]]:
        """All schedules, by name."""
        from taskq.protocol.schedules import schedule_of

        return [schedule_of(value) for value in (yield from self.ask(ListSchedules()))]

    def put_schedule(self, schedule: Schedule) -> Operation[ScheduleInfo]:
        """Adds a schedule, or replaces the one of its name."""
        from taskq.protocol.schedules import schedule_of

        return schedule_of((yield from self.ask(PutSchedule(schedule.to_wire()))))

    def remove_schedule(self, name: str) -> Operation[None]:
        """Removes a schedule."""
        yield from self.ask(RemoveSchedule(name))

    def pause_schedule(self, name: str, is_paused: bool) -> Operation[ScheduleInfo]:
        """Pauses or resumes a schedule."""
        from taskq.protocol.schedules import schedule_of

        return schedule_of((yield from self.ask(PauseSchedule(name, is_paused))))

    def run_schedule(self, name: str, job_id: bytes) -> Operation[None]:
        """Makes a job of a schedule now."""
        yield from self.ask(RunSchedule(name, job_id))

    # -- the fleet

    def status(self) -> Operation[FleetStatus]:
        """What the fleet is doing. Raises BrokerUnavailable: no broker answers."""
        from taskq.protocol.status import status_of

        return status_of((yield from Requests(self, only_running=True).ask(GetStatus())))

    def look(self) -> Operation[FleetStatus]:
        """The status of a fleet, or what one that does not run has left; then the state of its broker is "stopped".

        Raises:
            BrokerUnavailable: there never was a fleet.
        """
        from taskq.protocol.status import status_of

        return status_of((yield from self.ask(GetStatus())))

    def counts(self) -> Operation[list[TaskCounts]]:
        """What happened to the jobs of each task and queue, by name, also of a fleet that does not run. Raises as
        `look`."""
        from taskq.protocol.counts import counts_of

        found: list[TaskCounts] = []
        after: list[str] | None = None
        while True:
            portion, after = counts_of((yield from self.ask(GetCounts(after))))
            found += portion
            if after is None:
                return found

    def stop(self) -> Operation[None]:
        """Asks the fleet to stop: running jobs may end first."""
        yield from self.ask(StopFleet())

    def reload(self) -> Operation[int]:
        """Asks the fleet to replace its consumers, one by one, by ones with the present code.

        Returns:
            The number of this reload; the status tells how far it is.
        """
        number: int = yield from self.ask(ReloadFleet())
        return number

    def write_stacks(self, number: int | None) -> Operation[list[tuple[int, int]]]:
        """Has a consumer (None: all) write the stacks of its threads to the log, while its jobs go on.

        Returns:
            The number and the process id of each that was asked; none if there is no consumer with that number.
        """
        told = yield from self.ask(WriteStacks(number))
        return [(number, pid) for number, pid in told]

    # -- asking

    def ask(self, request: Request) -> Operation[Any]:
        """Makes one request, which may be repeated.

        Raises:
            TaskQError: what the broker says.
            BrokerUnavailable: no broker answers.
        """
        requests = Requests(self)
        try:
            return (yield from requests.ask(request))
        except GeneratorExit:
            requests.abandon()
            raise
        finally:
            yield from requests.end()

    def journal_answers(self, op: Op) -> bool:
        """Whether the directory holds anything to ask. A look makes a journal only of jobs that wait for the first
        fleet."""
        if op not in OPS:
            return False
        if os.path.exists(self.directory.journal):
            return True
        return op in (Op.JOBS, Op.STATUS) and spool.has_files(self.directory.spool)


class FleetIsThere(ConnectionLost):
    """A fleet has the directory, or is about to: it is the one to ask."""


class Requests:
    """The requests of one call. A fleet that does not run is asked by way of its journal, which one process reads for
    all of them."""

    def __init__(self, queue: DirectoryQueue, *, only_running: bool = False, only_stopped: bool = False) -> None:
        self._queue = queue
        self._only_running = only_running
        self._only_stopped = only_stopped
        self._reader: Line | None = None

    def ask(self, request: Request) -> Operation[Any]:
        """Makes a request. Raises as `DirectoryQueue.ask`."""
        queue, told = self._queue, ""
        if self._only_stopped:
            return (yield from self._ask_reader(request))
        until = queue.clock.monotonic() + queue.absence.reply_timeout_s
        for _ in range(_MOST_ROUNDS):
            try:
                queue.is_stopped = False
                return (yield from self._ask_fleet(request))
            except ConnectionLost as error:
                told = queue.absence.describe()
                is_silent = isinstance(error, BrokerSilent)
                if self._only_running or is_silent or not queue.journal_answers(op_of(request)):
                    raise BrokerUnavailable(told) from error
                if is_listening(queue.absence.path):
                    continue  # another has come up meanwhile, and can be asked
            try:
                queue.is_stopped = True
                return (yield from self._ask_reader(request))
            except FleetIsThere as error:
                told = str(error)
                if queue.clock.monotonic() > until:
                    break
        raise BrokerUnavailable(told)

    @staticmethod
    def _ask_fleet(request: Request) -> Operation[Any]:
        must_be_fresh = False
        while True:
            line: Line = yield Open(op_of(request) in LOOKS, must_be_fresh)
            try:
                number, frame = line.talk.request(request)
                return value_of((yield Ask(line, number, frame)), number)
            except ConnectionLost as error:
                if line.is_fresh or isinstance(error, BrokerSilent):
                    raise
                must_be_fresh = True
            finally:
                line.leave()

    def _ask_reader(self, request: Request) -> Operation[Any]:
        try:
            if self._reader is None:
                self._reader = yield OpenReader()
            number, frame = self._reader.talk.request(request)
            return value_of((yield Ask(self._reader, number, frame)), number)
        except BrokerSilent as error:
            yield from self.end()
            told = f"the journal in {self._queue.directory.path} takes too long to read"
            raise BrokerUnavailable(told) from error
        except (AlreadyRunning, ConnectionLost) as error:
            yield from self.end()
            raise FleetIsThere(str(error)) from error

    def end(self) -> Operation[None]:
        """Lets the reader go."""
        reader, self._reader = self._reader, None
        if reader is not None:
            yield EndReader(reader)

    def abandon(self) -> None:
        """Lets the reader go, where nobody can wait for it any more."""
        if self._reader is not None:
            self._reader.leave()
            self._reader = None
