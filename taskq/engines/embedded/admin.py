"""Requests about jobs and queues: to list, cancel, retry and purge jobs, and to pause queues.

A request about many jobs reads or changes as many as take a few milliseconds, and its answer says where to go on: the
client asks again until all is done, and the fleet serves others in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from taskq.engines.contract import Consumers, Jobs
from taskq.engines.embedded.committer import Committer, StillSpooled
from taskq.engines.embedded.dependencies import release_dependents
from taskq.engines.embedded.journal.store import Store, Wanted
from taskq.model.attempt import shortened, without_result
from taskq.model.errors import ConfigError, JobNotFound, JobStateError, ProtocolError, StoreFull
from taskq.model.job import JobRow, JobState
from taskq.model.limits import MAX_JOBS_LISTED, MAX_JOBS_PURGED, MAX_JOBS_RETRIED
from taskq.model.spec import QUEUE_NAME, Spec
from taskq.model.stored import FIRST_FINAL, StoredJob, StoredState
from taskq.protocol.jobs import JobFields, JobsAnswer
from taskq.system.clock import SYSTEM_CLOCK, Clock

#: Behind every sequence number.
_END = 1 << 62
#: Who asked for a pause, as the log tells it.
_MAX_BY_CHARS = 200
#: Jobs before and after one that are told with it.
_SHOWN_NEIGHBOURS = 100


class Admin:
    """Used by the broker's loop alone, when everything before is committed."""

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        committer: Committer,
        consumers: Consumers,
        log: Any,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            log: the log of the fleet, a `taskq.telemetry.setup.Logger`.
        """
        self._jobs = jobs
        self._store = store
        self._committer = committer
        self._consumers = consumers
        self._log = log
        self._clock = clock

    # -- look

    def is_stored(self, job_id: bytes) -> bool:
        """Whether a job is in the journal."""
        return self._store.read(job_id) is not None

    def info(self, job_id: bytes) -> JobFields:
        """All that is known of one job.

        Raises:
            JobNotFound: nothing is known of it.
        """
        with suppress(StillSpooled):
            stored = self._committer.find(job_id)
            if stored is not None:
                return self._info(stored)
        spec = self._spec_in_spool(job_id)
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
        return self._fields(stored, self._running())._replace(history=attempts, after=after, before=before)

    def jobs(
        self, state: str | None, task: str | None, queue: str | None, before: bytes | int | None, limit: int
    ) -> JobsAnswer:
        """Lists jobs, newest first.

        Args:
            state, task, queue: only these; None for all.
            before: only those enqueued before this job; or where the list before this one ended.
            limit: the most that are returned.

        Returns:
            The jobs; and where to go on, or None for the end.

        Raises:
            JobNotFound: nothing is known of the job in `before`.
        """
        if isinstance(before, bytes):
            before = self._stored(before).row.seq
        end = _END if before is None else before
        most = max(1, min(limit, MAX_JOBS_LISTED))
        wanted = Wanted(None if state in (None, JobState.RUNNING) else _kept(state), task, queue)
        running = self._running()
        if state == JobState.RUNNING:
            found, position = self._running_jobs(running, wanted, end)[:most], None
        else:
            found, position = self._store.find(wanted, 0, end, most, newest_first=True)
            if state == JobState.QUEUED:
                found = [job for job in found if job.row.id not in running]
        return [self._fields(_short(job), running).listed() for job in found], position

    def _running_jobs(self, running: dict[bytes, float], wanted: Wanted, end: int) -> list[StoredJob]:
        jobs = [job for job in map(self._store.read, running) if job is not None]
        jobs = [
            job
            for job in jobs
            if job.row.seq < end
            and wanted.task in (None, job.row.spec.task)
            and wanted.queue in (None, job.row.spec.queue)
        ]
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

    def _spec_in_spool(self, job_id: bytes) -> Spec:
        """The spec of a job that is not in the journal: the disk is full, or many are to be taken in before it.

        Raises:
            JobNotFound: nor does it wait in the spool.
        """
        spec = self._committer.spec_in_spool(job_id)
        if spec is None:
            raise JobNotFound.of(job_id)
        return spec

    def _stored(self, job_id: bytes) -> StoredJob:
        stored = self._committer.find(job_id)
        if stored is None:
            raise JobNotFound.of(job_id)
        return stored

    # -- cancel

    def cancel(self, job_id: bytes, also_running: bool) -> bool | None:
        """Cancels a job.

        Args:
            also_running: stop it if it runs.

        Returns:
            Whether it is cancelled now; None: it runs, and is being stopped.

        Raises:
            JobNotFound: nothing is known of it.
            StoreFull: the disk is full.
        """
        stored = self._committer.find(job_id)
        if stored is None:
            self._spec_in_spool(job_id)
            raise StoreFull("the disk that holds the journal is full: the job can be cancelled when there is room")
        row, kept, *_ = stored
        if kept == StoredState.CANCELLED:
            self._detach(row)
        if kept >= FIRST_FINAL:
            return kept == StoredState.CANCELLED
        if not self._committer.is_settled:
            raise StoreFull("the disk that holds the journal is full: the job can be cancelled when there is room")
        if not self._consumers.withdraw(job_id):
            if not also_running:
                return False
            self._consumers.cancel_running(job_id)
            return None
        self._jobs.cancelled(row, kept)
        self._committer.collect(self._clock.monotonic())
        self._committer.commit(self._clock.monotonic(), self._clock.time())
        if not self._committer.is_settled:
            raise StoreFull("the disk that holds the journal is full: the job will be cancelled when there is room")
        return True

    def _detach(self, row: JobRow) -> None:
        """A job that was cancelled because of another would come back with that one."""
        if row.constraints is None or not row.constraints.follows:
            return
        try:
            self._store.detach(row)
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise

    # -- retry

    def retry_one(self, job_id: bytes) -> bool:
        """Queues a failed job again.

        Raises:
            JobNotFound: nothing is known of it.
            JobStateError: it is not failed.
            StoreFull: the disk is full.
        """
        stored = self._stored(job_id)
        if stored.kept != StoredState.FAILED:
            state = self._fields(stored, self._running()).state
            told = f"job {job_id.hex()} is {state}: only a failed job can be retried"
            raise JobStateError(told)
        self._retry([stored])
        self._log.info("jobs.retried", jobs=1, job_id=job_id.hex(), queue=stored.row.spec.queue)
        return True

    def retry(self, task: str | None, queue: str | None, span: list[int] | None) -> list[Any]:
        """Queues failed jobs again, the oldest first.

        Args:
            task, queue: only these; None for all.
            span: where to go on, as the answer before this one said.

        Returns:
            How many it were; and where to go on, or None for the end. Jobs that fail meanwhile are not among them.
        """
        jobs, span = self._next(Wanted(StoredState.FAILED, task, queue), span, MAX_JOBS_RETRIED)
        if jobs:
            self._retry(jobs)
            self._log.info("jobs.retried", jobs=len(jobs), task=task, queue=queue)
        return [len(jobs), span]

    def _retry(self, jobs: Sequence[StoredJob]) -> None:
        self._check_room()
        try:
            rows = self._store.requeue(jobs, self._clock.time())
            self._store.totals.retried += len(rows)
            handed = release_dependents(
                self._store, self._store.revive_dependents([row.id for row in rows]), self._clock.time()
            )
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise
        self._jobs.requeued(rows)
        self._committer.follow(handed)

    # -- purge

    def purge_one(self, job_id: bytes) -> bool:
        """Removes a job, in whatever state but running.

        Raises:
            JobNotFound: nothing is known of it.
            JobStateError: it runs.
            StoreFull: the disk is full.
        """
        stored = self._stored(job_id)
        self._take_back([stored])
        if self._jobs.consumer_of(job_id) is not None:
            raise JobStateError(f"job {job_id.hex()} is running: it can be purged when it has ended")
        self._purge([stored])
        self._log.info("jobs.purged", jobs=1, job_id=job_id.hex(), state=stored.kept.state.value)
        return True

    def purge(
        self, state: str, task: str | None, queue: str | None, before: float | None, span: list[int] | None
    ) -> list[Any]:
        """Removes jobs of one state, the oldest first.

        Args:
            state: any but running.
            task, queue: only these; None for all.
            before: only those that ended before this time, or were enqueued before it if they wait.
            span: where to go on, as the answer before this one said.

        Returns:
            How many it were; and where to go on, or None for the end.
        """
        jobs, span = self._next(Wanted(_kept(state), task, queue, before), span, MAX_JOBS_PURGED)
        self._take_back(jobs)
        leased = {row.id for held in self._jobs.leased().values() for _, row in held}
        jobs = [job for job in jobs if job.row.id not in leased]
        if jobs:
            self._purge(jobs)
            self._log.info("jobs.purged", jobs=len(jobs), state=state, task=task, queue=queue)
        return [len(jobs), span]

    def _purge(self, jobs: Sequence[StoredJob]) -> None:
        self._check_settled()
        try:
            self._store.remove(jobs)
            unfinished = [job for job in jobs if job.kept < FIRST_FINAL]
            handed = release_dependents(
                self._store, {job.row.id: StoredState.CANCELLED for job in unfinished}, self._clock.time()
            )
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise
        for job in unfinished:
            self._jobs.forget(job.row, job.kept)
        self._committer.follow(handed)
        self._committer.gone([job.row.id for job in jobs])

    def _take_back(self, jobs: Sequence[StoredJob]) -> None:
        """Takes back what was sent to consumers and has not started, if such jobs may be among these."""
        if any(job.kept == StoredState.QUEUED for job in jobs):
            self._consumers.take_back_all(self._clock.monotonic())

    # -- pause

    def pause(self, queues: list[Any], is_paused: bool, by: str) -> list[str]:
        """Pauses or resumes queues; returns those for which that is a change."""
        for queue in queues:
            if not isinstance(queue, str) or not QUEUE_NAME.match(queue):
                raise ConfigError(f"{queue!r:.80} is not the name of a queue")
        paused = self._store.paused()
        changed = sorted(set(queues) - paused if is_paused else paused & set(queues or paused))
        try:
            self._store.pause(changed, is_paused)
            self._store.commit()
        except StoreFull:
            self._store.rollback()
            raise
        self._jobs.pause(self._store.paused())
        if is_paused and changed:
            self._consumers.take_back_all(self._clock.monotonic())
        for queue in changed:
            self._log.info("queue.paused" if is_paused else "queue.resumed", queue=queue, by=by[:_MAX_BY_CHARS])
        return changed

    # -- helpers

    def _next(self, wanted: Wanted, span: list[int] | None, most: int) -> tuple[list[StoredJob], list[int] | None]:
        """The next jobs to change, and where to go on. What comes in after the first request is left alone."""
        after, end = span or (0, self._store.last_seq + 1)
        jobs, position = self._store.find(wanted, after, end, most, newest_first=False)
        return jobs, None if position is None else [position, end]

    def _check_room(self) -> None:
        self._check_settled()
        if self._store.is_full:
            raise StoreFull("the disk that holds the journal is full: free some space there")

    def _check_settled(self) -> None:
        """What ended and could not be recorded still looks queued in the store: it must not be touched."""
        if not self._committer.is_settled:
            raise StoreFull("the disk that holds the journal is full: free some space there, then try again")


def _kept(state: str) -> StoredState:
    """Raises ProtocolError if the store knows no such state."""
    found = next((kept for kept in StoredState if kept.state == state), None)
    if found is None:
        raise ProtocolError(f"{state!r:.40} is not a state in which jobs are kept")
    return found


def _short(job: StoredJob) -> StoredJob:
    return job if job.outcome is None else job._replace(outcome=shortened(job.outcome))
