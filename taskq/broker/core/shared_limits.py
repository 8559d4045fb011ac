"""The limits that waiting jobs have, each shared by its partitions: the state of each, and when rates open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from itertools import count

from taskq.broker.core.waiting import SharedLimit
from taskq.model.partition import Limit, Starts
from taskq.model.rules.limiters import Rate, new_state, unpack


class SharedLimits:
    """All limits in use. A limit is found by its kind and name."""

    def __init__(self, slots: int, capacities: Mapping[str, int]) -> None:
        """
        Args:
            slots: how many jobs a consumer runs at once.
            capacities: the fleet's resources.
        """
        self._slots = slots
        self._capacities = capacities
        self.in_use: dict[tuple[str, str], SharedLimit] = {}
        self._granted: dict[tuple[str, str], int] = {}  # what this fleet may use of those that it shares with others
        self._allowed: dict[str, int] | None = None  # by rate that is not in use: starts that are counted elsewhere
        self._openings: list[tuple[float, int, Limit]] = []  # when closed rates may open (monotonic)
        self._rates_changed: set[Limit] = set()  # those with starts that the store does not have yet
        self._rates_before: dict[str, Starts] = {}  # what the store has kept of rates that were not used since
        self._ties = count()

    def get(self, limit: Limit) -> SharedLimit:
        """Returns the limit of this kind and name; a new one if it is not in use."""
        shared = self.in_use.get((limit.kind, limit.name))
        if shared is None:
            before = self._rates_before.pop(limit.name, ()) if limit.kind == "rate" else ()
            state = unpack("rate", (before,)) if before else new_state(limit, self._slots, self._capacities)
            state.granted = self._granted.get((limit.kind, limit.name))
            if self._allowed is not None:
                if isinstance(state, Rate):
                    state.allowed = self._allowed.pop(limit.name, 0)
                elif limit.kind != "resource" and state.granted is None:
                    state.granted = 0
            shared = SharedLimit(state)
            self.in_use[limit.kind, limit.name] = shared
        return shared

    def forget(self, limit: Limit, shared: SharedLimit, now: float = 0.0) -> None:
        """Removes a limit that no partition has any more: at once if its state does not matter, else later."""
        if isinstance(shared.state, Rate):
            shared.state.forget(limit, now)
        if shared.state.is_idle:
            self.in_use.pop((limit.kind, limit.name), None)
            if self._allowed is not None and isinstance(shared.state, Rate) and shared.state.allowed:
                self._allowed[limit.name] = shared.state.allowed
        else:
            self.note_opening(limit, shared)

    def grant(self, kind: str, name: str, amount: int | None) -> SharedLimit | None:
        """Sets how much of a limit this fleet may use from now on; None for all of it. Returns the limit if it is in
        use: partitions that are parked at it may go now."""
        if amount is None:
            self._granted.pop((kind, name), None)
        else:
            self._granted[kind, name] = amount
        shared = self.in_use.get((kind, name))
        if shared is not None:
            shared.state.granted = amount
        return shared

    # -- limits that fleets share

    def share(self) -> None:
        """From now on, nothing may be used of concurrencies, orders and rates but what `grant` and `allow_starts`
        say."""
        self._allowed = {}

    def revoke(self, kind: str, name: str) -> None:
        """Forgets a limit that was granted: no job here has it, and what others do with it is not known."""
        self._granted.pop((kind, name), None)
        shared = self.in_use.get((kind, name))
        if shared is not None:
            shared.state = new_state(Limit(kind, name, 0), self._slots, self._capacities)
            shared.state.granted = 0

    def used(self, kind: str, name: str) -> int:
        """How much of a limit the jobs take that consumers have."""
        shared = self.in_use.get((kind, name))
        return 0 if shared is None else shared.state.usage(Limit(kind, name, 0))[0]

    def unused_starts(self, name: str) -> int:
        """How many of the allowed starts of a rate were not made."""
        shared = self.in_use.get(("rate", name))
        if shared is None:
            return (self._allowed or {}).get(name, 0)
        return (isinstance(shared.state, Rate) and shared.state.allowed) or 0

    def allow_starts(self, name: str, more: int) -> SharedLimit | None:
        """Allows more starts of a rate, or fewer. Returns the limit if it is in use."""
        shared = self.in_use.get(("rate", name))
        if shared is None:
            assert self._allowed is not None
            self._allowed[name] = self._allowed.get(name, 0) + more
            if self._allowed[name] == 0:
                del self._allowed[name]
        elif isinstance(shared.state, Rate):
            shared.state.allowed = (shared.state.allowed or 0) + more
        return shared

    # -- rates

    def note_start(self, limit: Limit) -> None:
        """Notes that a job with a rate has started, so that the store will keep that."""
        if self._allowed is None:
            self._rates_changed.add(limit)

    def note_opening(self, limit: Limit, shared: SharedLimit) -> None:
        """Notes when a limit opens, if it is a rate: others do not open by time."""
        if isinstance(shared.state, Rate) and not shared.is_timed and not shared.state.is_idle:
            shared.is_timed = True
            heappush(self._openings, (shared.state.opens_at(limit), next(self._ties), limit))

    def next_opening(self) -> float | None:
        """When a limit may open by time (monotonic)."""
        return self._openings[0][0] if self._openings else None

    def take_open(self, now: float) -> Iterator[tuple[Limit, SharedLimit]]:
        """Yields the limits that may have opened by time."""
        while self._openings and self._openings[0][0] <= now:
            _, _, limit = heappop(self._openings)
            shared = self.in_use.get((limit.kind, limit.name))
            if shared is not None:
                shared.is_timed = False
                yield limit, shared

    def restore_rates(self, starts: Mapping[str, Starts], now: float, wall: float) -> None:
        """Takes over, at the start and before `found`, what `changed_rates` returned before. `now` and `wall` are the
        same moment. If the clock was set back meanwhile, starts that would be in the future count as just now."""
        ahead_s = wall - now
        self._rates_before = {
            name: [(min(begins - ahead_s, now), count) for begins, count in slots] for name, slots in starts.items()
        }

    def changed_rates(self, now: float, wall: float) -> list[tuple[str, Starts, float]]:
        """Returns the starts of the rates that have changed: the rate's name, its starts, and when they stop counting,
        all in seconds since 1970. They are returned again until `rates_stored` says that they are durable. `now` and
        `wall` are the same moment."""
        changed, self._rates_changed = self._rates_changed, set()
        told: list[tuple[str, Starts, float]] = []
        for limit in changed:
            shared = self.in_use.get((limit.kind, limit.name))  # None if forgotten meanwhile: no start counts any more
            state = None if shared is None else shared.state
            if isinstance(state, Rate) and not state.is_idle:
                starts, _ = state.pack()  # a new broker has none of the jobs that consumers have now
                slots = [(begins + wall - now, count) for begins, count in starts]
                told.append((limit.name, slots, slots[-1][0] + 2 * limit.period_s))
                self._rates_changed.add(limit)
        return told

    def rates_stored(self) -> None:
        """What `changed_rates` has just returned is durable."""
        self._rates_changed.clear()
