"""The files of large payloads, as an engine sees them: which it takes in, which go with their jobs, and what a crash
left behind.

A file that a row in the journal names is needed, and so is one that a spooled job names. All others go, some at once
(the job has ended, or was removed) and the rest when `sweep` comes by:

    who dies    when                                what is left                      goes
    client      before its submission arrives       arguments of an unknown job       an hour later
    consumer    before its outcome arrives          a result of a job that goes on    when that has ended
    broker      between a commit and the removal    what no row names                 at a sweep of the next one

A client that hands in a job whose file is gone gets an error, and the job is not taken in: so no row ever names a file
that is not there.

Files are removed some at a time, a moment after the commit: each removal waits for the syncs that are on their way, and
makes the next sync of whoever writes a file write the folder as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol

from taskq.model.attempt import read_outcome
from taskq.model.errors import EnqueueError
from taskq.model.stored import FIRST_FINAL, Ended, StoredJob, StoredState
from taskq.protocol import spool
from taskq.protocol.payloads.filed import REFERENCE_BYTES, CorruptPayload, Kind, Reference, is_reference, reference_in
from taskq.protocol.payloads.files import DOOMED, FileName, PayloadFiles
from taskq.protocol.submissions import Submission
from taskq.system.directory import Directory

#: A client has handed in a job at the latest so long after it wrote the file of its arguments: else it was killed, or
#: stopped, and hears of it.
SUBMITTED_WITHIN_S = 3600.0
#: The files that one sweep looks at: it takes a millisecond or two.
_PORTION = 200
#: Files are removed in the same turn when there are this many of them, or when they take this many bytes together.
_GONE_FILES, _GONE_BYTES = 32, 32 * 1024 * 1024


def is_left_behind(file: FileName, job: StoredJob | None, age_s: float) -> bool:
    """Whether nobody needs a file. That a spooled job does, which is not in the journal, is for the caller to rule out.

    Args:
        job: whose file it is; None if the journal does not know it.
        age_s: seconds since it was written, or since a client last said that it is about to hand it in.
    """
    if job is None:
        # only arguments are written before their job is known; a result's job was removed, or is about to be
        return age_s > SUBMITTED_WITHIN_S or file.kind is Kind.RESULT
    if any(file.is_of(reference) for reference in references_of(job)):
        return False
    # a job that goes on may be about to report a result; its arguments are those that its row names
    return file.kind is Kind.ARGUMENTS or job.kept >= FIRST_FINAL


def references_of(job: StoredJob) -> Iterator[Reference]:
    """What a job's row says of files."""
    row = job.row
    if is_reference(row.payload):
        yield from _reference(row.id, row.payload)
    if job.kept is StoredState.SUCCEEDED and job.outcome is not None:
        yield from _result_reference(row.id, job.outcome)


def _result_reference(job_id: bytes, outcome: bytes) -> Iterator[Reference]:
    result = read_outcome(outcome).result
    if result is not None and is_reference(result):
        yield from _reference(job_id, result)


def _reference(job_id: bytes, payload: bytes | memoryview) -> Iterator[Reference]:
    with suppress(CorruptPayload):  # told to whoever reads it
        reference = reference_in(job_id, payload)
        if reference is not None:
            yield reference


class Rows(Protocol):
    """What must be asked about jobs: a part of an engine's journal."""

    def read(self, job_id: bytes) -> StoredJob | None:
        """Reads one job."""

    def states(self, ids: Sequence[bytes]) -> dict[bytes, StoredState]:
        """The states of jobs; of those that are known."""


class Payloads:
    """The files of a directory's jobs. Used by the broker's loop alone."""

    def __init__(self, directory: Directory, rows: Rows) -> None:
        self._files = PayloadFiles(directory)
        self._spool = directory.spool
        self._rows = rows
        self._entries = self._files.entries()  # those that the sweep has not come to yet
        self._gone: dict[str, int] = {}  # the names of files that nobody needs, and their sizes
        self._gone_bytes = 0
        self._restore_doomed()
        #: Whether any job may have a file: if not, nothing needs to be looked at when jobs end.
        self.has_some = next(self._files.entries(), None) is not None

    # -- what comes in

    def check(self, submission: Submission) -> None:
        """Notes that the files of new jobs are needed.

        Raises:
            EnqueueError: the file of one of them is not there.
        """
        for part in submission.each:
            if REFERENCE_BYTES in map(len, part.payloads):
                for job_id, payload in zip(part.ids, part.payloads, strict=True):
                    for reference in _reference(job_id, payload):
                        self._check_one(job_id, reference)

    def _check_one(self, job_id: bytes, reference: Reference) -> None:
        self.has_some = True
        self._gone_bytes -= self._gone.pop(reference.file_name(job_id), 0)  # its job was removed, and comes again
        if not self._files.keep(job_id, reference) and not self._rows.states([job_id]):  # else it was sent again
            raise EnqueueError(
                f"the file with the arguments of job {job_id.hex()} is gone: it was removed as left behind, since more "
                f"than {SUBMITTED_WITHIN_S / 60:g} minutes passed before the job was handed in; enqueue it again"
            )

    # -- what goes

    def remove(
        self, ended: Iterable[Ended], removed: Iterable[StoredJob], pruned: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Notes the files that nobody needs any more after a transaction that is durable.

        Args:
            ended: the jobs that it has ended: their arguments go, unless they failed, and may be retried.
            removed: the jobs that it has removed, with all their files.
            pruned: the ids and outcomes of those that it has pruned, and whose results may have files.
        """
        for row, kept, _ in ended:
            if len(row.payload) == REFERENCE_BYTES and kept is not StoredState.FAILED:
                self._remove(row.id, _reference(row.id, row.payload))
        for job in removed:
            self._remove(job.row.id, references_of(job))
        for job_id, outcome in pruned:
            self._remove(job_id, _result_reference(job_id, outcome))

    def _remove(self, job_id: bytes, references: Iterable[Reference]) -> None:
        for reference in references:
            self.has_some = True
            self._gone[reference.file_name(job_id)] = reference.size
            self._gone_bytes += reference.size

    @property
    def has_many_gone(self) -> bool:
        """Whether there are so many files to remove, or so large ones, that it must be done soon."""
        return len(self._gone) >= _GONE_FILES or self._gone_bytes >= _GONE_BYTES

    @property
    def has_gone(self) -> bool:
        """Whether there are files to remove."""
        return bool(self._gone)

    def remove_gone(self) -> None:
        """Removes the files that were noted."""
        for name in self._gone:
            self._files.unlink(name)
        self._gone.clear()
        self._gone_bytes = 0

    # -- what a crash left behind

    def sweep(self, wall: float) -> int:
        """Looks at the next files, and removes those that nobody needs. Returns how many it has removed."""
        removed = seen = 0
        for seen, entry in enumerate(islice(self._entries, _PORTION), 1):  # noqa: B007  used after the loop
            self.has_some = True
            file = FileName.read(entry.name)
            if file is None:
                continue
            try:
                age_s = wall - entry.stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            removed += self._remove_if_needless(entry.name, file, age_s)
        if seen < _PORTION:
            self._entries = self._files.entries()
        return removed

    def _remove_if_needless(self, name: str, file: FileName, age_s: float) -> bool:
        if not is_left_behind(file, self._rows.read(file.job_id), age_s):
            return False
        if file.kind is Kind.RESULT:
            self._files.unlink(name)
            return True
        # A client may spool the job at this moment. It looks for the file once more after that, and writes it again if
        # it is gone; or it has done all of that before the file is doomed, and then the spool names it now.
        doomed = self._files.doom(name)
        if doomed is None:
            return False
        if spool.holds(self._spool, file.job_id):
            self._files.restore(doomed)
            return False
        self._files.unlink(doomed)
        return True

    def _restore_doomed(self) -> None:
        """After a broker that died while it removed a file: the next sweep decides."""
        for entry in self._files.entries():
            if entry.name.endswith(DOOMED):
                self._files.restore(entry.name)
