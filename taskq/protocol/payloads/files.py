"""The files of large payloads, in the folder `payloads` of a queue's directory: the one place that writes and maps
them.

    who                    does                                          before it
    client, or consumer    writes the file, syncs it and the folder      sends or spools the job; notes the outcome
    broker                 sees that the file is there                   commits, and acknowledges
    consumer, or client    maps the file, and reads in place             runs the job; returns the result
    broker                 commits the end or the removal of the job     removes the file

So what is durable never refers to a file that is not. The broker opens none of them. What a crash leaves behind is
found and removed by `taskq.engines.payloads`. A file is written once, under a name that nobody used before,
and is read through a private mapping: whoever changes an array that lies in it changes a copy.

Files are of the directory's owner alone (mode 0600, in a folder of mode 0700); links are not followed.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from taskq.model.errors import DirectoryError, StoreFull
from taskq.protocol.payloads.filed import CRC_BYTES, CorruptPayload, FiledPayload, Kind, Reference, reference_in
from taskq.system.directory import Directory
from taskq.system.platform import begin_writing_out, sync_directory

#: ENOSPC, EDQUOT, and EFBIG, for a limit on the size of files.
_IS_FULL = (28, 122, 27)
#: Buffers in one system call, of the 1,024 that the kernel takes.
_BUFFERS_AT_ONCE = 512
#: What is written at once. Of 64 KiB to 4 MiB this was the fastest, for contents of 1 MB and of 100 MB.
_PIECE_BYTES = 512 * 1024
_FIRST_PIECE_BYTES = 64 * 1024
#: Files that are written before the first of them is synced.
_FILES_AT_ONCE = 64
#: The time of a file that is younger than this is left as it is: far less than `taskq.engines.payloads` waits.
_NEW_FOR_S = 60.0
#: The end of the name of a file that is about to be removed: see `taskq.engines.payloads`.
DOOMED = ".gone"


class PayloadLost(Exception):
    """The file of a payload is not there any more, or cannot be opened."""


class FileName(NamedTuple):
    """What the name of a payload's file says."""

    job_id: bytes
    kind: Kind
    nonce: bytes

    @classmethod
    def read(cls, name: str) -> FileName | None:
        """Reads the name of a file; None if it is not one of a payload."""
        try:
            job_id, kind, nonce = name.split("-")
            return cls(bytes.fromhex(job_id), Kind[kind.upper()], bytes.fromhex(nonce))
        except (ValueError, KeyError):
            return None

    def is_of(self, reference: Reference | None) -> bool:
        """Whether a reference in the job's row leads to this file."""
        return reference is not None and (reference.kind, reference.nonce) == (self.kind, self.nonce)


class PayloadFiles:
    """The files of one directory. Used by clients, consumers and the broker; it holds nothing open.

    Attributes:
        folder: where they are.
        syncs: whether files that are written survive a loss of power, where the caller does not say so. Set by
            consumers, which know what their fleet promises.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.folder = directory.payloads
        self.syncs = True

    # -- whoever makes a payload

    def write(self, payloads: Sequence[FiledPayload], syncs: bool | None = None) -> None:
        """Writes the files of some payloads, those that are not there yet. They are durable when this returns; if it
        raises, none of those that it has written is left.

        Args:
            syncs: whether they are to survive a loss of power too; None: as `self.syncs` says.

        Raises:
            StoreFull: the disk is full.
            DirectoryError: the folder cannot be written.
        """
        syncs = self.syncs if syncs is None else syncs
        new = [each for each in payloads if not self._is_there(each, syncs)]
        if not new:
            return
        try:
            for start in range(0, len(new), _FILES_AT_ONCE):
                self._write_some(new[start : start + _FILES_AT_ONCE], syncs)
            if syncs:
                with self._telling_of(new[-1]):
                    sync_directory(self.folder)
        except BaseException:
            with suppress(OSError):  # what cannot be removed either is found by a sweep
                self.remove(new)
            raise
        for payload in new:
            payload.is_written, payload.is_synced = True, syncs

    def _is_there(self, payload: FiledPayload, syncs: bool) -> bool:
        """Whether the file of a payload was written, and need not be written again."""
        if not payload.is_written or not self.keep(payload.job_id, payload.reference):
            return False
        if syncs and not payload.is_synced:  # it was written for another fleet
            self.remove([payload])
            return False
        return True

    def _write_some(self, payloads: Sequence[FiledPayload], syncs: bool) -> None:
        """Writes files, and only then waits for the disk: what makes the first durable mostly does so for all."""
        with ExitStack() as opened:
            descriptors = []
            for payload in payloads:
                with self._telling_of(payload):
                    descriptors.append(self._create(payload))
                    opened.callback(os.close, descriptors[-1])
                    _write_content(descriptors[-1], payload)
            for payload, descriptor in zip(payloads, descriptors, strict=True) if syncs else ():
                with self._telling_of(payload):
                    os.fsync(descriptor)

    def _create(self, payload: FiledPayload) -> int:
        path = self._path(payload.job_id, payload.reference)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._directory.create()
            return os.open(path, flags, 0o600)

    @contextmanager
    def _telling_of(self, payload: FiledPayload) -> Iterator[None]:
        """Says what an error of the system means for a payload."""
        try:
            yield
        except OSError as error:
            size = f"{payload.reference.size:,} bytes"
            if error.errno in _IS_FULL:
                raise StoreFull(f"a payload of {size} does not fit on the disk of {self.folder}: {error}") from error
            raise DirectoryError(f"cannot write a payload of {size} to {self.folder}: {error.strerror}") from error

    def remove(self, payloads: Iterable[FiledPayload]) -> None:
        """Removes the files of payloads that were refused."""
        for payload in payloads:
            self.unlink(payload.reference.file_name(payload.job_id))
            payload.is_written = False

    # -- whoever reads it

    def read(self, job_id: bytes, payload: bytes | memoryview) -> bytes | memoryview:
        """Returns a payload, or, if that is a reference, the content of its file, mapped. Its checksum is for whoever
        decodes it.

        Raises:
            PayloadLost: the file is not there, or cannot be opened.
            CorruptPayload: the file is not the one that was written.
        """
        reference = reference_in(job_id, payload)
        if reference is None:
            return payload
        path = self._path(job_id, reference)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise PayloadLost(f"{path}: {error.strerror}") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.stat(self.folder).st_uid:
                raise PayloadLost(f"{path} is not a file of the owner of its folder")
            if status.st_size != reference.size:
                raise CorruptPayload(
                    f"{path} has {status.st_size:,} bytes, not the {reference.size:,} that were written"
                )
            return memoryview(mmap.mmap(descriptor, reference.size, access=mmap.ACCESS_COPY))
        finally:
            os.close(descriptor)

    # -- the broker

    def keep(self, job_id: bytes, reference: Reference) -> bool:
        """Notes that a file is wanted, so that it does not count as left behind for a while. Returns False if it is not
        there."""
        path = self._path(job_id, reference)
        try:
            # a change of a time is written with the next sync, and takes 20 times as long as to look
            if time.time() - os.stat(path, follow_symlinks=False).st_mtime > _NEW_FOR_S:
                os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """The entries of the folder, in no order."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            yield from entries

    def doom(self, name: str) -> str | None:
        """Takes a file's name away, so that nobody finds it. Returns the name that it has now; None if it is gone."""
        doomed = name.removesuffix(DOOMED) + DOOMED
        try:
            os.rename(self.folder / name, self.folder / doomed)
        except FileNotFoundError:
            return None
        return doomed

    def restore(self, doomed: str) -> None:
        """Gives a file its name back."""
        os.rename(self.folder / doomed, self.folder / doomed.removesuffix(DOOMED))

    def unlink(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / name)

    def _path(self, job_id: bytes, reference: Reference) -> str:
        return os.path.join(self.folder, reference.file_name(job_id))


def _write_content(descriptor: int, payload: FiledPayload) -> None:
    """Writes the checksum, and the content behind it. The disk works on what has been written while the checksum of it
    is computed: for 100 MB that takes two thirds of the time. The beginning, which has the checksum, comes last."""
    pieces = _pieces(payload.parts)
    first = next(pieces)
    checksum, position = _checksum_of(first, zlib.crc32(payload.job_id)), CRC_BYTES + sum(map(len, first))
    for piece in pieces:
        size = _write_all(descriptor, piece, position)
        begin_writing_out(descriptor, position, size)
        checksum, position = _checksum_of(piece, checksum), position + size
    _write_all(descriptor, [checksum.to_bytes(CRC_BYTES, "big"), *first], 0)


def _pieces(parts: Iterable[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """Cuts and joins the parts of a content to pieces that are written at once; the first is small."""
    piece: list[memoryview] = []
    room = _FIRST_PIECE_BYTES - CRC_BYTES
    for part in parts:
        rest = memoryview(part)
        while rest:
            piece.append(rest[:room])
            rest, room = rest[room:], room - len(piece[-1])
            if not room or len(piece) == _BUFFERS_AT_ONCE:
                yield piece
                piece, room = [], _PIECE_BYTES
    if piece:
        yield piece


def _checksum_of(piece: Iterable[memoryview], checksum: int) -> int:
    for view in piece:
        checksum = zlib.crc32(view, checksum)
    return checksum


def _write_all(descriptor: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
    """Writes buffers to a position of a file. Returns how many bytes that were."""
    rest, start = [memoryview(buffer) for buffer in buffers], position
    while rest:
        written = os.pwritev(descriptor, rest, position)
        position += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]
    return position - start
