"""The metrics of a fleet. Their names, units and labels are a contract; docs/metrics.md lists them."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from taskq import __version__
from taskq.model.info.counts import TaskCounts
from taskq.model.info.histogram import Histogram
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.status import FleetStatus

#: Upper bounds of the buckets, as powers of two of microseconds: 1 ms to 72 minutes, each four times the one before.
_POWERS = range(10, 33, 2)
#: In place of the task and the queue of jobs that the broker does not count apart.
_OTHER = "other"
_PAIR = ("queue", "task")
_PENDING = ("waiting", "scheduled", "queued", "running")
_ENDS = ("succeeded", "failed", "cancelled", "expired")
#: Consumers whose CPU time is told, so that the number of time series is bounded.
_MOST_CONSUMERS = 1_000
_CONSUMER_STATES = ("starting", "idle", "running", "retiring")


class Told(NamedTuple):
    """What a fleet has told.

    Attributes:
        status: what it is doing; None if nothing is known of it.
        counts: what happened to the jobs of each task and queue.
        schedules: all of them.
    """

    status: FleetStatus | None
    counts: Sequence[TaskCounts] = ()
    schedules: Sequence[ScheduleInfo] = ()


def families(told: Told) -> Iterator[Metric]:
    """The metrics of a fleet."""
    build = GaugeMetricFamily("taskq_build_info", "The version of taskq that tells this.", labels=("version", "python"))
    build.add_metric((__version__, platform.python_version()), 1)
    yield build
    is_up = told.status is not None and told.status.broker.state != "stopped"
    yield GaugeMetricFamily("taskq_up", "Whether a broker answers.", value=is_up)
    if told.status is not None:
        yield from _of_queues(told.status)
        yield from _of_consumers(told.status)
        yield from _of_broker(told.status)
    yield from _of_jobs(told.counts)
    yield from _of_schedules(told.schedules)


def _of_queues(status: FleetStatus) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("taskq_jobs", "Jobs that have not ended.", labels=("queue", "state"))
    for queue, counts in status.queues.items():
        for state in _PENDING:
            jobs.add_metric((queue, state), getattr(counts, state))
    yield jobs
    paused = GaugeMetricFamily("taskq_queue_paused", "Whether the queue is paused.", labels=("queue",))
    for queue in sorted({*status.queues, *status.paused}):
        paused.add_metric((queue,), queue in status.paused)
    yield paused
    told = "For how long the oldest job that may start has been waiting; 0 if there is none."
    oldest = GaugeMetricFamily("taskq_oldest_job_age_seconds", told, labels=("queue",))
    for queue, flow in status.flows.items():
        oldest.add_metric((queue,), flow.oldest_waiting_s or 0.0)
    yield oldest
    yield GaugeMetricFamily(
        "taskq_spool_files", "Files with jobs that no fleet has taken in yet.", value=status.spooled_files
    )


def _of_consumers(status: FleetStatus) -> Iterator[Metric]:
    consumers = GaugeMetricFamily("taskq_consumers", "Consumer processes.", labels=("state",))
    for state in _CONSUMER_STATES:
        consumers.add_metric((state,), sum(each.state == state for each in status.consumers))
    yield consumers
    slots = sum(each.slots for each in status.consumers)
    yield GaugeMetricFamily("taskq_consumer_slots", "How many jobs may run at once.", value=slots)
    running = sum(each.running for each in status.consumers)
    yield GaugeMetricFamily("taskq_consumer_slots_taken", "How many jobs run.", value=running)
    resident = sum(each.rss_bytes for each in status.consumers)
    told = "Resident memory of all consumer processes."
    yield GaugeMetricFamily("taskq_consumers_resident_memory_bytes", told, value=resident)
    told = "CPU time of the consumer process, and of its children that have ended."
    cpu = CounterMetricFamily("taskq_consumer_cpu_seconds", told, labels=("machine", "consumer"))
    for each in status.consumers[:_MOST_CONSUMERS]:
        if each.cpu_s is not None:
            cpu.add_metric((each.machine or "", str(each.number)), each.cpu_s)
    yield cpu
    missing = len(status.not_started)
    yield GaugeMetricFamily("taskq_consumers_not_starting", "Consumers that do not start.", value=missing)
    restarts = status.broker.restarts_of_consumers
    told = "Consumer processes that took the place of one that died, since the broker started."
    yield CounterMetricFamily("taskq_consumer_restarts", told, value=restarts)


def _of_broker(status: FleetStatus) -> Iterator[Metric]:
    broker = status.broker
    figures = (
        ("taskq_broker_uptime_seconds", "Since when the broker runs.", broker.uptime_s),
        ("taskq_broker_resident_memory_bytes", "Resident memory of the broker.", broker.rss_bytes),
        (
            "taskq_broker_loop_lag_seconds",
            "For how long the broker answered nobody at the most, in the last minute.",
            broker.longest_turn_last_minute_s,
        ),
        (
            "taskq_journal_commit_seconds",
            "How long a commit took on average in the last minute, with its sync.",
            broker.commit_mean_s,
        ),
        (
            "taskq_journal_longest_commit_seconds",
            "How long the longest commit of the last minute took, with its sync.",
            broker.commit_longest_s,
        ),
        ("taskq_journal_bytes", "Size of the journal with its write-ahead log.", broker.journal_bytes),
        ("taskq_clients", "Clients that are connected to the broker.", broker.clients),
    )
    for name, told, value in figures:
        if value is not None:
            yield GaugeMetricFamily(name, told, value=value)
    if broker.cpu_s is not None:
        yield CounterMetricFamily("taskq_broker_cpu_seconds", "CPU time of the broker.", value=broker.cpu_s)
    if broker.rejected_clients is not None:
        told = "Clients that the broker has refused or dropped since it started."
        yield CounterMetricFamily("taskq_clients_rejected", told, value=broker.rejected_clients)


def _of_jobs(counts: Sequence[TaskCounts]) -> Iterator[Metric]:
    pairs = [((each.queue or _OTHER, each.task or _OTHER), each.total) for each in counts]
    enqueued = CounterMetricFamily("taskq_jobs_enqueued", "Jobs that came in.", labels=_PAIR)
    finished = CounterMetricFamily("taskq_jobs_finished", "Jobs that ended.", labels=(*_PAIR, "state"))
    wait = HistogramMetricFamily(
        "taskq_job_wait_seconds", "From when a job could have started to when it did.", labels=_PAIR
    )
    run = HistogramMetricFamily("taskq_job_run_seconds", "How long attempts ran.", labels=_PAIR)
    for labels, total in pairs:
        enqueued.add_metric(labels, total.enqueued)
        for state in _ENDS:
            finished.add_metric((*labels, state), getattr(total, state))
        wait.add_metric(labels, _buckets(total.wait), total.wait.sum_us / 1e6)
        run.add_metric(labels, _buckets(total.run), total.run.sum_us / 1e6)
    yield from (enqueued, finished)
    attempts = (
        ("taskq_attempts", "Attempts that ended.", "started"),
        ("taskq_attempts_retried", "Attempts that failed and are followed by another.", "retried"),
        ("taskq_attempts_crashed", "Attempts whose process died.", "crashed"),
        ("taskq_attempts_timed_out", "Attempts that ran for too long.", "timed_out"),
    )
    for name, told, field in attempts:
        family = CounterMetricFamily(name, told, labels=_PAIR)
        for labels, total in pairs:
            family.add_metric(labels, getattr(total, field))
        yield family
    yield from (wait, run)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [(repr(2**power / 1e6), float(histogram.below_us(power))) for power in _POWERS]
    return [*bounds, ("+Inf", float(histogram.seen))]


def _of_schedules(schedules: Sequence[ScheduleInfo]) -> Iterator[Metric]:
    last = GaugeMetricFamily(
        "taskq_schedule_last_fire_timestamp_seconds", "When the schedule fired last.", labels=("schedule",)
    )
    following = GaugeMetricFamily(
        "taskq_schedule_next_fire_timestamp_seconds", "When the schedule fires next.", labels=("schedule",)
    )
    for each in schedules:
        if each.last_at is not None:
            last.add_metric((each.name,), each.last_at)
        if each.next_at is not None:
            following.add_metric((each.name,), each.next_at)
    yield from (last, following)
