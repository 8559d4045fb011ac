"""Reads payloads. Their bytes may be hostile."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from struct import Struct
from typing import Any, TypeVar
from uuid import UUID
from zlib import crc32
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped, unused-ignore]  # it ships no types

from taskq.model.errors import is_from_signal_handler
from taskq.protocol.codec.format import (
    BLOCK_POSITION_BYTES,
    COMPLEX,
    DTYPE,
    ONLY_STR,
    RESULT_OF_MARK,
    TIMEDELTA,
    ZONE_KEY,
    Ext,
    FrozenFields,
    named,
    told,
)
from taskq.protocol.payloads.filed import CRC_BYTES, MARK, CorruptPayload, body_and_blocks

#: NumPy's own limit, since 2.0; it was 32 before.
_MAX_DIMENSIONS = 64
#: Compared as a number: to cut it out and compare the bytes took a twentieth of a consumer's time for a small job.
_read_crc = Struct("!I").unpack_from


def results_in(payload: bytes | memoryview) -> list[bytes]:
    """The ids of the jobs whose results are among the arguments of a call.

    Raises:
        CorruptPayload: these bytes are not a call.
    """
    found: list[bytes] = []
    body = bytes(body_and_blocks(payload)[0])
    if RESULT_OF_MARK[:1] not in body or RESULT_OF_MARK not in body:  # one byte is found 20 times as fast as two
        return found

    def look(code: int, data: bytes) -> None:
        if code == Ext.RESULT_OF:
            found.append(data)

    try:
        _unpackb(body, look, lambda _: None)
    except Exception as error:
        raise CorruptPayload(f"the payload does not decode: {told(error)}") from error
    return list(dict.fromkeys(found))


def decode_call(
    job_id: bytes, payload: bytes | memoryview, results: Mapping[bytes, Any] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Reads a payload that `encode_call` made.

    Args:
        job_id: the id it was made with.
        payload: the bytes, which may be hostile; of one that has a file, the file's content.
        results: the results of the jobs in `results_in`, which take their places.

    Returns:
        The positional and the keyword arguments, not yet converted by annotations (see `CallCaster`).

    Raises:
        CorruptPayload: the checksum is wrong, or these bytes are not a call.
    """
    call = _unpack(job_id, payload, results)
    if type(call) is list and len(call) == 2:
        args, kwargs = call
        if type(args) is list and type(kwargs) is dict and (not kwargs or ONLY_STR.issuperset(map(type, kwargs))):
            return args, kwargs
    raise CorruptPayload("the payload is not a call")


def decode_result(job_id: bytes, payload: bytes | memoryview) -> Any:
    """Reads a payload that `encode_result` made.

    Args:
        job_id: the id it was made with.
        payload: the bytes, which may be hostile; of one that has a file, the file's content.

    Returns:
        The value, not yet converted by the return annotation (see `CallCaster.return_caster`).

    Raises:
        CorruptPayload: the checksum is wrong, or these bytes are not a value.
    """
    return _unpack(job_id, payload)


_PairsHook = Callable[[list[tuple[Any, Any]]], Any]


class _TagFound(Exception):
    """The payload holds tags, so it must be decoded in the slower way."""


def _unpack(job_id: bytes, payload: bytes | memoryview, results: Mapping[bytes, Any] | None = None) -> Any:
    """Checks the checksum and decodes.

    Most payloads hold no tag and are decoded by msgpack alone: a hook for maps would cost 100 ns for each map.
    """
    try:
        body = payload[CRC_BYTES:]
        if crc32(body, crc32(job_id)) != _read_crc(payload)[0]:
            raise CorruptPayload("the checksum of the payload is wrong")
        decode_leaf = _decode_leaf if results is None else _with(results)
        if payload[CRC_BYTES] == MARK:
            body, blocks = body_and_blocks(payload)
            decode_leaf = _with_blocks(blocks, decode_leaf)
        try:
            return _unpackb(body, decode_leaf, None)
        except _TagFound:
            return _Tagged(decode_leaf).decode(body)
    except (CorruptPayload, MemoryError):  # no payload can take more than a multiple of its own size
        raise
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        # msgpack alone raises seven kinds of errors, and the decoders below a few more; all of them mean the same.
        raise CorruptPayload(f"the payload does not decode: {told(error)}") from error


def _unpackb(body: bytes | memoryview, ext_hook: Callable[[int, bytes], Any], pairs_hook: _PairsHook | None) -> Any:
    # msgpack's limits for strings, arrays and maps are the size of the data: every item takes at least a byte, so a
    # header that promises more is wrong
    return msgpack.unpackb(
        body,
        ext_hook=ext_hook,
        object_pairs_hook=pairs_hook,
        strict_map_key=False,
        timestamp=1,  # as float: msgpack's own Timestamp, which is never packed here, must not be returned
    )


def _decode_leaf(code: int, data: bytes) -> Any:
    decoder = _LEAF_DECODERS.get(code)
    if decoder is not None:
        return decoder(data)
    if code in _TAGS:
        raise _TagFound
    raise CorruptPayload(f"the payload holds the unknown extension code {code}")


def _with(results: Mapping[bytes, Any]) -> Callable[[int, bytes], Any]:
    def decode_leaf(code: int, data: bytes) -> Any:
        if code != Ext.RESULT_OF:
            return _decode_leaf(code, data)
        if data not in results:
            raise CorruptPayload("the payload holds the result of a job that it does not name")
        return results[data]

    return decode_leaf


def _with_blocks(blocks: list[memoryview], otherwise: Callable[[int, bytes], Any]) -> Callable[[int, bytes], Any]:
    copied: dict[tuple[int, int], Any] = {}  # however often a value refers to a block, it takes its size only once

    def decode_leaf(code: int, data: bytes) -> Any:
        if code not in _OF_BLOCKS:
            return otherwise(code, data)
        position = int.from_bytes(data, "big")
        if len(data) != BLOCK_POSITION_BYTES or position >= len(blocks):
            raise CorruptPayload("the payload refers to a block that is not there")
        if (code, position) not in copied:
            copied[code, position] = _OF_BLOCKS[code](blocks[position])
        return copied[code, position]

    return decode_leaf


#: How to read the blocks behind a value. Arrays lie in them; bytes and texts are copies.
_OF_BLOCKS: dict[int, Callable[[memoryview], Any]] = {
    Ext.ARRAY: lambda block: block,
    Ext.BYTES: bytes,
    Ext.TEXT: lambda block: str(block, "utf-8"),
}


class _Tag:
    """Stands for a tag while its map is being decoded. ``build`` makes the value from what the tag holds."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build = build


class _Tagged:
    """Decodes one payload that holds tags."""

    def __init__(self, decode_leaf: Callable[[int, bytes], Any]) -> None:
        self._decode_leaf = decode_leaf
        #: How many tags were read and not used yet; a tag that is not alone in its map is never used.
        self._open = 0

    def decode(self, body: bytes | memoryview) -> Any:
        value = _unpackb(body, self._ext, self._map)
        if self._open:
            raise CorruptPayload("a tag in the payload stands alone")
        return value

    def _ext(self, code: int, data: bytes) -> Any:
        tag = _TAGS.get(code)
        if tag is None:
            return self._decode_leaf(code, data)
        if data:
            raise CorruptPayload("a tag in the payload is not empty")
        self._open += 1
        return tag

    def _map(self, pairs: list[tuple[Any, Any]]) -> Any:
        if len(pairs) == 1:
            key, value = pairs[0]
            if type(key) is _Tag:
                self._open -= 1
                return key.build(value)
        decoded = dict(pairs)
        if len(decoded) != len(pairs):
            raise CorruptPayload("two keys of a map in the payload are equal")
        return decoded


def _zone(text: str) -> tuple[str, ZoneInfo | None]:
    """Splits what `_stamp` made, without the fold, into the ISO text and the zone, if there is one."""
    iso, bracket, key = text.partition("[")
    if not bracket:
        return iso, None
    if not key.endswith("]") or not ZONE_KEY.fullmatch(key[:-1]):
        raise CorruptPayload("a time zone in the payload has no valid name")
    return iso, ZoneInfo(key[:-1])


def _fold(text: str) -> int:
    if text[:1] not in ("0", "1"):
        raise CorruptPayload("a time in the payload does not start with its fold")
    return int(text[0])


def _decode_datetime(data: bytes) -> datetime:
    text = data.decode("ascii")
    fold = _fold(text)
    iso, zone = _zone(text[1:])
    value = datetime.fromisoformat(iso)
    return value.replace(tzinfo=zone or value.tzinfo, fold=fold)


def _decode_time(data: bytes) -> time:
    text = data.decode("ascii")
    fold = _fold(text)
    iso, zone = _zone(text[1:])
    value = time.fromisoformat(iso)
    return value.replace(tzinfo=zone or value.tzinfo, fold=fold)


def _decode_set(items: Any) -> set[Any]:
    members = set(_expect(list, items))
    if len(members) != len(items):
        raise CorruptPayload("two members of a set in the payload are equal")
    return members


def _expect(kind: type[_Expected], value: Any) -> _Expected:
    if type(value) is not kind:
        raise CorruptPayload(f"the payload holds {named(type(value))} where {named(kind)} is due")
    return value


_Expected = TypeVar("_Expected")


def _decode_numpy_scalar(parts: Any) -> Any:
    dtype, raw = _expect(list, parts)
    return _array(dtype, [], raw)[()]


def _decode_ndarray(parts: Any) -> Any:
    dtype, shape, raw = _expect(list, parts)
    return _array(dtype, shape, raw)


def _array(dtype_name: Any, shape: Any, raw: Any) -> Any:
    """Makes a writable array. Checks everything that NumPy would not check."""
    if not DTYPE.fullmatch(_expect(str, dtype_name)):
        raise CorruptPayload("an array in the payload has no valid dtype")
    try:
        numpy = importlib.import_module("numpy")
    except ImportError as error:
        raise CorruptPayload("the payload holds a NumPy array, and NumPy is not installed here") from error
    dtype = numpy.dtype(dtype_name)
    lengths = [_expect(int, length) for length in _expect(list, shape)]
    # NumPy would refuse many dimensions as well, but only after math.prod had multiplied them for minutes.
    if len(lengths) > _MAX_DIMENSIONS or min(lengths, default=0) < 0 or not dtype.itemsize:
        raise CorruptPayload("an array in the payload has no valid shape")
    if type(raw) is not memoryview:
        raw = bytearray(_expect(bytes, raw))  # so that the array is writable
    elif raw.readonly:
        raw = bytearray(raw)
    if math.prod(lengths) * dtype.itemsize != len(raw):
        raise CorruptPayload("an array in the payload has not the size of its shape")
    array = numpy.ndarray(lengths, dtype, raw)
    # Neither NumPy nor its users expect other values than these; bad text would fail when it is first looked at.
    if dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise CorruptPayload("an array in the payload holds something that is not a boolean")
    if dtype.kind == "U" and raw and numpy.frombuffer(raw, f"{dtype_name[0]}u4").max() > sys.maxunicode:
        raise CorruptPayload("an array in the payload holds something that is not a character")
    return array


_LEAF_DECODERS: dict[int, Callable[[bytes], Any]] = {
    Ext.BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    Ext.DATETIME: _decode_datetime,
    Ext.DATE: lambda data: date.fromisoformat(data.decode("ascii")),
    Ext.TIME: _decode_time,
    Ext.TIMEDELTA: lambda data: timedelta(*TIMEDELTA.unpack(data)),
    Ext.UUID: lambda data: UUID(bytes=data),
    Ext.DECIMAL: lambda data: Decimal(data.decode("ascii")),
    Ext.PATH: lambda data: Path(os.fsdecode(data)),
    Ext.BYTEARRAY: bytearray,
    Ext.COMPLEX: lambda data: complex(*COMPLEX.unpack(data)),
}

_TAGS: dict[int, _Tag] = {
    Ext.TUPLE: _Tag(lambda items: tuple(_expect(list, items))),
    Ext.SET: _Tag(_decode_set),
    Ext.FROZENSET: _Tag(lambda items: frozenset(_decode_set(items))),
    Ext.ENUM: _Tag(lambda value: value),
    Ext.DATACLASS: _Tag(lambda fields: _expect(dict, fields)),
    Ext.HASHABLE_FIELDS: _Tag(lambda fields: FrozenFields(_expect(dict, fields))),
    Ext.NDARRAY: _Tag(_decode_ndarray),
    Ext.NUMPY_SCALAR: _Tag(_decode_numpy_scalar),
}
