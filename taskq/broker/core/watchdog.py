"""Jobs that must stop: over their limit of time, CPU time or memory, or cancelled. Pure, like the core that asks.

Only consumers that were sent such a job are known here, and what they hold is read from the core's own records: the
`leased` that is handed in once stays the same dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final, Literal

from taskq.broker.core.earliest import Earliest
from taskq.model.attempt import Claim, Usage
from taskq.model.effects import Event, Key, Stop
from taskq.model.job import JobError, JobRow
from taskq.model.spec import Spec
from taskq.model.units import text_of_bytes
from taskq.model.verdicts import MEMORY_LIMIT_ERROR

#: How often the memory and the CPU time of a consumer are measured, while its job has limits for them.
MEASURE_EVERY_S: Final = 0.05
_NONE: Final[frozenset[int]] = frozenset()


class _Watch:
    """One consumer that was sent a job with limits, or that runs one that was cancelled."""

    __slots__ = ("check_at", "cpu_before_s", "cpu_of", "leased", "measure_at", "signalled", "unwanted")

    def __init__(self, leased: Mapping[int, JobRow]) -> None:
        self.leased = leased  # by number: what the consumer holds
        self.check_at: float | None = None  # when a time limit may be over
        self.measure_at: float | None = None  # when to measure its use of memory and CPU time
        self.cpu_of = 0  # the number of the job with a limit of CPU time that was seen last
        self.cpu_before_s = 0.0  # the CPU time of the process when that job was first seen
        self.unwanted: set[int] = set()  # numbers of running jobs that were cancelled
        self.signalled: dict[int, float] = {}  # numbers that got the soft signal, and when their time to clean up ends

    def ends_at(self, claim: Claim, now: float) -> float | None:
        """When the time of a running job is over; None if it has no limit."""
        row = self.leased.get(claim.number)
        if row is None:
            return None
        if claim.number in self.unwanted:
            return now
        return None if row.spec.timeout_s is None else claim.started_at + row.spec.timeout_s


class Watchdog:
    """When to look at which consumer, and what to do with it."""

    def __init__(self, kill_grace_s: float, slots: int) -> None:
        """
        Args:
            kill_grace_s: seconds between the soft signal of a timeout and the kill.
            slots: how many jobs each consumer runs at once.
        """
        self._kill_grace_s = kill_grace_s
        self._is_metering = (
            slots == 1
        )  # with several slots such jobs are refused where they arrive (taskq.consumer.runner)
        self._watches: dict[Key, _Watch] = {}
        self._next_check = Earliest(
            lambda: [at for watch in self._watches.values() for at in (watch.check_at, watch.measure_at)]
        )

    # -- what the core reports

    def sent(self, key: Key, leased: Mapping[int, JobRow], specs: Sequence[Spec], now: float) -> None:
        """Notes that a consumer was just sent jobs with limits.

        Args:
            leased: what it holds, by number.
            specs: of the jobs with limits.
        """
        watch = self._watch(key, leased)
        limits_s = [spec.timeout_s for spec in specs if spec.timeout_s is not None]
        if limits_s:
            earliest = now + min(limits_s)
            watch.check_at = earliest if watch.check_at is None else min(watch.check_at, earliest)
        if self._is_metering and watch.measure_at is None and any(spec.is_metered for spec in specs):
            watch.measure_at = now + MEASURE_EVERY_S
        self._note(watch)

    def cancelled(self, key: Key, leased: Mapping[int, JobRow], number: int, now: float) -> None:
        """Notes that a running job was cancelled.

        Args:
            leased: what its consumer holds, by number.
            number: of the job.
        """
        watch = self._watch(key, leased)
        if number not in watch.unwanted:
            watch.unwanted = {other for other in watch.unwanted if other in leased} | {number}
            watch.check_at = now
            self._note(watch)

    def _note(self, watch: _Watch) -> None:
        """Brings the next look forward: this consumer may be due earlier than any other."""
        self._next_check.bring_forward(watch.check_at)
        self._next_check.bring_forward(watch.measure_at)

    def _watch(self, key: Key, leased: Mapping[int, JobRow]) -> _Watch:
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(leased)
        return watch

    def unwanted(self, key: Key) -> Set[int]:
        """The numbers of a consumer's jobs that were cancelled while they ran."""
        watch = self._watches.get(key)
        return _NONE if watch is None else watch.unwanted

    def forget(self, key: Key) -> None:
        """Forgets a consumer that is gone."""
        self._watches.pop(key, None)

    # -- time

    def next_check(self, now: float) -> float | None:
        """When to look next, for time or for a measurement (monotonic)."""
        return self._next_check.next(now)

    def moment(self, now: float) -> float:
        """The same; infinity for never."""
        return self._next_check.moment(now)

    def is_due(self, now: float) -> bool:
        """Whether a consumer has to be checked or measured: if not, there is no need to ask which."""
        return self._next_check.is_due(now)

    def to_check(self, now: float) -> list[Key]:
        """The consumers to check for a job whose time is over."""
        return [key for key, watch in self._watches.items() if watch.check_at is not None and watch.check_at <= now]

    def check(self, key: Key, claims: Sequence[Claim], now: float, notes: list[Event]) -> list[Stop]:
        """Decides what to do with a consumer, given what it is running: signal it or kill it for a job, or nothing.

        Args:
            notes: gets the lines for the log.
        """
        watch = self._watches.get(key)
        if watch is None:
            return []
        signalled = watch.signalled = {n: at for n, at in watch.signalled.items() if n in watch.leased}
        limits_s = [row.spec.timeout_s for row in watch.leased.values() if row.spec.timeout_s is not None]
        # the job that starts next may have the shortest limit of all, and cannot exceed it before this moment
        checks = [now + min(limits_s)] if limits_s else []
        stops = []
        for claim in claims:
            number = claim.number
            check_at = watch.ends_at(claim, now)
            if check_at is None:
                continue
            if now >= check_at:
                if number not in signalled:
                    signalled[number] = now + self._kill_grace_s
                    notes.append(_note_of_signal(key, watch, number))
                    stops.append(Stop(number, "signal"))
                elif now >= signalled[number]:
                    stops.append(Stop(number, "kill"))
                    break  # the others go back with the process
                check_at = signalled[number]
            checks.append(check_at)
        watch.check_at = min(checks, default=None)
        self._note(watch)
        return stops

    def to_be_killed(self, by: float) -> list[tuple[Key, int]]:
        """The jobs that were sent the signal, and whose process is killed before a time unless they end before."""
        return [
            (key, number)
            for key, watch in self._watches.items()
            for number, kill_at in watch.signalled.items()
            if kill_at <= by and number in watch.leased
        ]

    # -- memory and CPU time

    def to_measure(self, now: float) -> list[Key]:
        """The consumers whose use of memory and CPU time should be measured, for a job that has limits."""
        return [key for key, watch in self._watches.items() if watch.measure_at is not None and watch.measure_at <= now]

    def measured(
        self, key: Key, claims: Sequence[Claim], usage: Usage | None, now: float, notes: list[Event]
    ) -> Literal["signal"] | JobError | None:
        """Decides what to do with a consumer, given its usage: signal it for its job, kill it for the error that this
        returns, or nothing.

        It has one slot: with several, nobody could tell which job uses what.

        Args:
            notes: gets the lines for the log.
        """
        watch = self._watches.get(key)
        if watch is None:
            return None
        is_metered = any(row.spec.is_metered for row in watch.leased.values())
        watch.measure_at = now + MEASURE_EVERY_S if is_metered else None
        self._note(watch)
        number = claims[0].number if claims else 0
        row = watch.leased.get(number)
        if row is None or usage is None:
            return None
        memory_limit, cpu_limit_s = row.spec.memory_limit_bytes, row.spec.cpu_timeout_s
        if memory_limit is not None and usage.rss_bytes > memory_limit:
            used = f"it used {text_of_bytes(usage.rss_bytes)} and was killed"
            return JobError(MEMORY_LIMIT_ERROR, f"the job may use {text_of_bytes(memory_limit)} of memory, {used}")
        if cpu_limit_s is None:
            return None
        if watch.cpu_of != number:
            watch.cpu_of, watch.cpu_before_s = number, usage.cpu_s
        used_s = usage.cpu_s - watch.cpu_before_s
        if used_s < cpu_limit_s:
            return None
        if number not in watch.signalled:
            watch.signalled = {number: now + self._kill_grace_s}
            fields = {"row": row, "consumer_key": key, "attempt": row.attempts + 1}
            notes.append(Event("job.timed_out", {**fields, "cpu_timeout_s": cpu_limit_s, "cpu_s": round(used_s, 3)}))
            return "signal"
        if now < watch.signalled[number]:
            return None
        text = f"the job may use {cpu_limit_s:g} s of CPU time; it used {used_s:.2f} s and was killed"
        return JobError("CpuTimeout", text)


def _note_of_signal(key: Key, watch: _Watch, number: int) -> Event:
    row = watch.leased[number]
    fields = {"row": row, "consumer_key": key, "attempt": row.attempts + 1}  # it may have ended before this is logged
    if number in watch.unwanted:
        return Event("job.cancelling", fields)
    return Event("job.timed_out", {**fields, "timeout_s": row.spec.timeout_s})
