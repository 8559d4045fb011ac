"""Reads the log, from any process, while the broker may write and rotate it, or while there is none.

    read    the rotated files from the oldest on, then the current one
    follow  the last few events, then each new one as it comes, across rotations

There are two series of files, one for events and one for what jobs print (`taskq.telemetry.files`). They are read as
one, in the order of their times.

A line that is not a JSON object (after a power cut, a kill during a write, an editor) becomes a ``log.unreadable``
event, so that readers see that something is missing there.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from taskq.telemetry.files import log_path, output_path, rotated_numbers, rotated_path
from taskq.telemetry.record import LEVELS, LINE_MAX_BYTES, Event, utc_text

POLL_S = 0.1
_CHUNK_BYTES = 64 * 1024
_GARBAGE_MAX_BYTES = 4 * LINE_MAX_BYTES
_SHOWN_GARBAGE_BYTES = 200
_TIME_BEGINS = b'{"timestamp":"'
_TIME_CHARS = len("2026-05-09T07:35:25.123456Z")


@dataclass(frozen=True)
class Filter:
    """Which events are wanted. None means that there is no condition.

    Attributes:
        task: the task's name.
        job_id: a whole job id, or its beginning or end.
        event: the event's name; ``*`` and ``?`` are wildcards, as in ``job.*``.
        level: the lowest level: debug, info, warning, error or critical.
        since: events from this time on (without a time zone: local time); see `ago`.
        until: events before this time.
        consumer: the number of the consumer that wrote the event, or that the event is about.
        grep: a regular expression that is found in at least one value of the event.
    """

    task: str | None = None
    job_id: str | None = None
    event: str | None = None
    level: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    consumer: int | None = None
    grep: re.Pattern[str] | None = None

    @property
    def first_time(self) -> bytes:
        """The time of the first wanted line, as lines have it; empty: the beginning of the log."""
        return utc_text(self.since.timestamp()).encode() if self.since is not None else b""

    @property
    def end_time(self) -> bytes:
        """The time of the first line that is too late; empty: there is none."""
        return utc_text(self.until.timestamp()).encode() if self.until is not None else b""

    def matcher(self) -> Callable[[Event], bool]:
        """Return a function that says whether an event is wanted."""
        since, until = self.first_time.decode(), self.end_time.decode()
        least = LEVELS[self.level] if self.level is not None else 0

        def matches(event: Event) -> bool:
            return (
                (self.task is None or event.get("task") == self.task)
                and (self.job_id is None or _is_about(event, self.job_id))
                and (self.event is None or fnmatchcase(str(event.get("event")), self.event))
                and (not least or LEVELS.get(str(event.get("level")), LEVELS["info"]) >= least)
                and (not since or str(event.get("timestamp", since)) >= since)
                and (not until or str(event.get("timestamp", "")) < until)
                and (self.consumer is None or event.get("consumer") == self.consumer)
                and (self.grep is None or _is_found(self.grep, event))
            )

        return matches

    def needles(self) -> tuple[bytes, ...]:
        """Bytes that each wanted line contains. Looking for them is much cheaper than decoding the line."""
        is_whole = self.event is not None and not set(self.event) & set("*?[") and self.event != "log.unreadable"
        event = self.event if is_whole else None
        return tuple(json.dumps(text)[1:-1].encode() for text in (self.task, self.job_id, event) if text)


EVERYTHING = Filter()


def ago(seconds: float) -> datetime:
    """The time `seconds` before now, for `Filter.since`."""
    return datetime.fromtimestamp(time.time() - seconds, UTC)


def read(directory: Path, wanted: Filter = EVERYTHING, last: int | None = None) -> Iterator[Event]:
    """The events that are in the log now, oldest first; none if there is no log.

    Args:
        directory: the fleet's directory.
        wanted: a condition.
        last: only this many, the newest that fit the condition.

    Raises:
        PermissionError: the log belongs to another user.
    """
    decode = _Decoder(wanted)
    with ExitStack() as stack:
        series = []
        for path in _paths(directory):
            series.append(_open_all(path, wanted.first_time))
            stack.callback(_close_all, series[-1])
        if last is not None:
            yield from _last_of_both(series, decode, last, ended=True)
            return
        for time_of_line, line, name in merge(*map(_lines, series), key=_time):
            if wanted.end_time and time_of_line >= wanted.end_time:
                return
            event = decode.event(line, name)
            if event is not None:
                yield event


def follow(
    directory: Path,
    wanted: Filter = EVERYTHING,
    last: int = 0,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[Event]:
    """The `last` events of the log, then each new one as it is written, for ever.

    Args:
        directory: the fleet's directory; neither it nor the log need exist yet.
        wanted: a condition.
        last: how many of the events that are already there come first.
        wait: called with a number of seconds when there is nothing new; if it returns a true value, the events
            end. The `wait` method of a `threading.Event` fits.

    Raises:
        PermissionError: the log belongs to another user.
    """
    decode = _Decoder(wanted)
    series: list[_Growing] = []
    try:
        for path in _paths(directory):
            series.append(_Growing(path, wanted.first_time))
        yield from _last_of_both([each.tails for each in series], decode, last, ended=False)
        for each in series:
            each.forget_older()
        for _, line, name in _as_they_come(series[0], series[1], wait):
            event = decode.event(line, name)
            if event is not None:
                yield event
    finally:
        for each in series:
            _close_all(each.tails)


class _Tail:
    """An open log file, of which whole lines are read.

    The descriptor stays with the file when it is renamed, and keeps its inode number from being reused.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        self.identity = (found.st_dev, found.st_ino)
        self._offset = 0
        self._rest = b""
        self._skipping = False  # within a line that is too long to be one of ours

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def skip_to(self, time: bytes) -> None:
        """Goes to the first line of a time, or somewhat before it, by halving: what is older is not read.

        Times are taken to ascend. Where the clock was set back, lines of the hours that came twice may be missed.
        """
        low, high = 0, os.fstat(self._fd).st_size
        while high - low > _CHUNK_BYTES:
            middle = (low + high) // 2
            found = self._first_time_behind(middle)
            if found is not None and found[1] < time:
                low = found[0]
            else:
                high = middle
        self._offset = low

    def _first_time_behind(self, offset: int) -> tuple[int, bytes] | None:
        """Where the first line begins that follows an offset and has a time, and that time; None if there is none
        nearby."""
        chunk = os.pread(self._fd, _CHUNK_BYTES, offset)
        at = chunk.find(b"\n" + _TIME_BEGINS) + 1
        begins = at + len(_TIME_BEGINS)
        return (offset + at, chunk[begins : begins + _TIME_CHARS]) if at else None

    def modified_ns(self) -> int:
        """When the file was last written to."""
        return os.fstat(self._fd).st_mtime_ns

    def lines(self, ended: bool) -> Iterator[bytes]:
        """The lines that were completed since the last call, without their newlines.

        Args:
            ended: whether the text after the last newline counts as a line too, since nothing will follow.
        """
        # an unfinished line is read again: if the disk was full it is cut off, and another line may be there now
        self._offset, self._rest = self._offset - len(self._rest), b""
        if os.fstat(self._fd).st_size < self._offset:  # somebody truncated the file
            self._offset, self._skipping = 0, False
        while chunk := os.pread(self._fd, _CHUNK_BYTES, self._offset):
            self._offset += len(chunk)
            *whole, rest = (self._rest + chunk).split(b"\n")
            if whole and self._skipping:
                del whole[0]
                self._skipping = False
            self._rest = b"" if self._skipping else rest
            yield from whole
            if len(self._rest) > _GARBAGE_MAX_BYTES:
                yield self._rest
                self._rest, self._skipping = b"", True
        if ended and self._rest:
            rest, self._rest = self._rest, b""
            yield rest


class _Line(NamedTuple):
    """A line of the log.

    Attributes:
        time: when it was written, as the line says; if it does not, the time of the line before it.
        text: without its newline.
        name: of its file.
    """

    time: bytes
    text: bytes
    name: str


_time = itemgetter(0)


def _timed(lines: Iterable[bytes], name: str, time_before: bytes = b"") -> Iterator[_Line]:
    """The lines of one file with their times, which are found without decoding the lines."""
    for text in lines:
        if text.startswith(_TIME_BEGINS):
            time_before = text[len(_TIME_BEGINS) : len(_TIME_BEGINS) + _TIME_CHARS]
        yield _Line(time_before, text, name)


def _lines(tails: list[_Tail]) -> Iterator[_Line]:
    """The lines of one series of files, as they are now."""
    time_before = b""
    for tail in tails:
        for line in _timed(tail.lines(ended=True), tail.name, time_before):
            time_before = line.time
            yield line


class _Growing:
    """One series of files that is read while it is written and rotated."""

    def __init__(self, path: Path, first_time: bytes) -> None:
        self._path = path
        self.tails = _open_all(path, first_time)  # oldest first; the last one is the current file
        self._lines: Iterator[_Line] | None = None  # of the first of them
        self._time = b""

    def forget_older(self) -> None:
        """Closes all but the current file."""
        _close_all(self.tails[:-1])
        self.tails = self.tails[-1:]

    def next(self) -> _Line | None:
        """The next line; None if there is none now."""
        while True:
            if self._lines is None and self.tails:
                tail = self.tails[0]
                # nothing more is written to a rotated file, so its last line is complete
                self._lines = _timed(tail.lines(ended=len(self.tails) > 1), tail.name, self._time)
            line = None if self._lines is None else next(self._lines, None)
            if line is not None:
                self._time = line.time
                return line
            self._lines = None
            if len(self.tails) > 1:
                self.tails.pop(0).close()
                continue
            newer = _open_newer(self._path, self.tails[0] if self.tails else None)
            if not newer:
                return None
            self.tails += newer


def _as_they_come(one: _Growing, other: _Growing, wait: Callable[[float], object]) -> Iterator[_Line]:
    """The lines of two growing series in the order of their times.

    A line is returned when the other series, looked at after this line was read, has no line or a later one.
    """
    first, second = one.next(), other.next()
    while True:
        if first is None:
            first = one.next()
        if second is None:
            second = other.next()
            if second is not None and first is None:
                first = one.next()
        if first is not None and (second is None or first.time <= second.time):
            yield first
            first = None
        elif second is not None:
            yield second
            second = None
        elif wait(POLL_S):
            return


class _Decoder:
    """Makes events of lines, of those that are wanted."""

    def __init__(self, wanted: Filter) -> None:
        self._matches = wanted.matcher()
        self._needles = wanted.needles()

    def event(self, line: bytes, name: str) -> Event | None:
        """The event of a line of the file `name`; None if it is not wanted."""
        if not line or not all(needle in line for needle in self._needles):
            return None
        event = _decoded(line, name)
        return event if self._matches(event) else None


def _last_of_both(series: list[list[_Tail]], decode: _Decoder, last: int, ended: bool) -> list[Event]:
    """The `last` wanted events of all series together, oldest first."""
    newest = list(merge(*(_newest(tails, decode, last, ended) for tails in series), key=_time))
    return [event for _, event in newest[max(0, len(newest) - last) :]]


def _newest(tails: list[_Tail], decode: _Decoder, last: int, ended: bool) -> list[tuple[bytes, Event]]:
    """The `last` wanted events of one series of files, oldest first, with their times. The newest file is always read
    to its end, older files only if they are needed."""
    found: list[tuple[bytes, Event]] = []
    for tail in reversed(tails):
        is_current = tail is tails[-1]
        if len(found) >= last and not is_current:
            break
        for line in reversed(list(_timed(tail.lines(ended or not is_current), tail.name))):
            if len(found) >= last:
                break
            event = decode.event(line.text, tail.name)
            if event is not None:
                found.append((line.time, event))
    return found[::-1]


def _paths(directory: Path) -> tuple[Path, Path]:
    """The current files of both series. Output comes first: of two lines of the same time, it is the earlier one."""
    return output_path(directory), log_path(directory)


def _open_all(path: Path, first_time: bytes = b"") -> list[_Tail]:
    """All files of the log, oldest first; they are read from `first_time` on.

    They are opened from the newest to the oldest. A rotation in the meantime moves files in the same direction, so a
    file may be seen twice, which its inode shows, but none is missed. Its place is where it was seen last: after two
    rotations at once, what was found in between is newer than it.
    """
    tails: list[_Tail] = []
    try:
        for tail in _existing(path):
            for known in [known for known in tails if known.identity == tail.identity]:
                known.close()
                tails.remove(known)
            tails.append(tail)
    except BaseException:
        _close_all(tails)
        raise
    if first_time:
        for tail in tails:
            tail.skip_to(first_time)
    return tails[::-1]


def _existing(path: Path) -> Iterator[_Tail]:
    """The files of the log that exist, newest first. They are found by trying numbers: a listing of the directory may
    miss files while they are renamed."""
    listed = rotated_numbers(path)
    number = missed = 0
    while missed < 3:
        tail = _opened(rotated_path(path, number) if number else path)
        number += 1
        if tail is not None:
            missed = 0
            yield tail
            continue
        missed += 1
        further = [one for one in listed if one >= number]
        if missed == 3 and further:  # a gap of one or two is a rotation that is under way; a wider one is skipped
            number, missed = further[0], 0


def _open_newer(path: Path, current: _Tail | None) -> list[_Tail]:
    """The files that came after `current`, oldest first; none if it is still the newest."""
    if current is not None and _is_at(path, current):
        return []
    tails = _open_all(path)
    if current is None:
        return tails
    identities = [tail.identity for tail in tails]
    if current.identity in identities:
        newer = tails[identities.index(current.identity) + 1 :]
    else:  # deleted, or rotated away: all files that were written later than `current` are new
        seen_ns = current.modified_ns()
        newer = [tail for tail in tails if tail.name == path.name or tail.modified_ns() > seen_ns]
    _close_all([tail for tail in tails if tail not in newer])
    return newer


def _opened(path: Path) -> _Tail | None:
    """The file, or None if there is none."""
    try:
        return _Tail(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_at(path: Path, tail: _Tail) -> bool:
    """Whether `path` is the file of `tail`, or does not exist, as in the middle of a rotation."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return (found.st_dev, found.st_ino) == tail.identity


def _close_all(tails: list[_Tail]) -> None:
    for tail in tails:
        tail.close()


def _decoded(line: bytes, name: str) -> Event:
    """The event of a line; if the line is not an event, one that says so."""
    try:
        event: Any = json.loads(line)
        if isinstance(event, dict):
            return event
    except (ValueError, RecursionError):
        pass
    shown = line[:_SHOWN_GARBAGE_BYTES].decode("utf-8", "backslashreplace")
    return {"level": "warning", "event": "log.unreadable", "file": name, "bytes": len(line), "text": shown}


def _is_found(pattern: re.Pattern[str], event: Event) -> bool:
    """Whether a regular expression is found in a value of an event."""
    return any(pattern.search(value if isinstance(value, str) else json.dumps(value)) for value in event.values())


def _is_about(event: Event, part: str) -> bool:
    """Whether an event is about a job, or about several of which this is one. The beginning or end of its id is
    enough."""
    several = event.get("job_ids")
    ids = [event.get("job_id"), *(several if isinstance(several, list) else ())]
    return any(isinstance(one, str) and (one.startswith(part) or one.endswith(part)) for one in ids)
