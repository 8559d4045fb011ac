"""`taskq top` on a fleet that fails, hangs and waits: each tab, each key, the narrow screen, and the past."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from apps import shown
from fleet import APPS, Fleet, running, use, wait_until
from screen import Screen, watch
from terminal import Terminal, environment, refused, taskq, terminal
from worlds import World, shown_world

from taskq import Job
from taskq.cli.top.app import Top
from taskq.cli.top.live import LiveSource
from taskq.cli.top.past import hour_of
from taskq.cli.top.replay import ReplaySource
from taskq.cli.top.snapshot import TABS, JobLife, Snapshot, Tab, Target
from taskq.model.exits import Exit
from taskq.model.info.counts import Counts
from taskq.model.info.job import JobInfo
from taskq.model.info.stack import ConsumerStack
from taskq.model.info.status import BrokerStatus, ConsumerStatus, FleetStatus, JobTotals, QueueFlow, QueueStatus

__all__ = ["terminal"]  # a fixture

#: What jobs print that a terminal, or the markup of the library, would take for more than text.
TRICKS = "\x1b[31m\x1b]0;title\x07[bold red]x[/] [@click=app.quit]y[/]"
LONG = "a_very_long_name" * 12


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads the fleet more often than people need it."""
    monkeypatch.setattr("taskq.cli.top.asking.EVERY_S", 0.2)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    def enqueue() -> dict[str, Job[Any]]:
        return {
            "done": shown.thumbnail.enqueue("cat.jpg", size=64),
            "failed": shown.send_mail.enqueue(TRICKS, password="secret-word"),
            "crashed": shown.crash.enqueue(TRICKS),
            "unknown": shown.q.enqueue(LONG),
        }

    with shown_world(tmp_path_factory.mktemp("top"), enqueue) as world:
        yield world


def top(**options: Any) -> Top:
    """A monitor of the fleet that the application uses now."""
    return Top(shown.q, LiveSource(shown.q, shows_arguments=not options.get("hide_args")), **options)


def tail(job: Job[Any]) -> str:
    """The part of an id that tables show."""
    return job.id[-8:]


#: What each tab must say; {} are the ends of the ids of jobs.
SAYS = {
    "fleet": ["of task send_mail failed", "crash died 1 time", "Queue quiet is paused: 1 job", "slow", "paused", "in "],
    "tasks": ["thumbnail", "send_mail", "wait p95", "run p50"],
    "running": ["1 job running", "hold", "{running}", "MB"],
    "failures": ["3 failed jobs", "send_mail", "ConnectionError", "Crashed", "UnknownTask"],
    "consumers": ["consumer.crashed", "SIGKILL", "idle", "{running}"],
    "schedules": ["nightly: daily at 03:00", "delayed job {later}", "59m"],
    "log": ["job.failed", "job.crashed", "queue.paused"],
}


@pytest.mark.parametrize("columns", [120, 60])
def test_each_tab_tells_what_happened(world: World, columns: int) -> None:
    ends = {name: tail(job) for name, job in world.jobs.items()}

    async def look(screen: Screen) -> None:
        for number, tab in enumerate(TABS, 1):
            await screen.press(str(number))
            parts = [part.format(**ends) for part in SAYS[tab]]
            narrow = {"wait p95", "run p50", "idle", "MB", "delayed job {later}".format(**ends), "SIGKILL"}
            told = await screen.until(*(part for part in parts if columns > 100 or part not in narrow))
            assert max(map(len, told.splitlines())) <= columns
            assert "q Quit" in told, "the keys have room"
            assert "\x1b" not in told

    watch(top(), look, (columns, 30))


def test_enter_opens_the_life_of_a_job(world: World) -> None:
    """From each tab: what it was called with, why it failed, what it printed. Nothing that it wrote is markup."""

    async def look(screen: Screen) -> None:
        await screen.until("send_mail failed")
        await screen.press("4")
        await screen.until("ConnectionError")
        await screen.press("slash", *"Conn", "enter", "enter")
        told = await screen.until("Traceback", "shown.py", "the newest jobs", world.jobs["failed"].id)
        assert r"\x1b[31m\x1b]0;title\x07[bold red]x[/] [@click=app.quit]y[/]" in "".join(told.split("\n "))
        await screen.press("enter")
        told = await screen.until("state     failed", "its lines in the log", "password='***'", "job.failed")
        assert "secret-word" not in told
        await screen.press("escape", "escape", "escape", "7")
        await screen.until("job.crashed", "queue.paused", without="rows with")
        await screen.press("slash", *"b.cra", "enter", "enter")
        await screen.until(f"job {world.jobs['crashed'].id}", "SIGKILL", "last words of", "consumer.crashed")
        await screen.press("1")
        await screen.until("Queue quiet is paused")
        await screen.press("slash", *"slow", "enter", "enter")
        await screen.until("jobs of queue slow", tail(world.jobs["limited"]), tail(world.jobs["running"]))
        await screen.press("enter")
        await screen.until("why it does not run", "At most 1 job of task hold may run at once")

    watch(top(), look, (130, 50))


def test_arguments_are_hidden(world: World) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("3")
        await screen.until("1 job running")
        await screen.press("enter")
        told = await screen.until("arguments hidden", "It runs")
        assert "gate" not in told

    watch(top(hide_args=True), look)


def test_the_stack_of_a_running_job(world: World) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("3")
        await screen.until("1 job running", "hold")
        await screen.press("s")
        await screen.until("stack of job", "in pass_gate", "in hold", "consumer ")
        await screen.press("escape", "5")
        await screen.until("running", "idle")
        await screen.press("slash", *"runn", "enter", "enter")
        await screen.until("in pass_gate")

    watch(top(), look)


def test_a_filter_leaves_out_rows(world: World) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("2")
        await screen.until("send_mail", "thumbnail")
        await screen.press("slash", *"MAIL")
        await screen.until("send_mail", without="thumbnail")
        await screen.press("enter")
        await screen.until("rows with 'MAIL': 1 of")
        await screen.press("escape")
        await screen.until("send_mail", "thumbnail", without="rows with")
        await screen.press("slash", *"[bold]", "enter")
        await screen.until("no such rows", "'[bold]': 0 of")

    watch(top(), look)


def test_keys_act_after_a_question(world: World) -> None:
    failed, later = world.jobs["failed"], world.jobs["later"]
    attempts = failed.info().attempts

    async def look(screen: Screen) -> None:
        await screen.press("R")
        await screen.until("R retries a failed job")
        await screen.press("4")
        await screen.until("ConnectionError")
        await screen.press("slash", *"Conn", "enter", "enter")
        await screen.until("the newest jobs")
        await screen.press("enter")
        await screen.until("state     failed")
        await screen.press("R")
        await screen.until(f"Retry job {failed.id}?", "y: yes")
        await screen.press("n")
        await screen.until("state     failed", without="y: yes")
        assert failed.info().attempts == attempts, "nothing was done"
        await screen.press("R")
        await screen.until("y: yes")
        await screen.press("y")
        await screen.until(f"job {failed.id} is queued again")
        await asyncio.to_thread(wait_until, lambda: failed.info().attempts > attempts, "it ran again")
        await screen.press("6")
        await screen.until("delayed job")
        await screen.press("slash", *tail(later), "enter", "C")
        await screen.until(f"Cancel job {later.id}?")
        await screen.press("y")
        await screen.until(f"job {later.id} is cancelled")
        await screen.press("1")
        await screen.until("images")
        await screen.press("slash", *"images", "enter", "P")
        await screen.until("Pause queue images?")
        await screen.press("y")
        await screen.until("queue images is paused", "! Queue images is paused.")
        assert "images" in shown.q.status().paused
        await screen.press("P")
        await screen.until("Resume queue images?")
        await screen.press("y")
        await screen.until("queue images runs")
        assert "images" not in shown.q.status().paused

    watch(top(), look)
    assert later.state() == "cancelled"
    [told] = world.fleet.events("queue.paused", queue="images")
    assert told["by"].endswith(", in taskq top")


def test_who_may_only_look_changes_nothing(world: World) -> None:
    async def look(screen: Screen) -> None:
        told = await screen.until("Queue quiet is paused", "/ Find")
        assert "R Retry" not in told
        await screen.press("slash", *"mail", "enter", "P", "R", "C", "s")
        told = await screen.until("rows with 'mail'")
        assert "yes" not in told

    watch(top(read_only=True), look)
    assert "mail" not in shown.q.status().paused


def test_a_screen_that_changes_its_size(world: World) -> None:
    async def look(screen: Screen) -> None:
        await screen.press("4")
        await screen.until("4 Failures", "10 min")
        await screen.pilot.resize_terminal(60, 20)
        told = await screen.until("4 Fail ", "ConnectionErr", without="10 min")
        assert max(map(len, told.splitlines())) <= 60
        await screen.pilot.resize_terminal(140, 40)
        await screen.until("4 Failures", "10 min")

    watch(top(), look)


def test_the_past(world: World) -> None:
    """Before the queue was paused it was not, and the job that runs ran then."""
    paused = datetime.fromisoformat(world.fleet.wait_for("queue.paused", queue="quiet")["timestamp"]).timestamp()

    async def look(screen: Screen) -> None:
        moment = f"{datetime.fromtimestamp(paused + 0.001):%Y-%m-%d %H:%M:%S}"
        await screen.until(moment, "quiet", "paused", "Minute back")
        await screen.press("3")
        await screen.until("1 job running", tail(world.jobs["running"]))
        await screen.press("enter")
        told = await screen.until("job.started")
        assert "consumer.stacks" not in told, "that came later"
        await screen.press("4")
        await screen.until("3 failed jobs in the log", "send_mail", "ConnectionError", "Crashed")
        await screen.press("5")
        await screen.until("consumer.crashed", "running")
        await screen.press("7")
        await screen.until("queue.paused", without="stacks")
        await screen.press("left_square_bracket", "1")
        await screen.until("stopped", without="quiet")

    watch(Top(shown.q, ReplaySource(shown.q, paused + 0.001, shows_arguments=True)), look)


def test_a_fleet_that_dies_and_comes_back(tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", f"{APPS / 'shown.py'}:q", consumers=1)) as fleet:
        use(shown.q, fleet.home)
        fleet.wait_ready()
        shown.thumbnail.enqueue("cat.jpg").result(timeout=20)

        async def look(screen: Screen) -> None:
            await screen.until("running", f"broker {fleet.broker_pid}", "images")
            await asyncio.to_thread(fleet.kill_all)
            await screen.until("stopped", "No fleet runs: start one", "the fleet has stopped", "images")
            await asyncio.to_thread(fleet.start)
            pid = await asyncio.to_thread(lambda: fleet.broker_pid)
            await screen.until("running", f"broker {pid}", f"a fleet runs: broker {pid}", without="No fleet runs")
            fleet.kill(pid)
            # Either it has seen both brokers, or it looked in between, when there was none.
            await screen.until(f", after {pid}")

        watch(top(), look)


@pytest.mark.not_on_postgres("a database answers while a broker is stopped")
def test_keys_answer_while_the_broker_does_not(tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", f"{APPS / 'shown.py'}:q", consumers=1)) as fleet:
        use(shown.q, fleet.home)
        pid = fleet.broker_pid

        async def look(screen: Screen) -> None:
            await screen.until("running", "1 consumer")
            fleet.kill(pid, signal.SIGSTOP)
            try:
                await screen.press("2")
                await screen.until("reading ...")
                await screen.press("1")
                await screen.until("1 consumer")
                await screen.press("question_mark")
                await screen.until("Upper-case keys change something")
                await screen.press("escape")
            finally:
                fleet.kill(pid, signal.SIGCONT)
            await screen.press("2")
            await screen.until("nothing in the last hour")

        watch(top(), look)


class Fixed:
    """A fleet that is always the same, so that its picture is."""

    is_past = False

    def read(self, tab: Tab) -> Snapshot:
        return Snapshot(tab, 0.0, STATUS, counts=[hour_of("price", "shop", {0: Counts(succeeded=90, failed=10)})])

    def life(self, job_id: str) -> JobLife:
        return JobLife(0.0, job_id, None, None, [])

    def jobs(self, _task: str | None, _queue: str | None) -> list[JobInfo]:
        return []

    def stacks(self, _target: Target) -> list[ConsumerStack]:
        return []


STATUS = FleetStatus(
    BrokerStatus(12, 3_725.0, "/srv/shop", 31 << 20),
    queues={"mail": QueueStatus(queued=1_204, scheduled=3), "shop": QueueStatus(queued=2, running=1)},
    paused=["mail"],
    totals=JobTotals(enqueued=1_310, succeeded=90, failed=10),
    consumers=[
        ConsumerStatus(1, 13, "running", False, 1, job_id="a" * 32, task="price", running_s=4.0, rss_bytes=9 << 20)
    ],
    flows={
        "mail": QueueFlow(2.5, 0.0, "growing", None, 480.0),
        "shop": QueueFlow(1.0, 1.5, "shrinking", 4.0, 2.0),
    },
)
PICTURES = {
    120: """
 running  broker 12  up 1h 02m  31 MB  /srv/shop                                                               CLOCK
 1 Fleet  2 Tasks  3 Running  4 Failures  5 Consumers  6 Schedules  7 Log
 ! 10 jobs of task price failed in the last hour, of 100 that ended.
 ! Queue mail is paused: 1,204 jobs waiting.
 1 running in 1 slot of 1 consumer
 in        0/min
 out     400/min                                                            █
 bad        10/h                                                            █
 1,310 enqueued   90 succeeded   10 failed   0 retried   0 crashed   0 cancelled
 queue  queued  running  scheduled  waiting  oldest  in/s  out/s  backlog
 mail    1,204        0          3        0  8m 00s  2.50      0  growing       paused
 shop        2        1          0        0     2 s  1.00   1.50  empty in 4 s
⏎ Open / Find s Stack R Retry C Cancel P Pause ? Keys q Quit
""",
    60: """
 running  broker 12  up 1h 02m  31 MB  /srv/shop   CLOCK
 1 Fleet  2 Tasks  3 Run  4 Fail  5 Cons  6 Sched  7 Log
 ! 10 jobs of task price failed in the last hour, of 100
 that ended.
 ! Queue mail is paused: 1,204 jobs waiting.
 1 running in 1 slot of 1 consumer
 in        0/min
 out     400/min                                        █
 bad        10/h                                        █
 1,310 enqueued   90 succeeded   10 failed   0 retried   0
 crashed   0 cancelled
 queue  queued  running  oldest  backlog
 mail    1,204        0  8m 00s  growing       paused
 shop        2        1     2 s  empty in 4 s
⏎ Open / Find s Stack R Retry C Cancel P Pause ? Keys q Quit
""",
}


@pytest.mark.parametrize("columns", PICTURES)
def test_the_picture_of_a_fleet(columns: int) -> None:
    """What stands on the screen, as the SVG has it: all of it, and nothing more."""

    async def look(screen: Screen) -> None:
        await screen.until("queue", "1,204", without="no such rows")
        told = await screen.until("1,310 enqueued", "q Quit")
        lines = [line for line in re.sub(r"\d\d:\d\d:\d\d$", "CLOCK", told, flags=re.M).splitlines() if line.strip()]
        assert "\n".join(lines) == PICTURES[columns].strip("\n")

    watch(Top(shown.q, Fixed()), look, (columns, 24))


def test_in_a_terminal(world: World, terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    """As people start it: it draws, and `q` leaves."""
    one = terminal(world.fleet.home, "top", NO_COLOR="1", LANG="C")
    one.read_until("Fleet")
    one.read_until("paused")
    one.type(b"q")
    assert one.read_to_end() == Exit.OK
    assert "\x1b[38;2" not in one.text, "no colours"


def test_what_it_refuses(tmp_path: Path) -> None:
    home = tmp_path / "queue"
    home.mkdir(mode=0o700)
    refused(taskq(home, "top"), Exit.USAGE, "needs a terminal", "taskq status")
    code = "import sys; sys.modules['textual'] = None; sys.argv = ['taskq', 'top']; from taskq.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, check=False
    )
    refused(done, Exit.USAGE, "the monitor needs Textual: pip install 'taskq-fleet[top]'")


@pytest.mark.not_on_postgres("a database is there without a fleet")
def test_nothing_was_ever_there(tmp_path: Path) -> None:
    home = tmp_path / "queue"
    home.mkdir(mode=0o700)
    use(shown.q, home)

    async def look(screen: Screen) -> None:
        await screen.until("! no fleet", "reading")
        with running(Fleet(home, f"{APPS / 'shown.py'}:q", consumers=1)):
            await screen.until("running  broker", "1 consumer")

    began = time.monotonic()
    watch(top(), look)
    assert time.monotonic() - began < 60
