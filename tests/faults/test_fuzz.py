"""Fuzzing of everything that decodes bytes from outside: they are decoded, or refused with the promised error.

TASKQ_FUZZ says how many inputs each property gets. `tests/faults/fuzz_atheris.py` drives the same properties by coverage.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import random
import re
import shutil
import socket
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple
from uuid import UUID

import msgpack
import proof
import pytest
from apps import jobs
from asked import take_spooled
from fleet import Fleet, use
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from taskq.broker.loop import Broker
from taskq.model import attempt
from taskq.model import spec as spec_module
from taskq.model.attempt import Attempts, pack_failure
from taskq.model.errors import ConfigError, ProtocolError, TaskQError
from taskq.model.job import JobError
from taskq.model.limits import (
    MAX_ENVELOPE_BYTES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_FRAME_BYTES,
    MAX_OUTPUT_LINE_BYTES,
    MAX_TRACEBACK_CHARS,
)
from taskq.model.settings import Settings
from taskq.model.spec import Spec
from taskq.protocol import frames as frames_module
from taskq.protocol import spool
from taskq.protocol.codec import CorruptPayload, Ext, decode_call, decode_result, encode_call, encode_result
from taskq.protocol.frames import Decoder, check_hello, frame, hello, split
from taskq.protocol.link.flight_recorder import FlightRecord, read_flight_records
from taskq.protocol.link.output import RECORD_MARK, LineCutter, fields_of_line
from taskq.protocol.link.reports import (
    BootFailed,
    Checkpoint,
    Children,
    Declared,
    Items,
    JobsProgress,
    read_report,
)
from taskq.protocol.link.unsent import Unsent
from taskq.protocol.ops import Op
from taskq.protocol.submissions import submission_of
from taskq.system.directory import Directory
from taskq.system.place import Place
from taskq.telemetry.files import log_path
from taskq.telemetry.reader import Filter, read
from taskq.telemetry.setup import configure

FRAMES = int(os.environ.get("TASKQ_FUZZ", "200"))
#: The slowest property takes 20 ms for an input, on a busy machine.
pytestmark = [pytest.mark.timeout(180 + FRAMES // 10), pytest.mark.not_on_postgres("no queue is asked")]

ID = bytes(range(16))
SPEC = ["add", "default", 3, None, 3]
#: The most that decoding may take, in times of what is decoded: of the largest envelope, of a payload.
ENVELOPE_GROWTH = 100
PAYLOAD_GROWTH = 128


def fuzz(share: int = 1, **inputs: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a property of a function that is given inputs: FRAMES of them, or a share of that if it is slow."""
    unchecked = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    chosen = settings(max_examples=max(1, FRAMES // share), deadline=None, suppress_health_check=unchecked)
    return lambda check: chosen(given(**inputs)(check))


def counted() -> None:
    """One more input."""
    proof.count("fuzzed frames")


def scratch() -> Path:
    """A folder for all of this run; properties are not run once by pytest, so its fixtures do not fit them."""
    if not _folder:
        _folder.append(Path(tempfile.mkdtemp(prefix="taskq_fuzz")))
        atexit.register(shutil.rmtree, _folder[0], ignore_errors=True)
    return _folder[0]


_folder: list[Path] = []


# -- what is fed: true bytes, then damaged; true envelopes with wrong fields; garbage


class Edit(NamedTuple):
    """A damage."""

    kind: str
    at: int
    length: int
    other: int
    data: bytes


edits = st.lists(
    st.builds(
        Edit,
        st.sampled_from(["flip", "cut", "insert", "duplicate", "swap", "end"]),
        st.integers(0, 1 << 16),
        st.integers(1, 64),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=16),
    ),
    max_size=5,
)


def damaged(data: bytes, damages: list[Edit]) -> bytes:
    """The bytes after some damages."""
    for edit in damages:
        at, other = sorted((edit.at % (len(data) + 1), edit.other % (len(data) + 1)))
        chunk, end = data[at : at + edit.length], at + edit.length
        match edit.kind:
            case "flip":
                data = data[:at] + bytes(byte ^ edit.data[0] for byte in chunk[:1]) + data[at + 1 :]
            case "cut":
                data = data[:at] + data[end:]
            case "insert":
                data = data[:at] + edit.data + data[at:]
            case "duplicate":
                data = data[:at] + chunk + data[at:]
            case "swap" if end <= other:
                data = (
                    data[:at] + data[other : other + edit.length] + data[end:other] + chunk + data[other + len(chunk) :]
                )
            case "end":
                data = data[:other]
    return data


def damaged_from(true: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """True bytes, some of them damaged."""
    return st.builds(damaged, true, edits)


def cut(data: bytes, chance: random.Random) -> list[bytes]:
    """The same bytes in pieces."""
    ends = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, 12)))
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


ERROR = JobError("ValueError", "no such cat", "Traceback ...", None, "SIGKILL", ["a", "line"])
OUTCOMES = [
    attempt.pack_success(1.5, 0.25, encode_result(ID, {"a": [1, None]})),
    attempt.pack_success(1.5, 0.25, None),
    attempt.pack_failure(1.5, 0.25, ERROR),
    attempt.pack_failure(None, None, ERROR),
    attempt.pack_success(1.5, 0.25, None, 3),
    attempt.pack_failure(1.5, 0.25, ERROR, 2.5, attempt.Ran(3, 40_000, 1 << 20)),
]
CALL = encode_call(ID, [1], {"b": "two"})
SUBMIT = [Op.SUBMIT, 7, SPEC, False, True, ID, [len(CALL)]]
FROM_CLIENTS = [
    frame(SUBMIT, [CALL]),
    frame([Op.SUBMIT, 8, SPEC, True, False, ID + ID[::-1], [len(CALL), 2]], [CALL, b"xx"]),
    frame([Op.WATCH, ID * 3]),
    frame([Op.INFO, 9, ID]),
    frame([Op.WHY, 9, ID]),
    frame([Op.CANCEL, 10, ID]),
    frame([Op.READ_ITEMS, 12, ID, 0]),
    frame([Op.STATUS, 11]),
    frame([Op.JOBS, 12, "failed", "add", None, ID, 50]),
    frame([Op.RETRY, 13, ID]),
    frame([Op.RETRY_ALL, 14, None, "mail", None]),
    frame([Op.PURGE, 15, ID]),
    frame([Op.PURGE_ALL, 16, "failed", None, None, 1e9, [0, 7]]),
    frame([Op.PAUSE, 17, ["mail"], True, "me"]),
]
FROM_OTHERS = [
    frame([Op.ERROR, 1, "ConfigError", "it makes no sense"]),
    frame([Op.OK, 2, None], [msgpack.packb({"broker": {"pid": 1}})]),
    *(frame([Op.RESULT, ID, "succeeded"], [one]) for one in OUTCOMES),
    frame([Op.READY, 99, []]),
    frame([Op.BOOT_FAILED], [pack_failure(None, None, JobError("ImportError", "no module", "Traceback ..."))]),
    frame([Op.OUTCOMES, [1, 2], [0, 1], [250, 7], [len(OUTCOMES[0]), len(OUTCOMES[2])]], [OUTCOMES[0], OUTCOMES[2]]),
    frame([Op.STARTED, 3]),
    frame([Op.ITEMS, ID, 0, [1, 2]], [b"a", b"bc"]),
]
#: What consumers send: envelopes and bodies.
REPORTS = [
    ([Op.READY, 99, [8]], b"add\nsend"),
    ([Op.BOOT_FAILED], OUTCOMES[2]),
    ([Op.OUTCOMES, [1, 2], [0, 1], [250, 7], [len(OUTCOMES[0]), len(OUTCOMES[2])]], OUTCOMES[0] + OUTCOMES[2]),
    ([Op.ITEMS, ID, 0, [1, 2]], b"abc"),
    ([Op.PROGRESS, [[ID, 4, 10, "half"]]], b""),
    ([Op.CHECKPOINT, ID], b"kept"),
    ([Op.DECLARED, "shop", [1, 2]], b"abc"),
    ([Op.CHILDREN, 1, [[SPEC, None, 1]], 0], ID + (3).to_bytes(4, "big") + b"abc"),
]

chances = st.randoms(use_true_random=False)
transcripts = st.lists(st.sampled_from(FROM_CLIENTS + FROM_OTHERS), max_size=5).map(
    lambda sent: hello(1) + b"".join(sent)
)
large = st.builds(
    lambda unit, size: unit * (size // len(unit)),
    st.sampled_from([ID, "\x01", "a", "\U0001f408"]),
    st.sampled_from([300, 8_000, 15_000, 60_000]),
)
leaves = st.one_of(
    *(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.integers(-2, 20),
        st.floats(),
        st.sampled_from(Op),
    ),
    *(
        st.text(max_size=12),
        st.binary(max_size=20),
        st.just(ID),
        st.builds(msgpack.ExtType, st.integers(0, 127), st.just(b"")),
    ),
)
small = st.builds(lambda value: value, leaves)  # so that what is large is as likely as all of these together
anything = st.recursive(
    small | large,
    lambda below: (
        st.lists(below, max_size=5) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), below, max_size=3)
    ),
    max_leaves=8,
)


def with_wrong_fields(true: list[Any]) -> st.SearchStrategy[list[Any]]:
    """A list in which some items are arbitrary or missing, or which has more items."""

    def changed(changes: dict[int, Any], length: int, more: list[Any]) -> list[Any]:
        return ([changes.get(place, field) for place, field in enumerate(true)] + more)[:length]

    places = st.integers(0, len(true) - 1)
    lengths = st.just(99) | st.integers(0, len(true) + 2)
    return st.builds(changed, st.dictionaries(places, anything, max_size=2), lengths, st.lists(anything, max_size=2))


specs = with_wrong_fields(SPEC) | st.builds(
    lambda retries, timeout, crashes: [*SPEC[:2], retries, timeout, crashes],
    *[st.sampled_from([0, 1, 3, -1, 1.0, 0.5, True, False, None, "1", 2**63, float("nan"), float("inf")])] * 3,
)
submits = st.one_of(
    with_wrong_fields(SUBMIT),
    st.builds(lambda spec: [*SUBMIT[:2], spec, *SUBMIT[3:]], specs),
    st.builds(
        lambda ids, lengths: [*SUBMIT[:5], ids * len(lengths), lengths], st.just(ID), st.lists(leaves, max_size=4)
    ),
)
envelopes = st.one_of(
    *(submits, with_wrong_fields([Op.HELLO, frames_module.MAGIC, 1, 1, 1]), with_wrong_fields([Op.WATCH, ID * 2])),
    *(with_wrong_fields([op, 5, ID]) for op in (Op.INFO, Op.CANCEL, Op.STATUS, Op.RELOAD, Op.STOP, Op.RESULT)),
    *(with_wrong_fields([op, 5, ID]) for op in (Op.RETRY, Op.PURGE)),
    with_wrong_fields([Op.JOBS, 5, "failed", "add", None, 7, 50]),
    with_wrong_fields([Op.RETRY_ALL, 5, None, "mail", [0, 7]]),
    with_wrong_fields([Op.PURGE_ALL, 5, "succeeded", None, None, 1e9, [0, 7]]),
    with_wrong_fields([Op.PAUSE, 5, ["mail"], True, "me"]),
    st.lists(anything, max_size=6),
)


def framed(envelope: bytes, body: bytes = b"") -> bytes:
    """A frame with right lengths around any bytes."""
    return Struct("!II").pack(4 + len(envelope) + len(body), len(envelope)) + envelope + body


odd_frames = st.builds(lambda envelope, body: framed(msgpack.packb(envelope), body), envelopes, st.binary(max_size=40))
streams = st.one_of(
    damaged_from(transcripts),
    st.builds(
        lambda frames: hello(1) + b"".join(frames), st.lists(odd_frames | st.sampled_from(FROM_CLIENTS), max_size=4)
    ),
    st.builds(lambda start, garbage: start + garbage, transcripts | st.just(b""), st.binary(max_size=300)),
    st.binary(max_size=100).map(framed),
)

#: What msgpack decodes to many times its size: nested, or side by side.
BOMBS = [
    b"\x80",
    b"\x90",
    b"\x91",
    b"\x81\xa0",
    b"\x81\xa1a",
    b"\x81\xc4\x00",
    b"\x81\x01",
    b"\xa0",
    b"\xc4\x00",
    b"\xc7\x00\x05",
]
TAGS = [b"\x81" + msgpack.packb(msgpack.ExtType(code, b"")) for code in Ext if code >= Ext.TUPLE]
LEAVES = [msgpack.packb(msgpack.ExtType(code, b"1")) for code in (Ext.DECIMAL, Ext.PATH, Ext.BYTEARRAY, Ext.BIG_INT)]


def bombs(units: list[bytes], size: int) -> st.SearchStrategy[bytes]:
    """An array of many nested values, as large as is allowed."""

    def made(unit: bytes, depth: int, leaf: bytes) -> bytes:
        one = unit * depth + leaf
        rows = [one * (8_000 if size > 8_000 * len(one) else max(1, (size - 100) // len(one)))]
        rows *= max(1, (size - 100) // (len(rows[0]) + 3))
        items = len(rows[0]) // len(one)
        return (
            b"\xdc"
            + (1 + len(rows)).to_bytes(2, "big")
            + b"\x01"
            + b"".join(b"\xdc" + items.to_bytes(2, "big") + row for row in rows)
        )

    depths = st.sampled_from([0, 1, 2, 5, 100, 400, 1_000, 1_100])
    return st.builds(made, st.sampled_from(units), depths, st.sampled_from([b"\xc0", *units]))


def peak_bytes(decode: Callable[[], object]) -> int:
    """How much memory decoding needs at most. The promised errors do not count as failures."""
    tracemalloc.start()
    try:
        with suppress(TaskQError, CorruptPayload):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# -- frames


class Told(NamedTuple):
    """What a decoder made of a stream."""

    messages: list[bytes]  # each packed again, so that NaN equals itself
    failed: bool
    unfinished: bool


def packed(envelope: list[Any], body: memoryview) -> bytes:
    """A message as bytes to compare. What is nested too deep for the packer is compared as text."""
    try:
        return framed(msgpack.packb(envelope), bytes(body))
    except ValueError:
        return repr(envelope).encode() + bytes(body)


def told(pieces: list[bytes]) -> Told:
    """Feeds a stream in pieces."""
    decoder, messages = Decoder(), list[bytes]()
    for piece in pieces:
        try:
            messages += [packed(envelope, body) for envelope, body in decoder.feed(piece)]
        except ProtocolError as error:
            assert len(str(error)) < 300
            with suppress(ProtocolError):
                decoder.feed(piece)  # of no use, but it ends
            return Told(messages, True, False)
        assert len(decoder._rest) <= MAX_FRAME_BYTES + 8
    return Told(messages, False, decoder.has_unfinished_frame)


def one_by_one(stream: bytes) -> list[bytes]:
    """A stream cut at the ends of its valid frames, so that no message can be lost to a later error."""
    pieces, at = [], 0
    while len(stream) - at >= 8:
        end = at + max(8, 4 + int.from_bytes(stream[at : at + 4], "big"))
        pieces.append(stream[at:end])
        at = end
    return [*pieces, stream[at:]]


@fuzz(stream=streams, chance=chances)
def test_a_stream_is_read_the_same_however_it_is_cut(stream: bytes, chance: random.Random) -> None:
    """The same messages and the same verdict; an error takes no more with it than the messages of its own piece."""
    counted()
    due = told(one_by_one(stream))
    for pieces in (cut(stream, chance), [stream]):
        found = told(pieces)
        assert found.failed == due.failed
        assert due.messages[: len(found.messages)] == found.messages
        assert due.failed or found == due


@fuzz(stream=damaged_from(transcripts))
def test_what_stands_before_garbage_is_reported(stream: bytes) -> None:
    """Byte by byte, every message before the first wrong byte comes out, and comes out the same when sent on."""
    counted()
    found = told([bytes([byte]) for byte in stream])
    assert found.messages == told(one_by_one(stream)).messages
    for message in found.messages:
        assert told([message]) == Told([message], False, False)


@fuzz(share=10, bomb=bombs(BOMBS, MAX_ENVELOPE_BYTES), damages=edits)
def test_the_memory_that_a_frame_can_take(bomb: bytes, damages: list[Edit]) -> None:
    """However its msgpack is nested, a frame takes at most a hundred times the largest envelope."""
    counted()
    data = framed(damaged(bomb, damages)[:MAX_ENVELOPE_BYTES])
    assert peak_bytes(lambda: Decoder().feed(data)) <= ENVELOPE_GROWTH * MAX_ENVELOPE_BYTES


@fuzz(header=st.binary(min_size=8, max_size=8), more=st.integers(0, 1 << 20))
def test_the_memory_that_a_header_can_take(header: bytes, more: int) -> None:
    """What a header announces is not set aside, and no more is kept than a frame."""
    counted()
    assert peak_bytes(lambda: Decoder().feed(header)) < 10_000
    announced = int.from_bytes(header[1:4], "big") % MAX_FRAME_BYTES  # a true one
    decoder = Decoder()
    with suppress(ProtocolError):
        decoder.feed(Struct("!II").pack(announced, 4) + bytes(min(more, announced)))
    assert len(decoder._rest) <= announced + 8


@fuzz(lengths=st.lists(leaves | st.lists(leaves, max_size=2), max_size=6), body=st.binary(max_size=60))
def test_lengths_cut_a_body_or_are_refused(lengths: list[Any], body: bytes) -> None:
    """The parts have the lengths, and are the body."""
    counted()
    try:
        parts = split(memoryview(body), lengths)
    except ProtocolError:
        return
    assert [len(part) for part in parts] == lengths
    assert b"".join(parts) == body


@fuzz(envelope=with_wrong_fields([Op.HELLO, frames_module.MAGIC, 1, 1, 1]) | st.lists(anything, max_size=6))
def test_hellos(envelope: list[Any]) -> None:
    """A version that both speak, or an error that is short enough to be told."""
    counted()
    try:
        version = check_hello(envelope)
    except ProtocolError as error:
        assert len(str(error)) < 300
        return
    assert frames_module.VERSIONS[0] <= version <= frames_module.VERSIONS[1]


@fuzz(envelope=submits, body=st.just(CALL) | st.binary(max_size=40))
def test_submissions(envelope: list[Any], body: bytes) -> None:
    """A submission with as many ids as payloads, or an error."""
    counted()
    try:
        submission = submission_of(None, envelope, memoryview(body))
    except (ProtocolError, ConfigError):
        return
    assert all(len(job_id) == 16 for job_id in submission.ids)
    assert b"".join(submission.payloads) == body
    assert len(submission.payloads) == len(submission.ids) > 0
    assert Spec.from_wire(submission.spec.to_wire()) == submission.spec


@st.composite
def reports(draw: st.DrawFn) -> tuple[list[Any], bytes]:
    """A report, and some damage: to its fields, in the columns or rows of one, or to its body."""
    envelope, body = draw(st.sampled_from(REPORTS))
    match draw(st.integers(0, 3)):
        case 0:
            envelope = draw(with_wrong_fields(envelope))
        case 1 if columns := [place for place, field in enumerate(envelope) if isinstance(field, list)]:
            place = draw(st.sampled_from(columns))
            inside = draw(with_wrong_fields(envelope[place]))
            if inside and isinstance(inside[0], list) and inside[0] and draw(st.booleans()):
                inside = [draw(with_wrong_fields(inside[0])), *inside[1:]]
            envelope = [*envelope[:place], inside, *envelope[place + 1 :]]
        case 2:
            body = draw(st.binary(max_size=60) | damaged_from(st.just(body)))
    return envelope, body


@fuzz(told=reports())
def test_reports(told: tuple[list[Any], bytes]) -> None:
    """What a consumer seems to say is a report with all that its kind promises, or refused with a short error."""
    counted()
    envelope, body = told
    assume(envelope and isinstance(envelope[0], int))  # what a decoder lets pass
    try:
        report = read_report(envelope, memoryview(body))
    except (ProtocolError, ConfigError) as error:
        assert len(str(error)) < 2_000
        return
    match report:
        case Attempts(numbers, verdicts, durations_us, outcomes):
            assert len(numbers) == len(verdicts) == len(durations_us) == len(outcomes)
            assert {type(number) for number in [*numbers, *durations_us]} <= {int}
            assert b"".join(outcomes) == body
        case Items(_, _, payloads) | Declared(_, payloads):
            assert b"".join(payloads) == body
        case JobsProgress(by_job):
            assert all(isinstance(job_id, bytes) and progress.describe() for job_id, progress in by_job.items())
        case Checkpoint(_, data):
            assert data == body
        case Children(_, jobs):
            assert all(len(job_id) == 16 for job_id in jobs.ids)
        case BootFailed(error):
            assert isinstance(error.message, str)


# -- descriptions of jobs


def verdict(fields: object) -> str:
    """A job's description after decoding, or that it is refused."""
    try:
        spec = Spec.from_wire(fields)
    except ConfigError as error:
        return type(error).__name__
    assert Spec.from_wire(spec.to_wire()) == spec
    return repr(spec)


def equals(field: Any) -> Any:
    """What is equal to a field and of another type."""
    return int(field) if isinstance(field, bool) or (isinstance(field, float) and field.is_integer()) else field


@fuzz(fields=specs | anything)
def test_descriptions(fields: object) -> None:
    """Decoded or refused; and the same when others, equal but of other types, came before."""
    counted()
    spec_module._spec.cache_clear()
    alone = verdict(fields)
    spec_module._spec.cache_clear()
    if isinstance(fields, list):
        verdict([equals(field) for field in fields])
    assert verdict(fields) == alone


# -- outcomes


def is_proper(found: attempt.Outcome) -> bool:
    """Whether all has the types that outcomes have: only then can it be packed again."""
    texts = found.error is None or all(
        isinstance(text, str) and len(text) <= most  # longer ones are cut when they are packed
        for text, most in zip(found.error.to_wire(), (200, MAX_ERROR_MESSAGE_CHARS, MAX_TRACEBACK_CHARS), strict=False)
    )
    lines = found.error is None or (
        isinstance(found.error.output, list)
        and all(isinstance(line, str) and len(line) <= MAX_OUTPUT_LINE_BYTES for line in found.error.output)
    )
    return texts and lines and isinstance(found.result, bytes | None)


@fuzz(
    data=st.binary(max_size=80)
    | damaged_from(st.sampled_from(OUTCOMES))
    | with_wrong_fields([1.5, 0.2, b"r", ERROR.to_wire()]).map(msgpack.packb)
    | with_wrong_fields([1.5, 0.2, b"r", ERROR.to_wire(), 2.5, 3]).map(msgpack.packb)
)
def test_outcomes(data: bytes) -> None:
    """An outcome that packs to the same, or a ProtocolError; `failure_in` says the same of it."""
    counted()
    try:
        found = attempt.unpack(data)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            attempt.failure_in(data)
        return
    if found.error is None:
        with pytest.raises(ProtocolError):
            attempt.failure_in(data)
    if is_proper(found):
        again = (
            attempt.pack_success(found.started_at or 0.0, found.duration_s or 0.0, found.result)
            if found.error is None
            else attempt.pack_failure(found.started_at, found.duration_s, found.error)
        )
        assert repr(attempt.unpack(again).error) == repr(found.error)


@fuzz(share=50, bomb=bombs(BOMBS, 200_000))
def test_the_memory_that_an_outcome_can_take(bomb: bytes) -> None:
    """A multiple of its own size, and of no more."""
    counted()
    assert peak_bytes(lambda: attempt.unpack(bomb)) <= PAYLOAD_GROWTH * len(bomb)


# -- payloads


def sealed(body: bytes) -> bytes:
    """A payload with a right checksum around any bytes."""
    return zlib.crc32(body, zlib.crc32(ID)).to_bytes(4, "big") + body


VALUES = [
    *([1, {"a": (1, 2.5), "b": {3}}], {"when": datetime(2024, 1, 1, tzinfo=UTC), "day": date(2024, 2, 29)}),
    *([Decimal("1.50"), UUID(int=5), timedelta(1, 2, 3), 1j], [Path("/a/b"), bytearray(b"x"), frozenset({(1,), 2})]),
    *(1 << 80, {(1, "a"): [None, True]}, "text" * 20, b"bytes", [[[[[]]]]]),
]
bodies = st.one_of(
    st.binary(max_size=60),
    damaged_from(st.sampled_from([encode_result(ID, value)[4:] for value in VALUES])),
    damaged_from(st.sampled_from([encode_call(ID, [value], {"x": value})[4:] for value in VALUES])),
    st.lists(st.sampled_from([*BOMBS, *TAGS, *LEAVES, b"\x92", b"\xc0", b"\x05", b"\xa1a"]), max_size=30).map(b"".join),
)


def is_same(one: Any, other: Any, encode: Callable[[Any], bytes]) -> bool:
    """Whether two values are the same, NaN and arrays, which are not equal to themselves, included."""
    return encode(one) == encode(other) or repr(one) == repr(other) or bool(one == other)


@fuzz(body=bodies)
def test_results_in_payloads(body: bytes) -> None:
    """A value that encodes again to the same value, or a CorruptPayload."""
    counted()
    try:
        value = decode_result(ID, sealed(body))
    except CorruptPayload:
        return
    again = decode_result(ID, encode_result(ID, value))
    assert is_same(value, again, lambda made: encode_result(ID, made))


@fuzz(body=bodies | bodies.map(lambda body: b"\x92\x91" + body + b"\x80"))
def test_calls_in_payloads(body: bytes) -> None:
    """Arguments that encode again to the same arguments, or a CorruptPayload."""
    counted()
    try:
        call = decode_call(ID, sealed(body))
    except CorruptPayload:
        return
    again = decode_call(ID, encode_call(ID, *call))
    assert is_same(call, again, lambda made: encode_call(ID, *made))


@fuzz(
    payload=damaged_from(st.sampled_from([encode_result(ID, value) for value in VALUES])), job_id=st.binary(max_size=20)
)
def test_checksums_of_payloads(payload: bytes, job_id: bytes) -> None:
    """What was damaged on its way, or belongs to another job, is found by its checksum."""
    counted()
    whole = payload in [encode_result(ID, value) for value in VALUES]
    for of, is_right in ((ID, whole), (job_id, whole and job_id == ID)):
        try:
            decode_result(of, payload)
            assert is_right or zlib.crc32(payload[4:], zlib.crc32(of)) == int.from_bytes(payload[:4], "big")
        except CorruptPayload:
            assert not is_right


@fuzz(share=25, bomb=bombs([*BOMBS, *TAGS, *LEAVES], 60_000))
def test_the_memory_that_a_payload_can_take(bomb: bytes) -> None:
    """A multiple of its own size, and of no more."""
    counted()
    assert peak_bytes(lambda: decode_result(ID, sealed(bomb))) <= PAYLOAD_GROWTH * len(bomb) + 100_000


# -- what consumers print


printed = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.sampled_from(
            [b"\x1b", b"\x1b[0m", b"[", b"31m", b"0", b"m", b"]", b"\x07", b"\x1e", b"\r", b"\n", b"\xff", b"a", b"\\"]
        ),
        max_size=40,
    ).map(b"".join),
    st.builds(
        lambda start, byte, times, end: start + byte * times + end,
        st.binary(max_size=5),
        st.sampled_from([b"a", b"\xc3\xa9", b"\x1b[0m"]),
        st.integers(MAX_OUTPUT_LINE_BYTES // 2 - 4, MAX_OUTPUT_LINE_BYTES + 4),
        st.binary(max_size=20),
    ),
)


COLOUR = re.compile(r"\x1b\[[0-9]+m")


def lines_of(pieces: list[bytes]) -> list[str]:
    """All lines of an output."""
    cutter = LineCutter()
    lines = []
    for piece in pieces:
        lines += cutter.feed(piece)
        assert len(cutter._rest) <= MAX_OUTPUT_LINE_BYTES
    return lines + cutter.flush()


@fuzz(data=st.lists(printed, max_size=4).map(b"\n".join), chance=chances)
def test_output_is_the_same_however_it_is_cut(data: bytes, chance: random.Random) -> None:
    """One line for each line, of bounded length."""
    counted()
    lines = lines_of([data])
    assert lines == lines_of(cut(data, chance))
    assert len(lines) == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    assert all("\n" not in line and len(line) <= 4 * MAX_OUTPUT_LINE_BYTES for line in lines)
    assert not any(COLOUR.search(line) for line in lines if not line.startswith(RECORD_MARK))


NAMES = [
    "level",
    "event",
    "message",
    "task",
    "job_id",
    "self",
    "method_name",
    "exc_info",
    "args",
    "positional_args",
    "name",
    "",
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["\ud800", "info", "\x1b[31m"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)
records = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), json_values, max_size=5).map(json.dumps)
nested = st.builds(
    lambda one, depth: one[0] * depth + one[1] * depth, st.sampled_from(["[]", ('{"a":', "}")]), st.integers(1, 1_200)
)
json_lines = st.one_of(
    *(records, damaged_from(records.map(str.encode)).map(lambda data: data.decode("utf-8", "backslashreplace"))),
    st.builds('{{"{}":{}}}'.format, st.sampled_from(NAMES), nested | st.just("9" * 5_000)),
    *(nested, st.text(max_size=40)),
)


def check_loggable(line: str, log: Any) -> None:
    """A line's fields are those of a log line, and forge none of the broker's own."""
    level, fields = fields_of_line(line)
    assert level in ("debug", "info", "warning", "error")
    assert isinstance(fields["message"], str)
    assert not fields.keys() & {"timestamp", "level", "event", "queue", "task", "job_id", "attempt", "consumer", "pid"}
    getattr(log, level)("job.log", queue="default", task="add", **fields)


@fuzz(line=json_lines, is_record=st.booleans())
def test_lines_of_output_can_be_logged(line: str, is_record: bool) -> None:
    """Whatever a job prints, the broker's logger takes it."""
    counted()
    assume("\n" not in line)
    [told_line] = lines_of([(RECORD_MARK * is_record + line).encode("utf-8", "backslashreplace") or b"x"])
    check_loggable(told_line, by_hand().log)


# -- files


LOG_LINE = b'{"timestamp":"2026-05-09T07:35:25.123456Z","level":"info","event":"job.failed","task":"add","job_id":"00"}'
FILTERS = [
    *(Filter(), Filter(task="add"), Filter(job_id="00"), Filter(event="job.*"), Filter(level="info")),
    Filter("add", "00", "*", "debug", datetime(2026, 1, 1, tzinfo=UTC)),
]
log_lines = (
    st.binary(max_size=60)
    | damaged_from(st.just(LOG_LINE))
    | json_lines.map(lambda line: line.encode("utf-8", "replace"))
)


@fuzz(lines=st.lists(log_lines, max_size=6), wanted=st.sampled_from(FILTERS), last=st.none() | st.integers(0, 9))
def test_logs(lines: list[bytes], wanted: Filter, last: int | None) -> None:
    """Each line of a log becomes an event, of some sort."""
    counted()
    path = log_path(scratch() / "logs")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines))
    events = list(read(scratch() / "logs", wanted, last))
    assert all(isinstance(event, dict) for event in events)
    due = sum(bool(line) for line in b"\n".join(lines).split(b"\n"))
    assert len(events) <= due if wanted != Filter() else len(events) == min(due, due if last is None else last)


@fuzz(
    data=st.binary(max_size=200)
    | st.lists(st.sampled_from([bytes(32), ID + b"\0\0\0\1" + bytes(12), b"\xff" * 32]), max_size=9).map(b"".join),
    damages=edits,
)
def test_flight_records(data: bytes, damages: list[Edit]) -> None:
    """Jobs and numbers of attempts, no more than there is room for."""
    counted()
    path = scratch() / "running.map"
    path.write_bytes(data := damaged(data, damages))
    found = read_flight_records(path)
    assert len(found) <= len(data) // 32
    for record in found:
        assert record.attempt > 0
        assert record == FlightRecord(record.job_id, record.attempt, record.consumer)
        assert Struct(">16sII").pack(record.job_id, record.attempt, record.consumer or 0) in data


@fuzz(
    data=st.binary(max_size=100)
    | damaged_from(st.sampled_from(FROM_CLIENTS))
    | odd_frames
    | submits.map(lambda envelope: framed(msgpack.packb(envelope), CALL))
)
def test_spooled_files(data: bytes) -> None:
    """The broker takes a file in or puts it aside, and goes on."""
    counted()
    with by_hand() as broker:
        folder = broker.directory.spool
        path = folder / f"{ID.hex()}.jobs"
        path.write_bytes(data)
        assert list(spool.spooled(folder)) == [(path, [data], False)]
        assert (ID in spool.find(folder, [ID])) == (ID in data)
        take_spooled(broker.broker._engine.committer)
        assert not list(spool.spooled(folder))
        path.with_suffix(".bad").unlink(missing_ok=True)


# -- memory that a process has scribbled over


_context = multiprocessing.get_context("spawn")
_unsent = Unsent(_context)
counts = st.integers(0, 5) | st.integers(240, 260) | st.integers(0, 2**64 - 1)
numbers = st.integers(0, 5) | st.integers(0, 2**64 - 1)


@fuzz(
    count=counts, rows=st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=6), body=st.binary(max_size=30)
)
def test_outcomes_in_shared_memory(count: int, rows: list[tuple[int, ...]], body: bytes) -> None:
    """As many outcomes as there are numbers, or a ProtocolError, and little memory."""
    counted()
    data = count.to_bytes(8, "little") + b"".join(Struct("=4Q").pack(*row) for row in rows)
    whole = memoryview(_unsent._memory).cast("B")
    whole[:8192] = bytes(8192)
    whole[: len(data)] = data
    _unsent._body[: len(body)] = body
    try:
        attempts = _unsent.read()
    except ProtocolError:
        return
    assert len({len(column) for column in attempts}) == 1
    assert len(attempts.numbers) == min(count, 250)
    assert sum(map(len, attempts.outcomes)) <= len(_unsent._body)
    assert b"".join(attempts.outcomes).startswith(body[: sum(map(len, attempts.outcomes))])


@fuzz(share=10, seed=st.integers(0, 1 << 32))
def test_shared_memory_full_of_noise(seed: int) -> None:
    """Every byte of it."""
    counted()
    whole = memoryview(_unsent._memory).cast("B")
    whole[:] = random.Random(seed).randbytes(len(whole))
    with suppress(ProtocolError):
        _unsent.read()


# -- a broker


class BrokerByHand:
    """A broker without consumers, whose loop the test turns, and a client of it that behaves."""

    def __init__(self, home: Path) -> None:
        self.directory = Directory(home).create()
        self.log, self._fanout = configure(home, "json", "debug", stderr_fd=-1)
        self.broker = Broker(
            Place(self.directory), "none:q", "fuzz", Settings(consumers=1, durability="memory"), self.log
        )
        self.broker._guardian, self._guardian = socket.socketpair()
        self.broker._timers.timeout_s = lambda _now: 0.0  # type: ignore[method-assign]
        self.broker._pool.supervise = lambda _now: None  # type: ignore[method-assign]
        self._requests = count(1)
        self.honest = self.connect()

    def connect(self) -> socket.socket:
        """A client that was greeted."""
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(self.directory.socket_path()))
        raw.sendall(hello(1))
        raw.setblocking(False)
        self.broker._tick()
        self.broker._tick()
        assert self.answers(raw)[0][0] == Op.HELLO
        return raw

    def answers(self, raw: socket.socket) -> list[list[Any]]:
        """What the broker has sent to a client: always whole and true frames."""
        data = b""
        with suppress(BlockingIOError, ConnectionResetError):
            while more := raw.recv(1 << 20):
                data += more
        return [envelope for envelope, _ in Decoder().feed(data)]

    def feed(self, pieces: list[bytes]) -> list[list[Any]]:
        """A connection on which these bytes come; returns what it was answered."""
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(self.directory.socket_path()))
            raw.setblocking(False)
            self.broker._tick()  # accepts; from now on each piece is read by itself
            for piece in pieces:
                with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    raw.send(piece)
                self.broker._tick()
            self.broker._tick()
            return self.answers(raw)

    def check(self) -> None:
        """The client that behaves is served, in its turn."""
        request = next(self._requests)
        self.honest.sendall(frame([Op.STATUS, request]))
        for _ in range(_MOST_TURNS):
            self.broker._tick()
            if told := self.answers(self.honest):
                break
        assert [answer[:2] for answer in told] == [[Op.OK, request]]
        self.broker._stop_at, self.broker._pool.is_stopping = None, False  # it was asked to stop, and would

    def __enter__(self) -> BrokerByHand:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # a new one for the next input
            _brokers.clear()
            self.close()

    def close(self) -> None:
        """Throws it away."""
        self.honest.close()
        self.broker._engine.close(time.monotonic())
        self.broker._selector.close()
        self.broker._guardian.close()
        self._guardian.close()
        self._fanout.close()


#: A turn of the broker takes on a bounded amount of work; each client has its turn after a few of them.
_MOST_TURNS = 20
_brokers: list[BrokerByHand] = []
_homes = count(1)


def by_hand() -> BrokerByHand:
    """The broker of this run; when something went wrong in it, a new one."""
    if not _brokers:
        _brokers.append(BrokerByHand(scratch() / f"q{next(_homes)}"))
    return _brokers[0]


@pytest.fixture(scope="module", autouse=True)
def _end_of_brokers() -> Iterator[None]:
    yield
    while _brokers:
        _brokers.pop().close()


@fuzz(stream=streams, chance=chances)
def test_a_broker_lives_on(stream: bytes, chance: random.Random) -> None:
    """Whatever comes on a connection is answered in true frames, or not at all; beside it a client is served."""
    counted()
    with by_hand() as broker:
        answers = broker.feed(cut(stream, chance))
        assert {answer[0] for answer in answers} <= {Op.HELLO, Op.ERROR, Op.OK, Op.RESULT}
        broker.check()


@fuzz(envelope=envelopes, body=st.just(CALL) | st.binary(max_size=40))
def test_a_broker_answers_odd_requests(envelope: list[Any], body: bytes) -> None:
    """A request of any form is answered once, at least with an error, and the next request too."""
    counted()
    assume(not (envelope and envelope[0] == Op.WATCH))  # which has no answer of its own
    request = framed(msgpack.packb(envelope), body)
    assume(len(request) < 100_000)  # what a socket takes at once
    with by_hand() as broker:
        answers = broker.feed([hello(1), request])
        assert [answer[0] for answer in answers if answer[0] != Op.RESULT] in ([Op.HELLO, Op.OK], [Op.HELLO, Op.ERROR])
        broker.check()


def asks_to_stop(stream: bytes) -> bool:
    """Whether a stream is a true request to end the fleet, or its consumers."""
    decoder = Decoder()
    try:
        return any(
            envelope[0] in (Op.STOP, Op.RELOAD) for piece in one_by_one(stream) for envelope, _ in decoder.feed(piece)
        )
    except ProtocolError:
        return Struct("!B").pack(Op.STOP) in stream or Struct("!B").pack(Op.RELOAD) in stream


@fuzz(share=5, stream=streams)
def test_a_fleet_lives_on(shared_fleet: Fleet, stream: bytes) -> None:
    """The same with real processes; what it takes for jobs, its consumers survive."""
    counted()
    assume(not asks_to_stop(stream))
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(shared_fleet.home / "taskq.sock"))
        raw.settimeout(10)
        with suppress(BrokenPipeError, ConnectionResetError):
            raw.sendall(stream)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(1 << 16):
                pass
    assert shared_fleet.client.status().broker.state == "running"


def test_the_fleet_is_the_one_that_was_started(shared_fleet: Fleet) -> None:
    """After all of this the same processes run jobs, and there is no bug in the log."""
    use(jobs.q, shared_fleet.home)
    assert list(jobs.add.map(range(20), timeout=10)) == list(range(1, 21))
    assert shared_fleet.count("fleet.started") == 1
    assert shared_fleet.count("consumer.started") == 2
    assert shared_fleet.count("consumer.confused") == 0


# -- what these properties have found, each in its smallest form


def answers_to(request: bytes) -> list[Any]:
    """How a broker answers one request: the operation, and the name of the error if it is one."""
    with by_hand() as broker:
        [_, answer] = broker.feed([hello(1), request])
        broker.check()
        return answer[:3:2] if answer[0] == Op.ERROR else answer[:1]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("field", ["\x01" * 20_000, "a" * 65_460, b"\x01" * 20_000])
def test_found_a_long_field_in_a_description(place: int, field: str | bytes) -> None:
    """The error that repeats it was too long for a frame, and so the end of the broker."""
    spec = [*SPEC[:place], field, *SPEC[place + 1 :]]
    assert answers_to(framed(msgpack.packb([Op.SUBMIT, 7, spec, False, False, ID, [0]]))) == [Op.ERROR, "ConfigError"]


@pytest.mark.parametrize("before", [float("nan"), float("inf"), -1.0, 1e300, 2**62])
def test_found_a_time_that_is_none(before: float) -> None:
    """It has no first id."""
    answer = answers_to(framed(msgpack.packb([Op.PURGE_ALL, 7, "succeeded", None, None, before, None])))
    assert answer == [Op.ERROR, "ProtocolError"]


@pytest.mark.parametrize("op", [Op.INFO, Op.CANCEL, Op.RETRY, Op.PURGE])
def test_found_a_long_id(op: Op) -> None:
    """The same, of an id that is not known."""
    answer = answers_to(framed(msgpack.packb([op, 7, bytes(40_000)])))
    assert answer[0] == Op.ERROR
    assert answer[1] in ("JobNotFound", "ProtocolError")


@pytest.mark.parametrize("name", ["self", "method_name", "event", "level", "exc_info", "args", "kw"])
def test_found_a_field_with_the_name_of_a_parameter(name: str) -> None:
    """A job's own line with such a field was a TypeError of the logger, and so the end of the broker."""
    check_loggable(RECORD_MARK + json.dumps({name: 1}), by_hand().log)


@pytest.mark.parametrize("fields", [[*SPEC[:2], True, None, 3], [*SPEC[:2], 1.0, None, 3], [*SPEC[:3], True, 3]])
def test_found_a_wrong_type_that_was_taken_for_an_equal_one(fields: list[Any]) -> None:
    """It was refused, unless the same description with a true 1 had come before."""
    assert verdict([equals(field) for field in fields]).startswith("Spec")
    assert verdict(fields) == "ConfigError"


def test_found_terminal_codes_within_each_other() -> None:
    """What was left when the inner one was taken out, was one."""
    assert "\x1b[31m" not in lines_of([b"\x1b\x1b[0m[31mred\n"])[0]
