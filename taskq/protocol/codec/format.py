"""What encoding and decoding share: extension codes, the text of leaves, and how errors name values."""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Any

CRC_BYTES = 4
ONLY_STR = frozenset({str})
#: Neither these nor anything inside them needs a look before msgpack packs it.
LEAVES = frozenset({type(None), bool, int, float, str, bytes})
TIMEDELTA = struct.Struct("!iii")
COMPLEX = struct.Struct("!dd")
#: No dots: whatever ZoneInfo makes of a key, it stays below its own directories.
ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-/]{1,100}")
#: Booleans, numbers, text of fixed width, dates. Not objects, not structures, not variable text.
DTYPE = re.compile(r"[<>|=](?:[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8(?:\[\d{0,9}(?:[YMWDhms]|[munpfa]s)\])?)")
_SHOWN_KEY_CHARS = 60
_SHOWN_ERROR_CHARS = 200


class CorruptPayload(Exception):
    """A payload whose checksum is wrong, or that does not decode to values."""


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

    TUPLE = 32
    SET = 33
    FROZENSET = 34
    ENUM = 35
    DATACLASS = 36
    HASHABLE_FIELDS = 37
    NDARRAY = 38
    NUMPY_SCALAR = 39


#: Begins a RESULT_OF in a payload: an extension of 16 bytes. Where it is not, there is none.
RESULT_OF_MARK = bytes([0xD8, Ext.RESULT_OF])


class ResultOf:
    """Stands for the result of a job among the arguments of another: it is put in its place before that runs."""

    __slots__ = ("_has_result", "_id")

    def __init__(self, job_id: bytes, has_result: bool = True) -> None:
        self._id = job_id
        self._has_result = has_result  # False if it is known that the result is not kept


class FrozenFields(dict[str, Any]):
    """The fields of a dataclass that can be hashed: a dict that may be a key. Do not change one that is."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None here
        return hash(frozenset(self.items()))


def shown_key(key: Any) -> str:
    """A key as text that is short and has no line ends."""
    text = ascii(key) if type(key) in LEAVES else f"<{type(key).__name__}>"
    return text if len(text) <= _SHOWN_KEY_CHARS else text[:_SHOWN_KEY_CHARS] + "..."


def told(error: Exception) -> str:
    """An error as text. Some repeat all of the data that they complain about."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _SHOWN_ERROR_CHARS else text[:_SHOWN_ERROR_CHARS] + "..."


def named(kind: type) -> str:
    """A type with its article, as an error names it."""
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
