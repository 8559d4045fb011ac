"""The calls of a client, step by step and without I/O: what each wants done, and what it makes of the results."""

from __future__ import annotations

import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from taskq.client.transport.absence import Absence
from taskq.client.transport.conversation import Conversation
from taskq.client.transport.operations import DirectoryQueue
from taskq.client.transport.verbs import Answer, Ask, Next, Open, Operation, Reach, Send, Sleep, UseDisk
from taskq.model.attempt import pack_success
from taskq.model.errors import BehindSpool, BrokerUnavailable, ProtocolError, QueueFull, ResultTimeout
from taskq.model.job import JobState, new_job_ids
from taskq.model.limits import MAX_JOBS_PER_FRAME
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.answers import BrokerSilent, ConnectionLost, ok_frame
from taskq.protocol.endings import Ending, result_frame
from taskq.protocol.frames import Message, error_frame
from taskq.protocol.ops import Op
from taskq.protocol.requests import GetStatus
from taskq.protocol.submissions import Call
from taskq.system.clock import SYSTEM_CLOCK
from taskq.system.directory import Directory

SPEC = Spec("add")


class Line:
    """A connection to nowhere."""

    def __init__(self, is_fresh: bool = True) -> None:
        self.talk = Conversation()
        self.talk.hear(frames.hello(1))
        self.is_fresh = is_fresh
        self.left = 0

    def leave(self) -> None:
        self.left += 1


def message(frame: bytes) -> Message:
    """What a client hears."""
    [heard] = frames.Decoder().feed(frame)
    return heard


def finish(operation: Operation[Any], value: Any) -> Any:
    """The result of an operation whose last wish this grants."""
    with pytest.raises(StopIteration) as end:
        operation.send(value)
    return end.value.value


@pytest.fixture
def queue(tmp_path: Path) -> DirectoryQueue:
    directory = Directory(tmp_path / "queue")
    return DirectoryQueue(directory, Absence(directory, 5.0), SYSTEM_CLOCK)


def calls(number: int) -> list[Call]:
    return [Call(job_id, b"payload") for job_id in new_job_ids(number)]


# -- submitting


def test_one_job_is_one_question(queue: DirectoryQueue) -> None:
    [call], line = calls(1), Line()
    submitting = queue.submit(SPEC, [call])
    assert submitting.send(None) == Open()
    asked = submitting.send(line)
    assert isinstance(asked, Ask)
    assert finish(submitting, message(ok_frame(asked.number, 1))) == [call.id]
    assert line.left == 1


def test_four_frames_are_on_their_way_before_the_first_answer_is_waited_for(queue: DirectoryQueue) -> None:
    many, line = calls(6 * MAX_JOBS_PER_FRAME), Line()
    submitting = queue.submit(SPEC, iter(many))
    verb = submitting.send(None)
    done: list[str] = []
    with pytest.raises(StopIteration) as end:
        verb = submitting.send(line)
        while True:
            done.append(type(verb).__name__)
            if isinstance(verb, Answer):
                verb = submitting.send(message(ok_frame(verb.number, 1)))
            else:
                assert isinstance(verb, Send)
                verb = submitting.send(None)
    assert end.value.value == [call.id for call in many]
    assert done[:5] == ["Send"] * 4 + ["Answer"]
    assert done.count("Send") == done.count("Answer") == 6


def test_what_has_no_answer_when_the_broker_dies_is_sent_again_and_the_rest_after_it(queue: DirectoryQueue) -> None:
    many, line = calls(3 * MAX_JOBS_PER_FRAME), Line()
    submitting = queue.submit(SPEC, iter(many))
    submitting.send(None)
    sent = submitting.send(line)
    assert isinstance(sent, Send)
    assert submitting.throw(ConnectionLost("gone")) == Open(must_be_fresh=True)
    resent: list[bytes] = []
    verb: Any = submitting.send(fresh := Line())
    with pytest.raises(StopIteration) as end:
        while True:
            envelope, _ = message(verb.frame)
            assert envelope[3] is True, "the broker is told that it may know these"
            resent.append(envelope[5])
            verb = submitting.send(message(ok_frame(verb.number, 1)))
            assert verb == Open(must_be_fresh=True)
            verb = submitting.send(fresh)
    assert end.value.value == [call.id for call in many]
    assert b"".join(resent) == b"".join(call.id for call in many)
    assert line.left == 1


def test_without_a_broker_jobs_go_to_the_spool(queue: DirectoryQueue) -> None:
    [call] = calls(1)
    submitting = queue.submit(SPEC, [call])
    submitting.send(None)
    assert submitting.throw(ConnectionLost("refused")) == Open(must_be_fresh=True)
    spooling = submitting.throw(ConnectionLost("refused"))
    assert isinstance(spooling, UseDisk)
    assert spooling.args[0] == [call]
    assert finish(submitting, None) == [call.id]


def test_a_broker_that_is_behind_its_spool_leaves_jobs_to_that(queue: DirectoryQueue) -> None:
    [call] = calls(1)
    submitting = queue.submit(SPEC, [call])
    submitting.send(None)
    asked = submitting.send(Line())
    assert isinstance(asked, Ask)
    spooling = submitting.send(message(error_frame(asked.number, BehindSpool("older jobs first"))))
    assert isinstance(spooling, UseDisk)
    assert finish(submitting, None) == [call.id]


def test_who_waits_for_room_tries_again_after_longer_and_longer_pauses(queue: DirectoryQueue) -> None:
    submitting = queue.submit(SPEC, calls(1), waits_for_room=True)
    assert submitting.send(None) == Open()
    pauses: list[float] = []
    for _ in range(20):
        asked = submitting.send(Line())
        assert isinstance(asked, Ask)
        pause = submitting.send(message(error_frame(asked.number, QueueFull("full"))))
        assert isinstance(pause, Sleep)
        pauses.append(pause.seconds)
        assert submitting.send(None) == Open()
    assert pauses[0] == 0.005
    assert pauses[-1] == 0.25
    assert all(before <= after for before, after in pairwise(pauses))


# -- waiting and asking


def test_whoever_waits_goes_on_with_the_next_broker(queue: DirectoryQueue) -> None:
    [call], line = calls(1), Line()
    waiting = queue.wait(call.id, None)
    assert waiting.send(None) == Reach(None, [call.id])
    assert waiting.send(line) == Next(line, None)
    assert waiting.throw(ConnectionLost("gone")) == Reach(None, [call.id])
    assert line.left == 1
    waiting.send(Line())
    outcome = pack_success(1.0, 0.1, None)
    ending = finish(waiting, [message(result_frame(call.id, JobState.SUCCEEDED, outcome))])
    assert isinstance(ending, Ending)
    assert ending.state is JobState.SUCCEEDED


def test_a_wait_ends_in_time_with_and_without_a_broker(queue: DirectoryQueue) -> None:
    [call] = calls(1)
    for is_reached in (True, False):
        waiting = queue.wait(call.id, 3.0)
        assert isinstance(waiting.send(None), Reach)
        with pytest.raises(ResultTimeout, match=f"{call.id.hex()} has not ended within 3 s"):
            if is_reached:
                waiting.send(Line())
                waiting.throw(TimeoutError())
            else:
                waiting.send(None)


def test_a_job_that_a_new_broker_runs_again_is_cancelled_again(queue: DirectoryQueue) -> None:
    [call] = calls(1)
    cancelling = queue.cancel(call.id, True)
    verb: Any = cancelling.send(None)
    for _ in range(3):
        assert isinstance(verb, Open)
        verb = cancelling.send(Line())
        verb = cancelling.send(message(ok_frame(verb.number, None)))  # it is being stopped
        assert isinstance(verb, Reach)
        assert isinstance(cancelling.send(Line()), Next)
        verb = cancelling.throw(TimeoutError())
    asked: Any = cancelling.send(Line())
    assert finish(cancelling, message(ok_frame(asked.number, True))) is True


def test_a_connection_that_was_idle_is_renewed_once(queue: DirectoryQueue) -> None:
    """The broker may have closed it since; one that is new and is lost leads to no broker."""
    [call] = calls(1)
    asking = queue.retry(call.id)
    assert asking.send(None) == Open()
    asking.send(Line(is_fresh=False))
    assert asking.throw(ConnectionLost("closed")) == Open(must_be_fresh=True)
    asking.send(Line())
    with pytest.raises(BrokerUnavailable, match="no fleet answers"):
        asking.throw(ConnectionLost("closed"))


# -- the conversation


def test_a_fleet_that_has_come_up_while_another_was_asked_is_asked(queue: DirectoryQueue) -> None:
    queue.directory.create()
    queue.directory.journal.touch()
    line = Line()
    asking = queue.ask(GetStatus())
    assert asking.send(None) == Open(is_looking=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(queue.absence.path))
        listener.listen()
        assert asking.throw(ConnectionLost("nobody listens")) == Open(is_looking=True)
    asked = asking.send(line)
    assert isinstance(asked, Ask)
    assert finish(asking, message(ok_frame(asked.number, {"is": "told"}))) == {"is": "told"}


def test_a_broker_that_is_silent_is_not_asked_again(queue: DirectoryQueue) -> None:
    queue.directory.create()
    queue.directory.journal.touch()
    asking = queue.ask(GetStatus())
    asking.send(None)
    with pytest.raises(BrokerUnavailable):
        asking.throw(BrokerSilent("no answer"))


def test_answers_find_their_requests_in_any_order() -> None:
    talk = Line().talk
    numbers = [talk.request(GetStatus())[0] for _ in range(3)]
    for number in reversed(numbers):
        talk.hear(ok_frame(number, number * 10))
    assert set(talk.answers) == set(numbers)
    assert not talk.unanswered


def test_it_is_over_when_nothing_can_come_any_more() -> None:
    line = Line()
    talk = line.talk
    [call] = calls(1)
    assert talk.is_over
    number, _ = talk.submit(SPEC, [call], watch=True)
    assert not talk.is_over
    talk.hear(ok_frame(number, 1))
    talk.answers.clear()
    assert not talk.is_over, "the ending is still to come"
    talk.hear(result_frame(call.id, JobState.SUCCEEDED, b""))
    talk.endings.clear()
    assert talk.is_over


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    talk = Line().talk
    number, _ = talk.request(GetStatus())
    talk.forget(number)
    talk.hear(ok_frame(number, 1))
    assert talk.is_over


@pytest.mark.parametrize(
    "frame",
    [
        ok_frame(1, 1),  # nobody has asked
        frames.frame([Op.OK, "1", 1]),
        frames.frame([Op.OK]),
        frames.frame([Op.STARTED, 1]),
        b"220 mail.example.org ESMTP\r\n",
    ],
)
def test_what_is_out_of_turn_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError):
        Line().talk.hear(frame)


def test_a_broker_says_hello_first() -> None:
    with pytest.raises(ProtocolError):
        Conversation().hear(result_frame(bytes(16), JobState.SUCCEEDED, b""))
