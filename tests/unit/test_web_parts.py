"""The pure parts of the dashboard: cron in words, rates, what to look at, and where the steps of a workflow stand."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.job import JobArguments, JobInfo
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.status import BrokerStatus, ConsumerStatus, FleetStatus, MachineStatus, QueueFlow, QueueStatus
from taskq.model.info.why import Reason, WhyInfo
from taskq.model.info.words import time_text
from taskq.model.job import JobState
from taskq.telemetry.record import utc_text
from taskq.web.backlog import Standing, standing_queues, told_of
from taskq.web.charts import Series, highest
from taskq.web.graph import graph_of, layers_of
from taskq.web.logs import in_order
from taskq.web.news import News, explained
from taskq.web.rules.concerns import Concern, concerns_of
from taskq.web.rules.cron import in_words, next_times
from taskq.web.rules.keeping_up import verdict_of
from taskq.web.rules.rates import flow_of
from taskq.web.rules.shares import queued_by_task
from taskq.web.texts import as_json, code, line, linked, since

#: The end of a minute, in seconds since 1970.
NOW = 1_000_000 * 60 + 59.0


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("15 * * * *", "hourly, 15 minutes past"),
        ("@hourly", "hourly, 0 minutes past"),
        ("0 3 * * *", "daily at 03:00"),
        ("@daily", "daily at 00:00"),
        ("30 */2 * * *", "every 2 hours, 30 minutes past"),
        ("0 9 * * 1-5", "Monday to Friday at 09:00"),
        ("0 9 * * mon,fri", "every Monday and Friday at 09:00"),
        ("0 9 * * 7", "every Sunday at 09:00"),
        ("5 4 1 * *", "on day 1 of each month at 04:05"),
        ("0 3 1-7 * 1", ""),
        ("0 3 * * 1#2", ""),
        ("0 3,4 * * *", ""),
        ("0 0 3 * * *", ""),
        ("", ""),
    ],
)
def test_cron_in_words(cron: str, words: str) -> None:
    assert in_words(cron) == words


def test_the_next_times() -> None:
    def info(next_at: float | None, cron: str | None, every: float | None, zone: str = "UTC") -> ScheduleInfo:
        return ScheduleInfo(
            "s", "t", "q", cron, every, zone, "once", "allow", 0.0, next_at is None, True, next_at, None, None
        )

    assert next_times(info(90.0, None, 30.0)) == [90.0, 120.0, 150.0]
    assert next_times(info(10_800.0, "0 3 * * *", None)) == [10_800.0, 97_200.0, 183_600.0]
    assert next_times(info(10_800.0, "0 3 * * *", None, "Not/There")) == [10_800.0]
    assert next_times(info(None, "0 3 * * *", None)) == []


def counted(**minutes: tuple[int, int, int]) -> TaskCounts:
    """A task; for each minute before the present one, by its number: jobs that came in, that succeeded, that failed."""
    made = {
        1_000_000 - int(ago[1:]): Counts(enqueued=came, succeeded=good, failed=bad)
        for ago, (came, good, bad) in minutes.items()
    }
    hour = Counts()
    for each in made.values():
        hour.merge(each)
    return TaskCounts("resize", "images", hour, hour, made)


def test_rates_and_when_a_backlog_is_worked_off() -> None:
    flow = flow_of([counted(m0=(60, 120, 0), m1=(60, 100, 20), m30=(600, 0, 0))], NOW)
    assert (len(flow.minutes), flow.minutes[-1], flow.enqueued[-1], sum(flow.enqueued)) == (60, 1_000_000, 60, 720)
    assert flow.came_a_minute == pytest.approx(120 / 5.98, rel=0.01)
    assert flow.ended_a_minute == pytest.approx(240 / 5.98, rel=0.01)
    assert flow.empty_in_s(201) == pytest.approx(600, rel=0.01)
    assert flow.empty_in_s(0) == 0
    assert flow_of([counted(m0=(60, 60, 0))], NOW).empty_in_s(5) is None
    young = flow_of([counted(m0=(30, 0, 0))], NOW)
    assert young.came_a_minute == pytest.approx(30.5, rel=0.01), "a queue of a minute ago is not taken for a slow one"
    assert flow_of([], NOW).came_a_minute == 0


def test_what_to_look_at() -> None:
    well = FleetStatus(BrokerStatus(1, 1.0, "/q", 1), consumers=[ConsumerStatus(1, 2, "idle", False, 0)])
    quiet = flow_of([], NOW)
    assert concerns_of(well, [], quiet) == []
    assert "No consumer is ready" in concerns_of(FleetStatus(well.broker), [], quiet)[0].told
    stopped = FleetStatus(BrokerStatus(None, None, "/q", None, "stopped"), spooled_files=2)
    assert [concern.tone for concern in concerns_of(stopped, [], quiet)] == ["bad", "look"]
    often, seldom = counted(m0=(10, 9, 1)), counted(m0=(100, 99, 1))
    assert "of 10 that ended" in concerns_of(well, [often], quiet)[0].told
    assert concerns_of(well, [seldom], quiet) == []
    assert concerns_of(well, [replace(often, task="re size")], quiet)[0].path == "/failures?task=re+size&since=1h"
    since_when = counted(m30=(10, 10, 0), m20=(1, 0, 1), m0=(9, 8, 1))
    assert concerns_of(well, [since_when], quiet)[0].since == (1_000_000 - 20) * 60.0
    flows = {"q": QueueFlow(2.0, 1.0, "growing", None, 30.0), "w": QueueFlow(0.0, 0.0, "steady", None, 700.0)}
    stands = replace(well, flows=flows, queues={"q": QueueStatus(queued=100), "w": QueueStatus(queued=1)})
    assert [(each.told, each.path, each.since) for each in concerns_of(stands, [], quiet)] == [
        (
            "100 jobs of queue q wait, and they do not get fewer: 120 a minute come in, and 60 end.",
            "/jobs?queue=q&state=queued",
            NOW - 30,
        ),
        ("1 job of queue w waits: 0 a minute come in, and 0 end.", "/jobs?queue=w&state=queued", NOW - 700),
    ]
    assert [each.kind for each in concerns_of(replace(stands, paused=["q", "w"]), [], quiet)] == ["paused", "paused"]
    [died] = concerns_of(well, [replace(often, last_hour=Counts(crashed=2))], quiet)
    assert (died.told, died.path) == ("The process of task resize died 2 times in the last hour.", "/consumers#died")
    slow = replace(well, broker=replace(well.broker, busy_share=0.99))
    assert concerns_of(slow, [], quiet)[0].told.startswith("The broker: it hardly keeps up: its loop is busy for 99 %")
    behind = FleetStatus(well.broker, queues={"q": QueueStatus(queued=500)}, consumers=well.consumers)
    assert "500 jobs wait" in concerns_of(behind, [], flow_of([counted(m0=(60, 60, 0))], NOW))[0].told
    paused = FleetStatus(well.broker, queues=behind.queues, paused=["q"], consumers=well.consumers)
    assert [concern.told for concern in concerns_of(paused, [], quiet)] == ["Queue q is paused: 500 jobs waiting."]
    unserved = FleetStatus(well.broker, queues={"q": QueueStatus(1, 1)}, unserved=["q"], consumers=well.consumers)
    assert [concern.told for concern in concerns_of(unserved, [], quiet)] == [
        "No consumer serves queue q: 2 jobs will not run."
    ]
    machines = replace(unserved, machines=[MachineStatus("here", 1, "running", 1.0, 1, 0)])
    assert concerns_of(machines, [], quiet) == concerns_of(unserved, [], quiet), "no machine serves it"


def test_steps_stand_right_of_those_before_them() -> None:
    def step(job_id: str, after: str = "", before: str = "") -> JobInfo:
        return JobInfo(job_id, "t", "q", JobState.WAITING, 0, 0, 0.0, after=list(after), before=list(before))

    jobs = {each.id: each for each in (step("d", "bc"), step("b", "a"), step("c", before="d"), step("a", before="bx"))}
    assert [sorted(layer) for layer in layers_of(jobs)] == [["a", "c"], ["b"], ["d"]]
    graph = graph_of(jobs)
    assert len(graph.edges) == 3, "x is not among them; a line is there once, whoever names it"
    assert len({(x, y) for x, y, _ in graph.boxes}) == 4
    assert all(0 <= x < graph.width and 0 <= y < graph.height for x, y, _ in graph.boxes)


def test_sentences_are_escaped() -> None:
    assert code("<b> `taskq <i>`") == "&lt;b&gt; <code>taskq &lt;i&gt;</code>"
    job_id = "0" * 32

    def link(path: str, part: str) -> str:
        return f"{path}/{part}?a&b"

    assert linked(f"after <{job_id}>", link) == (
        f'after &lt;<a class="id" href="/jobs/{job_id}?a&amp;b" title="{job_id}">{job_id}</a>&gt;'
    )
    assert ">00000000</a>" in linked(job_id, link, is_brief=True)
    assert linked("on consumer 12.", link) == 'on <a href="/consumers/12?a&amp;b">consumer 12</a>.'
    assert line("`<b>` consumer 12345", link) == "`&lt;b&gt;` consumer 12345", "a line of the log is as it is"


def test_times_have_units() -> None:
    times = (0.0000805, 0.0012, 0.34, 1.0, 1.25, 12.3, 65.0, 7_200.0)
    assert [time_text(each) for each in times] == [
        "80 µs",
        "1.2 ms",
        "340 ms",
        "1 s",
        "1.2 s",
        "12 s",
        "1m 05s",
        "2h 00m",
    ]


def test_a_moment_from_which_on_something_lasts() -> None:
    assert re.fullmatch(r'<time datetime="1970-01-01T00:00:01.500Z" data-since>since [\d: -]+</time>', since(1.5))
    assert since(None) == ""


def test_what_is_known_of_the_causes() -> None:
    job_id = "0" * 32
    known = News(
        errors={"resize": f"ValueError: no file (job {job_id})"},
        paused={"mail": (NOW - 600, "ann@db1")},
        standing={"slow": Standing(job_id, True, NOW - 60, "All consumers are busy.")},
    )
    concerns = [
        Concern("bad", "...", "/failures", "resize", "failed", NOW - 120),
        Concern("look", "...", "/jobs", "mail", "paused"),
        Concern("look", "...", "/jobs", "slow", "waits", NOW - 30),
        Concern("look", "...", "/jobs", "other", "waits", NOW - 30),
        Concern("bad", "...", "/jobs", "slow", "unserved", why="Start one."),
        Concern("bad", "...", "/broker"),
    ]
    assert [(each.since, each.why) for each in explained(concerns, known)] == [
        (NOW - 120, f"ValueError: no file (job {job_id})"),
        (NOW - 600, "Paused by ann@db1."),
        (NOW - 60, f"Job {job_id} waits longest. All consumers are busy."),
        (NOW - 30, ""),
        (NOW - 60, "Start one."),
        (None, ""),
    ]


def test_queues_that_stand() -> None:
    flows = {
        "paused": QueueFlow(0.0, 0.0, "steady", None, 60.0, "a"),
        "quick": QueueFlow(50.0, 50.0, "steady", None, 0.1, "b"),
        "long": QueueFlow(5.0, 6.0, "shrinking", 900.0, 300.0, "c"),
        "empty": QueueFlow(1.0, 1.0),
        "of another version": QueueFlow(0.0, 0.0, "steady", None, 60.0),
    }
    status = FleetStatus(BrokerStatus(1, 1.0, "/q", 1), flows=flows)
    told = [tuple(queue) for queue in standing_queues(status)]
    assert told == [("long", "c", 300.0, True), ("paused", "a", 60.0, False)], "those first that wait longest"


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ([Reason("paused")], "Queue q is paused"),
        ([Reason("behind", ahead=3, consumers=2, busy=1)], "About 3 jobs of its queue go first."),
        ([Reason("behind", consumers=2, busy=2)], "It is next, and all 2 consumers for it are busy."),
        ([Reason("behind", consumers=2, busy=1)], ""),
        ([Reason("sent", consumer=2, ahead=1)], "Consumer 2 has it"),
        ([Reason("running", attempt=1, consumer=1)], ""),
        ([Reason("ended")], ""),
        ([], ""),
    ],
)
def test_what_is_in_the_way_of_the_oldest_job(reasons: list[Reason], told: str) -> None:
    text = told_of(WhyInfo("0" * 32, "t", "q", JobState.QUEUED, reasons), NOW)
    assert text.startswith(told)
    assert bool(text) == bool(told)


@pytest.mark.parametrize(
    ("broker", "tone", "told"),
    [
        ({"commit_mean_s": 0.002, "busy_share": 0.034}, "good", "It keeps up: a commit takes 2 ms, and its loop is "),
        ({"busy_share": 0.001}, "good", "nothing was written in the last minute, and its loop is busy for less than"),
        ({"commit_mean_s": 0.3}, "look", "It hardly keeps up: a commit takes 300 ms, since the disk is slow"),
        (
            {"busy_share": 0.95, "longest_turn_last_minute_s": 2.0},
            "look",
            "for 95 % of the time, and it answered nobody",
        ),
        ({"state": "stopped"}, "bad", "No fleet runs"),
    ],
)
def test_whether_the_broker_keeps_up(broker: dict[str, Any], tone: str, told: str) -> None:
    verdict = verdict_of(FleetStatus(BrokerStatus(1, 1.0, "/q", 1, **broker)))
    assert (verdict.tone, told in verdict.told) == (tone, True), verdict


def test_a_job_has_started_before_it_prints() -> None:
    def event(name: str, at: float, attempt: int = 1) -> dict[str, Any]:
        return {"event": name, "timestamp": utc_text(at), "attempt": attempt}

    written = [
        event("job.log", 10.01),
        event("job.started", 10.15),
        event("job.retrying", 11.0),
        event("job.started", 12.2, 2),
        event("job.started", 13.2, 3),
    ]
    told = in_order(written, {1: 10.0, 2: 12.0})
    assert [(each["event"], each["timestamp"]) for each in told] == [
        ("job.started", utc_text(10.0)),
        ("job.log", utc_text(10.01)),
        ("job.retrying", utc_text(11.0)),
        ("job.started", utc_text(12.0)),
        ("job.started", utc_text(13.2)),
    ]


def test_the_top_of_a_scale() -> None:
    assert highest([Series("good", "good", [1, 5, 2]), Series("bad", "bad", [4, 0, 4])]) == 6
    assert highest([]) == 0


def test_arguments_are_edited_only_if_json_holds_them() -> None:
    assert as_json(JobArguments([1, "ü"], {"a": None})) == ('[1, "ü"]', '{"a": null}')
    for odd in ((1, 2), {1: 2}, b"x", {1}):
        assert as_json(JobArguments([odd])) is None
    assert as_json(JobArguments(left_out="it is not kept")) == ("[]", "{}")


def test_how_many_jobs_of_a_queue_are_those_of_a_task() -> None:
    def task(name: str, came: int, good: int) -> TaskCounts:
        total = Counts(enqueued=came, succeeded=good)
        return TaskCounts(name, "q", total, total, {})

    counts = [task("hit", 800, 300), task("index", 500, 0)]
    assert queued_by_task(QueueStatus(queued=998, running=2), counts, {"hit": 2}) == {"hit": 498, "index": 500}
    assert queued_by_task(QueueStatus(queued=990, running=2), counts, {"hit": 2}) is not None, "some ended meanwhile"
    assert queued_by_task(QueueStatus(queued=900), counts, {}) is None, "some were removed by hand"
    assert queued_by_task(QueueStatus(queued=998, scheduled=2), counts, {}) is None
    assert queued_by_task(QueueStatus(queued=500), [task("a", 10, 30), task("b", 520, 0)], {}) is None, (
        "retried by hand"
    )
