"""One value as msgpack bytes: what each type becomes, and which types are refused."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped, unused-ignore]  # it ships no types
from msgpack import ExtType, Timestamp

from taskq.model.limits import MAX_INLINE_PAYLOAD_BYTES
from taskq.protocol.codec.format import (
    BLOCK_POSITION_BYTES,
    COMPLEX,
    DTYPE,
    LEAVES,
    TIMEDELTA,
    ZONE_KEY,
    Ext,
    FrozenFields,
    ResultOf,
)
from taskq.protocol.codec.models import dumped, fields_of_attrs, is_attrs, is_pydantic

# Why a pool. Packing [[1], {}] took (Python 3.11, msgpack 1.2.4, the 2-core target) 780 ns with msgpack.packb, which
# makes a Packer and its buffer each time, 240 ns with a Packer in a threading.local, and 210 ns with a pool of packers.
# (All of encode_call takes 1.1 microseconds for it, decode_call 1.0.) A single Packer would also be wrong: it is not
# re-entrant (a pack() from inside `default` empties the outer buffer: measured), and a property of a user's dataclass,
# a signal handler or __del__ may well enqueue a job in there. A packer that was popped belongs to nobody else, list.pop
# and append are atomic, and a packer that raised is dropped, although msgpack 1.2 seems to leave it clean.
_packers: list[_Packer] = []
#: What a file has behind the packed value: see `taskq.protocol.payloads.filed`.
Blocks: TypeAlias = list[bytes | memoryview]
#: A packer's buffer never shrinks, so packers that have packed something larger are not kept.
_KEPT_BUFFER_BYTES = 256 * 1024


class _Packer:
    """A packer, and what the values in its hands need.

    Attributes:
        blocks: takes what stays outside the packed value; None if all of it is packed.
    """

    __slots__ = ("blocks", "pack")

    def __init__(self) -> None:
        self.blocks: Blocks | None = None
        self.pack = msgpack.Packer(default=self._default, strict_types=True, autoreset=True).pack

    def _default(self, value: Any) -> Any:
        """Makes something of a value that msgpack can pack itself. The packer calls this for types that it does not
        know."""
        encoder = _ENCODERS.get(type(value))
        return encoder(value) if encoder is not None else _encoded_by_kind(value, self.blocks)


def _pack(value: Any, blocks: Blocks | None) -> bytes:
    try:
        packer = _packers.pop()
    except IndexError:
        packer = _Packer()
    packer.blocks = blocks
    body: bytes = packer.pack(value)
    packer.blocks = None
    if len(body) <= _KEPT_BUFFER_BYTES:
        _packers.append(packer)
    return body


#: What msgpack packs wrongly without asking `_default`: a bytearray would come back as bytes, and msgpack's own ExtType
#: and Timestamp as whatever their code means here.
_MISREAD = frozenset({bytearray, ExtType, Timestamp})
#: The bytes that start a bin or an ext in msgpack. If a body has none of them, nothing was misread; if it has, they may
#: well be part of a text or of a number. Looking for them costs a tenth of the packing; walking through a list of dicts
#: would cost twice as much as packing it.
_BIN_OR_EXT = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
#: From this size on it is faster to look for one byte after the other: a tenth of the time for a megabyte.
_LONG_BYTES = 4096
_Native = TypeVar("_Native", list[Any], dict[Any, Any])


#: The types of which `set_aside` takes large values.
MAY_BE_SET_ASIDE = frozenset({bytes, str})


def set_aside(value: Any) -> Any:
    """Returns what `pack_value` takes in place of bytes or a text of more than MAX_INLINE_PAYLOAD_BYTES to keep them
    outside the packed value; other values as they are."""
    if type(value) is bytes and len(value) > MAX_INLINE_PAYLOAD_BYTES:
        return _SetAside(Ext.BYTES, value)
    if type(value) is str and len(value) > MAX_INLINE_PAYLOAD_BYTES:
        return _SetAside(Ext.TEXT, value.encode())
    return value


class _SetAside:
    """Bytes, or a text, that become a block."""

    __slots__ = ("code", "content")

    def __init__(self, code: Ext, content: bytes) -> None:
        self.code = code
        self.content = content


def pack_value(value: Any, blocks: Blocks | None = None) -> bytes:
    """Packs a whole value. In the rare case that it holds something that msgpack misreads, packs it once more.

    Args:
        blocks: takes NumPy arrays of more than MAX_INLINE_PAYLOAD_BYTES, and what was set aside, as bytes and without a
            copy; the value refers to them by their positions in it. None: all arrays are packed, and nothing may have
            been set aside.
    """
    body = _pack(value, blocks)
    may_be_misread = (
        len(body.translate(None, _BIN_OR_EXT)) != len(body)
        if len(body) < _LONG_BYTES
        else any(byte in body for byte in _BIN_OR_EXT)
    )
    if may_be_misread and _holds_misread([value]):
        if blocks is not None:
            blocks.clear()
        body = _pack(_wrapped(value), blocks)
    return body


def _screened(container: _Native) -> _Native:
    """Returns what an encoder made, or a copy without anything that msgpack misreads."""
    items = container if type(container) is list else [*container, *container.values()]
    return _wrapped(container) if _holds_misread(items) else container


def _holds_misread(level: list[Any]) -> bool:
    """Looks through values level by level.

    Only in lists and dicts: everything else goes through `_default`, which screens what it makes.
    """
    seen: set[int] = set()
    while not LEAVES.issuperset(map(type, level)):
        if not _MISREAD.isdisjoint(map(type, level)):
            return True
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if (kind is list or kind is dict) and id(item) not in seen:
                seen.add(id(item))
                below += item
                if kind is dict:
                    below += item.values()
        level = below
    return False


def _wrapped(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [_wrapped(item) for item in value]
    if kind is dict:
        return {_wrapped(key): _wrapped(item) for key, item in value.items()}
    if kind is bytearray:
        return ExtType(Ext.BYTEARRAY, bytes(value))
    if kind is ExtType or kind is Timestamp:
        raise Unsupported("pass what it stands for")
    return value


class Unsupported(TypeError):
    """Says why a value cannot be serialized, or what to pass instead; `taskq.protocol.codec.encode` adds place and
    type."""


def _encoded_by_kind(value: Any, blocks: Blocks | None) -> Any:
    """The values whose exact type is not in the table: Enum members, dataclasses, subclasses, NumPy, jobs."""
    if type(value) is _SetAside and blocks is not None:
        return _block(value.code, value.content, blocks)
    if isinstance(value, Enum):
        return {_ENUM: _screened([value._value_])[0]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_fields(value, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if is_attrs(type(value)):
        return _encode_fields(value, fields_of_attrs(value))
    if is_pydantic(type(value)):
        return _screened([dumped(value)])[0]
    if is_namedtuple(value):
        return _encode_tuple(value)
    if isinstance(value, ResultOf):
        if not value._has_result:
            raise Unsupported(
                "its task has result=False, so there is none to pass (after=[job] and without_input() need none)"
            )
        return ExtType(Ext.RESULT_OF, value._id)
    if isinstance(value, _OWN_PATH):
        return ExtType(Ext.PATH, os.fsencode(str(value)))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _encode_numpy(numpy, value, blocks)
    for base, plain in _PLAIN.items():
        if isinstance(value, base):
            return _encode_as_base(value, base, plain(value))
    raise Unsupported(_hint(value))


def _encode_as_base(value: Any, base: type, plain: Any) -> Any:
    equal = plain == value  # not !=, which a subclass that redefines equality may have left as it was
    if not equal:
        raise Unsupported(f"it does not equal the plain {base.__name__} that would arrive; pass str(x)")
    encoder = _ENCODERS.get(base)
    return plain if encoder is None else encoder(plain)


def _encode_int(value: int) -> Any:
    # msgpack asks only about integers of more than 64 bits; smaller ones here are of subclasses.
    if -(1 << 63) <= value < 1 << 64:
        return value
    return ExtType(Ext.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _stamp(value: datetime | time) -> bytes:
    """Fold, ISO text, and a ZoneInfo's key in place of the offset: ``12024-10-27T02:30:00[Europe/Paris]``."""
    zone, offset = value.tzinfo, value.utcoffset()
    if isinstance(zone, ZoneInfo) and zone.key is not None and ZONE_KEY.fullmatch(zone.key):
        text = f"{value.replace(tzinfo=None).isoformat()}[{zone.key}]"
    elif zone is not None and offset is None:
        raise Unsupported("its time zone gives no offset; use a datetime, a fixed offset or a ZoneInfo")
    elif offset is not None and offset.microseconds:
        raise Unsupported("its offset from UTC has a fraction of a second")  # `fromisoformat` loses some of those
    else:
        text = value.isoformat()
    return f"{value.fold}{text}".encode("ascii")


def _encode_timedelta(value: timedelta) -> ExtType:
    return ExtType(Ext.TIMEDELTA, TIMEDELTA.pack(value.days, value.seconds, value.microseconds))


def _encode_tuple(value: tuple[Any, ...]) -> Any:
    return {_TUPLE: _screened(list(value))}


def is_namedtuple(value: Any) -> bool:
    """Whether a value belongs to a class that `NamedTuple` or `namedtuple` made."""
    return isinstance(value, tuple) and hasattr(value, "_fields") and type(value) is not ExtType


def _encode_fields(value: Any, fields: dict[str, Any]) -> Any:
    # A class that cannot be hashed has None there. Its instances cannot be keys, so a plain dict is enough for them.
    return {_DATACLASS if type(value).__hash__ is None else _HASHABLE_FIELDS: _screened(fields)}


def _encode_numpy(numpy: Any, value: Any, blocks: Blocks | None) -> Any:
    dtype = value.dtype
    if isinstance(value, (numpy.str_, numpy.bytes_)):
        return value.item()
    if not DTYPE.fullmatch(dtype.str) or not dtype.itemsize:
        raise Unsupported(f"its dtype is {dtype}; pass an array of numbers, or a list")
    if isinstance(value, numpy.generic):
        return {_NUMPY_SCALAR: [dtype.str, value.tobytes()]}
    if type(value) is not numpy.ndarray and type(value) is not numpy.memmap:
        raise Unsupported("pass a plain array, as numpy.asarray(x) makes it")
    if blocks is None or value.nbytes <= MAX_INLINE_PAYLOAD_BYTES:
        return {_NDARRAY: [dtype.str, list(value.shape), value.tobytes()]}
    # as numbers of a byte, since memoryview does not know all dtypes; copied only if it is not in C order
    content = memoryview(numpy.ascontiguousarray(value).reshape(-1).view("u1"))
    return {_NDARRAY: [dtype.str, list(value.shape), _block(Ext.ARRAY, content, blocks)]}


def _block(code: Ext, content: bytes | memoryview, blocks: Blocks) -> ExtType:
    """Keeps a content outside the packed value. Returns what refers to it."""
    blocks.append(content)
    return ExtType(code, (len(blocks) - 1).to_bytes(BLOCK_POSITION_BYTES, "big"))


#: The path classes of this system. A PureWindowsPath is not a path here, and would not be one in the consumer.
_OWN_PATH = type(PurePath())

_TUPLE, _SET, _FROZENSET, _ENUM, _DATACLASS, _HASHABLE_FIELDS, _NDARRAY, _NUMPY_SCALAR = (
    ExtType(code, b"") for code in Ext if code >= Ext.TUPLE
)

_ENCODERS: dict[type, Callable[[Any], Any]] = {
    int: _encode_int,
    datetime: lambda value: ExtType(Ext.DATETIME, _stamp(value)),
    date: lambda value: ExtType(Ext.DATE, value.isoformat().encode("ascii")),
    time: lambda value: ExtType(Ext.TIME, _stamp(value)),
    timedelta: _encode_timedelta,
    UUID: lambda value: ExtType(Ext.UUID, value.bytes),
    Decimal: lambda value: ExtType(Ext.DECIMAL, str(value).encode("ascii")),
    bytearray: lambda value: ExtType(Ext.BYTEARRAY, bytes(value)),
    complex: lambda value: ExtType(Ext.COMPLEX, COMPLEX.pack(value.real, value.imag)),
    tuple: _encode_tuple,
    set: lambda value: {_SET: _screened(list(value))},
    frozenset: lambda value: {_FROZENSET: _screened(list(value))},
    FrozenFields: lambda value: {_HASHABLE_FIELDS: _screened(dict(value))},
    OrderedDict: lambda value: _screened(dict(value)),
    defaultdict: lambda value: _screened(dict(value)),
    Counter: lambda value: _screened(dict(value)),
}

#: How to make an instance of the base of a subclass without running a method that the subclass may have overridden.
#: datetime comes before date, its own base.
_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    complex: complex.__complex__,
    datetime: lambda at: datetime(
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, at.tzinfo, fold=at.fold
    ),
    date: lambda day: date(day.year, day.month, day.day),
    time: lambda at: time(at.hour, at.minute, at.second, at.microsecond, at.tzinfo, fold=at.fold),
    timedelta: lambda span: timedelta(span.days, span.seconds, span.microseconds),
    UUID: lambda value: UUID(int=int(value)),
    Decimal: Decimal,
}


#: The first class that fits says what to pass instead.
_HINTS: list[tuple[tuple[type, ...], str]] = [
    ((types.CoroutineType,), "await it first"),
    ((types.GeneratorType, range, deque, map, filter, zip), "pass list(x)"),
    ((type,), "pass its name"),
    ((types.FunctionType, types.BuiltinFunctionType, types.MethodType), "pass its name, or make it a task"),
    ((types.ModuleType, functools.partial), "pass its name"),
    ((dict, types.MappingProxyType, Mapping), "pass dict(x)"),
    ((list, type({}.keys()), type({}.values()), type({}.items())), "pass list(x)"),
    ((tuple,), "pass tuple(x)"),
    ((set, frozenset), "pass set(x)"),
    ((bytearray,), "pass bytearray(x)"),
    ((PurePath,), "it is a path of another system; pass str(x)"),
    ((BaseException,), "pass str(x)"),
    ((Sequence,), "pass list(x)"),
]


def _hint(value: Any) -> str:
    for kinds, hint in _HINTS:
        if isinstance(value, kinds):
            return hint
    kind = type(value)
    if callable(getattr(kind, "get_secret_value", None)):
        return "secrets are not stored; pass where it is kept"
    if kind.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        return "write it to a file and pass the path, or pass its columns as arrays"
    if callable(getattr(kind, "fileno", None)) or hasattr(kind, "acquire"):
        return "it lives in this process only; open it inside the task, and pass its name or address"
    return "make it a dataclass, or pass a dict of what the task needs"
