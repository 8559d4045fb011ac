"""Unique jobs when they are admitted: which one stays, and which job each client is told of. There is no fleet: nothing
runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.broker.core.core import Core
from taskq.engines.embedded.admission import Admission, Admitted
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.server import Peer
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import QueueFull
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol.submissions import Submission

WALL = 1e9


class Idle:
    """Consumers that run nothing, and have been sent nothing."""

    def is_running(self, _job_id: bytes) -> bool:
        return False

    def withdraw(self, _job_id: bytes) -> bool:
        return True


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(tmp_path / "journal.db")) as store:
        yield store


def taken(
    store: SQLiteStore, ids: list[bytes], unique: UniqueKey, spec: Spec | None = None, core: Core | None = None
) -> Admitted:
    """What becomes of jobs that a client hands in together."""
    constraints = [Constraints(unique=unique)] * len(ids)
    core = core or Core()
    with socket.socket() as client:
        submission = Submission(
            Peer(client, 0.0), 1, False, spec or Spec("a"), ids, [b"payload"] * len(ids), constraints
        )
        found = Admission(store, core, Idle()).take(submission, WALL)
        store.commit()
    core.submitted(found.rows)
    return found


def test_of_many_that_replace_each_other_all_are_told_the_last(store: SQLiteStore) -> None:
    """The others are not there, and nothing could be told of them."""
    ids = list(new_job_ids(4))
    found = taken(store, ids, UniqueKey("key", replaces=True))
    assert [row.id for row in found.rows] == ids[-1:]
    assert found.earlier == dict.fromkeys(ids[:-1], ids[-1])


def test_of_many_that_keep_each_other_out_all_are_told_the_first(store: SQLiteStore) -> None:
    ids = list(new_job_ids(4))
    found = taken(store, ids, UniqueKey("key"))
    assert [row.id for row in found.rows] == ids[:1]
    assert found.earlier == dict.fromkeys(ids[1:], ids[0])


def test_a_full_queue_refuses_none_that_is_left_out(store: SQLiteStore) -> None:
    """It needs no room."""
    core, spec = Core(), Spec("a", max_queued=1)
    first, second, third, fourth = new_job_ids(4)
    assert taken(store, [first], UniqueKey("key"), spec, core).rows
    assert taken(store, [second], UniqueKey("key"), spec, core).earlier == {second: first}
    [row] = taken(store, [third], UniqueKey("key", replaces=True), spec, core).rows
    assert row.id == third
    with pytest.raises(QueueFull, match="jobs wait"):
        taken(store, [fourth], UniqueKey("other"), spec, core)


@pytest.mark.parametrize("replaces", [False, True])
def test_what_is_sent_again_changes_nothing(store: SQLiteStore, replaces: bool) -> None:
    """A client that lost the answer gets the same one: none gives way to itself."""
    ids, unique = list(new_job_ids(3)), UniqueKey("key", replaces=replaces)
    first, again = taken(store, ids, unique), taken(store, ids, unique)
    assert again == first._replace(rows=[])


def test_what_is_sent_again_takes_nobody_s_place(store: SQLiteStore) -> None:
    """It was replaced before its client heard of it: if it now replaced the other in turn, neither would run."""
    ids, other, unique = list(new_job_ids(2)), *new_job_ids(1), UniqueKey("key", replaces=True)
    taken(store, ids, unique)
    assert [job.row.id for job in taken(store, [other], unique).replaced] == ids[1:]
    again = taken(store, ids, unique)
    assert (again.rows, again.replaced, again.ended) == ([], [], [])
    assert store.with_keys(["key"])["key"].row.id == other
