"""The logger as the broker uses it: fields, limits, stderr in all its states, and what is not touched."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.telemetry.fanout import Fanout, announce
from taskq.telemetry.files import log_path
from taskq.telemetry.reader import read
from taskq.telemetry.record import FIELDS, LEVELS, LINE_MAX_BYTES, TEXT_MAX_CHARS, compose, encode
from taskq.telemetry.setup import Logger, configure
from taskq.telemetry.sink import RotatingFile
from taskq.telemetry.stream import Stream

CLOSED_FD = 999


class Odd:
    """Its text cannot be had."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class OddError(Exception):
    """Its message cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.fixture
def log(tmp_path: Path) -> Logger:
    return configure(tmp_path, "json", "debug", stderr_fd=CLOSED_FD)[0]


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    """A pipe: [read end, write end]; what is still open is closed."""
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            pass


def one(directory: Path) -> dict[str, Any]:
    """The last event of the log."""
    return list(read(directory))[-1]


def test_fields_are_complete_and_ordered(tmp_path: Path, log: Logger) -> None:
    """A line has timestamp, level, event, then the contract's fields in their order, then the others."""
    given_backwards = dict.fromkeys(reversed(FIELDS), "x")
    log.bind(other=1).warning("job.failed", **given_backwards)
    event = one(tmp_path)
    assert list(event) == ["timestamp", "level", "event", *FIELDS, "other"]
    assert (event["level"], event["event"]) == ("warning", "job.failed")
    written = datetime.fromisoformat(event["timestamp"])
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60
    assert event["timestamp"].endswith("Z")
    assert len(event["timestamp"]) == 27


def test_level_filters(tmp_path: Path) -> None:
    """Events below the level are not written."""
    log, _ = configure(tmp_path, "json", "warning", stderr_fd=CLOSED_FD)
    log.info("a")
    log.warning("b")
    assert [event["event"] for event in read(tmp_path)] == ["b"]


def test_arguments_are_never_logged(tmp_path: Path, log: Logger) -> None:
    """Even if somebody passes them to the logger."""
    log.info("job.started", args=["secret"], kwargs={"key": "secret"}, payload=b"secret", result="secret")
    assert "secret" not in log_path(tmp_path).read_text()


def test_values_become_plain_json(tmp_path: Path, log: Logger) -> None:
    """Any value is written as JSON or as its text, and None not at all."""
    log.info(
        "e",
        none=None,
        nan=float("nan"),
        huge=10**5000,
        odd=Odd(),
        path=Path("/x"),
        raw=b"a\xff",
        signal=signal.SIGKILL,
        error=ValueError("bad"),
        error2=OddError(),
        nested={1: [Odd(), {"a": (1, 2)}]},
    )
    event = one(tmp_path)
    assert "none" not in event
    assert (event["nan"], event["raw"], event["signal"]) == ("nan", "a\\xff", 9)
    assert event["error"] == "ValueError: bad"
    assert "Odd" in event["odd"]
    assert "OddError" in event["error2"]
    assert event["nested"]["1"][1] == {"a": [1, 2]}


def test_long_values_are_cut(tmp_path: Path, log: Logger) -> None:
    """A message of 100 MB costs a few KiB of log, and many long fields stay within the limit of a line."""
    log.info("e", message="é" * 10_000_000)
    assert len(one(tmp_path)["message"]) < TEXT_MAX_CHARS + 100
    log.info("e", task="resize", **{f"f{i}": "é" * 10_000 for i in range(100)})
    assert one(tmp_path)["truncated"] is True
    assert one(tmp_path)["task"] == "resize"
    assert max(map(len, log_path(tmp_path).read_bytes().splitlines())) < LINE_MAX_BYTES


def test_exceptions_are_reported_with_traceback(tmp_path: Path, log: Logger) -> None:
    """`log.exception` writes the error and its traceback, even of an exception that cannot be printed."""
    for error in (ValueError("bad"), OddError()):
        try:
            raise error
        except Exception:
            log.exception("broker.error")
        assert "test_exceptions_are_reported" in one(tmp_path)["traceback"]
        assert one(tmp_path)["error"]


def test_time_of_a_job_log_line_can_be_given(tmp_path: Path, log: Logger) -> None:
    """A number as timestamp says when it happened; any other value is not believed."""
    log.info("job.log", message="x", timestamp=0.5)
    assert one(tmp_path)["timestamp"] == "1970-01-01T00:00:00.500000Z"
    log.info("job.log", message="x", timestamp="yesterday")
    assert one(tmp_path)["timestamp"].startswith("20")
    log.info("job.log", message="x", timestamp=float("inf"))
    assert one(tmp_path)["timestamp"].startswith("1970")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_any_event_is_one_ascii_line(fields: dict[str, Any]) -> None:
    """Whatever is logged, it is one line of printable ASCII that decodes to an event."""
    line = encode(compose("info", {**fields, "event": "e"}, 0.0))
    assert line.endswith(b"\n")
    assert all(32 <= byte < 128 for byte in line[:-1])
    assert json.loads(line, parse_constant=pytest.fail)["event"] == "e"


def test_global_logging_is_not_touched(tmp_path: Path) -> None:
    """Neither the root logger nor structlog's configuration changes."""
    before = (list(logging.root.handlers), logging.root.level, structlog.get_config())
    configure(tmp_path, "json", stderr_fd=CLOSED_FD)[0].info("a")
    assert (list(logging.root.handlers), logging.root.level, structlog.get_config()) == before
    assert not structlog.is_configured()


def test_json_on_stderr_is_the_line_of_the_file(tmp_path: Path, pipe: list[int]) -> None:
    """A pipe gets JSON by default, the same as the file."""
    log, _ = configure(tmp_path, stderr_fd=pipe[1])
    log.info("a", x="\x1b[31m\n")
    assert os.read(pipe[0], 65536) == log_path(tmp_path).read_bytes()


def test_console_on_a_pipe(tmp_path: Path, pipe: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The console can be asked for anywhere; without a terminal it has no colours."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    log, _ = configure(tmp_path, "console", stderr_fd=pipe[1])
    log.info("job.started", task="re\nsize", job_id="abc")
    text = os.read(pipe[0], 65536).decode()
    assert "job.started" in text
    assert text.count("\n") == 1
    assert "\x1b" not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_each_line_tells_the_journal_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: Any, kind: str
) -> None:
    """If stderr is what JOURNAL_STREAM names. The file has the lines without it."""
    reading, writing = stderr_of(kind, tmp_path / "stderr")
    found = os.fstat(writing)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    log, fanout = configure(tmp_path, log_format, "debug", stderr_fd=writing)
    for level in LEVELS:
        getattr(log, level)("x.y")
    log.error("job.failed", traceback="Traceback\n  line 1\nValueError: no")
    announce(tmp_path, log_format, "critical", "fleet.given_up", fd=writing, error="it died")
    fanout.close()
    lines = os.read(reading, 65536).decode().splitlines()
    assert [line[:3] for line in lines[:6]] == ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>"]
    assert lines[-1].startswith("<2>")
    if log_format == "json":
        assert [json.loads(line[3:]) for line in lines] == list(read(tmp_path))
    else:
        assert [line[:3] for line in lines[5:-1]] == ["<3>"] * 4, "each line of a traceback"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("stream", ["", "8:12", "8", "{device}:{other}", "{other}:{inode}", "none"])
def test_stderr_is_not_the_journal_only_since_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    reading, writing = stderr_of("file", tmp_path / "stderr")
    found = os.fstat(writing)
    told = stream.format(device=found.st_dev, inode=found.st_ino, other=found.st_ino + 1)
    monkeypatch.setenv("JOURNAL_STREAM", told)
    configure(tmp_path, "json", stderr_fd=writing)[0].error("x.y")
    assert os.read(reading, 100).startswith(b'{"timestamp"')
    os.close(reading)
    os.close(writing)


def stderr_of(kind: str, path: Path) -> tuple[int, int]:
    """A stderr of some kind: where it is read, and where it is written."""
    if kind == "pipe":
        return os.pipe()
    if kind == "socket":
        ends = socket.socketpair()
        return ends[0].detach(), ends[1].detach()
    writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return os.open(path, os.O_RDONLY), writing


def test_terminal_gets_the_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets text for people, in colour unless NO_COLOR is set."""
    monkeypatch.setenv("TERM", "xterm")
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        master, slave = pty.openpty()
        log, out = configure(tmp_path, stderr_fd=slave)
        log.error("job.failed", task="resize", job_id="abc")
        text = os.read(master, 65536).decode()
        assert "job.failed" in text
        assert ("\x1b[" in text) == (no_colour == "")
        out.close()
        os.close(slave)
        os.close(master)


def test_full_pipe_drops_counts_and_tells(tmp_path: Path, pipe: list[int]) -> None:
    """A pipe that nobody reads does not hold up the broker; when it is read again, the losses are reported."""
    stream = Stream(pipe[1], encode)
    fanout = fanout_of(tmp_path, stream)
    for i in range(2000):
        fanout.emit(compose("info", {"event": "e", "i": i, "pad": "x" * 100}, 0.0))
    assert stream.dropped > 0
    assert fanout.dropped == 0
    text = b""
    while select.select([pipe[0]], [], [], 0)[0]:
        text += os.read(pipe[0], 65536)
    fanout.emit(compose("info", {"event": "last"}, 0.0))
    text += os.read(pipe[0], 65536)
    whole = [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]
    assert [event["event"] for event in whole[-2:]] == ["log.dropped", "last"]
    assert sum(event.get("count", 0) for event in whole) == stream.dropped
    assert not os.get_blocking(stream._fd)
    assert os.get_blocking(pipe[1]), "the descriptor that others share must stay as it was"


def test_stopped_terminal_does_not_block(tmp_path: Path) -> None:
    """A terminal that takes no more, as of a hung ssh connection, costs lines only."""
    master, slave = pty.openpty()
    stream = Stream(slave, encode)
    fanout = fanout_of(tmp_path, stream)
    for i in range(3000):
        fanout.emit(compose("info", {"event": "e", "i": i, "pad": "x" * 50}, 0.0))
    assert stream.dropped > 0
    stream.close()
    os.close(slave)
    os.close(master)


def test_full_socket_does_not_block(tmp_path: Path) -> None:
    """Nor does a socket, such as that of the systemd journal."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Stream(ours.fileno(), encode)
        fanout = fanout_of(tmp_path, stream)
        for i in range(5000):
            fanout.emit(compose("info", {"event": "e", "i": i, "pad": "x" * 200}, 0.0))
        assert stream.dropped > 0
        assert theirs.recv(20).startswith(b'{"timestamp"')
        stream.close()


def test_dev_full(tmp_path: Path) -> None:
    """A full device costs lines on stderr, none in the file."""
    fd = os.open("/dev/full", os.O_WRONLY)
    stream = Stream(fd, encode)
    fanout = fanout_of(tmp_path, stream)
    for _ in range(3):
        fanout.emit(compose("info", {"event": "e"}, 0.0))
    assert (stream.dropped, stream.alive) == (3, True)
    assert len(list(read(tmp_path))) == 3
    os.close(fd)


def test_closed_pipe_is_given_up(tmp_path: Path, pipe: list[int]) -> None:
    """When the reader of stderr has gone, the file goes on."""
    log, out = configure(tmp_path, stderr_fd=pipe[1])
    log.info("a")
    os.close(pipe[0])
    log.info("b")
    log.info("c")
    assert [event["event"] for event in read(tmp_path)] == ["a", "b", "c"]
    assert out.dropped == 0


def test_number_of_a_closed_stderr_is_not_written_to(tmp_path: Path) -> None:
    """If stderr is closed, a file that later gets its number (the journal!) gets no log lines."""
    fd = os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT)
    os.close(fd)
    log, _ = configure(tmp_path, stderr_fd=fd)
    journal = os.open(tmp_path / "journal", os.O_WRONLY | os.O_CREAT)
    os.dup2(journal, fd)
    log.info("a")
    assert (tmp_path / "journal").read_bytes() == b""
    assert len(list(read(tmp_path))) == 1
    os.close(journal)
    if fd != journal:
        os.close(fd)


def test_guardian_announces(tmp_path: Path, pipe: list[int]) -> None:
    """The guardian logs an event to both places without holding anything open."""
    announce(tmp_path, "json", "error", "broker.crashed", fd=pipe[1], pid=7, signal=signal.SIGKILL)
    event = one(tmp_path)
    assert (event["event"], event["signal"], event["level"]) == ("broker.crashed", 9, "error")
    assert json.loads(os.read(pipe[0], 65536)) == event


def test_mistake_within_logging_is_counted(tmp_path: Path) -> None:
    """An event that cannot be encoded is counted, not raised."""
    fanout = fanout_of(tmp_path, Stream(CLOSED_FD, encode))
    fanout.emit({"event": object()})
    assert fanout.dropped == 1


def fanout_of(directory: Path, stream: Stream) -> Fanout:
    """A fan-out to the file below `directory` and a stream."""
    return Fanout(RotatingFile(log_path(directory)), stream)
