"""The ten questions of somebody who is woken at 3 a.m., asked of a fleet in trouble, by command and by page.

One fleet, for all of them: a job of it died of a signal, one hangs in C, five kinds fail, one has flooded the log, and
100,000 wait. docs/watch.md has the same table of questions, commands and pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from html import unescape
from typing import Any, NamedTuple

import pytest
from apps import troubled
from fleet import APPS, DEADLINE_S, Fleet, Gate, in_directory, running, use, wait_for_file, wait_until
from json_schema import misfits
from log_table import log_table, unlisted
from pages import table_of
from starlette.testclient import TestClient
from terminal import Here, Terminal, here, terminal

from taskq import Job, TaskQ, chain
from taskq.cli.schema import LOG_LINE, PRINTED, schema_of
from taskq.model.exits import Exit
from taskq.telemetry.catalogue import FIELDS
from taskq.web import Dashboard
from taskq.web.dashboard import VIEWS

__all__ = ["here", "terminal"]  # fixtures

APP = f"{APPS / 'troubled.py'}:q"
WAITING = 100_000
#: A time of the day, as a page tells it.
CLOCK = r"(?:[\d-]{10} )?\d\d:\d\d"  # with the date, behind midnight
SERVED = ("default", "bulk", "stuck", "slow", "mail", "paused")


class Trouble(NamedTuple):
    """The fleet, its jobs by what is wrong with them, and the process in which one hangs."""

    fleet: Fleet
    jobs: dict[str, Job[Any]]
    hung_pid: int


@pytest.fixture(scope="module")
def trouble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trouble]:
    folder = tmp_path_factory.mktemp("trouble")
    gate, hung = Gate(folder / "gate"), folder / "hung"
    with running(Fleet(folder / "queue", APP, consumers=4, queues=SERVED, preload=True, stop_timeout_s=0.5)) as fleet:
        use(troubled.q, fleet.home)
        fleet.wait_ready()
        troubled.record_hit.enqueue_many([(number,) for number in range(WAITING)])
        jobs: dict[str, Job[Any]] = {
            "flood": troubled.flood.enqueue(5000),
            "parse": troubled.parse.enqueue_many([('{"a":',)] * 3)[-1],
            "charge": troubled.charge.options(meta={"tenant": "acme"}).enqueue(7),
            "too_slow": troubled.too_slow.enqueue(),
            "crash": troubled.resize.enqueue("cat.jpg"),
            "unknown": troubled.q.enqueue("no_such_task", 1),
            "first_letter": troubled.newsletter.enqueue("a"),
        }
        again = troubled.call_partner.enqueue(4711)
        for name, job in jobs.items():
            assert job.wait(DEADLINE_S), name
        wait_until(lambda: again.info().state == "scheduled", "it runs again later")
        jobs |= {"again": again, "hang": troubled.hang.enqueue(str(hung)), "holder": troubled.export.enqueue(gate.path)}
        fleet.wait_for("job.progress", task="export")
        troubled.q.pause("paused")
        newer = TaskQ("troubled")
        use(newer, fleet.home)

        @newer.task(queue="paused")
        def not_deployed() -> None:
            """A task that the fleet does not have yet."""

        jobs |= {
            "limited": troubled.export.enqueue(gate.path),
            "rated": troubled.newsletter.enqueue("b"),
            "paused": troubled.report.options(queue="paused").enqueue(),
            "unknown_later": not_deployed.enqueue(),
            "later": troubled.report.options(delay=7200).enqueue(),
            "last": chain(troubled.report.options(delay=9000).step(), troubled.report.step()).enqueue(),
            "nowhere": troubled.report.options(queue="nowhere").enqueue(),
        }
        yield Trouble(fleet, jobs, int(wait_for_file(hung)[0]))
        gate.open()


@pytest.fixture
def asked(trouble: Trouble, here: Here) -> Callable[..., Any]:
    """What a command prints with `--json`, which fits its schema. It prints something for people, too."""

    def run(*words: str) -> Any:
        for_people = here(trouble.fleet.home, *words)
        assert for_people.returncode == Exit.OK, for_people
        assert for_people.stdout.strip()
        done = here(trouble.fleet.home, *words, "--json")
        assert done.returncode == Exit.OK, done
        if words[0] == "logs":
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            assert [misfits(line, LOG_LINE, may_have_more=True) for line in lines] == [[]] * len(lines)
            return lines
        value = json.loads(done.stdout)
        assert misfits(value, schema_of(PRINTED[words[0]])) == []
        return value

    return run


@pytest.fixture
def page(trouble: Trouble) -> Iterator[Callable[[str], str]]:
    """The text of a page, as somebody reads it."""
    with TestClient(Dashboard(troubled.q, access=lambda _request: "all"), "http://127.0.0.1:8737") as client:

        def text(path: str) -> str:
            answer = client.get(path)
            assert answer.status_code == 200, answer.text
            main = answer.text.partition("<main")[2].partition(">")[2].partition("</main>")[0] or answer.text
            return " ".join(unescape(re.sub("<[^>]*>", " ", main)).split())

        yield text


Asked = Callable[..., Any]
Pages = Callable[[str], str]


def test_1_is_it_healthy_and_what_runs(trouble: Trouble, asked: Asked, page: Pages, here: Here) -> None:
    def running() -> dict[str, Any]:
        return {each["task"]: each for each in asked("status")["consumers"] if each["job_id"]}

    wait_until(lambda: running().keys() >= {"hang", "export"}, "it is told what runs")
    status, runs = asked("status"), running()
    assert status["broker"]["state"] == "running"
    assert here(trouble.fleet.home, "health", "--ready").returncode == Exit.OK
    hung, holder = runs["hang"], runs["export"]
    assert (hung["pid"], hung["job_id"]) == (trouble.hung_pid, trouble.jobs["hang"].id)
    assert hung["running_s"] > 0
    assert hung["rss_bytes"] > 1 << 20
    wait_until(lambda: asked("status")["consumers"][0]["cpu_percent"] is not None, "two looks at the CPU time")
    assert holder["progress"] == {"done": 3, "total": 10, "note": "waiting for the gate"}
    assert status["unserved"] == ["nowhere"]

    for text in (page("/"), page("/consumers")):
        assert re.search(r"hang .* export 4? ?.*3 of 10 \(30%\): waiting for the gate|export .* hang ", text)
    assert str(trouble.hung_pid) in page("/consumers")
    text = page("/")
    assert text.startswith("Look at this No "), "one verdict, the worst first"
    assert re.search(
        rf"No consumer serves queue nowhere: 1 job will not run\. since {CLOCK}: Start one with --queues", text
    )
    told = (
        rf"1 job of task charge failed in the last hour, of 1 that ended\. since {CLOCK}: LookupError: customer 7 has"
    )
    assert re.search(told, text)
    assert re.search(rf"The process of task resize died 1 time in the last hour\. since {CLOCK}: signal SIGSEGV", text)
    assert re.search(rf"Queue paused is paused: 2 jobs waiting\. since {CLOCK}: Paused by \S+", text)


def test_2_how_long_is_the_backlog(trouble: Trouble, asked: Asked, page: Pages) -> None:
    wait_until(lambda: asked("status")["flows"]["bulk"]["ended_per_s"] > 0, "some are done")
    status = asked("status")
    waiting, flow = status["queues"]["bulk"]["queued"], status["flows"]["bulk"]
    assert WAITING * 0.5 < waiting < WAITING
    assert flow["oldest_waiting_s"] > 0
    assert flow["trend"] in ("growing", "shrinking")
    assert (flow["empty_in_s"] is None) == (flow["trend"] == "growing")
    if flow["empty_in_s"] is not None:
        gain = flow["ended_per_s"] - flow["came_per_s"]
        assert flow["empty_in_s"] == pytest.approx(waiting / gain, rel=0.1)
    assert status["paused"] == ["paused"]

    text = page("/queues")
    assert re.search(r"bulk \d\d,\d\d\d ", text)
    assert "paused paused" in text
    assert "nowhere not served" in text
    for text in (page("/queues"), page("/")):
        for name, why in {
            "nowhere": "No consumer of this fleet serves queue nowhere",
            "paused": "Queue paused is paused",
            "limited": "At most 1 job of task export may run at once, and 1 does: " + trouble.jobs["holder"].id[-8:],
        }.items():
            assert f"{trouble.jobs[name].id[-8:]} waits longest. {why}" in text, "the oldest job says why it stands"


def test_3_which_tasks_fail(trouble: Trouble, asked: Asked, page: Pages) -> None:
    told = asked("errors")
    groups = {(group["task"], group["type"]): group for group in told["groups"]}
    assert {key: (group["failed"], group["again"]) for key, group in groups.items()} == {
        ("parse", "JSONDecodeError"): (3, 0),
        ("charge", "LookupError"): (1, 0),
        ("call_partner", "ConnectionError"): (0, 1),
        ("too_slow", "TimedOut"): (1, 0),
        ("resize", "Crashed"): (1, 0),
        ("no_such_task", "UnknownTask"): (1, 0),
    }
    charged = groups["charge", "LookupError"]
    assert charged["last_hour"] == 1
    assert charged["first_at"] == charged["last_at"] > 1.7e9
    assert re.search(r"troubled\.py:\d+ in charge$", charged["place"])
    assert "KeyError: 7" in charged["traceback"]
    assert charged["traceback"].endswith("LookupError: customer 7 has no account\n")
    assert charged["jobs"] == [trouble.jobs["charge"].id]

    text = page("/failures")
    for task, kind in groups:
        assert f"{kind} in {task}" in text
    assert "KeyError: 7" in text


def test_4_what_happened_to_a_job(trouble: Trouble, asked: Asked, page: Pages) -> None:
    crashed = trouble.jobs["crash"]
    told = asked("job", APP, crashed.id)
    assert (told["state"], told["error"]["signal"], told["arguments"]["args"]) == ("failed", "SIGSEGV", ["cat.jpg"])
    assert told["error"]["output"][0] == "reading cat.jpg"
    assert any(line.endswith("in resize") for line in told["error"]["output"])
    [attempt] = told["history"]
    assert attempt["peak_bytes"] is None or attempt["peak_bytes"] > 1 << 20, "not known of a process of half a second"
    assert attempt["pid"] > 0
    events = [line["event"] for line in told["log"] if line["event"] != "job.started"]  # on a slow machine
    assert events == ["job.log", "consumer.crashed", "job.crashed", "job.failed"]
    again = asked("job", APP, trouble.jobs["again"].id)
    assert again["history"][0]["error"]["message"] == "503 from partner.example.com"
    assert _printed(again)[0]["message"] == "calling the partner for order 4711"
    assert asked("job", trouble.jobs["charge"].id)["meta"] == {"tenant": "acme"}

    flood = trouble.jobs["flood"].id
    lines = asked("logs", "--job", flood, "--event", "output.dropped")
    dropped = sum(line["lines"] for line in lines)
    assert 0 < dropped < 5000
    assert f"{dropped:,} lines of its output were left out" in page(f"/jobs/{flood}/log")

    text = page(f"/jobs/{crashed.id}")
    for words in ("SIGSEGV", "Last words reading cat.jpg", "in resize", "'cat.jpg'", str(attempt["pid"])):
        assert words in text
    assert "consumer.crashed" in page(f"/jobs/{crashed.id}/log")
    assert "calling the partner for order 4711" in page(f"/jobs/{trouble.jobs['again'].id}/log")


def _printed(told: Any) -> list[Any]:
    """The lines that a job has printed."""
    return [line for line in told["log"] if line["event"] == "job.log"]


def test_5_why_does_it_not_run(trouble: Trouble, asked: Asked, page: Pages) -> None:
    jobs = trouble.jobs

    def why(name: str) -> Any:
        """The nearest obstacle. The page says it in the words of the command."""
        [first, *_] = asked("why", jobs[name].id)["reasons"]
        return first

    assert why("paused")["kind"] == "paused"
    assert why("nowhere")["kind"] == "not_served"
    limited = why("limited")
    assert (limited["kind"], limited["limit"]["name"], limited["limit"]["amount"]) == ("limit", "export", 1)
    assert [other["id"] for other in limited["jobs"]] == [jobs["holder"].id]
    rated = why("rated")
    assert (rated["limit"]["kind"], rated["limit"]["period_s"]) == ("rate", 3600)
    opens_s = rated["until"] - jobs["first_letter"].info().started_at
    assert 3595 < opens_s < 3602, "an hour after the start before it, to the second"
    assert why("later")["kind"] == "scheduled"
    assert why("again")["kind"] == "scheduled"
    last = why("last")
    assert (last["kind"], last["jobs"][0]["state"]) == ("waiting", "scheduled")
    assert last["jobs"][0]["due_at"] == troubled.q.job(last["jobs"][0]["id"]).info().due_at
    kinds = [reason["kind"] for reason in asked("why", jobs["unknown_later"].id)["reasons"]]
    assert set(kinds) >= {"unknown_task", "paused"}

    for name, words in {
        "paused": "Queue paused is paused: taskq resume paused lets it run.",
        "nowhere": "No consumer",
        "limited": f"At most 1 job of task export may run at once, and 1 does: {jobs['holder'].id}",
        "rated": "At most 1 job of task newsletter may start in 1h 00m: it opens ",
        "later": "It is scheduled for ",
        "again": "it runs again after attempt 1, which ended with ConnectionError",
        "last": f"(report, scheduled for {datetime.fromtimestamp(last['jobs'][0]['due_at']):%H:%M:%S})",
        "unknown_later": "has no task not_deployed",
    }.items():
        assert words in page(f"/jobs/{jobs[name].id}"), name


def test_6_which_consumer_died(trouble: Trouble, asked: Asked, page: Pages) -> None:
    [died] = asked("logs", "--event", "consumer.crashed")
    job = trouble.jobs["crash"]
    assert (died["job_id"], died["task"], died["signal"]) == (job.id, "resize", "SIGSEGV")
    assert died["output"].startswith("reading cat.jpg\n")
    assert died["pid"] == job.info().history[0].pid
    assert asked("status")["broker"]["restarts_of_consumers"] == 1

    text = page("/consumers").partition("Died, or were killed")[2]
    assert f"consumer.crashed {died['consumer']} resize {job.id[-8:]} signal SIGSEGV reading cat.jpg" in text
    assert "in resize" in text, "its last words are there in full"


def test_7_what_does_that_process_do_now(trouble: Trouble, asked: Asked, page: Pages) -> None:
    job = trouble.jobs["hang"]
    [told] = asked("stack", job.id)
    assert (told["pid"], told["task"], told["job_id"]) == (trouble.hung_pid, "hang", job.id)
    assert re.search(r"troubled\.py\", line \d+ in hang", told["stack"])
    assert job.info().state == "running", "it goes on"

    assert f"on consumer {told['consumer']} " in page(f"/jobs/{job.id}")
    assert "Where is it now?" in page(f"/jobs/{job.id}")
    consumer = asked("status")["consumers"][told["consumer"] - 1]
    assert consumer["pid"] == trouble.hung_pid
    assert re.search(r"troubled\.py\", line \d+ in hang", page(f"/consumers/{told['consumer']}"))


def test_8_what_will_happen_next(trouble: Trouble, asked: Asked, page: Pages) -> None:
    [nightly] = asked("schedule")
    assert (nightly["name"], nightly["task"]) == ("nightly", "clean")
    assert datetime.fromtimestamp(nightly["next_at"]).astimezone().minute == 10
    due = asked("jobs", "--state", "scheduled")
    assert [each["task"] for each in due] == ["call_partner", "report", "report"], "what is due next comes first"
    assert [each["id"] for each in due][:2] == [trouble.jobs["again"].id, trouble.jobs["later"].id]
    assert (due[0]["attempts"], due[0]["error"]["type"]) == (1, "ConnectionError"), "a retry is marked"

    text = page("/schedules")
    assert "nightly clean" in text
    assert "daily at 03:10" in text
    assert re.search(r"call_partner default a retry, after ConnectionError: 503 .* report default a delay", text)


def test_9_how_long_do_jobs_wait_and_run(trouble: Trouble, asked: Asked, page: Pages) -> None:
    told = {each["task"]: each for each in asked("tasks")}
    for times in (told["record_hit"]["last_hour"]["wait_s"], told["too_slow"]["total"]["run_s"]):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["longest"]
    assert told["too_slow"]["total"]["run_s"]["p50"] >= 0.2
    assert (told["record_hit"]["last_hour"]["enqueued"], told["parse"]["total"]["failed"]) == (WAITING, 3)
    assert told["too_slow"]["total"]["timed_out"] == 1

    assert re.search(r" hang stuck 0 1 0 0 ", page("/tasks")), "one runs now"
    assert re.search(r" record_hit bulk \d\d,\d\d\d \d+ [\d,]+ 0 ", page("/tasks")), "and these are queued"
    text = page("/tasks/record_hit")
    assert re.search(
        r"Jobs that came in, by minutes 100,000 jobs 0 .* \d\d:\d\d \d\d:\d\d \d\d:\d\d \d\d:\d\d now", text
    )
    assert "Jobs that ended, by minutes" in text
    assert re.search(r"p50 p95 p99 p50 p95 p99 last hour 100,000 [\d,]+ 0 ", text)


def test_10_does_the_broker_keep_up(trouble: Trouble, asked: Asked, page: Pages) -> None:
    status = asked("status")
    broker = status["broker"]
    assert 0 < broker["commit_mean_s"] <= broker["commit_longest_s"]
    assert 0 < broker["longest_turn_last_minute_s"] <= broker["longest_turn_s"]
    assert 0 < broker["busy_share"] <= 1
    if in_directory():
        assert broker["journal_bytes"] > 1 << 20
        assert broker["clients"] >= 1
        assert (broker["rejected_clients"], status["spooled_files"]) == (0, 0)
    else:
        assert (broker["journal_bytes"], broker["clients"]) == (None, None), "they are the database's"
    findings = {finding["subject"]: finding["state"] for finding in asked("doctor")}
    assert findings["fleet"] == "ok"

    text = page("/broker")
    assert re.match(r"Broker It (keeps up: a commit takes [\d.]+ (µs|ms), and|hardly keeps up: )", text), (
        "a slow machine"
    )
    assert re.search(r"Loop busy for [\d.]+ % of the last minute", text)
    for words in ("Longest turn", "Commits", "Journal", "Clients", "0 files wait", "output.dropped"):
        assert words in text


def test_the_log_of_all_this_is_as_the_table_says(trouble: Trouble) -> None:
    """Each line has an event, a level and fields of docs/events.md; and of the events a good part has happened here."""
    events = trouble.fleet.events()
    assert unlisted(events) == []
    seen = {event["event"] for event in events}
    assert seen <= set(log_table())
    assert len(seen) >= 15, seen
    assert unlisted([{**events[0], "event": "job.vanished"}]) == ["the event job.vanished"]
    assert unlisted([{**events[0], "surprise": 1}]) == ["fleet.started with the field surprise"]
    assert unlisted([{**events[0], "consumers": "4"}]) == ["fleet.started with consumers = '4'"]
    assert unlisted([{**events[0], "level": "error"}]) == ["fleet.started with the level error"]
    assert "consumers" in FIELDS


def test_the_page_has_the_table_of_questions() -> None:
    table = table_of("watch.md", "| question | command | page |")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 10
    paths = set(re.findall(r"`(/[\w/]*)`", table))
    assert {re.sub("ID|NUMBER|NAME", "", path) for path in paths} <= {re.sub("{.*}", "", path) for path in VIEWS}


@pytest.mark.parametrize("words", [("status",), ("tasks",)], ids=" ".join)
def test_an_answer_fits_a_narrow_terminal(
    trouble: Trouble, terminal: Callable[..., Terminal], words: tuple[str, ...]
) -> None:
    """60 columns, no colour, no character beyond ASCII, although the numbers are large."""
    narrow = terminal(trouble.fleet.home, *words, COLUMNS="60", LANG="C", LC_ALL="C", NO_COLOR="1")
    assert narrow.read_to_end() == Exit.OK
    assert [line for line in narrow.text.splitlines() if len(line) > 60 and "/" not in line] == []
    assert narrow.text.isascii()
