"""Jobs in the spool, since no broker ran when they were handed in, or since they must stay in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from taskq.engines.contract import Events
from taskq.model.errors import StoreFull, TaskQError
from taskq.model.spec import Spec
from taskq.protocol import frames, spool
from taskq.protocol.submissions import Submission, submission_of

#: A file, and the jobs in it.
SpooledFile = tuple[Path, Submission]


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
        self._in_hand: dict[str, Submission] = {}  # by the names of their files: what was read, but not committed

    @property
    def has_more(self) -> bool:
        """Whether the spool has more than `read` has returned, and should be asked again soon."""
        return self._backlog.has_more

    @property
    def holds_more(self) -> bool:
        """Whether jobs wait in the spool besides those that were read."""
        return spool.has_files(self._path, besides=self._in_hand)

    def read(self) -> list[SpooledFile]:
        """Reads the next files, as many as one commit takes; sets aside those that make no sense."""
        files: list[SpooledFile] = []
        for path, content in self._backlog.portion():
            if path.name in self._in_hand:
                continue
            try:
                files.append((path, _submission(content)))
            except (TaskQError, ValueError) as error:
                kept = spool.set_aside(path)
                self._events.log.error("spool.unreadable", path=str(kept), error=str(error))
        self._in_hand.update((path.name, submission) for path, submission in files)
        return files

    def committed(self, files: Sequence[SpooledFile], reasons: Sequence[object]) -> None:
        """Removes the files whose jobs are committed, and sets aside those that were refused.

        Args:
            files: as `read` returned them.
            reasons: why each was refused, or None if it was not.
        """
        taken: Counter[str] = Counter()
        for (path, submission), reason in zip(files, reasons, strict=True):
            del self._in_hand[path.name]
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

    def unread(self, ids: Sequence[bytes]) -> list[bytes]:
        """Returns those of these jobs that wait in the spool and were not read."""
        in_hand = {job_id for submission in self._in_hand.values() for job_id in submission.ids}
        return list(self.specs([job_id for job_id in ids if job_id not in in_hand]))

    def specs(self, ids: Sequence[bytes]) -> dict[bytes, Spec]:
        """Returns the specs of those of these jobs that wait in the spool."""
        found: dict[bytes, Spec] = {}
        for content in set(spool.find(self._path, ids).values()) if ids else ():
            with suppress(TaskQError, ValueError):  # reported, and set aside, when it is taken in
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
