"""Columns of values as PostgreSQL's binary arrays, by which one statement takes hundreds of rows.

A driver's own lists take ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from struct import Struct, pack
from typing import Final, NamedTuple


class Array(NamedTuple):
    """A parameter: a binary array.

    Attributes:
        oid: of the type of the array.
        data: the array as PostgreSQL reads it.
    """

    oid: int
    data: bytes


SMALLINTS_OID: Final = 1005
INTS_OID: Final = 1007
BIGINTS_OID: Final = 1016
FLOATS_OID: Final = 1022
BYTEAS_OID: Final = 1001
TEXTS_OID: Final = 1009
UUIDS_OID: Final = 2951

_LENGTH: Final = Struct("!i")
_NULL: Final = _LENGTH.pack(-1)
_FLOAT: Final = Struct("!id")


def smallints(values: Sequence[int]) -> Array:
    """smallint[]."""
    return Array(SMALLINTS_OID, _head(21, len(values)) + _fixed("ih", 2, values))


def ints(values: Sequence[int]) -> Array:
    """int[]."""
    return Array(INTS_OID, _head(23, len(values)) + _fixed("ii", 4, values))


def bigints(values: Sequence[int]) -> Array:
    """bigint[]."""
    return Array(BIGINTS_OID, _head(20, len(values)) + _fixed("iq", 8, values))


def uuids(ids: Sequence[bytes]) -> Array:
    """uuid[], of ids of 16 bytes."""
    return Array(UUIDS_OID, _head(2950, len(ids)) + _fixed("i16s", 16, ids))


def floats(values: Sequence[float | None]) -> Array:
    """float8[]; None is NULL."""
    parts = [_NULL if value is None else _FLOAT.pack(8, value) for value in values]
    return Array(FLOATS_OID, _head(701, len(values), has_nulls=None in values) + b"".join(parts))


def byteas(values: Sequence[bytes | None]) -> Array:
    """bytea[]; None is NULL."""
    return Array(BYTEAS_OID, _head(17, len(values), has_nulls=None in values) + _varying(values))


def texts(values: Sequence[str | None]) -> Array:
    """text[]; None is NULL."""
    encoded = [None if value is None else value.encode() for value in values]
    return Array(TEXTS_OID, _head(25, len(values), has_nulls=None in values) + _varying(encoded))


def _head(oid: int, count: int, *, has_nulls: bool = False) -> bytes:
    """The dimensions: one, counted from 1; none for an empty array."""
    return pack("!iiIii", 1, has_nulls, oid, count, 1) if count else pack("!iiI", 0, 0, oid)


def _fixed(form: str, width: int, values: Sequence[object]) -> bytes:
    count = len(values)
    return pack("!" + form * count, *chain.from_iterable(zip(repeat(width, count), values, strict=True)))


def _varying(values: Sequence[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts.append(_LENGTH.pack(len(value)))
            parts.append(value)
    return b"".join(parts)
