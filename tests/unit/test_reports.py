"""What consumers tell their broker: what one end writes the other reads, and nothing else is believed."""

from __future__ import annotations

from typing import Any

import pytest

from taskq.model.attempt import Attempts, pack_failure, pack_success
from taskq.model.constraints import Constraints, UniqueKey
from taskq.model.errors import ConfigError, ProtocolError
from taskq.model.job import JobError, Progress
from taskq.model.limits import MAX_CHECKPOINT_BYTES, MAX_FAILURE_BYTES, MAX_ITEMS
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.link.reports import (
    BootFailed,
    Checkpoint,
    Children,
    Declared,
    Items,
    JobsProgress,
    Ready,
    Report,
    boot_failed_frame,
    checkpoint_frame,
    children_frames,
    declared_frame,
    items_frame,
    outcomes_frame,
    progress_frame,
    read_report,
    ready_frame,
)
from taskq.protocol.ops import Op
from taskq.protocol.submissions import Call, Submission

IDS = [bytes.fromhex(f"019c8a1f2e0b7a30a5f1d2c3b4a5968{number}") for number in range(3)]
ERROR = JobError("ImportError", "no module", "tb")
GOOD, BAD = pack_success(1.5, 0.25, b"r"), pack_failure(1.5, 0.25, ERROR)
PROGRESS = {IDS[0]: Progress(4, 10.0, "half"), IDS[1]: Progress(0.5)}
SPEC = Spec("add", "mail", retries=2)
SUBMITTED = Submission(None, 0, False, SPEC, IDS[:2], [b"one", b"two"], None)

#: A frame of each kind, and what it is read as.
REPORTS: dict[str, tuple[bytes, Report]] = {
    "outcomes": (
        outcomes_frame([7, 8], [0, 1], [250, 9], [len(GOOD), len(BAD)], [GOOD, BAD]),
        Attempts([7, 8], [0, 1], [250, 9], [GOOD, BAD]),
    ),
    "joined outcomes": (
        outcomes_frame([7, 8], [0, 1], [250, 9], [len(GOOD), len(BAD)], [GOOD + BAD]),
        Attempts([7, 8], [0, 1], [250, 9], [GOOD, BAD]),
    ),
    "no outcomes": (outcomes_frame([], [], [], [], []), Attempts([], [], [], [])),
    "items": (items_frame(IDS[0], 5, [b"a", b"", b"bc"]), Items(IDS[0], 5, [b"a", b"", b"bc"])),
    "progress": (progress_frame(PROGRESS.items()), JobsProgress(PROGRESS)),
    "checkpoint": (checkpoint_frame(IDS[0], b"kept"), Checkpoint(IDS[0], b"kept")),
    "children": (
        b"".join(children_frames(7, [(SPEC, Call(IDS[0], b"one")), (SPEC, Call(IDS[1], b"two"))])),
        Children(7, SUBMITTED),
    ),
    "ready": (ready_frame(99, ["add", "send"]), Ready(99, b"add\nsend")),
    "ready, with too many tasks": (ready_frame(99, ["x" * 200] * 2_000), Ready(99)),
    "declared": (declared_frame("shop", [b"one", b"two"]), Declared("shop", [b"one", b"two"])),
    "boot failed": (boot_failed_frame(ERROR), BootFailed(ERROR)),
}


def message(name: str) -> frames.Message:
    """The one message in the frame of a kind."""
    [found] = frames.Decoder().feed(REPORTS[name][0])
    return found


@pytest.mark.parametrize("name", REPORTS)
def test_reports_are_read_as_they_were_written(name: str) -> None:
    """As a value of its own kind, since those of two kinds may be equal as tuples."""
    read = read_report(*message(name))
    assert read == REPORTS[name][1]
    assert type(read) is type(REPORTS[name][1])


def test_children_that_do_not_fit_one_frame_are_told_in_their_order() -> None:
    """A unique job goes alone."""
    flow = [
        (SPEC, Call(IDS[0], b"one")),
        (SPEC, Call(IDS[1], b"two", Constraints(unique=UniqueKey("k")))),
        (SPEC, Call(IDS[2], b"three", Constraints(after=((IDS[0], True),)))),
    ]
    reports = [read_report(*told) for frame in children_frames(7, flow) for told in frames.Decoder().feed(frame)]
    assert [(report.number, report.jobs.ids) for report in reports if isinstance(report, Children)] == [
        (7, IDS[:1]),
        (7, IDS[1:2]),
        (7, IDS[2:]),
    ]


@pytest.mark.parametrize("name", REPORTS)
def test_reports_of_another_form_are_refused(name: str) -> None:
    """A field of another type, one that is missing, one too many; payloads that end early."""
    envelope, body = message(name)
    strange = object()
    others = [[*envelope[:at], strange, *envelope[at + 1 :]] for at in range(1, len(envelope))]
    shorter = [envelope[:-1]] if len(envelope) > 1 else []
    for other in [*others, *shorter, [*envelope, strange]]:
        with pytest.raises(ProtocolError, match="consumers do not send"):
            read_report(other, body)
    if body and name != "checkpoint":
        with pytest.raises(ProtocolError):
            read_report(envelope, body[:-1])


#: Of the right types, and wrong all the same.
NONSENSE: dict[str, tuple[list[Any], bytes]] = {
    "too few verdicts": ([Op.OUTCOMES, [1, 2], [0], [5, 5], [1, 1]], b"ab"),
    "too few outcomes": ([Op.OUTCOMES, [1, 2], [0, 0], [5, 5], [2]], b"ab"),
    "lists as numbers": ([Op.OUTCOMES, [1, [2]], [0, 0], [5, 5], [1, 1]], b"ab"),
    "truths as numbers": ([Op.OUTCOMES, [1, True], [0, 0], [5, 5], [1, 1]], b"ab"),
    "texts as durations": ([Op.OUTCOMES, [1, 2], [0, 0], [5, "5"], [1, 1]], b"ab"),
    "texts as lengths": ([Op.OUTCOMES, [1, 2], [0, 0], [5, 5], [1, "1"]], b"ab"),
    "lengths that end early": ([Op.OUTCOMES, [1, 2], [0, 0], [5, 5], [1, 0]], b"ab"),
    "items before the first": ([Op.ITEMS, IDS[0], -1, [1]], b"a"),
    "items behind the last": ([Op.ITEMS, IDS[0], MAX_ITEMS + 1, [1]], b"a"),
    "progress of a text": ([Op.PROGRESS, [["job", 4, 10, ""]]], b""),
    "progress without a note": ([Op.PROGRESS, [[IDS[0], 4, 10]]], b""),
    "progress that is no row": ([Op.PROGRESS, [7]], b""),
    "progress below 0": ([Op.PROGRESS, [[IDS[0], -4, 10, ""]]], b""),
    "progress that is no number": ([Op.PROGRESS, [[IDS[0], float("nan"), None, ""]]], b""),
    "an empty checkpoint": ([Op.CHECKPOINT, IDS[0]], b""),
    "a large checkpoint": ([Op.CHECKPOINT, IDS[0]], bytes(MAX_CHECKPOINT_BYTES + 1)),
    "no children": ([Op.CHILDREN, 7, [], 0], b""),
    "children without a spec": ([Op.CHILDREN, 7, [[[], None, 1]], 0], IDS[0] + bytes(4)),
    "children that are not there": ([Op.CHILDREN, 7, [[SPEC.to_wire(), None, 2]], 0], IDS[0] + bytes(4)),
    "an error that is none": ([Op.BOOT_FAILED], GOOD),
    "an error of another form": ([Op.BOOT_FAILED], b"\xc1"),
    "a large error": ([Op.BOOT_FAILED], BAD + bytes(MAX_FAILURE_BYTES)),
    "what brokers send": ([Op.OK, 7, None], b""),
    "what clients send": ([Op.STATUS, 7], b""),
    "what was sent once": ([Op.STARTED, 7], b""),
    "an unknown operation": ([99], b""),
    "a large number": ([1 << 63], b""),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_reports_that_make_no_sense_are_refused(what: str) -> None:
    """As a whole: nobody who sends that is to be trusted with a part of it."""
    envelope, body = NONSENSE[what]
    with pytest.raises((ProtocolError, ConfigError)) as refused:
        read_report(envelope, memoryview(body))
    assert len(str(refused.value)) < 300
