"""What processes share: the counters block, the flight recorder, and the two locks. With real processes, really
killed."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from taskq.model.attempt import Claim
from taskq.model.errors import AlreadyRunning, DirectoryError
from taskq.protocol.link.counters import LOCK_TIMEOUT_S, Counters
from taskq.protocol.link.flight_recorder import (
    FlightRecord,
    FlightRecorder,
    clear_flight_record,
    clear_flight_records,
    read_flight_records,
)
from taskq.system import locks
from taskq.system.locks import end_old_consumers, hold_consumer_lock, take_broker_lock
from taskq.system.platform import kill_group

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

SPAWN = multiprocessing.get_context("spawn")
WAIT_S = 20.0


# -- the other process


def obey(pipe: Connection, counters: Counters | None) -> None:
    """A process that obeys commands, and answers."""
    held: list[Any] = []
    answers: dict[str, Callable[..., Any]] = {
        "pid": os.getpid,
        "clock": time.monotonic,
        "take_broker_lock": lambda path, guardian: held.append(take_broker_lock(Path(path), guardian)),
        "hold_consumer_lock": lambda path: held.append(hold_consumer_lock(Path(path))),
        "own_group": lambda: os.setpgid(0, 0),
        "record": lambda path, number, job_id, attempt: FlightRecorder(Path(path), number).started(job_id, attempt),
    }
    if counters is not None:
        answers |= {
            "claim": counters.claim,
            "finish": counters.finish,
            "is_overdue": counters.is_overdue,
            "grab": counters._lock.acquire,
        }
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, answers[name](*arguments)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))


class Other:
    """That process, seen from here."""

    def __init__(self, counters: Counters | None = None) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=obey, args=(theirs, counters))
        self.process.start()
        theirs.close()

    def do(self, name: str, *arguments: Any) -> Any:
        """Has it do one thing; returns the answer."""
        self._pipe.send((name, *arguments))
        assert self._pipe.poll(WAIT_S), "no answer"
        succeeded, answer = self._pipe.recv()
        if not succeeded:
            raise RuntimeError(answer)
        return answer

    def send_signal(self, number: int) -> None:
        """Sends a signal, and waits until it has its effect."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.join(WAIT_S)
        elif number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self.process.kill()
        self.process.join(WAIT_S)


@pytest.fixture
def make_other() -> Iterator[Callable[..., Other]]:
    """Starts processes that end with the test."""
    others: list[Other] = []

    def make(counters: Counters | None = None) -> Other:
        others.append(Other(counters))
        return others[-1]

    yield make
    for other in others:
        other.end()


@pytest.fixture
def counters() -> Counters:
    """A fresh block."""
    return Counters(SPAWN)


# -- the counters block


def test_claims_are_seen_by_the_broker(counters: Counters, make_other: Callable[..., Other]) -> None:
    """What a consumer starts and ends in its process is read in ours."""
    assert counters.read() == []
    consumer = make_other(counters)
    before = time.monotonic()
    started_at = consumer.do("claim", 1)
    assert counters.read() == [Claim(1, started_at)]
    assert before <= started_at <= time.monotonic()
    consumer.do("finish", 1, 0.25)
    assert counters.read() == []
    consumer.do("claim", 2)
    consumer.do("finish", 2, 0.5)
    assert (counters.jobs_done, counters.busy_s) == (2, 0.75)


def test_taken_back_jobs_do_not_start(counters: Counters, make_other: Callable[..., Other]) -> None:
    """All that was sent and not started is refused; what is sent later starts."""
    consumer = make_other(counters)
    consumer.do("claim", 1)
    consumer.do("claim", 2)
    assert counters.take_back(10) == 2
    assert [consumer.do("claim", number) for number in (3, 9, 10)] == [None, None, None]
    assert [claim.number for claim in counters.read()] == [2]
    assert consumer.do("claim", 11) is not None
    assert counters.take_back(11) == 11


def test_taking_back_from_an_idle_consumer(counters: Counters, make_other: Callable[..., Other]) -> None:
    """Nothing was started, so all is taken back."""
    consumer = make_other(counters)
    assert counters.take_back(5) == 0
    assert consumer.do("claim", 5) is None
    assert consumer.do("claim", 6) is not None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lock_that_is_not_given_up(counters: Counters, make_other: Callable[..., Other], number: int) -> None:
    """A consumer that was killed or stopped while it held the lock holds up nobody, and nothing is taken back."""
    consumer = make_other(counters)
    consumer.do("claim", 1)
    assert consumer.do("grab") is True
    consumer.send_signal(number)
    started = time.monotonic()
    assert counters.take_back(9) is None
    assert time.monotonic() - started < LOCK_TIMEOUT_S + 30, "it would wait for ever"
    assert [claim.number for claim in counters.read()] == [1]
    counters.mark_overdue(1)
    assert counters._valid_from[0] == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_consumer_that_is_gone_with_the_lock_free(
    counters: Counters, make_other: Callable[..., Other], number: int
) -> None:
    """What a dead or stopped consumer had not started is taken back; what it was running is known."""
    consumer = make_other(counters)
    consumer.do("claim", 1)
    consumer.do("finish", 1, 0.1)
    consumer.do("claim", 2)
    consumer.send_signal(number)
    assert counters.take_back(9) == 2
    assert [claim.number for claim in counters.read()] == [2]
    if number == signal.SIGSTOP:
        consumer.send_signal(signal.SIGCONT)
        assert consumer.do("claim", 3) is None


def test_every_job_is_started_or_taken_back(counters: Counters, make_other: Callable[..., Other]) -> None:
    """However the two sides race, a number is started exactly if it is not above what `take_back` says."""
    consumer = make_other(counters)
    sent = 0
    for turn in range(60):
        first, sent = sent + 1, sent + 5
        for number in range(first, sent + 1):
            consumer._pipe.send(("claim", number))
            if number == first + turn % 5:
                claimed = counters.take_back(sent)
        answers = [consumer._pipe.recv()[1] for _ in range(5)]
        started = [number for number, answer in zip(range(first, sent + 1), answers, strict=True) if answer is not None]
        assert claimed is not None
        assert started == list(range(first, claimed + 1))


def test_a_soft_signal_means_one_job(counters: Counters, make_other: Callable[..., Other]) -> None:
    """The consumer sees which job it is for."""
    consumer = make_other(counters)
    consumer.do("claim", 7)
    counters.mark_overdue(7)
    assert consumer.do("is_overdue", 7) is True
    assert consumer.do("is_overdue", 8) is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="semaphores have files on Linux only")
def test_a_lock_without_a_name_still_locks(counters: Counters, make_other: Callable[..., Other]) -> None:
    """Once both have it, its name is removed, once; what it guards stays guarded."""
    consumer = make_other(counters)
    consumer.do("claim", 1)
    name = Path("/dev/shm") / f"sem.{counters._lock._semlock.name.lstrip('/')}"
    assert name.exists()
    counters.opened()
    counters.opened()
    assert not name.exists()
    assert counters.take_back(3) == 1
    assert consumer.do("claim", 3) is None
    assert consumer.do("grab")
    assert counters.take_back(4) is None, "the consumer holds it"
    name.touch()  # now somebody else's
    try:
        del counters
        gc.collect()
        assert name.exists(), "it was removed a second time"
    finally:
        name.unlink()


def test_slots(make_other: Callable[..., Other]) -> None:
    """Numbers start in order, each on a slot, and end in any order; those above the last started are taken back."""
    counters = Counters(SPAWN, 3)
    consumer = make_other(counters)
    began = [consumer.do("claim", number, slot) for number, slot in ((1, 2), (2, 0), (3, 1))]
    assert sorted(counters.read()) == [Claim(number, at) for number, at in enumerate(began, 1)]
    consumer.do("finish", 2, 0.5, 0)
    assert sorted(claim.number for claim in counters.read()) == [1, 3]
    assert consumer.do("claim", 4, 0) is not None
    assert counters.take_back(9) == 4
    consumer.do("finish", 4, 0.25, 0)
    assert consumer.do("claim", 5, 0) is None
    assert sorted(claim.number for claim in counters.read()) == [1, 3]
    assert (counters.slots, counters.jobs_done, counters.busy_s) == (3, 2, 0.75)
    assert counters.take_back(9) == 4, "also when the last that started has ended"


def test_soft_signals_of_several_slots(make_other: Callable[..., Other]) -> None:
    """Each job has its own mark; that of a job which has ended means nobody."""
    counters = Counters(SPAWN, 3)
    consumer = make_other(counters)
    for number in (1, 2, 3):
        consumer.do("claim", number, number - 1)
    counters.mark_overdue(1)
    counters.mark_overdue(3)
    counters.mark_overdue(99)
    assert [consumer.do("is_overdue", number, number - 1) for number in (1, 2, 3)] == [True, False, True]
    consumer.do("finish", 3, 0.1, 2)
    consumer.do("claim", 4, 2)
    assert consumer.do("is_overdue", 4, 2) is False


# -- the flight recorder


@pytest.fixture
def running_map(tmp_path: Path) -> Path:
    """A flight recorder's file for consumers 1 to 4."""
    path = tmp_path / "running.map"
    clear_flight_records(path, 4)
    return path


def test_no_file_no_records(tmp_path: Path) -> None:
    """The first fleet of a directory finds nothing."""
    assert read_flight_records(tmp_path / "running.map") == []


def test_records_outlive_their_writer(running_map: Path, make_other: Callable[..., Other]) -> None:
    """What a killed process was running is read by the next broker."""
    consumer = make_other()
    consumer.do("record", str(running_map), 3, b"i" * 16, 70_000)
    consumer.send_signal(signal.SIGKILL)
    assert read_flight_records(running_map) == [FlightRecord(b"i" * 16, 70_000)]


def test_records_of_several_consumers(running_map: Path) -> None:
    """Each has its own; an idle one has none; a newer start takes the place of the older one."""
    recorders = [FlightRecorder(running_map, number) for number in range(5)]
    assert read_flight_records(running_map) == []
    for number, recorder in enumerate(recorders):
        recorder.started(bytes([number + 1]) * 16, number + 1)
    recorders[1].idle()
    recorders[2].started(b"z" * 16, 9)
    assert read_flight_records(running_map) == [
        FlightRecord(bytes([1]) * 16, 1),
        FlightRecord(b"z" * 16, 9),
        FlightRecord(bytes([4]) * 16, 4),
        FlightRecord(bytes([5]) * 16, 5),
    ]


def test_a_record_tells_the_number_of_its_consumer(running_map: Path) -> None:
    """Which is not that of the record: while one consumer replaces another, both have the same number."""
    for place, number in ((0, 2), (3, 2)):
        recorder = FlightRecorder(running_map, place, number=number)
        recorder.started(b"x" * 16, 1)
        recorder.idle()
        recorder.started(bytes([place + 1]) * 16, 1)
    found = read_flight_records(running_map)
    assert found == [FlightRecord(bytes([1]) * 16, 1, 2), FlightRecord(bytes([4]) * 16, 1, 2)]
    clear_flight_record(running_map, 3)
    assert read_flight_records(running_map) == found[:1]


def test_one_record_is_cleared(running_map: Path) -> None:
    """The broker clears the record of a job that it has charged; the others stay."""
    for number in (1, 2):
        FlightRecorder(running_map, number).started(bytes([number]) * 16, 1)
    clear_flight_record(running_map, 1)
    assert read_flight_records(running_map) == [FlightRecord(bytes([2]) * 16, 1)]


def test_records_of_several_slots(tmp_path: Path) -> None:
    """Each slot of each consumer has its own, and all of a consumer are cleared together."""
    path = tmp_path / "running.map"
    clear_flight_records(path, 2, 3)
    for consumer in range(3):
        recorder = FlightRecorder(path, consumer, 3)
        for slot in range(3):
            recorder.started(bytes([10 * consumer + slot + 1]) * 16, 1, slot)
    recorder.idle(1)
    clear_flight_record(path, 1, 3)
    assert [record.job_id[0] for record in read_flight_records(path)] == [1, 2, 3, 21, 23]


def test_all_records_are_cleared(running_map: Path) -> None:
    """A new fleet begins with an empty file, and a late writer of the old one cannot write into it."""
    late = FlightRecorder(running_map, 1)
    clear_flight_records(running_map, 2)
    late.started(b"l" * 16, 1)
    assert read_flight_records(running_map) == []
    assert stat.S_IMODE(running_map.stat().st_mode) == 0o600
    assert [path.name for path in running_map.parent.iterdir()] == ["running.map"]


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 31, b"x" * 33, bytes(64), b"x" * 16 + bytes(16)])
def test_a_damaged_recorder_is_no_obstacle(running_map: Path, content: bytes) -> None:
    """A file of any length is read; only whole records count."""
    running_map.write_bytes(content)
    assert len(read_flight_records(running_map)) == (len(content) == 33)


def test_links_are_not_followed(running_map: Path, tmp_path: Path) -> None:
    """A link in the place of the file leads nowhere."""
    link = tmp_path / "link.map"
    link.symlink_to(running_map)
    with pytest.raises(OSError, match="symbolic links"):
        FlightRecorder(link, 1)


# -- the broker's lock


def test_a_second_broker_is_refused(
    tmp_path: Path, make_other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a broker lives, the next one learns its process id; when it is killed, the lock is free at once."""
    lock = tmp_path / "lock"
    broker = make_other()
    broker.do("take_broker_lock", str(lock), os.getpid())
    monkeypatch.setattr(locks, "_ENDING_S", 0.5)  # of this process; the other one waits as long as every fleet
    with pytest.raises(AlreadyRunning, match=rf"broker process {broker.process.pid}\b.*taskq stop"):
        take_broker_lock(lock, os.getpid())
    with pytest.raises(RuntimeError, match="AlreadyRunning"):
        make_other().do("take_broker_lock", str(lock), os.getpid())
    broker.send_signal(signal.SIGKILL)
    os.close(take_broker_lock(lock, os.getpid()))


def test_a_lock_is_the_same_through_a_link(tmp_path: Path, make_other: Callable[..., Other]) -> None:
    """Whatever path leads to the directory, it is one directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "home")
    make_other().do("take_broker_lock", str(tmp_path / "home" / "lock"), os.getpid())
    with pytest.raises(AlreadyRunning):
        take_broker_lock(tmp_path / "link" / "lock", os.getpid())


def dead_pid() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_fleet_that_is_ending_is_waited_for(tmp_path: Path, make_other: Callable[..., Other]) -> None:
    """A broker whose guardian is dead ends soon: the next one waits for its lock, and takes it."""
    lock = tmp_path / "lock"
    ending = make_other()
    ending.do("take_broker_lock", str(lock), dead_pid())
    heir = make_other()
    heir._pipe.send(("take_broker_lock", str(lock), os.getpid()))
    assert not heir._pipe.poll(0.1)
    ending.send_signal(signal.SIGKILL)
    assert heir._pipe.poll(WAIT_S)
    assert heir._pipe.recv() == (True, None)


@pytest.mark.parametrize("content", [b"", b"1 1", b"999999 999999", b"garbage that is no number", b"\xff" * 100])
def test_a_stale_lock_file_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    """Only the kernel's lock counts, not what a dead broker left in the file."""
    lock = tmp_path / "lock"
    lock.write_bytes(content)
    descriptor = take_broker_lock(lock, 4711)
    assert lock.read_bytes() == b"%d 4711" % os.getpid()
    os.close(descriptor)


# -- the consumers' lock


def test_no_consumers_no_wait(tmp_path: Path) -> None:
    """Neither a new directory nor a stale file holds up a new broker."""
    lock = tmp_path / "consumers.lock"
    assert end_old_consumers(lock) == []
    assert end_old_consumers(lock) == []
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_consumers_share_their_lock(tmp_path: Path, make_other: Callable[..., Other]) -> None:
    """Many hold it at once."""
    lock = tmp_path / "consumers.lock"
    for _ in range(2):
        make_other().do("hold_consumer_lock", str(lock))


@pytest.mark.parametrize("is_stopped", [False, True])
def test_old_consumers_are_ended(tmp_path: Path, make_other: Callable[..., Other], is_stopped: bool) -> None:
    """A new broker kills all that are left, even stopped ones, and returns when they are gone."""
    lock = tmp_path / "consumers.lock"
    others = [make_other() for _ in range(2)]
    for other in others:
        other.do("own_group")
        other.do("hold_consumer_lock", str(lock))
        if is_stopped:
            other.send_signal(signal.SIGSTOP)
    assert set(end_old_consumers(lock)) == {other.process.pid for other in others}
    for other in others:
        other.process.join(WAIT_S)
        assert other.process.exitcode == -signal.SIGKILL
    assert end_old_consumers(lock) == []


def test_an_owner_of_the_lock_without_a_number_is_waited_for_and_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells 0 for a process in another container, which would be our own group, and -1 for this lock."""
    lock = tmp_path / "consumers.lock"
    monkeypatch.setattr("taskq.system.locks._CONSUMERS_GONE_S", 0.1)
    with lock.open("w+") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        with pytest.raises(DirectoryError, match="a consumer process in another container"):
            end_old_consumers(lock)
    assert end_old_consumers(lock) == []


@pytest.mark.parametrize("pid", [0, -1])
def test_our_own_group_is_never_killed(pid: int) -> None:
    with pytest.raises(ValueError, match="not a process that leads a group"):
        kill_group(pid)


def test_what_a_job_forked_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The lock is not inherited: a forgotten child of a job keeps no fleet from starting."""
    lock = tmp_path / "consumers.lock"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from taskq.system.locks import hold_consumer_lock\n"
        "hold_consumer_lock(Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n"
        "    print(os.getpid(), flush=True)\n"
        "    signal.pause()\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, process_group=0) as process:
        try:
            assert process.stdout is not None
            assert int(process.stdout.readline()) != process.pid
            process.kill()
            process.wait()
            assert end_old_consumers(lock) == []
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_lock_kinds_do_not_disturb_each_other(tmp_path: Path) -> None:
    """The broker's lock is a flock: opening and closing its file elsewhere in the process does not drop it."""
    lock = tmp_path / "lock"
    descriptor = take_broker_lock(lock, 1)
    lock.read_bytes()
    with lock.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_old_consumers_are_ended_by_a_process_with_many_files(tmp_path: Path, make_other: Callable[..., Other]) -> None:
    """A descriptor with a number above what `select` can take works."""
    lock = tmp_path / "consumers.lock"
    other = make_other()
    other.do("own_group")
    other.do("hold_consumer_lock", str(lock))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2_048, hard), hard))
    files = [os.dup(0) for _ in range(1_100)]
    try:
        assert end_old_consumers(lock) == [other.process.pid]
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
