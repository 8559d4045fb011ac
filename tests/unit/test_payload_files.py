"""The files of large payloads: what is written and mapped, what is refused, and that no file goes that a job may still
need, whoever dies when."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from taskq.engines import payloads as payloads_of_engine
from taskq.engines.embedded.journal.memory import MemoryStore
from taskq.engines.payloads import SUBMITTED_WITHIN_S, Payloads, is_left_behind
from taskq.model.attempt import pack_failure, pack_success
from taskq.model.errors import DirectoryError, EnqueueError, StoreFull
from taskq.model.job import JobError, JobRow, new_job_ids
from taskq.model.limits import MAX_INLINE_PAYLOAD_BYTES
from taskq.model.spec import Spec
from taskq.model.stored import StoredJob, StoredState
from taskq.protocol import spool
from taskq.protocol.codec import Ext, decode_call, decode_result, encode_call, encode_result
from taskq.protocol.payloads.filed import (
    REFERENCE_BYTES,
    CorruptPayload,
    FiledPayload,
    Kind,
    body_and_blocks,
    is_reference,
    reference_in,
    size_of,
)
from taskq.protocol.payloads.files import FileName, PayloadFiles, PayloadLost
from taskq.protocol.spooler import spooler_of
from taskq.protocol.submissions import Call, Submission, submit_frame
from taskq.system.directory import Directory

SPEC = Spec("t")
VALUES = np.arange(20_000, dtype="f8")


@pytest.fixture
def files(tmp_path: Path) -> PayloadFiles:
    """The files of a directory."""
    return PayloadFiles(Directory(tmp_path / "queue").create())


def new_id() -> bytes:
    """The id of a job."""
    return next(new_job_ids(1))


def filed(job_id: bytes, value: Any = VALUES) -> FiledPayload:
    """The arguments of a job, with one large one."""
    payload = encode_call(job_id, (value,), {}, may_have_file=True)
    assert isinstance(payload, FiledPayload)
    return payload


def path_of(files: PayloadFiles, payload: FiledPayload) -> Path:
    """Where the file of a payload is."""
    return files.folder / payload.reference.file_name(payload.job_id)


# -- what is written is read


@pytest.mark.parametrize(
    "value",
    [
        "x" * 70_000,
        "\u00e9" * 70_000,
        bytes(range(256)) * 6_000,
        ["x" * 70_000, bytes(70_000), {"a": bytes(70_000)}],
        VALUES,
        VALUES.reshape(100, 200).T,
        VALUES.astype(">f4"),
        np.array(["2020-01-01"] * 10_000, "M8[D]"),
        np.array(["ab", "c"] * 10_000),
        np.zeros((300, 300), "?"),
        [VALUES, (VALUES + 1, {"a": VALUES}), bytearray(100), "small", np.ones(3)],
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_large_value_is_read_where_it_lies(files: PayloadFiles, value: Any) -> None:
    job_id = new_id()
    for payload in (
        encode_call(job_id, (value,), {"other": 1}, may_have_file=True),
        encode_result(job_id, value, may_have_file=True),
    ):
        assert isinstance(payload, FiledPayload)
        files.write([payload])
        content = files.read(job_id, bytes(payload))
        if payload.reference.kind is Kind.ARGUMENTS:
            (found,), others = decode_call(job_id, content)
            assert others == {"other": 1}
        else:
            found = decode_result(job_id, content)
        assert repr(found) == repr(value)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            assert np.array_equal(found, value)
            assert found.flags.writeable
            assert np.shares_memory(found, np.frombuffer(content, "u1")), "no copy"
        else:
            assert type(found) is type(value)
        assert size_of(payload) == len(content) == os.stat(path_of(files, payload)).st_size


def test_large_bytes_and_texts_are_not_copied_on_their_way_to_the_file() -> None:
    data, text = os.urandom(100_000), "x" * 100_000
    payload = encode_call(new_id(), (1, data), {"text": text}, may_have_file=True)
    assert isinstance(payload, FiledPayload)
    assert len(payload.body) < 100
    assert any(part is data for part in payload.parts)
    assert text.encode() in payload.parts


def test_a_block_takes_its_size_once_however_often_a_value_refers_to_it(files: PayloadFiles) -> None:
    job_id = new_id()
    body = msgpack.packb([[msgpack.ExtType(Ext.BYTES, bytes(4)), msgpack.ExtType(Ext.BYTES, bytes(4))], {}])
    payload = FiledPayload.of(job_id, Kind.ARGUMENTS, body, [bytes(100_000)])
    files.write([payload])
    (first, second), _ = decode_call(job_id, files.read(job_id, payload))
    assert first == bytes(100_000)
    assert first is second
    for code, position in ((Ext.BYTES, b"\0\0\0\1"), (Ext.TEXT, b"\0"), (Ext.TEXT, bytes(4))):
        body = msgpack.packb([[msgpack.ExtType(code, position)], {}])
        payload = FiledPayload.of(job_id, Kind.ARGUMENTS, body, [b"\xff" * 10])
        files.write([payload])
        with pytest.raises(CorruptPayload):
            decode_call(job_id, files.read(job_id, payload))


def test_what_fits_goes_inline() -> None:
    job_id = new_id()
    for size, is_filed in ((MAX_INLINE_PAYLOAD_BYTES - 20, False), (MAX_INLINE_PAYLOAD_BYTES, True)):
        payload = encode_result(job_id, bytes(size), may_have_file=True)
        assert isinstance(payload, FiledPayload) is is_filed
        assert is_reference(payload) is is_filed
        assert type(encode_result(job_id, bytes(size))) is bytes
    assert type(encode_result(job_id, np.zeros(7_000), may_have_file=True)) is bytes
    assert isinstance(encode_result(job_id, [np.zeros(7_000)] * 2, may_have_file=True), FiledPayload)


def test_a_file_is_private_and_never_written_twice(files: PayloadFiles) -> None:
    payload = filed(new_id())
    files.write([payload])
    status = path_of(files, payload).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    files.write([payload])  # it is sent again
    assert path_of(files, payload).stat().st_ino == status.st_ino
    path_of(files, payload).unlink()
    files.write([payload])  # it was removed in the meantime
    assert decode_call(payload.job_id, files.read(payload.job_id, payload))[1] == {}


def test_a_file_that_was_not_synced_is_written_again_for_whoever_wants_it_to_be(
    files: PayloadFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor) or fsync(descriptor))
    payloads = [filed(new_id()), filed(new_id())]
    files.write(payloads, False)
    files.write(payloads, False)
    assert synced == []
    inodes = [path_of(files, payload).stat().st_ino for payload in payloads]
    files.write(payloads[:1], True)
    assert len(synced) == 2
    files.write(payloads[:1])
    files.write(payloads, False)
    assert len(synced) == 2
    assert path_of(files, payloads[1]).stat().st_ino == inodes[1]
    for payload in payloads:
        assert np.array_equal(decode_call(payload.job_id, files.read(payload.job_id, payload))[0][0], VALUES)


def test_a_reference_is_of_one_job_and_one_file(files: PayloadFiles) -> None:
    payload, other = filed(new_id()), filed(new_id())
    files.write([payload, other])
    with pytest.raises(CorruptPayload, match="checksum"):
        files.read(new_id(), bytes(payload))
    path_of(files, other).rename(path_of(files, payload))
    with pytest.raises(CorruptPayload, match="checksum"):
        decode_call(payload.job_id, files.read(payload.job_id, bytes(payload)))
    with pytest.raises(CorruptPayload, match="in a file"):
        decode_call(payload.job_id, bytes(payload))


@pytest.mark.parametrize("damage", ["gone", "short", "flipped", "link", "folder"])
def test_a_file_that_is_not_as_it_was_written_is_refused(files: PayloadFiles, tmp_path: Path, damage: str) -> None:
    payload = filed(new_id())
    files.write([payload])
    path = path_of(files, payload)
    content = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        path.mkdir()
    with pytest.raises((PayloadLost, CorruptPayload)):
        decode_call(payload.job_id, files.read(payload.job_id, bytes(payload)))


@given(st.binary(max_size=200))
def test_no_content_does_harm(content: bytes) -> None:
    for data in (content, content[:4] + b"\xc1\x02\0\0" + content[4:]):
        try:
            body, blocks = body_and_blocks(data)
        except CorruptPayload:
            continue
        assert len(body) + sum(map(len, blocks)) <= len(data)


@given(st.binary(min_size=REFERENCE_BYTES - 6, max_size=REFERENCE_BYTES - 6))
def test_no_reference_leads_out_of_the_folder(middle: bytes) -> None:
    job_id = bytes(16)
    import zlib

    body = b"\xc1\x01" + middle
    payload = zlib.crc32(body, zlib.crc32(job_id)).to_bytes(4, "big") + body
    try:
        reference = reference_in(job_id, payload)
    except CorruptPayload:
        return
    assert reference is not None
    name = reference.file_name(job_id)
    assert os.path.basename(name) == name
    assert FileName.read(name) == FileName(job_id, reference.kind, reference.nonce)


# -- full disks


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file may be larger than this, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_and_nothing_is_left(files: PayloadFiles) -> None:
    small, large = filed(new_id(), bytes(70_000)), filed(new_id(), bytes(200_000))
    with small_files(100_000), pytest.raises(StoreFull, match=r"a payload of 200,0\d\d bytes does not fit on the disk"):
        files.write([small, large])
    assert list(files.entries()) == []
    files.write([small, large])
    assert len(list(files.entries())) == 2


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "queue").create()
    directory.payloads.rmdir()
    directory.payloads.write_text("in the way")
    with pytest.raises(DirectoryError, match="cannot write a payload"):
        PayloadFiles(directory).write([filed(new_id())])


# -- what is left behind


def stored(payload: FiledPayload, kept: StoredState, outcome: bytes | None = None, *, names_it: bool) -> StoredJob:
    """A job as the journal has it."""
    row = JobRow(1, payload.job_id, SPEC, bytes(payload) if names_it else b"")
    return StoredJob(row, kept, None, outcome, None)


def name_of(payload: FiledPayload) -> FileName:
    """What the name of its file says."""
    found = FileName.read(payload.reference.file_name(payload.job_id))
    assert found is not None
    return found


@pytest.mark.parametrize("kept", StoredState)
def test_the_arguments_that_a_row_names_stay_whatever_their_age(kept: StoredState) -> None:
    payload = filed(new_id())
    assert not is_left_behind(name_of(payload), stored(payload, kept, names_it=True), 1e9)
    assert is_left_behind(name_of(payload), stored(payload, kept, names_it=False), 0.0)


def test_arguments_of_an_unknown_job_stay_for_an_hour() -> None:
    payload = filed(new_id())
    assert not is_left_behind(name_of(payload), None, SUBMITTED_WITHIN_S)
    assert is_left_behind(name_of(payload), None, SUBMITTED_WITHIN_S + 1)


@pytest.mark.parametrize("kept", StoredState)
def test_a_result_that_a_row_does_not_name_stays_while_the_job_goes_on(kept: StoredState) -> None:
    result = encode_result(new_id(), VALUES, may_have_file=True)
    assert isinstance(result, FiledPayload)
    failure = pack_failure(1.0, 1.0, JobError("E", "m"))
    is_over = kept >= StoredState.SUCCEEDED
    assert is_left_behind(name_of(result), stored(result, kept, failure, names_it=False), 1e9) is is_over
    success = pack_success(1.0, 1.0, bytes(result))
    job = stored(result, StoredState.SUCCEEDED, success, names_it=False)
    assert not is_left_behind(name_of(result), job, 1e9)
    other = encode_result(result.job_id, VALUES, may_have_file=True)
    assert isinstance(other, FiledPayload)
    assert is_left_behind(name_of(other), job, 1e9)


class Lives(RuleBasedStateMachine):
    """Clients that write, submit, spool, are stopped and die; a broker that commits, ends and removes jobs, sweeps and
    dies. Nothing that a job may still need is ever removed; what a sweep leaves for ever, somebody needs.

    The time that passes is handed to the sweep, as the broker hands its clock. A client may act while a file is doomed.
    """

    written = Bundle("written")
    spooled = Bundle("spooled")

    def __init__(self) -> None:
        super().__init__()
        self.place = TemporaryDirectory(dir="/dev/shm")
        self.directory = Directory(Path(self.place.name) / "queue").create()
        self.files = PayloadFiles(self.directory)
        self.store = MemoryStore()
        self.broker = Payloads(self.directory, self.store)
        self.later_s = 0.0
        self.accepted: dict[bytes, FiledPayload] = {}  # those of which a client was told so, and that have not ended
        self.in_spool: dict[bytes, FiledPayload] = {}

    def teardown(self) -> None:
        self.store.close()
        self.place.cleanup()

    @rule(target=written)
    def write(self) -> FiledPayload:
        payload = filed(new_id(), bytes(70_000))
        self.files.write([payload])
        return payload

    def submission(self, payload: FiledPayload) -> Submission:
        return Submission(None, 0, False, SPEC, [payload.job_id], [bytes(payload)], None)

    @rule(payload=consumes(written))
    def submit(self, payload: FiledPayload) -> None:
        submission = self.submission(payload)
        try:
            self.broker.check(submission)
        except EnqueueError:
            assert not path_of(self.files, payload).exists()
            return
        self.store.submit(SPEC, submission.ids, submission.payloads)
        self.store.commit()
        self.accepted[payload.job_id] = payload

    @rule(target=spooled, payload=consumes(written))
    def spool(self, payload: FiledPayload) -> FiledPayload:
        frame = submit_frame(0, SPEC, [Call(payload.job_id, payload)], resend=True, watch=False)
        spooler_of(self.directory).add([payload.job_id], frame)
        return payload

    @rule(payload=consumes(spooled))
    def look_once_more(self, payload: FiledPayload) -> None:
        self.files.write([payload])
        self.in_spool[payload.job_id] = payload

    @rule(seconds=st.sampled_from([60.0, 2 * SUBMITTED_WITHIN_S]))
    def wait(self, seconds: float) -> None:
        self.later_s += seconds

    @rule()
    def sweep(self) -> None:
        newest = max((entry.stat().st_mtime for entry in self.files.entries()), default=0.0)
        self.broker.sweep(newest + self.later_s)
        self.broker.sweep(newest + self.later_s)  # an empty one begins anew

    @rule(target=spooled, payload=consumes(written))
    def spool_while_it_is_doomed(self, payload: FiledPayload) -> FiledPayload:
        doom = self.broker._files.doom

        def doom_and_spool(name: str) -> str | None:
            doomed = doom(name)
            if name == path_of(self.files, payload).name:
                self.spool_now(payload)
            return doomed

        self.broker._files.doom = doom_and_spool  # type: ignore[method-assign]
        try:
            self.sweep()
        finally:
            del self.broker._files.doom
        if not spool.holds(self.directory.spool, payload.job_id):
            self.spool_now(payload)
        return payload

    def spool_now(self, payload: FiledPayload) -> None:
        frame = submit_frame(0, SPEC, [Call(payload.job_id, payload)], resend=True, watch=False)
        spooler_of(self.directory).add([payload.job_id], frame)

    @rule()
    def take_in_the_spool(self) -> None:
        for file in spool.spooled(self.directory.spool):
            for frame in file.frames:
                for job_id, payload in list(self.in_spool.items()):
                    if job_id in frame:
                        self.broker.check(self.submission(payload))
                        self.store.submit(SPEC, [job_id], [bytes(payload)])
                        self.store.commit()
                        self.accepted[job_id] = self.in_spool.pop(job_id)

    @rule(how=st.sampled_from([StoredState.SUCCEEDED, StoredState.FAILED, StoredState.CANCELLED]), data=st.data())
    def end(self, how: StoredState, data: st.DataObject) -> None:
        if not self.accepted:
            return
        job_id = data.draw(st.sampled_from(sorted(self.accepted)))
        job = self.store.read(job_id)
        assert job is not None
        if job.kept is StoredState.FAILED:
            return
        result = encode_result(job_id, VALUES, may_have_file=True)
        assert isinstance(result, FiledPayload)
        self.files.write([result])
        outcome = pack_success(1.0, 1.0, bytes(result))
        if how is not StoredState.SUCCEEDED:
            outcome = pack_failure(1.0, 1.0, JobError("E", "m"))
        row = JobRow(job.row.seq, job_id, SPEC, job.row.payload)
        self.store.settle([(row, how, outcome)], [], 1.0)
        self.store.commit()
        if data.draw(st.booleans()):  # else the broker dies before it removes the file
            self.broker.remove([(row, how, outcome)], [], [])
        if how is not StoredState.FAILED:
            del self.accepted[job_id]
        if how is StoredState.SUCCEEDED:
            assert path_of(self.files, result).exists()

    @rule()
    def remove_what_is_gone(self) -> None:
        self.broker.remove_gone()

    @rule()
    def begin_again(self) -> None:
        self.broker = Payloads(self.directory, self.store)

    @invariant()
    def what_is_needed_is_there(self) -> None:
        for payload in (*self.accepted.values(), *self.in_spool.values()):
            assert path_of(self.files, payload).exists()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30)


def test_files_go_together_and_one_whose_job_comes_again_stays(files: PayloadFiles, tmp_path: Path) -> None:
    store = MemoryStore()
    broker = Payloads(Directory(tmp_path / "queue"), store)
    payloads = [filed(new_id(), bytes(70_000)) for _ in range(payloads_of_engine._GONE_FILES)]
    files.write(payloads)
    jobs = [stored(payload, StoredState.SUCCEEDED, names_it=True) for payload in payloads]
    broker.remove([], jobs[:-1], [])
    assert broker.has_gone
    assert not broker.has_many_gone
    assert len(list(files.entries())) == len(payloads)
    broker.check(Submission(None, 0, False, SPEC, [payloads[0].job_id], [bytes(payloads[0])], None))
    broker.remove_gone()
    assert not broker.has_gone
    assert {entry.name for entry in files.entries()} == {path_of(files, payloads[i]).name for i in (0, -1)}
    broker.remove([], [jobs[0]] * 2, [])
    assert not broker.has_many_gone
    large = filed(new_id(), bytes(payloads_of_engine._GONE_BYTES))
    files.write([large])
    broker.remove([(stored(large, StoredState.QUEUED, names_it=True).row, StoredState.SUCCEEDED, b"")], [], [])
    assert broker.has_many_gone
    broker.remove_gone()
    assert {entry.name for entry in files.entries()} == {path_of(files, payloads[-1]).name}
    store.close()


def test_nothing_is_left_for_ever(files: PayloadFiles, tmp_path: Path) -> None:
    store = MemoryStore()
    broker = Payloads(Directory(tmp_path / "queue"), store)
    payloads = [filed(new_id(), bytes(70_000)) for _ in range(3 * payloads_of_engine._PORTION)]
    files.write(payloads)
    newest = max(entry.stat().st_mtime for entry in files.entries())
    store.submit(SPEC, [payloads[0].job_id], [bytes(payloads[0])])
    store.commit()
    sweeps = 0
    while len(list(files.entries())) > 1:
        broker.sweep(newest + 2 * SUBMITTED_WITHIN_S)
        sweeps += 1
        assert sweeps < 10
    assert path_of(files, payloads[0]).exists()
    store.close()
