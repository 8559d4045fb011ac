"""The options that stay on your side: what is worked out for each call, and what is asked in the consumer.

When a job is enqueued, `CallOptions.constraints` works out its times and keys. When its function raises in a consumer,
`gives_up` and `retry_delay_s` decide about the next attempt: that is code of the application and needs the exception.
Everything else is in the job's `Spec`, and also counts where there is no exception: after a crash, or a kill for time
or memory. All of it is pure: the time is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from taskq.client.options.keys import Key, key_text, short_text
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import Cancel, ConfigError, JobTimeout, Retry, Snooze, is_delay

#: What `backoff=` takes: a list of seconds, or a function of the attempt's number and its error; None for the default.
Backoff = Sequence[float] | Callable[[int, BaseException], float] | None
#: What `retry_on=` and `give_up_on=` take.
ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]

#: What a job raises that is not an error of its code.
NOT_ERRORS = (JobTimeout, Retry, Snooze, Cancel)


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
    """The options of a task's jobs, or of the jobs of one `options()`, that do not travel as they are.

    Attributes:
        due: when they may start: a moment, or the seconds after the call; None for at once.
        expires: when they expire: a moment, or the seconds after the call.
        unique, limit_by, ordered_by: how their keys are made, or None.
        meta: as `Constraints.meta`.
        after: as `Constraints.after`.
        waits_for_room: whether `enqueue` waits while the queue is full.
        on_success: whether they are enqueued when the job that runs here has succeeded.
        backoff: a function ``(attempt, error) -> seconds`` for the delay before a retry.
        retry_on: the only errors after which a job is retried, or None for all.
        give_up_on: the errors that end a job; they go before `retry_on`.
    """

    due: datetime | float | None = None
    expires: datetime | float | None = None
    unique: Unique | None = None
    limit_by: Key | None = None
    ordered_by: Key | None = None
    meta: tuple[tuple[str, str], ...] = ()
    after: tuple[tuple[bytes, bool], ...] = ()
    waits_for_room: bool = False
    on_success: bool = False
    backoff: Callable[[int, BaseException], float] | None = None
    retry_on: tuple[type[BaseException], ...] | None = None
    give_up_on: tuple[type[BaseException], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the jobs have no constraints."""
        return self.due is None and self.expires is None and self.are_shared and not self.after and not self.meta

    @property
    def are_shared(self) -> bool:
        """Whether the constraints are the same whatever the arguments."""
        return self.unique is None and self.limit_by is None and self.ordered_by is None

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
            ConfigError: a key cannot be made of these arguments, or the job expires before it is due.
        """
        limit_key = None if self.limit_by is None else key_text(self.limit_by, function, args, kwargs)
        order_key = None if self.ordered_by is None else key_text(self.ordered_by, function, args, kwargs)
        due_at, expires_at = _moment(self.due, wall), _moment(self.expires, wall)
        if expires_at is not None and expires_at <= max(wall, due_at or 0.0):
            raise ConfigError(f"{task}: the job would expire before it may start: give it a later expires=")
        unique = self.unique
        unique_key = None
        if unique is not None:
            key = short_text(f"{task} {key_text(unique.by, function, args, kwargs)}")
            unique_key = UniqueKey(key, unique.until == "start", unique.period, unique.replace)
        return Constraints(due_at, expires_at, limit_key, order_key, unique_key, after=self.after, meta=self.meta)

    def gives_up(self, error: BaseException) -> bool:
        """Whether an error ends the job. A timeout never does: this is about what the code raises itself."""
        if isinstance(error, NOT_ERRORS):
            return False
        return isinstance(error, self.give_up_on) or (
            self.retry_on is not None and not isinstance(error, self.retry_on)
        )

    def retry_delay_s(self, attempt: int, error: BaseException) -> float | None:
        """The seconds that the task's own function wants to wait before the retry; None if it has no function.

        Raises:
            Exception: whatever the function raises; ConfigError if it does not return a number of seconds.
        """
        if self.backoff is None:
            return None
        wish: object = self.backoff(attempt, error)
        delay_s = as_delay_s(wish)
        if delay_s is None:
            raise ConfigError(f"the backoff function returned {wish!r:.100}: use seconds, 0 or more")
        return delay_s


#: Those of most tasks: none.
PLAIN = CallOptions()


def _moment(when: datetime | float | None, wall: float) -> float | None:
    """Seconds since 1970."""
    if when is None:
        return None
    return when.timestamp() if isinstance(when, datetime) else wall + when


def as_delay_s(value: object) -> float | None:
    """The number of seconds that a job is to wait, as a plain float; None if it is not one."""
    if not is_delay(value):
        return None
    delay_s = float(value)  # type: ignore[arg-type]  # a subclass of it may compare as it likes
    return delay_s if is_delay(delay_s) else None
