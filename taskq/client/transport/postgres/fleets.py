"""What the fleets of all machines are doing, put together from what each of them tells with its beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

import msgpack
import psycopg

from taskq.client.transport.postgres.sessions import meaning_of, options_of
from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.status import BrokerStatus, FleetStatus, JobTotals, MachineStatus, QueueStatus
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.status import status_of
from taskq.system.directory import reply_timeout_s
from taskq.system.place import DatabaseUrl, Place

#: A fleet that was not heard of for longer is not shown as one that runs; it tells something every 5 s.
_SILENT_S = 20.0
_FLEETS = """
    SELECT f.host, f.pid, extract(epoch FROM taskq.now_() - b.seen_at)::float8, b.status
    FROM taskq.fleets f JOIN taskq.beats b USING (fleet) ORDER BY f.fleet"""
_QUEUES = """
    SELECT p.queue, q.state, count(*) FROM taskq.queue q JOIN taskq.partitions p USING (partition) GROUP BY 1, 2"""
_PAUSED = "SELECT queue FROM taskq.paused ORDER BY queue"
_COUNTS = "SELECT task, queue, minute, packed FROM taskq.counts"
_STATES = ("queued", "scheduled", "waiting")


def read_status(place: Place) -> Plan[FleetStatus]:
    """The status of all fleets together; the state of the broker is "stopped" if none runs."""
    fleets, queues, paused, counts = yield Step(
        Query(_FLEETS), Query(_QUEUES), Query(_PAUSED), Query(_COUNTS), commits=True
    )
    heard = [
        (host, pid, seen_s, status_of(msgpack.unpackb(status)))
        for host, pid, seen_s, status in fleets
        if seen_s is not None and seen_s < _SILENT_S and status is not None
    ]
    statuses = [status for *_, status in heard]
    directory = str(place.directory.path)
    own = [status for status in statuses if status.broker.directory == directory] or statuses
    stopped = FleetStatus(BrokerStatus(None, None, place.shown, None, "stopped"))
    return replace(
        own[0] if own else stopped,
        not_started=[missing for status in statuses for missing in status.not_started],
        queues=_queues(queues, statuses),
        paused=[queue for (queue,) in paused],
        totals=_totals(counts, statuses, sum(count for *_, count in queues)),
        consumers=[consumer for status in statuses for consumer in status.consumers],
        machines=[
            MachineStatus(host, pid, status.broker.state, round(seen_s, 1), len(status.consumers), _running(status))
            for host, pid, seen_s, status in heard
        ],
    )


def _running(status: FleetStatus) -> int:
    return sum(queue.running for queue in status.queues.values())


def _queues(counted: Rows, statuses: Iterable[FleetStatus]) -> dict[str, QueueStatus]:
    numbers: dict[str, dict[str, int]] = {}
    for queue, state, count in counted:
        numbers.setdefault(queue, {})[_STATES[state]] = count
    for status in statuses:
        for queue, told in status.queues.items():
            own = numbers.get(queue, {})
            running = min(told.running, own.get("queued", 0))  # what has ended since is not in the table any more
            if running:
                own["queued"] -= running
                own["running"] = own.get("running", 0) + running
    return {queue: QueueStatus(**own) for queue, own in sorted(numbers.items())}


def _totals(counts: Rows, statuses: Sequence[FleetStatus], living: int) -> JobTotals:
    """What has happened so far. Fleets count jobs when they end."""
    names = [each.name for each in fields(JobTotals)]
    if counts:
        all_counts = Counts()
        for *_, packed in counts:
            all_counts.merge(Counts.unpack(bytes(packed)))
        all_counts.enqueued += living
        return JobTotals(**{name: getattr(all_counts, name) for name in names})
    return JobTotals(**{name: sum(getattr(status.totals, name) for status in statuses) for name in names})


def read_counts() -> Plan[list[TaskCounts]]:
    """What happened to the jobs of each task and queue, by name, on all machines."""
    [rows] = yield Step(Query(_COUNTS), commits=True)
    pairs: dict[tuple[str, str], dict[int, Counts]] = {}
    for task, queue, minute, packed in rows:
        own = pairs.setdefault((task, queue), {})
        own.setdefault(minute, Counts()).merge(Counts.unpack(bytes(packed)))
    return [
        TaskCounts.of(task, queue, [(minute, counts.pack()) for minute, counts in sorted(own.items())])
        for (task, queue), own in sorted(pairs.items())
    ]


_SCHEMAS = """
    SELECT n.nspname::text FROM pg_namespace n
    WHERE to_regclass(quote_ident(n.nspname) || '.meta') IS NOT NULL
        AND to_regclass(quote_ident(n.nspname) || '.specs') IS NOT NULL
        AND to_regclass(quote_ident(n.nspname) || '.watches') IS NOT NULL ORDER BY 1"""


def find_schemas(database: DatabaseUrl) -> list[str]:
    """The schemas with tables of taskq. Raises BrokerUnavailable: the database does not answer."""
    options = options_of(database, reply_timeout_s())
    try:
        with psycopg.connect(**options) as connection:
            return [schema for (schema,) in connection.execute(_SCHEMAS)]
    except psycopg.Error as error:
        raise meaning_of(error, database) from error
