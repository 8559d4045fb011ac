"""The options of a call, beside the Spec of its task: when the job runs, and the keys by which it is limited or unique.

Evaluated where the job is enqueued, into the `Constraints` of the job. Pure but for the clock, which is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from taskq.client.options.functions import signature_of
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_KEY_CHARS
from taskq.protocol.codec import encode_call

#: How a key comes from a call: all arguments, these parameters, a function of the arguments, or a text as it is.
Key = bool | Sequence[str] | Callable[..., Any] | str


@dataclass(frozen=True, slots=True)
class Unique:
    """Makes a job the only one with its key: ``unique=Unique(by=["user_id"], period=60)``.

    Attributes:
        by: the key: True for all arguments, the names of some parameters, a function of the arguments, or a text as it
            is. Keys of different tasks are different.
        until: an earlier job counts until its "end", or only until its "start".
        period: an earlier job also counts for this many seconds after it was enqueued, even if it has ended (a
            throttle).
        replace: the new job replaces an earlier one that is pending, which ends as cancelled. With ``delay=``, the job
            runs once when calls have ceased for a while: a debounce. By default the new job is left out, and `enqueue`
            returns the earlier one, with `Job.is_duplicate` set.
    """

    by: Key = True
    until: Literal["end", "start"] = "end"
    period: float | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if self.until not in ("end", "start"):
            raise ConfigError(f'until={self.until!r}: use "end" or "start"')
        UniqueKey("checked", self.until == "start", self.period, self.replace)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What is asked for the jobs of a task, or of one `options()`.

    Attributes:
        delay_s, at, expires_s, expires_at: see `TaskQ.task` and `Enqueuer.options`. Times are seconds since 1970.
        unique, limit_by, ordered_by: how keys are made, or None.
        waits_for_room: whether `enqueue` waits while the queue is full.
        after: as `Constraints.after`.
        on_success: whether they are enqueued when the job that runs here has succeeded.
    """

    delay_s: float | None = None
    at: float | None = None
    expires_s: float | None = None
    expires_at: float | None = None
    unique: Unique | None = None
    limit_by: Key | None = None
    ordered_by: Key | None = None
    waits_for_room: bool = False
    after: tuple[tuple[bytes, bool], ...] = ()
    on_success: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether its jobs have no constraints."""
        return replace(self, waits_for_room=False, on_success=False) == PLAIN

    @property
    def are_shared(self) -> bool:
        """Whether the constraints are the same whatever the arguments."""
        return not any(key is not None for key in (self.unique, self.limit_by, self.ordered_by))

    def constraints(
        self,
        task: str,
        function: Callable[..., Any] | None,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        wall: float,
    ) -> Constraints:
        """The constraints of one job.

        Args:
            function: of the task, for the names of its parameters; None if it is not known here.
            wall: seconds since 1970.

        Raises:
            ConfigError: a key cannot be made of these arguments, or it expires before it is due.
        """

        limit_key = None if self.limit_by is None else _key_text(self.limit_by, function, args, kwargs)
        order_key = None if self.ordered_by is None else _key_text(self.ordered_by, function, args, kwargs)
        due_at = wall + self.delay_s if self.delay_s else self.at
        expires_at = wall + self.expires_s if self.expires_s is not None else self.expires_at
        if expires_at is not None and expires_at <= max(wall, due_at or 0.0):
            raise ConfigError(f"{task}: it would expire before it may start: give it a later expires=")
        unique = self.unique
        unique_key = None
        if unique is not None:
            key = _short(f"{task} {_key_text(unique.by, function, args, kwargs)}")
            unique_key = UniqueKey(key, unique.until == "start", unique.period, unique.replace)
        return Constraints(due_at, expires_at, limit_key, order_key, unique_key, after=self.after)


PLAIN = CallOptions()


def _key_text(key: Key, function: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    if isinstance(key, str):
        return _short(key)
    if function is not None and not kwargs and not isinstance(key, bool) and not callable(key):
        positions = _positions(function, tuple(key))
        if positions and len(args) > positions[-1]:
            return _text_of([args[position] for position in positions])
    if callable(key):
        return _text_of([key(*args, **kwargs)])
    signature = None if function is None else _signature(function)
    if signature is None:  # only its name is known here, or it is a builtin that does not tell
        if key is True:
            return _text_of([list(args), dict(kwargs)])
        raise ConfigError(
            f"a key of {key!r} needs the task's function, which is not imported here: give the key itself"
        )
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"these arguments do not fit the task, so there is no key for it: {error}") from None
    bound.apply_defaults()
    if key is True:
        return _text_of([bound.arguments])
    assert not isinstance(key, bool)
    return _text_of([bound.arguments[name] for name in key])


_signature = lru_cache(maxsize=512)(signature_of)


@lru_cache(maxsize=512)
def _positions(function: Callable[..., Any], names: tuple[str, ...]) -> tuple[int, ...]:
    """Where some parameters stand, if that is in their order and they can be given by position; else nothing.
    Spares most calls the binding, which takes ten times as long as all else."""
    signature = _signature(function)
    if signature is None:
        return ()
    places = {
        name: place
        for place, (name, parameter) in enumerate(signature.parameters.items())
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    found = tuple(places[name] for name in names if name in places)
    return found if len(found) == len(names) and list(found) == sorted(found) else ()


def _text_of(values: list[Any]) -> str:
    """A short text for values: themselves where they are one text or number, else a digest."""
    if len(values) == 1 and isinstance(values[0], (str, int)):
        return _short(str(values[0]))
    return _digest(encode_call(bytes(16), values, {}))


def _short(text: str) -> str:
    if 1 <= len(text) <= MAX_KEY_CHARS and text.isprintable():
        return text
    return _digest(text.encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> str:
    from hashlib import sha256  # takes 4 ms to import, which few applications need

    return sha256(data).hexdigest()[:40]
