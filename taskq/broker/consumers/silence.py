"""Consumers that are alive and do nothing: they have jobs, run none of them, and send nothing. Pure.

A job can cut its consumer off in more ways than the consumer itself can notice: a thread that it left behind closes the
descriptor on which the consumer waits. Such a consumer is killed, which does no harm, as it runs nothing.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from taskq.model.attempt import Claim

#: How often the broker looks, in seconds, and after how many looks without a sign of life a consumer is dead. Looks are
#: counted instead of time: when the broker itself was stuck or suspended, its consumers are not to blame for the
#: silence.
LOOK_EVERY_S: Final = 1.0
SILENT_LOOKS: Final = 10


class _Seen(NamedTuple):
    jobs_done: int
    messages: int
    silent_looks: int


class Silences:
    """What was seen of each consumer at the last look."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def look(self, key: int, *, is_awaited: bool, claims: list[Claim], jobs_done: int, messages: int) -> bool:
        """Looks at a consumer. Returns whether it is as good as dead.

        A look at a time when no answer is due does not count, and does not make up for the looks before.

        Args:
            is_awaited: whether it holds jobs, or has not answered since it failed to begin some.
            claims: what it runs.
            jobs_done: how many jobs it has ended.
            messages: how often something arrived from it.
        """
        before = self._seen.get(key)
        is_alive = bool(claims) or before is None or (before.jobs_done, before.messages) != (jobs_done, messages)
        silent_looks = 0 if is_alive or before is None else before.silent_looks + is_awaited
        self._seen[key] = _Seen(jobs_done, messages, silent_looks)
        return silent_looks >= SILENT_LOOKS

    def forget_others(self, keys: set[int]) -> None:
        """Forgets all consumers but these."""
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}
