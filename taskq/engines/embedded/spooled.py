"""Jobs in the spool, since no broker ran when they were handed in, or since they must stay in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from taskq.engines.contract import Events
from taskq.engines.embedded.transaction import Command, Transaction
from taskq.engines.payloads import Payloads
from taskq.model.errors import StoreFull, TaskQError
from taskq.model.limits import SPOOLED_US
from taskq.model.spec import Spec
from taskq.protocol import frames, spool
from taskq.protocol.submissions import Submission, submission_of


class SpooledFile(NamedTuple):
    """A file in the spool, and the jobs in it.

    Attributes:
        errors: why parts of it make no sense.
    """

    path: Path
    submissions: list[Submission]
    errors: list[str]

    @property
    def work_us(self) -> float:
        """About how long it takes to take them in, in microseconds."""
        return sum(SPOOLED_US + submission.work_us for submission in self.submissions)


class SpooledJobs:
    """The spool, as the committer takes it in. A file stays there until its jobs are committed."""

    def __init__(self, path: Path, events: Events, payloads: Payloads) -> None:
        """
        Args:
            path: the directory of the spool.
            payloads: the files of large arguments.
        """
        self._payloads = payloads
        self._path = path
        self._events = events
        self._backlog = spool.Backlog(path)
        self._in_hand: dict[str, SpooledFile] = {}  # by their names: what was read, but not committed

    @property
    def has_more(self) -> bool:
        """Whether the spool has more than `read` has returned, and should be asked again soon."""
        return self._backlog.has_more

    @property
    def has_left_some(self) -> bool:
        """Whether `read` has left files there, or files were not committed, which are to be tried again soon."""
        return self._backlog.has_left_some

    @property
    def holds_more(self) -> bool:
        """Whether jobs wait in the spool besides those that were read."""
        return spool.has_files(self._path, besides=self._in_hand)

    def read(self) -> list[SpooledFile]:
        """Reads the next files, as many as one commit takes; sets aside those that make no sense."""
        files: list[SpooledFile] = []
        for found in self._backlog.portion():
            if found.path.name in self._in_hand:
                continue
            file = self._spooled_file(found)
            if file.submissions:
                files.append(file)
            elif file.errors:
                self._set_aside(file, [])
            else:
                file.path.unlink(missing_ok=True)  # its writer died before the first record was complete
        self._in_hand.update((file.path.name, file) for file in files)
        return files

    def _spooled_file(self, found: spool.SpoolFile) -> SpooledFile:
        errors = ["a part of it is damaged"] if found.is_damaged else []
        submissions: list[Submission] = []
        for frame in found.frames:
            try:
                submission = _submission(frame)
                self._payloads.check(submission)
                submissions.append(submission)
            except (TaskQError, ValueError) as error:
                errors.append(str(error))
        return SpooledFile(found.path, submissions, errors)

    def committed(self, files: Sequence[SpooledFile], reasons: Sequence[Sequence[object]]) -> None:
        """Removes the files whose jobs are committed, and sets aside those of which something was refused or makes no
        sense.

        Args:
            files: as `read` returned them.
            reasons: for each submission of each file, why it was refused, or None if it was not.
        """
        taken: Counter[str] = Counter()
        for file, of_file in zip(files, reasons, strict=True):
            del self._in_hand[file.path.name]
            if any(isinstance(reason, StoreFull) for reason in of_file):
                self._backlog.pause()  # it stays there until there is room
                continue
            for submission, reason in zip(file.submissions, of_file, strict=True):
                if reason is None:
                    taken[submission.spec.task] += len(submission.ids)
            refused = [str(reason) for reason in of_file if reason is not None]
            if refused or file.errors:
                self._set_aside(file, refused)
            else:
                file.path.unlink(missing_ok=True)
        for task, jobs in taken.items():
            self._events.log.info("spool.taken", jobs=jobs, task=task)

    def _set_aside(self, file: SpooledFile, refused: list[str]) -> None:
        kept = str(spool.set_aside(file.path))
        for error in file.errors:
            self._events.log.error("spool.unreadable", path=kept, error=error)
        for error in refused:
            self._events.log.error("spool.refused", path=kept, error=error)

    def unread(self, ids: Sequence[bytes]) -> list[bytes]:
        """Returns those of these jobs that wait in the spool and were not read."""
        read = [submission for file in self._in_hand.values() for submission in file.submissions]
        in_hand = {job_id for submission in read for job_id in submission.ids}
        return list(self.specs([job_id for job_id in ids if job_id not in in_hand]))

    def specs(self, ids: Sequence[bytes]) -> dict[bytes, Spec]:
        """Returns the specs of those of these jobs that wait in the spool."""
        found: dict[bytes, Spec] = {}
        for frame in set(spool.find(self._path, ids).values()) if ids else ():
            with suppress(TaskQError, ValueError):  # reported, and set aside, when it is taken in
                for part in _submission(frame).each:
                    found.update((job_id, part.spec) for job_id in part.ids)
        return {job_id: found[job_id] for job_id in ids if job_id in found}


def _submission(frame: bytes) -> Submission:
    """Reads a frame in the spool.

    Raises:
        TaskQError, ValueError: it makes no sense.
    """
    [(envelope, body)] = frames.Decoder().feed(frame)
    return submission_of(None, envelope, body)


class TakeSpooled(Command):
    """Takes in the jobs of some files in the spool."""

    adds = True

    def __init__(self, spooled: SpooledJobs, files: list[SpooledFile]) -> None:
        self._spooled = spooled
        self._files = files
        self.work_us = sum(file.work_us for file in files)

    def apply(self, tx: Transaction) -> list[list[TaskQError | None]]:
        return [[tx.try_submit(submission) for submission in file.submissions] for file in self._files]

    def answer(self, outcome: object) -> None:
        reasons = outcome if isinstance(outcome, list) else [[outcome] * len(file.submissions) for file in self._files]
        self._spooled.committed(self._files, reasons)
