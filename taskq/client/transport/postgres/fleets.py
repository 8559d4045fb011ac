"""What the fleets of all machines are doing, put together from what each of them tells with its beats."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace

import psycopg

from taskq.client.transport.postgres.sessions import meaning_of, options_of
from taskq.model.info.counts import MINUTES, Counts, TaskCounts
from taskq.model.info.status import BrokerStatus, FleetStatus, JobTotals, MachineStatus, QueueFlow, QueueStatus, flow_of
from taskq.protocol.postgres.beats import read_told
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.submitting import TALLIED
from taskq.system.directory import reply_timeout_s
from taskq.system.place import DatabaseUrl, Place

#: A fleet that was not heard of for longer is not shown as one that runs; it tells something every 5 s.
_SILENT_S = 20.0
_FLEETS = """
    SELECT f.host, f.pid, extract(epoch FROM taskq.now_() - b.seen_at)::float8, b.status
    FROM taskq.fleets f JOIN taskq.beats b USING (fleet) ORDER BY f.fleet"""
#: How many jobs of each queue and state there are, and since when the first of those could run that nobody has, and its
#: id.
_QUEUES = """
    WITH own AS MATERIALIZED (
        SELECT partition, state, count(*) AS jobs, min(seq) FILTER (WHERE state = 0 AND lease IS NULL) AS first
        FROM taskq.queue GROUP BY 1, 2),
    aged AS (
        SELECT own.*, q.id, coalesce(extract(epoch FROM q.ready_at),
            ('x' || left(replace(q.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)::float8 AS since
        FROM own LEFT JOIN taskq.queue q ON q.seq = own.first)
    SELECT p.queue, state, sum(jobs)::bigint, min(since), (array_agg(uuid_send(id) ORDER BY since, first))[1]
    FROM aged JOIN taskq.partitions p USING (partition) GROUP BY 1, 2"""
_PAUSED = "SELECT queue FROM taskq.paused ORDER BY queue"
#: What fleets have counted, and what they have not added to that yet: in one statement, since one becomes the other.
_COUNTS = """
    SELECT task, queue, minute, packed, NULL::smallint, NULL::bytea, NULL::bigint FROM taskq.counts
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, t.what, s.fields, t.jobs
    FROM (SELECT what, spec, sum(jobs)::bigint AS jobs FROM taskq.tallies GROUP BY 1, 2) t
    JOIN taskq.specs s USING (spec)"""
_TIME = "SELECT extract(epoch FROM taskq.now_())::float8"
_STATES = ("queued", "scheduled", "waiting")
_NO_FLOW = QueueFlow()
#: Counts by task and queue, and by minutes since 1970; 0: before the last hour.
_Counted = dict[tuple[str, str], dict[int, Counts]]


def read_status(place: Place) -> Plan[FleetStatus]:
    """The status of all fleets together; the state of the broker is "stopped" if none runs."""
    fleets, counted, paused, counts, [(wall,)] = yield Step(
        Query(_FLEETS), Query(_QUEUES), Query(_PAUSED), Query(_COUNTS), Query(_TIME), commits=True
    )
    all_told = [
        (host, pid, seen_s, read_told(bytes(told)))
        for host, pid, seen_s, told in fleets
        if seen_s is not None and seen_s < _SILENT_S and told is not None
    ]
    heard = [(host, pid, seen_s, told.status) for host, pid, seen_s, told in all_told]
    statuses = [status for *_, status in heard]
    directory = str(place.directory.path)
    own = [status for status in statuses if status.broker.directory == directory] or statuses
    queues, names = _queues(counted, statuses), [queue for (queue,) in paused]
    stopped = FleetStatus(BrokerStatus(None, None, place.shown, None, "stopped"))
    return replace(
        own[0] if own else stopped,
        not_started=[missing for status in statuses for missing in status.not_started],
        queues=queues,
        paused=names,
        totals=_totals(_counts(counts, wall)),
        consumers=[replace(each, machine=host) for host, _, _, status in heard for each in status.consumers],
        machines=[
            MachineStatus(host, pid, status.broker.state, round(seen_s, 1), len(status.consumers), _running(status))
            for host, pid, seen_s, status in heard
        ],
        unserved=[queue for queue in queues if heard and not any(told.serves(queue) for *_, told in all_told)],
        flows=_flows(queues, statuses, _oldest(counted, wall), names),
    )


def _oldest(counted: Rows, wall: float) -> dict[str, tuple[float, str]]:
    """For how many seconds the oldest job of each queue has been waiting, and its id."""
    return {queue: (wall - since, bytes(first).hex()) for queue, _, _, since, first in counted if since}


def are_heard() -> Plan[bool]:
    """Whether some fleet runs."""
    [fleets] = yield Step(Query(_FLEETS), commits=True)
    return any(seen_s is not None and seen_s < _SILENT_S for _, _, seen_s, _ in fleets)


def _running(status: FleetStatus) -> int:
    return sum(queue.running for queue in status.queues.values())


def _queues(counted: Rows, statuses: Iterable[FleetStatus]) -> dict[str, QueueStatus]:
    numbers: dict[str, dict[str, int]] = {}
    for queue, state, count, *_ in counted:
        numbers.setdefault(queue, {})[_STATES[state]] = count
    for status in statuses:
        for queue, told in status.queues.items():
            own = numbers.get(queue, {})
            running = min(told.running, own.get("queued", 0))  # what has ended since is not in the table any more
            if running:
                own["queued"] -= running
                own["running"] = own.get("running", 0) + running
    return {queue: QueueStatus(**own) for queue, own in sorted(numbers.items())}


def _flows(
    queues: Mapping[str, QueueStatus],
    statuses: Sequence[FleetStatus],
    oldest: Mapping[str, tuple[float, str]],
    paused: Collection[str],
) -> dict[str, QueueFlow]:
    """How fast jobs come and go. Each job that comes is counted by one fleet, and each that ends.

    Args:
        oldest: see `_oldest`.
    """
    if not statuses:
        return {}
    own = [status.flows for status in statuses]
    names = {name for flows in own for name in flows} | queues.keys()
    return {
        name: flow_of(
            queues.get(name, QueueStatus()).queued,
            sum(flows[name].came_per_s for flows in own if name in flows),
            sum(flows[name].ended_per_s for flows in own if name in flows),
            *oldest.get(name, (None, None)),
            is_paused=name in paused,
        )
        for name in sorted(names)
        if name in queues or any(name in flows and flows[name] != _NO_FLOW for flows in own)
    }


def _totals(counts: _Counted) -> JobTotals:
    """What has happened so far."""
    names = [each.name for each in fields_of(JobTotals)]
    all_counts = [each for own in counts.values() for each in own.values()]
    return JobTotals(**{name: sum(getattr(each, name) for each in all_counts) for name in names})


def _counts(rows: Rows, wall: float) -> _Counted:
    """Puts together what fleets have counted, and what they have not added to that yet.

    Args:
        wall: seconds since 1970. What machines have counted that are gone may be older than the last hour.
    """
    pairs: _Counted = {}
    now = int(wall // 60)
    for task, queue, minute, packed, what, fields, jobs in rows:
        if what is None:
            own = pairs.setdefault((task, queue), {})
            own.setdefault(minute if minute > now - MINUTES else 0, Counts()).merge(Counts.unpack(bytes(packed)))
        else:
            spec, name = read_spec(bytes(fields)), TALLIED[what]
            counts = pairs.setdefault((spec.task, spec.queue), {}).setdefault(now, Counts())
            setattr(counts, name, getattr(counts, name) + jobs)
    return pairs


def read_counts() -> Plan[list[TaskCounts]]:
    """What happened to the jobs of each task and queue, by name, on all machines."""
    rows, [(wall,)] = yield Step(Query(_COUNTS), Query(_TIME), commits=True)
    return [
        TaskCounts.of(task, queue, [(minute, counts.pack()) for minute, counts in sorted(own.items())])
        for (task, queue), own in sorted(_counts(rows, wall).items())
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
