"""Makes payloads. If one cannot be made, finds the part of the value that is the reason."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from taskq.model.errors import PayloadError, is_from_signal_handler
from taskq.model.limits import MAX_INLINE_PAYLOAD_BYTES
from taskq.protocol.codec.format import ONLY_STR, FrozenFields, named, shown_key, told
from taskq.protocol.codec.models import dumped, fields_of_attrs, is_attrs, is_pydantic, is_root_model
from taskq.protocol.codec.pack import MAY_BE_SET_ASIDE, Blocks, Unsupported, is_namedtuple, pack_value, set_aside
from taskq.protocol.payloads.filed import CRC_BYTES, FiledPayload, Kind


def encode_call(job_id: bytes, args: Sequence[Any], kwargs: Mapping[str, Any], *, may_have_file: bool = False) -> bytes:
    """Makes the payload of a call.

    Args:
        job_id: the job's id; the checksum covers it, so a payload cannot pass for another job's.
        args: the positional arguments.
        kwargs: the keyword arguments.
        may_have_file: whether a payload of more than MAX_INLINE_PAYLOAD_BYTES becomes a `FiledPayload`.

    Returns:
        The payload. Its size is not limited here.

    Raises:
        PayloadError: something cannot be serialized; the message names the place and the type.
    """
    if kwargs and not ONLY_STR.issuperset(map(type, kwargs)):
        raise PayloadError("kwargs: the name of a keyword argument is a str, and of no subclass")
    blocks: Blocks | None = None
    call: list[Any] = [list(args), dict(kwargs) if kwargs else {}]
    try:
        if may_have_file:
            blocks = []
            for value in args:
                if type(value) in MAY_BE_SET_ASIDE and len(value) > MAX_INLINE_PAYLOAD_BYTES:
                    call[0] = [set_aside(each) for each in args]
                    break
            if kwargs:
                call[1] = {name: set_aside(each) for name, each in kwargs.items()}
        body = pack_value(call, blocks)
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        raise _explained({"args": tuple(args), "kwargs": dict(kwargs)}, error) from _cause(error)
    if may_have_file and (blocks or len(body) > MAX_INLINE_PAYLOAD_BYTES - CRC_BYTES):
        return FiledPayload.of(job_id, Kind.ARGUMENTS, body, blocks or ())
    return zlib.crc32(body, zlib.crc32(job_id)).to_bytes(CRC_BYTES, "big") + body


def encode_result(job_id: bytes, value: Any, *, may_have_file: bool = False) -> bytes:
    """Makes the payload of a result.

    Args:
        job_id: the job's id, as for `encode_call`.
        value: what the task returned.
        may_have_file: as for `encode_call`.

    Returns:
        The payload. Its size is not limited here.

    Raises:
        PayloadError: something cannot be serialized; the message names the place and the type.
    """
    blocks: Blocks | None = [] if may_have_file else None
    try:
        body = pack_value(set_aside(value) if may_have_file else value, blocks)
    except Exception as error:
        if is_from_signal_handler(error):
            raise
        raise _explained({"result": value}, error) from _cause(error)
    if may_have_file and (blocks or len(body) > MAX_INLINE_PAYLOAD_BYTES - CRC_BYTES):
        return FiledPayload.of(job_id, Kind.RESULT, body, blocks or ())
    return zlib.crc32(body, zlib.crc32(job_id)).to_bytes(CRC_BYTES, "big") + body


# ------------------------------------------------------------------------------------------------------------
# Failures: which part of the value cannot be serialized? Nothing here runs while all goes well.
# ------------------------------------------------------------------------------------------------------------

#: Deeper than any msgpack goes: it stops at 1,024 levels (512 of tuples), which need 400 KB of C stack.
_TOO_DEEP = 1_100
#: From this depth on, nesting may be the reason of a failure for which no other is found.
_SUSPECT_DEPTH = 100
_SHOWN_PIECES = 12


class _Node(NamedTuple):
    """A value and its place: ``piece`` is what the place adds to that of its parent."""

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
    return None if isinstance(error, Unsupported) else error


def _explained(roots: Mapping[str, Any], error: Exception) -> PayloadError:
    """Looks for the value that cannot be serialized. Not recursive, since values may be nested without end."""
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
                pack_value(node.value)
                continue
        except Exception as found:
            return _refusal(node, found)
        stack += [_Node(child, piece, node, node.depth + 1) for piece, child in reversed(children)]
    if isinstance(error, Unsupported):
        return PayloadError(f"{deepest.chain()[0].piece}: {error}")
    return _unplaced(deepest, error)


def _refusal(node: _Node, found: Exception) -> PayloadError:
    if isinstance(found, UnicodeEncodeError):
        lone = ascii(found.object[found.start])
        hint = f"it holds a lone surrogate ({lone}); pass bytes, or text that was decoded without errors"
    elif isinstance(found, Unsupported):
        hint = str(found)
    else:
        hint = told(found)
    return PayloadError(f"{node.place()}: {named(type(node.value))} cannot be serialized; {hint}")


def _unplaced(deepest: _Node, error: Exception) -> PayloadError:
    """The error if no value fails by itself: one contains itself, or they are nested too deep."""
    seen: dict[int, _Node] = {}
    for node in deepest.chain() if deepest.depth > _TOO_DEEP else ():
        first = seen.setdefault(id(node.value), node)
        if first is not node:
            what = f"{named(type(first.value))} that contains itself (at {node.place()})"
            return PayloadError(f"{first.place()}: {what} cannot be serialized; pass a copy without it")
    text = told(error)
    if deepest.depth < _SUSPECT_DEPTH:  # such as when another thread has changed the value meanwhile
        return PayloadError(f"{deepest.chain()[0].piece}: cannot be serialized; {text}")
    nested = f"values nested {min(deepest.depth, _TOO_DEEP)} levels deep or more"
    return PayloadError(f"{deepest.place()}: {nested} cannot be serialized ({text}); pass them flat")


def _children(value: Any) -> list[tuple[str, Any]] | None:
    """The values that a value holds, and what their places add; None if it is packed by itself."""
    kind = type(value)
    if kind in (dict, FrozenFields, OrderedDict, defaultdict, Counter):
        keys = [("<key>", key) for key in value]
        return keys + [(f"[{shown_key(key)}]", item) for key, item in value.items()]
    if kind in (set, frozenset):
        return [("<member>", item) for item in value]
    if isinstance(value, Enum):
        return [(".value", value._value_)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    if is_attrs(kind):
        return [(f".{name}", item) for name, item in fields_of_attrs(value).items()]
    if is_pydantic(kind) and not is_root_model(kind):
        return [(f".{name}", item) for name, item in dumped(value).items()]
    if kind is list or kind is tuple or is_namedtuple(value):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    return None
