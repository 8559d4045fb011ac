"""The lines of jobs that run side by side in one process: marked where they are written, told apart where they are
read."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.client.context import set_job_of_context, this_process, write_record
from taskq.consumer.streams import JobStream, open_output
from taskq.consumer.threads import ThreadJob
from taskq.model.limits import MAX_OUTPUT_LINE_BYTES
from taskq.protocol.link.output import (
    JOB_MARK,
    RECORD_MARK,
    LineCutter,
    Stacks,
    split_job_mark,
    whole_lines,
    without_own_frames,
)


def told(data: bytes) -> dict[int, list[str]]:
    """What the broker makes of it: the lines of each job; 0 stands for lines outside of jobs."""
    cutter = LineCutter()
    lines = defaultdict(list)
    for line in cutter.feed(data) + cutter.flush():
        number, text = split_job_mark(line)
        lines[number].append(text)
    return dict(lines)


WRITES = st.tuples(st.integers(0, 3), st.text("ab\u00e4\n", max_size=6))


@given(writes=st.lists(WRITES, max_size=30))
def test_each_job_has_its_own_lines(writes: list[tuple[int, str]]) -> None:
    """However the writes of several jobs mix, each job's text comes out whole."""
    reader, writer = os.pipe()
    stream = JobStream(writer)
    jobs = {number: ThreadJob(number, 0.0, b"i" * 16, "t", 1, b"") for number in (1, 2, 3)}
    contexts = {number: copy_context() for number in jobs}
    for number, job in jobs.items():
        contexts[number].run(set_job_of_context, job)
    for number, text in writes:
        if number:
            contexts[number].run(stream.write, text)
    for job in jobs.values():
        stream.end(job)
    os.close(writer)
    with open(reader, "rb") as file:
        lines = told(file.read())
    for number in jobs:
        text = "".join(text for writer_number, text in writes if writer_number == number)
        assert "\n".join(lines.get(number, [])) == text.removesuffix("\n")


def test_text_of_nobody_is_not_marked(tmp_path: Path) -> None:
    """Outside of jobs the stream is an ordinary one."""
    with (tmp_path / "out").open("wb") as file:
        stream = JobStream(file.fileno())
        print("no", "job", file=stream)
        assert (stream.fileno(), stream.isatty()) == (file.fileno(), False)
    assert (tmp_path / "out").read_bytes() == b"no job\n"


def test_a_line_without_an_end_is_bounded(tmp_path: Path) -> None:
    """A job that never ends its line does not fill the memory."""
    with (tmp_path / "out").open("wb") as file:
        stream, job = JobStream(file.fileno()), ThreadJob(1, 0.0, b"i" * 16, "t", 1, b"")
        context = copy_context()
        context.run(set_job_of_context, job)
        for _ in range(1_000):
            context.run(stream.write, "x" * 100)
            assert sum(map(len, (job.rests or {}).values())) <= MAX_OUTPUT_LINE_BYTES
    assert told((tmp_path / "out").read_bytes())[1][0].startswith("xxx")


@given(number=st.integers(1, 2**63), text=st.text(st.characters(exclude_characters="\n")))
def test_marks_come_back(number: int, text: str) -> None:
    """Marked lines are recognized, whatever the line itself looks like."""
    assert split_job_mark(f"{JOB_MARK}{number}{JOB_MARK}{text}") == (number, text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "plain",
        JOB_MARK,
        JOB_MARK * 2,
        f"{JOB_MARK}7",
        f"{JOB_MARK}x{JOB_MARK}text",
        f"{JOB_MARK}\u0664{JOB_MARK}text",
        f"{JOB_MARK}-1{JOB_MARK}text",
        f"{JOB_MARK}{'9' * 5_000}{JOB_MARK}text",
        f"{RECORD_MARK}{{}}",
    ],
)
def test_other_lines_are_nobodys(line: str) -> None:
    """Even those that begin like a marked line."""
    assert split_job_mark(line) == (0, line)


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("50 %", ["50 %"]),
        (f"50 %{RECORD_MARK}{{}}", ["50 %", f"{RECORD_MARK}{{}}"]),
        (f"50 %{JOB_MARK}7{JOB_MARK}text", ["50 %", f"{JOB_MARK}7{JOB_MARK}text"]),
        (f"50 %{JOB_MARK}7{JOB_MARK}{RECORD_MARK}{{}}", ["50 %", f"{JOB_MARK}7{JOB_MARK}{RECORD_MARK}{{}}"]),
        (f"{JOB_MARK}7{JOB_MARK}a", [f"{JOB_MARK}7{JOB_MARK}a"]),
        (f"a{RECORD_MARK}b", [f"a{RECORD_MARK}b"]),
        (f"a{JOB_MARK}b", [f"a{JOB_MARK}b"]),
        ("", [""]),
    ],
)
def test_what_stands_behind_text_without_a_line_end(line: str, whole: list[str]) -> None:
    """An event, or the line of another job, is a line of its own."""
    assert whole_lines([line]) == whole


DUMP = """\
Fatal Python error: Segmentation fault

Thread 0x00007f45f2a006c0 (most recent call first):
  File "/lib/python3.11/threading.py", line 327 in wait
  File "/x/taskq/consumer/outbox.py", line 183 in report_late
  File "/lib/python3.11/threading.py", line 1002 in _bootstrap

Thread 0x00007f45f2a006c1 [taskq-job-1] (most recent call first):
  File "/x/taskq/consumer/concurrent.py", line 372 in _work_in_thread
  File "/lib/python3.13/threading.py", line 1002 in _bootstrap

Thread 0x00007f45f2a006c2 (most recent call first):
  File "/app/mine.py", line 7 in wait_for_ever
  File "/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00007f45f3f45740 (most recent call first):
  File "/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/app/mine.py", line 20 in segfault
  File "/x/taskq/consumer/runner.py", line 211 in _call
  File "/x/taskq/consumer/loop.py", line 222 in _run_batch
  File "<string>", line 1 in <module>

Extension modules: msgpack._cmsgpack (total: 1)""".splitlines()


def test_stacks_are_held_back_and_reported_without_our_own_frames() -> None:
    """What a job printed before and behind them is its output."""
    stacks = Stacks()
    assert stacks.hold_back(["before", *DUMP, "behind", "  indented"]) == ["before", "behind", "  indented"]
    assert list(stacks.lines) == DUMP
    assert without_own_frames(stacks.lines, "/x/taskq") == [
        "Fatal Python error: Segmentation fault",
        *DUMP[11:14],
        *DUMP[15:18],
        "Extension modules: msgpack._cmsgpack (total: 1)",
    ]
    assert stacks.take()
    assert stacks.take() == []


def test_where_a_consumer_stands_that_runs_no_job() -> None:
    """The current thread is shown, even if it is in our own code."""
    dump = [
        "Current thread 0x1 (most recent call first):",
        '  File "/x/taskq/consumer/loop.py", line 9 in _next_batch',
        "  x",
    ]
    assert without_own_frames(dump, "/x/taskq") == dump[:2]


def flush_both() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


@pytest.mark.parametrize(
    "write",
    [
        lambda: print("a line"),
        lambda: print("no end", end=""),
        lambda: print("an error", file=sys.stderr),
        lambda: sys.stdout.buffer.write(b"bytes"),
        lambda: sys.stdout.buffer.raw.write(b"at once"),  # type: ignore[attr-defined]
        lambda: write_record("info", {"event": "a record"}),
    ],
)
def test_a_consumer_knows_that_a_quick_job_has_written(
    write: Callable[[], object], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not ask the system after a job that took two microseconds: the streams have noted what they wrote."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # put back afterwards
    open_output()
    this_process.has_written = False
    flush_both()
    assert not this_process.has_written
    write()
    flush_both()
    assert this_process.has_written
    assert any(capfd.readouterr())
