"""Raw bytes at the socket: at most their sender suffers, and nobody else notices."""

from __future__ import annotations

import selectors
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from apps import jobs
from fleet import Fleet, wait_until
from steps import steps

from taskq.engines.server import Peer, Server
from taskq.model.job import new_job_ids
from taskq.model.limits import FRAME_DEADLINE_S, HELLO_DEADLINE_S, MAX_FRAME_BYTES, STALLED_CLIENT_S
from taskq.protocol import frames
from taskq.protocol.ops import Op
from taskq.system.directory import Directory

pytestmark = pytest.mark.not_on_postgres("clients of a database do not come to the broker's socket")

HELLO = frames.hello(1)
SPEC = ["add", "default", 3, None, 3]
ID = bytes(range(16))


@pytest.fixture(autouse=True)
def honest(shared: Fleet) -> Iterator[None]:
    """An honest client is served during and after each test, by the same processes."""
    before = shared.status()["broker"]
    consumers = shared.wait_ready().consumer_pids()
    assert serves(shared)
    yield
    assert serves(shared)
    after = shared.status()["broker"]
    assert after["pid"] == before["pid"]
    assert after["rss_bytes"] < before["rss_bytes"] + 50 * 1024 * 1024
    assert shared.consumer_pids() == consumers


def serves(fleet: Fleet) -> bool:
    """Whether the fleet runs jobs and answers."""
    assert list(jobs.add.map(range(50), timeout=30)) == list(range(1, 51))
    return bool(fleet.status())


@contextmanager
def connected(fleet: Fleet, first: bytes = b"") -> Iterator[socket.socket]:
    """A raw connection, on which the first bytes were sent."""
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(fleet.home / "taskq.sock"))  # blocks while the backlog is full
        raw.settimeout(10)
        raw.sendall(first)
        yield raw


def received(raw: socket.socket) -> list[list[Any]]:
    """The envelopes of all frames until the end of the connection."""
    data = b""
    try:
        while more := raw.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return [envelope for envelope, _ in frames.Decoder().feed(data)] if data else []


def greeted(raw: socket.socket) -> socket.socket:
    """The connection after the broker's hello."""
    decoder = frames.Decoder()
    while not decoder.feed(raw.recv(65536)):
        pass
    return raw


def test_a_flood_of_bad_clients_does_not_fill_the_log(shared: Fleet) -> None:
    """A few are reported one by one; the others are counted."""
    floods, before = 300, rejections(shared)
    for _ in range(floods):
        with connected(shared, b"GET / HTTP/1.1\r\n\r\n") as raw:
            received(raw)
    wait_until(lambda: told_of(rejections(shared)[len(before) :]) == floods, "all are told or counted")
    assert len(rejections(shared)) - len(before) < floods / 2


def rejections(fleet: Fleet) -> list[dict[str, Any]]:
    """What the log says about refused clients."""
    return fleet.events("client.rejected")


def told_of(events: list[dict[str, Any]]) -> int:
    """How many clients these events are about."""
    return sum(event.get("clients", 1) for event in events)


BAD_BEGINNINGS = {
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n" * 10,
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "giant": struct.pack("!II", 0xFFFFFFFF, 100),
    "giant envelope": struct.pack("!II", 1 << 20, 1 << 19),
    "envelope larger than frame": struct.pack("!II", 10, 100) + bytes(10),
    "no envelope": struct.pack("!II", 4, 0),
    "no msgpack": struct.pack("!II", 8, 4) + b"\xc1\xc1\xc1\xc1",
    "deep": struct.pack("!II", 60_004, 60_000) + b"\x91" * 60_000,
    "bomb": struct.pack("!II", 60_004, 60_000) + b"\xdd\x00\x00\xea\x5b" + b"\x80" * 59_995,
    "huge array": struct.pack("!II", 9, 5) + b"\xdd\xff\xff\xff\xff",
    "a map": struct.pack("!II", 5, 1) + b"\x80",
    "future": frames.frame([Op.HELLO, "taskq", 99, 100, 1]),
    "past": frames.frame([Op.HELLO, "taskq", 0, 0, 1]),
    "magic": frames.frame([Op.HELLO, "other", 1, 1, 1]),
    "versions": frames.frame([Op.HELLO, "taskq", "1", None, 1]),
    "short": frames.frame([Op.HELLO]),
    "no hello": frames.frame([Op.STATUS, 1]),
    "pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("name", BAD_BEGINNINGS)
def test_bad_beginning(shared: Fleet, name: str) -> None:
    with connected(shared, BAD_BEGINNINGS[name]) as raw:
        answers = received(raw)
    assert [answer[0] for answer in answers] in ([], [Op.ERROR])
    if answers:
        assert answers[0][2] == "ProtocolError"


BAD_REQUESTS: dict[str, bytes] = {
    "unknown": frames.frame([999, 1]),
    "negative": frames.frame([-1]),
    "for consumers": frames.frame([Op.OUTCOMES, [1], [0], [1], [1]], [b"x"]),
    "ready": frames.frame([Op.READY, 1]),
    "hello again": HELLO,
    "status without number": frames.frame([Op.STATUS]),
    "info of text": frames.frame([Op.INFO, 1, "0" * 16]),
    "watch of half an id": frames.frame([Op.WATCH, b"12345"]),
    "watch of numbers": frames.frame([Op.WATCH, [1, 2]]),
    "garbage": b"\xff" * 100,
    "giant": struct.pack("!II", MAX_FRAME_BYTES + 1, 10),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_request(shared: Fleet, name: str) -> None:
    with connected(shared, HELLO) as raw:
        greeted(raw).sendall(BAD_REQUESTS[name])
        answers = received(raw)
    assert [answer[0] for answer in answers] in ([], [Op.ERROR])


def submission(**changes: Any) -> bytes:
    """A submit frame with some fields changed."""
    fields = {
        "request": 7,
        "spec": SPEC,
        "resend": False,
        "watch": False,
        "ids": ID,
        "lengths": [2],
        "body": b"xx",
    } | changes
    body = fields.pop("body")
    return frames.frame([Op.SUBMIT, *fields.values()], [body])


NONSENSE: dict[str, bytes] = {
    "floats as lengths": submission(lengths=[2.0]),
    "texts as lengths": submission(lengths=["2"]),
    "lists as lengths": submission(lengths=[[2]]),
    "nil as length": submission(lengths=[None]),
    "negative lengths": submission(ids=ID * 2, lengths=[-2, 4]),
    "lengths too long": submission(lengths=[3]),
    "lengths too short": submission(lengths=[1]),
    "no jobs": submission(ids=b"", lengths=[], body=b""),
    "too few ids": submission(ids=ID, lengths=[1, 1]),
    "half an id": submission(ids=ID[:8]),
    "text as ids": submission(ids="x" * 16),
    "task as list": submission(spec=[["add"], "default", 3, None, 3]),
    "task with newline": submission(spec=["a\nb", "default", 3, None, 3]),
    "task as map": submission(spec=[{}, "default", 3, None, 3]),
    "long task": submission(spec=["a" * 300, "default", 3, None, 3]),
    "queue with path": submission(spec=["add", "../x", 3, None, 3]),
    "retries as text": submission(spec=["add", "default", "3", None, 3]),
    "huge retries": submission(spec=["add", "default", 2**63, None, 3]),
    "nan as timeout": submission(spec=["add", "default", 3, float("nan"), 3]),
    "infinite timeout": submission(spec=["add", "default", 3, float("inf"), 3]),
    "negative timeout": submission(spec=["add", "default", 3, -1, 3]),
    "true as retries": submission(spec=["add", "default", True, None, 3]),
    "no crashes": submission(spec=["add", "default", 3, None, 0]),
    "huge crashes": submission(spec=["add", "default", 3, None, 2**63]),
    "short spec": submission(spec=["add"]),
    "long spec": submission(spec=[*SPEC, 1]),
    "spec as map": submission(spec={}),
    "request as text": submission(request="7"),
    "watch as number": submission(watch=1),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_a_submission(shared: Fleet, name: str) -> None:
    enqueued = shared.totals()["enqueued"]
    with connected(shared, HELLO) as raw:
        greeted(raw).sendall(NONSENSE[name] + frames.frame([Op.STATUS, 8]))
        raw.shutdown(socket.SHUT_WR)
        answers = received(raw)
    assert answers[0][0] == Op.ERROR
    assert answers[0][2] in ("ProtocolError", "ConfigError")
    assert shared.totals()["enqueued"] == enqueued


def test_odd_but_valid_submissions(shared: Fleet) -> None:
    """Extreme numbers are stored, not tripped over."""
    ids = list(new_job_ids(4))
    odd = [
        submission(ids=ids[0], spec=["add", "default", 1_000_000, 1e8, 1_000_000]),
        submission(ids=ids[1], spec=["add", "default", 0, 1e-9, 1], request=2**63),
        submission(ids=ids[2] * 2, lengths=[2, 2], body=b"xxxx"),
        submission(ids=ids[3], lengths=[0], body=b""),
    ]
    with connected(shared, HELLO) as raw:
        greeted(raw)
        for frame in odd:
            raw.sendall(frame)
            envelope, _ = frames.Decoder().feed(raw.recv(65536))[0]
            assert envelope[0] == Op.OK
    for job_id in ids:
        jobs.q.job(job_id.hex()).wait(timeout=10)
        jobs.q.job(job_id.hex()).info()


def test_half_frames(shared: Fleet) -> None:
    """Every beginning of a frame, then silence or the end: nothing is taken in."""
    whole = submission(ids=next(new_job_ids(1)))
    enqueued = shared.totals()["enqueued"]
    with ExitStack() as stack:
        for length in range(0, len(whole), 3):
            raw = stack.enter_context(connected(shared, HELLO))
            greeted(raw).sendall(whole[:length])
            silent = stack.enter_context(connected(shared, HELLO[: length % len(HELLO)]))
            assert silent
        assert serves(shared)
        enqueued += 50
    assert serves(shared)
    assert shared.totals()["enqueued"] == enqueued + 50


def test_one_byte_at_a_time(shared: Fleet) -> None:
    [job_id] = new_job_ids(1)
    with connected(shared) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for byte in HELLO + submission(ids=job_id, request=3):
            raw.sendall(bytes([byte]))
        greeted(raw)
        assert frames.Decoder().feed(raw.recv(65536))[0][0][:2] == [Op.OK, 3]
    assert jobs.q.job(job_id.hex()).wait(timeout=10)


def test_a_client_that_never_reads(shared: Fleet) -> None:
    """Thousands of large results are due to it: they wait, others are served, and all is dropped when it goes."""
    made = jobs.big.enqueue_many([(20_000,)] * 2_000)
    for job in made:
        job.wait(timeout=20)
    ids = b"".join(bytes.fromhex(job.id) for job in made)
    with connected(shared, HELLO) as raw:
        greeted(raw)
        raw.setblocking(False)
        sent = 0
        try:
            for _ in range(50):
                sent += raw.send(frames.frame([Op.WATCH, ids]))
        except BlockingIOError:
            pass
        assert sent
        assert serves(shared)
        raw.settimeout(10)
        decoder, count = frames.Decoder(), 0
        while count < 2_000:  # when it reads after all it gets all
            count += sum(envelope[0] == Op.RESULT for envelope, _ in decoder.feed(raw.recv(1 << 20)))


def test_two_hundred_connections_at_once(shared: Fleet) -> None:
    with ExitStack() as stack:
        raws = [stack.enter_context(connected(shared)) for _ in range(200)]
        for raw in raws:
            raw.sendall(HELLO)
        for raw in raws:
            greeted(raw)
        for number, raw in enumerate(raws):
            raw.sendall(frames.frame([Op.STATUS, number]))
        assert serves(shared)
        for number, raw in enumerate(raws):
            decoder = frames.Decoder()
            while not (messages := decoder.feed(raw.recv(65536))):
                pass
            assert messages[0][0][:2] == [Op.OK, number]


def test_more_connections_than_are_served(shared: Fleet) -> None:
    broker = psutil.Process(shared.broker_pid)
    with ExitStack() as stack:
        raws = [stack.enter_context(connected(shared, HELLO)) for _ in range(900)]
        for raw in raws:
            greeted(raw)
        assert serves(shared)
    wait_until(lambda: broker.num_fds() < 100, "the descriptors of those that went")


def test_a_flood_of_small_frames(shared: Fleet) -> None:
    with connected(shared, HELLO) as raw:
        greeted(raw)
        raw.setblocking(False)
        flood = frames.frame([Op.INFO, 1, ID]) * 2_000
        for _ in range(20):
            try:
                raw.send(flood)
            except BlockingIOError:
                break
        assert serves(shared)


class ServerByHand:
    """A server whose loop and clock are the test's."""

    def __init__(self, home: Path) -> None:
        self.now = 0.0
        self.rejected: list[str] = []
        self.closed: list[Peer] = []
        self.selector = selectors.DefaultSelector()
        directory = Directory(home).create()
        self.server = Server(directory, self.selector, self.rejected.append, self.closed.append, self)
        self.path = str(directory.socket_path())

    def monotonic(self) -> float:
        """The time that the server sees."""
        return self.now

    time = monotonic

    def connect(self, first: bytes) -> socket.socket:
        """A client that sent its first bytes, which were handled."""
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(self.path)
        raw.sendall(first)
        self.turn()
        return raw

    def turn(self) -> None:
        """Handles all that has arrived."""
        while ready := self.selector.select(0.0):
            for key, mask in ready:
                key.data(mask)

    def at(self, now: float) -> None:
        """Lets time pass."""
        self.now = now
        self.server.drop_late(now)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerByHand]:
    """A server whose loop and clock are the test's."""
    by_hand = ServerByHand(tmp_path / "by_hand")
    yield by_hand
    by_hand.server.shut()


def test_the_deadline_of_a_hello(server: ServerByHand) -> None:
    with server.connect(HELLO[:5]), server.connect(b""):
        server.at(HELLO_DEADLINE_S - 0.1)
        assert not server.closed
        server.at(HELLO_DEADLINE_S)
        assert len(server.closed) == 2


def test_the_deadline_of_a_frame(server: ServerByHand) -> None:
    half = frames.frame([Op.STATUS, 1])[:6]
    with server.connect(HELLO + half) as slow, server.connect(HELLO):
        server.at(FRAME_DEADLINE_S - 0.1)
        assert not server.closed
        slow.sendall(b"\x92")  # a byte now and then does not help
        server.turn()
        server.at(FRAME_DEADLINE_S)
        assert len(server.closed) == 1


def test_clients_that_are_idle_are_not_looked_at(server: ServerByHand) -> None:
    """However many there are: only those that owe something have a deadline."""
    with ExitStack() as clients:
        for _ in range(200):
            clients.enter_context(server.connect(HELLO))
        half = clients.enter_context(server.connect(HELLO + frames.frame([Op.STATUS, 1])[:6]))
        server.at(0.1)
        among_many = steps(partial(server.server.drop_late, 0.2))
        assert among_many <= 200
        half.sendall(frames.frame([Op.STATUS, 1])[6:])
        server.turn()
        server.at(0.3)
        assert steps(partial(server.server.drop_late, 0.4)) < among_many
        server.at(FRAME_DEADLINE_S)
        assert not server.closed


def test_the_deadline_of_a_client_that_does_not_read(server: ServerByHand) -> None:
    with server.connect(HELLO + frames.frame([Op.STATUS, 1])):
        [(peer, _)] = server.server.take_messages()
        large = frames.frame([Op.OK, 1, None], [bytes(1_000_000)])
        for _ in range(3):
            server.server.send(peer, large)
        server.at(STALLED_CLIENT_S - 0.1)
        assert not server.closed
        server.at(STALLED_CLIENT_S)
        assert server.closed == [peer]
