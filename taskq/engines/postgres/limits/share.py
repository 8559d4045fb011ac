"""Limits that hold over all fleets: which partitions with limits this fleet asks for jobs, and what it may use. Pure.

    concurrency  a fleet is granted some of the places, and enforces that by itself; it gives back what it does not use
    order        a fleet has the whole key while it has a job of it
    rate         each start is counted in the database when its job is leased, and must be made at once or given back
    resource     a machine's own

A fleet that waits for more says so for some seconds, and again when it tries again. Others that have more than their
part (fair.py) then take no new jobs beyond it, and give back what they do not use; a fleet that is idle waits for
nothing and has nothing.

So a limit costs nothing for each job, and jobs of one travel in batches. Who changes what is left of a limit holds its
lock until the commit, and whoever does not get the lock tries again later: nobody waits for anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from operator import attrgetter
from typing import Final, NamedTuple

import msgpack

from taskq.engines.contract import FleetShare
from taskq.engines.postgres.held import HeldJobs, LimitKey
from taskq.engines.postgres.limits.fair import Claim, part_of
from taskq.engines.postgres.limits.partitions import AT_ONCE, LimitedPartitions, of_kind
from taskq.model.partition import Limit, Partition
from taskq.model.rules.limiters import Order, Rate, starts_within_s, with_slack
from taskq.protocol.postgres.plans import Rows

#: How many of the jobs that a partition has are counted.
COUNTED: Final = 64
#: How soon to try again for a limit that another fleet is changing.
_LOCKED_S: Final = 0.01
#: How long a rate is left alone after its starts were not made in time: all consumers are busy.
_BUSY_S: Final = 0.5
#: How soon to try again for a start that is another fleet's turn; how soon at the latest for a rate that others share;
#: and how much longer than until then a fleet waits, as others see it.
_TURN_S: Final = 0.05
_RETRY_S: Final = 5.0
_WAITS_S: Final = 1.0
NO_BOUND: Final = (1 << 63) - 1


class Wanted(NamedTuple):
    """What a fleet wants of a queue.

    Attributes:
        place: of the queue among those that a lease asks for, from 1 on.
        jobs: how many.
        slots: how many jobs of it consumers can run at once.
        ahead: how many jobs each of these slots does in the next moment, at least 1.
        free: how many of these slots have no job.
    """

    place: int
    jobs: int
    slots: int
    ahead: float
    free: int


class Probe(NamedTuple):
    """What a round asks about first: which partitions have jobs.

    Attributes:
        numbers: partitions with limits that may have some.
        after: where to look for others: behind this number; None: not now.
        wanted: what the fleet wants, by queue.
        now: monotonic.
    """

    numbers: list[int]
    after: int | None
    wanted: Mapping[str, Wanted]
    now: float


class Seen(NamedTuple):
    """Which partitions have jobs: the rows of `statements.READY`, and those of `statements.SCAN` if there was one."""

    ready: Rows
    scanned: Rows | None

    def rows(self) -> dict[int, tuple[int, int]]:
        """The first seq, and the count of jobs, of each."""
        rows = {number: (first, jobs) for number, first, jobs in self.scanned or ()}
        rows.update({number: (first, jobs) for number, first, jobs in self.ready})
        return rows


class Wish(NamedTuple):
    """A partition that has jobs: its number, the first one of them, and how many there are, up to `COUNTED`."""

    number: int
    partition: Partition
    first_seq: int
    jobs: int


class Found(NamedTuple):
    """What a round learns about the limits of its wishes.

    Attributes:
        locked: the limits that it may change.
        others: how much of each others have.
        rates: the packed states of rates.
        again: for each order key, the first job that was started and will run again.
        at: the database's time, in seconds since 1970.
        claims: what each other fleet has of each limit.
        waits: for how many seconds the fleet has been waiting for more of each.
    """

    locked: Collection[LimitKey]
    others: Mapping[LimitKey, int]
    rates: Mapping[str, bytes]
    again: Mapping[LimitKey, int]
    at: float
    claims: Mapping[LimitKey, Sequence[Claim]] = {}
    waits: Mapping[LimitKey, float | None] = {}

    def part(self, key: LimitKey, amount: int) -> int:
        """How much of a limit the fleet may have while others wait."""
        return part_of(amount, self.waits.get(key), self.claims.get(key, ()))


class Counted(NamedTuple):
    """Starts that were counted, and the beginning of the slot in which they count."""

    limit: Limit
    counted_in: float
    starts: int


@dataclass(slots=True)
class Allotment:
    """What a round leases of partitions with limits.

    Attributes:
        caps, bounds: for each partition, how many jobs, and the `seq` of the last one that may go.
        granted: how much of each limit the fleet has from then on, as far as that is more.
        closed: partitions whose turn it is not, each with the limit, and in how many seconds to look again.
        most: how much of each limit it may have.
        parts: the same, of those of which others wait for some.
        waits: for how many seconds it waits for more of each, as others see it.
        started: the rates of which it has got some.
        rates: the states of rates, by name, in which the starts are to be counted.
        given_back: starts that are not counted any more.
        counted: those that are.
    """

    caps: dict[int, int] = field(default_factory=dict)
    bounds: dict[int, int] = field(default_factory=dict)
    granted: dict[LimitKey, int] = field(default_factory=dict)
    closed: dict[int, tuple[LimitKey, float]] = field(default_factory=dict)
    most: dict[LimitKey, int] = field(default_factory=dict)
    parts: dict[LimitKey, int] = field(default_factory=dict)
    waits: dict[LimitKey, float] = field(default_factory=dict)
    started: set[LimitKey] = field(default_factory=set)
    rates: dict[str, Rate] = field(default_factory=dict)
    given_back: list[Counted] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)


class OwnClaim(NamedTuple):
    """What a fleet has of a limit, for how many seconds it waits for more, if it does; whether it has just got some."""

    kind: str
    name: str
    amount: int
    waits_s: float | None
    has_got: bool


class KeptRate(NamedTuple):
    """A rate's state as it is stored: its name, the state, and how many seconds after it was read it ends."""

    name: str
    state: bytes
    until: float


class _Ticket(NamedTuple):
    """Starts that are allowed, until a moment (monotonic)."""

    until: float
    counted: Counted


class FleetLimits:
    """Used by the engine alone."""

    def __init__(
        self, share: FleetShare, held: HeldJobs, capacities: Mapping[str, int], served: Collection[str] = ()
    ) -> None:
        """
        Args:
            capacities: the machine's resources.
            served: the queues that the fleet serves; empty for all.
        """
        self._share, self._held, self._capacities = share, held, capacities
        self.partitions = LimitedPartitions(capacities, served)
        self._granted: dict[LimitKey, int] = {}
        self._lost: set[LimitKey] = set()  # what it had, and still has jobs of
        self._parts: dict[LimitKey, int] = {}  # what it may use of these, as others wait
        self._tickets: list[_Ticket] = []
        self._unmade: list[Counted] = []  # starts that were counted and not made
        self._unmade_at = -inf  # when to try to give them back

    # -- what to ask about

    def ask(self, now: float, wanted: Mapping[str, Wanted]) -> Probe | None:
        """Returns what a round asks about; None if it need not ask about limits."""
        partitions = self.partitions
        partitions.open_due(now)
        for key in self._held.freed:
            partitions.open_at(key)
        self._held.freed.clear()
        numbers: list[int] = []
        for queue, own in wanted.items():
            for number in partitions.ready.get(queue, ()):
                if len(numbers) >= AT_ONCE:
                    break
                if self._own_room(partitions[number], own):
                    numbers.append(number)
        after = partitions.scan(now) if wanted else None
        gives_back = bool(self._unmade) and now >= self._unmade_at
        if not numbers and after is None and not gives_back:
            return None
        if gives_back:
            self._unmade_at = now + _LOCKED_S
        return Probe(numbers, after, wanted, now)

    def _own_room(self, partition: Partition, wanted: Wanted) -> int:
        """How many more jobs of a partition the fleet can take without any more of its limits, if it has these."""
        room = wanted.jobs
        for limit in partition.limits:
            held = self._held.of_limit.get(limit[:2], 0)
            if limit.kind == "resource":
                capacity = self._capacities[limit.name]
                most = max(capacity, ceil(capacity // limit.amount * wanted.ahead) * limit.amount)
                room = min(room, (most - self._held.units.get(limit.name, 0)) // limit.amount)
            elif limit.kind == "concurrency":
                most = min(limit.amount, max(wanted.slots, self._granted.get(limit[:2], 0)))
                room = min(room, ceil(most * wanted.ahead) - held)
            elif limit.kind == "order":
                room = min(room, ceil(wanted.ahead) - held)
            else:
                room = min(room, max(1, wanted.free))
        return max(0, room)

    def next_at(self) -> float:
        """When there is something to do though nobody has told of it (monotonic)."""
        at = self.partitions.next_at()
        if self._tickets:
            at = min(at, self._tickets[0].until)
        if self._unmade:
            at = min(at, self._unmade_at)
        return at

    # -- what may be leased

    def choose(self, seen: Seen, probe: Probe) -> list[Wish]:
        """Returns the partitions that have jobs and whose turn it may be, the highest priority and then the oldest job
        first."""
        wishes = []
        for number, (first_seq, jobs) in seen.rows().items():
            partition = self.partitions.open(number)
            if partition is None:
                continue
            wanted = probe.wanted.get(partition.queue)
            if wanted is not None and self._own_room(partition, wanted):
                wishes.append(Wish(number, partition, first_seq, jobs))
        wishes.sort(key=lambda wish: (-wish.partition.priority, wish.first_seq))
        return wishes[: 2 * sum(wanted.jobs for wanted in probe.wanted.values()) + 20]

    def keys(self, wishes: Iterable[Wish]) -> list[LimitKey]:
        """The limits that have to be locked."""
        keys = {limit[:2]: None for wish in wishes for limit in wish.partition.limits if limit.kind != "resource"}
        keys.update({unmade.limit[:2]: None for unmade in self._unmade})
        return list(keys)

    def orders(self, keys: Iterable[LimitKey]) -> dict[bytes, LimitKey]:
        """The packed limits of all partitions of the order keys among some limits."""
        return {packed: key for key in keys for packed in self.partitions.of_order.get(key, {}).values()}

    def allot(self, wishes: Sequence[Wish], probe: Probe, found: Found) -> Allotment:
        """Decides what the fleet takes."""
        allotment = Allotment()
        left = {queue: wanted.jobs for queue, wanted in probe.wanted.items()}
        taken: dict[LimitKey, int] = {}
        for unmade in self._unmade:
            if ("rate", unmade.limit.name) in found.locked:
                self._rate(allotment, found, unmade.limit).take_out(unmade.counted_in, unmade.starts)
                allotment.given_back.append(unmade)
        for wish in wishes:
            queue = wish.partition.queue
            if left[queue] <= 0:
                continue
            room = self._room(wish, probe.wanted[queue], found, allotment, taken)
            if isinstance(room, tuple):
                allotment.closed[wish.number] = room
            elif room > 0:
                left[queue] -= min(room, wish.jobs)
                self._take(wish, min(room, max(1, probe.wanted[queue].jobs)), allotment, taken)
        return allotment

    def _room(
        self,
        wish: Wish,
        wanted: Wanted,
        found: Found,
        allotment: Allotment,
        taken: Mapping[LimitKey, int],
    ) -> int | tuple[LimitKey, float]:
        """How many jobs of a partition may be leased; or the limit that is closed, and in how many seconds to look
        again."""
        room, bound = self._own_room(wish.partition, wanted), NO_BOUND
        for limit in wish.partition.limits:
            key = limit[:2]
            if limit.kind == "resource":
                room -= ceil(taken.get(key, 0) / limit.amount)  # of other jobs: units
                continue
            if key not in found.locked:
                return key, _LOCKED_S
            if limit.kind == "rate":
                state = self._rate(allotment, found, limit)
                free = state.free(with_slack(limit), found.at) - taken.get(key, 0)
                starts = found.part(key, free) if free > 0 else 0
                if starts < wish.jobs and wanted.free:
                    allotment.waits[key] = _RETRY_S + _WAITS_S
                if free <= 0:
                    opens_s = max(_LOCKED_S, state.opens_at(with_slack(limit)) - found.at)
                    return key, min(opens_s, max(_RETRY_S, self.partitions.closed_s))
                if starts <= 0:
                    return key, _TURN_S
                room = min(room, starts)
                continue
            free = limit.amount - found.others.get(key, 0)
            part = found.part(key, limit.amount)
            most = min(free, part, max(1, wanted.slots, self._granted.get(key, 0)))
            held = self._held.of_limit.get(key, 0) + taken.get(key, 0)
            if most < min(limit.amount, wanted.slots) and wish.jobs > most - held:
                allotment.waits[key] = self.partitions.closed_s + _WAITS_S
            if part < limit.amount:
                allotment.parts[key] = part
            if most <= 0:
                return key, self.partitions.closed_s
            allotment.most[key] = most
            left = ceil(most * wanted.ahead) - held
            if left <= 0:
                return key, self.partitions.closed_s  # until one of its jobs has ended, or others give some back
            room = min(room, left)
            if limit.kind == "order":
                again = found.again.get(key)
                if again is not None and not Order(None, (again,)).lets_pass(wish.first_seq):
                    return key, self.partitions.closed_s
                bound = NO_BOUND if again is None else again
        if bound < NO_BOUND:
            allotment.bounds[wish.number] = bound
        return room

    def _rate(self, allotment: Allotment, found: Found, limit: Limit) -> Rate:
        """The state of a rate, with what this round has changed."""
        state = allotment.rates.get(limit.name)
        if state is None:
            packed = found.rates.get(limit.name)
            state = allotment.rates[limit.name] = Rate() if packed is None else Rate(msgpack.unpackb(packed))
        return state

    def _take(self, wish: Wish, room: int, allotment: Allotment, taken: dict[LimitKey, int]) -> None:
        allotment.caps[wish.number] = room
        for limit in wish.partition.limits:
            key = limit[:2]
            before = self._held.of_limit.get(key, 0) + taken.get(key, 0)
            taken[key] = taken.get(key, 0) + room * (limit.amount if limit.kind == "resource" else 1)
            if limit.kind == "rate":
                allotment.started.add(key)
            elif limit.kind in ("order", "concurrency"):
                needed = min(allotment.most[key], before + min(room, wish.jobs))
                allotment.granted[key] = max(needed, allotment.granted.get(key, self._granted.get(key, 0)))

    def claims(self, allotment: Allotment) -> list[OwnClaim]:
        """What the fleet claims from then on, of limits of which that has changed, or for which it waits."""
        return [
            OwnClaim(
                *key,
                allotment.granted.get(key, self._granted.get(key, 0)),
                allotment.waits.get(key),
                key in allotment.granted or key in allotment.started,
            )
            for key in {**allotment.granted, **allotment.waits}
        ]

    def count(self, allotment: Allotment, leased: Mapping[int, int], at: float) -> list[KeptRate]:
        """Counts the starts of what was leased. Returns the rates whose states are to be stored.

        Args:
            leased: how many jobs of each partition.
            at: the database's time.
        """
        changed = {unmade.limit.name: unmade.limit for unmade in allotment.given_back}
        allotment.counted.clear()
        for number in allotment.caps.keys() & leased.keys():
            for limit in of_kind(self.partitions[number], "rate"):
                counted_in = allotment.rates[limit.name].count(with_slack(limit), leased[number], at)
                allotment.counted.append(Counted(limit, counted_in, leased[number]))
                changed[limit.name] = limit
        kept = []
        for name, limit in changed.items():
            slots, _ = allotment.rates[name].pack()
            kept.append(KeptRate(name, msgpack.packb(slots), 2 * with_slack(limit).period_s))
        return kept

    # -- what has been leased

    def leased(self, probe: Probe, seen: Seen, allotment: Allotment, counts: Mapping[int, int], now: float) -> None:
        """Takes what a round has brought.

        Args:
            counts: how many jobs were leased of each partition.
        """
        partitions = self.partitions
        partitions.seen(probe.numbers, seen.rows())
        if seen.scanned is not None:
            partitions.scanned([row[0] for row in seen.scanned], now)
        for number, (key, opens_s) in allotment.closed.items():
            partitions.close(number, key, now + opens_s)
        leased: dict[str, int] = {}
        for number, count in counts.items():
            if (partition := partitions.find(number)) is not None:
                leased[partition.queue] = leased.get(partition.queue, 0) + count
        for number, cap in allotment.caps.items():
            queue = partitions[number].queue
            is_cut = number in allotment.bounds or leased.get(queue, 0) >= probe.wanted[queue].jobs
            if counts.get(number, 0) < cap and not is_cut:
                partitions.is_empty(number)
        for key in allotment.most.keys() | allotment.parts.keys():
            self._set_part(key, allotment.parts.get(key))
        for key, amount in allotment.granted.items():
            self._granted[key] = amount
            self._lost.discard(key)
            self._held.shrunk.add(key)  # it may be more than is needed
            self._allow(key)
        self._forget_unmade(allotment)
        for counted in allotment.counted:
            self._share.allow_starts(counted.limit.name, counted.starts)
            self._tickets.append(_Ticket(probe.now + starts_within_s(counted.limit), counted))
        self._tickets.sort(key=attrgetter("until"))

    def failed(self, allotment: Allotment, *, is_unknown: bool) -> None:
        """A round has failed.

        Args:
            is_unknown: its commit may have happened: then what it gave back is not given back again.
        """
        if is_unknown:
            self._forget_unmade(allotment)

    def _forget_unmade(self, allotment: Allotment) -> None:
        """Starts were given back, or the fleet has lost them meanwhile."""
        for unmade in allotment.given_back:
            if unmade in self._unmade:
                self._unmade.remove(unmade)

    # -- what goes back

    @property
    def has_surplus(self) -> bool:
        """Whether the fleet has more of a limit than it needs."""
        return any(self._granted.get(key, 0) > self._needed(key) for key in self._held.shrunk)

    def _needed(self, key: LimitKey) -> int:
        """How much of a limit the fleet needs: some for each of its jobs; while others wait, no more than its part, or
        than consumers use."""
        needed = self._held.of_limit.get(key, 0)
        part = self._parts.get(key)
        return needed if part is None else min(needed, max(part, self._share.used(*key)))

    def _set_part(self, key: LimitKey, part: int | None) -> None:
        """Others wait for some of a limit, or do not any more (None). A fleet that has jobs keeps some until these have
        ended."""
        if part is None:
            if self._parts.pop(key, None) is not None and key in self._granted:
                self._allow(key)
        elif key in self._granted:
            self._parts[key] = max(1, part)
            self._held.shrunk.add(key)
            self._allow(key)

    def _allow(self, key: LimitKey) -> None:
        """Lets jobs use what is granted, up to the fleet's part."""
        granted = self._granted[key]
        self._share.grant(*key, min(granted, self._parts.get(key, granted)))

    def take_surplus(self, probe: Probe | None) -> dict[LimitKey, int]:
        """Returns how much of limits the fleet keeps, of those of which it has more than it needs.

        Args:
            probe: what is asked at the same time: the limits of these partitions are needed.
        """
        if not self._held.shrunk:
            return {}
        numbers = () if probe is None else probe.numbers
        asked = {limit[:2] for number in numbers for limit in self.partitions[number].limits}
        surplus: dict[LimitKey, int] = {}
        for key in list(self._held.shrunk):
            needed = self._needed(key)
            if self._granted.get(key, 0) <= needed:
                self._held.shrunk.discard(key)
                if not needed and key in self._lost:
                    self._lost.discard(key)
                    self._share.revoke(*key)
            elif key not in asked or key in self._parts:
                self._held.shrunk.discard(key)
                surplus[key] = needed
                self._keep(key, needed)
        return surplus

    def _keep(self, key: LimitKey, amount: int) -> None:
        if amount:
            self._granted[key] = amount
            self._allow(key)
        else:
            del self._granted[key]
            self._parts.pop(key, None)
            self._share.revoke(*key)

    def inherit(self, rows: Rows, pending: Mapping[LimitKey, int]) -> None:
        """Takes what the database says that the fleet has.

        Args:
            rows: kind, name and amount.
            pending: what is about to be kept of some of them.
        """
        self._granted = {
            (kind, name): kept
            for kind, name, amount in rows
            if (kept := min(amount, pending.get((kind, name), amount))) > 0
        }
        for (kind, name), amount in self._granted.items():
            self._share.grant(kind, name, amount)
        self._lost -= self._granted.keys()
        self._held.shrunk |= self._granted.keys()

    def lose_all(self) -> None:
        """Others may have what the fleet had: it has been taken for dead, or may be soon. Jobs that it still has count
        until they have gone: if the fleet is granted some of a limit again, they are part of that."""
        for key in list(self._granted):
            if self._held.of_limit.get(key):
                del self._granted[key]
                self._parts.pop(key, None)
                self._lost.add(key)
                self._share.grant(*key, 0)
            else:
                self._keep(key, 0)
        self._unmade.clear()

    @property
    def has_some(self) -> bool:
        """Whether the fleet has something of a limit that others share."""
        return bool(self._granted)

    # -- starts that are not made in time

    def expire_starts(self, now: float) -> None:
        """Allows starts no more that were not made in time: they would be too many with those that come then."""
        while self._tickets and self._tickets[0].until <= now:
            _, (limit, counted_in, starts) = self._tickets.pop(0)
            later = sum(ticket.counted.starts for ticket in self._tickets if ticket.counted.limit.name == limit.name)
            left = self._share.unused_starts(limit.name) - later
            if left > 0:
                self._share.allow_starts(limit.name, -left)
                self._unmade.append(Counted(limit, counted_in, min(left, starts)))
                for number in list(self.partitions.of_rate.get(limit[:2], ())):
                    self.partitions.close(number, limit[:2], now + _BUSY_S)


def lock_number(schema: str, key: LimitKey) -> int:
    """The number of a limit's lock, in the whole database."""
    digest = hashlib.blake2b("\0".join((schema, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
