"""The status of a fleet: what `taskq status` shows of its broker, its queues and its consumers."""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal

from taskq.broker.consumers.handle import ConsumerProcess
from taskq.broker.consumers.succession import ProcessState, Succession
from taskq.broker.core.core import Core
from taskq.broker.core.reasons import FleetFacts
from taskq.engines.contract import ConsumerFacts, Consumers, Figures
from taskq.model.info.status import (
    BrokerStatus,
    ConsumerStatus,
    FleetStatus,
    JobTotals,
    MissingConsumer,
    QueueFlow,
    QueueStatus,
    ReloadStatus,
    flow_of,
)
from taskq.model.info.why import Obstacle
from taskq.model.job import JobRow, Progress, enqueued_at
from taskq.model.stored import StoredState
from taskq.protocol.spool import count_files
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.turns import TurnTimes
from taskq.system.usage import own_cpu_s, rss_bytes

#: Files in the spool are counted up to here: it takes 5 ms.
_MOST_SPOOLED = 10_000
#: Jobs that are read from the store to see how long they wait.
_MOST_READ = 20
_NO_JOBS = QueueStatus()


class StatusView:
    """Makes the status from what the parts know at the moment."""

    def __init__(
        self,
        directory: Directory,
        core: Core,
        figures: Figures,
        pool: Consumers,
        processes: Succession[ConsumerProcess],
        turns: TurnTimes,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """
        Args:
            figures: of the engine.
            processes: the consumers, and how a reload goes.
            turns: of the broker's loop.
            clock: the broker's; its uptime counts from now on.
        """
        self._directory = directory
        self._core = core
        self._figures = figures
        self._pool = pool
        self._processes = processes
        self._turns = turns
        self._clock = clock
        self._started_at = clock.time()

    def draw(self) -> FleetStatus:
        """Returns the status at this moment."""
        consumers = [self._consumer(consumer) for consumer in self._processes.consumers.values()]
        queues, paused = self._queues(), self._figures.paused()
        return FleetStatus(
            broker=self._broker(),
            reload=ReloadStatus(self._processes.code, self._processes.reload_state, self._processes.reload_error),
            not_started=[MissingConsumer(number, error) for number, error in self._processes.missing()],
            queues=queues,
            spooled_files=count_files(self._directory.spool, _MOST_SPOOLED),
            paused=sorted(paused),
            totals=JobTotals(**self._figures.totals.as_dict()),
            consumers=sorted(consumers, key=lambda consumer: consumer.number),
            flows=self._flows(queues, paused),
            unserved=sorted(name for name in queues if not self._core.ready.serves(name)),
        )

    def _broker(self) -> BrokerStatus:
        now, vitals = self._clock.monotonic(), self._figures.vitals()
        longest = self._turns.longest(now)
        return BrokerStatus(
            pid=os.getpid(),
            uptime_s=round(self._clock.time() - self._started_at, 3),
            directory=str(self._directory.path),
            rss_bytes=rss_bytes(os.getpid()),
            state=self._state,
            restarts_of_consumers=self._processes.restarts,
            longest_turn_s=round(longest.ever, 6),
            longest_turn_last_minute_s=round(longest.last_minute, 6),
            longest_turn_cpu_s=round(longest.cpu, 6),
            busy_share=round(self._turns.busy_share(now), 4),
            cpu_s=round(own_cpu_s(), 3),
            **vitals._asdict(),
        )

    @property
    def _state(self) -> Literal["running", "stopping", "stopped"]:
        return "stopping" if self._pool.is_stopping else "running"

    def why(self, row: JobRow, is_queued: bool) -> list[Obstacle]:
        """Returns why a job does not run, as far as the fleet half knows it.

        Args:
            is_queued: whether it waits for nothing but the fleet, or runs.
        """
        consumers = self._processes.consumers.values()
        without_task = frozenset(each.key for each in consumers if not each.has_task(row.spec.task))
        boot_error = next((error for _, error in self._processes.missing()), None)
        facts = FleetFacts(self._state, self._pool.claims(), boot_error, without_task)
        return self._core.why(row, is_queued, facts, self._clock.monotonic(), self._clock.time())

    def consumers(self) -> list[ConsumerFacts]:
        """Tells of the consumers what is not in the status."""
        consumers = self._processes.consumers.values()
        return [ConsumerFacts(each.key, each.number, each.pid, each.tasks) for each in consumers]

    def _queues(self) -> dict[str, QueueStatus]:
        """Counts jobs by queue and state. A job that was sent to a consumer and has not started is queued."""
        claims = self._pool.claims()
        queued, running = Counter(self._core.counts()), Counter[str]()
        waiting, scheduled = self._figures.counts(StoredState.WAITING), self._figures.counts(StoredState.SCHEDULED)
        for key, jobs in self._core.leased().items():
            started = {claim.number for claim in claims[key]}
            for number, row in jobs:
                (running if number in started else queued)[row.spec.queue] += 1
        return {
            name: QueueStatus(waiting.get(name, 0), scheduled.get(name, 0), queued.get(name, 0), running.get(name, 0))
            for name in {**queued, **waiting, **scheduled, **running}
        }

    def _flows(self, queues: dict[str, QueueStatus], paused: frozenset[str]) -> dict[str, QueueFlow]:
        rates, oldest = self._figures.rates(), self._oldest()
        names = {name for name, queue in queues.items() if queue != _NO_JOBS} | rates.keys()
        wall = self._clock.time()
        return {
            name: flow_of(
                queues.get(name, _NO_JOBS).queued,
                *rates.get(name, (0.0, 0.0)),
                *((wall - oldest[name][0], oldest[name][1].id.hex()) if name in oldest else (None, None)),
                is_paused=name in paused,
            )
            for name in sorted(names)
        }

    def _oldest(self) -> dict[str, tuple[float, JobRow]]:
        """The oldest waiting job of each queue, and since when it could have been running, in seconds since 1970."""
        oldest: dict[str, tuple[float, JobRow]] = {}

        def note(queue: str, row: JobRow) -> None:
            since = _could_start_at(row)
            if queue not in oldest or since < oldest[queue][0]:
                oldest[queue] = since, row

        reads = 0
        for queue, jobs in self._core.ready.oldest().items():
            for job in jobs:
                if isinstance(job, tuple):
                    reads += 1
                    found = self._figures.first_queued(*job) if reads <= _MOST_READ else None
                else:
                    found = job
                if found is not None:
                    note(queue, found)
        claims = self._pool.claims()
        for key, sent in self._core.leased().items():
            running = {claim.number for claim in claims[key]}
            for number, row in sent:
                if number not in running:
                    note(row.spec.queue, row)
        return oldest

    def _consumer(self, consumer: ConsumerProcess) -> ConsumerStatus:
        claims = sorted(consumer.counters.read(), key=lambda claim: claim.started_at)
        told = [(claim, row) for claim in claims if (row := self._core.running(consumer.key, claim.number))]
        claim, row = told[0] if told else (None, None)  # the one that has been running for the longest time
        now = self._clock.monotonic()
        progress = self._pool.progress_of(row.id) if row else None
        cpu_s, cpu_percent = consumer.cpu.read(now)
        return ConsumerStatus(
            number=consumer.number,
            pid=consumer.pid,
            state=_state_of(consumer, row is not None),
            has_old_code=self._processes.is_old(consumer),
            running=len(told),
            slots=consumer.counters.slots,
            job_id=row.id.hex() if row else None,
            task=row.spec.task if row else None,
            running_s=round(now - claim.started_at, 3) if claim else None,
            progress=None if progress is None else Progress(*progress),
            rss_bytes=rss_bytes(consumer.pid),
            cpu_s=cpu_s,
            cpu_percent=cpu_percent,
            jobs_done=consumer.counters.jobs_done,
            busy_s=round(consumer.counters.busy_s + sum(now - each.started_at for each in claims), 3),
        )


def _could_start_at(row: JobRow) -> float:
    return enqueued_at(row.id) if row.ready_at is None else row.ready_at


def _state_of(consumer: ConsumerProcess, runs: bool) -> Literal["starting", "idle", "running", "retiring"]:
    match consumer.state:
        case ProcessState.STARTING:
            return "starting"
        case ProcessState.RETIRING:
            return "retiring"
    return "running" if runs else "idle"
