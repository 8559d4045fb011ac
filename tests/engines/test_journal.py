"""What every store must do, and what the embedded one must do as well.

The conformance suite runs for each maker in STORES: a store that joins later needs one line there.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.resources import files
from itertools import count
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import apsw
import million
import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.engines.embedded.journal import database as database_module
from taskq.engines.embedded.journal import memory as memory_module
from taskq.engines.embedded.journal import partition_numbers, statements
from taskq.engines.embedded.journal import queries as queries_module
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.embedded.journal.memory_records import Disk
from taskq.engines.embedded.journal.queries import BLOCK_JOBS
from taskq.engines.embedded.journal.row_counts import LaterCounts, RowCounts
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.journal.store import TOTAL_NAMES, Store, Wanted
from taskq.engines.embedded.journal.wal import LOOK_EVERY_S
from taskq.model.attempt import pack_failure, unpack
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import EnqueueError, JournalError, StoreFull
from taskq.model.info.counts import CountsRow
from taskq.model.info.search import JobSearch
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.limits import MAX_JOBS_SEEN, MAX_KEPT_ATTEMPT_BYTES
from taskq.model.partition import Partition, partition_of
from taskq.model.schedule import Schedule, ScheduleRow
from taskq.model.spec import Spec, spec_after_crash
from taskq.model.stored import Ended, Rescheduled, StoredJob, StoredState

Opener = Callable[[], Store]


@pytest.fixture(autouse=True, scope="module")
def enough_time() -> Iterator[None]:
    """What a list tells at a time does not depend on how fast the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries_module, "_FIND_S", inf)
        yield


#: Makers of stores: each call of what they return opens the same store again.
STORES: dict[str, Callable[[Path], Opener]] = {
    "sqlite": lambda home: lambda: SQLiteStore(home / "journal.db"),
    "memory": lambda _home: partial(MemoryStore, Disk()),
}

SPEC = Spec("app.work", "mail", retries=2, timeout_s=1.5, max_crashes=2)
OTHER = Spec("app.other", "images")
LATE = 2e9
ENDS = [bytes(10), bytes(9) + b"\1", b"\xff" * 10]
THEN = st.sampled_from(["go on", "go on", "restart", "roll back"])
LAST = 1 << 62  # behind all sequence numbers


@pytest.fixture(params=sorted(STORES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens the store under test."""
    return STORES[request.param](tmp_path)


@pytest.fixture
def store(opener: Opener) -> Iterator[Store]:
    """An empty store."""
    with closing(opener()) as store:
        yield store


def submit(store: Store, number: int, spec: Spec = SPEC, size: int = 20) -> list[JobRow]:
    """Submits a number of jobs with different payloads, and commits."""
    ids = list(new_job_ids(number))
    rows = store.submit(spec, ids, [job_id.ljust(size, b".") for job_id in ids])
    store.commit()
    return rows


def end(store: Store, rows: Iterable[JobRow], kept: StoredState = StoredState.SUCCEEDED, at: float = 1e9) -> None:
    """Ends jobs, and commits."""
    ended: list[Ended] = []
    for row in rows:
        row.attempts += 1
        ended.append((row, kept, b"outcome of " + row.id))
    store.settle(ended, [], at)
    store.commit()


def fields(row: JobRow) -> tuple[object, ...]:
    """All that a row says."""
    return row.seq, row.id, row.spec, row.payload, row.attempts, row.crashes


def leased(store: Store, queue: str = "mail", after: int = 0, limit: int = 1_000, size: int = 1 << 20) -> list[int]:
    """The sequence numbers that a lease gives."""
    return [row.seq for row in store.lease(Partition(queue), after, limit, size)[0]]


LATER = (StoredState.SCHEDULED, StoredState.WAITING)


def counts(store: Store) -> dict[str, dict[StoredState, int]]:
    """Jobs by queue and state."""
    found: dict[str, dict[StoredState, int]] = {}
    for kept in StoredState:
        for queue, number in store.counts(kept).items():
            found.setdefault(queue, {})[kept] = number
    if isinstance(store, SQLiteStore):
        anew = LaterCounts(store._db)
        assert [store.counts(kept) for kept in LATER] == [anew.of(kept) for kept in LATER]
    return found


def stored(store: Store, row: JobRow) -> StoredJob:
    """Reads a job that must be there."""
    found = store.read(row.id)
    assert found is not None
    return found


class TestConformance:
    """Holds for every store."""

    def test_a_new_store_is_empty(self, store: Store) -> None:
        """Nothing waits, nothing is counted, nothing is known."""
        assert store.lease(Partition("mail"), 0, 10, 1000) == ([], True)
        assert store.lease_due(LATE, 10) == []
        assert store.next_due() is None
        assert counts(store) == {}
        assert store.read(bytes(16)) is None
        assert store.totals.as_dict() == dict.fromkeys(TOTAL_NAMES, 0)
        assert store.prune(LATE, 0, 100) == 0
        assert not store.is_full
        store.commit()

    def test_submitted_jobs_are_leased_as_they_were_handed_in(self, store: Store) -> None:
        """Rows come back the same, in order of submission, with increasing numbers."""
        first, second = submit(store, 3), submit(store, 2)
        rows, is_all = store.lease(Partition("mail"), 0, 100, 1 << 20)
        assert is_all
        assert [fields(row) for row in rows] == [fields(row) for row in first + second]
        assert [row.seq for row in rows] == sorted({row.seq for row in rows})
        assert all((row.attempts, row.crashes) == (0, 0) for row in rows)

    def test_rates_that_count_no_more_go(self, store: Store) -> None:
        """There may be one for each key that ever was."""
        store.keep_rates([(f"t {key}", [(float(key), 1)], key + 2.0) for key in range(5)])
        store.commit()
        assert store.tidy(4.5, 2) == 2
        assert store.tidy(4.5, 2) == 1
        assert store.tidy(4.5, 2) == 0
        store.commit()
        assert store.rates(0.0) == {"t 3": [(3.0, 1)], "t 4": [(4.0, 1)]}

    @pytest.mark.parametrize("payload", [b"", b"\x00", bytes(range(256)) * 40])
    def test_payloads_are_opaque(self, store: Store, payload: bytes) -> None:
        """Any bytes come back."""
        [row] = store.submit(SPEC, list(new_job_ids(1)), [payload])
        store.commit()
        assert stored(store, row).row.payload == payload
        assert store.lease(Partition("mail"), 0, 1, 1)[0][0].payload == payload

    def test_items_of_a_job(self, store: Store) -> None:
        """They are read in order, from any position, within bounds. An item at a position never changes, and items are
        removed with their job."""
        one, other = submit(store, 2)
        assert store.items(one.seq, 0, 10, 100) == []
        store.add_items(one.seq, 0, [b"aa", b"bb"])
        store.add_items(other.seq, 0, [b"other"])
        store.commit()
        store.add_items(one.seq, 1, [b"xx", b"cc", b"dd"])
        store.commit()
        assert store.items(one.seq, 0, 10, 100) == [b"aa", b"bb", b"cc", b"dd"]
        assert store.items(one.seq, 2, 10, 100) == [b"cc", b"dd"]
        assert store.items(one.seq, 0, 3, 100) == [b"aa", b"bb", b"cc"]
        assert store.items(one.seq, 0, 10, 5) == [b"aa", b"bb"]
        assert store.items(one.seq, 1, 10, 1) == [b"bb"]
        assert store.items(one.seq, 4, 10, 100) == []
        store.add_items(one.seq, 4, [b"lost"])
        store.rollback()
        assert store.items(one.seq, 4, 10, 100) == []
        end(store, [one])
        assert store.items(one.seq, 3, 10, 100) == [b"dd"]
        store.prune(LATE, 0, 100)
        store.commit()
        assert store.items(one.seq, 0, 10, 100) == []
        assert store.items(other.seq, 0, 10, 100) == [b"other"]

    @pytest.mark.parametrize("number", [1, 49, 50, 51, 100, 733])
    def test_batches_of_any_size(self, store: Store, number: int) -> None:
        """No job is left out and none comes twice."""
        rows = submit(store, number)
        assert leased(store) == [row.seq for row in rows]
        assert len({row.id for row in rows}) == number
        assert store.totals.enqueued == number

    def test_queues_are_apart(self, store: Store) -> None:
        """A lease gives jobs of its queue only."""
        mine, others = submit(store, 2), submit(store, 3, OTHER)
        assert leased(store, "mail") == [row.seq for row in mine]
        assert leased(store, "images") == [row.seq for row in others]
        assert leased(store, "unknown") == []

    def test_a_resent_job_is_one_job(self, store: Store) -> None:
        """The same id with the same payload is left out, in whatever company it comes."""
        rows = submit(store, 3)
        new_id = next(new_job_ids(1))
        ids = [rows[1].id, new_id, rows[0].id]
        fresh = store.submit(SPEC, ids, [rows[1].payload, b"new", rows[0].payload])
        store.commit()
        assert [(row.id, row.payload) for row in fresh] == [(new_id, b"new")]
        assert leased(store) == [row.seq for row in rows + fresh]
        assert store.totals.enqueued == 4
        assert store.submit(SPEC, [rows[2].id], [rows[2].payload]) == []

    def test_a_resent_job_that_ended_stays_ended(self, store: Store) -> None:
        """Resending brings nothing back, though the payload is gone."""
        [row] = submit(store, 1)
        payload = row.payload
        end(store, [row])
        assert store.submit(SPEC, [row.id], [payload]) == []
        store.commit()
        assert stored(store, row).kept == StoredState.SUCCEEDED
        assert leased(store) == []

    def test_a_resent_job_in_the_same_transaction(self, store: Store) -> None:
        """Resending before the commit is the same as after it."""
        ids = list(new_job_ids(2))
        assert len(store.submit(SPEC, ids, [b"a", b"b"])) == 2
        assert store.submit(SPEC, ids, [b"a", b"b"]) == []
        store.commit()
        assert len(leased(store)) == 2

    def test_an_id_with_another_payload_is_refused(self, store: Store) -> None:
        """No job of that batch is stored, and what was submitted before it stays."""
        [row] = submit(store, 1)
        before = store.submit(SPEC, list(new_job_ids(1)), [b"before"])
        with pytest.raises(EnqueueError, match=row.id.hex()):
            store.submit(SPEC, [next(new_job_ids(1)), row.id], [b"x", b"another"])
        store.commit()
        assert leased(store) == [row.seq, before[0].seq]
        assert stored(store, row).row.payload == row.payload
        assert store.totals.enqueued == 2

    def test_duplicates_within_a_batch(self, store: Store) -> None:
        """The same job twice in a batch is one job; with two payloads it is refused."""
        first, second = new_job_ids(2)
        rows = store.submit(SPEC, [first, second, first], [b"a", b"b", b"a"])
        assert [row.id for row in rows] == [first, second]
        third = next(new_job_ids(1))
        with pytest.raises(EnqueueError, match=third.hex()):
            store.submit(SPEC, [third, third], [b"a", b"b"])
        store.commit()
        assert leased(store) == [row.seq for row in rows]

    def test_ids_need_not_ascend(self, store: Store) -> None:
        """Ids of a client whose clock is behind are taken in as well, in order of submission."""
        newer, older = next(iter(new_job_ids(1))), bytes(15) + b"\x01"
        rows = [*store.submit(SPEC, [newer], [b"n"]), *store.submit(SPEC, [older], [b"o"])]
        store.commit()
        assert leased(store) == [row.seq for row in rows]
        assert rows[0].seq < rows[1].seq

    def test_leases_are_limited(self, store: Store) -> None:
        """By number, by bytes (one job at least), and by where to begin; it says whether there is more."""
        seqs = [row.seq for row in submit(store, 10, size=100)]
        rows, is_all = store.lease(Partition("mail"), 0, 4, 1 << 20)
        assert ([row.seq for row in rows], is_all) == (seqs[:4], False)
        rows, is_all = store.lease(Partition("mail"), seqs[3], 100, 1 << 20)
        assert ([row.seq for row in rows], is_all) == (seqs[4:], True)
        rows, is_all = store.lease(Partition("mail"), 0, 100, 250)
        assert ([row.seq for row in rows], is_all) == (seqs[:3], False)
        rows, is_all = store.lease(Partition("mail"), 0, 100, 1)
        assert ([row.seq for row in rows], is_all) == (seqs[:1], False)
        assert store.lease(Partition("mail"), seqs[-1], 10, 1 << 20) == ([], True)

    @pytest.mark.parametrize("kept", [StoredState.SUCCEEDED, StoredState.FAILED, StoredState.CANCELLED])
    def test_ended_jobs(self, store: Store, kept: StoredState) -> None:
        """They keep outcome, counts and time; a failed one its payload as well, for it can be run again."""
        row, other = submit(store, 2)
        payload = row.payload
        row.crashes = 1
        end(store, [row], kept, at=1234567890.7)
        found = stored(store, row)
        assert found.kept == kept
        assert found.outcome == b"outcome of " + row.id
        assert found.finished_at == pytest.approx(1234567890.7, abs=1)
        assert found.due_at is None
        assert (found.row.attempts, found.row.crashes) == (1, 1)
        assert found.row.payload == (payload if kept == StoredState.FAILED else b"")
        assert found.row.spec == SPEC
        assert leased(store) == [other.seq]
        assert counts(store) == {"mail": {StoredState.QUEUED: 1, kept: 1}}
        expected = {"enqueued": 2, kept.name.lower(): 1}
        assert {name: value for name, value in store.totals.as_dict().items() if value} == expected

    def test_rescheduled_jobs_come_due(self, store: Store) -> None:
        """A job with a time waits for it, then is queued with its new counts; the oldest comes first."""
        rows = submit(store, 3)
        for row, attempts in zip(rows, (1, 2, 3), strict=True):
            row.attempts = attempts
        due = [30.0, 10.5, 20.0]
        store.settle([], [Rescheduled(row, at, b"why", row.attempts) for row, at in zip(rows, due, strict=True)], 5.0)
        store.commit()
        assert leased(store) == []
        assert counts(store) == {"mail": {StoredState.SCHEDULED: 3}}
        assert store.next_due() == 10.5
        found = stored(store, rows[0])
        assert (found.kept, found.due_at, found.outcome) == (StoredState.SCHEDULED, 30.0, b"why")
        assert store.lease_due(10.4, 10) == []
        assert [row.seq for row in store.lease_due(20.0, 10)] == [rows[1].seq, rows[2].seq]
        store.commit()
        assert store.next_due() == 30.0
        assert leased(store) == [rows[1].seq, rows[2].seq]
        assert stored(store, rows[1]).due_at is None
        assert stored(store, rows[1]).row.payload == rows[1].payload
        assert counts(store) == {"mail": {StoredState.QUEUED: 2, StoredState.SCHEDULED: 1}}

    def test_snoozes_are_counted(self, opener: Opener) -> None:
        """A store that is opened again knows how many attempts were none of the job's failures."""
        with closing(opener()) as store:
            [row, plain] = submit(store, 2)
            for due in (10.0, 20.0):
                row.attempts += 1
                row.snoozes += 1
                store.settle([], [Rescheduled(row, due, b"later", row.attempts)], 5.0)
                store.commit()
        with closing(opener()) as store:
            found = stored(store, row).row
            assert (found.attempts, found.snoozes, found.failures) == (2, 2, 0)
            assert stored(store, plain).row.snoozes == 0
            assert [row.snoozes for row in store.lease_due(LATE, 10)] == [2]

    @pytest.mark.parametrize("data", [b"", b"data", bytes(range(256)) * 1_000])
    def test_checkpoints_are_kept_until_the_job_is_done(self, opener: Opener, data: bytes) -> None:
        """The last one counts; a failed job keeps it, for it can be run again."""
        with closing(opener()) as store:
            rows = submit(store, 4)
            for kept in (b"first", data):
                for row in rows[:3]:
                    row.checkpoint = kept
                store.keep_checkpoints(rows[:3])
            store.commit()
            rows[0].checkpoint = b"rolled back"
            store.keep_checkpoints(rows[:1])
            store.rollback()
            store.settle([], [Rescheduled(rows[0], 7.0, None, rows[0].attempts)], 5.0)
            store.commit()
        with closing(opener()) as store:
            assert [stored(store, row).row.checkpoint for row in rows] == [data] * 3 + [None]
            assert store.lease_due(LATE, 10)[0].checkpoint == data
            end(store, rows[:1], StoredState.SUCCEEDED)
            end(store, rows[1:2], StoredState.CANCELLED)
            end(store, rows[2:3], StoredState.FAILED)
            assert [stored(store, row).row.checkpoint for row in rows] == [None, None, data, None]

    @pytest.mark.parametrize("due_at", [None, 10.0])
    def test_a_job_can_move_to_another_queue(self, opener: Opener, due_at: float | None) -> None:
        """With its new Spec; nothing of it is left in the old queue, also after opening again."""
        with closing(opener()) as store:
            row, other = submit(store, 2, replace(SPEC, crash_queue="big"))
            row.spec = spec_after_crash(row.spec)
            store.settle([], [Rescheduled(row, due_at, b"crash", row.attempts)], 5.0)
            store.commit()
        with closing(opener()) as store:
            assert [due.spec.queue for due in store.lease_due(LATE, 10)] == ["big"] * (due_at is not None)
            store.commit()
            assert leased(store) == [other.seq]
            assert leased(store, "big") == [row.seq]
            assert stored(store, row).row.spec == spec_after_crash(other.spec)
            assert counts(store) == {"mail": {StoredState.QUEUED: 1}, "big": {StoredState.QUEUED: 1}}

    def test_due_jobs_are_limited(self, store: Store) -> None:
        """Jobs that do not fit are still due."""
        rows = submit(store, 5)
        store.settle([], [Rescheduled(row, row.seq + 0.0, None, row.attempts) for row in rows], 0.0)
        store.commit()
        assert [row.seq for row in store.lease_due(LATE, 3)] == [row.seq for row in rows[:3]]
        assert [row.seq for row in store.lease_due(LATE, 3)] == [row.seq for row in rows[3:]]
        assert store.lease_due(LATE, 3) == []
        store.commit()

    def test_rescheduled_at_once(self, store: Store) -> None:
        """A job whose process died stays queued, with its counts; without an outcome it keeps the one it had."""
        [row] = submit(store, 1)
        row.attempts = row.crashes = 1
        store.settle([], [Rescheduled(row, None, b"crash", row.attempts)], 0.0)
        store.commit()
        row.attempts = 2
        store.settle([], [Rescheduled(row, None, None, row.attempts)], 0.0)
        store.commit()
        found = stored(store, row)
        assert (found.kept, found.outcome, found.row.attempts, found.row.crashes) == (
            StoredState.QUEUED,
            b"crash",
            2,
            1,
        )
        assert leased(store) == [row.seq]

    def test_a_scheduled_job_can_end(self, store: Store) -> None:
        """A cancelled one does not come due."""
        [row] = submit(store, 1)
        store.settle([], [Rescheduled(row, 10.0, None, row.attempts)], 0.0)
        store.commit()
        end(store, [row], StoredState.CANCELLED)
        assert store.next_due() is None
        assert store.lease_due(LATE, 10) == []
        assert stored(store, row).due_at is None

    def test_counts_by_queue_and_state(self, store: Store) -> None:
        """Each job is counted once, where it is."""
        mail, images = submit(store, 4), submit(store, 2, OTHER)
        end(store, mail[:1])
        store.settle(
            [],
            [Rescheduled(mail[1], 9.0, None, mail[1].attempts), Rescheduled(images[0], 9.0, None, images[0].attempts)],
            0.0,
        )
        store.commit()
        assert counts(store) == {
            "mail": {StoredState.QUEUED: 2, StoredState.SCHEDULED: 1, StoredState.SUCCEEDED: 1},
            "images": {StoredState.QUEUED: 1, StoredState.SCHEDULED: 1},
        }

    def test_specs_are_kept_apart(self, store: Store) -> None:
        """Jobs of one queue have the options that each was handed in with."""
        specs = [SPEC, replace(SPEC, retries=0), replace(SPEC, timeout_s=None), replace(SPEC, max_crashes=9)]
        for spec in specs:
            submit(store, 1, spec)
        assert [row.spec for row in store.lease(Partition("mail"), 0, 10, 1 << 20)[0]] == specs

    def test_rollback_drops_all_since_the_commit(self, store: Store) -> None:
        """Jobs, outcomes, totals and new queues are as after the last commit; the next ones are taken in as usual."""
        first, second = submit(store, 2)
        lost = store.submit(OTHER, list(new_job_ids(3)), [b"x"] * 3)
        first.attempts = 1
        store.settle([(first, StoredState.SUCCEEDED, b"r")], [Rescheduled(second, 5.0, None, second.attempts)], 1.0)
        store.rollback()
        assert store.totals.as_dict() == {**dict.fromkeys(TOTAL_NAMES, 0), "enqueued": 2}
        assert leased(store) == [first.seq, second.seq]
        assert leased(store, "images") == []
        assert store.next_due() is None
        assert store.read(lost[0].id) is None
        again = store.submit(OTHER, [row.id for row in lost], [b"x"] * 3)
        store.commit()
        assert len(again) == 3
        assert leased(store, "images") == [row.seq for row in again]
        assert counts(store) == {"mail": {StoredState.QUEUED: 2}, "images": {StoredState.QUEUED: 3}}

    def test_rollback_without_changes(self, store: Store) -> None:
        """It does nothing."""
        rows = submit(store, 1)
        store.rollback()
        assert leased(store) == [rows[0].seq]

    def test_no_sequence_number_comes_twice(self, store: Store) -> None:
        """A number that was handed out is not used again while the store is open: the broker remembers jobs by it."""
        rows = submit(store, 5)
        end(store, rows)
        assert store.prune(LATE, 0, 100) == 5
        store.commit()
        store.rollback()
        [row] = submit(store, 1)
        assert row.seq > rows[-1].seq

    def test_prune_by_age(self, store: Store) -> None:
        """Ended jobs go once they are old enough; failed ones and those that wait stay."""
        old, new, failed, waiting, scheduled = submit(store, 5)
        end(store, [old], at=100.0)
        end(store, [failed], StoredState.FAILED, at=100.0)
        end(store, [new], StoredState.CANCELLED, at=200.0)
        store.settle([], [Rescheduled(scheduled, 9.0, None, scheduled.attempts)], 0.0)
        assert store.prune(150.0, 100, 100) == 1
        store.commit()
        assert [store.read(row.id) is None for row in (old, new, failed, waiting, scheduled)] == [True, *[False] * 4]
        assert store.prune(LATE, 100, 100) == 1
        assert store.prune(LATE, 100, 100) == 0
        store.commit()
        assert [store.read(row.id) is None for row in (new, failed, waiting, scheduled)] == [True, *[False] * 3]

    def test_prune_by_number(self, store: Store) -> None:
        """The oldest of those that are more than `keep` go; failed ones do not count."""
        rows = submit(store, 8)
        end(store, rows[:6])
        end(store, rows[6:], StoredState.FAILED)
        assert store.prune(0.0, 4, 100) == 2
        store.commit()
        assert [row.seq for row in rows if store.read(row.id) is None] == [row.seq for row in rows[:2]]
        assert store.prune(0.0, 4, 100) == 0
        assert store.totals.succeeded == 6

    def test_prune_in_small_steps(self, store: Store) -> None:
        """Each step removes a bounded number; together they remove all, those that ended behind them included."""
        rows = submit(store, 30)
        end(store, rows[10:])
        steps = [store.prune(LATE, 0, 7) for _ in range(12)]
        assert max(steps) <= 7
        assert sum(steps) == 20
        end(store, rows[:10])
        assert sum(store.prune(LATE, 0, 7) for _ in range(12)) == 10
        store.commit()

    def test_starts_of_rates_are_kept_while_they_count(self, opener: Opener) -> None:
        """Committed with all else; those whose time is over are forgotten."""
        with closing(opener()) as store:
            store.keep_rates([("mail", [(1.0, 2), (2.0, 1)], 70.0), ("old", [(1.0, 1)], 5.0)])
            store.commit()
            store.keep_rates([("lost", [(3.0, 1)], 99.0)])
            store.rollback()
        with closing(opener()) as store:
            assert {name: list(map(tuple, starts)) for name, starts in store.rates(6.0).items()} == {
                "mail": [(1.0, 2), (2.0, 1)]
            }

    def test_totals_outlive_the_jobs(self, opener: Opener) -> None:
        """They never go backwards: not by pruning, not by opening again."""
        store = opener()
        rows = submit(store, 6)
        end(store, rows[:3])
        end(store, rows[3:4], StoredState.FAILED)
        end(store, rows[4:5], StoredState.CANCELLED)
        store.totals.retried += 2
        store.totals.crashed += 1
        store.prune(LATE, 0, 100)
        rows[5].attempts += 1
        store.settle([], [Rescheduled(rows[5], 1.0, None, rows[5].attempts)], 0.0)
        store.commit()
        expected = {
            "enqueued": 6,
            "succeeded": 3,
            "failed": 1,
            "retried": 2,
            "crashed": 1,
            "cancelled": 1,
            "expired": 0,
        }
        assert store.totals.as_dict() == expected
        store.close()
        with closing(opener()) as again:
            assert again.totals.as_dict() == expected

    def test_opening_again_keeps_all(self, opener: Opener) -> None:
        """All states come back as they were; new jobs get new numbers; known ids are known."""
        store = opener()
        queued, ended, failed, scheduled = submit(store, 4)
        submit(store, 1, OTHER)
        end(store, [ended])
        end(store, [failed], StoredState.FAILED)
        store.settle([], [Rescheduled(scheduled, 77.5, b"why", scheduled.attempts)], 0.0)
        store.commit()
        before = [stored(store, row) for row in (queued, ended, failed, scheduled)]
        store.close()
        with closing(opener()) as again:
            for earlier in before:
                later = stored(again, earlier.row)
                assert fields(later.row) == fields(earlier.row)
                assert later[1:] == earlier[1:]
            mail = dict.fromkeys(
                (StoredState.QUEUED, StoredState.SCHEDULED, StoredState.SUCCEEDED, StoredState.FAILED), 1
            )
            assert counts(again) == {"mail": mail, "images": {StoredState.QUEUED: 1}}
            assert again.next_due() == 77.5
            assert again.submit(SPEC, [queued.id], [queued.payload]) == []
            [row] = submit(again, 1)
            assert row.seq > scheduled.seq

    def test_schedules(self, opener: Opener) -> None:
        """They are put, replaced and removed with the commit, in the transaction of the jobs; and are there again."""
        store = opener()
        one = ScheduleRow(Schedule("one", SPEC, b"payload", "0 3 * * *", zone="Europe/Berlin", misfire="all"), 1e9 / 3)
        two = ScheduleRow(Schedule("two", OTHER, b"", every_s=0.1, jitter_s=0.3), 7.5, "app", True, 1e9 / 7, b"i" * 16)
        assert store.schedules() == []
        for row in (two, one):
            store.put_schedule(row)
        assert store.schedules() == [one, two]
        store.commit()
        later = one._replace(next_at=4e8, last_at=one.next_at, last_id=b"j" * 16)
        store.put_schedule(later)
        store.remove_schedule("two")
        store.remove_schedule("three")
        [job] = store.submit(SPEC, list(new_job_ids(1)), [b"p"])
        assert store.schedules() == [later]
        store.rollback()
        assert store.schedules() == [one, two]
        assert store.read(job.id) is None
        store.put_schedule(later)
        store.remove_schedule("two")
        store.close()
        with closing(opener()) as again:
            assert again.schedules() == [later]

    def test_closing_commits(self, opener: Opener) -> None:
        """What is open at a clean end is kept."""
        store = opener()
        [row] = store.submit(SPEC, list(new_job_ids(1)), [b"p"])
        store.close()
        with closing(opener()) as again:
            assert stored(again, row).row.payload == b"p"

    def test_attempts_are_kept_with_the_job(self, store: Store) -> None:
        """Each that was followed by another, crashes too, in order; a job that succeeds the first time has none."""
        row, plain = submit(store, 2)
        for outcome in (b"first", b"second", b"third"):
            row.attempts += 1
            store.settle([], [Rescheduled(row, None if outcome == b"second" else 5.0, outcome, row.attempts)], 1.0)
        store.commit()
        end(store, [row, plain])
        assert store.attempts(row) == [(1, b"first"), (2, b"second"), (3, b"third")]
        assert store.attempts(plain) == []
        assert store.prune(LATE, 0, 100) == 2
        store.commit()

    def test_attempts_are_bounded(self, store: Store) -> None:
        """Of a hundred the first twenty and the last twenty are kept, and large errors are cut."""
        [row] = submit(store, 1)
        large = pack_failure(1.0, 2.0, JobError("E", "why" * 2_000, "line\n" * 5_000, None, None, ["said"] * 60))
        for row.attempts in range(1, 101):
            store.settle([], [Rescheduled(row, None, large, row.attempts)], 1.0)
        store.commit()
        kept = store.attempts(row)
        assert [number for number, _ in kept] == [*range(1, 21), *range(81, 101)]
        assert all(len(outcome) <= MAX_KEPT_ATTEMPT_BYTES for _, outcome in kept)
        outcome = unpack(kept[-1][1])
        assert outcome.error is not None
        assert (outcome.started_at, outcome.duration_s, outcome.error.type) == (1.0, 2.0, "E")
        assert outcome.error.message.startswith("why")

    def test_a_failed_job_is_queued_again(self, opener: Opener) -> None:
        """At the end of its queue, with payload, counts and attempts, and with all its retries and crashes again."""
        store = opener()
        failed, waiting = submit(store, 2)
        payload = failed.payload
        failed.attempts, failed.crashes = 1, 1
        store.settle([], [Rescheduled(failed, None, b"crash", failed.attempts)], 1.0)
        failed.attempts = 4
        end(store, [failed], StoredState.FAILED)
        [row] = store.requeue([stored(store, failed)], 1e9)
        store.commit()
        assert row.seq == store.last_seq > waiting.seq
        store.close()
        with closing(opener()) as again:
            rows, _ = again.lease(Partition("mail"), 0, 10, 1 << 20)
            assert [(r.id, r.payload) for r in rows] == [(waiting.id, waiting.payload), (failed.id, payload)]
            assert (rows[1].attempts, rows[1].crashes, rows[1].failures, rows[1].charged_crashes) == (5, 1, 0, 0)
            found = stored(again, failed)
            assert (found.kept, found.finished_at, found.row.constraints) == (
                StoredState.QUEUED,
                None,
                Constraints(forgiven=(4, 1)),
            )
            assert again.attempts(rows[1]) == [(1, b"crash"), (5, b"outcome of " + failed.id)]
            assert again.totals.failed == 1
            assert again.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True) == ([], None)
            end(again, [rows[1]], StoredState.FAILED)
            [found], _ = again.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True)
            assert found.row.id == failed.id
            assert found.row.failures == 1

    def test_a_requeued_job_keeps_its_place_in_order_and_does_not_expire(self, store: Store) -> None:
        """Its order key stays; its time to start was that of its first life; its unique key may be another's by now."""
        constraints = Constraints(expires_at=50.0, order_key="k", unique=UniqueKey("u"))
        [row] = store.submit(SPEC, list(new_job_ids(1)), [b"p"], [constraints])
        end(store, [row], StoredState.FAILED)
        [again] = store.requeue([stored(store, row)], 1e9)
        store.commit()
        assert again.constraints == Constraints(order_key="k", unique=UniqueKey("u"), forgiven=(1, 0))
        assert store.next_expiry() is None
        assert store.with_keys(["u"]) == {}
        [leased_again], _ = store.lease(partition_of(SPEC, constraints), 0, 10, 1 << 20)
        assert (leased_again.id, leased_again.constraints) == (row.id, again.constraints)

    def test_requeue_is_undone_by_rollback(self, store: Store) -> None:
        """Until the commit the job is still failed, and its new number is not used again."""
        [row] = submit(store, 1)
        end(store, [row], StoredState.FAILED)
        [again] = store.requeue([stored(store, row)], 1e9)
        store.rollback()
        assert stored(store, row).kept == StoredState.FAILED
        assert leased(store) == []
        [other] = submit(store, 1)
        assert other.seq > again.seq

    @pytest.mark.parametrize("newest_first", [True, False])
    def test_jobs_are_found(self, store: Store, newest_first: bool) -> None:
        """By state, task, queue and time, page by page, each job once."""
        mail, images = submit(store, 6), submit(store, 4, OTHER)
        end(store, mail[:2], StoredState.FAILED, at=100.0)
        end(store, mail[2:4], at=200.0)
        end(store, images[:2], StoredState.FAILED, at=300.0)
        store.settle([], [Rescheduled(images[2], 9.0, None, images[2].attempts)], 0.0)
        store.commit()

        def found(limit: int, *wanted: Any) -> list[int]:
            after, before, seqs = 0, LAST, list[int]()
            while True:
                jobs, position = store.find(Wanted(*wanted), after, before, limit, newest_first=newest_first)
                assert len(jobs) <= limit
                assert all(job.row.payload == b"" for job in jobs)
                seqs += [job.row.seq for job in jobs]
                if position is None:
                    return seqs[::-1] if newest_first else seqs
                after, before = (after, position) if newest_first else (position, before)

        def seqs(*rows: JobRow) -> list[int]:
            return [row.seq for row in rows]

        for limit in (1, 2, 100):
            assert found(limit) == seqs(*mail, *images)
            assert found(limit, StoredState.FAILED) == seqs(*mail[:2], *images[:2])
            assert found(limit, StoredState.FAILED, None, "images") == seqs(*images[:2])
            assert found(limit, StoredState.FAILED, "app.work") == seqs(*mail[:2])
            assert found(limit, StoredState.QUEUED, "app.work", "mail") == seqs(*mail[4:])
            assert found(limit, StoredState.QUEUED, "app.work", "images") == []
            assert found(limit, StoredState.SCHEDULED) == seqs(images[2])
            assert found(limit, None, "no.such") == []
            assert found(limit, StoredState.FAILED, None, None, 250.0) == seqs(*mail[:2])
            assert found(limit, StoredState.SUCCEEDED, None, None, 200.0) == []
            assert found(limit, StoredState.QUEUED, None, None, 250.0) == []
            assert found(limit, StoredState.QUEUED, None, None, LATE) == seqs(*mail[4:], images[3])

    def test_jobs_are_searched(self, store: Store) -> None:
        """By when they were enqueued, by attempts, and by a part of their errors, their meta or their keys."""
        early, late = (list(new_job_ids(3, now_ns=int(at * 1e9))) for at in (1e9, 1.5e9))
        meta = [None, Constraints(meta=(("tenant", "acmé"),)), Constraints(limit_key="ada")]
        first = store.submit(SPEC, early, [b"-"] * 3)
        second = store.submit(OTHER, late, [b"-"] * 3, meta)
        error = JobError("ValueError", "no such file: größe.txt", "Traceback in orders.py")
        for row, attempts in ((first[0], 3), (second[0], 1)):
            row.attempts = attempts
            store.settle([(row, StoredState.FAILED, pack_failure(1.0, 1.0, error))], [], 2e9)
        first[1].attempts = 1
        store.settle([(first[1], StoredState.SUCCEEDED, b"\x94\xc0\xc0\xc4\x05orders")], [], 2e9)
        store.commit()

        def found(
            limit: int = 10, kept: StoredState | None = None, task: str | None = None, **search: Any
        ) -> list[int]:
            seqs: list[int] = []
            place: int | None = 0
            wanted = Wanted(kept, task, search=JobSearch(**search))
            while place is not None:
                jobs, place = store.find(wanted, place, LAST, limit, newest_first=False)
                seqs += [job.row.seq for job in jobs]
            return [seq - first[0].seq for seq in seqs]

        for limit in (1, 10):
            assert found(limit) == [0, 1, 2, 3, 4, 5]
            assert found(limit, since=1.2e9) == [3, 4, 5]
            assert found(limit, until=1.2e9, attempts=1) == [0, 1]
            assert found(limit, since=1e9, until=1e9) == []
            assert found(limit, attempts=2) == [0]
            assert found(limit, text="größe") == [0, 3]
            assert found(limit, text="orders.py", task="app.other") == [3]
            assert found(limit, text="orders") == [0, 3], "a result is not an error"
            assert found(limit, text="acmé") == [4]
            assert found(limit, text="ada", kept=StoredState.QUEUED) == [5]
            assert found(limit, text="ValueError", kept=StoredState.FAILED, attempts=2) == [0]

    def test_finding_looks_at_a_bounded_number_of_jobs(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is rare among many is found in several steps."""
        monkeypatch.setattr(queries_module, "_MOST_SEEN", 4)
        monkeypatch.setattr(memory_module, "MAX_JOBS_SEEN", 4)
        rows = submit(store, 10)
        end(store, [rows[1], rows[8]])
        wanted = Wanted(StoredState.SUCCEEDED)
        jobs, position = store.find(wanted, 0, LAST, 10, newest_first=True)
        assert [job.row.seq for job in jobs] == [rows[8].seq]
        assert position == rows[6].seq
        assert store.find(wanted, 0, position, 10, newest_first=True) == ([], rows[2].seq)
        jobs, position = store.find(wanted, 0, rows[2].seq, 10, newest_first=True)
        assert ([job.row.seq for job in jobs], position) == ([rows[1].seq], None)

    def test_scheduled_jobs_are_found_in_the_order_in_which_they_come_due(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In several steps, and also when the job behind which to go on has come due or is gone."""
        for module in (queries_module, memory_module):
            monkeypatch.setattr(module, "MAX_JOBS_SEEN", 3)
        rows = submit(store, 6)
        late = [LATE + number for number in (5, 3, 3, 1)]
        store.settle([], [Rescheduled(row, at, None, row.attempts) for row, at in zip(rows, late, strict=False)], 1.0)
        store.commit()
        in_order = [rows[place].seq for place in (3, 1, 2, 0)]

        def found(after: int | None, limit: int = 9) -> list[int]:
            seqs: list[int] = []
            while True:
                jobs, after = store.find_due(Wanted(task=SPEC.task), after, limit)
                seqs += [job.row.seq for job in jobs]
                if after is None:
                    return seqs

        assert found(None) == found(None, 1) == in_order
        assert found(in_order[0]) == in_order[1:]
        assert store.find_due(Wanted(task="another"), None, 9)[0] == []
        [row] = store.lease_due(LATE + 2, 1)
        store.commit()
        assert row.seq == in_order[0]
        assert found(None) == in_order[1:]
        if isinstance(store, SQLiteStore):
            assert found(in_order[0]) == in_order[1:]

    def test_removed_jobs_are_gone(self, opener: Opener) -> None:
        """With their attempts; those that had not ended are counted as cancelled, those that had stay counted."""
        store = opener()
        failed, done, waiting, scheduled, kept = submit(store, 5)
        failed.attempts = 1
        store.settle(
            [],
            [Rescheduled(failed, None, b"why", failed.attempts), Rescheduled(scheduled, 9.0, None, scheduled.attempts)],
            1.0,
        )
        end(store, [failed], StoredState.FAILED)
        end(store, [done])
        store.remove([stored(store, row) for row in (failed, done, waiting, scheduled)])
        store.commit()
        store.close()
        with closing(opener()) as again:
            assert counts(again) == {"mail": {StoredState.QUEUED: 1}}
            assert leased(again) == [kept.seq]
            assert again.find(Wanted(), 0, LAST, 9, newest_first=False)[0] == [stored(again, kept)._replace(row=ANY)]
            told = {name: value for name, value in again.totals.as_dict().items() if value}
            assert told == {"enqueued": 5, "failed": 1, "succeeded": 1, "cancelled": 2}
            assert again.next_due() is None
            assert [row.id for row in again.submit(SPEC, [failed.id], [b"anew"])] == [failed.id]

    def test_paused_queues_stay_paused(self, opener: Opener) -> None:
        """Across a restart, whether they have jobs or not; twice is once; a rollback undoes."""
        store = opener()
        assert store.paused() == frozenset()
        store.pause(["mail", "none.yet"], True)
        store.pause(["mail"], True)
        store.commit()
        store.pause(["images"], True)
        store.pause(["mail"], False)
        store.rollback()
        assert store.paused() == {"mail", "none.yet"}
        store.pause(["none.yet", "never"], False)
        store.close()
        with closing(opener()) as again:
            assert again.paused() == {"mail"}

    def test_counts_are_kept(self, opener: Opener) -> None:
        """By task, queue and minute: what comes later takes the place of what was there; a rollback undoes."""
        store = opener()
        assert store.kept_counts() == []
        rows = [CountsRow("t", "mail", 0, b"before"), CountsRow("t", "mail", 7, b"now"), CountsRow("u", "mail", 7, b"")]
        store.keep_counts(rows)
        store.commit()
        store.keep_counts([CountsRow("t", "mail", 7, b"more"), CountsRow("u", "mail", 7, None)])
        store.rollback()
        assert sorted(store.kept_counts()) == sorted(rows)
        store.keep_counts([CountsRow("t", "mail", 7, b"more"), CountsRow("u", "mail", 7, None)])
        store.close()
        with closing(opener()) as again:
            assert sorted(again.kept_counts()) == [rows[0], CountsRow("t", "mail", 7, b"more")]

    def test_machines_are_noted_when_they_change(self, opener: Opener) -> None:
        store = opener()
        assert store.machines() == []
        for now, name in ((1.0, "one"), (2.0, "one"), (3.0, "two"), (4.0, "one")):
            store.note_machine(name, now)
        store.close()
        with closing(opener()) as again:
            assert again.machines() == [(1.0, "one"), (3.0, "two"), (4.0, "one")]

    def test_items_stay_with_a_job_that_is_retried_by_hand(self, store: Store) -> None:
        """It has another place from then on; what it has yielded is found there, and goes with it."""
        [row] = submit(store, 1)
        store.add_items(row.seq, 0, [b"first"])
        end(store, [row], StoredState.FAILED)
        [again] = store.requeue([stored(store, row)], 1e9)
        store.commit()
        assert store.items(again.seq, 0, 10, 100) == [b"first"]
        end(store, [again])
        store.prune(LATE, 0, 100)
        store.commit()
        assert store.items(again.seq, 0, 10, 100) == []

    def test_it_is_known_since_when_a_job_could_start(self, opener: Opener) -> None:
        """What was asked for before does not count as waiting: a delay, another job, a retry. Also after a restart."""
        store = opener()
        [plain, at_once, later] = submit(store, 3)
        parent = plain.id
        kinds = [Constraints(due_at=50.0), Constraints(after=((parent, False),))]
        store.submit(SPEC, list(new_job_ids(2)), [b"x"] * 2, kinds)
        store.settle(
            [],
            [
                Rescheduled(at_once, None, b"crash", at_once.attempts),
                Rescheduled(later, 70.0, b"failure", later.attempts),
            ],
            60.0,
        )
        assert [row.ready_at for row in store.lease_due(75.0, 10)] == [50.0, 70.0]
        [edge] = store.close_edges([parent], 10)
        waiting = store.read_waiting([edge.child])
        store.release_waiting(waiting, 80.0)
        assert waiting[0].row.ready_at == 80.0
        store.settle([(plain, StoredState.FAILED, b"why")], [], 85.0)
        [again] = store.requeue([stored(store, plain)], 90.0)
        assert again.ready_at == 90.0
        store.close()
        with closing(opener()) as reopened:
            rows, _ = reopened.lease(Partition("mail"), 0, 10, 1 << 20)
            assert [row.ready_at for row in rows] == [60.0, 70.0, 50.0, 80.0, 90.0]
            assert {stored(reopened, row).due_at for row in rows} == {None}, "they are due no more"

    def test_room_can_be_made_and_kept(self, store: Store) -> None:
        """After a full disk the store refuses new jobs until there is room again."""
        store.keep_room()
        assert not store.is_full
        store.make_room()
        assert store.is_full
        [row] = store.submit(SPEC, list(new_job_ids(1)), [b"p"])
        end(store, [row])
        store.keep_room()
        assert not store.is_full


# -- the embedded store alone


class SteppedClock:
    """Time that passes when a test says so."""

    now = 1e9

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now

    monotonic = time


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal.db"


def crashed_copy(path: Path, home: Path) -> Path:
    """The journal's files as `kill -9` of the broker would leave them, in a directory of their own."""
    home.mkdir()
    for file in path.parent.iterdir():
        if file.is_file():
            (home / file.name).write_bytes(file.read_bytes())
    return home / path.name


def rows_looked_at(store: SQLiteStore, wanted: Wanted) -> int:
    """How many steps of a hundred instructions SQLite takes to list the jobs that are wanted, and no others."""
    return sum(looks(store, wanted))


def looks(store: SQLiteStore, wanted: Wanted) -> list[int]:
    """How many steps of a hundred instructions SQLite takes for each part of a list."""
    steps = 0
    taken: list[int] = []

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    store._db.set_progress_handler(step, 100)
    place: int | None = LAST
    while place is not None:
        _, place = store.find(wanted, 0, place, 50, newest_first=True)
        taken.append(steps - sum(taken))
    if wanted.kept == StoredState.SCHEDULED:
        store.find_due(Wanted(), None, 50)
        taken.append(steps - sum(taken))
    store._db.set_progress_handler(None, 0)
    return taken


def with_rare_ones(store: SQLiteStore, jobs: int) -> None:
    """So many jobs that have succeeded, and one in each other final state at the old end."""
    rows: list[JobRow] = []
    while len(rows) < jobs:
        rows += store.submit(SPEC, list(new_job_ids(10_000)), [b""] * 10_000)
        store.commit()
    kinds = [StoredState.FAILED, StoredState.CANCELLED, StoredState.EXPIRED]
    ends = [*kinds, *[StoredState.SUCCEEDED] * (len(rows) - len(kinds))]
    for start in range(0, jobs, 10_000):
        part = slice(start, start + 10_000)
        ended = [(row, kept, b"") for row, kept in zip(rows[part], ends[part], strict=True)]
        store.settle(ended, [], 1.0)
        store.commit()


RARE = [*statements.RARE, StoredState.FAILED, StoredState.QUEUED]


def test_a_list_of_a_rare_state_looks_at_no_other_jobs(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        with_rare_ones(store, 10_000)
        assert all(rows_looked_at(store, Wanted(kept)) < 10 for kept in RARE)
        assert rows_looked_at(store, Wanted(task="another")) == 0
        assert rows_looked_at(store, Wanted(StoredState.SUCCEEDED, search=JobSearch(attempts=9))) > 500


#: What a look at twelve blocks of jobs takes at the most, in steps of a hundred instructions.
MOST_STEPS = 12 * BLOCK_JOBS * 40 // 100
FILTERS = {
    "rare": Wanted(task=million.RARE.task),
    "rare, ended": Wanted(StoredState.SUCCEEDED, task=million.RARE.task),
    "quiet": Wanted(StoredState.QUEUED, queue=million.QUIET.queue),
    "failed, another task": Wanted(StoredState.FAILED, task=million.RARE.task),
    "text": Wanted(search=JobSearch(text="server 77 refused")),
    "no such text": Wanted(search=JobSearch(text="nowhere")),
    "meta": Wanted(search=JobSearch(text="acme-corp")),
    "attempts": Wanted(search=JobSearch(attempts=2)),
    "since": Wanted(search=JobSearch(since=4e9)),
    "until": Wanted(search=JobSearch(until=1.0)),
}


def test_a_list_looks_at_a_bounded_number_of_jobs_at_a_time(path: Path) -> None:
    """However many there are, whatever is wanted: so a reader holds the loop of the broker for a short time only."""
    with closing(SQLiteStore(path, "memory")) as store:
        million.fill(store, 30_000)
        for name, wanted in FILTERS.items():
            taken = looks(store, wanted)
            assert max(taken) < MOST_STEPS, name
            assert len(taken) > 1 or sum(taken) < MOST_STEPS / 2, name
        assert rows_looked_at(store, FILTERS["rare"]) < 200, "where these are is known by now"
        assert rows_looked_at(store, FILTERS["no such text"]) > 1_000
        found, _ = store.find(FILTERS["rare"], 0, 5_000, 50, newest_first=True)
        assert [job.row.spec.task for job in found] == [million.RARE.task] * million.RARE_JOBS


def test_what_is_scheduled_or_waits_for_others_is_known_without_counting(path: Path) -> None:
    """However many there are: the status asks for it each time."""
    with closing(SQLiteStore(path)) as store:
        [parent] = submit(store, 1)
        ids = list(new_job_ids(3_000))
        due, after = Constraints(due_at=9e9), Constraints(after=((parent.id, False),))
        store.submit(SPEC, ids, [b""] * len(ids), [due, after] * (len(ids) // 2))
        store.commit()
        steps: list[int] = []
        store._db.set_progress_handler(lambda: steps.append(1) is not None, 1)
        found = [store.counts(kept) for kept in LATER]
        store._db.set_progress_handler(None, 0)
        assert found == [{SPEC.queue: 1_500}, {SPEC.queue: 1_500}]
        assert steps == []


def test_a_job_that_gets_another_queue_is_found_there(path: Path) -> None:
    """Also where the journal was looked through before."""
    with closing(SQLiteStore(path)) as store:
        rows = submit(store, 2 * BLOCK_JOBS)
        [other] = store.submit(OTHER, list(new_job_ids(1)), [b""])
        store.commit()
        wanted = Wanted(queue=OTHER.queue)
        assert [job.row.seq for job in found_in_all(store, wanted)] == [other.seq]
        moved = rows[7]
        moved.spec = replace(moved.spec, queue=OTHER.queue)
        store.settle([], [Rescheduled(moved, None, None, moved.attempts)], 1.0)
        store.commit()
        assert [job.row.seq for job in found_in_all(store, wanted)] == [other.seq, moved.seq]


def found_in_all(store: SQLiteStore, wanted: Wanted) -> list[StoredJob]:
    """All jobs that are wanted, newest first."""
    jobs: list[StoredJob] = []
    place: int | None = LAST
    while place is not None:
        found, place = store.find(wanted, 0, place, 50, newest_first=True)
        jobs += found
    return jobs


@pytest.mark.soak
def test_a_list_of_a_rare_state_among_a_million_jobs_takes_no_time(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        with_rare_ones(store, 1_000_000)
        assert all(rows_looked_at(store, Wanted(kept)) < 10 for kept in RARE)
        began_at = time.process_time()
        for kept in RARE:
            rows_looked_at(store, Wanted(kept))
        assert time.process_time() - began_at < 0.1


def test_marker_without_journal_is_refused(path: Path) -> None:
    """A lost journal is never taken for an empty queue, whether it is missing or empty."""
    SQLiteStore(path).close()
    path.unlink()
    with pytest.raises(JournalError, match=r"queue\.id"):
        SQLiteStore(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(JournalError, match="missing or empty"):
        SQLiteStore(path)
    path.with_name("queue.id").unlink()
    SQLiteStore(path).close()


def test_marker_stays_the_same(path: Path) -> None:
    """The queue keeps its identity when it is opened again."""
    SQLiteStore(path).close()
    marker = path.with_name("queue.id").read_bytes()
    SQLiteStore(path).close()
    assert path.with_name("queue.id").read_bytes() == marker
    assert marker.startswith(b"taskq ")


def test_newer_schema_is_refused_untouched(path: Path) -> None:
    """The file of a newer taskq stays byte for byte as it was, and the message says what to do."""
    with closing(SQLiteStore(path)) as store:
        submit(store, 3)
    with closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA user_version=9")
    before = path.read_bytes()
    with pytest.raises(JournalError, match="newer taskq.*version 9"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_journal_of_version_1_is_brought_up_to_date(path: Path) -> None:
    """Jobs that an older taskq left are there, in their order, states and queues."""
    script = files("taskq.engines.embedded.journal").joinpath("schema.sql").read_text()
    fields = msgpack.packb(Spec("t", "mail").to_wire())
    with closing(apsw.Connection(str(path))) as db:
        db.execute(f"BEGIN; {script}; PRAGMA user_version=1; COMMIT")
        db.execute("INSERT INTO queues VALUES (7, 'mail'); INSERT INTO specs VALUES (3, ?)", (fields,))
        for seq, state in ((1, StoredState.QUEUED), (2, StoredState.SCHEDULED), (3, StoredState.FAILED)):
            db.execute(
                "INSERT INTO jobs VALUES (?, ?, 3, 7, ?, 1, 0, 5.0, NULL, x'01', NULL)",
                (seq, bytes([seq]) * 16, int(state)),
            )
        db.execute("UPDATE totals SET enqueued = 3, failed = 1")
    with closing(SQLiteStore(path)) as store:
        assert store.waiting() == [(Partition("mail"), 1, 1)]
        assert [row.seq for row in store.lease(Partition("mail"), 0, 10, 1 << 20)[0]] == [1]
        assert [row.seq for row in store.lease_due(9.0, 10)] == [2]
        job = store.read(bytes([3]) * 16)
        assert job is not None
        assert (job.kept, job.row.spec, job.row.constraints) == (StoredState.FAILED, Spec("t", "mail"), None)
        assert store.totals.enqueued == 3
        [failed], _ = store.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True)
        assert failed.row.seq == 3
        submit(store, 1)


def test_journal_of_version_2_is_brought_up_to_date(path: Path) -> None:
    """Jobs with a key that are not queued stand in a partition of their queue from then on."""
    spec, constraints = (
        Spec("t", "mail", concurrency=1, priority=3),
        msgpack.packb(Constraints(limit_key="k").to_wire()),
    )
    keyed = partition_of(spec, Constraints(limit_key="k"))
    scripts = [
        files("taskq.engines.embedded.journal").joinpath(name).read_text() for name in ("schema.sql", "upgrade_2.sql")
    ]
    with closing(apsw.Connection(str(path))) as db:
        db.execute(f"BEGIN; {'; '.join(scripts)}; PRAGMA user_version=2; COMMIT")
        db.execute("INSERT INTO specs VALUES (3, ?)", (msgpack.packb(spec.to_wire()),))
        db.execute("INSERT INTO bands VALUES (7, 'mail', 3, ?)", (msgpack.packb(keyed.limits),))
        for seq, state in ((1, StoredState.QUEUED), (2, StoredState.SCHEDULED), (3, StoredState.FAILED)):
            due_at = 5.0 if state == StoredState.SCHEDULED else None
            db.execute(
                "INSERT INTO jobs (seq, id, spec, band, state, due_at, payload, terms, is_keyed) "
                "VALUES (?, ?, 3, 7, ?, ?, x'01', ?, 1)",
                (seq, bytes([seq]) * 16, int(state), due_at, constraints),
            )
        db.execute("INSERT INTO failed VALUES (3)")
    with closing(SQLiteStore(path)) as store:
        assert store.waiting() == [(keyed, 1, 1)]
        [row] = store.lease(keyed, 0, 10, 1 << 20)[0]
        end(store, [row])
        assert leave_no_keys(store) == 1
        assert counts(store) == {"mail": {StoredState.SUCCEEDED: 1, StoredState.SCHEDULED: 1, StoredState.FAILED: 1}}
        [due] = store.lease_due(9.0, 10)
        [failed], _ = store.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True)
        [again] = store.requeue([failed], 1e9)
        assert [row.seq for row in store.lease(keyed, 0, 10, 1 << 20)[0]] == [due.seq, again.seq]


def leave_no_keys(store: Store) -> int:
    """Forgets all keys without a queued job. Returns how many that were."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(partition_numbers, "KEPT_KEYS", 0)
        return store.tidy(0.0, 1_000)


def test_keys_are_forgotten_and_come_again(path: Path) -> None:
    """A key has a number while a job with it is queued: that of one that came first may be another's later."""
    spec = Spec("t", "mail", rate=(1, 60.0))

    def jobs_of(*keys: str, due_at: float | None = None) -> list[JobRow]:
        ids = list(new_job_ids(len(keys)))
        return store.submit(spec, ids, [b"x"] * len(keys), [Constraints(limit_key=key, due_at=due_at) for key in keys])

    def queued(key: str) -> list[int]:
        return [row.seq for row in store.lease(partition_of(spec, Constraints(limit_key=key)), 0, 10, 1 << 20)[0]]

    with closing(SQLiteStore(path)) as store:
        first, second = jobs_of("one", "two")
        [later] = jobs_of("one", due_at=5.0)
        assert leave_no_keys(store) == 0
        store.settle([(first, StoredState.FAILED, b""), (second, StoredState.SUCCEEDED, b"")], [], 1.0)
        assert leave_no_keys(store) == 2
        assert store.counts(StoredState.SCHEDULED) == {"mail": 1}
        [third] = jobs_of("three")
        store.lease_due(9.0, 10)
        [failed], _ = store.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True)
        [again] = store.requeue([failed], 1e9)
        assert (queued("one"), queued("two"), queued("three")) == ([later.seq, again.seq], [], [third.seq])
        store.settle(
            [], [Rescheduled(again, 20.0, None, again.attempts), Rescheduled(third, None, None, third.attempts)], 10.0
        )
        assert (queued("one"), queued("three")) == ([later.seq], [third.seq])
        store.commit()
    with closing(SQLiteStore(path)) as store:
        assert len(store.waiting()) == 2
        assert (queued("one"), queued("three")) == ([later.seq], [third.seq])


def test_few_keys_are_kept(path: Path) -> None:
    """They may come again; and an idle fleet writes nothing."""
    with closing(SQLiteStore(path)) as store:
        rows = store.submit(
            SPEC, list(new_job_ids(2)), [b"x"] * 2, [Constraints(order_key="a"), Constraints(order_key="b")]
        )
        end(store, rows)
        before = store._changes()
        assert store.tidy(1e9, 1_000) == 0
        store.commit()
        assert store._changes() == before


@pytest.mark.parametrize("content", [b"not a database", bytes(8192), b"SQLite format 3\0" + b"\xff" * 9000])
def test_garbage_is_refused_untouched(path: Path, content: bytes) -> None:
    """A file that is not a journal is refused with an error of our own, and is not changed."""
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.db"):
        SQLiteStore(path)
    assert path.read_bytes() == content


def test_damaged_page_is_found_after_a_crash_of_the_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot without a clean end all of the journal is read before it is used."""
    with closing(SQLiteStore(path)) as store:
        submit(store, 400, size=200)
    killed = SQLiteStore(path)
    damaged = crashed_copy(path, path.parent / "copy")
    killed.close()
    content = bytearray(damaged.read_bytes())
    page = len(content) // 2 // 4096 * 4096
    content[page : page + 4096] = b"\xa5" * 4096
    damaged.write_bytes(content)
    monkeypatch.setattr(database_module, "boot_id", lambda: "another boot")
    with pytest.raises(JournalError):
        SQLiteStore(damaged)


def test_killed_broker_loses_nothing(path: Path) -> None:
    """What was committed is there for the next one, and what was not is not."""
    with closing(SQLiteStore(path)) as store:
        rows = submit(store, 5)
        end(store, rows[:2])
        store.submit(SPEC, list(new_job_ids(1)), [b"never committed"])
        copy = crashed_copy(path, path.parent / "copy")
    with closing(SQLiteStore(copy)) as again:
        assert leased(again) == [row.seq for row in rows[2:]]
        assert again.totals.as_dict() == {**dict.fromkeys(TOTAL_NAMES, 0), "enqueued": 5, "succeeded": 2}
        assert ("store.recovered", {"changes": 7}) in again.findings


def test_clean_end_leaves_no_findings(path: Path) -> None:
    """Nothing is reported as recovered, and the WAL is merged into the journal."""
    with closing(SQLiteStore(path)) as store:
        assert store.findings == []
        submit(store, 5)
    assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").stat().st_size == 0
    with closing(SQLiteStore(path)) as store:
        assert store.findings == []


def test_lost_commits_are_found(path: Path) -> None:
    """A journal that is behind its high-water file has lost commits, and says how many."""
    with closing(SQLiteStore(path)) as store:
        submit(store, 1)
        earlier = path.with_suffix(".high").read_bytes()
        submit(store, 1)
        submit(store, 1)
        assert path.with_suffix(".high").read_bytes() > earlier
    path.with_suffix(".high").write_bytes((3 + 4).to_bytes(8, "big"))
    with closing(SQLiteStore(path)) as store:
        assert ("store.damaged", {"missing_changes": 4}) in store.findings


def test_cut_wal_is_found(path: Path) -> None:
    """A WAL whose end is damaged loses its last commits, which SQLite does not tell and we do."""
    copy = with_a_cut_wal(path, "os")
    with closing(SQLiteStore(copy)) as store:
        found = dict(store.findings)
        assert found["store.damaged"]["missing_changes"] == 10 - store.totals.enqueued > 0


def with_a_cut_wal(path: Path, durability: str) -> Path:
    """A journal with ten commits, some of which are lost with its write-ahead log."""
    with closing(SQLiteStore(path, durability)) as store:
        for _ in range(10):
            submit(store, 1)
        copy = crashed_copy(path, path.parent / "copy")
    wal = Path(f"{copy}-wal")
    content = bytearray(wal.read_bytes())
    content[len(content.rstrip(b"\0")) // 2] ^= 0xFF  # zeros are written behind the last frame
    wal.write_bytes(content)
    return copy


def test_a_cut_wal_that_no_crash_can_have_left_is_refused(path: Path) -> None:
    """With the default durability what was acknowledged is not given up in silence."""
    copy = with_a_cut_wal(path, "power")
    for _ in range(2):
        with pytest.raises(
            JournalError, match=r"lacks its last changes \(\d+ jobs.*write-ahead log.*remove \S+journal\.high"
        ):
            SQLiteStore(copy)


def test_an_older_journal_is_refused_until_its_user_accepts_the_loss(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        submit(store, 2)
    older = path.read_bytes()
    with closing(SQLiteStore(path)) as store:
        submit(store, 3)
        newer = crashed_copy(path, path.parent / "newer")
    newer.write_bytes(older)
    Path(f"{newer}-wal").unlink()
    with pytest.raises(
        JournalError, match=r"lacks its last changes \(3 jobs that came in or ended\): it is an older copy"
    ):
        SQLiteStore(newer)
    assert newer.read_bytes() == older, "it was not touched"
    newer.with_suffix(".high").unlink()
    with closing(SQLiteStore(newer)) as store:
        assert store.totals.enqueued == 2
        assert store.findings == []


def limit_pages(store: SQLiteStore, more: int) -> None:
    """Leaves room for a few more pages."""
    [(pages,)] = store._db.execute("PRAGMA page_count").fetchall()
    store._db.execute(f"PRAGMA max_page_count={pages + more}")


def test_full_disk(path: Path) -> None:
    """A job that does not fit is refused, outcomes still commit, and there is room for new ones later."""
    with closing(SQLiteStore(path)) as store:
        rows = submit(store, 20, size=300)
        limit_pages(store, 3)
        ids = list(new_job_ids(200))
        with pytest.raises(StoreFull, match="free some space"):
            store.submit(SPEC, ids, [b"x" * 1_000] * 200)
        store.rollback()
        assert store.totals.enqueued == 20
        assert store.read(ids[0]) is None
        end(store, rows[:10])
        assert store.totals.succeeded == 10
        store._db.execute("PRAGMA max_page_count=1000000")
        assert len(store.submit(SPEC, ids, [b"x" * 1_000] * 200)) == 200
        store.commit()
        copy = crashed_copy(path, path.parent / "copy")
    with closing(SQLiteStore(copy)) as again:
        assert len(leased(again, size=1 << 30)) == 210
        assert again.totals.as_dict() == {**dict.fromkeys(TOTAL_NAMES, 0), "enqueued": 220, "succeeded": 10}


def test_full_disk_at_every_page(path: Path) -> None:
    """Wherever the space ends, a batch is taken in as a whole or not at all, and totals agree with rows."""
    with closing(SQLiteStore(path)) as store:
        done = 0
        for more in count():
            limit_pages(store, more)
            try:
                submit(store, 60, size=700)
                done += 1
            except StoreFull:
                store.rollback()
            assert store.totals.enqueued == 60 * done == len(leased(store, size=1 << 30))
            if done == 3:
                break
        assert more > 3


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_wal_replaced_under_the_broker(path: Path, how: str) -> None:
    """Commits into a WAL that no broker will find again are not acknowledged: the file is checked every few
    milliseconds."""
    clock = SteppedClock()
    store = SQLiteStore(path, clock=clock)
    submit(store, 1)
    wal = Path(f"{path}-wal")
    wal.unlink()
    if how == "replaced":
        wal.touch()
    clock.now += LOOK_EVERY_S
    store.submit(SPEC, list(new_job_ids(1)), [b"p"])
    with pytest.raises(JournalError, match="removed or replaced"):
        store.commit()
    store._db.close()
    store._wal.close()
    store._files.close()


def test_nobody_else_can_open_the_journal(path: Path) -> None:
    """While a broker has the journal it is locked, and an attempt to read it does no harm."""
    with closing(SQLiteStore(path)) as store:
        submit(store, 1)
        with closing(apsw.Connection(str(path))) as other, pytest.raises(apsw.BusyError):
            other.execute("SELECT * FROM jobs").fetchall()
        submit(store, 1)
        copy = crashed_copy(path, path.parent / "copy")
    with closing(SQLiteStore(copy)) as again:
        assert len(leased(again)) == 2


def test_files_are_private(path: Path) -> None:
    """All files are for their owner alone, whatever the umask; which stays as it was."""
    before = os.umask(0o022)
    try:
        store = SQLiteStore(path)
        submit(store, 1)
        store.keep_room()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        store.close()
    finally:
        assert os.umask(before) == 0o022
    assert {"journal.db", "journal.db-wal", "journal.high", "queue.id"} <= set(modes)
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(("durability", "level"), [("power", 2), ("os", 1), ("memory", 0)])
def test_durability_sets_how_commits_are_synced(path: Path, durability: str, level: int) -> None:
    """The pragma is set explicitly, for builds of SQLite differ in their default."""
    with closing(SQLiteStore(path, durability)) as store:
        assert store._db.execute("PRAGMA synchronous").fetchall() == [(level,)]
        assert store._db.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
        assert store._db.execute("PRAGMA locking_mode").fetchall() == [("exclusive",)]


def look_ups(store: SQLiteStore, ids: list[bytes]) -> int:
    """How many ids are looked up when these come in."""
    asked: list[str] = []

    def note(_cursor: apsw.Cursor, sql: str, _bindings: object) -> bool:
        asked.append(sql)
        return True

    store._db.exec_trace = note
    store.submit(SPEC, ids, ids)
    store.commit()
    store._db.exec_trace = None
    return sum(1 for sql in asked if sql == "SELECT payload FROM jobs WHERE id = ?")


def test_an_id_of_the_far_future_does_not_slow_down_the_others(path: Path) -> None:
    """A wrong clock, or somebody who makes ids up: only ids that may be known are looked up, also after a restart."""
    soon, tomorrow = (int((time.time() + s) * 1000).to_bytes(6, "big") + bytes(10) for s in (60, 90_000))
    with closing(SQLiteStore(path)) as store:
        for far in (b"\xff" * 16, tomorrow, tomorrow[:-1] + b"\1"):
            store.submit(SPEC, [far], [far])
            assert look_ups(store, list(new_job_ids(100))) == 0
        assert look_ups(store, [b"\xff" * 16]) == 1, "it is known"
    with closing(SQLiteStore(path)) as store:
        assert look_ups(store, list(new_job_ids(100))) == 0
        assert look_ups(store, [b"\xff" * 16, tomorrow]) == 2
        assert look_ups(store, [soon]) == 0
        assert look_ups(store, list(new_job_ids(100))) == 100, "they are older than one that a clock may have made"
        assert store.totals.enqueued == 504


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_id_is_known_once(data: st.DataObject) -> None:
    """Whatever ids come, far ones and repeated ones among them, in any order, with restarts and rollbacks."""
    now_ms = int(time.time() * 1000)
    times = [0, now_ms - 10**9, now_ms, now_ms + 1, now_ms + 86_300_000, now_ms + 86_500_000, (1 << 48) - 1]
    some_id = st.builds(lambda ms, rest: ms.to_bytes(6, "big") + rest, st.sampled_from(times), st.sampled_from(ENDS))
    known: set[bytes] = set()
    with tempfile.TemporaryDirectory() as home:
        store = SQLiteStore(Path(home) / "journal.db", "memory")
        for ids, then in data.draw(st.lists(st.tuples(st.lists(some_id, min_size=1, max_size=6), THEN), max_size=12)):
            rows = store.submit(SPEC, ids, ids)
            assert {row.id for row in rows} == set(ids) - known
            assert len(rows) == len({row.id for row in rows})
            if then == "roll back":
                store.rollback()
                continue
            known |= set(ids)
            store.commit()
            if then == "restart":
                store.close()
                store = SQLiteStore(Path(home) / "journal.db", "memory")
        assert store.counts(StoredState.QUEUED).get("mail", 0) == len(known)
        store.close()


def test_scheduled_jobs_are_found_by_index(path: Path) -> None:
    """What is asked every few milliseconds does not read all jobs, and nothing is sorted."""
    with closing(SQLiteStore(path)) as store:
        for sql, bindings, index in (
            (statements.QUEUED, (1, 0, 10), "INTEGER PRIMARY KEY (rowid>?)"),
            (statements.DUE, (1.0, 10), "jobs_due"),
            (statements.READ, (b"",), "jobs_id"),
            (statements.PRUNE_ATTEMPTS, (1, 2), "PRIMARY KEY (job>? AND job<?)"),
            (statements.QUEUED_KEYED, (1, 0, 10), "jobs_keyed"),
            (statements.EXPIRED, (1.0, 10), "jobs_expires"),
            (statements.WITH_KEYS, ("k",) * 50, "jobs_unique"),
            (f"SELECT band, count(*) FROM jobs WHERE state = {StoredState.SCHEDULED:d} GROUP BY band", (), "jobs_due"),
            (f"SELECT min(due_at) FROM jobs WHERE state = {StoredState.SCHEDULED}", (), "jobs_due"),
        ):
            plan = str(store._db.execute(f"EXPLAIN QUERY PLAN {sql}", bindings).fetchall())
            assert index in plan
            assert "TEMP B-TREE" not in plan or "GROUP BY" in sql


def test_failed_jobs_are_found_without_reading_the_others(path: Path) -> None:
    """A few failed jobs behind many others are found at once."""
    with closing(SQLiteStore(path)) as store:
        failed = submit(store, 2)
        submit(store, 2 * MAX_JOBS_SEEN)
        end(store, failed, StoredState.FAILED)
        jobs, position = store.find(Wanted(StoredState.FAILED), 0, LAST, 10, newest_first=True)
        assert [job.row.seq for job in jobs] == [failed[1].seq, failed[0].seq]
        assert position is None


def test_finding_stops_at_large_jobs(path: Path) -> None:
    """What a request has to move is bounded in bytes as well."""
    with closing(SQLiteStore(path)) as store:
        rows = submit(store, 6, size=400_000)
        jobs, position = store.find(Wanted(), 0, LAST, 10, newest_first=False)
        assert len(jobs) == 3
        assert position == rows[2].seq


@pytest.mark.parametrize("kept", [StoredState.FAILED, StoredState.SCHEDULED])
def test_finding_stops_at_outcomes_that_have_to_be_shortened(path: Path, kept: StoredState) -> None:
    """To shorten two hundred of them in one turn of the broker would take 5 ms. All are found in the end, each once."""
    large = pack_failure(1.0, 2.0, JobError("E", "why", "line\n" * 1_200))
    assert len(large) > MAX_KEPT_ATTEMPT_BYTES
    with closing(SQLiteStore(path)) as store:
        rows = submit(store, 200)
        if kept is StoredState.FAILED:
            store.settle([(row, kept, large) for row in rows], [], 1.0)
        else:
            store.settle([], [Rescheduled(row, 9e9, large, 1) for row in rows], 1.0)
        store.commit()
        found: list[int] = []
        place: int | None = LAST if kept is StoredState.FAILED else None
        while True:
            if kept is StoredState.FAILED:
                jobs, place = store.find(Wanted(kept), 0, place or 0, 200, newest_first=True)
            else:
                jobs, place = store.find_due(Wanted(), place, 200)
            assert len(jobs) <= 64
            found += [job.row.seq for job in jobs]
            if place is None:
                break
    assert sorted(found) == [row.seq for row in rows]


class TickingClock:
    """On which each look at it takes the same time."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self.looks = 0

    def time(self) -> float:
        return 1e9

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks * self.tick_s


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize(
    ("wanted", "is_found"),
    [
        (Wanted(StoredState.FAILED, search=JobSearch(text="outcome of")), True),
        (Wanted(StoredState.FAILED, search=JobSearch(text="nowhere")), False),
        (Wanted(search=JobSearch(text="nowhere")), False),
        (Wanted(search=JobSearch(attempts=9)), False),
        (Wanted(StoredState.SUCCEEDED), False),
    ],
    ids=["text", "text, none", "text in all, none", "attempts, none", "state, none"],
)
def test_finding_stops_after_a_while(
    path: Path, wanted: Wanted, is_found: bool, newest_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a few jobs take long to look at, and nothing is found. All are found in the end, each once."""
    monkeypatch.setattr(queries_module, "_FIND_S", 0.010)
    clock = TickingClock(0.0)
    with closing(SQLiteStore(path, clock=clock)) as store:
        rows = submit(store, 2_500)
        end(store, rows, StoredState.FAILED)
        clock.tick_s = 0.004
        seqs: list[int] = []
        after, before, place = 0, LAST, 0
        requests = 0
        while place is not None:
            clock.looks = 0
            jobs, place = store.find(wanted, after, before, 1_000, newest_first=newest_first)
            assert clock.looks <= 2 + 3, "it goes on for 10 ms"
            after, before = (after, place or 0) if newest_first else (place or 0, before)
            seqs += [job.row.seq for job in jobs]
            requests += 1
    expected = [row.seq for row in rows] if is_found else []
    assert seqs == (expected[::-1] if newest_first else expected)
    assert requests > 1


@pytest.mark.parametrize("queues", [1, 2, 3, 5])
def test_what_waits_is_counted_by_partition(opener: Opener, queues: int) -> None:
    """Whether they are few or many, and without those of which nothing waits."""
    with closing(opener()) as store:
        for number in range(queues):
            submit(store, number + 1, Spec("task", queue=f"queue{number}"))
        end(store, store.lease(Partition("queue0"), 0, 10, 1 << 20)[0])
        firsts = [1 + sum(range(1, number + 1)) for number in range(queues)]
        found = sorted(store.waiting(), key=lambda row: row[2])
        assert found == [(Partition(f"queue{n}"), n + 1, firsts[n]) for n in range(1, queues)]


def counts_of(store: Store) -> object:
    """What is counted when a store is opened."""
    return store.totals.as_dict(), sorted(store.waiting(), key=lambda row: row[2])


def test_what_a_store_counts_is_the_same_when_it_is_opened_again(opener: Opener) -> None:
    with closing(opener()) as store:
        rows = submit(store, 10) + submit(store, 3, OTHER)
        end(store, rows[:2] + rows[-1:])
        store.settle([(rows[2], StoredState.FAILED, pack_failure(1.0, 1.0, JobError("E", "m")))], [], LATE)
        store.commit()
        before = counts_of(store)
    for _ in range(2):
        with closing(opener()) as store:
            assert counts_of(store) == before
    with closing(opener()) as store:
        submit(store, 1)
        before = counts_of(store)
    with closing(opener()) as store:
        assert counts_of(store) == before


def test_only_a_journal_that_was_not_closed_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of a million rows would take longer than all else that a fleet does before its first job."""
    with closing(SQLiteStore(path)) as store:
        end(store, submit(store, 5)[:2])
        before = counts_of(store)
    counted: list[str] = []
    count_rows = RowCounts.counted
    monkeypatch.setattr(RowCounts, "counted", lambda db: counted.append("rows") or count_rows(db))
    monkeypatch.setattr(statements, "WAITING_IN", statements.WAITING_IN + " -- counted")
    with closing(SQLiteStore(path)) as store:
        store._db.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: counted.append(event["sql"]))
        assert counts_of(store) == before
        assert not any(sql.endswith(("rows", "-- counted")) for sql in counted)
        killed = crashed_copy(path, path.parent / "copy")
        submit(store, 1)
        assert counts_of(store) != before
    with closing(SQLiteStore(killed)) as store:
        assert "rows" in counted
        assert counts_of(store) == before
    with closing(SQLiteStore(path)) as store:
        assert store.totals.enqueued == 6
        assert sum(jobs for _, jobs, _ in store.waiting()) == 4
