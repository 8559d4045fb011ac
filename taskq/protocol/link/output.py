"""The output of consumers: bytes of a pipe, cut into lines, cleaned, and assigned to jobs."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taskq.model.limits import MAX_OUTPUT_LINE_BYTES, MAX_STACK_LINES

#: Colours and cursor movements (ECMA-48 control sequences): of no use in a log, and able to fool a terminal.
_TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
#: Fields that the broker itself gives to each line: a job's own output cannot forge them.
_OWN_FIELDS = frozenset(
    {"timestamp", "level", "event", "queue", "task", "job_id", "attempt", "consumer", "pid", "message", "stream"}
    | {"self", "method_name"}  # structlog's own arguments
)
_LEVELS = frozenset({"debug", "info", "warning", "error"})

#: Begins a line of output that is a structured event, as in RFC 7464; all other lines are taken as plain text.
RECORD_MARK = "\x1e"
#: Begins a line that tells which job wrote it, where several run in a process: the mark, the job's number, the mark.
JOB_MARK = "\x1d"
#: Where a line of ours begins behind text without a line end: at an event, or at the mark of a job.
_BEGINNING = re.compile(f"(?<=.)(?={JOB_MARK}[0-9]{{1,19}}{JOB_MARK}|(?<!{JOB_MARK}){RECORD_MARK}{{)", re.DOTALL)


#: Threads of a consumer that wait for something to send stand here.
_IDLE_FUNCTIONS = (" in report_late", " in _run")
_PACKAGE = str(Path(__file__).parents[2])
#: What `faulthandler` writes, in Python 3.11 to 3.14.
_STACK_BEGINS = re.compile(r"Fatal Python error: |(Current thread|Thread) ?.* \(most recent call first\):$")
_THREAD = re.compile("(Current thread|Thread) ")
_STACK_GOES_ON = re.compile(r"$|  \S|Current thread|Thread |Python runtime state: |Extension modules: ")


class LineCutter:
    """Cuts a stream of bytes into lines. Holds at most one line of the longest kind; the rest of it is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._is_dropping = False

    def feed(self, data: bytes) -> list[str]:
        """Takes the next bytes; returns the lines completed by them, without the line ends and terminal codes."""
        *lines, rest = (self._rest + data).split(b"\n")
        texts = []
        for line in lines:
            if self._is_dropping:
                self._is_dropping = False  # the end of a line whose beginning was told
            else:
                texts.append(_text(line))
        if len(rest) > MAX_OUTPUT_LINE_BYTES:
            if not self._is_dropping:
                texts.append(_text(rest))
            self._is_dropping = True
            rest = b""
        self._rest = rest
        return texts

    def flush(self) -> list[str]:
        """The last line, if it had no end."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest and not self._is_dropping else []

    @property
    def is_within_line(self) -> bool:
        """Whether the end of a line is still to come."""
        return bool(self._rest) or self._is_dropping

    def end_line(self) -> list[str]:
        """Whoever wrote so far has ended: what comes next begins a line. Returns the last line, if it had no end."""
        lines = self.flush()
        self._is_dropping = False
        return lines


def _text(line: bytes) -> str:
    text = line[:MAX_OUTPUT_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip("\r")
    return text if text.startswith(RECORD_MARK) else _plain(text)


def _plain(text: str) -> str:
    """Text without terminal codes, also those that appear when others are taken out of them."""
    return _TERMINAL_CODES.sub("", text).replace("\x1b", "")


class Stacks:
    """Holds back the stacks of all threads that Python (`faulthandler`) has written, to be told as one: at a crash, or
    when it was asked for them. Of very many lines the last are kept, where the main thread is."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=MAX_STACK_LINES)
        self._is_within = False

    def hold_back(self, lines: Iterable[str]) -> list[str]:
        """Takes the lines of stacks; returns the others."""
        others: list[str] = []
        for line in lines:
            self._is_within = bool(_STACK_BEGINS.match(line)) or (self._is_within and bool(_STACK_GOES_ON.match(line)))
            (self.lines if self._is_within else others).append(line)
        return others

    def take(self) -> list[str]:
        """Hands over what was held back, without the frames of taskq that are below those of jobs."""
        lines = without_own_frames(self.lines)
        self.lines.clear()
        self._is_within = False
        return lines


def without_own_frames(lines: Iterable[str], package: str = _PACKAGE) -> list[str]:
    """Stacks of threads without what is of no use to whoever looks for a hang in a job: the frames of taskq below the
    job's own, and the threads of taskq that wait for something to do. The present thread is told by one frame at least.

    Args:
        lines: as `faulthandler` writes them.
        package: the folder of taskq.
    """
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line and _THREAD.match(line):
            blocks.append([])
        if line:
            blocks[-1].append(line)
    told = blocks[0]
    for block in blocks[1:]:
        own = next((at for at, line in enumerate(block) if line.startswith(f'  File "{package}')), len(block))
        is_idle = own < len(block) and block[own].endswith(_IDLE_FUNCTIONS)
        if not is_idle and (own > 1 or block[0].startswith("Current")):
            told = [*told, *block[: max(own, 2)], *(line for line in block[own:] if not line.startswith(" "))]
    return told


def whole_lines(lines: Iterable[str]) -> list[str]:
    """Takes apart what stands in one line since text without a line end, such as a prompt, was before it."""
    whole: list[str] = []
    for line in lines:
        if RECORD_MARK in line or JOB_MARK in line:
            whole += _BEGINNING.split(line)
        else:
            whole.append(line)
    return whole


def split_job_mark(line: str) -> tuple[int, str]:
    """Tells the number of the job that wrote a line, 0 if it does not say, from the line itself."""
    if line.startswith(JOB_MARK):
        number, mark, rest = line[1:].partition(JOB_MARK)
        if mark and number.isascii() and number.isdigit() and len(number) < 20:
            return int(number), rest
    return 0, line


def fields_of_line(line: str) -> tuple[str, dict[str, Any]]:
    """Tells a structured event from plain text.

    Returns:
        The level, and the fields to log: `message`, and whatever else the event has.
    """
    if line.startswith(RECORD_MARK):
        try:
            fields = json.loads(line[1:])
            level, message = fields.pop("level", "info"), fields.pop("event", "")
            own = {name if name not in _OWN_FIELDS else f"{name}_": value for name, value in fields.items()}
            return level if level in _LEVELS else "info", {"message": str(message), **own}
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass  # a line of the job's own that happens to begin with the mark
    return "info", {"message": _plain(line)}
