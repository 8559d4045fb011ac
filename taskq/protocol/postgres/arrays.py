"""Columns of values as PostgreSQL's binary arrays, by which one statement takes hundreds of rows.

A driver's own lists take ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from struct import Struct, pack, unpack_from
from typing import Any, Final, NamedTuple


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
#: A float8 by itself.
FLOAT: Final = Struct("!d")


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


_VALUES: Final[dict[int, Callable[[bytes], tuple[Any, ...]]]] = {
    21: Struct("!h").unpack,
    23: Struct("!i").unpack,
    20: Struct("!q").unpack,
    701: Struct("!d").unpack,
    25: lambda data: (data.decode(),),
}


def _as_it_is(data: bytes) -> tuple[bytes]:
    return (data,)


def values_of(array: Array) -> list[Any]:
    """The values of an array, for a driver that takes no others. UUIDs are bytes."""
    data = array.data
    dimensions, _, oid = unpack_from("!iiI", data)
    if not dimensions:
        return []
    (count,), place = _LENGTH.unpack_from(data, 12), 20
    read = _VALUES.get(oid, _as_it_is)
    values: list[Any] = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(data, place)
        place += 4
        if length < 0:
            values.append(None)
        else:
            values.append(read(data[place : place + length])[0])
            place += length
    return values
