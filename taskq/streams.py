"""Standard output and error of a consumer that runs several jobs: each line says which of them wrote it."""

from __future__ import annotations

import os
import sys
from io import FileIO, TextIOWrapper

from taskq.context import Seated, seated
from taskq.limits import MAX_OUTPUT_LINE_BYTES

#: Writes of this size are whole, whoever else writes to the pipe (POSIX says so of PIPE_BUF, 4,096 on Linux).
_WHOLE_BYTES = 4_096


class JobStream(TextIOWrapper):
    """A text stream whose lines begin with the mark of the job that wrote them.

    A line is written when it is complete, or when its job ends: lines of several jobs do not mix. What writes to the
    descriptor itself (C code, subprocesses, `sys.stdout.buffer`) is not marked.
    """

    def __init__(self, descriptor: int) -> None:
        raw = FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Writes the lines that are complete now."""
        job = seated()
        if job is None:
            return super().write(text)
        lines = (job.rests.pop(self._descriptor, "") + text).split("\n")
        rest = lines.pop()
        if len(rest) > MAX_OUTPUT_LINE_BYTES:
            lines.append(rest)
        elif rest:
            job.rests[self._descriptor] = rest
        if lines:
            self._write_lines(job, lines)
        return len(text)

    def end(self, job: Seated) -> None:
        """Writes what a job left without a line end."""
        rest = job.rests.pop(self._descriptor, "")
        if rest:
            self._write_lines(job, [rest])

    def _write_lines(self, job: Seated, lines: list[str]) -> None:
        chunk = b""
        for line in lines:
            data = f"{job.mark}{line}\n".encode("utf-8", "backslashreplace")
            if len(chunk) + len(data) > _WHOLE_BYTES:
                self._write_bytes(chunk)
                chunk = b""
            chunk += data
        self._write_bytes(chunk)

    def _write_bytes(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def mark_output() -> None:
    """Makes standard output and error tell which job wrote each line."""
    sys.stdout, sys.stderr = JobStream(1), JobStream(2)
