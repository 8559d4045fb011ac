"""The standard output and error of a consumer. Where several jobs run at once, each line says which job wrote it."""

from __future__ import annotations

import os
import sys
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import Any

from taskq.client.context import RunningJob, job_of_context, this_process, write_record
from taskq.consumer.exception_text import class_name, text_of
from taskq.model.limits import MAX_OUTPUT_LINE_BYTES

#: Writes up to this size do not mix with what others write to the pipe (POSIX: PIPE_BUF, 4,096 on Linux).
_WHOLE_BYTES = 4_096
_DESCRIPTORS = {"stdout": 1, "stderr": 2}


class _Noted(FileIO):
    """Standard output or error. Notes that something was written, so that nobody has to ask the system after a job."""

    def write(self, data: Any) -> int:
        """Writes bytes. Returns how many."""
        this_process.has_written = True
        return super().write(data)


def open_output() -> None:
    """Gives this process streams of its own for its standard output and error."""
    for name in _DESCRIPTORS:
        _open(name)


def _open(name: str) -> None:
    raw = BufferedWriter(_Noted(_DESCRIPTORS[name], "w", closefd=False))
    setattr(sys, name, TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True))


def flush_output() -> None:
    """Writes out what a job left in the buffers of its standard streams."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the job may have put anything there, and the jobs after it are not to blame
        mend_output()


def mend_output() -> None:
    """Replaces the streams that cannot be flushed, and logs that."""
    broken: dict[str, BaseException] = {}
    for name in _DESCRIPTORS:
        try:
            getattr(sys, name).flush()
        except BaseException as error:
            broken[name] = error
            _open(name)
    for name, raised in broken.items():
        told = f"{class_name(raised)}: {text_of(raised)}"
        write_record("warning", {"event": f"the job left a sys.{name} that cannot be flushed ({told}): it is replaced"})


class JobStream(TextIOWrapper):
    """A text stream whose lines begin with the mark of the job that wrote them.

    A line is written when it is complete, or when its job ends, so that lines of several jobs do not mix. Output that
    goes to the descriptor itself (from C code, subprocesses or `sys.stdout.buffer`) is not marked.
    """

    def __init__(self, descriptor: int) -> None:
        raw = FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Writes the lines that are complete now."""
        job = job_of_context()
        if job is None:
            return super().write(text)
        if job.rests is None:
            job.rests = {}
        lines = (job.rests.pop(self._descriptor, "") + text).split("\n")
        rest = lines.pop()
        if len(rest) > MAX_OUTPUT_LINE_BYTES:
            lines.append(rest)
        elif rest:
            job.rests[self._descriptor] = rest
        if lines:
            self._write_lines(job, lines)
        return len(text)

    def end(self, job: RunningJob) -> None:
        """Writes the line that a job has begun and not ended."""
        if job.rests is not None and (rest := job.rests.pop(self._descriptor, "")):
            self._write_lines(job, [rest])

    def _write_lines(self, job: RunningJob, lines: list[str]) -> None:
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


def mark_output() -> list[JobStream]:
    """Replaces standard output and error by streams that tell which job wrote each line. Returns the two."""
    sys.stdout, sys.stderr = streams = [JobStream(1), JobStream(2)]
    return streams
