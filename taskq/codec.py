"""Values <-> payloads: what a job's arguments and its result look like as bytes.

    payload := u32 CRC-32 of (job id + body), big-endian | body
    body    := one msgpack value; of a call: [arguments, keyword arguments]

None, bool, int, float, str, bytes, list and dict are msgpack's own. All else is told by an extension code. A
*leaf* is ExtType(code, bytes). What holds other values is a map of one entry whose key is the empty ExtType
of its code, its *tag*: a tuple is {TUPLE: [...]}. So all of a payload is one flat msgpack document: no
document is packed inside another, which would copy the inner ones again at each level, need a packer within a
packer, and spend 40 KB of C stack for every level that is decoded.

    code  leaf         bytes                                 code  tag                holds
    1     BIG_INT      signed, big-endian                    32    TUPLE              list
    2     DATETIME     fold, ISO 8601 text, [zone key]       33    SET                list
    3     DATE         ISO 8601 text                         34    FROZENSET          list
    4     TIME         like DATETIME                         35    ENUM               the member's value
    5     TIMEDELTA    i32 days, seconds, microseconds       36    DATACLASS          map of the fields
    6     UUID         16 bytes                              37    HASHABLE_FIELDS    map of the fields
    7     DECIMAL      text                                  38    NDARRAY            [dtype, shape, bytes]
    8     PATH         the file system's bytes               39    NUMPY_SCALAR       [dtype, bytes]
    9     BYTEARRAY    bytes
    10    COMPLEX      f64 real, imaginary

What arrives is equal and of the same type, with these exceptions:

- An Enum member arrives as its value and a dataclass as a dict of its fields (one that can be hashed as a
  `FrozenFields`, so that it may be a key or a member of a set). No class is ever named in the data: the
  annotation of the receiving function converts them back (`CallCaster`). A dataclass is rebuilt by calling
  its class, so one with InitVars that have no default cannot come back.
- A namedtuple arrives as a tuple, unless the annotation names its class. OrderedDict, defaultdict and Counter
  arrive as dict, memoryview as bytes, a PurePath as Path, numpy.str_ and numpy.bytes_ as str and bytes,
  numpy.memmap as array.
- An instance of a subclass of a plain scalar (str, int, float, bytes, complex, datetime, date, time,
  timedelta, UUID, Decimal) arrives as that base if the two compare equal (Markup, asyncpg's UUID, pendulum's
  DateTime do; a pandas.Timestamp with nanoseconds does not). Other subclasses of containers are refused: what
  they add would be lost.
- A time zone keeps its key if it is a ZoneInfo, and else its offset from UTC at that moment, without a name.
- A NumPy array arrives in C order and writable. Object and structured dtypes are refused.

Two keys that differ only by being an Enum member or its plain value become equal; such a dict or set does not
decode. The value of an Enum member that is used as a key must itself be hashable.

Memory and time of decoding grow with the size of a payload, with one exception that is left: keys and members whose
hashes collide (integers beyond 61 bits, tuples of integers) take quadratic time, as in every dict that is not keyed by
text. To refuse them would mean to hash all keys a second time. Who can send them belongs to the same user, and could as
well enqueue a job that never ends; the broker decodes no payload, and the job's timeout ends its decoding, too.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import os
import re
import struct
import sys
import types
import typing
import zlib
from collections import Counter, OrderedDict, abc, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped, unused-ignore]  # it ships no types
from msgpack import ExtType, Timestamp

from taskq.errors import PayloadError


class CorruptPayload(Exception):
    """A payload whose checksum is wrong, or that does not decode to values."""


class Ext(IntEnum):
    """The extension codes of the table on top. They are stored in journals: never renumber one."""

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

    TUPLE = 32
    SET = 33
    FROZENSET = 34
    ENUM = 35
    DATACLASS = 36
    HASHABLE_FIELDS = 37
    NDARRAY = 38
    NUMPY_SCALAR = 39


class FrozenFields(dict[str, Any]):
    """The fields of a dataclass that can be hashed: a dict that may be a key. Do not change one that is."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict says None here
        return hash(frozenset(self.items()))


# ------------------------------------------------------------------------------------------------------------
# Payloads
# ------------------------------------------------------------------------------------------------------------

_CRC_BYTES = 4
_STR = frozenset({str})


def encode_call(job_id: bytes, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Makes the payload of a call.

    Args:
        job_id: the job's id; the checksum covers it, so a payload cannot pass for another job's.
        args: the positional arguments.
        kwargs: the keyword arguments.

    Returns:
        The payload. Its size is not limited here.

    Raises:
        PayloadError: something cannot be serialized; the message names the place and the type.
    """
    if kwargs and not _STR.issuperset(map(type, kwargs)):
        raise PayloadError("kwargs: the name of a keyword argument is a str, and of no subclass")
    try:
        body = _pack_value([list(args), dict(kwargs)])
    except Exception as error:
        raise _explained({"args": tuple(args), "kwargs": dict(kwargs)}, error) from _cause(error)
    return zlib.crc32(body, zlib.crc32(job_id)).to_bytes(_CRC_BYTES, "big") + body


def encode_result(job_id: bytes, value: Any) -> bytes:
    """Makes the payload of a result.

    Args:
        job_id: the job's id, as for `encode_call`.
        value: what the task returned.

    Returns:
        The payload. Its size is not limited here.

    Raises:
        PayloadError: something cannot be serialized; the message names the place and the type.
    """
    try:
        body = _pack_value(value)
    except Exception as error:
        raise _explained({"result": value}, error) from _cause(error)
    return zlib.crc32(body, zlib.crc32(job_id)).to_bytes(_CRC_BYTES, "big") + body


def decode_call(job_id: bytes, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
    """Reads a payload that `encode_call` made.

    Args:
        job_id: the id it was made with.
        payload: the bytes, which may be hostile.

    Returns:
        The positional and the keyword arguments, not yet converted by annotations (see `CallCaster`).

    Raises:
        CorruptPayload: the checksum is wrong, or these bytes are not a call.
    """
    call = _unpack(job_id, payload)
    if type(call) is list and len(call) == 2:
        args, kwargs = call
        if type(args) is list and type(kwargs) is dict and (not kwargs or _STR.issuperset(map(type, kwargs))):
            return args, kwargs
    raise CorruptPayload("the payload is not a call")


def decode_result(job_id: bytes, payload: bytes) -> Any:
    """Reads a payload that `encode_result` made.

    Args:
        job_id: the id it was made with.
        payload: the bytes, which may be hostile.

    Returns:
        The value, not yet converted by the return annotation (see `CallCaster.return_caster`).

    Raises:
        CorruptPayload: the checksum is wrong, or these bytes are no value.
    """
    return _unpack(job_id, payload)


# ------------------------------------------------------------------------------------------------------------
# Packing
# ------------------------------------------------------------------------------------------------------------

# Why a pool. Packing [[1], {}] took (Python 3.11, msgpack 1.2.4, the 2-core target): msgpack.packb 780 ns,
# since it makes a Packer and its buffer each time; one Packer kept in a threading.local 240 ns; a pool of
# them 210 ns. (All of encode_call takes 1.1 microseconds for it, decode_call 1.0.) The kept one is also
# wrong: a Packer is not re-entrant (a pack() from inside `default` empties the outer buffer: measured), and a
# property of a user's dataclass, a signal handler or __del__ can well enqueue a job in there. A packer that
# was popped is nobody else's, list.pop and append are atomic, and one that raised is dropped, although
# msgpack 1.2 seems to leave it clean.
_packers: list[msgpack.Packer] = []
#: A packer's buffer never shrinks; those that packed something larger are not kept.
_KEPT_BUFFER_BYTES = 256 * 1024


def _pack(value: Any) -> bytes:
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(default=_default, strict_types=True, autoreset=True)
    body: bytes = packer.pack(value)
    if len(body) <= _KEPT_BUFFER_BYTES:
        _packers.append(packer)
    return body


#: Neither these nor anything inside them needs a look before msgpack packs it.
_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
#: What msgpack packs without asking `_default`, and wrongly: a bytearray would come back as bytes, its own
#: ExtType and Timestamp as whatever their code means here.
_MISREAD = frozenset({bytearray, ExtType, Timestamp})
#: The bytes that start a bin or an ext in msgpack. Where a body has none of them, nothing was misread; where
#: it has, they may well be part of a text or of a number. Asking so costs a tenth of the packing, walking a
#: list of dicts twice as much as packing it.
_BIN_OR_EXT = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
_Native = TypeVar("_Native", list[Any], dict[Any, Any])


def _pack_value(value: Any) -> bytes:
    """Packs a whole value; packs it once more in the rare case that it holds what msgpack misreads."""
    body = _pack(value)
    if len(body.translate(None, _BIN_OR_EXT)) != len(body) and _holds_misread([value]):
        body = _pack(_wrapped(value))
    return body


def _screened(container: _Native) -> _Native:
    """Returns what an encoder made, or a copy of it in which nothing is left that msgpack misreads."""
    items = container if type(container) is list else [*container, *container.values()]
    return _wrapped(container) if _holds_misread(items) else container


def _holds_misread(level: list[Any]) -> bool:
    """Looks through values level by level.

    Into lists and dicts only: all else comes by `_default`, which screens what it makes.
    """
    seen: set[int] = set()
    while not _LEAVES.issuperset(map(type, level)):
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
        raise _Unsupported("pass what it stands for")
    return value


class _Unsupported(TypeError):
    """Says why a value cannot be serialized, or what to pass instead; `_explained` adds place and type."""


def _default(value: Any) -> Any:
    """Makes of a value something that msgpack packs by itself. The packer asks for what it does not know."""
    encoder = _ENCODERS.get(type(value))
    return encoder(value) if encoder is not None else _encoded_by_kind(value)


def _encoded_by_kind(value: Any) -> Any:
    """The values whose exact type is not in the table: Enum members, dataclasses, subclasses, NumPy."""
    if isinstance(value, Enum):
        return {_ENUM: _screened([value._value_])[0]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_dataclass(value)
    if _is_namedtuple(value):
        return _encode_tuple(value)
    if isinstance(value, _OWN_PATH):
        return ExtType(Ext.PATH, os.fsencode(str(value)))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _encode_numpy(numpy, value)
    for base, plain in _PLAIN.items():
        if isinstance(value, base):
            return _encode_as_base(value, base, plain(value))
    raise _Unsupported(_hint(value))


def _encode_as_base(value: Any, base: type, plain: Any) -> Any:
    equal = plain == value  # and not !=, which a subclass that redefines equality may have left as it was
    if not equal:
        raise _Unsupported(f"it does not equal the plain {base.__name__} that would arrive; pass str(x)")
    encoder = _ENCODERS.get(base)
    return plain if encoder is None else encoder(plain)


def _encode_int(value: int) -> Any:
    # msgpack asks only for integers beyond 64 bits; the smaller ones are of subclasses.
    if -(1 << 63) <= value < 1 << 64:
        return value
    return ExtType(Ext.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _stamp(value: datetime | time) -> bytes:
    """Fold, ISO text, a ZoneInfo's key in place of the offset: ``12024-10-27T02:30:00[Europe/Paris]``."""
    zone, offset = value.tzinfo, value.utcoffset()
    if isinstance(zone, ZoneInfo) and zone.key is not None and _ZONE_KEY.fullmatch(zone.key):
        text = f"{value.replace(tzinfo=None).isoformat()}[{zone.key}]"
    elif zone is not None and offset is None:
        raise _Unsupported("its time zone gives no offset; use a datetime, a fixed offset or a ZoneInfo")
    elif offset is not None and offset.microseconds:
        raise _Unsupported("its offset from UTC has a fraction of a second")  # `fromisoformat` loses some of those
    else:
        text = value.isoformat()
    return f"{value.fold}{text}".encode("ascii")


def _encode_timedelta(value: timedelta) -> ExtType:
    return ExtType(Ext.TIMEDELTA, _TIMEDELTA.pack(value.days, value.seconds, value.microseconds))


def _encode_tuple(value: tuple[Any, ...]) -> Any:
    return {_TUPLE: _screened(list(value))}


def _is_namedtuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields") and type(value) is not ExtType


def _encode_dataclass(value: Any) -> Any:
    fields = _screened({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    # A class without a hash has None there. Its instances can be no keys, so a plain dict does for them.
    return {_DATACLASS if type(value).__hash__ is None else _HASHABLE_FIELDS: fields}


def _encode_numpy(numpy: Any, value: Any) -> Any:
    dtype = value.dtype
    if isinstance(value, (numpy.str_, numpy.bytes_)):
        return value.item()
    if not _DTYPE.fullmatch(dtype.str) or not dtype.itemsize:
        raise _Unsupported(f"its dtype is {dtype}; pass an array of numbers, or a list")
    if isinstance(value, numpy.generic):
        return {_NUMPY_SCALAR: [dtype.str, value.tobytes()]}
    if type(value) is not numpy.ndarray and type(value) is not numpy.memmap:
        raise _Unsupported("pass a plain array, as numpy.asarray(x) makes it")
    return {_NDARRAY: [dtype.str, list(value.shape), value.tobytes()]}


_TIMEDELTA = struct.Struct("!iii")
_COMPLEX = struct.Struct("!dd")
#: No dots: whatever ZoneInfo makes of a key, it stays below its own directories.
_ZONE_KEY = re.compile(r"[A-Za-z0-9_+\-/]{1,100}")
#: Booleans, numbers, text of fixed width, dates. Not objects, not structures, not variable text.
_DTYPE = re.compile(r"[<>|=](?:[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8(?:\[\d{0,9}(?:[YMWDhms]|[munpfa]s)\])?)")
#: NumPy's own limit, since 2.0; it was 32 before.
_MAX_DIMENSIONS = 64
#: The path classes of this system. A PureWindowsPath is no path here, nor would it be one in the consumer.
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
    complex: lambda value: ExtType(Ext.COMPLEX, _COMPLEX.pack(value.real, value.imag)),
    tuple: _encode_tuple,
    set: lambda value: {_SET: _screened(list(value))},
    frozenset: lambda value: {_FROZENSET: _screened(list(value))},
    FrozenFields: lambda value: {_HASHABLE_FIELDS: _screened(dict(value))},
    OrderedDict: lambda value: _screened(dict(value)),
    defaultdict: lambda value: _screened(dict(value)),
    Counter: lambda value: _screened(dict(value)),
}

#: How to make the base of a subclass' instance without running any method that the subclass may have
#: overridden. datetime stands before date, its own base.
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


# ------------------------------------------------------------------------------------------------------------
# Failures: where in the value is what cannot be serialized? Nothing here runs while all goes well.
# ------------------------------------------------------------------------------------------------------------

#: Deeper than any msgpack takes: it stops at 1,024 levels (of tuples, 512), which need 400 KB of C stack.
_TOO_DEEP = 1_100
#: From here on, nesting may be the reason of a failure that has no other.
_SUSPECT_DEPTH = 100
_SHOWN_PIECES = 12
_SHOWN_KEY_CHARS = 60
_SHOWN_ERROR_CHARS = 200


class _Node(NamedTuple):
    """A value, and how it is reached: ``piece`` is what its place adds to its parent's."""

    value: Any
    piece: str
    parent: _Node | None
    depth: int

    def chain(self) -> list[_Node]:
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return [node, *reversed(nodes)]

    def place(self) -> str:
        pieces = [node.piece for node in self.chain()]
        if len(pieces) > _SHOWN_PIECES:
            pieces[_SHOWN_PIECES - 3 : -2] = [" ... "]
        return "".join(pieces)


def _cause(error: Exception) -> Exception | None:
    return None if isinstance(error, _Unsupported) else error


def _explained(roots: Mapping[str, Any], error: Exception) -> PayloadError:
    """Walks the values for the one that cannot be serialized. Iterative: they may be nested without end."""
    stack = [_Node(value, name, None, 0) for name, value in reversed(list(roots.items()))]
    deepest = stack[-1]
    while stack:
        node = stack.pop()
        if node.depth > deepest.depth:
            deepest = node
        if node.depth > _TOO_DEEP:
            break
        try:
            children = _children(node.value)
            if children is None:
                _pack_value(node.value)
                continue
        except Exception as found:
            return _refusal(node, found)
        stack += [_Node(child, piece, node, node.depth + 1) for piece, child in reversed(children)]
    if isinstance(error, _Unsupported):
        return PayloadError(f"{deepest.chain()[0].piece}: {error}")
    return _unplaced(deepest, error)


def _refusal(node: _Node, found: Exception) -> PayloadError:
    if isinstance(found, UnicodeEncodeError):
        lone = ascii(found.object[found.start])
        hint = f"it holds a lone surrogate ({lone}); pass bytes, or text that was decoded without errors"
    elif isinstance(found, _Unsupported):
        hint = str(found)
    else:
        hint = _told(found)
    return PayloadError(f"{node.place()}: {_named(type(node.value))} cannot be serialized; {hint}")


def _unplaced(deepest: _Node, error: Exception) -> PayloadError:
    """No value failed by itself: one contains itself, or they are nested too deep."""
    seen: dict[int, _Node] = {}
    for node in deepest.chain() if deepest.depth > _TOO_DEEP else ():
        first = seen.setdefault(id(node.value), node)
        if first is not node:
            what = f"{_named(type(first.value))} that contains itself (at {node.place()})"
            return PayloadError(f"{first.place()}: {what} cannot be serialized; pass a copy without it")
    told = _told(error)
    if deepest.depth < _SUSPECT_DEPTH:  # another thread changed the value meanwhile, say
        return PayloadError(f"{deepest.chain()[0].piece}: cannot be serialized; {told}")
    nested = f"values nested {min(deepest.depth, _TOO_DEEP)} levels deep or more"
    return PayloadError(f"{deepest.place()}: {nested} cannot be serialized ({told}); pass them flat")


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """What a value holds, with what its place adds; None if it is to be packed by itself."""
    kind = type(value)
    if kind in (dict, FrozenFields, OrderedDict, defaultdict, Counter):
        keys = [("<key>", key) for key in value]
        return keys + [(f"[{_shown_key(key)}]", item) for key, item in value.items()]
    if kind in (set, frozenset):
        return [("<member>", item) for item in value]
    if isinstance(value, Enum):
        return [(".value", value._value_)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if kind is list or kind is tuple or _is_namedtuple(value):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return None


def _shown_key(key: Any) -> str:
    text = ascii(key) if type(key) in _LEAVES else f"<{type(key).__name__}>"
    return text if len(text) <= _SHOWN_KEY_CHARS else text[:_SHOWN_KEY_CHARS] + "..."


def _told(error: Exception) -> str:
    """An error as text. Some repeat all of the data that they complain about."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= _SHOWN_ERROR_CHARS else text[:_SHOWN_ERROR_CHARS] + "..."


def _named(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


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
    if callable(getattr(kind, "model_dump", None)):
        return "pass x.model_dump()"
    if kind.__module__.partition(".")[0] in ("pandas", "polars", "pyarrow"):
        return "write it to a file and pass the path, or pass its columns as arrays"
    if callable(getattr(kind, "fileno", None)) or hasattr(kind, "acquire"):
        return "it lives in this process only; open it inside the task, and pass its name or address"
    return "make it a dataclass, or pass a dict of what the task needs"


# ------------------------------------------------------------------------------------------------------------
# Unpacking
# ------------------------------------------------------------------------------------------------------------


_PairsHook = Callable[[list[tuple[Any, Any]]], Any]


class _TagFound(Exception):
    """The payload holds tags, so it needs the slower way."""


def _unpack(job_id: bytes, payload: bytes) -> Any:
    """Checks the checksum and decodes.

    Most payloads hold no tag and are done by msgpack alone: a hook for maps would cost each map 100 ns.
    """
    body = payload[_CRC_BYTES:]
    if zlib.crc32(body, zlib.crc32(job_id)).to_bytes(_CRC_BYTES, "big") != payload[:_CRC_BYTES]:
        raise CorruptPayload("the checksum of the payload is wrong")
    try:
        try:
            return _unpackb(body, _decode_leaf, None)
        except _TagFound:
            return _Tagged().decode(body)
    except (CorruptPayload, MemoryError):  # no payload can ask for more than a multiple of its own size
        raise
    except Exception as error:
        # msgpack alone raises seven kinds, the decoders below a few more; all of them mean the same.
        raise CorruptPayload(f"the payload does not decode: {_told(error)}") from error


def _unpackb(body: bytes, ext_hook: Callable[[int, bytes], Any], pairs_hook: _PairsHook | None) -> Any:
    # msgpack's limits for strings, arrays and maps are the size of the data: every item takes a byte at least, so a
    # header that promises more is a lie
    return msgpack.unpackb(
        body,
        ext_hook=ext_hook,
        object_pairs_hook=pairs_hook,
        strict_map_key=False,
        timestamp=1,  # as float: msgpack's own Timestamp, which is never packed here, must not come out
    )


def _decode_leaf(code: int, data: bytes) -> Any:
    decoder = _LEAF_DECODERS.get(code)
    if decoder is not None:
        return decoder(data)
    if code in _TAGS:
        raise _TagFound
    raise CorruptPayload(f"the payload holds the unknown extension code {code}")


class _Tag:
    """Stands for a tag while its map is being decoded. ``build`` makes the value of what the tag holds."""

    __slots__ = ("build",)

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build = build


class _Tagged:
    """Decodes one payload that holds tags."""

    def __init__(self) -> None:
        #: Tags that were read and not yet used up; one that stands anywhere but alone in a map stays over.
        self._open = 0

    def decode(self, body: bytes) -> Any:
        value = _unpackb(body, self._ext, self._map)
        if self._open:
            raise CorruptPayload("a tag in the payload stands alone")
        return value

    def _ext(self, code: int, data: bytes) -> Any:
        tag = _TAGS.get(code)
        if tag is None:
            return _decode_leaf(code, data)
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
    """Splits what `_stamp` made, less the fold: the ISO text, and the zone if there is one."""
    iso, bracket, key = text.partition("[")
    if not bracket:
        return iso, None
    if not key.endswith("]") or not _ZONE_KEY.fullmatch(key[:-1]):
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
        raise CorruptPayload(f"the payload holds {_named(type(value))} where {_named(kind)} is due")
    return value


_Expected = TypeVar("_Expected")


def _decode_numpy_scalar(parts: Any) -> Any:
    dtype, raw = _expect(list, parts)
    return _array(dtype, [], raw)[()]


def _decode_ndarray(parts: Any) -> Any:
    dtype, shape, raw = _expect(list, parts)
    return _array(dtype, shape, raw)


def _array(dtype_name: Any, shape: Any, raw: Any) -> Any:
    """Makes a writable array; checks all that NumPy would take on trust."""
    if not _DTYPE.fullmatch(_expect(str, dtype_name)):
        raise CorruptPayload("an array in the payload has no valid dtype")
    try:
        numpy = importlib.import_module("numpy")
    except ImportError as error:
        raise CorruptPayload("the payload holds a NumPy array, and NumPy is not installed here") from error
    dtype = numpy.dtype(dtype_name)
    lengths = [_expect(int, length) for length in _expect(list, shape)]
    # Many dimensions would be refused by NumPy too, but only after math.prod had multiplied them for minutes.
    if len(lengths) > _MAX_DIMENSIONS or min(lengths, default=0) < 0 or not dtype.itemsize:
        raise CorruptPayload("an array in the payload has no valid shape")
    if math.prod(lengths) * dtype.itemsize != len(_expect(bytes, raw)):
        raise CorruptPayload("an array in the payload has not the size of its shape")
    array = numpy.ndarray(lengths, dtype, bytearray(raw))  # a bytearray, so that the array can be written
    # Neither NumPy nor its users expect other cells than these; text would fail when it is first looked at.
    if dtype.kind == "b" and array.size and array.view("u1").max() > 1:
        raise CorruptPayload("an array in the payload holds what is no boolean")
    if dtype.kind == "U" and raw and numpy.frombuffer(raw, f"{dtype_name[0]}u4").max() > sys.maxunicode:
        raise CorruptPayload("an array in the payload holds what is no character")
    return array


_LEAF_DECODERS: dict[int, Callable[[bytes], Any]] = {
    Ext.BIG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    Ext.DATETIME: _decode_datetime,
    Ext.DATE: lambda data: date.fromisoformat(data.decode("ascii")),
    Ext.TIME: _decode_time,
    Ext.TIMEDELTA: lambda data: timedelta(*_TIMEDELTA.unpack(data)),
    Ext.UUID: lambda data: UUID(bytes=data),
    Ext.DECIMAL: lambda data: Decimal(data.decode("ascii")),
    Ext.PATH: lambda data: Path(os.fsdecode(data)),
    Ext.BYTEARRAY: bytearray,
    Ext.COMPLEX: lambda data: complex(*_COMPLEX.unpack(data)),
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


# ------------------------------------------------------------------------------------------------------------
# Casters: from what arrived to what the annotations declare
# ------------------------------------------------------------------------------------------------------------

Caster = Callable[[Any], Any]
#: What a list, tuple, set or frozenset may be declared as.
_COLLECTIONS = (list, tuple, set, frozenset)
_COLLECTION_HINTS = frozenset({
    *(list, set, frozenset, abc.Sequence, abc.MutableSequence, abc.Set, abc.MutableSet),
    *(abc.Collection, abc.Iterable, abc.Container, abc.Reversible),
})  # fmt: skip
_MAPPING_HINTS = frozenset({dict, OrderedDict, defaultdict, abc.Mapping, abc.MutableMapping})


def caster(hint: Any) -> Caster | None:
    """Makes the function that converts a decoded value to what an annotation declares.

    Converted are Enum members, dataclasses and namedtuples, also inside of Optional, Union, list, tuple,
    dict, set, frozenset, Sequence, Mapping and their like, Annotated, NewType, Literal, and the fields of
    dataclasses. All else is left as it arrived; so is None, and a value that has not the declared shape (a
    None for a ``list[Color]``).

    In a Union, a dict with exactly the fields of a dataclass becomes that dataclass; else a value that is an
    instance of a plain alternative stays (a str for ``Color | str``); else the first alternative that takes
    it does.

    Args:
        hint: a resolved annotation, as typing.get_type_hints returns it.

    Returns:
        The function, or None where nothing is to be converted. It raises ValueError, TypeError or what the
        user's
        class raises if a value cannot be converted.
    """
    return _caster(hint, ())


def _caster(hint: Any, aliases: tuple[Any, ...]) -> Caster | None:
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return _class_caster(hint)
    # Of a NewType, and of `type X = ...`.
    below = getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None)
    if below is not None:
        # A recursive alias (type Tree = list[Tree] | Color) is followed once; deeper values stay plain.
        return None if hint in aliases else _caster(below, (*aliases, hint))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated or origin is typing.Final:
        return _caster(args[0], aliases)
    if origin is Union or origin is types.UnionType:
        return _union_caster(args, aliases)
    if origin is Literal:
        return _literal_caster(args)
    if origin is tuple:
        return _tuple_caster(args, aliases)
    if origin in _COLLECTION_HINTS and len(args) == 1:
        return _items_caster(_caster(args[0], aliases))
    if origin in _MAPPING_HINTS and len(args) == 2:
        return _mapping_caster(_caster(args[0], aliases), _caster(args[1], aliases))
    return _class_caster(origin) if isinstance(origin, type) else None  # a generic dataclass


def _class_caster(cls: type) -> Caster | None:
    if issubclass(cls, Enum):
        return _enum_caster(cls)
    if dataclasses.is_dataclass(cls):
        return functools.partial(_to_dataclass, cls)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return functools.partial(_to_namedtuple, cls)
    return None


def _enum_caster(cls: type[Enum]) -> Caster:
    # A member's value may itself be a dataclass or the like, which arrived as its fields.
    of_values = [made for kind in {type(member._value_) for member in cls} if (made := _class_caster(kind))]

    def cast(value: Any) -> Any:
        try:
            return cls(value)
        except ValueError:
            if value is None:
                return None
            for of_value in of_values:
                try:
                    return cls(of_value(value))
                except (ValueError, TypeError):
                    pass
            # not the error of `cls`, which repeats the argument: arguments are not for the log
            raise TypeError(f"{_named(type(value))} that is no value of {cls.__qualname__}") from None

    return cast


@functools.lru_cache(maxsize=1024)
def _field_casters(cls: type) -> dict[str, Caster | None]:
    """The casters of a class' annotations, none if one cannot be resolved. Asked late: classes recur."""
    try:
        return {name: _caster(hint, ()) for name, hint in typing.get_type_hints(cls).items()}
    except Exception:  # whatever the user's annotations raise
        return {}


def _to_dataclass(cls: type, value: Any) -> Any:
    if value is None or isinstance(value, cls):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"{cls.__name__} cannot be made of {_named(type(value))}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [name for name in value if name not in fields]
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {_shown_key(unknown[0])}")
    casters = _field_casters(cls)
    cast = {name: item if (of := casters.get(name)) is None else of(item) for name, item in value.items()}
    made = cls(**{name: item for name, item in cast.items() if fields[name].init})
    for name, item in cast.items():
        if not fields[name].init:
            object.__setattr__(made, name, item)  # frozen ones too
    return made


def _to_namedtuple(cls: Any, value: Any) -> Any:
    if type(value) is not tuple or len(value) != len(cls._fields):
        return value
    casters = _field_casters(cls)
    pairs = zip(cls._fields, value, strict=True)
    return cls._make(item if (of := casters.get(name)) is None else of(item) for name, item in pairs)


def _literal_caster(choices: tuple[Any, ...]) -> Caster | None:
    members = [choice for choice in choices if isinstance(choice, Enum)]
    if not members:
        return None

    def cast(value: Any) -> Any:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        return next((member for member in members if member._value_ == value), value)

    return cast


def _items_caster(of_item: Caster | None) -> Caster | None:
    if of_item is None:
        return None

    def cast(value: Any) -> Any:
        return type(value)(map(of_item, value)) if type(value) in _COLLECTIONS else value

    return cast


def _tuple_caster(hints: tuple[Any, ...], aliases: tuple[Any, ...]) -> Caster | None:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return _items_caster(_caster(hints[0], aliases))
    casters = [_caster(hint, aliases) for hint in hints]
    if not any(casters):
        return None

    def cast(value: Any) -> Any:
        if type(value) not in (tuple, list) or len(value) != len(casters):
            return value
        pairs = zip(casters, value, strict=True)
        return type(value)([item if of is None else of(item) for of, item in pairs])

    return cast


def _mapping_caster(of_key: Caster | None, of_value: Caster | None) -> Caster | None:
    if of_key is None and of_value is None:
        return None

    def cast(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key if of_key is None else of_key(key): item if of_value is None else of_value(item)
            for key, item in value.items()
        }

    return cast


class _UnionCaster:
    """Converts to one of several alternatives; `caster` tells the order in which they are asked."""

    def __init__(self, hints: Iterable[Any], aliases: tuple[Any, ...]) -> None:
        plain: set[type] = set()
        #: Classes that a value must be an instance of for an alternative, and its caster.
        self._casters: list[tuple[tuple[type, ...], Caster]] = []
        self._exact: list[tuple[set[str], Caster]] = []
        for hint in hints:
            made = _caster(hint, aliases)
            cls = typing.get_origin(hint) or hint
            if made is None:
                plain.add(cls if isinstance(cls, type) else object)
                continue
            self._casters.append((_shape(cls), made))
            if isinstance(cls, type) and dataclasses.is_dataclass(cls):
                self._exact.append(({field.name for field in dataclasses.fields(cls)}, made))
        if float in plain:
            plain.add(int)  # as type checkers have it
        self._plain = tuple(plain)

    def __bool__(self) -> bool:
        return bool(self._casters)

    def __call__(self, value: Any) -> Any:
        if value is None:
            return None
        fitting = [made for shape, made in self._casters if isinstance(value, shape)]
        if isinstance(value, dict):
            fitting = [made for names, made in self._exact if value.keys() == names] + (
                [] if isinstance(value, self._plain) else fitting
            )
        elif isinstance(value, self._plain):
            return value
        for made in fitting:
            try:
                return made(value)
            except Exception:  # whatever the user's class raises, the next alternative may take the value
                pass
        if isinstance(value, self._plain):
            return value
        raise TypeError(f"{_named(type(value))} fits none of the declared alternatives")


def _union_caster(hints: tuple[Any, ...], aliases: tuple[Any, ...]) -> Caster | None:
    union = _UnionCaster(hints, aliases)
    return union if union else None


def _shape(cls: Any) -> tuple[type, ...]:
    """What arrives for an alternative that is converted."""
    if cls in _MAPPING_HINTS:
        return (dict,)
    if cls in (list, set, frozenset):
        return (cls,)
    if cls in _COLLECTION_HINTS:
        return _COLLECTIONS
    if isinstance(cls, type) and issubclass(cls, tuple):
        return (tuple,)
    if isinstance(cls, type) and dataclasses.is_dataclass(cls) and not issubclass(cls, Enum):
        return (dict, cls)
    return (object,)


class CallCaster:
    """Converts the arguments of one function to what its annotations declare.

    Where an annotation cannot be resolved (typing.get_type_hints raises), nothing is converted.

    Attributes:
        return_caster: the caster of the return annotation, or None.
    """

    __slots__ = ("_by_name", "_by_position", "_other_names", "_other_positions", "converts", "return_caster")

    def __init__(self, function: Callable[..., Any]) -> None:
        """Reads the signature.

        Args:
            function: any callable.
        """
        casters, parameters = _signature(function)
        self.return_caster = casters.pop("return", None)
        self._by_position: list[tuple[str, Caster | None]] = []
        self._by_name: dict[str, Caster | None] = {}
        self._other_positions: tuple[str, Caster | None] = ("*", None)
        self._other_names: Caster | None = None
        for parameter in parameters:
            name, kind, made = parameter.name, parameter.kind, casters.get(parameter.name)
            if kind is parameter.VAR_POSITIONAL:
                self._other_positions = (f"*{name}", made)
            elif kind is parameter.VAR_KEYWORD:
                self._other_names = made
            else:
                if kind is not parameter.KEYWORD_ONLY:
                    self._by_position.append((name, made))
                if kind is not parameter.POSITIONAL_ONLY:
                    self._by_name[name] = made
        self.converts = any(casters.get(parameter.name) is not None for parameter in parameters)

    def cast(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Converts the arguments that need it.

        Args:
            args: the positional arguments, as `decode_call` returned them.
            kwargs: the keyword arguments.

        Returns:
            Both, as new objects if a parameter of the function is ever converted, and else the very same.

        Raises:
            TypeError: an argument cannot be converted; the message names its parameter.
        """
        if not self.converts:
            return args, kwargs
        surplus = len(args) - len(self._by_position)
        positions = self._by_position + [self._other_positions] * surplus
        cast = [_cast_one(name, made, item) for (name, made), item in zip(positions, args, strict=False)]
        by_name, other = self._by_name, self._other_names
        return cast, {name: _cast_one(name, by_name.get(name, other), item) for name, item in kwargs.items()}


def _signature(function: Callable[..., Any]) -> tuple[dict[str, Caster | None], list[inspect.Parameter]]:
    """The casters of a function's annotations by name, and its parameters; neither if one is unknown."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
        parameters = list(inspect.signature(function).parameters.values())
        return {name: _caster(hint, ()) for name, hint in hints.items()}, parameters
    except Exception:  # whatever the user's annotations raise
        return {}, []


def _cast_one(name: str, made: Caster | None, value: Any) -> Any:
    if made is None:
        return value
    try:
        return made(value)
    except Exception as error:
        raise TypeError(f"argument {name!r}: {error}") from error
