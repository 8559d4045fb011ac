"""Both ends of a consumer's queue: whole messages in order, and the broker's end never blocks."""

from __future__ import annotations

import multiprocessing
import os
import select
from multiprocessing.connection import Connection
from multiprocessing.queues import SimpleQueue

import pytest

from taskq.protocol.link.inbox import Inbox, InboxReader

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

SPAWN = multiprocessing.get_context("spawn")
ROOM = 64 * 1024


def echo(queue: SimpleQueue[bytes], go: Connection, answers: Connection, is_plain: bool) -> None:
    """Reads what comes, when told to, and answers with its length and first byte."""
    go.recv_bytes()
    reader = queue if is_plain else InboxReader(queue)
    while message := reader.get():
        answers.send((len(message), message[0]))


@pytest.mark.parametrize("is_plain", [True, False])
@pytest.mark.parametrize("sizes", [(1, 10, 4_000), (70_000, 1, 300_000, 2), (1,) * 3_000, (4 * 1024 * 1024,)])
def test_messages_arrive_whole_and_in_order(sizes: tuple[int, ...], is_plain: bool) -> None:
    inbox = Inbox(SPAWN, ROOM)
    go_reader, go = SPAWN.Pipe(duplex=False)
    answers, answers_writer = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=echo, args=(inbox.queue, go_reader, answers_writer, is_plain))
    process.start()
    inbox.handed_over()
    for number, size in enumerate(sizes):
        inbox.put(bytes([number % 256]) * size)  # nobody reads yet, and it returns all the same
    done = inbox.put(b"")
    go.send_bytes(b"")
    poll = select.poll()
    poll.register(inbox.fileno(), select.POLLOUT)
    while not done:
        poll.poll(10_000)
        done = inbox.flush()
    assert [answers.recv() for _ in sizes] == [(size, number % 256) for number, size in enumerate(sizes)]
    process.join(10)
    assert process.exitcode == 0
    inbox.close()


def test_a_dead_reader_is_no_error() -> None:
    inbox = Inbox(SPAWN, ROOM)
    inbox.handed_over()  # to nobody
    assert inbox.put(bytes(1_000_000))
    assert inbox.flush()
    inbox.close()


def test_the_writing_end_does_not_block() -> None:
    inbox = Inbox(SPAWN, ROOM)
    reader = os.dup(inbox.queue._reader.fileno())  # type: ignore[attr-defined]
    inbox.handed_over()
    assert not inbox.put(bytes(10_000_000))
    assert not inbox.put(b"behind it")
    os.close(reader)
    inbox.close()


def test_the_reader_knows_what_it_has_read_and_what_is_there() -> None:
    inbox = Inbox(SPAWN, ROOM)
    reader = InboxReader(inbox.queue)
    assert reader.is_empty()
    inbox.put(b"one")
    inbox.put(b"two")
    assert not reader.is_empty()
    assert reader.get() == b"one"
    assert not reader.is_empty()
    assert reader.get() == b"two"
    assert reader.is_empty()
    inbox.close()
    with pytest.raises(EOFError):
        reader.get()


def test_a_reader_whose_descriptor_was_taken_is_not_called_empty() -> None:
    inbox = Inbox(SPAWN, ROOM)
    reader = InboxReader(inbox.queue)
    with open(os.devnull, "rb") as other:
        os.close(reader.fileno())
        assert not reader.is_empty()
        os.dup2(other.fileno(), reader.fileno())
        assert not reader.is_empty()
    inbox.close()
