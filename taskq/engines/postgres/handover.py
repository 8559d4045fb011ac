"""Jobs that come after others: what becomes of them when those have ended. No I/O.

An edge is open until its parent has ended and its child has heard of that. So what is still to be done after any death
can be found: open edges whose parents have ended. Handing over is one transaction, and does nothing if it runs twice.
A search for such edges goes over all that are open, some at a time, and takes little of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final, NamedTuple
from uuid import UUID

from taskq.engines.dependents import Fate, becomes, parent_failed
from taskq.engines.postgres import statements
from taskq.engines.postgres.link.link import Exchange
from taskq.engines.postgres.rows import told_row
from taskq.model.attempt import pack_failure
from taskq.model.effects import Event
from taskq.model.job import JobError, JobRow
from taskq.model.stored import StoredState
from taskq.protocol.postgres.arrays import bigints, byteas, ints, uuids
from taskq.protocol.postgres.kinds import read_spec
from taskq.protocol.postgres.plans import Plan, Query, Rows, Step
from taskq.protocol.postgres.watching import tell

#: How many parents one transaction hands over.
AT_ONCE: Final = 1_000
#: How many open edges one step of a search looks at.
_SEEN_AT_ONCE: Final = 2_000
#: How often to search for what nobody was told of, and the part of the time that this may take.
_SEARCH_EVERY_S: Final = 5.0
_SEARCH_PART: Final = 0.05
#: When to search for what could not be handed over.
_AGAIN_S: Final = 0.5
_FIRST: Final = bytes(16)


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
    """How many jobs are ready now, those that were cancelled, with the reasons, and where a search goes on; None:
    nowhere."""

    freed: int
    cancelled: list[tuple[JobRow, JobError]]
    place: bytes | None

    @property
    def notes(self) -> list[Event]:
        """What the log tells of those that were cancelled."""
        return [Event("job.cancelled", {"row": row, "error": error}) for row, error in self.cancelled]


class HandOver(Exchange[HandedOver]):
    """Tells the children of jobs that have ended."""

    def __init__(self, schema: str, parents: Sequence[bytes] = (), place: bytes | None = None) -> None:
        """
        Args:
            parents: the ids of jobs that have ended, or may have.
            place: search for those whose children were not told, behind this id.
        """
        super().__init__(self._plan)
        self._schema = schema
        self._parents, self.place = parents, place

    def _plan(self) -> Plan[HandedOver]:
        parents, place = self._parents, None
        if self.place is not None:
            [[(seen, last, parents)]] = yield Step(Query(statements.UNTOLD, (UUID(bytes=self.place), _SEEN_AT_ONCE)))
            place = bytes(last) if seen == _SEEN_AT_ONCE else None
        partitions = set[int]()
        freed, cancelled = 0, list[tuple[JobRow, JobError]]()
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
            reasons = {child.id: _reason(child) for child in called_off}
            if called_off:
                outcomes = [pack_failure(None, None, reason) for reason in reasons.values()]
                ended = bigints([child.seq for child in called_off]), byteas(outcomes)
                queries.append(Query(statements.CALL_OFF, ended))
            answers = yield Step(*queries)
            freed += len(ready)
            partitions |= {child.partition for child in ready}
            parents = list(reasons)
            if called_off:
                cancelled += [(row, reasons[row.id]) for row in (told_row(*columns) for columns in answers[-1])]
        after = [Query(statements.NOTIFY, (self._schema, f"r {partition}")) for partition in sorted(partitions)]
        if cancelled:
            after.append(tell([row.id for row, _ in cancelled], self._schema))
        yield Step(Query(statements.NOTHING), commits=True, after=after)
        return HandedOver(freed, cancelled, place)


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


def _reason(child: _Child) -> JobError:
    """Why a job is cancelled."""
    edge = child.culprit
    assert edge is not None
    task = "" if edge.spec is None else read_spec(edge.spec).task
    return parent_failed(edge.parent, task, StoredState(edge.state), edge.outcome)


class Edges:
    """Which jobs have ended whose children may not have been told yet. Pure; used by the engine alone."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self.has_some = True  # jobs come after others, or may
        self._is_told = False  # of some, since the last look began
        self._ended: list[bytes] = []  # jobs whose children are to be told
        self._search_at = self._began_at = self._rest_until = -inf
        self._place: bytes | None = None  # of the search that is under way
        self._is_asked = False

    # -- what is heard

    def ended(self, ids: Sequence[bytes]) -> None:
        """Jobs have ended here."""
        if self.has_some:
            self._ended.extend(ids)

    def tell(self, ids: Sequence[bytes] | None = None) -> None:
        """Others tell that jobs come after others.

        Args:
            ids: jobs that they come after, and that have ended, or may have; None: nobody knows which.
        """
        if ids is None or not self.has_some:  # what has ended since is to be found
            self.search_soon()
        self.has_some = self._is_told = True
        self._ended.extend(ids or ())

    def search_soon(self) -> None:
        """Some may have ended whose children nobody was told of."""
        self._search_at = min(self._search_at, self._rest_until)

    def look_begins(self) -> None:
        """A look is asked for; see `looked`."""
        self._is_told = False

    def looked(self, has_some: bool | None) -> None:
        """Takes whether a look has found jobs after others; None: it did not look for them."""
        if has_some is None:
            return
        if has_some and not self.has_some:
            self.search_soon()
        self.has_some = has_some or self._is_told

    # -- what is asked of the database

    @property
    def has_ended(self) -> bool:
        """Whether there are jobs whose children are to be told."""
        return bool(self._ended)

    def next_handover(self) -> HandOver:
        """Tells the children of some of the jobs that have ended."""
        ended, self._ended = self._ended[:AT_ONCE], self._ended[AT_ONCE:]
        return HandOver(self._schema, ended)

    def search_at(self, now: float) -> float:
        """When the next step of a search is due (monotonic)."""
        if not self.has_some or self._is_asked:
            return inf
        return self._search_at if self._place is None else now

    def next_search(self, now: float) -> HandOver | None:
        """The next step of a search, if one is due."""
        if now < self.search_at(now):
            return None
        self._is_asked = True
        if self._place is None:
            self._place, self._began_at = _FIRST, now
        return HandOver(self._schema, place=self._place)

    def finish(self, exchange: HandOver, now: float) -> None:
        """Takes how a step of a search went, or the end of a handover."""
        if exchange.place is None:
            if exchange.value is None:
                self._search_at = min(self._search_at, max(self._rest_until, now + _AGAIN_S))
            return
        self._is_asked = False
        self._place = None if exchange.value is None else exchange.value.place
        if self._place is None:
            self._rest_until = now + (now - self._began_at) / _SEARCH_PART
            self._search_at = max(self._rest_until, now + (_AGAIN_S if exchange.value is None else _SEARCH_EVERY_S))
