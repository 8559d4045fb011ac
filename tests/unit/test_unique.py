"""The rule of unique jobs, without a journal: who stays, who gives way, and who is told of whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.model.constraints import NO_CONSTRAINTS, Constraints, UniqueKey
from taskq.model.job import JobRow, new_job_ids
from taskq.model.rules.unique import Decision, decide, keeps_others_out
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredJob, StoredState

WALL = 1e9


class Leases:
    """Consumers that run some jobs."""

    def __init__(self, *running: bytes) -> None:
        self.running = running

    def withdraw(self, job_id: bytes) -> bool:
        return job_id not in self.running

    def is_running(self, job_id: bytes) -> bool:
        return job_id in self.running


def stored(job_id: bytes, kept: StoredState = StoredState.QUEUED) -> StoredJob:
    """A job that is there."""
    return StoredJob(JobRow(1, job_id, Spec("t"), b""), kept, None, None, None)


def made_at(at: float) -> bytes:
    """An id that was made then."""
    [job_id] = new_job_ids(1, int(at * 1e9))
    return job_id


def decided(
    unique: UniqueKey, ids: list[bytes], holder: StoredJob | None = None, running: tuple[bytes, ...] = ()
) -> Decision:
    """What becomes of jobs with one key."""
    holders = {} if holder is None else {unique.key: holder}
    return decide(ids, [Constraints(unique=unique)] * len(ids), (), holders, Leases(*running), WALL)


keys = st.sampled_from(["a", "b"])
uniques = st.none() | st.builds(UniqueKey, keys, replaces=st.booleans(), until_start=st.booleans())


@given(st.lists(uniques, max_size=8), st.dictionaries(keys, st.sampled_from(StoredState)), st.data())
def test_each_key_has_one_job_and_each_job_an_answer(
    wanted: list[UniqueKey | None], there: dict[str, StoredState], data: st.DataObject
) -> None:
    ids = list(new_job_ids(len(wanted)))
    constraints = [NO_CONSTRAINTS if unique is None else Constraints(unique=unique) for unique in wanted]
    holders = {key: stored(key.encode() * 16, kept) for key, kept in there.items()}
    running = [job.row.id for job in holders.values() if job.kept == StoredState.QUEUED and data.draw(st.booleans())]
    decision = decide(ids, constraints, (), holders, Leases(*running), WALL)
    taken = [ids[position] for position in decision.taken]
    assert sorted([*taken, *decision.earlier]) == sorted(ids)
    gone = {job.row.id for job in (*decision.released, *decision.replaced)}
    for key in ("a", "b"):
        own = [ids[position] for position in decision.taken if (unique := wanted[position]) and unique.key == key]
        holder = holders.get(key)
        stays = holder is not None and holder.row.id not in gone
        assert len(own) <= 1
        assert not (own and stays)
        for position, unique in enumerate(wanted):
            if unique is not None and unique.key == key and ids[position] in decision.earlier:
                stands_for_it = decision.earlier[ids[position]]
                assert stands_for_it in own or (holder is not None and stands_for_it == holder.row.id)
    assert not {job.row.id for job in decision.replaced} & set(running), "what runs gives way to nobody"


def test_what_is_sent_again_stands() -> None:
    [known, other] = ids = list(new_job_ids(2))
    constraints = [Constraints(unique=UniqueKey("key", replaces=True))] * 2
    decision = decide(ids, constraints, {known}, {"key": stored(known)}, Leases(), WALL)
    assert decision == Decision([0], {other: known}, [], [])


@pytest.mark.parametrize("kept", [kept for kept in StoredState if kept >= FIRST_FINAL])
def test_a_job_that_has_ended_keeps_nobody_out_unless_its_period_lasts(kept: StoredState) -> None:
    old, new = made_at(WALL - 5.0), made_at(WALL)
    decision = decided(UniqueKey("key"), [new], stored(old, kept))
    assert decision.taken == [0]
    assert [job.row.id for job in decision.released] == [old]
    assert decided(UniqueKey("key", period_s=4.0), [new], stored(old, kept)).taken == [0]
    assert decided(UniqueKey("key", period_s=6.0), [new], stored(old, kept)).earlier == {new: old}


def test_a_job_that_runs_keeps_others_out_unless_it_counts_until_its_start_only() -> None:
    old, new = new_job_ids(2)
    assert decided(UniqueKey("key"), [new], stored(old), (old,)).earlier == {new: old}
    assert decided(UniqueKey("key", replaces=True), [new], stored(old), (old,)).earlier == {new: old}
    assert decided(UniqueKey("key", until_start=True), [new], stored(old), (old,)).taken == [0]
    assert keeps_others_out(stored(old), UniqueKey("key", until_start=True), Leases(), WALL)
