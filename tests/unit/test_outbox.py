"""Outcomes on their way: what the consumer adds is what the broker reads, sent or not, whenever the consumer dies."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.consumer import outbox
from taskq.consumer.outbox import Outbox
from taskq.model.attempt import Attempts
from taskq.model.errors import ProtocolError
from taskq.protocol import frames
from taskq.protocol.link import unsent as unsent_module
from taskq.protocol.link.reports import read_report
from taskq.protocol.link.unsent import Unsent

SPAWN = multiprocessing.get_context("spawn")
Row = tuple[int, int, int, bytes]

rows = st.lists(
    st.tuples(st.integers(1, 2**40), st.integers(0, 2), st.integers(0, 2**40), st.binary(max_size=200)),
    max_size=20,
)


@pytest.fixture
def unsent() -> Unsent:
    return Unsent(SPAWN)


def rows_of(attempts: Attempts) -> list[Row]:
    return list(zip(*attempts, strict=True))


def told(connection: socket.socket) -> list[Row]:
    """All attempts in the frames that have arrived."""
    connection.setblocking(False)
    decoder, found = frames.Decoder(), []
    while True:
        try:
            data = connection.recv(1 << 20)
        except BlockingIOError:
            return found
        for envelope, body in decoder.feed(data):
            report = read_report(envelope, body)
            assert isinstance(report, Attempts)
            found += rows_of(report)


@given(rows)
def test_what_is_added_is_read(made: list[Row]) -> None:
    unsent = Unsent(SPAWN)
    for count, row in enumerate(made, 1):
        assert unsent.add(*row) == count
    assert rows_of(unsent.read()) == made
    unsent.clear()
    assert unsent.is_empty()
    assert rows_of(unsent.read()) == []


def test_there_is_an_end_to_its_room(unsent: Unsent) -> None:
    half = bytes(unsent_module._BODY_BYTES // 2)
    assert [unsent.add(number, 0, 1, half) for number in (1, 2, 3)] == [1, 2, 0]
    unsent.clear()
    counts = [unsent.add(number, 0, 1, b"") for number in range(1, unsent_module._REPORT_COUNT + 2)]
    assert counts == [*range(1, unsent_module._REPORT_COUNT + 1), 0]


def test_all_is_sent_whatever_its_size(unsent: Unsent) -> None:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * unsent_module._BODY_BYTES)
    box = Outbox(theirs, unsent)
    large = bytes(unsent_module._BODY_BYTES + 1)
    made = [(1, 0, 5, b"a"), (2, 1, 6, large), *((number, 0, 7, b"b") for number in range(3, 1_000))]
    found: list[Row] = []
    for row in made:
        box.add(row[0], row[1], row[2] / 1e6, row[3], now=0.0)
        found += told(ours)
    box.report()
    found += told(ours)
    assert [(number, outcome) for number, _, _, outcome in found] == [(row[0], row[3]) for row in made]
    assert unsent.is_empty()


def test_a_late_outcome_takes_those_before_along(unsent: Unsent) -> None:
    ours, theirs = socket.socketpair()
    box = Outbox(theirs, unsent)
    box.add(1, 0, 0.0, b"", now=10.0)
    box.add(2, 0, 0.0, b"", now=10.0 + outbox._REPORT_AFTER_S / 2)
    assert told(ours) == []
    box.add(3, 0, 0.0, b"", now=10.0 + 2 * outbox._REPORT_AFTER_S)
    assert [number for number, *_ in told(ours)] == [1, 2, 3]


def test_what_waits_behind_a_long_job_is_sent_in_time_whatever_was_sent_before(unsent: Unsent) -> None:
    """The broker commits it 20 ms later at the latest, so a job that ended 40 ms before it dies does not run again."""
    after_s = outbox._REPORT_AFTER_S
    ours, theirs = socket.socketpair()
    box = Outbox(theirs, unsent)
    box.add(1, 0, 0.0, b"", now=10.0)
    assert box.send_overdue(10.0) == pytest.approx(after_s)
    box.report()
    box.add(2, 0, 0.0, b"", now=10.0 + after_s / 2)  # and a long job begins
    assert [number for number, *_ in told(ours)] == [1]
    assert box.send_overdue(10.0 + after_s) == pytest.approx(after_s / 2)
    assert told(ours) == []
    box.send_overdue(10.0 + 1.5 * after_s)
    assert [number for number, *_ in told(ours)] == [2]


def test_who_sends_what_is_overdue_sleeps_when_nothing_comes_any_more(unsent: Unsent) -> None:
    ours, theirs = socket.socketpair()
    box = Outbox(theirs, unsent)
    box.add(1, 0, 0.0, b"", now=10.0)
    now, looks = 10.0, 0
    while wait_s := box.send_overdue(now):
        now, looks = now + wait_s, looks + 1
    assert looks <= 3
    assert not box._has_some.is_set()
    assert [number for number, *_ in told(ours)] == [1]
    box.add(2, 0, 0.0, b"", now=now + 100.0)
    assert box._has_some.is_set()


def test_a_thread_sends_what_is_overdue_again_and_again(unsent: Unsent) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(30.0)
    box = Outbox(theirs, unsent)
    thread = threading.Thread(target=box.report_late, daemon=True)
    thread.start()
    for number in range(1, 4):
        box.add(number, 0, 0.0, b"", time.monotonic())
        assert ours.recv(1 << 16)
    theirs.close()  # the broker is gone
    box.add(4, 0, 0.0, b"", time.monotonic())
    thread.join(30.0)
    assert not thread.is_alive()


def test_what_a_job_scribbles_there_is_no_outcome(unsent: Unsent) -> None:
    unsent.add(1, 0, 1, b"outcome")
    for word in range(200):
        unsent._memory[word] = 2**63 + word
    with pytest.raises(ProtocolError):
        unsent.read()
