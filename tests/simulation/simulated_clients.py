"""Clients in a world made of chance: they run the real operations on a database, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any
from uuid import UUID

from machines import SCHEMA
from simulated_database import SimLink, joined
from simulated_machines import MachineClock

from taskq.client.transport.postgres.queue import PostgresQueue
from taskq.client.transport.postgres.verbs import Hear, Listen, Run, Sleep
from taskq.client.transport.verbs import Operation
from taskq.engines.postgres.link.link import Exchange
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.protocol.postgres.watching import Word, channel_of
from taskq.system.directory import Directory
from taskq.system.place import Place

if TYPE_CHECKING:
    from postgres_simulation import World

#: What a client waits for the database.
_PATIENCE_S = 5.0


class SimEar:
    """Hears what brokers tell a client."""

    def __init__(self, client: SimClient, waiting: Any) -> None:
        self.client = client.number
        self.heard: list[Word] = []
        self._waiting = waiting
        self._owner = client
        client.ear = self

    def take(self) -> list[Word]:
        heard, self.heard = [word for word in self.heard if word.id in self._waiting], []
        return heard

    def close(self) -> None:
        self._owner.ear = None


class SimClient:
    """Runs one operation after the other, with a link of its own."""

    cut_until = -1.0

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number = world, number
        self.clock = MachineClock(world, world.random.choice((0.0, 0.3, -3_600.0, 7_200.0)))
        self.queue = PostgresQueue(Place(Directory(world.folder), world.url), self.clock)
        self.link = SimLink(world, self, f"client {number}", reads_all=True)
        self.ear: SimEar | None = None
        self.turns_at = inf
        self.doing = ""
        self._waiting: deque[tuple[str, Operation[Any], Callable[[Any], None], tuple[str, UUID, bool] | None]] = deque()
        self._operation: Operation[Any] | None = None
        self._verb: Any = None
        self._since = 0.0
        self._hears_until = inf
        world.wire.listen(channel_of(SCHEMA, number))

    def do(
        self,
        what: str,
        operation: Operation[Any],
        on_end: Callable[[Any], None],
        order: tuple[str, UUID, bool] | None = None,
    ) -> None:
        """Runs an operation, after those before.

        Args:
            on_end: takes its result, or its error.
            order: what is written in the same transaction, and whether that commits.
        """
        self._waiting.append((what, operation, on_end, order))
        if self._operation is None:
            self._next()

    def _next(self) -> None:
        if self._waiting:
            self.doing, self._operation, self._on_end, self._order = self._waiting.popleft()
            self._go_on(lambda operation: operation.send(None))

    def _go_on(self, move: Callable[[Operation[Any]], Any]) -> None:
        assert self._operation is not None
        try:
            verb = move(self._operation)
            while isinstance(verb, Listen):
                verb = self._operation.send(SimEar(self, verb.waiting))
        except StopIteration as end:
            self._end(end.value)
            return
        except TaskQError as error:
            self._end(error)
            return
        self._verb, self._since = verb, self.world.now
        match verb:
            case Run():
                self._ask()
            case Hear():
                self._hears_until = self.world.now + verb.within_s
                self.world.wake(self)
            case Sleep():
                self.world.later(verb.seconds, lambda: self._go_on(lambda operation: operation.send(None)))

    def _end(self, value: Any) -> None:
        self._operation, self.doing = None, ""
        self._on_end(value)
        self._next()

    def _ask(self) -> None:
        make, order = self._verb.make, self._order
        if order is not None and self._verb.joins:
            own = make
            make = lambda: joined(own, order[1], order[2])  # noqa: E731
        self.link.ask(Exchange(lambda: _guarded(make)))
        self.world.wake(self)

    def turn(self) -> None:
        now = self.world.now
        self.link.turn(now)
        for exchange in self.link.take():
            self._answered(exchange)
        if isinstance(self._verb, Hear) and self._operation is not None:
            heard = [] if self.ear is None else self.ear.take()
            if heard or now >= self._hears_until:
                self._hears_until = inf
                self._verb = None
                self._go_on(lambda operation: operation.send(heard))
        self.world.wake(self, max(min(self.link.next_at(now), self._hears_until), now + 0.001))

    def _answered(self, exchange: Exchange[Any]) -> None:
        error = exchange.error
        if error is None:
            value, refusal = exchange.value
            if refusal is None:
                self._go_on(lambda operation: operation.send(value))
            else:
                self._go_on(lambda operation: operation.throw(refusal))
        elif self._order is not None or self.world.now > self._since + _PATIENCE_S:
            assert error.sqlstate in ("", "22012", "57P01"), error
            self._go_on(lambda operation: operation.throw(BrokerUnavailable(str(error))))
        else:
            assert error.sqlstate in ("", "57P01"), error
            self.world.later(0.02, self._ask)


def _guarded(make: Callable[[], Any]) -> Any:
    """A plan that ends where it raises an error for the client, which it does before it has changed anything."""
    try:
        return (yield from make()), None
    except TaskQError as error:
        return None, error
