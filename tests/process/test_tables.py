"""The tables of the command line, as text: at 60, 80 and 200 columns, and as wide as they like in a pipe."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from apps import jobs
from fleet import DEADLINE_S, Fleet, running
from rich.cells import cell_len
from terminal import TASKQ, Here, environment, here

from taskq import ConfigError, JobError, JobNotFound, JobState
from taskq.cli import manage, schedule
from taskq.cli.ids import is_id, whole_id
from taskq.cli.status.picture import picture
from taskq.cli.tables import Cell, Column, plain, short_ids, table
from taskq.cli.words import headline_of
from taskq.model.exits import Exit
from taskq.model.info.job import JobInfo
from taskq.model.info.schedule import ScheduleInfo
from taskq.model.info.words import distance_text
from taskq.protocol.status import status_of

pytestmark = pytest.mark.not_on_postgres("no queue is asked")

__all__ = ["here"]  # a fixture
WIDTHS = pytest.mark.parametrize("width", [60, 80, 200, None])
NOW = time.time()
DAY_S = 86_400
ERROR = JobError("ConnectionRefusedError", "\n\n[Errno 111] could not reach smtp.example.org:587 within 30 s", "")
IDS = [f"01a21e0e9cbe7d6f8c27d088b1e5560{digit:x}" for digit in range(16)]

#: As it travels.
STATUS: dict[str, Any] = {
    "broker": {
        "pid": 12345,
        "uptime_s": 3723.0,
        "directory": "/srv/thumbs",
        "rss_bytes": 40 << 20,
        "state": "running",
    },
    "reload": {"number": 0, "state": "none", "error": None},
    "consumers": [
        {
            "number": number,
            "pid": 1234567 + number,
            "state": "running",
            "slots": 1,
            "running": 1,
            "task": "shop.mails.send_confirmation",
            "progress": (3, 10, "mails sent"),
            "running_s": 12.3,
            "jobs_done": 7_654_321,
            "rss_bytes": 123 << 20,
            "has_old_code": False,
        }
        for number in (1, 2)
    ],
    "queues": {
        "default": {"queued": 12_345, "running": 2, "scheduled": 1_000_000, "waiting": 0},
        "mails.of.all.customers.in.all.countries": {"queued": 1, "running": 0, "scheduled": 0, "waiting": 0},
    },
    "paused": ["mail"],
    "spooled_files": 1_234,
    "totals": {
        "enqueued": 2_000_000,
        "succeeded": 1_999_999,
        "failed": 12,
        "retried": 300,
        "crashed": 2,
        "cancelled": 9,
    },
}


def check(text: str, width: int | None, *words: str) -> None:
    """Checks that a picture fits and that nothing was cut off; the words of one cell may stand on several lines."""
    lines = text.splitlines()
    assert width is None or max(map(len, (line.rstrip() for line in lines))) <= width, text
    for word in words:
        assert word in text, text


@WIDTHS
def test_jobs(width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(manage, "width_of_terminal", lambda: width)
    found = [
        JobInfo(IDS[0], "shop.mails.send_confirmation", "mail", JobState.FAILED, 4, 0, NOW - 3.01 * DAY_S, error=ERROR),
        JobInfo(IDS[1], "add", "default", JobState.SCHEDULED, 0, 0, NOW, due_at=NOW + 2.01 * DAY_S),
    ]
    manage._print_table(found)
    text = capsys.readouterr().out
    check(text, width, "failed", "scheduled", "mail", "in 2d 00h", "3d 00h ago", "587", "30 s")
    assert ("error" in text.splitlines()[0]) == (width in (200, None))
    assert (IDS[0] in text) == (width in (200, None))
    assert IDS[0][-8:] in text
    manage._print_table(found[1:])
    assert ("error" in capsys.readouterr().out) == (width is None), "an empty column; a script counts them"


@WIDTHS
def test_wide_characters_take_two_columns(width: int | None) -> None:
    """Tasks and errors in Chinese, Japanese and Korean: the columns stay in line, and nothing is cut off."""
    columns = (Column("task", is_name=True), Column("no.", is_right=True), Column("error", is_story=True))
    tasks = (
        "店舗.確認メールを送信する",
        "shop.send",
        "상점.확인_메일_보내기",
        "商店.发送确认邮件给所有国家的所有客户以及他们的朋友和家人",
    )
    errors = (
        "無法連接到服務器。連接被拒絕。請稍後再試。或聯繫管理員尋求幫助。",
        "short",
        "연결할 수 없습니다",
        "x 連接 y",
    )
    rows = [(task, str(number), error) for number, (task, error) in enumerate(zip(tasks, errors, strict=True))]
    lines = plain(table(columns, rows, width)).splitlines()
    assert width is None or max(map(cell_len, lines)) <= width, lines
    ends = {cell_len(line[: match.end()]) for line in lines[1:] if (match := re.search(r"(?<= )[0-3](?= |$)", line))}
    assert len(ends) == 1, lines
    written, meant = (Counter("".join(texts).replace(" ", "")) for texts in (lines[1:], sum(rows, ())))
    assert written == meant, lines


@WIDTHS
def test_status(width: int | None) -> None:
    text = plain(picture(status_of(STATUS), width))
    check(text, None, "12345", "/srv/thumbs")
    check(text[text.index("\n\n") :], width, "7,654,321", "123 MB", "1,000,000", "1,999,999", "9 cancelled", "paused")
    check(text, None, "1,234 files with jobs still in the spool")
    assert ("waiting" in text) == (width is None), "an empty column; a script counts them"


@WIDTHS
def test_schedule(width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(schedule, "width_of_terminal", lambda: width)
    rest: tuple[Any, ...] = ("once", "allow")
    found = [
        ScheduleInfo(
            "nightly.clean_up", "shop.clean_up", "default", "0 3 * * *", None, "Europe/Berlin", *rest, 0.0, False,
            True, NOW + 9.01 * DAY_S, NOW - 15.01 * DAY_S, None,
        ),
        ScheduleInfo("pulse", "ping", "default", None, 30.0, "UTC", *rest, 5.0, True, False, None, None, None),
    ]  # fmt: skip
    schedule._print_all(found, as_json=False)
    text = capsys.readouterr().out
    check(text, width, "in 9d 00h", "15d 00h ago", "paused", "pulse", "ping")
    assert text.index("nightly") > text.index("schedule")


@pytest.mark.parametrize("width", range(30, 130, 3))
def test_nothing_is_lost_at_any_width(width: int) -> None:
    columns = [
        Column("id"),
        Column("name", is_name=True),
        Column("jobs", is_right=True),
        Column("story", is_story=True),
    ]
    rows = [
        [Cell("0123456789abcdef", "89abcdef"), "a.long_name/of-something", "12,345", "it was not there, in any way"]
    ]
    text = plain(table(columns, rows, width))
    assert max(map(len, text.splitlines())) <= width
    for word in ("12,345", "89abcdef", "something", "there,", "way"):
        assert word in text


def test_what_others_wrote_is_escaped() -> None:
    assert plain(table([Column("task")], [["\x1b[31mred"]], None)) == "task\n\\x1b[31mred"


def test_ids_are_as_long_as_it_takes() -> None:
    alike = ["a" * 23 + "0" + "b" * 8, "a" * 23 + "1" + "b" * 8]
    assert list(short_ids(IDS).values()) == [each[-8:] for each in IDS]
    assert list(short_ids(alike).values()) == ["0" + "b" * 8, "1" + "b" * 8]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-0.6569, "just now"), (0.2, "in a moment"), (-12.4, "12 s ago"), (185, "in 3m 05s"), (-200_000, "2d 07h ago")],
)
def test_distances(seconds: float, text: str) -> None:
    assert distance_text(seconds) == text


@pytest.mark.parametrize(
    ("message", "text"), [("\n\ntext\nmore", "ValueError: text"), ("", "ValueError"), (" \n", "ValueError")]
)
def test_the_first_line_that_says_something(message: str, text: str) -> None:
    assert headline_of(JobError("ValueError", message, "")) == text


def test_shortened_ids_are_taken(home: Path, here: Here, tmp_path: Path) -> None:
    """Where ids are: their ends, as tables show them, or any other part."""
    with running(Fleet(home, consumers=1)):
        bad, good = jobs.need.enqueue(str(tmp_path / "needed")), jobs.add.enqueue(1)
        assert bad.wait(10)
        assert good.wait(10)
        assert bad.id in here(home, "job", bad.id[-8:]).stdout
        assert good.id in here(home, "job", good.id[14:30]).stdout
        assert here(home, "retry", bad.id[-10:].upper()).returncode == Exit.OK
        assert bad.wait(10)
        done = here(home, "purge", bad.id[-8:], good.id[-8:], "--yes")
        assert done.stdout == f"{bad.id} is purged\n{good.id} is purged\n"
        assert here(home, "cancel", bad.id[-8:]).returncode == Exit.NOT_FOUND
        jobs.add.enqueue_many([(number,) for number in range(3)])[-1].wait(10)
        with pytest.raises(ConfigError, match="3 jobs"):
            whole_id(jobs.q, jobs.q.jobs()[0].id[:20])
        with pytest.raises(JobNotFound):
            whole_id(jobs.q, "abcdef")


def test_a_folder_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_id("decade")
    (tmp_path / "decade").mkdir()
    assert not is_id("decade")


# -- the program


def test_whoever_has_read_enough_is_no_error(home: Path) -> None:
    """`taskq jobs | head -1`: however much there is to print."""
    with running(Fleet(home, consumers=1)):
        jobs.add.enqueue_many([(number,) for number in range(2_000)])[-1].wait(10)
    for limit in ("1", "2000"):
        with subprocess.Popen(
            [*TASKQ, "jobs", "--limit", limit],
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == Exit.OK, errors
        assert "Exception" not in errors


@pytest.mark.parametrize("arguments", [["-h"], ["jobs", "-h"], ["enqueue", "-h"]])
def test_help_by_one_letter(home: Path, here: Here, arguments: list[str]) -> None:
    done = here(home, *arguments)
    assert done.returncode == Exit.OK
    assert "$ taskq" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["jobs", "--nonsense"], ["status"]])
def test_no_color_leaves_no_style(home: Path, arguments: list[str]) -> None:
    """Not even bold, in a terminal."""
    with running(Fleet(home, consumers=1)):
        script = f"import pty, sys; sys.exit(pty.spawn({[*TASKQ, *arguments]!r}) and 0)"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(home, NO_COLOR="1", TERM="xterm-256color"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.stdout
    assert "\x1b[" not in done.stdout
