"""What it takes to hand in jobs, beside a broker's answer: the files of their large arguments, patience while a queue
is full, and the spool while no broker answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from errno import EDQUOT, ENOSPC
from typing import TypeVar

from taskq.client.transport.absence import Absence
from taskq.client.transport.verbs import Answer, Line, Operation, Sleep, UseDisk
from taskq.model.errors import BrokerUnavailable, DirectoryError, EnqueueError, QueueFull, StoreFull
from taskq.protocol.answers import value_of
from taskq.protocol.frames import Message
from taskq.protocol.payloads.files import PayloadFiles
from taskq.protocol.spooler import spooler_of
from taskq.protocol.submissions import Call, filed_among, ids_of
from taskq.system.directory import Directory

T = TypeVar("T")

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.25


class CallFiles:
    """The files of one directory. Its methods are operations."""

    def __init__(self, payloads: PayloadFiles) -> None:
        self._payloads = payloads

    def write(self, line: Line, calls: Iterable[Call]) -> Operation[None]:
        """Writes the files of calls, those that are not there yet.

        Args:
            line: where they are going to be handed in: its fleet says what files must survive.

        Raises:
            StoreFull: the disk is full.
            BrokerUnavailable: the folder cannot be written.
        """
        filed = filed_among(calls)
        if not filed:
            return
        try:
            yield UseDisk(self._payloads.write, (filed, line.talk.syncs_files))
        except DirectoryError as error:
            raise BrokerUnavailable(str(error)) from error

    def remove(self, calls: Iterable[Call]) -> Operation[None]:
        """Removes the files of calls that were refused."""
        filed = filed_among(calls)
        if filed:
            yield UseDisk(self._payloads.remove, (filed,))

    def ids_of(self, calls: Sequence[Call], message: Message, number: int) -> Operation[list[bytes]]:
        """Reads the answer to a submission: the ids of the jobs that stand for its calls now. Removes the files of
        those calls for which an earlier job stands. Raises what the answer says."""
        answer = value_of(message, number)
        ids = ids_of(calls, answer)
        if isinstance(answer, list):
            accepted = set(ids)
            yield from self.remove([call for call in calls if call.id not in accepted])
        return ids

    def remove_refused(self, line: Line, unanswered: Iterable[tuple[int, list[Call]]]) -> Operation[None]:
        """After a frame that was refused: removes the files of the frames behind it, if these are refused as well."""
        for number, calls in unanswered:
            if number and filed_among(calls):
                try:
                    yield from self.ids_of(calls, (yield Answer(line, number)), number)
                except EnqueueError:
                    yield from self.remove(calls)


class ToSpool:
    """Writes jobs to the spool of a directory."""

    def __init__(self, directory: Directory, absence: Absence, payloads: PayloadFiles) -> None:
        """
        Args:
            absence: what is known of the fleet that does not answer.
        """
        self._directory = directory
        self._absence = absence
        self._payloads = payloads

    def write(self, calls: Sequence[Call], frame: bytes) -> None:
        """Writes the frame that submits some calls; it is durable when this returns, with their large arguments.

        Raises:
            StoreFull: the disk is full.
            BrokerUnavailable: the spool cannot be written.
        """
        filed = filed_among(calls)
        try:
            self._payloads.write(filed, True)  # whatever a fleet promises: nobody knows which one takes them
            spooler_of(self._directory).add([call.id for call in calls], frame)
            # no broker says whether the files are still there: one that was removed since, because it seemed to be left
            # behind, is written again; those that are named in the spool stay
            self._payloads.write(filed, True)
        except DirectoryError as error:
            told = f"{self._absence.describe_briefly()}, and the job cannot be spooled: {error}"
            raise BrokerUnavailable(told) from error
        except OSError as error:
            reason, folder = self._absence.describe_briefly(), self._directory.spool
            if error.errno in (ENOSPC, EDQUOT):
                raise StoreFull(f"{reason}, and the disk of {folder} is full") from error
            raise BrokerUnavailable(
                f"{reason}, and the job cannot be spooled to {folder} ({error.strerror}): "
                "make that folder writable, or start a fleet with `taskq worker module:app`"
            ) from error


def with_room(submit: Callable[[], Operation[T]], waits_for_room: bool) -> Operation[T]:
    """Submits jobs; tries again while the queue is full, if that is wanted."""
    for pause_s in pauses_s():
        try:
            return (yield from submit())
        except QueueFull:
            if not waits_for_room:
                raise
        yield Sleep(pause_s)
    raise AssertionError  # pauses have no end


def pauses_s() -> Iterator[float]:
    """The pauses of one who waits for room in a queue: from 5 ms to 0.25 s."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
