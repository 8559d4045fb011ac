"""Frames: what travels on the Unix socket between clients, consumers and the broker.

    frame    := u32 length of what follows | u32 length of the envelope | envelope | body
    envelope := one msgpack array [op, ...]     decoded, small, with explicit limits
    body     := payloads one after the other    never decoded here; the envelope has their lengths

The two parts keep the broker safe from the payloads: it decodes at most MAX_ENVELOPE_BYTES of a frame.
A connection starts with the client's HELLO; the broker answers with its own, or with an ERROR, and closes.
Requests carry a number, chosen by the client, which the answer repeats; RESULT frames come by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from struct import Struct
from typing import Any, Literal

import msgpack

from taskq.model import errors
from taskq.model.errors import ProtocolError, TaskQError, is_from_signal_handler
from taskq.model.limits import MAX_ENVELOPE_BYTES, MAX_ERROR_MESSAGE_CHARS, MAX_FRAME_BYTES
from taskq.protocol.ops import Op

MAGIC = "taskq"


#: The versions of this protocol that this code speaks, lowest and highest. Version 2 tells more of jobs and of failed
#: attempts than a client of version 1 can read; what such a client has left in the spool is understood.
VERSIONS = (2, 2)
#: How fleets name their own versions when they refuse a client: those of protocol 1, and later ones.
_FLEETS_VERSIONS = re.compile(r"protocol .*, (?:this taskq up to|this taskq from|the fleet) (\d+)(?: to (\d+))?:")


_HEADER = Struct("!II")


_ENVELOPE_LENGTH_BYTES = 4


Message = tuple[list[Any], memoryview]

_unpack_envelope = partial(
    msgpack.unpackb,
    max_str_len=MAX_ENVELOPE_BYTES,
    max_bin_len=MAX_ENVELOPE_BYTES,
    max_array_len=8192,
    max_map_len=1024,
    max_ext_len=0,
)


def frame(envelope: Sequence[Any], body: Iterable[bytes] = ()) -> bytes:
    """Makes one frame of an envelope and the payloads that follow it.

    Raises:
        ProtocolError: it is larger than the limits; the caller should have split it.
    """
    packed: bytes = msgpack.Packer().pack(envelope)
    payloads = b"".join(body)
    length = _ENVELOPE_LENGTH_BYTES + len(packed) + len(payloads)
    if len(packed) > MAX_ENVELOPE_BYTES or length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length} bytes with an envelope of {len(packed)} is larger than the limits")
    return _HEADER.pack(length, len(packed)) + packed + payloads


def error_frame(request: int, error: TaskQError) -> bytes:
    """Makes the frame that tells a client of an error. Cut, for an error may repeat what it is about."""
    return frame([Op.ERROR, request, type(error).__name__, str(error)[:MAX_ERROR_MESSAGE_CHARS]])


def error_of(envelope: list[Any]) -> TaskQError:
    """Reads an ERROR frame. Only names in `taskq.model.errors` are looked up; nothing is imported."""
    _, _, name, message = envelope
    found = getattr(errors, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, TaskQError) and found is not errors.JobFailed:
        return found(message)
    return TaskQError(f"{name}: {message}")


def split(body: memoryview, lengths: Sequence[int]) -> list[bytes]:
    """Cuts a body into its payloads.

    Raises:
        ProtocolError: the lengths are not numbers, or do not add up to the body's.
    """
    try:
        if len(lengths) == 1 and type(lengths[0]) is int and lengths[0] == len(body):
            return [bytes(body)]
        ends = list(accumulate(lengths))
        if min(lengths, default=0) >= 0 and (ends[-1] if ends else 0) == len(body):
            data = bytes(body)
            return [data[start:end] for start, end in pairwise(chain((0,), ends))]
    except TypeError:
        pass  # texts cannot be added, floats cannot cut
    raise ProtocolError("the lengths of the payloads do not fit the frame")


class Decoder:
    """Cuts a stream of bytes into messages. Holds at most one unfinished frame.

    `feed` may be called again after it returned, never after it raised: the stream has no known boundary then.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def has_unfinished_frame(self) -> bool:
        """Whether the stream stopped inside a frame, for the deadline of slow senders."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[Message]:
        """Takes the next bytes; returns the messages completed by them, each (envelope, body).

        Raises:
            ProtocolError: the bytes are not this protocol, or break its limits.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < _HEADER.size or len(self._rest) < 4 + _HEADER.unpack_from(self._rest)[0]:
                self._check_header()
                return []
            data = bytes(self._rest)
            self._rest = bytearray()
        view = memoryview(data)
        if len(data) >= _HEADER.size:
            length, envelope_length = _HEADER.unpack_from(data)
            if length + 4 == len(data):  # one frame, as most often
                _check_lengths(length, envelope_length)
                body_start = _HEADER.size + envelope_length
                return [(_decode_envelope(view[_HEADER.size : body_start]), view[body_start:])]
        messages: list[Message] = []
        position, end = 0, len(data)
        while end - position >= _HEADER.size:
            length, envelope_length = _HEADER.unpack_from(data, position)
            _check_lengths(length, envelope_length)
            frame_end = position + 4 + length
            if frame_end > end:
                break
            body_start = position + _HEADER.size + envelope_length
            envelope = _decode_envelope(view[position + _HEADER.size : body_start])
            messages.append((envelope, view[body_start:frame_end]))
            position = frame_end
        if position < end:
            self._rest += view[position:]
        return messages

    def _check_header(self) -> None:
        if len(self._rest) >= _HEADER.size:
            _check_lengths(*_HEADER.unpack_from(self._rest))


def _check_lengths(length: int, envelope_length: int) -> None:
    if length > MAX_FRAME_BYTES or envelope_length > MAX_ENVELOPE_BYTES or envelope_length + 4 > length:
        raise ProtocolError(
            f"not a taskq frame, or one over the limit of {MAX_FRAME_BYTES} bytes (it announces {length})"
        )


def _decode_envelope(data: memoryview) -> list[Any]:
    try:
        envelope = _unpack_envelope(data)
    except Exception as error:
        # msgpack raises ValueError, its own errors, OverflowError, UnicodeDecodeError and more on hostile bytes
        if is_from_signal_handler(error):
            raise
        raise ProtocolError(f"an envelope that is not msgpack: {type(error).__name__}") from error
    if not isinstance(envelope, list) or not envelope or not isinstance(envelope[0], int):
        raise ProtocolError("an envelope must be an array that starts with a number")
    return envelope


def hello(pid: int, syncs_files: bool = True) -> bytes:
    """The first frame that either side sends.

    Args:
        syncs_files: whether the fleet wants the files of large payloads to survive a loss of power.
    """
    return frame([Op.HELLO, MAGIC, *VERSIONS, pid, syncs_files])


def check_hello(envelope: list[Any], peer: Literal["client", "fleet"] = "fleet") -> int:
    """Checks a HELLO; returns the highest version that both sides speak.

    Args:
        peer: the side that has sent it.

    Raises:
        ProtocolError: it is not one, or the versions do not meet; the message says which side to upgrade.
    """
    if len(envelope) < 5 or envelope[0] != Op.HELLO or envelope[1] != MAGIC:
        raise ProtocolError("the peer does not speak the taskq protocol")
    lowest, highest = envelope[2], envelope[3]
    if not isinstance(lowest, int) or not isinstance(highest, int):
        raise ProtocolError("a hello without versions")
    own = "fleet" if peer == "client" else "client"
    if lowest > VERSIONS[1] or highest < VERSIONS[0]:
        older = own if lowest > VERSIONS[1] else peer
        raise ProtocolError(
            f"the {peer} speaks protocol {_span(lowest, highest)}, the {own} {_span(*VERSIONS)}: "
            f"upgrade taskq in the {older}, and restart it"
        )
    return min(highest, VERSIONS[1])


def refusal_of(error: TaskQError, directory: str) -> TaskQError:
    """What a client tells of the error with which a fleet refused it before any hello.

    The fleet wrote that from its side, and older ones (of protocol 1) without saying which sides there are.

    Args:
        directory: the fleet's.
    """
    told = _FLEETS_VERSIONS.search(str(error)) if isinstance(error, ProtocolError) else None
    if told is None:
        return error
    lowest, highest = int(told[1]), int(told[2] or told[1])
    remedy = "restart the fleet with this version of taskq" if highest < VERSIONS[0] else "upgrade this taskq"
    return ProtocolError(
        f"the fleet of {directory} speaks protocol {_span(lowest, highest)}, this taskq {_span(*VERSIONS)}: {remedy}; "
        "until then it takes no jobs from here"
    )


def _span(lowest: int, highest: int) -> str:
    return f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
