"""What encoding and decoding share: extension codes, the text of leaves, and how errors name values."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Any

BLOCK_POSITION_BYTES = 4
ONLY_STR = frozenset({str})
#: These, and whatever is inside them, can be packed by msgpack without being looked at first.
LEAVES = frozenset({type(None), bool, int, float, str, bytes})
TIMEDELTA = struct.Struct("!iii")
COMPLEX = struct.Struct("!dd")
#: No dots: so ZoneInfo cannot be led out of its own directories by a key.
ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-/]{1,100}")
#: Booleans, numbers, text of fixed width, dates; but no objects, structures or variable text.
DTYPE = re.compile(r"[<>|=](?:[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8(?:\[\d{0,9}(?:[YMWDhms]|[munpfa]s)\])?)")
_SHOWN_KEY_CHARS = 60
_SHOWN_ERROR_CHARS = 200


class Ext(IntEnum):
    """The extension codes of the table in `taskq.protocol.codec`. They are stored in journals: never renumber one."""

    BIG_INT = 1
    DATETIME = 2
    DATE = 3
    TIME = 4
    TIMEDELTA = 5
    UUID = 6
    DECIMAL = 7
    PATH = 8
    BYTEARRAY = 9
    COMPLEX = 10
    RESULT_OF = 11
    ARRAY = 12
    BYTES = 13
    TEXT = 14

    TUPLE = 32
    SET = 33
    FROZENSET = 34
    ENUM = 35
    DATACLASS = 36
    HASHABLE_FIELDS = 37
    NDARRAY = 38
    NUMPY_SCALAR = 39


#: A RESULT_OF in a payload begins with this (an extension of 16 bytes): a payload without it has none.
RESULT_OF_MARK = bytes([0xD8, Ext.RESULT_OF])


class ResultOf:
    """Stands for the result of a job among the arguments of another one, and is replaced by it before that one runs."""

    __slots__ = ("_has_result", "_id")

    def __init__(self, job_id: bytes, has_result: bool = True) -> None:
        self._id = job_id
        self._has_result = has_result  # False if the result is known not to be kept


class FrozenFields(dict[str, Any]):
    """The fields of a hashable dataclass: a dict that can be a key. Do not change one that is a key."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None here
        return hash(frozenset(self.items()))


def shown_key(key: Any) -> str:
    """A key as a short text without line ends."""
    text = ascii(key) if type(key) in LEAVES else f"<{type(key).__name__}>"
    return text if len(text) <= _SHOWN_KEY_CHARS else text[:_SHOWN_KEY_CHARS] + "..."


def told(error: Exception) -> str:
    """An error as text, cut short: some errors repeat all of the data that they complain about."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _SHOWN_ERROR_CHARS else text[:_SHOWN_ERROR_CHARS] + "..."


def named(kind: type) -> str:
    """A type with its article, for error messages."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
