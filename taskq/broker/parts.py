"""The parts of a broker, put together in one place: for its process, for the reader of a fleet that does not run, for
`taskq.testing`, and for the simulator of the tests.

    store, core, events, clock      what a broker is made of
    recover                         the journal is brought in order, the core learns what waits
    clients, consumers              sockets and processes, or what a test has in their place
    committer, scheduler, requests  what runs between them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.succession import Succession
from taskq.broker.core.core import Core
from taskq.broker.status import StatusView
from taskq.engines.embedded.admin import Admin
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.store import Store
from taskq.engines.embedded.ports import Clients, Consumers, Events
from taskq.engines.embedded.recovery import recover
from taskq.engines.embedded.requests import FleetControls, Requests
from taskq.engines.embedded.scheduler import Scheduler
from taskq.model.settings import Settings
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.submissions import Submission
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory


@dataclass(frozen=True, slots=True)
class Kinds:
    """The classes of some of the parts: a test, or the reader of a stopped fleet, has others."""

    committer: type[Committer] = Committer
    scheduler: type[Scheduler] = Scheduler
    status: type[StatusView] = StatusView


class Parts:
    """What decides, what makes durable, and what answers. Those who hold it run it: it does nothing by itself."""

    committer: Committer
    scheduler: Scheduler
    requests: Requests

    def __init__(
        self,
        directory: Directory,
        settings: Settings,
        store: Store,
        core: Core,
        events: Events,
        clock: Clock = SYSTEM_CLOCK,
        kinds: Kinds = Kinds(),
    ) -> None:
        self.directory = directory
        self.settings = settings
        self.store = store
        self.core = core
        self.events = events
        self.log = events.log
        self.clock = clock
        self._kinds = kinds

    def recover(self, running: Iterable[FlightRecord]) -> None:
        """Brings in order what an earlier broker has left, and tells what was found.

        Args:
            running: the jobs that ran when it died.
        """
        effects = recover(self.store, self.core, running, self.clock.monotonic(), self.clock.time())
        for event, fields in self.store.findings:
            (self.log.error if event == "store.damaged" else self.log.info)(event, **fields)
        self.events.notes(effects.notes)
        self.core.pause(self.store.paused())

    def connect(
        self,
        clients: Clients,
        consumers: Consumers,
        processes: Succession[ConsumerProcess],
        on_stop: Callable[[str], None],
        on_reload: Callable[[], int],
    ) -> None:
        """Makes what runs between clients and consumers.

        Args:
            processes: the consumers, and how a reload goes.
            on_stop: stops the fleet; told who asked.
            on_reload: replaces the consumers; returns the number of that reload.
        """
        kinds, store, core, clock = self._kinds, self.store, self.core, self.clock
        self.committer = kinds.committer(store, core, clients, self.events, self.directory, consumers, clock)
        self.scheduler = kinds.scheduler(store, self.committer, self.log, clock.time())
        admin = Admin(core, store, self.committer, consumers, self.log, clock)
        status = kinds.status(self.directory, core, store, consumers, processes, clock)
        fleet = FleetControls(status.draw, on_stop, on_reload)
        self.requests = Requests(clients, self.committer, admin, self.scheduler, fleet, clock)

    # -- what consumers and clients tell, besides the outcomes of jobs

    def declared(self, app: str, schedules: list[bytes]) -> None:
        """A consumer tells of the schedules in its code. Raises ConfigError if they make no sense."""
        self.scheduler.declared(app, schedules)

    def take_children(self, children: list[Submission]) -> None:
        """A job that has just succeeded has enqueued others."""
        self.committer.take_children(children)


def core_of(settings: Settings, slots: int = 1) -> Core:
    """The core of a fleet.

    Args:
        slots: the jobs that a consumer runs at once.
    """
    return Core(
        settings.queues,
        settings.memory_mb * 1024 * 1024,
        slots=slots,
        weights=dict(settings.weights),
        capacities=dict(settings.resources),
    )
