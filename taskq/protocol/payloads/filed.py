"""Large payloads: what stands for one that has a file of its own, and how its content is laid out there.

A payload of more than MAX_INLINE_PAYLOAD_BYTES is written to a file by whoever makes it: see
`taskq.protocol.payloads.files`. In its place a *reference* travels and is stored: a payload whose body begins with a
byte that msgpack never uses.

    reference := u32 CRC-32 of (job id + body) | MARK | 1 | u8 kind | 8 bytes nonce | u64 size
    content   := a payload as any other, or one with its large arrays, bytes and texts behind it:
                 u32 CRC-32 of (job id + what follows) | MARK | 2 | 2 zeros | u32 number of blocks | u64 size of body
                 | u64 size of each block | body | each block, at a multiple of 64 bytes

The name of the file says whose it is: the job's id, the kind, and a nonce, since an attempt that was lost may have left
a file as well.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple, Self

#: What any payload begins with.
CRC_BYTES = 4
#: msgpack never begins a value with this byte.
MARK = 0xC1
_REFERENCE, _WITH_BLOCKS = 1, 2
_BODY = Struct("!BBB8sQ")
_NONCE_BYTES = 8
#: The size of a reference. Few payloads have it, so it is what to look for first.
REFERENCE_BYTES = CRC_BYTES + _BODY.size
_HEAD = Struct("!BBxxIQ")
_SIZE_BYTES = 8
#: Blocks begin at multiples of this, as NumPy's own arrays do.
_ALIGNMENT = 64


class CorruptPayload(Exception):
    """A payload whose checksum is wrong, or that does not decode to values."""


class Kind(IntEnum):
    """What a payload is to its job. The numbers are stored in journals: never change one."""

    ARGUMENTS = 1
    RESULT = 2


class Reference(NamedTuple):
    """Where a payload is.

    Attributes:
        kind: what it is to its job.
        nonce: what tells it from other files of that job.
        size: of the file, in bytes.
    """

    kind: Kind
    nonce: bytes
    size: int

    def file_name(self, job_id: bytes) -> str:
        """The name of the file of a job's payload."""
        return f"{job_id.hex()}-{self.kind.name.lower()}-{self.nonce.hex()}"


def is_reference(payload: bytes | memoryview) -> bool:
    """Whether a payload only says where the payload is."""
    return len(payload) == REFERENCE_BYTES and payload[CRC_BYTES] == MARK and payload[CRC_BYTES + 1] == _REFERENCE


def reference_in(job_id: bytes, payload: bytes | memoryview) -> Reference | None:
    """Returns the reference that a payload is; None if it is the payload itself.

    Raises:
        CorruptPayload: it is the reference of another job, or damaged.
    """
    if not is_reference(payload):
        return None
    body = payload[CRC_BYTES:]
    if zlib.crc32(body, zlib.crc32(job_id)).to_bytes(CRC_BYTES, "big") != payload[:CRC_BYTES]:
        raise CorruptPayload("the checksum of the payload is wrong")
    _, _, kind, nonce, size = _BODY.unpack(body)
    try:
        return Reference(Kind(kind), nonce, size)
    except ValueError:
        raise CorruptPayload(f"the payload refers to a file of the unknown kind {kind}") from None


def size_of(payload: bytes) -> int:
    """The size of a payload, wherever it is."""
    if not is_reference(payload):
        return len(payload)
    size: int = _BODY.unpack_from(payload, CRC_BYTES)[4]
    return size


class FiledPayload(bytes):
    """A reference, and what its file is to hold: whoever sends it writes the file first.

    Attributes:
        job_id: whose payload it is.
        reference: what it says.
        body: the msgpack value.
        parts: the content of the file behind its checksum, which is computed while it is written. Blocks are those of
            the caller, not copies.
        is_written: whether the file was written; `is_synced`: so that it survives a loss of power. Both are set by
            `taskq.protocol.payloads.files`.
    """

    job_id: bytes
    reference: Reference
    body: bytes
    parts: list[bytes | memoryview]
    is_written: bool
    is_synced: bool

    @classmethod
    def of(cls, job_id: bytes, kind: Kind, body: bytes, blocks: Sequence[bytes | memoryview]) -> Self:
        """Makes the payload of a job.

        Args:
            body: the msgpack value.
            blocks: the arrays, bytes and texts that it refers to by their positions.
        """
        parts: list[bytes | memoryview] = [body]
        if blocks:
            sizes = b"".join(len(block).to_bytes(_SIZE_BYTES, "big") for block in blocks)
            parts = [_HEAD.pack(MARK, _WITH_BLOCKS, len(blocks), len(body)) + sizes, body]
            size = CRC_BYTES + len(parts[0]) + len(body)
            for block in blocks:
                parts += [bytes(-size % _ALIGNMENT), block]
                size += -size % _ALIGNMENT + len(block)
        reference = Reference(kind, os.urandom(_NONCE_BYTES), CRC_BYTES + sum(map(len, parts)))
        packed = _BODY.pack(MARK, _REFERENCE, *reference)
        payload = cls(zlib.crc32(packed, zlib.crc32(job_id)).to_bytes(CRC_BYTES, "big") + packed)
        payload.job_id, payload.reference = job_id, reference
        payload.is_written = payload.is_synced = False
        payload.body, payload.parts = body, parts
        return payload


def snapshot(payload: bytes) -> bytes:
    """Copies the arrays of a caller that a payload refers to, since the caller may change them before they are written.
    Returns the payload."""
    if isinstance(payload, FiledPayload):
        payload.parts = [bytes(part) if isinstance(part, memoryview) else part for part in payload.parts]
    return payload


def body_and_blocks(payload: bytes | memoryview) -> tuple[bytes | memoryview, list[memoryview]]:
    """Cuts the content of a payload into the msgpack value and the blocks behind it.

    Raises:
        CorruptPayload: the sizes do not fit, or it is a reference, whose file is to be read.
    """
    if isinstance(payload, FiledPayload):
        return payload.body, []
    body = payload[CRC_BYTES:]
    if not len(body) or body[0] != MARK:
        return body, []
    view = memoryview(payload)
    if len(view) < CRC_BYTES + _HEAD.size or view[CRC_BYTES + 1] != _WITH_BLOCKS:
        raise CorruptPayload("the payload is in a file, or in a form that this version of taskq does not know")
    _, _, count, body_bytes = _HEAD.unpack_from(view, CRC_BYTES)
    sizes_at = CRC_BYTES + _HEAD.size
    body_at = sizes_at + _SIZE_BYTES * count
    if body_at + body_bytes > len(view):
        raise CorruptPayload("the payload is shorter than it says")
    sizes = [int.from_bytes(view[at : at + _SIZE_BYTES], "big") for at in range(sizes_at, body_at, _SIZE_BYTES)]
    position = body_at + body_bytes
    blocks: list[memoryview] = []
    for size in sizes:
        start = position + -position % _ALIGNMENT
        position = start + size
        blocks.append(view[start:position])
    if position != len(view):
        raise CorruptPayload("the payload is not as long as it says")
    return view[body_at : body_at + body_bytes], blocks
