"""Jobs that lie in the spool, since no broker ran when they were handed in, or since they were to stay in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from taskq.engines.contract import Events
from taskq.model.errors import StoreFull, TaskQError
from taskq.model.spec import Spec
from taskq.protocol import frames, spool
from taskq.protocol.submissions import Submission, submission_of


class SpooledJobs:
    """The spool, as the committer takes it in. A file stays there until its jobs are committed."""

    def __init__(self, path: Path, events: Events) -> None:
        """
        Args:
            path: the directory of the spool.
        """
        self._path = path
        self._events = events
        self._backlog = spool.Backlog(path)

    @property
    def has_more(self) -> bool:
        """Whether the spool has more than `read` has returned, and should be asked again soon."""
        return self._backlog.has_more

    @property
    def is_empty(self) -> bool:
        """Whether no jobs wait in the spool."""
        return not spool.has_files(self._path)

    def read(self) -> list[tuple[Path, Submission]]:
        """Reads the next files, as many as one commit takes; sets aside those that make no sense."""
        files: list[tuple[Path, Submission]] = []
        for path, content in self._backlog.portion():
            try:
                files.append((path, _submission(content)))
            except (TaskQError, ValueError) as error:
                kept = spool.set_aside(path)
                self._events.log.error("spool.unreadable", path=str(kept), error=str(error))
        return files

    def committed(self, files: Sequence[tuple[Path, Submission]], refusals: Mapping[int, TaskQError]) -> None:
        """Removes the files whose jobs are committed, and sets aside those that were refused.

        Args:
            files: as `read` returned them.
            refusals: why, by the identity of the submission that was refused.
        """
        taken: Counter[str] = Counter()
        for path, submission in files:
            reason = refusals.get(id(submission))
            if reason is None:
                path.unlink(missing_ok=True)
                taken[submission.spec.task] += len(submission.ids)
            elif isinstance(reason, StoreFull):
                self._backlog.pause()  # it stays there until there is room
            else:
                kept = spool.set_aside(path)
                self._events.log.error("spool.refused", path=str(kept), error=str(reason))
        for task, jobs in taken.items():
            self._events.log.info("spool.taken", jobs=jobs, task=task)

    def specs(self, ids: Sequence[bytes]) -> dict[bytes, Spec]:
        """The specs of those of some jobs that wait in the spool."""
        found: dict[bytes, Spec] = {}
        for content in set(spool.find(self._path, ids).values()) if ids else ():
            with suppress(TaskQError, ValueError):  # told, and set aside, when it is taken in
                for part in _submission(content).each:
                    found.update((job_id, part.spec) for job_id in part.ids)
        return {job_id: found[job_id] for job_id in ids if job_id in found}


def _submission(content: bytes) -> Submission:
    """Reads a file of the spool.

    Raises:
        TaskQError, ValueError: it makes no sense.
    """
    [(envelope, body)] = frames.Decoder().feed(content)
    return submission_of(None, envelope, body)
