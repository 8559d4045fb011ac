"""The cut between the two halves: what the broker's loop asks of an engine, and what an engine asks of the fleet.

    queue half   Engine     what waits, in which order, unique keys, schedules, workflows, results
                   |  orders go in, and jobs come out by way of the fleet; nothing here waits
    fleet half   Fleet      this machine's consumers: they run jobs, and report what became of them

Both halves run in the broker's loop, so nothing in either may block it. An engine with a database elsewhere sends, and
reads the answer in a later turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from selectors import BaseSelector
from typing import Any, NamedTuple, Protocol

from taskq.model.attempt import Claim
from taskq.model.effects import Effects, Event, Key, Success
from taskq.model.info.status import FleetStatus
from taskq.model.info.why import Obstacle
from taskq.model.job import JobRow
from taskq.model.partition import Load, Partition, Starts
from taskq.model.stored import StoredState
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.submissions import Submission


class Vitals(NamedTuple):
    """How an engine itself is: see `taskq.model.info.status.BrokerStatus`. What it does not know is None."""

    commit_mean_s: float | None = None
    commit_longest_s: float | None = None
    journal_bytes: int | None = None
    clients: int | None = None
    rejected_clients: int | None = None


class Figures(Protocol):
    """What an engine counts, for the status of a fleet. It is read at once, and changes nothing."""

    @property
    def totals(self) -> Totals:
        """What has happened to jobs here since the directory was made."""

    def paused(self) -> frozenset[str]:
        """The queues that are paused."""

    def counts(self, kept: StoredState, /) -> dict[str, int]:
        """Counts the jobs of each queue in one state. Fast for scheduled and waiting jobs only."""

    def rates(self) -> dict[str, tuple[float, float]]:
        """How many jobs came and ended a second lately, by queue."""

    def first_queued(self, partition: Partition, after: int, /) -> JobRow | None:
        """The oldest job of a partition that is queued behind a sequence number, if that is known."""

    def vitals(self) -> Vitals:
        """How the engine is."""


class Totals(Protocol):
    """Counts that never go backwards."""

    def as_dict(self) -> dict[str, int]:
        """The counts by name, in a fixed order."""


class Engine(Protocol):
    """The queue half, as the broker's loop sees it.

    The loop calls `recover` and `start` once, and then in each turn, in this order: `gather`; its own looks at
    consumers, which may call `declare` and `enqueued`; `step`; `want`, unless the fleet stops; `report`. An engine that
    cannot go on raises JournalError, which ends the broker: the next one begins with what is durable.
    """

    @property
    def figures(self) -> Figures:
        """What it counts."""

    def recover(self, jobs: Jobs, events: Events, running: Iterable[FlightRecord]) -> None:
        """Tidies up what an earlier broker has left, and tells the fleet what waits. Called before any consumer starts.

        Args:
            running: the attempts that were running when that broker died: they are charged, unless they are settled.
        """

    def start(self, fleet: Fleet, selector: BaseSelector | None, max_clients: int) -> None:
        """Begins to serve clients.

        Args:
            fleet: the fleet half, to ask and to inform from now on.
            selector: with callables as data, called with the mask of events; None if there is no loop that selects.
            max_clients: how many clients are served at once; more are refused.
        """

    def gather(self, now: float) -> None:
        """Takes up what has arrived since the last turn. Decides nothing, and changes nothing that others can see."""

    def declare(self, app: str, schedules: Sequence[bytes]) -> None:
        """Takes the schedules in the code of a consumer's application: the next `step` applies them.

        Raises:
            ConfigError: one of them makes no sense.
        """

    def enqueued(self, children: list[Submission]) -> None:
        """Takes the jobs that the job which was settled last, with success, has enqueued: they become durable with that
        success, or not at all."""

    def step(self, now: float, *, at_once: bool = False) -> None:
        """Takes what the fleet has decided (`Jobs.take_effects`), makes durable what is due for it, and then informs
        clients and the fleet. When the disk is full, it keeps what ended, and tries again later.

        Args:
            at_once: do not wait for more to commit together: processes have died.
        """

    def want(self, loads: Sequence[Load]) -> None:
        """Hands the fleet the jobs that it has room for, by `Jobs.loaded`, now or later."""

    def report(self, now: float) -> None:
        """Counts what has become durable, and writes it to the log: clients and consumers need not wait for that."""

    def next_at(self, now: float) -> float:
        """When `step` must be called next (monotonic), if nothing arrives before; infinity: never."""

    @property
    def is_settled(self) -> bool:
        """Whether everything that the fleet has decided is durable: its records for the case of its death may go."""

    @property
    def has_work(self) -> bool:
        """Whether jobs will come by themselves: scheduled or spooled ones, or those that wait for others."""

    def close(self, now: float) -> None:
        """Makes durable what is still open, reports it, and releases everything."""


# -- the fleet half


class Jobs(Protocol):
    """What an engine tells the fleet about jobs, and learns about them; see `taskq.broker.core.core.Core`.

    An engine reports only what is durable, in the order in which it became so.
    """

    def found(self, partition: Partition, waiting: int, first_seq: int, /) -> None:
        """Reports at the start that a partition has queued jobs, from a sequence number on; a `Load` asks for them."""

    def submitted(self, rows: Sequence[JobRow], /) -> None:
        """Hands over new jobs of one partition to run, in ascending order of `seq`."""

    def came_due(self, rows: Iterable[JobRow], /) -> None:
        """Hands over jobs to run that may be older than others: scheduled ones, and those that waited for others."""

    def loaded(self, partition: Partition, rows: Sequence[JobRow], is_all: bool, /) -> None:
        """Hands over jobs that a `Load` asked for, and whether these are all."""

    def requeued(self, rows: Iterable[JobRow], /) -> None:
        """Reports that failed jobs are queued again, at the end of their partitions; a `Load` asks for them."""

    def forget(self, row: JobRow, kept: StoredState, /) -> None:
        """Removes a job that was in this state, and that no consumer has: it will not run."""

    def lost(self, row: JobRow, consumer: int | None, /) -> None:
        """Reports at the start that a job was running when the whole fleet died, and the number of the consumer that
        ran it, if that is known. What follows is among the effects."""

    def pause(self, queues: frozenset[str], /) -> None:
        """Holds back the jobs of exactly these queues from now on."""

    def queued(self, queue: str, /) -> int:
        """About how many jobs of a queue wait, including those that were sent and have not begun."""

    def slots(self, queue: str, /) -> int:
        """How many jobs of a queue the consumers can run at once. One that gets no more of them, since it retires or is
        stopped, runs as many as it has."""

    @property
    def has_effects(self) -> bool:
        """Whether `take_effects` has something to return."""

    @property
    def next_effects_us(self) -> float:
        """About how long it takes to make durable what `take_some_effects` returns, in microseconds."""

    def take_effects(self) -> Effects:
        """Returns what became of jobs and has to be made durable, each once."""

    def take_some_effects(self) -> Effects:
        """Returns the first of that, as much as a turn of the loop does; all of what became of a job comes at once."""

    def take_children(self, children: Sequence[Submission], /) -> None:
        """Has the jobs that the job which was settled last has enqueued come with its end, in `Effects.children`: they
        are made durable together, and count for how much a turn of the loop does."""

    def consumer_of(self, job_id: bytes, /) -> Key | None:
        """The consumer that has a job, if one has."""

    def running(self, key: Key, number: int, /) -> JobRow | None:
        """The job that a consumer was sent with a number, if it has not ended."""

    def leased(self) -> dict[Key, list[tuple[int, JobRow]]]:
        """The jobs that each consumer has, with their numbers."""

    def changed_rates(self, now: float, wall: float, /) -> list[tuple[str, Starts, float]]:
        """Returns the starts of the rates that have changed: the rate's name, its starts, and until when they count.
        They are returned again until `rates_stored` is called."""

    def rates_stored(self) -> None:
        """What `changed_rates` has just returned is durable."""

    @property
    def shared_limits(self) -> FleetShare:
        """Where an engine that several fleets share says what this one may use of limits."""

    def restore_limits(
        self, rates: Mapping[str, Starts], under_way: Iterable[JobRow], now: float, wall: float, /
    ) -> None:
        """Takes over, at the start, the starts that still count, and jobs with an order key that were started
        before."""


class FleetShare(Protocol):
    """What a fleet may use of limits that it shares with others. Resources are its own."""

    def share_limits(self) -> None:
        """From now on, at the start, nothing may be used of concurrencies, orders and rates but what is granted."""

    def grant(self, kind: str, name: str, amount: int, /) -> None:
        """Sets how much of a concurrency or an order the fleet may use. If it is less than before, what was sent goes
        on."""

    def used(self, kind: str, name: str, /) -> int:
        """How much of a concurrency or an order the jobs take that consumers have."""

    def revoke(self, kind: str, name: str, /) -> None:
        """Forgets a limit that was granted, and of which the fleet has no job any more."""

    def allow_starts(self, name: str, more: int, /) -> None:
        """Allows more starts of a rate than until now, or fewer."""

    def unused_starts(self, name: str, /) -> int:
        """How many of the allowed starts of a rate were not made."""


class Consumers(Protocol):
    """The processes that have jobs; see `taskq.broker.consumers.pool.ConsumerPool`.

    They may be asked in the middle of a transaction: a job that was taken back and then stays queued only waits again.
    """

    is_stopping: bool

    def is_running(self, job_id: bytes, /) -> bool:
        """Whether a job runs now."""

    def withdraw(self, job_id: bytes, /) -> bool:
        """Takes a job back from the consumer that it was sent to. Returns False if it runs."""

    def cancel_running(self, job_id: bytes, /) -> None:
        """Stops a job that runs, softly at first; how it ends is among the effects."""

    def take_back_all(self, now: float, /) -> None:
        """Takes back what no consumer has started."""

    def interrupt(self, job_ids: Collection[bytes], why: str, /) -> None:
        """Kills the processes that run some of these jobs: what they run will run again, uncharged."""

    def claims(self) -> dict[Key, list[Claim]]:
        """What each consumer is running."""

    def progress_of(self, job_id: bytes, /) -> tuple[float, float | None, str] | None:
        """How far a running job is, if it reported that: done, total, note."""


class Events(Protocol):
    """The log of what is durable; see `taskq.broker.events.EventLog`."""

    log: Any

    def enqueued(self, rows: Sequence[JobRow], now: float, /) -> None:
        """Reports jobs that came in."""

    def notes(self, notes: Sequence[Event], /) -> None:
        """Reports what was decided."""

    def successes(self, done: Sequence[Success], now: float, /) -> None:
        """Reports jobs that succeeded."""

    def rejected(self, reason: str, now: float, /) -> None:
        """Reports that a client was refused or dropped."""


class ConsumerFacts(NamedTuple):
    """A consumer, as clients of a database are told of it.

    Attributes:
        key: by which the fleet half knows it.
        number: its number.
        pid: the id of its process.
        tasks: the names of its application's tasks, one a line; empty if they are not known.
    """

    key: Key
    number: int
    pid: int
    tasks: bytes


class FleetControl(NamedTuple):
    """What clients may ask of this machine's fleet besides its queue, whatever the engine is.

    Attributes:
        status: returns its status.
        stop: stops it; called with the name of who asked.
        reload: replaces the consumers; returns the number of that reload. Raises TaskQError if the fleet is stopping.
        write_stacks: has a consumer, or all of them, write the stacks of its threads to the log; called with its number
            or None. Returns the number and the process id of each that was asked.
        why: returns why a job does not run, as far as the fleet half knows it. Called with the job, and with whether it
            is queued: it waits for nothing but the fleet, or runs.
        consumers: tells of the consumers what is not in the status.
    """

    status: Callable[[], FleetStatus]
    stop: Callable[[str], None]
    reload: Callable[[], int]
    write_stacks: Callable[[int | None], list[tuple[int, int]]]
    why: Callable[[JobRow, bool], list[Obstacle]]
    consumers: Callable[[], list[ConsumerFacts]]


class Fleet(NamedTuple):
    """The fleet half, as an engine sees it: it gets jobs, has them run, and hands back what became of them."""

    jobs: Jobs
    consumers: Consumers
    events: Events
    control: FleetControl
