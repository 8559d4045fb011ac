"""Reading the log while it is written, rotated, damaged, deleted, or not there."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.telemetry.files import log_path, output_path
from taskq.telemetry.reader import Filter, ago, follow, read
from taskq.telemetry.record import compose, encode
from taskq.telemetry.sink import RotatingFile


def line(number: int, **fields: Any) -> bytes:
    """The line of event `number`, which happened at that second of the epoch."""
    return encode(compose(fields.pop("level", "info"), {"event": "e", "n": number, **fields}, float(number)))


def numbers(events: Iterator[dict[str, Any]]) -> list[Any]:
    """The numbers of these events; a name if an event has no number."""
    return [event.get("n", event["event"]) for event in events]


class Stepper:
    """A `wait` that lets the test act each time the reader has read everything, and then ends it."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.steps = list(steps)

    def __call__(self, seconds: float) -> bool:
        assert seconds > 0
        if not self.steps:
            return True
        self.steps.pop(0)()
        return False


@pytest.fixture
def file(tmp_path: Path) -> RotatingFile:
    """A log that is rotated about every third line and loses nothing in these tests."""
    return RotatingFile(log_path(tmp_path), max_bytes=300, keep=200)


def write(file: RotatingFile, *wanted: int) -> Callable[[], None]:
    """A step that writes these events."""

    def step() -> None:
        for number in wanted:
            file.write(line(number))

    return step


def test_rotated_files_come_first(tmp_path: Path, file: RotatingFile) -> None:
    """All events come in the order in which they were written, beyond file number 9 too."""
    write(file, *range(50))()
    assert log_path(tmp_path).with_name("taskq.jsonl.10").exists()
    assert numbers(read(tmp_path)) == list(range(50))


@pytest.mark.parametrize("last", [0, 1, 2, 7, 49, 50, 60])
def test_last(tmp_path: Path, file: RotatingFile, last: int) -> None:
    """`last` takes the newest events, from as many files as needed."""
    write(file, *range(50))()
    assert numbers(read(tmp_path, last=last)) == list(range(50))[50 - min(last, 50) :]


def test_no_log(tmp_path: Path) -> None:
    """Without a log there are no events."""
    assert list(read(tmp_path / "missing")) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(task="ä"), [1, 3]),
        (Filter(job_id="abc"), [1]),
        (Filter(job_id="123"), [1, 2]),
        (Filter(job_id="x"), []),
        (Filter(event="job.*"), [1, 2, 3]),
        (Filter(event="job.failed"), [3]),
        (Filter(level="warning"), [3, 4]),
        (Filter(since=datetime.fromtimestamp(3, UTC)), [3, 4]),
        (Filter(since=datetime.fromtimestamp(3)), [3, 4]),
        (Filter(until=datetime.fromtimestamp(3, UTC)), [0, 1, 2]),
        (Filter(since=datetime.fromtimestamp(1, UTC), until=datetime.fromtimestamp(3, UTC)), [1, 2]),
        (Filter(consumer=2), [2]),
        (Filter(grep=re.compile("^a.c$")), [2, 3]),
        (Filter(grep=re.compile("nothing")), []),
        (Filter(task="ä", level="error"), [3]),
        (Filter(), [0, 1, 2, 3, 4]),
    ],
)
def test_filters(tmp_path: Path, wanted: Filter, found: list[int]) -> None:
    """Filters are conditions that must all hold."""
    file = RotatingFile(log_path(tmp_path))
    file.write(line(0))
    file.write(line(1, event="job.started", task="ä", job_id="abc123"))
    file.write(line(2, event="job.started", task="abc", job_id="123abcdef", consumer=2))
    file.write(line(3, event="job.failed", task="ä", job_id="ffff", level="error", other="abc"))
    file.write(line(4, level="warning"))
    assert numbers(read(tmp_path, wanted)) == found
    assert numbers(follow(tmp_path, wanted, last=9, wait=Stepper())) == found
    assert numbers(read(tmp_path, wanted, last=1)) == found[-1:]


@pytest.mark.parametrize("last", [None, 3])
def test_a_time_reads_little(tmp_path: Path, last: int | None) -> None:
    """From a large log, the lines of a short time are read alone, and all of them."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"".join(line(number, text="x" * 100) + b"\n" * (number % 7 == 0) for number in range(100_000)))
    assert path.stat().st_size > 15 << 20
    wanted = Filter(since=datetime.fromtimestamp(99_900, UTC), until=datetime.fromtimestamp(99_910, UTC))
    before = bytes_read()
    assert numbers(read(tmp_path, wanted, last)) == list(range(99_900, 99_910))[-(last or 10) :]
    assert bytes_read() - before < 2 << 20


@given(
    times=st.lists(st.integers(0, 400), min_size=1, max_size=2_000).map(sorted),
    since=st.integers(0, 400),
    width=st.sampled_from([0, 90, 4_000]),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_since_misses_nothing(tmp_path: Path, times: list[int], since: int, width: int) -> None:
    """Whatever the lines are, those since a time are all found, and no others."""
    path = log_path(tmp_path)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(line(number, text="x" * width) for number in times))
    found = numbers(read(tmp_path, Filter(since=datetime.fromtimestamp(since, UTC))))
    assert found == [number for number in times if number >= since]


def bytes_read() -> int:
    """How many bytes this process has read from files so far."""
    return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0])


def test_ago() -> None:
    """`ago` counts back from now."""
    assert 59 < (datetime.now(UTC) - ago(60)).total_seconds() < 70


def test_garbage_is_shown(tmp_path: Path) -> None:
    """Lines that are not events are shown, not skipped, and no other line is lost."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    garbage = [b"\0" * 500, b"[1]", b"\xff\xfe", b"{" * 5000, b'{"n": ' + b"1" * 5000 + b"}"]
    path.write_bytes(b"\n".join([line(0).strip(), *garbage, b"", line(1)]))
    events = list(read(tmp_path))
    assert numbers(iter(events)) == [0, *["log.unreadable"] * len(garbage), 1]
    assert (events[1]["bytes"], events[1]["file"], events[2]["text"]) == (500, "taskq.jsonl", "[1]")


def test_half_written_line(tmp_path: Path) -> None:
    """`follow` waits for the rest of a line, byte by byte; `read` shows what is there."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(line(0))
    whole = line(1) + line(2)

    def append(byte: int) -> Callable[[], object]:
        return lambda: path.open("ab").write(bytes([byte]))

    assert numbers(follow(tmp_path, last=5, wait=Stepper(*map(append, whole)))) == [0, 1, 2]
    path.open("ab").write(b'{"event": "ha')
    assert numbers(read(tmp_path)) == [0, 1, 2, "log.unreadable"]


def test_line_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage without newlines is cut in pieces instead of being gathered in memory."""
    monkeypatch.setattr("taskq.telemetry.reader._GARBAGE_MAX_BYTES", 100_000)
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(b"x" * 1_000_000 + b"\n" + line(1))
    assert numbers(read(tmp_path)) == ["log.unreadable", 1]


def test_follow_gives_new_events_only(tmp_path: Path, file: RotatingFile) -> None:
    """Without `last`, `follow` starts at the end."""
    write(file, 0, 1, 2, 3)()
    assert numbers(follow(tmp_path, wait=Stepper(write(file, 4), write(file, 5)))) == [4, 5]


def test_follow_before_there_is_a_log(tmp_path: Path, file: RotatingFile) -> None:
    """`follow` waits for directory and file."""
    nothing = Stepper(lambda: None, write(file, *range(20)), write(file, 20))
    assert numbers(follow(tmp_path, wait=nothing)) == list(range(21))


@pytest.mark.parametrize("burst", [1, 2, 3, 4, 7, 30])
def test_follow_across_rotations(tmp_path: Path, file: RotatingFile, burst: int) -> None:
    """No event is lost or doubled, however many rotations there were between two looks."""
    write(file, 0, 1, 2, 3, 4)()
    steps = [write(file, *range(start, start + burst)) for start in range(5, 5 + 6 * burst, burst)]
    assert numbers(follow(tmp_path, last=2, wait=Stepper(*steps))) == list(range(3, 5 + 6 * burst))


def test_follow_reads_the_old_file_to_its_end(tmp_path: Path, file: RotatingFile) -> None:
    """What was written just before a rotation, after the last look, is not lost."""
    path = log_path(tmp_path)
    file.write(line(0))

    def write_rotate_write() -> None:
        path.open("ab").write(line(1) + line(2)[:10])
        path.open("ab").write(line(2)[10:])
        path.rename(path.with_name("taskq.jsonl.1"))
        path.write_bytes(line(3))

    assert numbers(follow(tmp_path, last=1, wait=Stepper(write_rotate_write))) == [0, 1, 2, 3]


@pytest.mark.parametrize("rotations", [1, 2, 3, 5])
def test_rotations_while_the_files_are_opened(
    tmp_path: Path, file: RotatingFile, rotations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the files move between the opening of one and of the next, events come in order, and once."""
    per_file = 3
    numbered = iter(range(100))
    write(file, *islice(numbered, 4 * per_file))()
    real, is_first = os.open, True

    def open_and_rotate(name: Path, *arguments: int) -> int:
        nonlocal is_first
        descriptor = real(name, *arguments)
        if is_first and name == log_path(tmp_path):
            is_first = False
            write(file, *islice(numbered, rotations * per_file))()
        return descriptor

    monkeypatch.setattr("taskq.telemetry.reader.os.open", open_and_rotate)
    found = numbers(read(tmp_path))
    assert found == sorted(set(found))
    assert set(found) >= set(range(4 * per_file))


def test_follow_in_the_middle_of_a_rotation(tmp_path: Path, file: RotatingFile) -> None:
    """While the file has been renamed and the new one is not there yet, the reader waits."""
    path = log_path(tmp_path)
    file.write(line(0))
    steps = [
        lambda: path.rename(path.with_name("taskq.jsonl.1")),
        lambda: path.write_bytes(line(1)),
    ]
    assert numbers(follow(tmp_path, last=1, wait=Stepper(*steps))) == [0, 1]


def test_follow_when_the_file_is_deleted(tmp_path: Path, file: RotatingFile) -> None:
    """If somebody deletes the file, the new one is read, and the older ones are not read again."""
    write(file, *range(9))()
    path = log_path(tmp_path)
    os.utime(path.with_name("taskq.jsonl.1"), (1, 1))
    os.utime(path.with_name("taskq.jsonl.2"), (1, 1))
    steps = [path.unlink, lambda: path.write_bytes(line(50))]
    assert numbers(follow(tmp_path, last=9, wait=Stepper(*steps))) == [*range(9), 50]


def test_follow_when_the_file_is_truncated(tmp_path: Path) -> None:
    """If somebody empties the file, reading goes on at its beginning."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(line(0) + line(1))
    steps = [lambda: path.write_bytes(b""), lambda: path.write_bytes(line(2))]
    assert numbers(follow(tmp_path, last=5, wait=Stepper(*steps))) == [0, 1, 2]


def test_follow_when_an_unfinished_line_is_taken_back(tmp_path: Path) -> None:
    """A full disk let through half of a line: what is written in its place later is read whole, and nothing twice."""
    path = log_path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(line(0))
    contents = [
        line(0) + line(1)[:9],
        line(0),
        line(0) + line(2)[:9],
        line(0) + line(3) + line(4),  # no look in between
    ]
    steps = [partial(path.write_bytes, content) for content in contents]
    assert numbers(follow(tmp_path, last=5, wait=Stepper(*steps))) == [0, 3, 4]


def test_numbers_with_gaps(tmp_path: Path) -> None:
    """Files that an operator took out of the middle do not hide the older ones; other names do not count."""
    file = RotatingFile(log_path(tmp_path), max_bytes=80, keep=20)
    write(file, *range(15))()
    for number in range(3, 10):
        log_path(tmp_path).with_name(f"taskq.jsonl.{number}").unlink()
    log_path(tmp_path).with_name("taskq.jsonl.20260509").write_bytes(line(99))
    assert numbers(read(tmp_path)) == [0, 1, 2, 3, 4, 12, 13, 14]


def test_follow_leaves_no_descriptor_open(tmp_path: Path, file: RotatingFile) -> None:
    """A reader that is given up closes its files."""
    write(file, *range(20))()
    before = len(os.listdir("/proc/self/fd"))
    events = follow(tmp_path, last=5)
    next(events)
    events.close()  # type: ignore[attr-defined]
    reading = read(tmp_path)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_follow_a_writer_that_does_not_wait(tmp_path: Path) -> None:
    """A reader in a thread sees each of 3,000 events once, in order, across 100 rotations."""
    total = 3000
    file = RotatingFile(log_path(tmp_path), max_bytes=2000, keep=200)
    seen: list[int] = []
    started, finished = threading.Event(), threading.Event()
    looks_after: list[None] = []

    def wait(_seconds: float) -> bool:
        started.set()
        if finished.wait(0.001):
            looks_after.append(None)
        return len(looks_after) > 1  # one more look after the last line was written

    reader = threading.Thread(target=lambda: seen.extend(e["n"] for e in follow(tmp_path, wait=wait)))
    reader.start()
    assert started.wait(30)
    for number in range(total):
        file.write(line(number))
    finished.set()
    reader.join(30)
    assert seen == list(range(total))
    assert log_path(tmp_path).with_name("taskq.jsonl.100").exists()


def test_lines_are_those_that_were_written(tmp_path: Path, file: RotatingFile) -> None:
    """An event is read as it was written."""
    file.write(line(1, task="a\nb\x1b", nested={"x": [1, 2.5, None]}))
    (event,) = read(tmp_path)
    assert event == json.loads(line(1, task="a\nb\x1b", nested={"x": [1, 2.5, None]}))


@pytest.fixture
def output(tmp_path: Path) -> RotatingFile:
    """The series of files that takes output, rotated as often as the other."""
    return RotatingFile(output_path(tmp_path), max_bytes=300, keep=200)


def test_both_series_are_read_as_one(tmp_path: Path, file: RotatingFile, output: RotatingFile) -> None:
    """In the order of their times, across the files of each."""
    for number in range(60):
        (output if number % 7 < 4 else file).write(line(number))
    assert numbers(read(tmp_path)) == list(range(60))
    for last in (0, 1, 5, 59, 60, 99):
        assert numbers(read(tmp_path, last=last)) == list(range(60))[max(0, 60 - last) :]


def test_output_comes_before_an_event_of_the_same_time(
    tmp_path: Path, file: RotatingFile, output: RotatingFile
) -> None:
    """What a job prints, and then its end."""
    file.write(line(1, event="job.succeeded"))
    output.write(line(1, event="job.log"))
    assert [event["event"] for event in read(tmp_path)] == ["job.log", "job.succeeded"]


def test_garbage_keeps_its_place(tmp_path: Path, file: RotatingFile, output: RotatingFile) -> None:
    """A line without a time comes behind the one before it."""
    output.write(line(1))
    file.write(line(2))
    file.write(b"garbage\n")
    output.write(line(3))
    assert numbers(read(tmp_path)) == [1, 2, "log.unreadable", 3]


@pytest.mark.parametrize("burst", [1, 2, 5, 30])
def test_follow_both_series(tmp_path: Path, file: RotatingFile, output: RotatingFile, burst: int) -> None:
    """In order, each once, whichever of the two is written, and however often they are rotated meanwhile."""

    def write_both(first: int) -> None:
        for number in range(first, first + burst):
            (output if number % 3 else file).write(line(number))

    write_both(0)
    steps = [partial(write_both, first) for first in range(burst, 9 * burst, burst)]
    assert numbers(follow(tmp_path, last=2, wait=Stepper(*steps))) == list(range(max(0, burst - 2), 9 * burst))


def test_follow_two_series_that_are_written_meanwhile(tmp_path: Path, file: RotatingFile, output: RotatingFile) -> None:
    """A reader in a thread sees them in the order in which one writer wrote, whatever it reads first."""
    total = 3_000
    seen: list[int] = []
    started, finished = threading.Event(), threading.Event()
    looks_after: list[None] = []

    def wait(_seconds: float) -> bool:
        started.set()
        if finished.wait(0.001):
            looks_after.append(None)
        return len(looks_after) > 1

    for each in (file, output):
        each._max_bytes, each._keep = 20_000, 2_000
    reader = threading.Thread(target=lambda: seen.extend(e["n"] for e in follow(tmp_path, wait=wait)))
    reader.start()
    assert started.wait(30)
    for number in range(total):
        (output if number % 5 < 3 else file).write(line(number))
    finished.set()
    reader.join(30)
    assert seen == list(range(total))
