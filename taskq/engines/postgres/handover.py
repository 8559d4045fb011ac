"""Jobs that come after others: what becomes of them when those have ended. No I/O.

An edge is open until its parent has ended and its child has heard of that. So what is still to be done after any death
can be found: open edges whose parents have ended. Handing over is one transaction, and does nothing if it runs twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from taskq.engines.dependents import Fate, becomes, parent_failed
from taskq.engines.postgres import statements
from taskq.engines.postgres.link.link import Exchange
from taskq.model.attempt import pack_failure
from taskq.model.stored import StoredState
from taskq.protocol.postgres.arrays import bigints, byteas, ints, uuids
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step

#: How many parents one transaction hands over.
AT_ONCE = 1_000


class _Edge(NamedTuple):
    """An edge that is closed now, and how its parent has ended: of one that did not succeed, the outcome, too."""

    child: bytes
    state: int
    goes_on: bool
    parent: bytes
    outcome: bytes | None
    spec: bytes | None


class _Child(NamedTuple):
    """A job that waited: how many others it still waits for, and the one for which it is cancelled."""

    seq: int
    id: bytes
    partition: int
    pending: int
    culprit: _Edge | None


class HandedOver(NamedTuple):
    """How many jobs are ready now, and the ids of those that were cancelled."""

    freed: int
    cancelled: list[bytes]


class HandOver(Exchange[HandedOver]):
    """Tells the children of jobs that have ended."""

    def __init__(self, schema: str, parents: Sequence[bytes] | None = None) -> None:
        """
        Args:
            parents: the ids of jobs that have ended; None: look for those whose children were not told.
        """
        super().__init__(self._plan)
        self._schema = schema
        self._parents = parents

    def _plan(self) -> Plan[HandedOver]:
        parents = self._parents
        if parents is None:
            [rows] = yield Step(Query(statements.UNTOLD, (AT_ONCE,)))
            parents = [parent for (parent,) in rows]
        partitions = set[int]()
        freed, cancelled = 0, list[bytes]()
        while parents:
            own = uuids(parents)
            _, edges = yield Step(Query(statements.HOLD_FAILED, (own,)), Query(statements.CLOSE_EDGES, (own,)))
            if not edges:
                break
            [children] = yield Step(Query(statements.CHILDREN, (uuids(list({edge[0]: None for edge in edges})),)))
            fates = _fates(edges, children)
            ready, called_off = fates[Fate.GOES], fates[Fate.CANCELLED]
            going = [*ready, *fates[Fate.WAITS]]
            queries = []
            if going:
                left = bigints([child.seq for child in going]), ints([child.pending for child in going])
                queries.append(Query(statements.FREE, left))
            if called_off:
                ended = bigints([child.seq for child in called_off]), byteas([_outcome(child) for child in called_off])
                queries.append(Query(statements.CALL_OFF, ended))
            yield Step(*queries)
            freed += len(ready)
            partitions |= {child.partition for child in ready}
            parents = [child.id for child in called_off]
            cancelled += parents
        after = [Query(statements.NOTIFY, (self._schema, f"r {partition}")) for partition in sorted(partitions)]
        if cancelled:
            after.append(Query(statements.TELL, (uuids(cancelled), self._schema)))
        yield Step(Query(statements.NOTHING), commits=True, after=after)
        return HandedOver(freed, cancelled)


def _fates(edges: Rows, children: Rows) -> dict[Fate, list[_Child]]:
    """What becomes of the children of jobs that have ended."""
    by_child: dict[bytes, list[_Edge]] = {}
    for columns in edges:
        edge = _Edge(*columns)
        by_child.setdefault(edge.child, []).append(edge)
    by_fate: dict[Fate, list[_Child]] = {fate: [] for fate in Fate}
    for seq, job_id, partition, pending in children:
        own = by_child[job_id]
        left = max(0, pending - len(own))
        fate = becomes([(StoredState(edge.state), edge.goes_on) for edge in own], is_last=left == 0)
        culprit = next((edge for edge in own if edge.state != StoredState.SUCCEEDED and not edge.goes_on), None)
        by_fate[fate].append(_Child(seq, job_id, partition, left, culprit))
    return by_fate


def _outcome(child: _Child) -> bytes:
    """The outcome of a job that is cancelled."""
    edge = child.culprit
    assert edge is not None
    task = "" if edge.spec is None else read_spec(edge.spec).task
    return pack_failure(None, None, parent_failed(edge.parent, task, StoredState(edge.state), edge.outcome))
