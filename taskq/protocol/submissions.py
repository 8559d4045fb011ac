"""Submitted jobs: those with one spec, and workflows, which have several and say which jobs come after which.

Both travel to the broker, are spooled while none answers, and are answered in the same way: by the number of new jobs,
or by a body with [id, earlier id] for each that was left out. A workflow is taken in as a whole or not at all.

    SUBMIT       [op, request, spec, resend, watch, ids, lengths, constraints: none, one for all jobs, or of each]
    body         payloads
    SUBMIT_FLOW  [op, request, resend, watch, groups, number of edges]
    groups       [spec, constraints or nil, number of jobs]
    body         ids (16 bytes each) | lengths (u32) | edges | payloads
    edge         u32 position of the job after, id of the one before, u8 whether it goes on if that does not succeed

The ids and edges of a workflow are in the body because the envelope is small (see `taskq.protocol.frames`), and have a
fixed form because the broker reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from struct import Struct, pack, unpack
from typing import Any, NamedTuple

import msgpack

from taskq.model.constraints import NO_CONSTRAINTS, Constraints
from taskq.model.errors import PayloadTooLarge, ProtocolError
from taskq.model.limits import (
    CONSTRAINED_US,
    EDGE_US,
    MAX_CONSTRAINTS_BYTES,
    MAX_FLOW_JOBS,
    MAX_FRAME_BYTES,
    MAX_JOBS_PER_FRAME,
    SUBMIT_CHUNK_BYTES,
    SUBMITTED_US,
    TURN_US,
)
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.ops import Op
from taskq.protocol.payloads.filed import REFERENCE_BYTES, FiledPayload, size_of


def chunks(calls: Iterable[Call], most: int | None = None) -> Iterator[list[Call]]:
    """Cuts calls into chunks that fit one frame and one turn of the broker, of at most `most` calls."""
    most = min(most or MAX_JOBS_PER_FRAME, MAX_JOBS_PER_FRAME)
    chunk: list[Call] = []
    size = own_bytes = constraints_bytes = 0
    work_us, own_us = 0.0, SUBMITTED_US
    last: Constraints | None = None
    is_shared = True  # all of the chunk have the same constraints, which travel once
    for call in calls:
        _, payload, own = call
        if own is not last:
            own_bytes = 0 if own is None else own.max_wire_bytes
            own_us = SUBMITTED_US if own is None else CONSTRAINED_US + EDGE_US * len(own.after)
            is_shared = not chunk
            last = own
        constraints_bytes += own_bytes
        payload_bytes = len(payload)
        if payload_bytes == REFERENCE_BYTES:
            payload_bytes = size_of(payload)  # until it is written to its file, it takes memory
        size += payload_bytes
        work_us += own_us
        told_bytes = own_bytes if is_shared else constraints_bytes
        is_full = size > SUBMIT_CHUNK_BYTES or told_bytes > MAX_CONSTRAINTS_BYTES or len(chunk) == most
        if (is_full or work_us > TURN_US) and chunk:
            yield chunk
            chunk, size, constraints_bytes, is_shared = [], payload_bytes, own_bytes, True
            work_us = own_us
        chunk.append(call)
    if chunk:
        yield chunk


def filed_among(calls: Iterable[Call]) -> list[FiledPayload]:
    """The arguments of calls that have files of their own."""
    return [call.payload for call in calls if isinstance(call.payload, FiledPayload)]


def submit_frame(request: int, spec: Spec, calls: Sequence[Call], *, resend: bool, watch: bool) -> bytes:
    """The frame that submits jobs of one spec."""
    if len(calls) == 1 and calls[0].constraints is None:  # most often
        job_id, payload, _ = calls[0]
        return frames.frame([Op.SUBMIT, request, spec.to_wire(), resend, watch, job_id, [len(payload)]], [payload])
    if any(call.constraints is not None and call.constraints.after for call in calls):
        return flow_frame([Op.SUBMIT_FLOW, request, resend, watch], [(spec, call) for call in calls])
    ids = b"".join([call.id for call in calls])
    payloads = [call.payload for call in calls]
    envelope = [Op.SUBMIT, request, spec.to_wire(), resend, watch, ids, [len(payload) for payload in payloads]]
    first = calls[0].constraints
    if first is not None:
        is_shared = all(call.constraints is first for call in calls)
        envelope.append(
            [(call.constraints or NO_CONSTRAINTS).to_wire() for call in (calls[:1] if is_shared else calls)]
        )
    return frames.frame(envelope, payloads)


_EDGE = Struct("!I16sB")


_ID_BYTES = 16


_LENGTH_BYTES = 4


#: Of the fields of a SUBMIT frame behind its number. Compared at once: most frames are of this kind, and a pattern that
#: looks at each field takes three times as long.
_SUBMIT_TYPES = [int, list, bool, bool, bytes, list]


#: Even if each is of another kind, with keys of full length, their groups fit into the envelope.
_PART_JOBS = 20


class Call(NamedTuple):
    """A job to submit: its id, its payload, and what it has besides its Spec."""

    id: bytes
    payload: bytes
    constraints: Constraints | None = None


#: Jobs that are submitted together, and may come after each other.
Flow = Sequence[tuple[Spec, Call]]


#: Jobs with one Spec, as columns: ids, payloads, constraints.
Group = tuple[Spec, tuple[bytes, ...], tuple[bytes, ...], tuple[Constraints | None, ...]]


def flow_frame(head: Sequence[Any], flow: Flow) -> bytes:
    """Makes a frame of jobs.

    Args:
        head: what the envelope begins with.

    Raises:
        PayloadTooLarge: they do not fit into one frame.
    """
    by_kind: dict[tuple[Spec, Constraints | None], list[Call]] = {}
    for spec, call in flow:
        own = call.constraints
        shared = own if own is None or not own.after else replace(own, after=())
        by_kind.setdefault((spec, None if shared == NO_CONSTRAINTS else shared), []).append(call)
    calls = [call for group in by_kind.values() for call in group]
    edges = b"".join(
        _EDGE.pack(position, parent, goes_on)
        for position, call in enumerate(calls)
        for parent, goes_on in (call.constraints.after if call.constraints is not None else ())
    )
    groups = [
        [spec.to_wire(), None if constraints is None else constraints.to_wire(), len(group)]
        for (spec, constraints), group in by_kind.items()
    ]
    lengths = pack(f"!{len(calls)}I", *(len(call.payload) for call in calls))
    body = [b"".join(call.id for call in calls), lengths, edges, *(call.payload for call in calls)]
    size = sum(map(len, body))
    try:
        if len(calls) > MAX_FLOW_JOBS:
            raise ProtocolError("too many jobs")
        return frames.frame([*head, groups, len(edges) // _EDGE.size], body)
    except ProtocolError:
        raise PayloadTooLarge(
            f"{len(calls):,} jobs of {len(groups):,} kinds with {len(edges) // _EDGE.size:,} links take {size:,} "
            f"bytes; at most {MAX_FLOW_JOBS:,} jobs, {MAX_FRAME_BYTES:,} bytes and some 500 kinds go together: "
            "let a job of the workflow enqueue the rest of it, pass paths of files, or link fewer jobs (a group that "
            "follows a group has a link from each to each: put one job between them)"
        ) from None


def parts_of(flow: Flow) -> Iterator[Flow]:
    """Cuts jobs into what surely fits a frame each, in their order. A unique job, which may be left out, goes alone."""
    part: list[tuple[Spec, Call]] = []
    size = constraints_bytes = 0
    was_unique = False
    for spec, call in flow:
        own = call.constraints or NO_CONSTRAINTS
        is_unique = own.unique is not None
        own_size, own_bytes = len(call.payload) + _EDGE.size * len(own.after), own.max_wire_bytes
        size, constraints_bytes = size + own_size, constraints_bytes + own_bytes
        is_full = size > SUBMIT_CHUNK_BYTES or constraints_bytes > MAX_CONSTRAINTS_BYTES or len(part) == _PART_JOBS
        if part and (is_unique or was_unique or is_full):
            yield part
            part, size, constraints_bytes = [], own_size, own_bytes
        part.append((spec, call))
        was_unique = is_unique
    if part:
        yield part


def read_flow(groups: list[Any], edges: int, body: memoryview) -> list[Group]:
    """The opposite of `flow_frame`.

    Raises:
        ProtocolError, ConfigError: it makes no sense.
    """
    kinds = [_kind(group) for group in groups]
    count = sum(number for _, _, number in kinds)
    lengths_at, edges_at = _ID_BYTES * count, (_ID_BYTES + _LENGTH_BYTES) * count
    payloads_at = edges_at + _EDGE.size * edges
    if not 0 < count <= MAX_FLOW_JOBS or edges < 0 or payloads_at > len(body):
        raise ProtocolError("the jobs of a workflow do not fit its frame")
    ids = [bytes(body[start : start + _ID_BYTES]) for start in range(0, lengths_at, _ID_BYTES)]
    payloads = frames.split(body[payloads_at:], unpack(f"!{count}I", body[lengths_at:edges_at]))
    after = _after(ids, body[edges_at:payloads_at])
    starts = [0]
    for _, _, number in kinds:
        starts.append(starts[-1] + number)
    return [
        (
            spec,
            tuple(ids[start:end]),
            tuple(payloads[start:end]),
            tuple(_packed_constraints(constraints, after, range(start, end))),
        )
        for (spec, constraints, _), (start, end) in zip(kinds, pairwise(starts), strict=True)
    ]


def _kind(group: Any) -> tuple[Spec, Constraints | None, int]:
    match group:
        case [list(spec), constraints, int(number)] if 0 < number <= MAX_FLOW_JOBS:
            return Spec.from_wire(spec), None if constraints is None else Constraints.from_wire(constraints), number
    raise ProtocolError("a workflow with a group of another form")


def _after(ids: Sequence[bytes], edges: memoryview) -> dict[int, dict[bytes, bool]]:
    """What the jobs come after, by position."""
    known = set(ids)
    if len(known) != len(ids):
        raise ProtocolError("a workflow with the same job twice")
    after: dict[int, dict[bytes, bool]] = {}
    for position, parent, goes_on in _EDGE.iter_unpack(edges):
        if position >= len(ids) or (parent in known and parent >= ids[position]):
            raise ProtocolError("a workflow with a job that comes after a later one")  # it might wait for itself
        before = after.setdefault(position, {})
        before[parent] = bool(goes_on) and before.get(parent, True)
    return after


def _packed_constraints(
    shared: Constraints | None, after: dict[int, dict[bytes, bool]], positions: range
) -> Iterable[Constraints | None]:
    for position in positions:
        edges = after.get(position)
        yield shared if edges is None else replace(shared or NO_CONSTRAINTS, after=tuple(edges.items()))


class Submission(NamedTuple):
    """A submit frame that waits for its commit.

    One with parts consists of these: they are taken in together or not at all, and its own jobs are those of all parts.
    """

    peer: Any  # None: it comes from the spool
    request: int
    watch: bool
    spec: Spec
    ids: list[bytes]
    payloads: list[bytes]
    constraints: list[Constraints] | None  # of each job; None: they have none
    parts: tuple[Submission, ...] = ()

    @property
    def each(self) -> tuple[Submission, ...]:
        """The parts, or itself."""
        return self.parts or (self,)

    @property
    def work_us(self) -> float:
        """About how long it takes to take it in, in microseconds."""
        if self.constraints is None and not self.parts:
            return SUBMITTED_US * len(self.ids)
        work_us = 0.0
        for part in self.each:
            if part.constraints is None:
                work_us += SUBMITTED_US * len(part.ids)
            else:
                edges = sum([len(own.after) for own in part.constraints])
                work_us += CONSTRAINED_US * len(part.ids) + EDGE_US * edges
        return work_us


def submission_of(peer: Any, envelope: list[Any], body: memoryview) -> Submission:
    """Reads a submit frame.

    Raises:
        ProtocolError, ConfigError: it makes no sense.
    """
    if envelope and envelope[0] == Op.SUBMIT and list(map(type, envelope[1:7])) == _SUBMIT_TYPES:
        _, request, spec, _, watch, ids, lengths, *more = envelope
        if not ids or len(ids) != _ID_BYTES * len(lengths):
            raise ProtocolError("a submit frame must have an id of 16 bytes for each payload")
        payloads = frames.split(body, lengths)
        separate_ids = [ids[start : start + 16] for start in range(0, len(ids), 16)] if len(lengths) > 1 else [ids]
        constraints = _read_constraints(more, len(separate_ids)) if more else None
        return Submission(peer, request, watch, Spec.from_wire(spec), separate_ids, payloads, constraints)
    match envelope:
        case [Op.SUBMIT_FLOW, int(request), bool(), bool(watch), list(groups), int(edges)]:
            return flow_of(peer, request, watch, groups, edges, body)
    raise ProtocolError("a submit frame of another form")


def flow_of(peer: Any, request: int, watch: bool, groups: list[Any], edges: int, body: memoryview) -> Submission:
    """The groups of jobs in a frame, as one submission.

    Raises:
        ProtocolError, ConfigError: it makes no sense.
    """
    parts = [
        Submission(
            peer,
            request,
            watch,
            spec,
            list(ids),
            list(payloads),
            [own or NO_CONSTRAINTS for own in constraints] if any(constraints) else None,
        )
        for spec, ids, payloads, constraints in read_flow(groups, edges, body)
    ]
    if len(parts) == 1:
        return parts[0]
    if any(own.unique for part in parts for own in part.constraints or ()):
        raise ProtocolError("a workflow with unique jobs")  # one that is left out would leave others without an end
    ids = [job_id for part in parts for job_id in part.ids]
    return Submission(peer, request, watch, parts[0].spec, ids, [], None, tuple(parts))


class EarlierId(bytes):
    """The id of a job that was there before, in place of that of a new one, which was left out: see `unique=`."""

    __slots__ = ()


def accepted_frame(request: int, count: int, earlier: Mapping[bytes, bytes]) -> bytes:
    """Makes the answer to a submission that is durable.

    Args:
        count: how many of its jobs are new.
        earlier: for the id of each that was left out, the id of the one that was there before.
    """
    return frames.frame([Op.OK, request, count], [msgpack.packb(list(earlier.items()))] if earlier else [])


def ids_of(calls: Sequence[Call], answer: Any) -> list[bytes]:
    """Reads the answer to a submission: the ids of the jobs that stand for these calls now."""
    if not isinstance(answer, list):
        return [call.id for call in calls]
    earlier = {new: EarlierId(before) for new, before in answer}
    return [earlier.get(call.id, call.id) for call in calls]


def _read_constraints(more: list[Any], jobs: int) -> list[Constraints]:
    match more:
        case [[fields]]:
            return [Constraints.from_wire(fields)] * jobs
        case [list(all_fields)] if len(all_fields) == jobs:
            return [Constraints.from_wire(fields) for fields in all_fields]
    raise ProtocolError("a submit frame must have the same constraints for all jobs, or constraints for each")
