"""The pure parts of the dashboard: cron in words, rates, what to look at, and where the steps of a workflow stand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskq.model.info.counts import Counts, TaskCounts
from taskq.model.info.job import JobArguments, JobInfo
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.status import BrokerStatus, ConsumerStatus, FleetStatus, MachineStatus, QueueStatus
from taskq.model.job import JobState
from taskq.web.concerns import concerns_of
from taskq.web.cron import in_words, next_times
from taskq.web.graph import graph_of, layers_of
from taskq.web.rates import flow_of
from taskq.web.texts import as_json, code, linked

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
    behind = FleetStatus(well.broker, queues={"q": QueueStatus(queued=500)}, consumers=well.consumers)
    assert "500 jobs wait" in concerns_of(behind, [], flow_of([counted(m0=(60, 60, 0))], NOW))[0].told
    paused = FleetStatus(well.broker, queues=behind.queues, paused=["q"], consumers=well.consumers)
    assert [concern.told for concern in concerns_of(paused, [], quiet)] == ["Queue q is paused: 500 jobs waiting."]
    unserved = FleetStatus(well.broker, queues={"q": QueueStatus(1, 1)}, unserved=["q"], consumers=well.consumers)
    assert [concern.told for concern in concerns_of(unserved, [], quiet)] == [
        "No consumer serves queue q: 2 jobs will not run."
    ]
    machines = replace(unserved, machines=[MachineStatus("here", 1, "running", 1.0, 1, 0)])
    assert concerns_of(machines, [], quiet) == [], "another machine may serve it"


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
    assert linked(f"after <{job_id}>", "/jobs/{}?a&b".format) == (
        f'after &lt;<a class="id" href="/jobs/{job_id}?a&amp;b">{job_id}</a>&gt;'
    )


def test_arguments_are_edited_only_if_json_holds_them() -> None:
    assert as_json(JobArguments([1, "ü"], {"a": None})) == ('[1, "ü"]', '{"a": null}')
    for odd in ((1, 2), {1: 2}, b"x", {1}):
        assert as_json(JobArguments([odd])) is None
    assert as_json(JobArguments(left_out="it is not kept")) == ("[]", "{}")
