"""Jobs that come after others, without a fleet: the rule, what the stores make of it, and the frames they travel in."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from asked import asked
from deaf import Deaf
from full_disk import Tight
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.broker.core.core import Core
from taskq.engines.dependents import Fate, becomes
from taskq.engines.embedded.commands import Commands
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.dependencies import Released, release_dependents
from taskq.engines.embedded.engine import recover
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Disk
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import Store
from taskq.model.attempt import Attempts, Verdict, pack_failure, pack_success, unpack
from taskq.model.constraints import NO_CONSTRAINTS, Constraints, UniqueKey
from taskq.model.errors import ConfigError, PayloadTooLarge, ProtocolError
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, Ended, StoredState
from taskq.protocol.frames import Decoder
from taskq.protocol.link.flight_recorder import FlightRecord
from taskq.protocol.submissions import Call, Submission, flow_frame, parts_of, read_flow
from taskq.system.directory import Directory

ENDS = [kept for kept in StoredState if kept >= FIRST_FINAL]
SPECS = [Spec("a"), Spec("b", "other", priority=3)]


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.booleans())), st.booleans())
def test_the_rule(ends: list[tuple[StoredState, bool]], is_last: bool) -> None:
    stops = [kept for kept, goes_on in ends if kept != StoredState.SUCCEEDED and not goes_on]
    assert becomes(ends, is_last) is (Fate.CANCELLED if stops else Fate.GOES if is_last else Fate.WAITS)


@st.composite
def graphs(draw: st.DrawFn) -> list[dict[int, bool]]:
    """What each job comes after, by position, with its policies: jobs come after earlier ones only."""
    size = draw(st.integers(1, 12))
    return [
        draw(st.dictionaries(st.integers(0, position - 1), st.booleans(), max_size=4)) if position else {}
        for position in range(size)
    ]


class Life:
    """A graph of jobs in a store, which lives to its end."""

    def __init__(self, store: Store, graph: list[dict[int, bool]], draw: st.DataObject) -> None:
        self.store = store
        self.graph = graph
        self.draw = draw
        self.ids = list(new_job_ids(len(graph)))
        self.ready: list[JobRow] = []
        self.ends: dict[int, StoredState] = {}
        self.retries = 5
        self.due = draw.draw(st.sets(st.sampled_from(range(len(graph)))))

    def submit(self) -> None:
        """Hands in all jobs in one transaction, as the admission does."""
        for position, parents in enumerate(self.graph):
            after = tuple((self.ids[parent], goes_on) for parent, goes_on in parents.items())
            constraints = Constraints(due_at=5e9 if position in self.due else None, after=after)
            [row] = self.store.submit(SPECS[position % 2], [self.ids[position]], [b"payload"], [constraints])
            if not after and position not in self.due:
                self.ready.append(row)
        self.store.commit()

    def end_one(self) -> None:
        """Ends a job, and hands over."""
        row = self.ready.pop(self.draw.draw(st.integers(0, len(self.ready) - 1)))
        position = self.ids.index(row.id)
        before = [parent for parent, goes_on in self.graph[position].items() if not goes_on]
        assert all(self.ends.get(parent) == StoredState.SUCCEEDED for parent in before), "it ran before its turn"
        kept = self.draw.draw(st.sampled_from(ENDS))
        ended: list[Ended] = [(row, kept, b"outcome")]
        self.store.settle(ended, [], 1e9)
        handed = self.release_dependents({row.id: kept})
        if self.draw.draw(st.integers(0, 5)) == 5:
            self.store.rollback()  # a full disk: as if nothing had happened
            self.ready.append(row)
            return
        self.store.commit()
        self.ends[position] = kept
        self.ready += handed.queued
        for other, how, outcome in handed.ended:
            error = unpack(outcome).error
            assert how == StoredState.CANCELLED
            assert error is not None
            assert error.type == "ParentFailed"
            culprit = self.ids.index(bytes.fromhex(error.message.split()[1].strip(",")))
            assert self.ends[culprit] != StoredState.SUCCEEDED
            self.ends[self.ids.index(other.id)] = how
        assert len(handed.ended) == len(handed.notes)

    def release_dependents(self, ends: dict[bytes, StoredState]) -> Released:
        """In small pieces, as wide and long workflows are."""
        handed = Released()
        while ends:
            part = release_dependents(self.store, ends, 1e9, self.draw.draw(st.integers(1, 6)))
            handed.queued += part.queued
            handed.ended += part.ended
            handed.notes += part.notes
            ends = part.left
        return handed

    def retry(self, position: int) -> None:
        """Somebody retries a failed job, and what was called off because of it comes back."""
        stored = self.store.read(self.ids[position])
        assert stored is not None
        [row] = self.store.requeue([stored], 1e9)
        self.ready.append(row)
        left = [(row.id, 0)]
        while left:
            ends, left = self.store.revive_dependents(left, self.draw.draw(st.integers(1, 6)))
            self.ready += self.release_dependents(ends).queued
        self.store.commit()
        assert self.store.unrevived() == []
        for other in range(len(self.graph)):
            found = self.store.read(self.ids[other])
            assert found is not None
            if found.kept < FIRST_FINAL:
                self.ends.pop(other, None)

    def retry_some(self) -> None:
        """Retries failed jobs now and then."""
        for position, kept in list(self.ends.items()):
            if kept == StoredState.FAILED and self.retries and self.draw.draw(st.booleans()):
                self.retries -= 1
                self.retry(position)

    def come_due(self) -> None:
        """Time passes."""
        self.ready += self.store.lease_due(6e9, 100)
        self.store.commit()

    def check(self) -> None:
        """Nothing hangs, and all ended as the rule wants."""
        for position, parents in enumerate(self.graph):
            stored = self.store.read(self.ids[position])
            assert stored is not None
            assert stored.kept == self.ends[position]
            if any(self.ends[parent] != StoredState.SUCCEEDED and not goes_on for parent, goes_on in parents.items()):
                assert self.ends[position] == StoredState.CANCELLED
        assert not self.store.has_waiting
        assert self.store.unfinished_releases() == []


@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@given(graph=graphs(), draw=st.data())
def test_every_graph_ends(kind: str, graph: list[dict[int, bool]], draw: st.DataObject) -> None:
    memory = Path("/dev/shm")  # in memory if that can be: each example makes a journal, and files beside it are synced
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as home:
        store = SQLiteStore(Path(home) / "journal.db", "memory") if kind == "sqlite" else MemoryStore(Disk())
        with closing(store):
            life = Life(store, graph, draw)
            life.submit()
            while len(life.ends) < len(graph):
                if life.ready:
                    life.end_one()
                    life.retry_some()
                else:
                    life.come_due()
                    assert life.ready, "it hangs"
            life.check()


def test_what_one_comes_after_is_not_pruned(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        ids = list(new_job_ids(5))
        parents = store.submit(SPECS[0], ids[:3], [b"x"] * 3)
        after = Constraints(after=((ids[0], False), (ids[1], True)))
        [child] = store.submit(SPECS[0], ids[3:4], [b"x"], [after])
        store.settle([(row, StoredState.SUCCEEDED, b"") for row in parents], [], 1.0)
        assert release_dependents(store, dict.fromkeys(ids[:3], StoredState.SUCCEEDED), 1.0).queued[0].id == child.id
        store.commit()
        assert store.prune(2.0, 0, 100) == 1
        assert [store.read(job_id) is None for job_id in ids[:4]] == [False, False, True, False]
        assert store.parents(child.seq, 10) == sorted(ids[:2])
        assert store.followers(ids[0], 10) == [child.id]
        store.settle([(child, StoredState.FAILED, b"")], [], 1.0)
        store.commit()
        assert store.prune(1e9, 0, 100) == 0, "a failed job may be run again, and needs them"
        store.settle([(child, StoredState.SUCCEEDED, b"")], [], 1.0)
        store.commit()
        assert store.prune(2e9, 0, 100) == 3


def test_a_store_that_is_opened_again_knows_who_waits(tmp_path: Path) -> None:
    ids = list(new_job_ids(2))
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        [parent] = store.submit(SPECS[0], ids[:1], [b"x"])
        store.submit(SPECS[0], ids[1:], [b"x"], [Constraints(after=((ids[0], False),))])
        assert store.counts(StoredState.WAITING) == {"default": 1}
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        assert store.has_waiting
        store.settle(
            [(parent, StoredState.SUCCEEDED, b"")], [], 1.0
        )  # and the hand-over is lost: never with our committer
        assert store.unfinished_releases() == [(ids[0], StoredState.SUCCEEDED)]
        assert [row.id for row in release_dependents(store, dict(store.unfinished_releases()), 1.0).queued] == [ids[1]]


# -- frames


#: Made once: to make a strategy takes longer than to draw from it.
SOME_SPEC = st.sampled_from(SPECS)
SOME_CONSTRAINTS = st.sampled_from([NO_CONSTRAINTS, Constraints(due_at=3.0), Constraints(limit_key="k")])


@st.composite
def flows(draw: st.DrawFn) -> list[tuple[Spec, Call]]:
    ids = list(new_job_ids(draw(st.integers(1, 30))))
    other = next(new_job_ids(1))
    flow = []
    for position, job_id in enumerate(ids):
        known = [other, *ids[:position]]
        after = draw(st.dictionaries(st.integers(0, position), st.booleans(), max_size=3))
        constraints = draw(SOME_CONSTRAINTS)
        edges = tuple((known[parent], goes_on) for parent, goes_on in after.items())
        own = Constraints(constraints.due_at, limit_key=constraints.limit_key, after=edges)
        call = Call(job_id, draw(st.binary(max_size=9)), None if own == NO_CONSTRAINTS else own)
        flow.append((draw(SOME_SPEC), call))
    return flow


def read(frame: bytes) -> list[tuple[Spec, Call]]:
    """The jobs in a frame."""
    [([_, groups, edges], body)] = Decoder().feed(frame)
    return [
        (spec, Call(*fields))
        for spec, *columns in read_flow(groups, edges, body)
        for fields in zip(*columns, strict=True)
    ]


@given(flows())
def test_frames(flow: list[tuple[Spec, Call]]) -> None:
    assert sorted(read(flow_frame([9], flow)), key=lambda job: job[1].id) == flow
    parts = list(parts_of(flow))
    assert [job for part in parts for job in part] == flow


def test_unique_jobs_go_alone() -> None:
    """One of them may be left out, so the broker takes no workflow that has some
    (`taskq.engines.embedded.admission`)."""
    keys = [None, None, "a", "b", None]
    flow = [
        (SPECS[0], Call(job_id, b"payload", None if key is None else Constraints(unique=UniqueKey(key))))
        for key, job_id in zip(keys, new_job_ids(5), strict=True)
    ]
    parts = list(parts_of(flow))
    assert [len(part) for part in parts] == [2, 1, 1, 1]
    assert [job for part in parts for job in part] == flow


@given(flows(), st.data())
def test_damaged_frames(flow: list[tuple[Spec, Call]], data: st.DataObject) -> None:
    [([_, groups, edges], body)] = Decoder().feed(flow_frame([9], flow))
    damaged = bytearray(body)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    edges += data.draw(st.integers(-3, 3))
    try:
        read_flow(groups, edges, memoryview(bytes(damaged)))
    except (ProtocolError, ConfigError):
        pass


def test_no_job_comes_after_itself() -> None:
    first, second = new_job_ids(2)
    for after in (first, second):
        frame = flow_frame(
            [9], [(SPECS[0], Call(first, b"", Constraints(after=((after, False),)))), (SPECS[0], Call(second, b""))]
        )
        with pytest.raises(ProtocolError, match="comes after a later one"):
            read(frame)


@pytest.mark.parametrize(("jobs", "size", "kinds"), [(9, 500_000, 1), (120_000, 1, 1), (3_000, 1, 3_000)])
def test_what_does_not_fit_a_frame_is_reported(jobs: int, size: int, kinds: int) -> None:
    flow = [
        (SPECS[0], Call(job_id, bytes(size), Constraints(limit_key=f"{number % kinds}")))
        for number, job_id in enumerate(new_job_ids(jobs))
    ]
    with pytest.raises(PayloadTooLarge, match="let a job of the workflow enqueue the rest"):
        flow_frame([9], flow)
    for part in parts_of(flow[:5_000]):
        assert read(flow_frame([9], part))


# -- the committer: an end, what it sets free, and the children of the job are one commit


def committer_of(store: Store, core: Core, home: Path) -> Committer:
    """A committer without clients and consumers."""
    deaf = cast(Any, Deaf())
    return Committer(store, core, deaf, deaf, Directory(home).create(), deaf)


def submission(ids: Sequence[bytes], after: Sequence[bytes] = ()) -> Submission:
    """Jobs of a job, or from the spool."""
    constraints = [Constraints(after=tuple((parent, False) for parent in after)) for _ in ids] if after else None
    return Submission(None, 0, False, SPECS[0], list(ids), [b"payload"] * len(ids), constraints)


def states(store: Store, ids: Sequence[bytes]) -> list[StoredState | None]:
    """The states of jobs, as they would be found after a crash."""
    return [store.states(ids).get(job_id) for job_id in ids]


@pytest.mark.parametrize("refusals", [0, 1, 2, 3])
def test_an_end_and_what_follows_from_it_are_one_commit(tmp_path: Path, refusals: int) -> None:
    first, second, child, after_child = ids = list(new_job_ids(4))
    with closing(Tight(tmp_path / "journal.db")) as store:
        core = Core()
        committer = committer_of(store, core, tmp_path / "home")
        committer.take_in(submission([first]))
        committer.take_in(submission([second], [first]))
        committer.commit(0.0, 1e9)
        assert states(store, ids) == [StoredState.QUEUED, StoredState.WAITING, None, None]
        core.joined(1, 0.0)
        assert [[row.id for row in batch.rows] for batch in core.dispatch(0.0, 0.0)] == [[first]]
        store.refusals = refusals
        core.settled(1, Attempts([1], [Verdict.SUCCEEDED], [5], [pack_success(0.0, 0.0, None)]), 0.0, 1e9)
        core.take_children([submission([child]), submission([after_child], [child])])
        for now in (1.0, 2.0):
            committer.commit(now, 1e9)
            if refusals >= 2 and now == 1.0:
                assert states(store, ids) == [StoredState.QUEUED, StoredState.WAITING, None, None], (
                    "all of it waits for room"
                )
                assert not committer.is_settled
                continue
            assert states(store, ids) == [
                StoredState.SUCCEEDED,
                StoredState.QUEUED,
                StoredState.QUEUED,
                StoredState.WAITING,
            ]
            assert committer.is_settled
        sent = [row.id for batch in core.dispatch(3.0, 0.0) for row in batch.rows]
        assert sorted(sent) == [second, child], "each once"


def test_spooled_jobs_do_not_come_between_an_end_and_its_children(tmp_path: Path) -> None:
    """Whatever makes the committer commit, it takes over what the core knows before."""
    first, child, other = ids = list(new_job_ids(3))
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        core = Core()
        committer = committer_of(store, core, tmp_path / "home")
        committer.take_in(submission([first]))
        committer.commit(0.0, 1e9)
        core.joined(1, 0.0)
        core.dispatch(0.0, 0.0)
        core.settled(1, Attempts([1], [Verdict.SUCCEEDED], [5], [pack_success(0.0, 0.0, None)]), 0.0, 1e9)
        core.take_children([submission([child])])
        committer.take_in(submission([other]))
        committer.commit(1.0, 1e9)  # with no `collect` before
        assert states(store, ids) == [StoredState.SUCCEEDED, StoredState.QUEUED, StoredState.QUEUED]


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("verdict", [Verdict.SUCCEEDED, Verdict.FAILED])
def test_the_end_of_a_unique_job_counts_for_what_comes_in_with_it(
    tmp_path: Path, verdict: Verdict, replaces: bool
) -> None:
    """A job that has ended neither keeps others out nor is replaced; one that waits for a retry may be replaced."""
    first, second = ids = list(new_job_ids(2))
    unique = [Constraints(unique=UniqueKey("key", replaces=replaces))]
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        core = Core()
        committer = committer_of(store, core, tmp_path / "home")
        committer.take_in(submission([first])._replace(constraints=unique))
        committer.commit(0.0, 1e9)
        core.joined(1, 0.0)
        core.dispatch(0.0, 0.0)
        error = JobError("ValueError", "no")
        outcome = pack_success(0.0, 0.0, None) if verdict is Verdict.SUCCEEDED else pack_failure(0.0, 0.0, error)
        core.settled(1, Attempts([1], [verdict], [5], [outcome]), 0.0, 1e9)
        committer.take_in(submission([second])._replace(constraints=unique))
        committer.commit(1.0, 1e9)
        if verdict is Verdict.SUCCEEDED:
            assert states(store, ids) == [StoredState.SUCCEEDED, StoredState.QUEUED]
        else:
            expected = (
                [StoredState.CANCELLED, StoredState.QUEUED]
                if replaces
                else [StoredState.SCHEDULED, StoredState.CANCELLED]
            )
            assert states(store, ids) == expected
        totals = store.totals.as_dict()
        assert (totals["succeeded"], totals["cancelled"]) == ((1, 0) if verdict is Verdict.SUCCEEDED else (0, 1))


@pytest.fixture
def wide(tmp_path: Path) -> Iterator[Wide]:
    """A job that ended, and many that come after it: one commit does not hand over to all."""
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        yield Wide(store, tmp_path / "home")


class Wide:
    """A job and what comes after it, in a committer."""

    def __init__(self, store: SQLiteStore, home: Path) -> None:
        self.store, self.core = store, Core()
        self.committer = committer_of(store, self.core, home)
        self.commands = Commands(Deaf(), self.committer.gone)
        self.first, *self.others = new_job_ids(3_001)
        self.committer.take_in(submission([self.first])._replace(spec=Spec("a", retries=0)))
        self.committer.take_in(submission(self.others, [self.first]))
        self.committer.commit(0.0, 1e9)
        while self.committer.is_behind:
            self.committer.commit(0.0, 1e9)

    def fail(self) -> None:
        """The job runs, and fails; what follows is not at its end."""
        self.core.joined(1, 0.0)
        self.core.dispatch(0.0, 0.0)
        outcome = pack_failure(0.0, 0.0, JobError("ValueError", "no"))
        self.core.settled(1, Attempts([1], [Verdict.FAILED], [5], [outcome]), 0.0, 1e9)
        self.committer.commit(1.0, 1e9)
        self.expect_some_to_wait()

    def expect_some_to_wait(self) -> None:
        """Not all have heard of it."""
        found = self.found()
        assert 0 < found[StoredState.CANCELLED] < 500
        assert found.total() == 3_000

    def go_on(self) -> None:
        """Commits, until all heard of it."""
        while self.committer.is_handing_over:
            assert self.committer.must_commit(time.monotonic())
            self.committer.commit(time.monotonic(), 1e9)

    def found(self) -> Counter[StoredState]:
        """What became of those that come after it, as it would be found after a crash."""
        return Counter(self.store.states(self.others).values())


def test_what_is_retried_has_not_failed_for_those_who_did_not_hear_of_it(wide: Wide) -> None:
    wide.fail()
    _, left = asked(wide.committer, lambda tx: wide.commands.retry_one(tx, wide.store.read, wide.first))
    while left:
        left = asked(wide.committer, lambda tx: tx.revive(left))  # noqa: B023  used at once
    wide.go_on()
    assert wide.found() == {StoredState.WAITING: 3_000}


@pytest.mark.parametrize("how", ["waits", "succeeds", "fails"])
def test_the_start_revives_what_a_broker_that_died_has_not(wide: Wide, how: str) -> None:
    """Whatever became meanwhile of the job that was retried."""
    wide.fail()
    wide.go_on()
    assert wide.found() == {StoredState.CANCELLED: 3_000}
    _, left = asked(wide.committer, lambda tx: wide.commands.retry_one(tx, wide.store.read, wide.first))
    assert asked(wide.committer, lambda tx: tx.revive(left)), "there is more"
    found = wide.found()
    assert 0 < found[StoredState.WAITING] < 500
    assert found.total() == 3_000
    retried = wide.store.read(wide.first)
    assert retried is not None
    if how != "waits":
        state = StoredState.SUCCEEDED if how == "succeeds" else StoredState.FAILED
        wide.store.settle([(retried.row, state, b"")], [], 1e9)
        wide.store.commit()
    recover(wide.store, Core(), [], 0.0, 1e9)  # after a crash
    expected = {"waits": StoredState.WAITING, "succeeds": StoredState.QUEUED, "fails": StoredState.CANCELLED}
    assert wide.found() == {expected[how]: 3_000}
    assert wide.store.unrevived() == []


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_what_comes_after_one_that_is_no_longer_there_is_not_called_back(tmp_path: Path, kind: str) -> None:
    """It may not have succeeded, and if it did, its result is gone; what goes on without it does not need it."""
    gone, failed, needs_both, goes_on = ids = list(new_job_ids(4))
    memory = partial(MemoryStore, Disk())
    with closing(SQLiteStore(tmp_path / "journal.db") if kind == "sqlite" else memory()) as store:
        store.submit(SPECS[0], [gone, failed], [b"x"] * 2)
        constraints = [Constraints(after=((gone, may_fail), (failed, False))) for may_fail in (False, True)]
        store.submit(SPECS[0], [needs_both, goes_on], [b"x"] * 2, constraints)
        stored = [store.read(job_id) for job_id in (gone, failed)]
        ends = {gone: StoredState.CANCELLED, failed: StoredState.FAILED}
        store.settle([(job.row, ends[job.row.id], b"") for job in stored if job is not None], [], 1.0)
        release_dependents(store, ends, 1.0)
        assert states(store, ids) == [
            StoredState.CANCELLED,
            StoredState.FAILED,
            StoredState.CANCELLED,
            StoredState.CANCELLED,
        ]
        store.remove([job for job in stored[:1] if job is not None])
        again = store.read(failed)
        assert again is not None
        store.requeue([again], 1e9)
        assert store.revive_dependents([(failed, 0)], 10) == ({}, [])
        assert store.unrevived() == []
        assert states(store, ids) == [None, StoredState.QUEUED, StoredState.CANCELLED, StoredState.WAITING]


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_what_one_that_was_called_off_comes_after_is_kept_as_long(tmp_path: Path, kind: str) -> None:
    """A retry may call it back."""
    one, failed, after = ids = list(new_job_ids(3))
    memory = partial(MemoryStore, Disk())
    with closing(SQLiteStore(tmp_path / "journal.db") if kind == "sqlite" else memory()) as store:
        rows = store.submit(SPECS[0], [one, failed], [b"x"] * 2)
        store.submit(SPECS[0], [after], [b"x"], [Constraints(after=((one, False), (failed, False)))])
        ends = {one: StoredState.SUCCEEDED, failed: StoredState.FAILED}
        store.settle([(row, ends[row.id], b"") for row in rows], [], 1.0)
        release_dependents(store, ends, 3.0)
        store.commit()
        assert store.prune(2.0, 100, 100) == 0
        assert states(store, ids) == [StoredState.SUCCEEDED, StoredState.FAILED, StoredState.CANCELLED]
        assert store.prune(4.0, 100, 100) == 1
        assert store.prune(1e9, 100, 100) == 1
        assert states(store, ids) == [None, StoredState.FAILED, None]


def test_the_start_knows_of_a_purge_that_not_all_heard_of(wide: Wide) -> None:
    assert asked(wide.committer, lambda tx: wide.commands.purge_one(tx, wide.store.read, wide.first))
    wide.expect_some_to_wait()
    recover(wide.store, Core(), [], 0.0, 1e9)  # after a crash
    assert wide.found() == {StoredState.CANCELLED: 3_000}


def test_the_start_ends_what_comes_after_a_job_that_took_the_fleet_down(tmp_path: Path) -> None:
    first, second, third = ids = list(new_job_ids(3))
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        store.submit(Spec("a", max_crashes=1), [first], [b"payload"])
        for parent, child in ((first, second), (second, third)):
            store.submit(SPECS[0], [child], [b"payload"], [Constraints(after=((parent, False),))])
        store.commit()
        effects = recover(store, Core(), [FlightRecord(first, 1)], 0.0, 1e9)
        assert [row.id for row, _, _ in effects.ended] == ids
        assert states(store, ids) == [StoredState.FAILED, StoredState.CANCELLED, StoredState.CANCELLED]
