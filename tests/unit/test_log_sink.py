"""The log file: rotation, and what happens when the disk, the operator or another process gets in its way."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.telemetry.sink import RotatingFile, append_once


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FailingWrite:
    """An `os.write` that, if asked to, fails with `errno` or writes only a number of bytes."""

    def __init__(self) -> None:
        self.errno = 0
        self.at_most: int | None = None

    def __call__(self, fd: int, data: bytes) -> int:
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))
        return os.write(fd, data if self.at_most is None else data[: self.at_most])


def line(text: str, size: int = 0) -> bytes:
    """A JSON line of (at least) `size` bytes."""
    return json.dumps({"event": text, "pad": "x" * max(0, size - len(text) - 25)}).encode() + b"\n"


def events(path: Path) -> list[dict[str, Any]]:
    """What stands in one file."""
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "taskq.jsonl"


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """Let the kernel refuse to let files grow over a size: a disk that fills up, without filling it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_creates_private_file_and_directory(path: Path) -> None:
    """The first line makes the directory (0700) and the file (0600)."""
    RotatingFile(path).write(line("a"))
    assert [event["event"] for event in events(path)] == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_one_system_call_per_line(path: Path) -> None:
    """Each line is one write, so that lines of two appenders never mix."""
    seen: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        seen.append(data)
        return os.write(fd, data)

    file = RotatingFile(path, write=write)
    lines = [line(str(i), 3000) for i in range(3)]
    for text in lines:
        file.write(text)
    assert seen == lines


def test_rotation_keeps_order_and_total_size(path: Path) -> None:
    """Old files move up by one, the oldest goes, and the total stays below max_bytes * (keep + 1)."""
    file = RotatingFile(path, max_bytes=1000, keep=2)
    for i in range(50):
        file.write(line(f"e{i:02}", 200))
    assert sorted(p.name for p in path.parent.iterdir()) == ["taskq.jsonl", "taskq.jsonl.1", "taskq.jsonl.2"]
    assert sum(p.stat().st_size for p in path.parent.iterdir()) <= 3000
    names = [e["event"] for suffix in (".2", ".1", "") for e in events(path.with_name(path.name + suffix))]
    assert names == [f"e{i:02}" for i in range(50 - len(names), 50)]
    assert file.dropped == 0


def test_keep_nothing(path: Path) -> None:
    """With keep=0 there is one file only."""
    file = RotatingFile(path, max_bytes=500, keep=0)
    for i in range(9):
        file.write(line(str(i), 200))
    assert [p.name for p in path.parent.iterdir()] == ["taskq.jsonl"]
    assert events(path)[-1]["event"] == "8"


def test_rotation_removes_what_an_earlier_larger_keep_left(path: Path) -> None:
    """Files with numbers above `keep` go at the next rotation."""
    path.parent.mkdir()
    path.with_name("taskq.jsonl.7").write_text("old\n")
    path.with_name("taskq.jsonl.20260509").write_text("not ours\n")
    file = RotatingFile(path, max_bytes=300, keep=1)
    for i in range(3):
        file.write(line(str(i), 200))
    assert {p.name for p in path.parent.iterdir()} == {"taskq.jsonl", "taskq.jsonl.1", "taskq.jsonl.20260509"}


def test_existing_file_is_continued(path: Path) -> None:
    """A new broker appends, and counts what is there already for the rotation."""
    RotatingFile(path).write(line("a", 400))
    RotatingFile(path, max_bytes=500, keep=1).write(line("b", 400))
    assert events(path)[0]["event"] == "b"
    assert events(path.with_name("taskq.jsonl.1"))[0]["event"] == "a"


def test_line_longer_than_the_file_may_be_is_dropped(path: Path) -> None:
    """The cap on the total holds even for one huge line."""
    file = RotatingFile(path, max_bytes=500)
    file.write(line("huge", 501))
    file.write(line("b"))
    assert file.dropped == 1
    assert [e["event"] for e in events(path)] == ["log.dropped", "b"]


def test_full_disk_drops_counts_and_tells(path: Path) -> None:
    """While the disk is full nothing is raised; afterwards one line says how many are missing and why."""
    write = FailingWrite()
    file = RotatingFile(path, write=write)
    file.write(line("a"))
    write.errno = errno.ENOSPC
    for _ in range(5):
        file.write(line("lost"))
    assert file.dropped == 5
    write.errno = 0
    file.write(line("b"))
    file.write(line("c"))
    assert [e["event"] for e in events(path)] == ["a", "log.dropped", "b", "c"]
    told = events(path)[1]
    assert (told["count"], told["error"], told["level"]) == (5, "No space left on device", "warning")
    assert told["timestamp"].endswith("Z")
    assert file.dropped == 5


def test_disk_that_fills_up_within_a_line(path: Path, limit_file_size: Callable[[int], None]) -> None:
    """A line that was written in part is cut off: nothing unreadable stays, and the loss is reported."""
    file = RotatingFile(path)
    file.write(line("a"))
    limit_file_size(path.stat().st_size + 10)
    file.write(line("torn", 100))
    file.write(line("lost", 100))
    assert not append_once(path, line("the guardian's", 100))
    assert [event["event"] for event in events(path)] == ["a"]
    limit_file_size(10**6)
    file.write(line("b"))
    assert [event["event"] for event in events(path)] == ["a", "log.dropped", "b"]
    assert events(path)[1]["count"] == file.dropped == 2


def test_what_another_process_appended_is_not_taken_back(path: Path) -> None:
    """A torn line behind which the guardian has written stays, as a line of its own."""
    write = FailingWrite()

    def write_and_be_followed(fd: int, data: bytes) -> int:
        written = write(fd, data)
        if written < len(data):
            append_once(path, line("guardian"))
        return written

    file = RotatingFile(path, write=write_and_be_followed)
    file.write(line("a"))
    write.at_most = 10
    file.write(line("torn"))
    write.at_most = None
    file.write(line("b"))
    first, torn, guardian, told, last = path.read_bytes().splitlines()
    assert torn == line("torn")[:10]
    assert [json.loads(text)["event"] for text in (first, guardian, told, last)] == [
        "a",
        "guardian",
        "log.dropped",
        "b",
    ]


def test_a_line_torn_by_a_kill_stays_closed_on_a_full_disk(path: Path) -> None:
    """What is taken back is the new line, and the newline that should have closed the old one."""
    path.parent.mkdir()
    path.write_bytes(b'{"event": "tor')
    write = FailingWrite()
    file = RotatingFile(path, write=write)
    write.at_most = 10
    file.write(line("lost"))
    assert path.read_bytes() == b'{"event": "tor'
    write.at_most = None
    file.write(line("b"))
    torn, told, last = path.read_bytes().splitlines()
    assert torn == b'{"event": "tor'
    assert [json.loads(text)["event"] for text in (told, last)] == ["log.dropped", "b"]


def test_line_torn_by_a_killed_broker_is_closed(path: Path) -> None:
    """A file that ends within a line is continued on a new line, by the broker and by the guardian."""
    path.parent.mkdir()
    path.write_bytes(b'{"event": "tor')
    RotatingFile(path).write(line("a"))
    path.open("ab").write(b"{half")
    assert append_once(path, line("b"))
    lines = path.read_bytes().splitlines()
    assert [lines[0], lines[2]] == [b'{"event": "tor', b"{half"]
    assert [json.loads(lines[i])["event"] for i in (1, 3)] == ["a", "b"]


@pytest.mark.parametrize("meddle", [os.unlink, lambda path: os.rename(path, f"{path}.moved")])
def test_file_taken_away_is_made_again(path: Path, meddle: Callable[[Path], None]) -> None:
    """Lines go to a new file at the latest a second after somebody deleted or renamed the old one."""
    clock = Clock()
    file = RotatingFile(path, clock=clock)
    file.write(line("a"))
    meddle(path)
    clock.now += 1.0
    file.write(line("b"))
    assert [e["event"] for e in events(path)] == ["b"]
    assert file.dropped == 0


def test_directory_taken_away_is_made_again(path: Path) -> None:
    """The same holds if the whole log directory is deleted."""
    clock = Clock()
    file = RotatingFile(path, clock=clock)
    file.write(line("a"))
    path.unlink()
    path.parent.rmdir()
    clock.now += 1.0
    file.write(line("b"))
    assert [e["event"] for e in events(path)] == ["b"]


def test_inode_is_looked_at_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check costs one stat per second, not per line."""
    clock = Clock()
    file = RotatingFile(path, clock=clock)
    file.write(line("a"))
    stats: list[object] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: stats.append(a) or real(*a, **k))
    for _ in range(100):
        file.write(line("b"))
        clock.now += 0.025
    assert len(stats) == 2


def test_bad_descriptor_is_opened_again(path: Path) -> None:
    """An I/O error closes the file; it is tried again a second later, not with every line."""
    clock, write = Clock(), FailingWrite()
    file = RotatingFile(path, clock=clock, write=write)
    write.errno = errno.EIO
    file.write(line("lost"))
    write.errno = 0
    file.write(line("lost too"))
    clock.now += 1.0
    file.write(line("a"))
    assert [e["event"] for e in events(path)] == ["log.dropped", "a"]
    assert events(path)[0]["error"] == "Input/output error"


def test_place_that_cannot_be_opened(tmp_path: Path) -> None:
    """A path below a plain file, a symlink, a device and a FIFO are refused, quietly and without waiting."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "file" / "x", tmp_path / "link", tmp_path / "fifo", Path("/dev/full")):
        file = RotatingFile(path)
        file.write(line("lost"))
        file.write(line("lost"))
        assert file.dropped == 2
        assert not append_once(path, line("lost"))
    assert (tmp_path / "file").read_text() == ""
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_rotation_that_fails_does_not_lose_old_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the current file cannot be renamed, lines are dropped, and the old files stay what they are."""
    file = RotatingFile(path, max_bytes=300, keep=3)
    for i in range(4):
        file.write(line(f"e{i}", 200))
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if source == path:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(10):
        file.write(line("lost", 200))
    monkeypatch.setattr(os, "replace", real)
    kept = {e["event"] for p in path.parent.iterdir() for e in events(p)}
    assert {"e1", "e2", "e3"} <= kept
    assert file.dropped == 10
    file.write(line("b", 200))
    assert "b" in {e["event"] for p in path.parent.iterdir() for e in events(p)}


def test_another_appender(path: Path) -> None:
    """What the guardian appends counts for the size, and goes to the new file after a rotation."""
    clock = Clock()
    file = RotatingFile(path, max_bytes=1000, keep=2, clock=clock)
    file.write(line("a", 300))
    assert append_once(path, line("guardian 1", 500))
    clock.now += 1.0
    file.write(line("b", 300))
    assert append_once(path, line("guardian 2"))
    assert [e["event"] for e in events(path)] == ["b", "guardian 2"]
    assert [e["event"] for e in events(path.with_name("taskq.jsonl.1"))] == ["a", "guardian 1"]
