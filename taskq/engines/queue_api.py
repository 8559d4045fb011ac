"""What applications ask of a queue, whatever its engine is.

An engine's clients come in two shells, blocking and asyncio; these are the blocking one's calls. The embedded engine is
asked at the broker's socket (`taskq.client.transport.blocking`), a shared one at its database. Two things are no part
of it, since they concern this machine's fleet: to stop it, and to reload it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from taskq.model.info.job import JobInfo
from taskq.model.job import JobState
from taskq.model.spec import Spec
from taskq.protocol.endings import Ending
from taskq.protocol.submissions import Call, Flow


class Endings(Protocol):
    """The ends of the jobs that somebody watches, as they come."""

    def next(self, timeout_s: float | None) -> tuple[bytes, Ending | None]:
        """The next job that ended, and how; None if nothing is known of it.

        Raises:
            ResultTimeout: none ended in time.
        """


class QueueApi(Protocol):
    """A queue, as applications see it. All calls raise BrokerUnavailable if nobody answers.

    What returns is durable. A call that raised may have been carried out all the same if its answer was lost; to make
    it again is safe, since jobs are known by ids that their clients have made.
    """

    def submit(self, spec: Spec, calls: Iterable[Call]) -> list[bytes]:
        """Hands in jobs of one kind. Returns the ids of the jobs that stand for them: a unique job may stand for a
        later one."""

    def submit_flow(self, flow: Flow) -> None:
        """Hands in jobs of any kinds that may come after each other: all of them, or none."""

    def wait(self, job_id: bytes, timeout_s: float | None) -> Ending:
        """Waits for the end of a job. Raises ResultTimeout, JobNotFound."""

    def watching(self, ids: Iterable[bytes] = ()) -> AbstractContextManager[Endings]:
        """Watches for the ends of jobs while the block runs."""

    def info(self, job_id: bytes) -> JobInfo:
        """All that is known of a job. Raises JobNotFound."""

    def jobs(
        self, state: JobState | None, task: str | None, queue: str | None, before: bytes | None, limit: int | None
    ) -> list[JobInfo]:
        """Lists jobs, newest first; None stands for all of them."""

    def cancel(self, job_id: bytes, also_running: bool) -> bool:
        """Cancels a job; if it runs, and shall be stopped, waits for its end. Returns whether it is cancelled."""

    def retry(self, job_id: bytes) -> None:
        """Queues a failed job again. Raises JobNotFound, JobStateError."""

    def retry_all(self, task: str | None, queue: str | None) -> int:
        """Queues all failed jobs again, or those of a task or queue. Returns how many."""

    def purge(self, job_id: bytes) -> None:
        """Removes a job that does not run. Raises JobNotFound, JobStateError."""

    def purge_all(self, state: JobState, task: str | None, queue: str | None, before: float | None) -> int:
        """Removes the jobs in a state that ended before a time (seconds since 1970), or were enqueued before it if they
        wait. Returns how many."""

    def pause(self, queues: Sequence[str], is_paused: bool, by: str) -> list[str]:
        """Pauses or resumes queues (none: all that are paused). Returns those for which that is a change."""
