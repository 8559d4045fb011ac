"""A broker is put together here, in the same way for its process, for the reader of a stopped fleet, for
`taskq.testing`, and for the simulator of the tests.

    engine, core, events, clock     the parts of a broker
    recover                         the engine tidies up what an earlier broker left, the core learns what waits
    consumers                       processes, or what a test has in their place
    start                           each half is handed the other

It is the only place in the fleet half that knows which engines there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from selectors import BaseSelector

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.succession import ProcessState, Succession
from taskq.broker.core.core import Core
from taskq.broker.status import StatusView
from taskq.engines.contract import Consumers, Engine, Events, Fleet, FleetControl
from taskq.engines.embedded.engine import EmbeddedEngine
from taskq.engines.embedded.journal import files, older
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.ports import Clients
from taskq.engines.moving.export import Export as Export
from taskq.engines.moving.portable import Moved as Moved
from taskq.model.settings import Settings
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.submissions import Submission
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.place import DatabaseUrl, Place
from taskq.system.turns import TurnTimes


class Parts:
    """The parts that decide, and those that make things durable. Whoever holds them runs them: they do nothing by
    themselves."""

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        engine: Engine,
        core: Core,
        events: Events,
        clock: Clock = SYSTEM_CLOCK,
        status: type[StatusView] = StatusView,
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.engine = engine
        self.core = core
        self.events = events
        self.log = events.log
        self.clock = clock
        self.turns = TurnTimes()  # of the loop that runs these parts
        self._status = status

    def recover(self, running: Iterable[FlightRecord]) -> None:
        """Tidies up what an earlier broker has left, and logs what was found.

        Args:
            running: the jobs that ran when it died.
        """
        self.engine.recover(self.core, self.events, running)

    def start(
        self,
        consumers: Consumers,
        processes: Succession[ConsumerProcess],
        on_stop: Callable[[str], None],
        on_reload: Callable[[], int],
        selector: BaseSelector | None = None,
        max_clients: int = 0,
    ) -> None:
        """Hands the fleet to the engine, which begins to serve clients.

        Args:
            processes: the consumers, and how a reload goes.
            on_stop: stops the fleet; called with the name of who asked.
            on_reload: replaces the consumers; returns the number of that reload.
            selector: of the loop; None: clients reach the engine in other ways.
            max_clients: how many clients are served at once; more are refused.
        """
        figures = self.engine.figures
        status = self._status(self.directory, self.core, figures, consumers, processes, self.turns, self.clock)
        ask = partial(write_stacks, processes)
        control = FleetControl(status.draw, on_stop, on_reload, ask, status.why, status.consumers)
        self.engine.start(Fleet(self.core, consumers, self.events, control), selector, max_clients)

    # -- what consumers send, besides the outcomes of jobs

    def declared(self, app: str, schedules: list[bytes]) -> None:
        """Takes the schedules in the code of a consumer. Raises ConfigError if they make no sense."""
        self.engine.declare(app, schedules)

    def take_children(self, children: list[Submission]) -> None:
        """Takes the jobs that a job which has just succeeded has enqueued."""
        self.engine.enqueued(children)


def write_stacks(processes: Succession[ConsumerProcess], number: int | None) -> list[tuple[int, int]]:
    """See `taskq.engines.contract.FleetControl`. A consumer that starts is left out: the signal would end it."""
    asked = [
        consumer
        for consumer in processes.consumers.values()
        if consumer.state != ProcessState.STARTING and number in (None, consumer.number)
    ]
    for consumer in asked:
        consumer.write_stacks()
    return [(consumer.number, consumer.pid) for consumer in asked]


def open_engine(
    place: Place, settings: Settings, clock: Clock = SYSTEM_CLOCK, clients: Clients | None = None
) -> EmbeddedEngine:
    """Opens the engine of a queue.

    Args:
        clients: the clients that it answers; None for those that connect to the directory's socket.

    Raises:
        JournalError: the journal cannot be used.
    """
    directory = place.directory
    store = SQLiteStore(directory.journal, settings.durability, clock=clock)
    return EmbeddedEngine(directory, settings, store, clock, clients)


def engine_of(place: Place, settings: Settings, clock: Clock = SYSTEM_CLOCK) -> Engine:
    """Opens the engine of a fleet: that of its directory, or the one that it shares with others.

    Raises:
        JournalError: the journal cannot be used.
    """
    if place.database is None:
        return open_engine(place, settings, clock)
    from taskq.engines.postgres.engine import PostgresEngine  # with psycopg, which most do not need

    return PostgresEngine(place.directory, place.database, settings, clock)


def make_tables(database: DatabaseUrl) -> tuple[int, int]:
    """Makes the tables of a queue in its database, or brings them up to date; see `taskq.engines.postgres.opening`."""
    from taskq.engines.postgres import opening  # with psycopg, which most do not need

    return opening.make_tables(database)


def grant(database: DatabaseUrl, role: str, *, may_work: bool) -> str:
    """Gives a role of a database what it needs; see `taskq.engines.postgres.opening`."""
    from taskq.engines.postgres import opening  # with psycopg, which most do not need

    return opening.grant(database, role, may_work=may_work)


def export_of(directory: Directory) -> Export:
    """Opens a journal for a move to another engine. The caller holds the lock. Raises JournalError."""
    return Export(directory)


def move(export: Export, database: DatabaseUrl) -> Moved:
    """Moves a queue to a database; see `taskq.engines.moving.intake`."""
    from taskq.engines.moving import intake  # with psycopg, which most do not need

    return intake.move(export, database)


def mark_moved(directory: Directory, place: str) -> None:
    """Notes in a directory that its jobs were moved, so that no fleet runs them there again. Raises OSError."""
    files.mark_moved(directory.journal, place)


def moved_to(directory: Directory) -> str | None:
    """Where the jobs of a directory were moved to, or None."""
    return files.moved_to(directory.journal)


def is_older(directory: Directory) -> bool:
    """Whether the engine would upgrade what an older taskq left in a directory. The caller holds the lock."""
    return older.is_older(directory.journal)


def copy_directory(directory: Directory, place: Path) -> Directory:
    """Copies what the engine needs for a look at a directory. The caller holds the lock.

    Args:
        place: an empty, private directory for the copy.

    Raises:
        JournalError: the copy cannot be made.
    """
    return older.copy_directory(directory, place)


def core_of(settings: Settings, slots: int = 1) -> Core:
    """The core of a fleet.

    Args:
        slots: how many jobs a consumer runs at once.
    """
    return Core(
        settings.queues,
        settings.memory_mb * 1024 * 1024,
        slots=slots,
        weights=dict(settings.weights),
        capacities=dict(settings.resources),
    )
