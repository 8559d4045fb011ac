"""The messages of the wire: what one end writes the other reads, and both stay as they were recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from taskq.model.attempt import Outcome, pack_failure, pack_success, read_outcome
from taskq.model.constraints import Constraints
from taskq.model.errors import JobFailed, ProtocolError, QueueFull, TaskQError
from taskq.model.info.counts import FleetCounts, TaskCounts
from taskq.model.info.job import Attempt
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.status import (
    BrokerStatus,
    ConsumerStatus,
    FleetStatus,
    JobTotals,
    MissingConsumer,
    QueueFlow,
    QueueStatus,
    ReloadStatus,
)
from taskq.model.job import JobError, JobState, Progress
from taskq.model.spec import Spec
from taskq.protocol import counts as counts_module
from taskq.protocol import frames
from taskq.protocol.answers import ok_frame, value_of
from taskq.protocol.counts import counts_of, counts_value
from taskq.protocol.endings import Ending, ending_of, result_frame, unknown_frame, watch_frames, watched_ids
from taskq.protocol.guardian import Failed, Notice, Ready, Resolved, Setup, Stopping, pack_notice, read_notice
from taskq.protocol.items import items_frame, read_items_answer
from taskq.protocol.jobs import JobFields, info_of
from taskq.protocol.ops import Op
from taskq.protocol.requests import (
    CancelJob,
    GetCounts,
    GetJob,
    GetStatus,
    ListJobs,
    ListSchedules,
    PauseQueues,
    PauseSchedule,
    PurgeJob,
    PurgeJobs,
    PutSchedule,
    ReadItems,
    ReloadFleet,
    RemoveSchedule,
    Request,
    RetryJob,
    RetryJobs,
    RunSchedule,
    SearchJobs,
    StopFleet,
    Watch,
    read_request,
    request_frame,
)
from taskq.protocol.schedules import schedule_of, schedule_value
from taskq.protocol.status import status_of, status_value
from taskq.protocol.submissions import (
    Call,
    EarlierId,
    accepted_frame,
    flow_frame,
    ids_of,
    submission_of,
    submit_frame,
)

IDS = [bytes.fromhex(f"019c8a1f2e0b7a30a5f1d2c3b4a5968{number}") for number in range(3)]
SUCCESS = pack_success(1.5, 0.25, b"r")
ERROR = JobError("ValueError", "bad", "tb", None, None, ["line"])
FAILURE = pack_failure(1.5, 0.25, ERROR)
SPEC = Spec("add", "mail", timeout_s=5.0, priority=3)
CALLS = [Call(IDS[0], b"one"), Call(IDS[1], b"two")]
FLOW = [(Spec("add"), Call(IDS[0], b"1")), (Spec("mul"), Call(IDS[1], b"2", Constraints(after=((IDS[0], True),))))]
FAILED = JobFields(
    *(IDS[0], "add", "mail", "failed", 2, 1, None, 1.5, 2.0, FAILURE, None),
    *([(1, FAILURE, "db1"), (2, FAILURE, None)], [IDS[1]], [IDS[2]], {"tenant": "acme"}),
)
RUNNING = JobFields(IDS[0], "add", "mail", "running", 2, 1, started_at=1.5, progress=(4, 10, "half"))

#: Frames as the protocol has them: of version 1, written by the code of that time; what is told of a job, of version 2.
RECORDED = {
    "error": "0000001900000015940207a9517565756546756c6ca76e6f20726f6f6d",
    "submit": "000000540000004a970a0796a3616464a46d61696c03cb40140000000000000381a87072696f7269747903c2c3c420019c8a1f2e0b"
    "7a30a5f1d2c3b4a59680019c8a1f2e0b7a30a5f1d2c3b4a596819203036f6e6574776f",
    "flow": "000000700000002d960908c2c2929395a3616464a764656661756c7403c003c0019395a36d756ca764656661756c7403c003c0010101"
    "9c8a1f2e0b7a30a5f1d2c3b4a59680019c8a1f2e0b7a30a5f1d2c3b4a59681000000010000000100000001019c8a1f2e0b7a30a5f1d2c3b4"
    "a59680013132",
    "watch": "0000003800000034920bc430019c8a1f2e0b7a30a5f1d2c3b4a59680019c8a1f2e0b7a30a5f1d2c3b4a59681019c8a1f2e0b7a30a5f"
    "1d2c3b4a59682",
    "result": "000000390000001e930cc410019c8a1f2e0b7a30a5f1d2c3b4a59680a973756363656564656494cb3ff8000000000000cb3fd00000"
    "00000000c40172c0",
    "unknown": "0000001900000015930cc410019c8a1f2e0b7a30a5f1d2c3b4a59680a0",
    "accepted": "0000002e00000004930307019192c410019c8a1f2e0b7a30a5f1d2c3b4a59681c410019c8a1f2e0b7a30a5f1d2c3b4a59680",
    "items": "0000001100000004930309c09292c40161c40162c0",
    "last items": "0000004300000004930309c0929092a66661696c6564c42f94cb3ff8000000000000cb3fd0000000000000c096aa56616c7565"
    "4572726f72a3626164a27462c0c091a46c696e65",
    "info": "000001140000000493030ac0dc0010c410019c8a1f2e0b7a30a5f1d2c3b4a59680a3616464a46d61696ca66661696c656402"
    "01c0cb3ff8000000000000cb4000000000000000c42f94cb3ff8000000000000cb3fd0000000000000c096aa56616c756545"
    "72726f72a3626164a27462c0c091a46c696e65c0929301c42f94cb3ff8000000000000cb3fd0000000000000c096aa56616c"
    "75654572726f72a3626164a27462c0c091a46c696e65a36462319302c42f94cb3ff8000000000000cb3fd0000000000000c0"
    "96aa56616c75654572726f72a3626164a27462c0c091a46c696e65c091c410019c8a1f2e0b7a30a5f1d2c3b4a5968191c410"
    "019c8a1f2e0b7a30a5f1d2c3b4a5968281a674656e616e74a461636d65c0",
    "jobs": "000000450000000493030bc092919bc410019c8a1f2e0b7a30a5f1d2c3b4a59680a3616464a46d61696ca772756e6e696e670201c0cb"
    "3ff8000000000000c0c093040aa468616c662a",
}

WRITTEN = {
    "error": lambda: frames.error_frame(7, QueueFull("no room")),
    "submit": lambda: submit_frame(7, SPEC, CALLS, resend=False, watch=True),
    "flow": lambda: flow_frame([Op.SUBMIT_FLOW, 8, False, False], FLOW),
    "watch": lambda: b"".join(watch_frames(IDS)),
    "result": lambda: result_frame(IDS[0], JobState.SUCCEEDED, SUCCESS),
    "unknown": lambda: unknown_frame(IDS[0]),
    "accepted": lambda: accepted_frame(7, 1, {IDS[1]: IDS[0]}),
    "items": lambda: items_frame(9, [b"a", b"b"], JobState.RUNNING, None),
    "last items": lambda: items_frame(9, [], JobState.FAILED, FAILURE),
    "info": lambda: ok_frame(10, FAILED),
    "jobs": lambda: ok_frame(11, ([RUNNING.listed()], 42)),
}


def message(name: str) -> frames.Message:
    """A recorded frame."""
    [found] = frames.Decoder().feed(bytes.fromhex(RECORDED[name]))
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_frames_are_written_as_they_were_recorded(name: str) -> None:
    """Older clients and brokers, and files in the spool, go on being understood."""
    assert WRITTEN[name]().hex() == RECORDED[name]


def test_an_error_is_read() -> None:
    """As the class that it names, if that is a class of taskq."""
    with pytest.raises(QueueFull, match="no room"):
        value_of(message("error"), 7)
    assert type(frames.error_of([Op.ERROR, 7, "SystemExit", "x"])) is TaskQError
    assert not isinstance(frames.error_of([Op.ERROR, 7, "JobFailed", "x"]), JobFailed)


def test_submissions_are_read() -> None:
    """Jobs of one spec, and a workflow."""
    submitted = submission_of(None, *message("submit"))
    assert (submitted.spec, submitted.ids, submitted.payloads) == (SPEC, IDS[:2], [b"one", b"two"])
    assert (submitted.request, submitted.watch, submitted.constraints) == (7, True, None)
    first, second = submission_of(None, *message("flow")).each
    assert (first.spec.task, first.ids, first.constraints) == ("add", IDS[:1], None)
    assert second.constraints == [Constraints(after=((IDS[0], True),))]


def test_the_answer_to_a_submission_is_read() -> None:
    """The ids of the jobs that are there now."""
    [first, second] = ids_of(CALLS, value_of(message("accepted"), 7))
    assert (first, second, type(first), type(second)) == (IDS[0], IDS[0], bytes, EarlierId)
    [all_new] = frames.Decoder().feed(accepted_frame(7, 2, {}))
    assert ids_of(CALLS, value_of(all_new, 7)) == IDS[:2]


def test_endings_are_read() -> None:
    """What is watched, how it ended, and what is not known."""
    assert watched_ids(message("watch")[0][1]) == IDS
    outcome = Outcome(1.5, 0.25, b"r", None)
    assert ending_of(message("result")) == (IDS[0], Ending(JobState.SUCCEEDED, outcome))
    assert ending_of(message("unknown")) == (IDS[0], None)


def test_items_are_read() -> None:
    """Some, and the end behind the last."""
    assert read_items_answer(value_of(message("items"), 9)) == ([b"a", b"b"], None)
    end = Ending(JobState.FAILED, read_outcome(FAILURE))
    assert read_items_answer(value_of(message("last items"), 9)) == ([], end)


@pytest.mark.parametrize("answer", [None, 7, [], [[]], [[], [1]], [[], ["nonsense", None]]])
def test_other_answers_are_no_items(answer: Any) -> None:
    """An error that says so."""
    with pytest.raises(ProtocolError, match="reader of items"):
        read_items_answer(answer)


def test_what_is_known_of_a_job_is_read() -> None:
    """All of one, and less of each in a list."""
    told = info_of(value_of(message("info"), 10))
    assert (told.id, told.task, told.queue, told.state) == (IDS[0].hex(), "add", "mail", JobState.FAILED)
    assert (told.attempts, told.crashes, told.started_at, told.finished_at) == (2, 1, 1.5, 2.0)
    assert (told.duration_s, told.error) == (0.25, ERROR)
    assert told.history == [Attempt(1, 1.5, 0.25, ERROR, "db1"), Attempt(2, 1.5, 0.25, ERROR)]
    assert (told.after, told.before) == ([IDS[1].hex()], [IDS[2].hex()])
    assert told.meta == {"tenant": "acme"}
    listed: Sequence[Sequence[Any]]
    listed, place = value_of(message("jobs"), 11)
    [running] = map(info_of, listed)
    assert (place, running.state, running.progress) == (42, JobState.RUNNING, Progress(4, 10, "half"))
    assert (running.history, running.after, running.before) == ([], [], [])


STATUS = FleetStatus(
    BrokerStatus(1, 2.5, "/srv/q", 3, "stopping", 4, 0.5, 0.25, 0.125, 0.001, 0.002, 4_096, 5, 6, 0.25, 7.5),
    ReloadStatus(1, "failed", "no module"),
    [MissingConsumer(2, "no module")],
    {"mail": QueueStatus(1, 2, 3, 4)},
    5,
    ["mail"],
    JobTotals(7, 6, 5, 4, 3, 2, 1),
    [
        ConsumerStatus(
            1,
            11,
            "running",
            True,
            1,
            1,
            IDS[0].hex(),
            "add",
            0.5,
            Progress(4, 10, "half"),
            12,
            13,
            14.5,
            98,
            cpu_s=15.5,
        ),
        ConsumerStatus(3, 12, "idle", False, 0),
    ],
    flows={"mail": QueueFlow(1.5, 0.5, "growing", None, 30.0, IDS[0].hex())},
    unserved=["slow"],
)
#: How version 1 told it.
TOLD = {
    "broker": {
        "pid": 1,
        "uptime_s": 2.5,
        "directory": "/srv/q",
        "rss_bytes": 3,
        "state": "stopping",
        "restarts_of_consumers": 4,
        "longest_turn_s": 0.5,
        "longest_turn_last_minute_s": 0.25,
        "longest_turn_cpu_s": 0.125,
        "commit_mean_s": 0.001,
        "commit_longest_s": 0.002,
        "journal_bytes": 4_096,
        "clients": 5,
        "rejected_clients": 6,
        "busy_share": 0.25,
        "cpu_s": 7.5,
    },
    "reload": {"number": 1, "state": "failed", "error": "no module"},
    "not_started": [{"number": 2, "error": "no module"}],
    "queues": {"mail": {"waiting": 1, "scheduled": 2, "queued": 3, "running": 4}},
    "spooled_files": 5,
    "paused": ["mail"],
    "totals": {
        "enqueued": 7,
        "succeeded": 6,
        "failed": 5,
        "retried": 4,
        "crashed": 3,
        "cancelled": 2,
        "expired": 1,
    },
    "consumers": [
        {
            "number": 1,
            "pid": 11,
            "state": "running",
            "has_old_code": True,
            "running": 1,
            "slots": 1,
            "job_id": IDS[0].hex(),
            "task": "add",
            "running_s": 0.5,
            "progress": [4, 10, "half"],
            "rss_bytes": 12,
            "jobs_done": 13,
            "busy_s": 14.5,
            "cpu_percent": 98,
            "machine": None,
            "cpu_s": 15.5,
        },
        {
            "number": 3,
            "pid": 12,
            "state": "idle",
            "has_old_code": False,
            "running": 0,
            "slots": 1,
            "job_id": None,
            "task": None,
            "running_s": None,
            "progress": None,
            "rss_bytes": 0,
            "jobs_done": 0,
            "busy_s": 0.0,
            "cpu_percent": None,
            "machine": None,
            "cpu_s": None,
        },
    ],
    "flows": {
        "mail": {
            "came_per_s": 1.5,
            "ended_per_s": 0.5,
            "trend": "growing",
            "empty_in_s": None,
            "oldest_waiting_s": 30.0,
            "oldest_waiting_job": IDS[0].hex(),
        }
    },
    "unserved": ["slow"],
}


def test_the_status_travels_as_it_did() -> None:
    """By name, field for field."""
    assert status_value(STATUS) == TOLD
    assert status_of(TOLD) == STATUS


def test_the_status_of_another_version_is_read() -> None:
    """What is new there is left out, what it does not tell is as if nothing had happened."""
    broker = TOLD["broker"]
    assert isinstance(broker, dict)
    assert status_of({**TOLD, "engine": "postgres", "broker": {**broker, "host": "a"}}) == STATUS
    assert status_of({"broker": broker}) == FleetStatus(STATUS.broker)


@pytest.mark.parametrize("answer", [None, 7, [], {}, {"broker": {"pid": 1}}, {**TOLD, "consumers": [7]}])
def test_other_answers_are_no_status(answer: Any) -> None:
    """An error that says so."""
    with pytest.raises(ProtocolError, match="status of a fleet|BrokerStatus"):
        status_of(answer)


SCHEDULE = ScheduleInfo(
    *("nightly", "clean", "mail", "0 3 * * *", None, "UTC", "once", "allow", 0.5, False, True, 2.0, 1.0),
    IDS[0].hex(),
)
#: How version 1 told it.
TOLD_SCHEDULE = {
    "name": "nightly",
    "task": "clean",
    "queue": "mail",
    "cron": "0 3 * * *",
    "every": None,
    "timezone": "UTC",
    "misfire": "once",
    "overlap": "allow",
    "jitter": 0.5,
    "is_paused": False,
    "is_declared": True,
    "next_at": 2.0,
    "last_at": 1.0,
    "last_job_id": IDS[0].hex(),
}


def test_schedules_travel_as_they_did() -> None:
    """By name, field by field; fields of a newer broker are ignored."""
    assert schedule_value(SCHEDULE) == TOLD_SCHEDULE
    assert schedule_of({**TOLD_SCHEDULE, "calendar": "work"}) == SCHEDULE
    with pytest.raises(ProtocolError, match="not a ScheduleInfo"):
        schedule_of({"name": "nightly"})


def test_counts_travel_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, each of them once, with a place to go on; not so many at once that the broker is held up."""
    monkeypatch.setattr(counts_module, "_MOST_PAIRS", 2)
    fleet = FleetCounts()
    for number, queue in enumerate("edcba", 1):
        for minute in (100, 200):
            fleet.of("add", queue, minute).enqueued += number
    found: list[TaskCounts] = []
    after: list[str] | None = None
    sizes = []
    while True:
        portion, after = counts_of(counts_value(fleet, after))
        sizes.append(len(portion))
        found += portion
        if after is None:
            break
    assert sizes == [2, 2, 1]
    assert [(counts.queue, counts.total.enqueued) for counts in found] == [
        ("a", 10),
        ("b", 8),
        ("c", 6),
        ("d", 4),
        ("e", 2),
    ]
    assert [counts.last_hour.enqueued for counts in found] == [5, 4, 3, 2, 1]
    assert found[0].minutes.keys() == {200}
    with pytest.raises(ProtocolError, match="not counts"):
        counts_of([[["add"]], None])


#: The requests of version 1: their envelopes, and what they are read as.
REQUESTS: list[tuple[list[Any], Request]] = [
    ([26, 7, IDS[0], 5], ReadItems(IDS[0], 5)),
    ([13, 7, IDS[0], False], GetJob(IDS[0])),
    ([13, 7, IDS[0], True], GetJob(IDS[0], True)),
    ([28, 7, None, None, "mail", 9, 50, 1.5, None, 2, "x"], SearchJobs(None, None, "mail", 9, 50, 1.5, None, 2, "x")),
    ([14, 7, IDS[0], True], CancelJob(IDS[0], True)),
    ([20, 7, None, None, None, None, 50], ListJobs(None, None, None, None, 50)),
    ([20, 7, "failed", "add", "mail", IDS[0], 1], ListJobs("failed", "add", "mail", IDS[0], 1)),
    ([20, 7, "failed", "add", "mail", 99, 1], ListJobs("failed", "add", "mail", 99, 1)),
    ([21, 7, IDS[0]], RetryJob(IDS[0])),
    ([22, 7, "add", "mail", [1, 2]], RetryJobs("add", "mail", [1, 2])),
    ([22, 7, None, None, None], RetryJobs(None, None, None)),
    ([23, 7, IDS[0]], PurgeJob(IDS[0])),
    ([24, 7, "failed", None, "mail", 1.5, None], PurgeJobs("failed", None, "mail", 1.5, None)),
    ([25, 7, ["mail"], True, "ada"], PauseQueues(["mail"], True, "ada")),
    ([15, 7], GetStatus()),
    ([27, 7, None], GetCounts(None)),
    ([27, 7, ["add", "mail"]], GetCounts(["add", "mail"])),
    ([16, 7], StopFleet()),
    ([17, 7], ReloadFleet()),
    ([50, 7], ListSchedules()),
    ([51, 7, ["nightly"]], PutSchedule(["nightly"])),
    ([52, 7, "nightly"], RemoveSchedule("nightly")),
    ([53, 7, "nightly", False], PauseSchedule("nightly", False)),
    ([54, 7, "nightly", IDS[0]], RunSchedule("nightly", IDS[0])),
]


@pytest.mark.parametrize(("envelope", "request_"), REQUESTS)
def test_requests_are_written_and_read(envelope: list[Any], request_: Request) -> None:
    """What one end writes the other reads, and both as they did in version 1."""
    [(written, body)] = frames.Decoder().feed(request_frame(7, request_))
    assert (written, len(body)) == (envelope, 0)
    assert read_request(envelope) == request_
    assert type(read_request(envelope)) is type(request_)


def test_requests_of_version_1_are_read() -> None:
    """What came later has its default."""
    assert read_request([13, 7, IDS[0]]) == GetJob(IDS[0], False)


def test_a_watch_is_read() -> None:
    """It has no number."""
    assert read_request(message("watch")[0]) == Watch(IDS)


@pytest.mark.parametrize(("envelope", "request_"), REQUESTS)
def test_requests_of_another_form_are_refused(envelope: list[Any], request_: Request) -> None:
    """A field of another type, one that is missing, one too many."""
    strange = object()
    others = [[*envelope[:at], strange, *envelope[at + 1 :]] for at in range(1, len(envelope))]
    shorter = [] if isinstance(request_, GetJob) else [envelope[:-1]]
    for other in [*others, *shorter, [*envelope, strange]]:
        with pytest.raises(ProtocolError, match="no such request"):
            read_request(other)


@pytest.mark.parametrize(
    "envelope",
    [
        [11, b"short"],
        [13, 7, b"short"],
        [26, 7, IDS[0], -1],
        [20, 7, None, None, None, -1, 50],
        [20, 7, None, None, None, True, 50],
        [22, 7, None, None, [1]],
        [22, 7, None, None, [1, 1 << 62]],
        [24, 7, "failed", None, None, float("nan"), None],
        [24, 7, "failed", None, None, -1.0, None],
        [54, 7, "nightly", b"short"],
        [99, 7],
        [3],
    ],
)
def test_values_that_make_no_sense_are_refused(envelope: list[Any]) -> None:
    """Of the right type, and wrong all the same."""
    with pytest.raises(ProtocolError, match="no such request"):
        read_request(envelope)


@pytest.mark.parametrize("notice", [Ready(7, {"queued": 2}), Stopping(), Failed(3, "no module")])
def test_notices_are_read(notice: Notice) -> None:
    """What a broker tells its guardian, and that the program around it."""
    assert read_notice(pack_notice(notice)) == notice
    assert type(read_notice(pack_notice(notice))) is type(notice)


def test_what_a_guardian_hears_and_says_is_read() -> None:
    """What the application is, and what the broker is to run."""
    resolved = Resolved(0, "", "shop", "/srv/q", None, {"add": ["default", ["gpu"]]})  # type: ignore[dict-item]
    assert Resolved.read(resolved.pack()) == resolved
    setup = Setup("shop:q", "shop", "/srv/q", ["postgresql:///db", "taskq_shop"], {"consumers": 2}, 7)
    assert Setup.read(setup.pack()) == setup
