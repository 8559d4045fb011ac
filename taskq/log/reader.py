"""Reads the log, from any process, while the broker may write and rotate it, or while there is none.

    read    the rotated files from the oldest on, then the current one
    follow  the last few events, then each new one as it comes, across rotations

A line that is no JSON object (a power cut, a kill within a write, an editor) becomes a ``log.unreadable``
event, so that a reader sees that something is missing there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from taskq.log.files import log_path, rotated_numbers, rotated_path
from taskq.log.record import LEVELS, LINE_MAX_BYTES, Event, utc_text

POLL_S = 0.1
_CHUNK_BYTES = 64 * 1024
_GARBAGE_MAX_BYTES = 4 * LINE_MAX_BYTES
_SHOWN_GARBAGE_BYTES = 200


@dataclass(frozen=True)
class Filter:
    """Which events are wanted; None is no condition.

    Attributes:
        task: the task's name.
        job_id: a whole job id, or its beginning or end.
        event: the event's name; ``*`` and ``?`` are wildcards, as in ``job.*``.
        level: the lowest level: debug, info, warning, error or critical.
        since: events from this time on (without a time zone: local time); see `ago`.
    """

    task: str | None = None
    job_id: str | None = None
    event: str | None = None
    level: str | None = None
    since: datetime | None = None

    def matcher(self) -> Callable[[Event], bool]:
        """A function that says whether an event is wanted."""
        since = utc_text(self.since.timestamp()) if self.since is not None else ""
        least = LEVELS[self.level] if self.level is not None else 0

        def matches(event: Event) -> bool:
            return (
                (self.task is None or event.get("task") == self.task)
                and (self.job_id is None or _is_about(event, self.job_id))
                and (self.event is None or fnmatchcase(str(event.get("event")), self.event))
                and (not least or LEVELS.get(str(event.get("level")), LEVELS["info"]) >= least)
                and (not since or str(event.get("timestamp", since)) >= since)
            )

        return matches

    def needles(self) -> tuple[bytes, ...]:
        """Bytes that each wanted line contains: to look for them is much cheaper than to decode the line."""
        return tuple(json.dumps(text)[1:-1].encode() for text in (self.task, self.job_id) if text)


EVERYTHING = Filter()


def ago(seconds: float) -> datetime:
    """The time `seconds` before now, for `Filter.since`."""
    return datetime.fromtimestamp(time.time() - seconds, UTC)


def read(directory: Path, wanted: Filter = EVERYTHING, last: int | None = None) -> Iterator[Event]:
    """The events in the log now, oldest first; none if there is no log.

    Args:
        directory: the fleet's directory.
        wanted: a condition.
        last: only so many, the newest ones that fit the condition.

    Raises:
        PermissionError: the log belongs to another user.
    """
    decode = _Decoder(wanted)
    with ExitStack() as stack:
        tails = _open_all(log_path(directory))
        for tail in tails:
            stack.callback(tail.close)
        if last is None:
            for tail in tails:
                yield from decode.events(tail, ended=True)
            return
        yield from _newest(tails, decode, last, ended=True)


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
        last: how many of the events that are there already come first.
        wait: called with seconds when there is nothing new; if it returns something true, the events end.
            The `wait` of a `threading.Event` fits.

    Raises:
        PermissionError: the log belongs to another user.
    """
    path = log_path(directory)
    decode = _Decoder(wanted)
    tails = _open_all(path)
    try:
        if tails:
            yield from _newest(tails, decode, last, ended=False)
            _close_all(tails[:-1])
            tails = tails[-1:]
        while True:
            for tail in tails[:-1]:
                yield from decode.events(tail, ended=True)
            _close_all(tails[:-1])
            tails = tails[-1:]
            if tails:
                yield from decode.events(tails[0], ended=False)
            newer = _open_newer(path, tails[0] if tails else None)
            if newer:
                # nothing is written to the old file any more, so its end, read in the next round, is its end
                tails += newer
            elif wait(POLL_S):
                return
    finally:
        _close_all(tails)


class _Tail:
    """An open log file, read line by line as far as there are whole lines.

    The descriptor stays with the file when it is renamed, and keeps its inode from being given to another.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(self._fd)
        self.identity = (found.st_dev, found.st_ino)
        self._offset = 0
        self._rest = b""
        self._skipping = False  # within a line too long to be one of ours

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def modified_ns(self) -> int:
        """When it was last written to."""
        return os.fstat(self._fd).st_mtime_ns

    def lines(self, ended: bool) -> Iterator[bytes]:
        """The lines that were completed since the last call, without their newlines.

        Args:
            ended: whether what stands behind the last newline is a line too, since nothing will follow.
        """
        # an unfinished line is read again: what a full disk took of it is cut off, and another may stand there now
        self._offset, self._rest = self._offset - len(self._rest), b""
        if os.fstat(self._fd).st_size < self._offset:  # somebody truncated it
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


class _Decoder:
    """From lines to the wanted events."""

    def __init__(self, wanted: Filter) -> None:
        self._matches = wanted.matcher()
        self._needles = wanted.needles()

    def events(self, tail: _Tail, ended: bool) -> Iterator[Event]:
        """The wanted ones of the events that `tail` has now."""
        for line in tail.lines(ended):
            event = self.event(line, tail.name)
            if event is not None:
                yield event

    def event(self, line: bytes, name: str) -> Event | None:
        """The event of one line of the file `name`; None if it is not wanted."""
        if not line or not all(needle in line for needle in self._needles):
            return None
        event = _decoded(line, name)
        return event if self._matches(event) else None


def _newest(tails: list[_Tail], decode: _Decoder, last: int, ended: bool) -> Iterator[Event]:
    """The `last` wanted events of these files, oldest first. The newest file is always read to its end, the
    older ones only where they are needed."""
    found: list[Event] = []
    for tail in reversed(tails):
        is_current = tail is tails[-1]
        if len(found) >= last and not is_current:
            break
        for line in reversed(list(tail.lines(ended or not is_current))):
            if len(found) >= last:
                break
            event = decode.event(line, tail.name)
            if event is not None:
                found.append(event)
    yield from reversed(found)


def _open_all(path: Path) -> list[_Tail]:
    """All files of the log, oldest first.

    They are opened from the newest to the oldest. So a rotation meanwhile, which moves them in the same
    direction, shows a file twice, which its inode tells, rather than not at all. Its place is then where it was
    seen last: after two rotations at once, what was found in between is newer than it.
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
    return tails[::-1]


def _existing(path: Path) -> Iterator[_Tail]:
    """The log's files that there are, newest first, found by trying numbers: a listing of the directory may
    miss some while they are renamed."""
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
        if missed == 3 and further:  # a gap of one or two is a rotation under way, a wider one is jumped over
            number, missed = further[0], 0


def _open_newer(path: Path, current: _Tail | None) -> list[_Tail]:
    """The files that came after `current`, oldest first; empty if it still is the newest."""
    if current is not None and _is_at(path, current):
        return []
    tails = _open_all(path)
    if current is None:
        return tails
    identities = [tail.identity for tail in tails]
    if current.identity in identities:
        newer = tails[identities.index(current.identity) + 1 :]
    else:  # deleted, or rotated away: all that was written to later than to `current` is new
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
    """Whether `path` leads to the file of `tail`, or to nothing, as in the middle of a rotation."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return (found.st_dev, found.st_ino) == tail.identity


def _close_all(tails: list[_Tail]) -> None:
    for tail in tails:
        tail.close()


def _decoded(line: bytes, name: str) -> Event:
    """The event of a line; of one that has none, an event that says so."""
    try:
        event: Any = json.loads(line)
        if isinstance(event, dict):
            return event
    except (ValueError, RecursionError):
        pass
    shown = line[:_SHOWN_GARBAGE_BYTES].decode("utf-8", "backslashreplace")
    return {"level": "warning", "event": "log.unreadable", "file": name, "bytes": len(line), "text": shown}


def _is_about(event: Event, part: str) -> bool:
    """Whether an event is about a job, or about several of which it is one; the beginning or end of its id will do."""
    several = event.get("job_ids")
    ids = [event.get("job_id"), *(several if isinstance(several, list) else ())]
    return any(isinstance(one, str) and (one.startswith(part) or one.endswith(part)) for one in ids)
