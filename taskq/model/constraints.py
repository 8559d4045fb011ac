"""The constraints of one job, beside its spec: when it is due and expires, its keys, and the jobs it comes after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from taskq.model.errors import ConfigError
from taskq.model.limits import MAX_KEY_CHARS, MAX_META_BYTES, MAX_META_NAME_CHARS
from taskq.model.spec import is_count, is_duration


@dataclass(unsafe_hash=True, slots=True)  # not frozen, as Constraints
class UniqueKey:
    """Makes a job the only one with its key.

    Attributes:
        key: identifies jobs that are the same.
        until_start: a job counts until it is started; otherwise until it has ended.
        period_s: a job counts for at least this many seconds after it was enqueued, or None.
        replaces: a new job takes the place of a pending one; otherwise the new one is left out.
    """

    key: str
    until_start: bool = False
    period_s: float | None = None
    replaces: bool = False

    def __post_init__(self) -> None:
        if not _is_key(self.key):
            raise ConfigError(f"unique={self.key!r:.80}: use a text of 1 to {MAX_KEY_CHARS} characters as the key")
        if self.period_s is not None and not is_duration(self.period_s):
            raise ConfigError(f"period={self.period_s!r}: use seconds greater than 0, or None")

    @classmethod
    def from_wire(cls, fields: Any) -> UniqueKey:
        """The opposite of what `Constraints.to_wire` does for it. Raises ConfigError if the fields make no sense."""
        if isinstance(fields, list) and len(fields) == 4:
            key, until_start, period_s, replaces = fields
            if isinstance(until_start, bool) and isinstance(replaces, bool):
                return cls(key, until_start, period_s, replaces)
        raise ConfigError("a unique key must have four fields")


# It never changes, but is not frozen: there may be one for each job, and making a frozen one takes three times as long.
@dataclass(unsafe_hash=True, slots=True)
class Constraints:
    """What one job has besides its Spec. Most jobs have nothing, for which None stands.

    Attributes:
        due_at: the job is not queued before this time, in seconds since 1970. Not kept: the store has it in a column.
        expires_at: the job is not started after this time, in seconds since 1970.
        limit_key: the limits of its task count for the jobs with the same key together.
        order_key: jobs of the task with the same key run one after the other.
        unique: makes it the only one with its key.
        forgiven: the failures, and the crashes, before somebody retried the failed job: they no longer count against
            its retries and its `max_crashes`.
        after: the jobs that must have ended before it, each with whether it goes on if that one did not succeed. Not
            kept: the store has them as edges.
        follows: whether it came after others, and so has edges.
        meta: texts that travel with the job, by name; see `meta_of`.
    """

    due_at: float | None = None
    expires_at: float | None = None
    limit_key: str | None = None
    order_key: str | None = None
    unique: UniqueKey | None = None
    forgiven: tuple[int, int] = (0, 0)
    after: tuple[tuple[bytes, bool], ...] = ()
    follows: bool = False
    meta: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        # fast for the usual: most have one of these or none, and there may be one for each job
        if self.due_at is not None or self.expires_at is not None:
            for value in (self.due_at, self.expires_at):
                if value is not None and not _is_time(value):
                    raise ConfigError(f"due_at, expires_at: {value!r:.80}: use seconds since 1970")
        if self.is_keyed:
            for key in (self.limit_key, self.order_key):
                if key is not None and not _is_key(key):
                    raise ConfigError(
                        f"limit_key, order_key: {key!r:.80}: use a text of 1 to {MAX_KEY_CHARS} characters"
                    )
        if self.forgiven != (0, 0) and (len(self.forgiven) != 2 or not all(map(is_count, self.forgiven))):
            raise ConfigError(f"forgiven={self.forgiven!r:.80}: use two counts")

    @property
    def is_keyed(self) -> bool:
        """Whether it waits only with the jobs of its key."""
        return self.limit_key is not None or self.order_key is not None

    @property
    def max_wire_bytes(self) -> int:
        """The most bytes that it takes in a frame."""
        keys = (self.limit_key or "") + (self.order_key or "") + ("" if self.unique is None else self.unique.key)
        size = 50 + len(keys) * (1 if keys.isascii() else 4)
        if not self.meta:  # nearly all: it is asked of each job
            return size
        return size + sum(10 + len(text) * (1 if text.isascii() else 4) for pair in self.meta for text in pair)

    def is_over(self, wall: float) -> bool:
        """Whether it is too late to start the job."""
        return self.expires_at is not None and self.expires_at <= wall

    @property
    def kept(self) -> Constraints | None:
        """The part that is kept with the job, or None."""
        if self.due_at is None and not self.after:  # for these no copy is needed
            is_used = self.unique is not None or self.is_keyed or self.expires_at is not None or self.meta
            return self if is_used or self != NO_CONSTRAINTS else None
        kept = replace(self, due_at=None, after=(), follows=self.follows or bool(self.after))
        return None if kept == NO_CONSTRAINTS else kept

    def to_wire(self) -> list[object]:
        """The fields in a fixed order, as they travel and are stored; `after` goes its own way."""
        unique = self.unique
        fields = None if unique is None else [unique.key, unique.until_start, unique.period_s, unique.replaces]
        wire: list[object] = [self.due_at, self.expires_at, self.limit_key, self.order_key, fields]
        if self.forgiven != (0, 0):
            wire.append(self.forgiven)
        if self.follows:
            wire.append(True)
        return [*wire, dict(self.meta)] if self.meta else wire

    @classmethod
    def from_wire(cls, fields: Any) -> Constraints:
        """The opposite of `to_wire`. Raises ConfigError if the fields make no sense."""
        if isinstance(fields, list) and len(fields) == 5:  # nearly all; a pattern takes four times as long
            due_at, expires_at, limit_key, order_key, unique = fields
            return cls(
                due_at, expires_at, limit_key, order_key, None if unique is None else UniqueKey.from_wire(unique)
            )
        match fields:
            case [*own, dict(meta)] if 5 <= len(own) <= 7:
                return replace(cls.from_wire(own), meta=meta_of(meta))
            case [*own, True] if len(own) in (5, 6):
                return replace(cls.from_wire(own), follows=True)
            case [*own, list(forgiven)] if len(own) == 5:
                return replace(cls.from_wire(own), forgiven=tuple(forgiven))
        raise ConfigError("a job's constraints must have five fields")


NO_CONSTRAINTS = Constraints()


def meta_of(given: object) -> tuple[tuple[str, str], ...]:
    """The meta of a job: a small map of text to text.

    Raises:
        ConfigError: it is not that, or larger than 4 KiB.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f'meta={given!r:.80}: use a dict of texts, such as {{"tenant": "acme"}}')
    size = 0
    for name, text in given.items():
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_META_NAME_CHARS or not name.isprintable():
            raise ConfigError(f"meta: {name!r:.80} is not a name: use a text of 1 to {MAX_META_NAME_CHARS} characters")
        if not isinstance(text, str):
            raise ConfigError(f"meta: {name} is {text!r:.80}: use a text, such as str(...)")
        try:
            size += len(name.encode()) + len(text.encode())
        except UnicodeEncodeError:
            raise ConfigError(f"meta: {name} is {text!r:.80}, which cannot be encoded as UTF-8") from None
    if size > MAX_META_BYTES:
        raise ConfigError(f"meta takes {size:,} bytes, the limit is {MAX_META_BYTES:,}: pass more as arguments")
    return tuple(given.items())


def _is_key(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_KEY_CHARS and value.isprintable()


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e11
