"""What travels between processes: frames, outcomes, and the output of consumers. Hostile bytes do no harm."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.model.attempt import (
    Outcome,
    Ran,
    failure_in,
    pack_failure,
    pack_success,
    shortened,
    unpack,
    without_result,
)
from taskq.model.errors import ProtocolError
from taskq.model.job import JobError
from taskq.model.limits import (
    MAX_ENVELOPE_BYTES,
    MAX_ERROR_MESSAGE_CHARS,
    MAX_FAILURE_BYTES,
    MAX_FRAME_BYTES,
    MAX_ITEM_BYTES,
    MAX_JOBS_PER_FRAME,
    MAX_KEPT_ATTEMPT_BYTES,
    MAX_OUTPUT_LINE_BYTES,
    MAX_TRACEBACK_CHARS,
)
from taskq.protocol.frames import MAGIC, VERSIONS, Decoder, check_hello, frame, hello, split
from taskq.protocol.link.output import RECORD_MARK, LineCutter, fields_of_line
from taskq.protocol.ops import Op

quick = settings(max_examples=150, deadline=None)

values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20)
envelopes = st.tuples(st.sampled_from(Op), st.lists(values | st.lists(values, max_size=4), max_size=5)).map(
    lambda parts: [int(parts[0]), *parts[1]]
)
messages = st.tuples(envelopes, st.lists(st.binary(max_size=300), max_size=4))


def cut(data: bytes, chance: Any) -> list[bytes]:
    """The same bytes in pieces."""
    ends = sorted(chance.randint(0, len(data)) for _ in range(chance.randint(0, 12)))
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


def told(decoder: Decoder, pieces: list[bytes]) -> list[tuple[list[Any], bytes]]:
    """All messages in these pieces."""
    return [(envelope, bytes(body)) for piece in pieces for envelope, body in decoder.feed(piece)]


# -- frames


@quick
@given(sent=st.lists(messages, max_size=6), chance=st.randoms(use_true_random=False))
def test_frames_round_trip_however_they_are_cut(sent: list[tuple[list[Any], list[bytes]]], chance: Any) -> None:
    """A stream gives the same messages, in whatever pieces it arrives."""
    stream = b"".join(frame(envelope, body) for envelope, body in sent)
    decoder = Decoder()
    assert told(decoder, cut(stream, chance)) == [(envelope, b"".join(body)) for envelope, body in sent]
    assert not decoder.has_unfinished_frame


def test_frames_round_trip_byte_by_byte() -> None:
    """The worst way to cut a stream."""
    stream = frame([Op.OK, 1, None], [b"abc"]) + frame([Op.OK, 2, "x"])
    decoder = Decoder()
    assert told(decoder, [bytes([byte]) for byte in stream]) == [([3, 1, None], b"abc"), ([3, 2, "x"], b"")]


def test_bodies_stay_readable_after_more_came() -> None:
    """A body that was handed out does not change with what is fed next."""
    decoder = Decoder()
    [(_, first)] = decoder.feed(frame([Op.OK], [b"first"]))
    decoder.feed(frame([Op.OK], [b"other"])[:-1])
    decoder.feed(b"r")
    assert bytes(first) == b"first"


def test_unfinished_frames_are_seen() -> None:
    """For the deadline of slow senders."""
    decoder = Decoder()
    data = frame([Op.STATUS, 1])
    assert not decoder.has_unfinished_frame
    decoder.feed(data + data[:1])
    assert decoder.has_unfinished_frame
    assert len(decoder.feed(data[1:])) == 1
    assert not decoder.has_unfinished_frame


def held_bytes(decoder: Decoder) -> int:
    """What it keeps for the next call."""
    return len(decoder._rest)


def harmless(pieces: list[bytes]) -> None:
    """Feeds bytes of any kind: messages, or a ProtocolError; and never more is kept than a frame."""
    decoder = Decoder()
    for piece in pieces:
        try:
            for envelope, body in decoder.feed(piece):
                assert isinstance(envelope[0], int)
                assert len(body) <= MAX_FRAME_BYTES
        except ProtocolError as error:
            assert len(str(error)) < 300
            return
        assert held_bytes(decoder) <= MAX_FRAME_BYTES + 8


@quick
@given(data=st.binary(max_size=400), chance=st.randoms(use_true_random=False))
def test_garbage_is_a_protocol_error_or_waits(data: bytes, chance: Any) -> None:
    """Whatever arrives, in whatever pieces, nothing else is raised."""
    harmless(cut(data, chance))


@quick
@given(
    message=messages,
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    chance=st.randoms(use_true_random=False),
)
def test_damaged_frames_do_no_harm(message: Any, flips: list[tuple[int, int]], chance: Any) -> None:
    """A real frame with wrong bytes in it is as harmless."""
    data = bytearray(frame(*message))
    for place, value in flips:
        data[place % len(data)] = value
    harmless(cut(bytes(data), chance))


@quick
@given(envelope=st.binary(max_size=200))
def test_hostile_envelopes_do_no_harm(envelope: bytes) -> None:
    """A frame of the right lengths whose envelope is any bytes."""
    length = 4 + len(envelope)
    harmless([length.to_bytes(4, "big") + len(envelope).to_bytes(4, "big") + envelope])


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        b"\x90",
        msgpack.packb({"a": 1}),
        msgpack.packb("text"),
        msgpack.packb(["text"]),
        msgpack.packb([None]),
        b"\xdd\xff\xff\xff\xff" + b"\xc0" * 20,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 2_000 + b"\x01",
        b"\x92\x01\xd4\x05\x00",
        b"\x92\x01\xa1\xff",
        b"\x92\x01\x81\x90\x01",
        b"\xdc\x27\x10" + b"\x01" * 10_000,
        msgpack.packb([1]) + b"\x00",
    ],
)
def test_envelopes_that_are_none(envelope: bytes) -> None:
    """Each kind of wrong msgpack is reported as such."""
    data = (4 + len(envelope)).to_bytes(4, "big") + len(envelope).to_bytes(4, "big") + envelope
    with pytest.raises(ProtocolError):
        Decoder().feed(data)


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 8,
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + bytes(4),
        (MAX_FRAME_BYTES).to_bytes(4, "big") + (MAX_ENVELOPE_BYTES + 1).to_bytes(4, "big"),
        (10).to_bytes(4, "big") + (7).to_bytes(4, "big"),
        bytes(8),
        (3).to_bytes(4, "big") + bytes(4),
    ],
)
@pytest.mark.parametrize("pieces", [1, 8])
def test_strangers_are_refused_at_their_header(start: bytes, pieces: int) -> None:
    """Eight bytes are enough to know, and nothing is waited for or kept."""
    size = 8 // pieces
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        for at in range(0, 8, size):
            decoder.feed(start[at : at + size])


def test_a_large_frame_is_held_once() -> None:
    """While it is not complete, no more than the frame itself is kept, and it arrives whole."""
    body = bytes(range(256)) * (MAX_ITEM_BYTES // 256)
    data = frame([Op.RESULT, bytes(16), "succeeded"], [body])
    decoder = Decoder()
    for at in range(0, len(data) - 65_536, 65_536):
        assert decoder.feed(data[at : at + 65_536]) == []
        assert held_bytes(decoder) == at + 65_536
    rest = len(data) - held_bytes(decoder)
    [(_, received)] = decoder.feed(data[-rest:])
    assert received == body


def test_frames_over_the_limits_are_not_made() -> None:
    """The sender gets an error, before the peer would close the connection."""
    with pytest.raises(ProtocolError, match="larger"):
        frame([Op.OK, "x" * MAX_ENVELOPE_BYTES])
    with pytest.raises(ProtocolError, match="larger"):
        frame([Op.OK], [bytes(MAX_FRAME_BYTES)])


def test_the_largest_submit_fits() -> None:
    """A full batch of jobs, and a payload of full size, are within the limits of a frame."""
    ids = bytes(16 * MAX_JOBS_PER_FRAME)
    lengths = [MAX_ITEM_BYTES] + [0] * (MAX_JOBS_PER_FRAME - 1)
    spec = ["t" * 200, "q" * 64, 1_000_000, 1e9, 1_000_000]
    data = frame([Op.SUBMIT, 2**63, spec, True, True, ids, lengths], [bytes(MAX_ITEM_BYTES)])
    [(envelope, body)] = Decoder().feed(data)
    assert [len(payload) for payload in split(body, envelope[6])] == lengths


# -- bodies


@quick
@given(payloads=st.lists(st.binary(max_size=50), max_size=10))
def test_split_is_the_opposite_of_joining(payloads: list[bytes]) -> None:
    """A body is cut where its payloads were joined."""
    body = memoryview(b"".join(payloads))
    assert list(split(body, [len(payload) for payload in payloads])) == payloads


@pytest.mark.parametrize(
    ("body", "lengths"),
    [
        (b"abc", [1, 1]),
        (b"abc", [4]),
        (b"abc", []),
        (b"abc", [4, -1]),
        (b"abc", [-1, 4]),
        (b"", [-1, 1]),
        (b"abc", ["3"]),
        (b"abc", [None, 3]),
        (b"abc", [[3]]),
        (b"abc", [3.0]),
        (b"abc", [1.5, 1.5]),
        (b"abc", [float("nan")]),
        (b"a", [{}]),
        (b"", ["", ""]),
    ],
)
def test_lengths_that_do_not_fit(body: bytes, lengths: list[Any]) -> None:
    """They are a ProtocolError, of whatever type they are."""
    with pytest.raises(ProtocolError):
        split(memoryview(body), lengths)


@quick
@given(body=st.binary(max_size=8), lengths=st.lists(values | st.floats() | st.integers(-3, 9), max_size=4))
def test_lengths_of_any_kind(body: bytes, lengths: list[Any]) -> None:
    """What is cut is the whole body, or it is refused."""
    try:
        payloads = list(split(memoryview(body), lengths))
    except ProtocolError:
        return
    assert b"".join(payloads) == body
    assert [len(payload) for payload in payloads] == lengths


# -- hello


def greeting(*fields: Any) -> list[Any]:
    """The envelope of a hello."""
    return [int(Op.HELLO), MAGIC, *fields]


def test_hello_meets_itself() -> None:
    """Two sides of the same version speak it."""
    [(envelope, body)] = Decoder().feed(hello(4711))
    assert check_hello(envelope) == VERSIONS[1]
    assert envelope[4] == 4711
    assert len(body) == 0


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken"),
    [(2, 2, 2), (1, 2, 2), (2, 9, 2), (0, 99, 2)],
)
def test_versions_that_meet(lowest: int, highest: int, spoken: int) -> None:
    """The highest that both know is spoken."""
    assert check_hello(greeting(lowest, highest, 1)) == spoken


@pytest.mark.parametrize(
    ("lowest", "highest", "remedy"),
    [
        (3, 4, "upgrade taskq in the client"),
        (99, 100, "upgrade taskq in the client"),
        (-2, 0, "upgrade taskq in the fleet"),
        (1, 1, "upgrade taskq in the fleet"),
    ],
)
def test_versions_that_do_not_meet(lowest: int, highest: int, remedy: str) -> None:
    """The message says which side to upgrade, and each side says the same."""
    with pytest.raises(ProtocolError, match=remedy):
        check_hello(greeting(lowest, highest, 1), peer="fleet")
    other = {"client": "fleet", "fleet": "client"}[remedy.rpartition(" ")[2]]
    with pytest.raises(ProtocolError, match=f"upgrade taskq in the {other}"):
        check_hello(greeting(lowest, highest, 1), peer="client")


@pytest.mark.parametrize(
    "envelope",
    [
        [Op.STATUS, 1],
        [Op.HELLO],
        [Op.HELLO, "other", 1, 1, 1],
        [Op.HELLO, b"taskq", 1, 1, 1],
        [Op.HELLO, MAGIC, 1, 1],
        [Op.HELLO, MAGIC, "1", "1", 1],
        [Op.HELLO, MAGIC, None, 1, 1],
        [Op.HELLO, MAGIC, 1, 1.5, 1],
        [Op.SUBMIT, MAGIC, 1, 1, 1],
    ],
)
def test_greetings_that_are_none(envelope: list[Any]) -> None:
    """A stranger is refused."""
    with pytest.raises(ProtocolError):
        check_hello(envelope)


def test_later_versions_may_say_more() -> None:
    """Fields that come later in a hello do not matter."""
    assert check_hello(greeting(1, 3, 77, {"new": True})) == 2


# -- outcomes


@quick
@given(
    started=st.floats(0, 2e9),
    duration=st.floats(0, 1e6),
    result=st.none() | st.binary(max_size=100),
    consumer=st.none() | st.integers(1, 10_000),
)
def test_successes_round_trip(started: float, duration: float, result: bytes | None, consumer: int | None) -> None:
    """What was made is read."""
    packed = pack_success(started, duration, result, consumer)
    assert unpack(packed) == Outcome(started, duration, result, None, None, consumer)
    assert unpack(without_result(packed)) == Outcome(started, duration, None, None, None, consumer)


def test_outcomes_of_earlier_builds_tell_no_consumer() -> None:
    """They have four fields, or five, or six, and are in journals."""
    error = JobError("E", "why")
    assert unpack(msgpack.packb([1.0, 2.0, b"r", None])) == Outcome(1.0, 2.0, b"r", None)
    assert unpack(msgpack.packb([1.0, 2.0, None, error.to_wire(), 3.5])) == Outcome(1.0, 2.0, None, error, 3.5)
    for wrong in (True, 1.0, "1", b"1"):
        with pytest.raises(ProtocolError, match="not an outcome"):
            unpack(msgpack.packb([1.0, 2.0, None, None, None, wrong]))
        with pytest.raises(ProtocolError, match="not an outcome"):
            unpack(msgpack.packb([1.0, 2.0, None, None, None, 1, 1, wrong]))
    assert unpack(msgpack.packb([1.0, 2.0, None, None, None, 1])).pid is None
    with pytest.raises(ProtocolError, match="not an outcome"):
        unpack(msgpack.packb([1.0, 2.0, None, None, None, 1, 1, 1, 1]))


def test_a_success_tells_its_consumer_in_two_bytes() -> None:
    """Each success of a bulk is stored with this."""
    before = len(msgpack.packb([1.0, 2.0, None, None]))
    assert len(pack_success(1.0, 2.0, None, 64)) == before + 2


def test_a_shortened_outcome_tells_its_consumer_and_delay() -> None:
    """So it is in the list of attempts."""
    error = JobError("E", "m" * 10_000, "t" * 10_000)
    short = shortened(pack_failure(1.0, 2.0, error, 3.5, Ran(7, 4_321, 50_000_000)))
    assert len(short) <= MAX_KEPT_ATTEMPT_BYTES
    assert unpack(short)[4:] == (3.5, 7, 4_321, 50_000_000)


error_texts = st.text(st.characters(), max_size=60)  # lone surrogates included


@quick
@given(kind=error_texts, message=error_texts, traceback=error_texts, code=st.none() | st.integers(-255, 255))
def test_failures_round_trip(kind: str, message: str, traceback: str, code: int | None) -> None:
    """Any text of an exception comes back, what cannot be encoded as an escape."""
    error = JobError(kind, message, traceback, code, None, ["one", "two"])
    outcome = unpack(pack_failure(None, 1.5, error))
    assert (outcome.started_at, outcome.duration_s, outcome.result) == (None, 1.5, None)
    read = outcome.error
    assert read is not None
    for before, after in ((kind, read.type), (message, read.message), (traceback, read.traceback)):
        assert after == before.encode("utf-8", "backslashreplace").decode()
    assert (read.exit_code, read.signal, read.output) == (code, None, ["one", "two"])


def test_long_texts_are_cut_in_the_middle() -> None:
    """Beginning and end of a message and a traceback are kept; the outcome stays small."""
    long = "begin" + "x\udc80" * 500_000 + "end"
    packed = pack_failure(1.0, 1.0, JobError(long, long, long))
    error = unpack(packed).error
    assert error is not None
    for text, most in (
        (error.type, 200),
        (error.message, MAX_ERROR_MESSAGE_CHARS),
        (error.traceback, MAX_TRACEBACK_CHARS),
    ):
        assert text.startswith("begin")
        assert text.endswith("end")
        assert "characters left out" in text
        assert len(text) <= 6 * most + 100
    assert len(packed) < 400_000


def test_the_largest_failure_is_read_and_no_larger_one() -> None:
    """The broker decodes what a consumer can have made, and refuses what it cannot."""
    worst = "\udc80" * 100_000  # six bytes each, once escaped
    packed = pack_failure(1.0, 1.0, JobError(worst, worst, worst, -255, "S" * 20, [], worst, [worst] * 100))
    assert MAX_FAILURE_BYTES * 0.9 < len(packed) <= MAX_FAILURE_BYTES
    assert failure_in(packed) == (unpack(packed).error, None)
    larger = msgpack.packb([1.0, 1.0, None, JobError("E", "x" * MAX_FAILURE_BYTES).to_wire()])
    with pytest.raises(ProtocolError, match="larger than a consumer makes them"):
        failure_in(larger)


def test_texts_at_the_limit_are_whole() -> None:
    """A text that just fits is not touched."""
    message = "y" * MAX_ERROR_MESSAGE_CHARS
    error = unpack(pack_failure(1.0, 1.0, JobError("E", message))).error
    assert error is not None
    assert error.message == message


def test_surrogates_in_the_output_of_a_dead_process() -> None:
    """The last lines of a process may be any text, too."""
    outcome = unpack(pack_failure(None, None, JobError("Crashed", "died", output=["a\udcff", "b" * 10])))
    assert outcome.error is not None
    assert outcome.error.output == ["a\\udcff", "b" * 10]


@quick
@given(data=st.binary(max_size=80))
def test_outcomes_that_are_none(data: bytes) -> None:
    """Any bytes are an outcome or a ProtocolError."""
    try:
        assert isinstance(unpack(data), Outcome)
    except ProtocolError as error:
        assert "not an outcome" in str(error)


# -- output


def reference_lines(data: bytes) -> list[str]:
    """What a stream without terminal codes should be cut into."""
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line[:MAX_OUTPUT_LINE_BYTES].decode("utf-8", "backslashreplace").rstrip("\r") for line in lines]


plain_bytes = st.lists(
    st.binary(max_size=30).map(lambda data: data.replace(b"\x1b", b"?").replace(RECORD_MARK.encode(), b"!"))
    | st.sampled_from([b"\n", b"\r\n", b"\n\n", b"x" * (MAX_OUTPUT_LINE_BYTES - 1), b"y" * 5_000, "é€😀".encode()]),
    max_size=12,
).map(b"".join)


@quick
@given(data=plain_bytes, chance=st.randoms(use_true_random=False))
def test_lines_are_cut_as_the_reference_does(data: bytes, chance: Any) -> None:
    """Whatever the pieces are. Of a line that is too long, the beginning is reported."""
    cutter = LineCutter()
    lines = [line for piece in cut(data, chance) for line in cutter.feed(piece)] + cutter.flush()
    assert lines == reference_lines(data)


def test_an_endless_line_takes_no_memory() -> None:
    """It is reported once, the rest is dropped, and the next line is whole again."""
    cutter = LineCutter()
    lines = []
    for _ in range(200):
        lines += cutter.feed(b"z" * 4096)
        assert len(cutter._rest) <= MAX_OUTPUT_LINE_BYTES
    assert lines == ["z" * MAX_OUTPUT_LINE_BYTES]
    assert cutter.feed(b"z") == cutter.feed(b"z") == cutter.flush() == []
    assert cutter.feed(b"zz\nnext\n") == ["next"]
    assert cutter.flush() == []


def test_flush_tells_what_is_left_once() -> None:
    """The last words of a process need no line end."""
    cutter = LineCutter()
    assert cutter.feed(b"one\ntw") == ["one"]
    assert cutter.feed(b"o") == []
    assert cutter.flush() == ["two"]
    assert cutter.flush() == []


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b[1;38;5;12mx\x1b[K", "x"),
        (b"\x1b]0;title\x07after", "after"),
        (b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        (b"a\x1b[2Jb\x1b[Hc", "abc"),
        (b"\x1bMup", "up"),
        (b"plain [31m", "plain [31m"),
    ],
)
def test_terminal_codes_are_removed(written: bytes, text: str) -> None:
    """Colours, titles and movements do not reach a log."""
    assert LineCutter().feed(written + b"\n") == [text]


def test_records_are_not_touched() -> None:
    """A structured event keeps its escapes: they are JSON's own."""
    line = RECORD_MARK + json.dumps({"event": "\x1b[31m", "level": "info"})
    assert LineCutter().feed(line.encode() + b"\n") == [line]


def record(**fields: Any) -> str:
    """A line as a job's logger writes it."""
    return RECORD_MARK + json.dumps(fields)


def test_events_are_distinguished_from_text() -> None:
    """A marked line is an event with its fields; all else is text."""
    assert fields_of_line(record(event="resized", level="warning", width=640)) == (
        "warning",
        {"message": "resized", "width": 640},
    )
    assert fields_of_line("just text") == ("info", {"message": "just text"})


@pytest.mark.parametrize(
    "name", ["timestamp", "queue", "task", "job_id", "attempt", "consumer", "pid", "message", "stream"]
)
def test_own_fields_cannot_be_forged(name: str) -> None:
    """A job cannot speak for another job or process: such a field gets another name."""
    level, fields = fields_of_line(record(event="x", **{name: "forged"}))
    assert level == "info"
    assert fields == {"message": "x", f"{name}_": "forged"}


@pytest.mark.parametrize("level", ["critical", "FATAL", "", "x" * 50, 7, None])
def test_unknown_levels_are_info(level: object) -> None:
    """A level that the log does not know is none."""
    assert fields_of_line(record(event="x", level=level))[0] == "info"


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", "3", '"text"', "null", "{}x", "", '{"event": ' + "[" * 100_000, '{"level": []}', '{"level": {}}'],
)
def test_marked_lines_that_are_no_events(line: str) -> None:
    """A line of the job's own that begins with the mark is text; nothing is raised."""
    level, fields = fields_of_line(RECORD_MARK + line)
    assert level == "info"
    assert set(fields) == {"message"}


@quick
@given(
    fields=st.dictionaries(
        st.sampled_from(["level", "event", "job_id", "job_id_", "x", "", "message"]) | st.text(max_size=5),
        st.recursive(values.filter(lambda value: not isinstance(value, bytes)), st.lists, max_leaves=3),
        max_size=6,
    )
)
def test_any_event_is_reported(fields: dict[str, Any]) -> None:
    """Whatever a job logs, it is a level, a message and fields that are not the broker's."""
    level, given_fields = fields_of_line(RECORD_MARK + json.dumps(fields))
    assert level in ("debug", "info", "warning", "error")
    assert isinstance(given_fields["message"], str)
    assert not {"timestamp", "job_id", "pid", "level", "event"} & set(given_fields)
