"""Unique jobs, as they are taken in: who stays, and who is told of whom. No fleet: nothing runs yet."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.core import Core
from taskq.intake import Intake, Submission, Taken
from taskq.model import Spec, Terms, UniqueKey, new_job_ids
from taskq.server import Peer
from taskq.store.sqlite import SQLiteStore

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


def taken(store: SQLiteStore, ids: list[bytes], unique: UniqueKey) -> Taken:
    """What becomes of jobs that a client hands in together."""
    terms = [Terms(unique=unique)] * len(ids)
    with socket.socket() as client:
        submission = Submission(Peer(client, 0.0), 1, False, Spec("a"), ids, [b"payload"] * len(ids), terms)
        found = Intake(store, Core(), Idle()).take(submission, WALL)
        store.commit()
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
