"""The limits that waiting jobs have, each shared by its partitions: the state of each, and when rates open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import count

from taskq.broker.core.limiters import Rate, new_state
from taskq.broker.core.waiting import SharedLimit
from taskq.model.partition import Limit, Starts


class SharedLimits:
    """All limits of which something is known. A limit is found by its kind and name."""

    def __init__(self, slots: int, capacities: Mapping[str, int]) -> None:
        """
        Args:
            slots: how many jobs a consumer runs at once.
            capacities: the fleet's resources.
        """
        self._slots = slots
        self._capacities = capacities
        self.in_use: dict[tuple[str, str], SharedLimit] = {}
        self._openings: list[tuple[float, int, Limit]] = []  # when closed rates may open (monotonic)
        self._rates_changed: set[Limit] = set()  # whose starts are not kept by the store yet
        self._rates_before: dict[str, Starts] = {}  # what the store has kept of rates that nobody asked for since
        self._ties = count()

    def get(self, limit: Limit) -> SharedLimit:
        """The limit of this kind and name, which is new if nothing is known of it."""
        shared = self.in_use.get((limit.kind, limit.name))
        if shared is None:
            before = self._rates_before.pop(limit.name, ()) if limit.kind == "rate" else ()
            shared = SharedLimit(Rate(before) if before else new_state(limit, self._slots, self._capacities))
            self.in_use[limit.kind, limit.name] = shared
        return shared

    def forget(self, limit: Limit, shared: SharedLimit, now: float = 0.0) -> None:
        """No partition has this limit: it goes if nothing need be known of it, else later."""
        if isinstance(shared.state, Rate):
            shared.state.forget(limit, now)
        if shared.state.is_idle:
            self.in_use.pop((limit.kind, limit.name), None)
        else:
            self.note_opening(limit, shared)

    # -- rates

    def note_start(self, limit: Limit) -> None:
        """A job of a rate has started: the store is to keep that."""
        self._rates_changed.add(limit)

    def note_opening(self, limit: Limit, shared: SharedLimit) -> None:
        """If it is a rate: its opening is to be waited for."""
        if isinstance(shared.state, Rate) and not shared.is_timed:
            shared.is_timed = True
            heappush(self._openings, (shared.state.opens_at(limit), next(self._ties), limit))

    def next_opening(self) -> float | None:
        """When a limit may open by time (monotonic)."""
        return self._openings[0][0] if self._openings else None

    def take_open(self, now: float) -> Iterator[tuple[Limit, SharedLimit]]:
        """The limits that may have opened by time."""
        while self._openings and self._openings[0][0] <= now:
            _, _, limit = heappop(self._openings)
            shared = self.in_use.get((limit.kind, limit.name))
            if shared is not None:
                shared.is_timed = False
                yield limit, shared

    def restore_rates(self, starts: Mapping[str, Starts], now: float, wall: float) -> None:
        """At the start, before `found`: what `changed_rates` told before. `now` and `wall` are the same moment. If the
        clock was set back meanwhile, what would be yet to come has just been."""
        ahead_s = wall - now
        self._rates_before = {
            name: [(min(begins - ahead_s, now), count) for begins, count in slots] for name, slots in starts.items()
        }

    def changed_rates(self, now: float, wall: float) -> list[tuple[str, Starts, float]]:
        """The starts that count for rates, as far as they changed: name, starts, and when they count no more, all in
        seconds since 1970. `now` and `wall` are the same moment."""
        changed, self._rates_changed = self._rates_changed, set()
        told: list[tuple[str, Starts, float]] = []
        for limit in changed:
            shared = self.in_use.get((limit.kind, limit.name))  # forgotten meanwhile: its starts count no more
            state = None if shared is None else shared.state
            if isinstance(state, Rate) and state.slots:
                slots = [(begins + wall - now, count) for begins, count in state.slots]
                told.append((limit.name, slots, slots[-1][0] + 2 * limit.period_s))
        return told
