"""What clients learn about jobs: about one, why it does not run, and about many in a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from taskq.engines.contract import Consumers, FleetControl, Jobs
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.store import Store, Wanted, stored_state
from taskq.engines.embedded.rescue.backup import Backups
from taskq.model.attempt import machine_at, read_outcome, shortened, started_at_of, without_result
from taskq.model.errors import JobNotFound
from taskq.model.info.search import ALL_JOBS, JobSearch
from taskq.model.info.why import MOST_JOBS_TOLD, Obstacle, OtherJob, Reason, WhyInfo
from taskq.model.job import JobRow, JobState
from taskq.model.limits import MAX_JOBS_LISTED
from taskq.model.stored import FIRST_FINAL, StoredJob, StoredState
from taskq.protocol.jobs import JobFields, JobsAnswer, shown_payload
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: Behind every sequence number.
_END = 1 << 62
#: How many jobs before and after one are shown with it.
_SHOWN_NEIGHBOURS = 100


class Admin:
    """Used by the broker's loop alone, when all that came in before is committed."""

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        committer: Committer,
        consumers: Consumers,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._committer = committer
        self._consumers = consumers
        self._clock = clock
        self.backups = Backups(store.connection, clock)

    def info(self, job_id: bytes, stored: StoredJob | None, arguments: bool) -> JobFields:
        """Returns all that is known of one job.

        Args:
            stored: the job, or None if it is not in the journal.
            arguments: whether to return its arguments, too.

        Raises:
            JobNotFound: nothing is known of it.
        """
        if stored is not None:
            fields = self._info(stored)
            return fields._replace(payload=shown_payload(stored.row.payload)) if arguments else fields
        spec = self._committer.spec_in_spool(job_id)  # the disk is full, or many are taken in before it
        if spec is None:
            raise JobNotFound.of(job_id)
        return JobFields(job_id, spec.task, spec.queue, JobState.QUEUED.value)

    def _info(self, stored: StoredJob) -> JobFields:
        row, _, _, outcome, _ = stored
        if outcome is not None:
            stored = stored._replace(outcome=without_result(outcome))
        attempts = self._store.attempts(row)
        is_last_missing = stored.kept >= FIRST_FINAL and row.attempts > max(
            (number for number, _ in attempts), default=0
        )
        if is_last_missing and outcome is not None:
            attempts.append((row.attempts, shortened(outcome)))
        follows = row.constraints is not None and row.constraints.follows
        after = self._store.parents(row.seq, _SHOWN_NEIGHBOURS) if follows else []
        before = self._store.followers(row.id, _SHOWN_NEIGHBOURS)
        machines = self._store.machines()
        history = [(number, kept, machine_at(machines, started_at_of(kept))) for number, kept in attempts]
        return self._fields(stored, self._running())._replace(history=history, after=after, before=before)

    # -- why one does not run

    def why(self, job_id: bytes, stored: StoredJob | None, control: FleetControl) -> WhyInfo:
        """Returns why a job does not run, the nearest obstacle first.

        Args:
            stored: the job, or None if it is not in the journal.
            control: knows what is in its way in the fleet.

        Raises:
            JobNotFound: nothing is known of it.
        """
        if stored is None:
            spec = self._committer.spec_in_spool(job_id)
            if spec is None:
                raise JobNotFound.of(job_id)
            return WhyInfo(job_id.hex(), spec.task, spec.queue, JobState.QUEUED, [Reason("spooled")])
        row, kept, _, _, _ = stored
        own = self._own_reason(stored)
        reasons = [] if own is None else [own]
        if kept < FIRST_FINAL:
            reasons += [self._completed(obstacle) for obstacle in control.why(row, kept == StoredState.QUEUED)]
        state = JobState.RUNNING if reasons[:1] and reasons[0].kind == "running" else kept.state
        return WhyInfo(job_id.hex(), row.spec.task, row.spec.queue, state, reasons)

    def _own_reason(self, stored: StoredJob) -> Reason | None:
        """The reason that the journal knows; None if the job waits for nothing but the fleet."""
        row, kept, due_at, outcome, finished_at = stored
        error = None if outcome is None else read_outcome(outcome).error
        told = None if error is None else f"{error.dotted_type}: {error.message}".rstrip(": ")
        if kept == StoredState.WAITING:
            return self._waits_for(row)
        if kept == StoredState.SCHEDULED:
            return Reason("scheduled", until=due_at, attempt=row.attempts or None, error=told)
        if kept >= FIRST_FINAL:
            return Reason("ended", since=finished_at, attempt=row.attempts or None, error=told)
        return None

    def _waits_for(self, row: JobRow) -> Reason:
        parents = self._store.parents(row.seq, _SHOWN_NEIGHBOURS)
        states = self._store.states(parents)
        running = self._running()
        left = [each for each in parents if each not in states or states[each] < FIRST_FINAL]
        jobs = [self._other(self._store.read(each), each, running) for each in left[:MOST_JOBS_TOLD]]
        return Reason("waiting", jobs=jobs, others=len(left) - len(jobs))

    def _completed(self, obstacle: Obstacle) -> Reason:
        """A reason of the fleet, with the job that only the journal knows."""
        reason, seq = obstacle
        if seq is None:
            return reason
        found, _ = self._store.find(Wanted(), seq - 1, seq + 1, 1, newest_first=True)
        return replace(reason, jobs=[self._other(job, job.row.id, {}) for job in found])

    @staticmethod
    def _other(job: StoredJob | None, job_id: bytes, running: Mapping[bytes, float]) -> OtherJob:
        if job is None:
            return OtherJob(job_id.hex())
        state = JobState.RUNNING if job_id in running else job.kept.state
        return OtherJob(job_id.hex(), job.row.spec.task, state, job.due_at if state is JobState.SCHEDULED else None)

    # -- many

    def jobs(
        self,
        state: str | None,
        task: str | None,
        queue: str | None,
        before: bytes | int | None,
        limit: int,
        search: JobSearch = ALL_JOBS,
    ) -> JobsAnswer:
        """Lists jobs, newest first; scheduled ones in the order in which they come due.

        Args:
            state, task, queue: only jobs with these; None for all.
            before: only those enqueued before this job; or where the previous list ended.
            limit: return at most this many.
            search: further conditions.

        Returns:
            The jobs; and where to go on, or None for the end.

        Raises:
            JobNotFound: nothing is known of the job in `before`.
        """
        if isinstance(before, bytes):
            stored = self._store.read(before)
            if stored is None:
                raise JobNotFound.of(before)
            before = stored.row.seq
        most = max(1, min(limit, MAX_JOBS_LISTED))
        wanted = Wanted(None if state in (None, JobState.RUNNING) else stored_state(state), task, queue, search=search)
        running = self._running()
        end = _END if before is None else before
        if state == JobState.SCHEDULED:
            found, position = self._store.find_due(wanted, before, most)
        elif state == JobState.RUNNING:
            found, position = self._running_jobs(running, wanted, end)[:most], None
        else:
            found, position = self._store.find(wanted, 0, end, most, newest_first=True)
            if state == JobState.QUEUED:
                found = [job for job in found if job.row.id not in running]
        return [self._fields(_short(job), running).listed() for job in found], position

    def _running_jobs(self, running: dict[bytes, float], wanted: Wanted, end: int) -> list[StoredJob]:
        jobs = [job for job in map(self._store.read, running) if job is not None]
        jobs = [job for job in jobs if job.row.seq < end and wanted.fits(job)]
        return sorted(jobs, key=lambda job: -job.row.seq)

    def _running(self) -> dict[bytes, float]:
        """The jobs that run now, and since when."""
        wall, now = self._clock.time(), self._clock.monotonic()
        found: dict[bytes, float] = {}
        for key, claims in self._consumers.claims().items():
            for claim in claims:
                row = self._jobs.running(key, claim.number)
                if row is not None:
                    found[row.id] = wall - (now - claim.started_at)
        return found

    def _fields(self, job: StoredJob, running: dict[bytes, float]) -> JobFields:
        row, kept, due_at, outcome, finished_at = job
        state, attempts, started_at, progress = kept.state, row.attempts, None, None
        if kept == StoredState.QUEUED and row.id in running:
            state, attempts, started_at = JobState.RUNNING, row.attempts + 1, running[row.id]
            progress = self._consumers.progress_of(row.id)
        times = due_at, started_at, finished_at
        of_job = row.id, row.spec.task, row.spec.queue, state.value
        fields = JobFields(*of_job, attempts, row.crashes, *times, outcome, progress)
        meta = () if row.constraints is None else row.constraints.meta
        return fields._replace(meta=dict(meta)) if meta else fields


def _short(job: StoredJob) -> StoredJob:
    return job if job.outcome is None else job._replace(outcome=shortened(job.outcome))
