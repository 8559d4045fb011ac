"""Payloads: what is encoded comes back, errors name the place of what cannot be encoded, and hostile bytes do no
harm."""

import math
import signal
import socket
import sys
import threading
import zlib
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.model.errors import PayloadError
from taskq.protocol.codec import (
    CallCaster,
    CorruptPayload,
    Ext,
    FrozenFields,
    caster,
    decode_call,
    decode_result,
    encode_call,
    encode_result,
)

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

needs_numpy = pytest.mark.skipif(np is None, reason="NumPy is not installed")
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ID = bytes(range(16))


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mode(StrEnum):
    FAST = "fast"


class Access(Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


@dataclass
class Shape:
    name: str
    color: Color
    points: list[Point] = field(default_factory=list)
    size: int = field(init=False, default=7)


@dataclass
class Tree:
    color: Color
    below: "list[Tree]" = field(default_factory=list)
    next: "Tree | None" = None


@dataclass(frozen=True)
class Frozen:
    level: Level
    area: float = field(init=False, default=0.0)


class Planet(Enum):
    EARTH = Point(3, 3)


class Pair(NamedTuple):
    color: Color
    n: int


class Text(str):
    """A str that says nothing more than str does."""


class Odd(str):
    """A str that is not equal to the plain one."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def there_and_back(value: Any) -> Any:
    """Encodes and decodes a result."""
    return decode_result(ID, encode_result(ID, value))


def same(one: Any, other: Any) -> bool:
    """Equality that tells types, the sign of zero, folds and zones apart, and takes a NaN for a NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(one.items(), other.items(), strict=True)
        )
    if isinstance(one, (set, frozenset)):
        return len(one) == len(other) and all(any(same(a, b) for b in other) for a in one)
    if isinstance(one, (datetime, time)):
        zones = [getattr(x.tzinfo, "key", None) for x in (one, other)]
        return (one.fold, one.isoformat(), zones[0]) == (
            other.fold,
            other.isoformat(),
            zones[1],
        ) and one.utcoffset() == other.utcoffset()
    if isinstance(one, (float, complex, Decimal)):
        return repr(one) == repr(other)
    return bool(one == other)


def sealed(body: bytes) -> bytes:
    """A payload with a right checksum around any bytes."""
    return zlib.crc32(body, zlib.crc32(ID)).to_bytes(4, "big") + body


def packed(value: Any) -> bytes:
    """A payload with a right checksum around anything that msgpack packs."""
    return sealed(msgpack.packb(value))


# --- Round trips ---

fixed = st.integers(-23 * 3600, 23 * 3600).map(lambda seconds: timezone(timedelta(seconds=seconds)))
zones = st.sampled_from([None, UTC, ZoneInfo("Europe/Paris"), ZoneInfo("America/New_York"), ZoneInfo("Etc/GMT+5")])
folds = st.integers(0, 1)
hashable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(1 << 66), 1 << 66),
    st.integers(-(1 << 300), 1 << 300),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(timezones=zones | fixed), folds),
    st.dates(),
    st.builds(lambda at, fold: at.replace(fold=fold), st.times(timezones=zones | fixed), folds),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).map(Path),
)
leaves = hashable_leaves | st.floats() | st.decimals() | st.binary().map(bytearray)
keys = st.recursive(
    hashable_leaves,
    lambda below: st.lists(below, max_size=3).map(tuple) | st.frozensets(below, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    leaves,
    lambda below: st.one_of(
        st.lists(below, max_size=4),
        st.lists(below, max_size=4).map(tuple),
        st.dictionaries(keys, below, max_size=3),
        st.sets(keys, max_size=3),
        st.frozensets(keys, max_size=3),
    ),
    max_leaves=12,
)


@quick
@given(values)
def test_every_supported_value_comes_back_equal_and_of_its_type(value: Any) -> None:
    """Round trip of any nesting of supported values."""
    assert same(there_and_back(value), value)


@quick
@given(
    st.lists(values, max_size=3),
    st.dictionaries(st.text(), values, max_size=3),
    st.binary(min_size=16, max_size=16),
)
def test_calls_come_back(args: list[Any], kwargs: dict[str, Any], job_id: bytes) -> None:
    """Round trip of a whole call."""
    back = decode_call(job_id, encode_call(job_id, args, kwargs))
    assert same(back[0], args)
    assert same(back[1], kwargs)


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**5000),
        *(-0.0, math.inf, math.nan, Decimal("-0"), Decimal("NaN"), Decimal("sNaN"), Decimal("1E+999999")),
        *((), ((),), [()], {(): ()}, {(1, (2,)): {3}}, {frozenset({frozenset()}): 1}, set()),
        *(
            bytearray(),
            [bytearray(b"x")],
            {"a": {"b": [bytearray(b"y")]}},
            (bytearray(b"z"), [bytearray(b"t")]),
        ),
        *(
            {"\u0161": b"\xc4\xd4"},
            "\U0001f600\0",
            timedelta.min,
            timedelta.max,
            datetime.min,
            datetime.max,
            Path(),
        ),
        datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1),
        datetime(2024, 1, 1, tzinfo=timezone(-timedelta(hours=3, seconds=1))),
        Path("a\udcff"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_corner_values(value: Any) -> None:
    """Values at the edges of their types, alone and as an argument."""
    assert same(there_and_back(value), value)
    assert same(decode_call(ID, encode_call(ID, (value,), {"k": value})), ([value], {"k": value}))


def test_a_zone_keeps_key_and_fold() -> None:
    """The second 2:30 of the night in which clocks go back stays the second."""
    at = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1)
    back = there_and_back(at)
    assert back.tzinfo is at.tzinfo
    assert back.fold == 1
    assert back.utcoffset() == timedelta(hours=1)
    assert there_and_back(datetime(2024, 1, 1, tzinfo=UTC)).tzinfo is UTC


def test_other_zones_keep_their_offset() -> None:
    """A zone that only its own class knows becomes the offset it gives."""

    class Own(tzinfo):
        def utcoffset(self, _at: datetime | None) -> timedelta:
            return timedelta(hours=5, minutes=30)

        def dst(self, _at: datetime | None) -> timedelta:
            return timedelta(0)

    back = there_and_back(datetime(2024, 1, 1, tzinfo=Own()))
    assert back.tzinfo == timezone(timedelta(hours=5, minutes=30))


Named = namedtuple("Named", "a b")


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Color.RED, "red"),
        (Level.HIGH, 2),
        (Mode.FAST, "fast"),
        (Access.READ | Access.WRITE, 3),
        (signal.SIGTERM, 15),
        ({Color.RED: Level.LOW}, {"red": 1}),
        (
            Shape("s", Color.RED, [Point(1)]),
            {"name": "s", "color": "red", "points": [{"x": 1, "y": 0}], "size": 7},
        ),
        ({Point(1, 2)}, {FrozenFields(x=1, y=2)}),
        ({Point(1, 2): "p"}, {FrozenFields(x=1, y=2): "p"}),
        (FrozenFields(x=1), FrozenFields(x=1)),
        (Named(1, [2]), (1, [2])),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (memoryview(b"abc"), b"abc"),
        (Text("t"), "t"),
        (type("I", (int,), {})(5), 5),
        (type("I", (int,), {})(1 << 70), 1 << 70),
        (type("F", (float,), {})(0.5), 0.5),
        (type("B", (bytes,), {})(b"b"), b"b"),
        (type("D", (datetime,), {})(2024, 1, 2), datetime(2024, 1, 2)),
        (type("D", (date,), {})(2024, 1, 2), date(2024, 1, 2)),
        (type("T", (time,), {})(1, 2), time(1, 2)),
        (type("T", (timedelta,), {})(1), timedelta(1)),
        (type("U", (UUID,), {})(int=5), UUID(int=5)),
        (type("D", (Decimal,), {})("1.50"), Decimal("1.50")),
        (PurePosixPath("/a"), Path("/a")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_arrives_as_something_plainer(value: Any, arrives: Any) -> None:
    """The documented exceptions to 'of the same type', alone and inside of others."""
    for wrap in (lambda v: v, lambda v: [v], lambda v: (v, {"k": v})):
        assert str(there_and_back(wrap(value))) == str(wrap(arrives))
        assert there_and_back(wrap(value)) == wrap(arrives)
    assert type(there_and_back(value)) is type(arrives)


def test_no_name_of_a_class_or_module_is_in_the_data() -> None:
    """Enum members and dataclasses travel as values and fields."""
    payload = encode_result(ID, [Color.RED, Shape("s", Color.RED), Point(1)])
    for name in (b"Color", b"Shape", b"Point", b"RED", __name__.encode()):
        assert name not in payload


@pytest.mark.parametrize("clock", [time(0, 0), datetime(2024, 1, 1)])
def test_offsets_of_a_fraction_of_a_second_are_refused(clock: time | datetime) -> None:
    """Python's `fromisoformat` reads ``+00:00:00.000001`` as UTC (3.11 to 3.13)."""
    with pytest.raises(PayloadError, match="fraction of a second"):
        encode_result(ID, clock.replace(tzinfo=timezone(timedelta(microseconds=1))))


def test_encoding_from_inside_an_encoder_is_safe() -> None:
    """A property of a dataclass that itself encodes something does not disturb the payload around it."""

    @dataclass
    class Reentrant:
        x: int = 1

        def __getattribute__(self, name: str) -> Any:
            if name == "x":
                assert there_and_back([(1, 2)] * 9) == [(1, 2)] * 9
                return 5
            return super().__getattribute__(name)

    assert there_and_back([7, Reentrant(), 8]) == [7, {"x": 5}, 8]


def test_an_error_leaves_no_trace_in_the_next_payload() -> None:
    """A packer that raised half way is not used again."""
    for _ in range(3):
        with pytest.raises(PayloadError):
            encode_call(ID, ([1, 2, object()],), {})
        assert decode_call(ID, encode_call(ID, (1,), {})) == ([1], {})


def test_threads_do_not_disturb_each_other() -> None:
    """Threads that encode and decode at once each get their own values back."""
    wrong: list[int] = []

    def run(n: int) -> None:
        value = [(n, i) for i in range(20)]
        wrong.extend(n for _ in range(100) if there_and_back(value) != value)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- Errors ---


def looped() -> list[Any]:
    """A list that holds itself two levels down."""
    inner: list[Any] = []
    outer: list[Any] = [1, (inner,)]
    inner.append(outer)
    return outer


def nested(levels: int, wrap: Any = lambda value: [value]) -> Any:
    """A value in many containers."""
    value: Any = 0
    for _ in range(levels):
        value = wrap(value)
    return value


@dataclass
class Holder:
    what: Any


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ((object(),), {}, ["args[0]: an object cannot be serialized"]),
        (({"x": 1, "y": [1, (2, object)]},), {}, ["args[0]['y'][1][1]: a type ", "name"]),
        ((1, {"x": socket.socket}), {"s": 1}, ["args[1]['x']: a type "]),
        ((), {"size": {1: threading.Lock()}}, ["kwargs['size'][1]: a _thread.lock ", "inside the task"]),
        ((Holder(Holder(len)),), {}, ["args[0].what.what: a builtin_function_or_method ", "name"]),
        (({Holder: 1},), {}, ["args[0]<key>: a type "]),
        (({(1, len)},), {}, ["args[0]<member>[1]: a builtin_function"]),
        (((i for i in ()),), {}, ["args[0]: a generator ", "list(x)"]),
        ((range(3),), {}, ["args[0]: a range ", "list(x)"]),
        ((deque(),), {}, ["collections.deque", "list(x)"]),
        (({}.keys(),), {}, ["a dict_keys ", "list(x)"]),
        ((type("L", (list,), {})(),), {}, [".L cannot", "list(x)"]),
        ((type("D", (dict,), {})(),), {}, [".D cannot", "dict(x)"]),
        ((type("S", (set,), {})(),), {}, [".S cannot", "set(x)"]),
        ((ValueError("x"),), {}, ["a ValueError ", "str(x)"]),
        ((Odd("x"),), {}, ["Odd cannot", "does not equal"]),
        ((PureWindowsPath("c:/"),), {}, ["PureWindowsPath", "str(x)"]),
        (
            (time(1, tzinfo=type("Z", (tzinfo,), {"utcoffset": lambda *_: None})()),),
            {},
            ["datetime.time ", "offset"],
        ),
        (([1, msgpack.ExtType(5, b"")],), {}, ["args[0][1]: a msgpack.ext.ExtType "]),
        (({"t": (msgpack.Timestamp(1),)},), {}, ["args[0]['t'][0]: a msgpack.ext.Timestamp "]),
        (({"x": "a\ud800"},), {}, ["args[0]['x']: a str ", "lone surrogate ('\\ud800')"]),
        (({"\udfff": 1},), {}, ["args[0]<key>: a str ", "lone surrogate"]),
        ((Enum("E", {"A": object()}).A,), {}, ["args[0].value: an object "]),  # type: ignore[attr-defined]
        ((looped(),), {}, ["args[0]: a list that contains itself (at args[0][1][0][0])"]),
        ((5, nested(1200)), {}, ["args[1][0][0]", " ... ", "levels deep"]),
        ((5, nested(600, lambda value: (value,))), {}, ["args", "levels deep"]),
        ((5, nested(600, Holder)), {}, ["args", "levels deep"]),
        (({"k" * 500: object()},), {}, ["...]: an object"]),
        ((), {1: 2}, ["kwargs: the name"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, list) else None,
)
def test_what_cannot_be_serialized_is_reported_with_its_place(args: Any, kwargs: Any, told: list[str]) -> None:
    """The error names the place, the type and what to do."""
    with pytest.raises(PayloadError) as caught:
        encode_call(ID, args, kwargs)
    assert isinstance(caught.value, TypeError)
    for part in told:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 500


def test_results_have_their_own_place() -> None:
    """The error of a result starts with `result`."""
    with socket.socket() as open_socket, pytest.raises(PayloadError) as caught:
        encode_result(ID, [{"s": open_socket}])
    assert str(caught.value).startswith("result[0]['s']: a socket.socket cannot be serialized; it lives in this")


def test_an_error_of_the_user_s_own_is_chained() -> None:
    """What a property raised is not lost."""

    @dataclass
    class Broken:
        x: int = 1

        def __getattribute__(self, name: str) -> Any:
            if name == "x":
                raise RuntimeError("no x today")
            return super().__getattribute__(name)

    with pytest.raises(PayloadError, match=r"result\[0\].*RuntimeError: no x today") as caught:
        encode_result(ID, [Broken()])
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("levels", [100, 400])
def test_deep_nesting_that_is_allowed_comes_back(levels: int) -> None:
    """Lists and tuples of a few hundred levels work."""
    value = nested(levels)
    assert encode_result(ID, there_and_back(value)) == encode_result(ID, value)
    tuples = nested(levels // 2, lambda below: (below,))
    assert encode_result(ID, there_and_back(tuples)) == encode_result(ID, tuples)


# --- Hostile bytes ---


def test_any_changed_byte_is_noticed() -> None:
    """Each byte of a payload, and each of the id, is covered by the checksum."""
    payload = encode_call(ID, ("cat.jpg", (1, 2)), {"size": 128})
    for place in range(len(payload)):
        for change in (0x01, 0x80, 0xFF):
            broken = bytearray(payload)
            broken[place] ^= change
            with pytest.raises(CorruptPayload):
                decode_call(ID, bytes(broken))
    for place in range(len(ID)):
        other = bytearray(ID)
        other[place] ^= 1
        with pytest.raises(CorruptPayload):
            decode_call(bytes(other), payload)
    for length in range(len(payload)):
        with pytest.raises(CorruptPayload):
            decode_call(ID, payload[:length])


def check_harmless(body: bytes) -> None:
    """Decoding gives supported values or CorruptPayload, and nothing else ever."""
    try:
        value = decode_result(ID, sealed(body))
    except CorruptPayload:
        return
    encode_result(ID, value)


@settings(quick, max_examples=400)
@given(st.binary(max_size=60))
def test_garbage_is_harmless(body: bytes) -> None:
    """Random bytes."""
    check_harmless(body)


codes = st.sampled_from(list(Ext)) | st.integers(-128, 127)
exts = st.builds(lambda code, data: msgpack.ExtType(code, data) if code >= 0 else data, codes, st.binary(max_size=20))
tags = st.sampled_from([code for code in Ext if code >= Ext.TUPLE]).map(lambda code: msgpack.ExtType(code, b""))
plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(), st.text(), st.binary())
dtypes = st.sampled_from(["<i4", "|b1", "<U1", "<M8[ns]", "|S1", "|O", "<f8", "|V4", "<U0", ">U1", "<M8[7x]", "i4,i4"])
hostile = st.recursive(
    plain | exts | tags | dtypes,
    lambda below: st.one_of(
        st.lists(below, max_size=4),
        st.dictionaries(plain | exts | tags, below, max_size=3),
        st.dictionaries(tags, below, min_size=1, max_size=1),
        st.tuples(dtypes, st.lists(st.integers(-1, 2), max_size=2), st.binary(max_size=8))
        .map(list)
        .map(lambda parts: {msgpack.ExtType(Ext.NDARRAY, b""): parts}),
        st.tuples(dtypes, st.binary(max_size=8))
        .map(list)
        .map(lambda parts: {msgpack.ExtType(Ext.NUMPY_SCALAR, b""): parts}),
    ),
    max_leaves=10,
)


@settings(quick, max_examples=400)
@given(hostile)
def test_wrong_contents_of_extensions_are_harmless(value: Any) -> None:
    """Well-formed msgpack with tags in wrong places and wrong contents in leaves."""
    check_harmless(msgpack.packb(value, strict_types=True))


@quick
@given(values, st.data())
def test_a_changed_payload_with_a_right_checksum_is_harmless(value: Any, data: st.DataObject) -> None:
    """Payloads of real values, with a byte changed, cut or put in."""
    body = bytearray(encode_result(ID, value)[4:])
    place = data.draw(st.integers(0, len(body) - 1))
    match data.draw(st.sampled_from(["change", "cut", "put in"])):
        case "change":
            body[place] = data.draw(st.integers(0, 255))
        case "cut":
            del body[place]
        case _:
            body.insert(place, data.draw(st.integers(0, 255)))
    check_harmless(bytes(body))


TUPLE = b"\xc7\x00" + bytes([Ext.TUPLE])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xc1", b"\x01\x01", b"\x91", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xa1\xff"),
        *(
            b"\xc6\xff\xff\xff\xff",
            b"\xc9\xff\xff\xff\xff\x01",
            b"\x91" * 2000 + b"\x00",
            b"\x81" * 2000 + b"\x00",
        ),
        *(
            (b"\x81" + TUPLE + b"\x91") * 2000 + b"\x00",
            b"\x81" + TUPLE * 2000,
            b"\x81\x90\x01",
            b"\x81\x80\x01",
        ),
        *(
            TUPLE,
            b"\x91" + TUPLE,
            b"\x82" + (TUPLE + b"\x90") * 2,
            b"\x81\x01" + TUPLE,
            b"\x81" + TUPLE + b"\x80",
        ),
        b"\x81\xc7\x01" + bytes([Ext.TUPLE]) + b"x\x90",
        b"\x81" + TUPLE + b"\x91" + TUPLE,
        *(
            msgpack.packb(msgpack.ExtType(code, data))
            for code, data in [
                (0, b""),
                (11, b""),
                (99, b"x"),
                (127, b""),
                (Ext.DATE, b"2024-13-01"),
                (Ext.DATE, b"\xff"),
                (Ext.DATETIME, b""),
                (Ext.DATETIME, b"22024-01-01"),
                (Ext.DATETIME, b"02024-01-01T00:00[../../etc/passwd]"),
                (Ext.DATETIME, b"02024-01-01T00:00[a.b]"),
                (Ext.DATETIME, b"02024-01-01T00:00[No/Such]"),
                (Ext.DATETIME, b"02024-01-01T00:00[/etc/passwd]"),
                (Ext.DATETIME, b"02024-01-01T00:00[Europe]"),
                (Ext.DATETIME, b"02024-01-01T00:00[UTC"),
                (Ext.TIME, b"025:00"),
                (Ext.TIMEDELTA, b"\x7f" + b"\xff" * 11),
                (Ext.TIMEDELTA, b"short"),
                (Ext.UUID, b"x" * 15),
                (Ext.DECIMAL, b"one"),
                (Ext.DECIMAL, b"1e" + b"9" * 40),
                (Ext.COMPLEX, b"x"),
            ]
        ),
        *(
            msgpack.packb({msgpack.ExtType(code, b""): held})
            for code, held in [
                (Ext.SET, [1, 1]),
                (Ext.SET, [[]]),
                (Ext.FROZENSET, {}),
                (Ext.DATACLASS, []),
                (Ext.HASHABLE_FIELDS, 1),
                (Ext.NDARRAY, []),
                (Ext.NDARRAY, ["|O", [1], b"x" * 8]),
                (Ext.NDARRAY, ["<f8", [1 << 62, 1 << 62], b""]),
                (Ext.NDARRAY, ["<f8", [-1], b""]),
                (Ext.NDARRAY, ["<f8", [2], b"x" * 8]),
                (Ext.NDARRAY, ["<U1", [1], b"\xff" * 4]),
                (Ext.NDARRAY, ["|b1", [1], b"\x02"]),
                (Ext.NDARRAY, ["<f8", [1] * 999, b"x" * 8]),
                (Ext.NDARRAY, ["<f8", [True], b"x" * 8]),
                (Ext.NUMPY_SCALAR, ["<f8", b""]),
                (Ext.NUMPY_SCALAR, ["(9,9,9)f8", b""]),
                (Ext.NUMPY_SCALAR, ["|S999999999", b""]),
            ]
        ),
        msgpack.packb(
            {
                msgpack.ExtType(Ext.TUPLE, b""): [
                    {msgpack.ExtType(Ext.DATE, b"2024-01-01"): 1, msgpack.ExtType(Ext.DATE, b"20240101"): 2}
                ]
            }
        ),
    ],
)
def test_known_attacks_are_corrupt_payloads(body: bytes) -> None:
    """Lying headers, bombs, lone tags and bad contents, each with a right checksum."""
    with pytest.raises(CorruptPayload):
        decode_result(ID, sealed(body))


@pytest.mark.parametrize(
    "value",
    [None, [], [[]], [[], {}, 1], [{}, []], [[], []], [[], {1: 2}], [[], {b"x": 1}], {}, "ab", [1, {}]],
)
def test_a_value_that_is_no_call_is_corrupt(value: Any) -> None:
    """Only [arguments, keyword arguments with names] is a call."""
    with pytest.raises(CorruptPayload):
        decode_call(ID, packed(value))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("code", "held"),
    [
        (Ext.NDARRAY, ["<i4", [2**64 - 1] * 400_000, b""]),
        (Ext.NDARRAY, ["<i" + "9" * 4_000_000, [], b""]),
        (Ext.DATE, b"9" * 4_000_000),
        (Ext.DATETIME, b"02024-01-01[" + b"9" * 4_000_000),
        (Ext.DECIMAL, b"1" * 4_000_000 + b"x"),
    ],
)
def test_large_nonsense_is_refused_quickly_and_briefly(code: Ext, held: Any) -> None:
    """Four megabytes of garbage take neither minutes nor a message of that size."""
    if isinstance(held, bytes):
        payload = packed(msgpack.ExtType(code, held))
    else:
        payload = packed({msgpack.ExtType(code, b""): held})
    with pytest.raises(CorruptPayload) as caught:
        decode_result(ID, payload)
    assert len(str(caught.value)) < 500


def test_msgpack_s_own_timestamp_decodes_to_a_number() -> None:
    """msgpack decodes its own timestamps; none of its classes is returned."""
    assert decode_result(ID, packed(msgpack.Timestamp(5))) == 5.0


def test_equal_members_are_reported_not_lost() -> None:
    """A set in which an Enum member and its plain value meet does not silently lose one."""
    for value in ({Color.RED, "red"}, {Color.RED: 1, "red": 2}):
        with pytest.raises(CorruptPayload, match="equal"):
            there_and_back(value)


# --- NumPy ---


@needs_numpy
@pytest.mark.parametrize(
    "name",
    [
        "?",
        "i1",
        "u2",
        "<i4",
        ">i4",
        "i8",
        "f2",
        "f4",
        ">f8",
        "g",
        "c8",
        "c16",
        "S3",
        "U3",
        "M8[ns]",
        "m8[25s]",
    ],
)
def test_arrays_come_back_writable(name: str) -> None:
    """Each kind of dtype, in each shape and memory order, with equal bytes."""
    for shape in [(), (0,), (3,), (2, 3), (2, 0, 4), (1, 2, 3)]:
        array = np.arange(math.prod(shape)).reshape(shape).astype("i8").astype(name)
        for variant in (array, np.asfortranarray(array), array.T, array[..., ::-1] if shape else array):
            back = there_and_back(variant)
            assert type(back) is np.ndarray
            assert (back.dtype, back.shape) == (variant.dtype, variant.shape)
            assert back.tobytes() == variant.tobytes()
            assert back.flags.writeable
            assert back.flags.aligned
    back[...] = back


@needs_numpy
def test_scalars_of_numpy_come_back() -> None:
    """A NumPy scalar keeps its type; its texts become plain ones."""
    for value in (
        np.float64(1.5),
        np.int8(-3),
        np.bool_(True),
        np.complex64(1j),
        np.datetime64("2024-01-01", "s"),
    ):
        back = there_and_back({"v": (value, value)})["v"][1]
        assert type(back) is type(value)
        assert back == value
    assert type(there_and_back(np.str_(""))) is str
    assert there_and_back(np.bytes_(b"x")) == b"x"
    assert there_and_back({np.int64(5): 1}) == {5: 1}


@needs_numpy
@pytest.mark.parametrize(
    "make",
    [
        lambda: np.array([object()]),
        lambda: np.array([(1, 2)], "i4,i4"),
        lambda: np.ma.masked_array([1], [True]),
        lambda: np.zeros(2, "V3"),
    ],
)
def test_other_arrays_are_refused(make: Any) -> None:
    """Objects, structures and subclasses are refused, with their place."""
    with pytest.raises(PayloadError, match=r"args\[0\]\['a'\]: a numpy"):
        encode_call(ID, ({"a": make()},), {})


@needs_numpy
def test_without_numpy_an_array_is_a_corrupt_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer without NumPy says so."""
    payload = encode_result(ID, np.zeros(2))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(CorruptPayload, match="not installed"):
        decode_result(ID, payload)


# --- Casters ---

Hue = NewType("Hue", Color)


@pytest.mark.parametrize(
    "hint",
    [
        int,
        str,
        None,
        type(None),
        Any,
        object,
        list,
        dict,
        list[int],
        dict[str, int],
        tuple[int, ...],
        tuple[()],
        int | None,
        Optional[str],  # noqa: UP045
        Union[int, str],  # noqa: UP007
        Path,
        datetime,
        set[UUID],
        Sequence[Any],
        Literal["a", 1],
        Annotated[int, "x"],
        type[Color],
        "Color",
        ...,
        5,
        NewType("N", int),
    ],
)
def test_nothing_to_convert_costs_nothing(hint: Any) -> None:
    """Annotations without a class to rebuild, and things that are not annotations, have no caster."""
    assert caster(hint) is None


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Color, Color.RED),
        (Color, None),
        (Level, Level.LOW),
        (Access, Access.READ | Access.WRITE),
        (Planet, Planet.EARTH),
        (Hue, Color.RED),
        (Annotated[Color, "x"], Color.RED),
        (Optional[Color], Color.RED),  # noqa: UP045
        (Optional[Color], None),  # noqa: UP045
        (Color | None, Color.BLUE),
        (Color | Level, Level.HIGH),
        (Color | int, Color.RED),
        (Color | int, 5),
        (float | Level, 1),
        (Color | str, "green"),
        (list[Color] | Color, Color.RED),
        (list[Color] | Color, [Color.RED]),
        (list[Color], [Color.RED, Color.BLUE]),
        (list[Color], None),
        (tuple[Color, ...], (Color.RED, Color.BLUE)),
        (tuple[int, Color], (1, Color.BLUE)),
        (dict[Color, Level], {Color.RED: Level.LOW}),
        (Mapping[str, list[Color]], {"a": [Color.RED]}),
        (set[Color], {Color.RED}),
        (frozenset[Color], frozenset({Color.RED})),
        (Sequence[Color], (Color.RED,)),
        (Sequence[Color], [Color.RED]),
        (Iterable[Color], {Color.RED}),
        (Literal[Color.RED, 5], Color.RED),
        (Literal[Color.RED, 5], 5),
        (Point, Point(1, 2)),
        (Point | None, Point(1, 2)),
        (Point | dict, Point(1, 2)),
        (Point | dict, {"other": 1}),
        (Shape | Point, Point(1, 2)),
        (Shape | Point, Shape("s", Color.RED, [Point(1)])),
        (set[Point], {Point(1, 2), Point(3)}),
        (dict[Point, Point], {Point(1, 2): Point(3)}),
        (Shape, Shape("s", Color.BLUE, [Point(1), Point(2, 3)])),
        (Tree, Tree(Color.RED, [Tree(Color.BLUE), Tree(Color.RED, [], Tree(Color.BLUE))])),
        (Frozen, Frozen(Level.HIGH)),
        (Pair, Pair(Color.RED, 1)),
        (list[Pair], [Pair(Color.RED, 1)]),
    ],
    ids=str,
)
def test_declared_types_come_back(hint: Any, value: Any) -> None:
    """What is declared arrives as it was sent."""
    cast = caster(hint)
    assert cast is not None
    back = cast(there_and_back(value))
    assert same(back, value)
    assert same(cast(back), value)


def test_fields_that_init_does_not_take_are_kept() -> None:
    """A field with init=False has the value it was sent with, and its own type."""
    shape = Shape("s", Color.RED)
    shape.size = 99
    back = caster(Shape)(there_and_back(shape))  # type: ignore[misc]
    assert (back.size, back.color) == (99, Color.RED)


def test_a_field_that_the_sender_did_not_know_gets_its_default() -> None:
    """Jobs outlive the code that sent them: a new field with a default is not an error, an unknown one is."""
    cast = caster(Point)
    assert cast is not None
    assert cast({"x": 5}) == Point(5, 0)
    for wrong in ({"x": 1, "z": 1}, {}, 5, "text"):
        with pytest.raises(TypeError):
            cast(wrong)


def test_values_that_are_no_members_are_refused() -> None:
    """A value that no member has is an error, not a wrong member."""
    for hint in (Color, list[Color], dict[str, Color]):
        cast = caster(hint)
        assert cast is not None
        with pytest.raises(TypeError, match="not a value of Color"):  # what it is stays out of the log
            cast({Color: "no", list[Color]: ["no"]}.get(hint, {"k": "no"}))
    with pytest.raises(TypeError, match="alternatives"):
        caster(Color | Level)("no")  # type: ignore[misc]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a statement of Python 3.12")
def test_type_aliases_are_followed() -> None:
    """`type X = ...`, also one that names itself."""
    space: dict[str, Any] = {"Color": Color}
    exec("type Hue = Color\ntype Deep = list[Deep] | Color", space)
    assert caster(space["Hue"])("red") is Color.RED  # type: ignore[misc]
    assert caster(space["Deep"])("red") is Color.RED  # type: ignore[misc]


def paint(first: Color, /, second: "Color", *rest: Color, mode: Mode = Mode.FAST, n: int = 0, **more: Color) -> Point:
    """All kinds of parameters."""
    raise NotImplementedError


def test_arguments_are_converted_by_their_parameters() -> None:
    """By position, by name, and those that *args and **kwargs take."""
    calls = CallCaster(paint)
    args, kwargs = calls.cast(["red", "blue", "red"], {"mode": "fast", "n": 5, "other": "red", "first": "blue"})
    assert args == [Color.RED, Color.BLUE, Color.RED]
    assert kwargs == {"mode": Mode.FAST, "n": 5, "other": Color.RED, "first": Color.BLUE}
    assert type(kwargs["mode"]) is Mode
    assert calls.cast(["red"], {"second": "blue"}) == ([Color.RED], {"second": Color.BLUE})
    assert calls.return_caster is not None
    assert calls.return_caster({"x": 1, "y": 2}) == Point(1, 2)


def test_a_call_that_needs_nothing_is_left_alone() -> None:
    """Without a class to rebuild the very same objects come back."""

    def plain_task(a: int, b: str = "", *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    calls = CallCaster(plain_task)
    args, kwargs = [1, 2, 3, 4], {"b": 1}
    assert calls.cast(args, kwargs)[0] is args
    assert calls.cast(args, kwargs)[1] is kwargs
    assert calls.return_caster is None


def test_surplus_arguments_reach_the_function() -> None:
    """Too many arguments are the function's to refuse, not lost on the way."""

    def one(color: Color) -> None:
        raise NotImplementedError

    assert CallCaster(one).cast(["red", 2, 3], {"z": 1}) == ([Color.RED, 2, 3], {"z": 1})


def test_annotations_that_cannot_be_resolved_convert_nothing() -> None:
    """A name that only a type checker sees is not an error."""

    def unresolvable(a: "NoSuchName", color: Color) -> "Color":  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    for function in (unresolvable, len, print, dict, object()):
        calls = CallCaster(function)  # type: ignore[arg-type]
        assert calls.cast(["x", "red"], {}) == (["x", "red"], {})
        assert calls.return_caster is None


def test_an_argument_that_cannot_be_converted_is_named() -> None:
    """The error says which parameter it was."""
    with pytest.raises(TypeError, match="argument 'second': a str that is not a value of Color"):
        CallCaster(paint).cast(["red", "green"], {})
    with pytest.raises(TypeError, match="argument 'mode'"):
        CallCaster(paint).cast([], {"mode": "slow"})
