"""What clients can change besides submitting jobs: cancel, retry and purge jobs, and pause queues.

Each is decided in the transaction that writes it (`taskq.engines.embedded.transaction`), and answered afterwards. A
command about many jobs changes as many as it can in a few milliseconds, and its answer says where to go on: the client
asks again until all are done, and the fleet serves others in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskq.engines.embedded.journal.store import Place, Store, Wanted, stored_state
from taskq.engines.embedded.transaction import Transaction
from taskq.model.attempt import pack_failure
from taskq.model.effects import Event
from taskq.model.errors import ConfigError, JobNotFound, JobStateError
from taskq.model.job import JobError
from taskq.model.limits import MAX_JOBS_PURGED, MAX_JOBS_RETRIED, PURGED_US, QUEUE_NAME, RETRIED_US
from taskq.model.stored import FIRST_FINAL, StoredJob, StoredState

#: The most characters of who asked for a pause, in the log.
_MAX_BY_CHARS = 200

#: Reads a job, even one that waits in the spool; returns None if nothing is known of it.
Find = Callable[[bytes], StoredJob | None]
#: Where to go on.
Span = list[int] | None


class Commands:
    """Used by the broker's loop alone."""

    def __init__(self, log: Any, removed: Callable[[list[bytes]], object]) -> None:
        """
        Args:
            log: the log of the fleet, a `taskq.telemetry.setup.Logger`.
            removed: called with the ids of jobs that were removed.
        """
        self._log = log
        self._removed = removed

    # -- cancel

    def cancel(self, tx: Transaction, find: Find, job_id: bytes, also_running: bool) -> bool | None:
        """Cancels a job.

        Args:
            also_running: whether to stop it if it runs.

        Returns:
            Whether it is cancelled now; None if it runs and is being stopped.

        Raises:
            JobNotFound: nothing is known of it.
        """
        stored = _known(find, job_id)
        row, kept, *_ = stored
        if kept == StoredState.CANCELLED and row.constraints is not None and row.constraints.follows:
            tx.store.detach(row)  # one that was cancelled because of another would come back with that one
        if kept >= FIRST_FINAL:
            return kept == StoredState.CANCELLED
        if not tx.withdraw(job_id):
            if not also_running:
                return False
            tx.then(tx.consumers.cancel_running, job_id)
            return None
        if job_id not in tx.ends:
            outcome = pack_failure(None, None, JobError("Cancelled", "cancelled before it started"))
            tx.end(stored, StoredState.CANCELLED, outcome, Event("job.cancelled", {"row": row}))
        return True

    # -- retry

    def retry_one(self, tx: Transaction, find: Find, job_id: bytes) -> tuple[bool, list[Place]]:
        """Queues a failed job again.

        Returns:
            True, and what to revive: see `Transaction.revive`.

        Raises:
            JobNotFound: nothing is known of it.
            JobStateError: it has not failed.
        """
        stored = _known(find, job_id)
        if stored.kept != StoredState.FAILED:
            state = "running" if tx.is_running(job_id) else stored.kept.state.value
            raise JobStateError(f"job {job_id.hex()} is {state}: only a failed job can be retried")
        places = tx.requeue([stored])
        tx.then(self._log.info, "jobs.retried", jobs=1, job_id=job_id.hex(), queue=stored.row.spec.queue)
        return True, places

    def retry(self, tx: Transaction, task: str | None, queue: str | None, span: Span) -> tuple[list[Any], list[Place]]:
        """Queues failed jobs again, the oldest first.

        Args:
            task, queue: only jobs of these; None for all.
            span: where to go on, from the previous answer.

        Returns:
            How many there were, and where to go on, or None for the end: jobs that fail meanwhile are left alone; and
            what to revive.
        """
        most = min(MAX_JOBS_RETRIED, tx.portion(RETRIED_US))
        jobs, span = _next(tx.store, Wanted(StoredState.FAILED, task, queue), span, most)
        places = tx.requeue(jobs) if jobs else []
        tx.room_us -= RETRIED_US * len(jobs)
        if jobs:
            tx.then(self._log.info, "jobs.retried", jobs=len(jobs), task=task, queue=queue)
        return [len(jobs), span], places

    # -- purge

    def purge_one(self, tx: Transaction, find: Find, job_id: bytes) -> bool:
        """Removes a job in any state except running.

        Raises:
            JobNotFound: nothing is known of it.
            JobStateError: it runs.
        """
        stored = _known(find, job_id)
        if not tx.withdraw(job_id):
            raise JobStateError(f"job {job_id.hex()} is running: it can be purged when it has ended")
        if job_id in tx.ends:
            stored = _known(find, job_id)  # it is over since
        self._remove(tx, [stored])
        tx.then(self._log.info, "jobs.purged", jobs=1, job_id=job_id.hex(), state=stored.kept.state.value)
        return True

    def purge(
        self,
        tx: Transaction,
        state: str,
        task: str | None,
        queue: str | None,
        before: float | None,
        span: Span,
    ) -> list[Any]:
        """Removes jobs of one state, the oldest first.

        Args:
            state: any state except running.
            task, queue: only jobs of these; None for all.
            before: only those that ended before this time or, if they are pending, were enqueued before it.
            span: where to go on, from the previous answer.

        Returns:
            How many there were; and where to go on, or None for the end.
        """
        wanted = Wanted(stored_state(state), task, queue, before)
        if wanted.kept == StoredState.QUEUED:
            tx.take_back_all()
        jobs, span = _next(tx.store, wanted, span, min(MAX_JOBS_PURGED, tx.portion(PURGED_US)))
        tx.room_us -= PURGED_US * len(jobs)
        if wanted.kept == StoredState.QUEUED:
            leased = {row.id for held in tx.jobs.leased().values() for _, row in held}
            jobs = [job for job in jobs if job.row.id not in leased]
        if jobs:
            self._remove(tx, jobs)
            tx.then(self._log.info, "jobs.purged", jobs=len(jobs), state=state, task=task, queue=queue)
        return [len(jobs), span]

    def _remove(self, tx: Transaction, jobs: list[StoredJob]) -> None:
        tx.remove(jobs)
        tx.then(self._removed, [job.row.id for job in jobs])

    # -- pause

    def pause(self, tx: Transaction, queues: list[Any], is_paused: bool, by: str) -> list[str]:
        """Pauses or resumes queues. Returns those that were not paused, or paused, before.

        Raises:
            ConfigError: one is not a queue's name.
        """
        for queue in queues:
            if not isinstance(queue, str) or not QUEUE_NAME.match(queue):
                raise ConfigError(f"{queue!r:.80} is not the name of a queue")
        paused = tx.store.paused()
        changed = sorted(set(queues) - paused if is_paused else paused & set(queues or paused))
        if changed:
            tx.store.pause(changed, is_paused)
            tx.then(tx.jobs.pause, tx.store.paused())
        if is_paused and changed:
            tx.then(tx.consumers.take_back_all, tx.now)
        for queue in changed:
            tx.then(
                self._log.info, "queue.paused" if is_paused else "queue.resumed", queue=queue, by=by[:_MAX_BY_CHARS]
            )
        return changed


def _known(find: Find, job_id: bytes) -> StoredJob:
    stored = find(job_id)
    if stored is None:
        raise JobNotFound.of(job_id)
    return stored


def _next(store: Store, wanted: Wanted, span: Span, most: int) -> tuple[list[StoredJob], Span]:
    """Returns the next jobs to change, and where to go on. Jobs that come in after the first request are left alone."""
    after, end = span or (0, store.last_seq + 1)
    jobs, position = store.find(wanted, after, end, most, newest_first=False)
    return jobs, None if position is None else [position, end]
