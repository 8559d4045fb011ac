"""The descriptors of a consumer's standard output and error. A job may close them or put something else in their place.

That is the job's own business while it runs. The next job must not inherit it: it would lose what it prints, or hang,
or fail.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from taskq.client.context import RunningJob, this_process, write_record
from taskq.consumer.streams import mark_output, mend_output
from taskq.system.platform import is_unread

_STDOUT, _STDERR = 1, 2
#: The broker reads the output of a job before the next one starts, so that it is logged with the right job. The wait
#: for that is bounded, as the broker may be busy.
_OUTPUT_WAIT_S = 0.25


class OwnOutput:
    """Copies of the two, to be put back. All threads use it: after `keep_as_it_is` nothing in it changes."""

    def __init__(self) -> None:
        """To be called while both lead to the broker."""
        self._copies = {number: fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3) for number in (_STDOUT, _STDERR)}
        self._kinds = {number: _identity(number) for number in self._copies}
        self._is_heard = True  # whether the broker reads standard output

    def keep_as_it_is(self) -> None:
        """The application is loaded: where it has sent the two, they are to stay."""
        for number, copy in self._copies.items():
            found = _identity(number)
            if found is None:
                os.dup2(copy, number)
            elif found != self._kinds[number]:
                os.dup2(number, copy, inheritable=False)
                self._kinds[number] = found
                self._is_heard &= number != _STDOUT

    def put_back(self) -> None:
        """Puts back what a job has replaced or closed, and logs that."""
        lost = [number for number, kind in self._kinds.items() if _identity(number) != kind]
        for number in lost:
            os.dup2(self._copies[number], number)
        for number in lost:
            told = f"a job left descriptor {number}, its standard {'output' if number == _STDOUT else 'error'}"
            write_record("warning", {"event": f"{told}, closed or opened as something else: it is put back"})

    def end_job(self, _job: RunningJob, may_have_written: bool) -> None:
        """A job has ended: has the broker read what it wrote before the next one starts.

        Args:
            may_have_written: also without Python's streams, which note it.
        """
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # the job may have put anything there, and the jobs after it are not to blame
            mend_output()
        if not (may_have_written or this_process.has_written):
            return
        this_process.has_written = False
        if self._is_heard:
            try:
                if is_unread(_STDOUT):
                    self._wait_until_heard()
            except OSError:  # a quick job has closed or replaced it, see `Consumer.note`
                self.put_back()

    def _wait_until_heard(self) -> None:
        self.put_back()  # if a quick job has replaced it, the broker does not read what is there
        give_up_at = time.monotonic() + _OUTPUT_WAIT_S
        while is_unread(_STDOUT) and time.monotonic() < give_up_at:
            time.sleep(0.0002)


class MarkedOutput(OwnOutput):
    """The same where several jobs run at once: each line tells which of them wrote it."""

    def __init__(self) -> None:
        super().__init__()
        self._streams = mark_output()

    def end_job(self, job: RunningJob, _may_have_written: bool) -> None:
        """A job has ended: writes the lines that it has begun and not ended."""
        if job.rests:
            for stream in self._streams:
                stream.end(job)


def _identity(descriptor: int) -> tuple[int, int] | None:
    """What is behind a descriptor; None if it is closed."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino
