"""Outcomes that a consumer has not sent yet, in memory that outlives it."""

from __future__ import annotations

from ctypes import c_uint64
from multiprocessing.context import BaseContext
from struct import Struct
from typing import Any

from taskq.model.attempt import Attempts
from taskq.protocol import frames
from taskq.protocol.link.reports import outcomes_frame

_REPORT_COUNT = 250
_BODY_BYTES = 256 * 1024
_ROW = Struct("=4Q")  # number, verdict, microseconds, length of the outcome
_ROW_BYTES, _pack_row = _ROW.size, _ROW.pack_into


class Unsent:
    """The shared memory: a count, a row of four numbers for each attempt, and the outcomes one behind the other.

    The consumer alone writes; the broker reads when the consumer is dead. The count is written last, so what a kill
    interrupts is not counted.
    """

    def __init__(self, context: BaseContext) -> None:
        self._memory: Any = context.RawArray(c_uint64, 1 + (_ROW_BYTES * _REPORT_COUNT + _BODY_BYTES) // 8)
        self._look()

    def __getstate__(self) -> object:
        return self._memory

    def __setstate__(self, memory: object) -> None:
        self._memory = memory
        self._look()

    def _look(self) -> None:
        data = memoryview(self._memory).cast("B")
        rows_end = 8 + _ROW_BYTES * _REPORT_COUNT
        self._count, self._rows, self._body = data[:8].cast("Q"), data[8:rows_end], data[rows_end:]
        self._written = self._end = 0  # rows, and bytes of the body; the consumer's own

    def add(self, number: int, verdict: int, duration_us: int, outcome: bytes) -> int:
        """Writes an outcome. Returns how many there are now, or 0 if there is no room for it."""
        count = self._written
        start = self._end
        end = start + len(outcome)
        if count == _REPORT_COUNT or end > _BODY_BYTES:
            return 0
        self._body[start:end] = outcome
        _pack_row(self._rows, _ROW_BYTES * count, number, verdict, duration_us, len(outcome))
        self._end = end
        self._count[0] = self._written = count + 1
        return count + 1

    def frame(self) -> bytes:
        """The message that tells all that was written."""
        numbers, verdicts, durations_us, lengths = self._columns()
        return outcomes_frame(numbers, verdicts, durations_us, lengths, [bytes(self._body[: self._end])])

    def is_empty(self) -> bool:
        """Whether nothing was written, or all of it was sent."""
        return self._count[0] == 0

    def clear(self) -> None:
        """Forgets what was written, because it is sent."""
        self._count[0] = self._written = self._end = 0

    def read(self) -> Attempts:
        """Reads what a dead consumer has left. Called by the broker.

        Raises:
            ProtocolError: the consumer's process has scribbled over it.
        """
        numbers, verdicts, durations_us, lengths = self._columns()
        body = self._body[: sum(lengths)]
        return Attempts(numbers, verdicts, durations_us, frames.split(body, lengths))

    def _columns(self) -> list[list[int]]:
        count = min(self._count[0], _REPORT_COUNT)
        fields = self._rows[: _ROW_BYTES * count].cast("Q").tolist()
        return [fields[column::4] for column in range(4)]
