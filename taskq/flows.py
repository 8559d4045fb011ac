"""Jobs of several kinds in one frame, with what each comes after: the form in which workflows travel and are spooled.

    envelope  [op, ..., groups, number of edges]            groups: [spec, terms or nil, number of jobs]
    body      ids (16 bytes each) | lengths (u32) | edges | payloads
    edge      u32 position of the job after, id of the one before, u8 whether it goes on if that does not succeed

Ids and edges stand in the body, for the envelope is small (see `taskq.wire`), and in a fixed form, for the broker reads
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from struct import Struct, pack, unpack
from typing import Any, NamedTuple

from taskq import wire
from taskq.errors import PayloadTooLarge, ProtocolError
from taskq.limits import MAX_FLOW_JOBS, MAX_FRAME_BYTES, SUBMIT_CHUNK_BYTES
from taskq.model import NO_TERMS, Spec, Terms

_EDGE = Struct("!I16sB")
_ID_BYTES = 16
_LENGTH_BYTES = 4
#: Even if each is of another kind, with keys of full length, their groups fit into the envelope.
_PART_JOBS = 20


class Call(NamedTuple):
    """A job to submit: its id, its payload, and what it has besides its Spec."""

    id: bytes
    payload: bytes
    terms: Terms | None = None


#: Jobs that are submitted together, and may come after each other.
Flow = Sequence[tuple[Spec, Call]]
#: Jobs with one Spec, as columns: ids, payloads, terms.
Group = tuple[Spec, tuple[bytes, ...], tuple[bytes, ...], tuple[Terms | None, ...]]


def flow_frame(head: Sequence[Any], flow: Flow) -> bytes:
    """Makes a frame of jobs.

    Args:
        head: what the envelope begins with.

    Raises:
        PayloadTooLarge: they do not fit into one frame.
    """
    by_kind: dict[tuple[Spec, Terms | None], list[Call]] = {}
    for spec, call in flow:
        own = call.terms
        shared = own if own is None or not own.after else replace(own, after=())
        by_kind.setdefault((spec, None if shared == NO_TERMS else shared), []).append(call)
    calls = [call for group in by_kind.values() for call in group]
    edges = b"".join(
        _EDGE.pack(position, parent, goes_on)
        for position, call in enumerate(calls)
        for parent, goes_on in (call.terms.after if call.terms is not None else ())
    )
    groups = [
        [spec.to_wire(), None if terms is None else terms.to_wire(), len(group)]
        for (spec, terms), group in by_kind.items()
    ]
    lengths = pack(f"!{len(calls)}I", *(len(call.payload) for call in calls))
    body = [b"".join(call.id for call in calls), lengths, edges, *(call.payload for call in calls)]
    size = sum(map(len, body))
    try:
        if len(calls) > MAX_FLOW_JOBS:
            raise ProtocolError("too many jobs")
        return wire.frame([*head, groups, len(edges) // _EDGE.size], body)
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
    size = 0
    was_unique = False
    for spec, call in flow:
        links = 0 if call.terms is None else len(call.terms.after)
        is_unique = call.terms is not None and call.terms.unique is not None
        size += len(call.payload) + _EDGE.size * links
        if part and (is_unique or was_unique or size > SUBMIT_CHUNK_BYTES or len(part) == _PART_JOBS):
            yield part
            part, size = [], len(call.payload) + _EDGE.size * links
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
    payloads = wire.split(body[payloads_at:], unpack(f"!{count}I", body[lengths_at:edges_at]))
    after = _after(ids, body[edges_at:payloads_at])
    starts = [0]
    for _, _, number in kinds:
        starts.append(starts[-1] + number)
    return [
        (spec, tuple(ids[start:end]), tuple(payloads[start:end]), tuple(_terms(terms, after, range(start, end))))
        for (spec, terms, _), (start, end) in zip(kinds, pairwise(starts), strict=True)
    ]


def _kind(group: Any) -> tuple[Spec, Terms | None, int]:
    match group:
        case [list(spec), terms, int(number)] if 0 < number <= MAX_FLOW_JOBS:
            return Spec.from_wire(spec), None if terms is None else Terms.from_wire(terms), number
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


def _terms(shared: Terms | None, after: dict[int, dict[bytes, bool]], positions: range) -> Iterable[Terms | None]:
    for position in positions:
        edges = after.get(position)
        yield shared if edges is None else replace(shared or NO_TERMS, after=tuple(edges.items()))
