"""The calls of a client to the queue in a database, each written once, as operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, TypeVar, cast

from taskq.client.transport.endings import only_ending
from taskq.client.transport.handing_in import pauses_s, with_room
from taskq.client.transport.operations import CANCEL_AGAIN_S
from taskq.client.transport.postgres.changing import (
    cancel,
    is_being_cancelled,
    next_failed,
    pause,
    purge,
    read_failed,
    retry,
)
from taskq.client.transport.postgres.endings import Endings
from taskq.client.transport.postgres.items import Items
from taskq.client.transport.postgres.looking import Wanted, read_one, read_portion, read_row
from taskq.client.transport.postgres.verbs import Run, Sleep
from taskq.client.transport.verbs import Operation
from taskq.model.errors import (
    BrokerUnavailable,
    ConfigError,
    EnqueueError,
    JobStateError,
    PayloadTooLarge,
    ResultTimeout,
)
from taskq.model.info.search import ALL_JOBS, FoundJobs, JobSearch
from taskq.model.job import JobState, first_id_at
from taskq.model.limits import MAX_FLOW_JOBS, QUEUE_NAME
from taskq.model.partition import Partition, partition_of
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL
from taskq.protocol.endings import Ending
from taskq.protocol.payloads.files import PayloadFiles
from taskq.protocol.postgres.admitting import Admission, check_arguments
from taskq.protocol.postgres.kinds import Kinds, number_partitions, number_specs
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import (
    MAY_READ_ARGUMENTS,
    NewJob,
    notify,
    other_arguments,
    ready_word,
    submit_constrained,
    submit_plain,
    words_of,
)
from taskq.protocol.submissions import Call, EarlierId, Flow, chunks
from taskq.system.clock import ClientClock
from taskq.system.place import Place

if TYPE_CHECKING:
    from taskq.model.info.counts import TaskCounts
    from taskq.model.info.job import JobInfo
    from taskq.model.info.schedule import ScheduleInfo
    from taskq.model.info.status import FleetStatus
    from taskq.model.info.why import WhyInfo
    from taskq.model.schedule import Schedule

T = TypeVar("T")

#: Jobs that one statement looks at.
_MOST_SEEN = 1_000
#: Ids are made by the clocks of clients.
_CLOCKS_DIFFER_S = 60.0

#: While a client hands in one job right after the other, brokers are told of each partition so often at most: they look
#: by themselves after activity. A client that waits for each job makes longer pauses: brokers are told of all of these.
_TELL_EVERY_S = 0.01
_RIGHT_AFTER_S = 0.0002
#: Of how many partitions it is remembered when brokers were told.
_MOST_TOLD = 10_000


class PostgresQueue:
    """The queue in a database: a `taskq.client.transport.api.QueueApi`."""

    def __init__(self, place: Place, clock: ClientClock) -> None:
        """
        Args:
            place: with a database.
            clock: tells the time, and lets it pass where an operation sleeps.
        """
        assert place.database is not None
        self._place = place
        self._channel = place.database.schema  # of brokers
        self.database = place.database
        self.clock = clock
        self.kinds = Kinds()
        #: Of no use here: arguments and results are in the database.
        self.payloads = PayloadFiles(place.directory)
        self._may_read: bool | None = None  # see `_compares`
        self._told_at: dict[str, float] = {}  # when brokers were told that a partition has jobs
        self._submitted_at = -inf  # when jobs were handed in last (monotonic)

    # -- submitting

    def submit(self, spec: Spec, calls: Iterable[Call], waits_for_room: bool = False) -> Operation[list[bytes]]:
        """Submits jobs of one kind; each is durable when this returns."""
        ids: list[bytes] = []
        for chunk in chunks(calls, spec.max_queued if waits_for_room else None):
            ids += yield from with_room(partial(self.submit_chunk, spec, chunk), waits_for_room)
        return ids

    def submit_chunk(self, spec: Spec, chunk: Sequence[Call], *before: Query) -> Operation[list[bytes]]:
        """Submits jobs that fit one statement. Returns the ids of those that stand for them.

        Args:
            before: is sent before that, in the same transaction.
        """
        if spec.max_queued is not None or any(_is_linked(call) for call in chunk):
            earlier = yield from self._admit([(spec, call) for call in chunk], before)
            return [EarlierId(earlier[call.id]) if call.id in earlier else call.id for call in chunk]
        if all(call.constraints is None for call in chunk):
            number, (partition,) = yield from self._numbers(spec, [partition_of(spec, None)])
            query = submit_plain(number, partition, [call.id for call in chunk], [call.payload for call in chunk])
            words = self._unless_told([ready_word(partition)])
        else:
            query, words = yield from self._constrained(spec, chunk)
        after = (notify(self._channel, words),) if words else ()
        new = yield Run(partial(_alone, query, before, after), joins=True)
        self._submitted_at = self.clock.monotonic()
        if new < len(chunk):  # they were sent before
            yield from self._check_arguments(chunk)
        return [call.id for call in chunk]

    def _admit(self, flow: Flow, before: Sequence[Query]) -> Operation[dict[bytes, bytes]]:
        """Submits jobs that have to be let in. Returns, for each that is left out, its id and that of the one in its
        place."""
        groups = []
        for spec, calls in _by_spec(flow).items():
            groups.append((spec, (yield from self._jobs_of(spec, calls))))
        jobs = [job for _, own in groups for job in own]
        is_unique = any(job.constraints and job.constraints.unique for job in jobs)
        if len(groups) > 1 and is_unique:
            raise EnqueueError("a workflow with unique jobs: one that is left out would leave others without an end")
        wall = self.clock.time()
        compares = is_unique and (yield from self._compares())
        admission = Admission(groups, wall, self._words_of(jobs, wall), self._channel, compares=compares)
        earlier: dict[bytes, bytes] = yield Run(partial(admission.plan, before), joins=True)
        self._submitted_at = self.clock.monotonic()
        return earlier

    def _jobs_of(self, spec: Spec, calls: Sequence[Call]) -> Operation[list[NewJob]]:
        """Jobs of one spec, with their numbers."""
        number, numbers = yield from self._numbers(spec, [partition_of(spec, call.constraints) for call in calls])
        return [NewJob(*call, number, partition) for call, partition in zip(calls, numbers, strict=True)]

    def _check_arguments(self, chunk: Sequence[Call]) -> Operation[None]:
        """Raises EnqueueError if a known id has come with other arguments than before."""
        if (yield from self._compares()):
            query = other_arguments([call.id for call in chunk], [call.payload for call in chunk])
            check_arguments((yield Run(partial(_rows, query), joins=True)))

    def _compares(self) -> Operation[bool]:
        """Whether the role may read the arguments of jobs: one that only enqueues may not."""
        if self._may_read is None:
            self._may_read = yield Run(_may_read_arguments)
        return bool(self._may_read)

    def _constrained(self, spec: Spec, chunk: Sequence[Call]) -> Operation[tuple[Query, list[str]]]:
        jobs = yield from self._jobs_of(spec, chunk)
        wall = self.clock.time()
        return submit_constrained(jobs, wall), self._words_of(jobs, wall)

    def submit_flow(self, flow: Flow, waits_for_room: bool = False) -> Operation[None]:
        """Submits jobs of several kinds together: all are durable when this returns, or none is accepted."""
        if len(flow) > MAX_FLOW_JOBS:
            raise PayloadTooLarge(
                f"{len(flow):,} jobs go together, at most {MAX_FLOW_JOBS:,} can: let a job of the workflow enqueue the "
                "rest of it, or link fewer jobs"
            )
        yield from with_room(partial(self._admit, flow, ()), waits_for_room)

    def _words_of(self, jobs: Iterable[NewJob], wall: float) -> list[str]:
        """What brokers are told of jobs, unless they have just been told that."""
        return self._unless_told(words_of(jobs, wall))

    def _unless_told(self, words: Iterable[str]) -> list[str]:
        now, told_at = self.clock.monotonic(), self._told_at
        told_before = inf if now - self._submitted_at >= _RIGHT_AFTER_S else now - _TELL_EVERY_S
        due = [word for word in words if told_at.get(word, -inf) <= told_before]
        if len(told_at) > _MOST_TOLD:
            told_at.clear()
        told_at.update({word: now for word in due if word.startswith("q")})
        return due

    def _numbers(self, spec: Spec, partitions: Sequence[Partition]) -> Operation[tuple[int, list[int]]]:
        """The numbers of a spec and of partitions, which are looked up once, on a connection of ours."""
        number = self.kinds.specs.get(spec)
        if number is None:
            found = yield Run(partial(number_specs, [spec]))
            self.kinds.specs |= found
            number = found[spec]
        return number, (yield from self._partitions(partitions))

    def _partitions(self, partitions: Sequence[Partition]) -> Operation[list[int]]:
        self.kinds.forget_old(self.clock.monotonic())
        known = self.kinds.partitions
        missing = list({partition: None for partition in partitions if partition not in known})
        if missing:
            found = yield Run(partial(number_partitions, missing))
            self.kinds.partitions |= found
            known = {**known, **found}  # another thread may have had to forget what is known
        return [known[partition] for partition in partitions]

    # -- one job

    def watching(self, ids: Iterable[bytes] = ()) -> Endings:
        """Opens a stream of the endings of jobs, to be closed."""
        return Endings(self.clock, ids, self.submit_chunk)

    def wait(self, job_id: bytes, timeout_s: float | None) -> Operation[Ending]:
        """Waits for the end of a job.

        Raises:
            ResultTimeout: it did not end in time.
            JobNotFound: nothing is known of the job.
        """
        return only_ending(self.watching([job_id]), job_id, timeout_s)

    def items(self, job_id: bytes, start: int, timeout_s: float | None) -> Items:
        """Opens a stream of the items that a job yields, from a number on, to be closed."""
        return Items(self.clock, job_id, start, timeout_s)

    def info(self, job_id: bytes, arguments: bool = False) -> Operation[JobInfo]:
        """All that is known of a job; its arguments only if they are wanted. Raises JobNotFound."""
        from taskq.protocol.jobs import info_of

        return info_of((yield Run(partial(read_one, job_id, arguments), joins=True)))

    def why(self, job_id: bytes) -> Operation[WhyInfo]:
        """Why a job does not run. Raises JobNotFound."""
        from taskq.client.transport.postgres.reasons import read_reasons

        return cast("WhyInfo", (yield Run(partial(read_reasons, job_id))))

    def cancel(self, job_id: bytes, also_running: bool) -> Operation[bool]:
        """Cancels a job; if it runs and that is wanted, stops it and waits for its end. Returns whether it is
        cancelled."""
        while True:
            is_cancelled = yield Run(partial(cancel, job_id, also_running, self._channel))
            if is_cancelled is not None:
                return bool(is_cancelled)
            try:
                ending = yield from self.wait(job_id, CANCEL_AGAIN_S if also_running else next(pauses_s()))
                return ending.state == JobState.CANCELLED
            except ResultTimeout:
                pass
            if not also_running and (yield from self._goes_on(job_id)):
                return False

    def _goes_on(self, job_id: bytes) -> Operation[bool]:
        """Waits until the fleet that has a job has looked whether it runs. Returns whether it does."""
        for pause_s in pauses_s():
            is_wanted = yield Run(partial(is_being_cancelled, job_id))
            if is_wanted is not None:
                return not is_wanted
            yield Sleep(pause_s)
        raise AssertionError  # pauses have no end

    def retry(self, job_id: bytes) -> Operation[None]:
        """Queues a failed job again. Raises JobNotFound, JobStateError."""
        if not (yield from self._retry([job_id])):
            row = yield Run(partial(read_row, job_id))
            raise JobStateError(f"job {job_id.hex()} is {row.state.value}: only a failed job can be retried")

    def _retry(self, ids: Sequence[bytes]) -> Operation[int]:
        jobs = yield Run(partial(read_failed, ids))
        if not jobs:
            return 0
        numbers = yield from self._partitions([job.partition for job in jobs])
        return int((yield Run(partial(retry, jobs, numbers, self._channel))))

    def purge(self, job_id: bytes) -> Operation[None]:
        """Removes a job that does not run. Raises JobNotFound, JobStateError."""
        while not (yield Run(partial(purge, [job_id], self._channel))):
            row = yield Run(partial(read_row, job_id))
            if row.kept < FIRST_FINAL and not (yield from self.cancel(job_id, False)):
                row = yield Run(partial(read_row, job_id))
                if row.kept < FIRST_FINAL:
                    raise JobStateError(f"job {job_id.hex()} is running: it can be purged when it has ended")

    # -- many jobs, in portions

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
        """Lists jobs, newest first: by their ids, or in the order of the queue if they have not ended. Scheduled ones
        come in the order in which they are due."""
        from taskq.protocol.jobs import info_of

        until = inf if within_s is None else self.clock.monotonic() + within_s
        wanted = Wanted(state, task, queue, search)
        if isinstance(place, bytes):
            row = yield Run(partial(read_row, place))
            place = row.seq if wanted.is_of_living else place
        infos: list[JobInfo] = []
        while limit is None or len(infos) < limit:
            rows, place = yield Run(partial(read_portion, wanted, place, _MOST_SEEN))
            if limit is not None and len(infos) + len(rows) > limit:
                rows = rows[: limit - len(infos)]
                place = rows[-1].seq if wanted.is_of_living else rows[-1].id
            infos += [info_of(row.fields()) for row in rows]
            if place is None or self.clock.monotonic() >= until:
                break
        return FoundJobs(infos, place)

    def retry_all(self, task: str | None, queue: str | None) -> Operation[int]:
        """Queues all failed jobs again, or those of a task or queue. Returns their number."""

        def fits(spec: Spec) -> bool:
            return task in (None, spec.task) and queue in (None, spec.queue)

        until = first_id_at(self.clock.time() + _CLOCKS_DIFFER_S)
        after, retried = bytes(16), 0
        while True:
            ids, place = yield Run(partial(next_failed, fits, after, _MOST_SEEN))
            if ids:
                retried += yield from self._retry(ids)
            if place is None or place >= until:
                return retried
            after = place

    def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> Operation[int]:
        """Removes the jobs in a state that ended before a time. Returns their number."""
        wanted = Wanted(state, task, queue)
        place: bytes | int | None = None
        removed = 0
        while True:
            rows, place = yield Run(partial(read_portion, wanted, place, _MOST_SEEN))
            old = [row.id for row in rows if before is None or row.is_before(before)]
            if old:
                removed += len((yield Run(partial(purge, old, self._channel))))
            if place is None:
                return removed

    def pause(self, queues: Sequence[str], is_paused: bool, by: str) -> Operation[list[str]]:
        """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change."""
        for queue in queues:
            if not isinstance(queue, str) or not QUEUE_NAME.match(queue):
                raise ConfigError(f"{queue!r:.80} is not the name of a queue")
        return cast("list[str]", (yield Run(partial(pause, queues, is_paused, by, self._channel))))

    # -- schedules

    def schedules(self) -> Operation[list[ScheduleInfo]]:
        """All schedules, by name."""
        from taskq.client.transport.postgres.scheduling import read_schedules

        return cast("list[ScheduleInfo]", (yield Run(read_schedules, joins=True)))

    def put_schedule(self, schedule: Schedule) -> Operation[ScheduleInfo]:
        """Adds a schedule, or replaces the one of its name."""
        from taskq.client.transport.postgres.scheduling import put_schedule

        return cast("ScheduleInfo", (yield Run(partial(put_schedule, schedule, self._channel), joins=True)))

    def remove_schedule(self, name: str) -> Operation[None]:
        """Removes a schedule. Raises ScheduleNotFound."""
        from taskq.client.transport.postgres.scheduling import remove_schedule

        yield Run(partial(remove_schedule, name), joins=True)

    def pause_schedule(self, name: str, is_paused: bool) -> Operation[ScheduleInfo]:
        """Pauses or resumes a schedule. Raises ScheduleNotFound."""
        from taskq.client.transport.postgres.scheduling import pause_schedule

        return cast("ScheduleInfo", (yield Run(partial(pause_schedule, name, is_paused, self._channel), joins=True)))

    def run_schedule(self, name: str, job_id: bytes) -> Operation[None]:
        """Makes a job of a schedule now. Raises ScheduleNotFound."""
        from taskq.client.transport.postgres.scheduling import read_schedule, run_schedule

        schedule = (yield Run(partial(read_schedule, name), joins=True)).schedule
        number, [partition] = yield from self._numbers(
            schedule.spec, [partition_of(schedule.spec, schedule.constraints)]
        )
        yield Run(partial(run_schedule, name, job_id, number, partition, self._channel), joins=True)

    # -- the fleets

    def status(self) -> Operation[FleetStatus]:
        """What the fleets are doing. Raises BrokerUnavailable: none runs."""
        status = yield from self.look()
        if status.broker.state == "stopped":
            raise BrokerUnavailable(f"no fleet runs on {self._place.shown}: start one with `taskq worker module:app`")
        return status

    def look(self) -> Operation[FleetStatus]:
        """What the fleets are doing; the state of the broker is "stopped" if none runs."""
        from taskq.client.transport.postgres.fleets import read_status

        return cast("FleetStatus", (yield Run(partial(read_status, self._place))))

    def is_served(self) -> Operation[bool]:
        """Whether a fleet runs on some machine."""
        from taskq.client.transport.postgres.fleets import are_heard

        return cast("bool", (yield Run(are_heard)))

    def counts(self) -> Operation[list[TaskCounts]]:
        """What happened to the jobs of each task and queue, by name."""
        from taskq.client.transport.postgres.fleets import read_counts

        return cast("list[TaskCounts]", (yield Run(read_counts)))


def _alone(query: Query, before: Sequence[Query], after: Sequence[Query]) -> Plan[int]:
    """A plan of one statement that returns a number."""
    rows = yield Step(*before, query, commits=True, after=after)
    return int(rows[len(before)][0][0])


def _is_linked(call: Call) -> bool:
    """Whether others have to be looked at before it comes in."""
    return call.constraints is not None and (call.constraints.unique is not None or bool(call.constraints.after))


def _by_spec(flow: Flow) -> dict[Spec, list[Call]]:
    found: dict[Spec, list[Call]] = {}
    for spec, call in flow:
        found.setdefault(spec, []).append(call)
    return found


def _may_read_arguments() -> Plan[bool]:
    [[(may,)]] = yield Step(MAY_READ_ARGUMENTS, commits=True)
    return bool(may)


def _rows(query: Query) -> Plan[Rows]:
    [rows] = yield Step(query, commits=True)
    return rows
