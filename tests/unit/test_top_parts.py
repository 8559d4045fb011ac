"""The pure parts of `taskq top`: tables that fit, text that does nothing, and the past that the log tells of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.text import Text

from taskq.cli.top.fitting import Col, Row, cut, fitted, sparkline, text
from taskq.cli.top.past import Past
from taskq.cli.top.snapshot import Target
from taskq.cli.top.views import headline
from taskq.cli.top.wishes import wish_of
from taskq.client.app import TaskQ
from taskq.model.errors import ConfigError
from taskq.model.info.status import BrokerStatus, FleetStatus

AT = datetime(2026, 5, 9, 3, 10, tzinfo=UTC).timestamp()
COLUMNS = (Col("no.", True), Col("task", least=8), Col("queue", least=6, leaves=1), Col("for", True, leaves=2))


def rows(*cells: tuple[str, ...]) -> list[list[Text]]:
    return [[text(cell) for cell in row] for row in cells]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, [(0, 3), (1, 20), (2, 5), (3, 4)]),
        (36, [(0, 3), (1, 16), (2, 5), (3, 4)]),
        (28, [(0, 3), (1, 8), (2, 5), (3, 4)]),
        (27, [(0, 3), (1, 13), (2, 5)]),
        (20, [(0, 3), (1, 13)]),
        (5, [(0, 3), (1, 8)]),
    ],
)
def test_a_table_fits(width: int, expected: list[tuple[int, int]]) -> None:
    """First long names are shortened, then the least important columns go."""
    assert fitted(COLUMNS, rows(("1", "t" * 20, "mail", "12 s")), width) == expected


def test_columns_without_anything_are_left_out() -> None:
    assert fitted(COLUMNS, rows(("1", "t", "", "")), 80) == [(0, 3), (1, 4)]


def test_a_cell_has_its_width() -> None:
    assert cut(text("price"), 8, is_right=True).plain == "   price"
    assert cut(text("a long name"), 6, is_right=False).plain == "a lon…"
    assert cut(text("日本語"), 5, is_right=False).cell_len == 5


def test_text_does_nothing() -> None:
    """Neither a terminal nor the markup of the library takes it for more than text."""
    told = text("\x1b[31m[bold]x[/] [@click=app.quit]y[/]\n\u202e")
    assert told.plain == r"\x1b[31m[bold]x[/] [@click=app.quit]y[/]\n\u202e"
    assert told.spans == []


def test_bars() -> None:
    assert sparkline([0, 1, 4, 8]) == " ▁▄█".replace("▁", "▂").replace("▄", "▅")
    assert sparkline([]) == ""


def test_a_row_is_found_by_its_texts_and_its_id() -> None:
    row = Row("01A2", (text("Thumbnail"), text("[mail]")), None)
    assert row.has("thumb")
    assert row.has("[MAIL]")
    assert row.has("01a2")
    assert not row.has("other")


@pytest.mark.parametrize("width", [60, 120])
def test_the_headline_is_as_wide_as_the_screen(width: int) -> None:
    status = FleetStatus(BrokerStatus(12, 185.0, "/var/lib/" + "deep/" * 40, 31 << 20))
    told = headline(status, AT, width, is_past=False)
    assert told.cell_len == width
    assert told.plain.startswith("running  broker 12  up 3m 05s  31 MB  /var")


@pytest.mark.parametrize("key", "RCP")
def test_a_key_without_a_row_says_what_it_is_for(key: str) -> None:
    for target in (None, Target("consumer"), Target("event")):
        with pytest.raises(ConfigError, match=f"^{key} "):
            wish_of(key, target, TaskQ("top", "/nowhere/queue"))


# -- the past


def happened(seconds: float, event: str, **fields: Any) -> dict[str, Any]:
    """A line of the log of so many seconds before the moment."""
    stamp = datetime.fromtimestamp(AT - seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"timestamp": stamp, "level": "info", "event": event, **fields}


def life(job_id: str, **fields: Any) -> dict[str, Any]:
    return {"job_id": job_id, "task": "price", "queue": "shop", "attempt": 1, "consumer": 1, "pid": 7, **fields}


def past(*events: dict[str, Any]) -> Past:
    found = Past(AT, "/queue")
    found.take_all(events)
    return found


BEGIN = (happened(900, "fleet.started", pid=5), happened(899, "consumer.started", consumer=1, pid=7))


def test_what_ran_then() -> None:
    found = past(
        *BEGIN,
        happened(800, "job.started", **life("a")),
        happened(700, "job.succeeded", **life("a", duration_ms=100_000)),
        happened(600, "job.started", **life("b")),
        happened(500, "job.progress", **life("b", done=2, total=4)),
        happened(400, "queue.paused", queue="mail"),
    )
    status = found.status()
    assert (status.broker.pid, status.broker.state, status.broker.uptime_s) == (5, "running", 900.0)
    [consumer] = status.consumers
    assert (consumer.state, consumer.job_id, consumer.running_s) == ("running", "b", 600.0)
    assert consumer.progress is not None
    assert consumer.progress.describe() == "2 of 4 (50%)"
    assert [info.id for info in found.running()] == ["b"]
    assert status.paused == ["mail"]
    assert status.totals.succeeded == 1
    [counts] = found.counts()
    assert (counts.task, counts.last_hour.succeeded, counts.last_hour.run.seen) == ("price", 1, 1)


def test_what_died_took_its_jobs_with_it() -> None:
    found = past(
        *BEGIN,
        happened(600, "job.started", **life("b")),
        happened(500, "consumer.crashed", **life("b", level="error", signal="SIGKILL")),
        happened(500, "job.crashed", **life("b", error="Crashed: it was killed", runs_again=False)),
        happened(500, "job.failed", **life("b", error="Crashed: it was killed")),
        happened(400, "job.retrying", **life("c", error="KeyError: 'x'")),
    )
    assert found.running() == []
    assert [event["signal"] for event in found.deaths] == ["SIGKILL"]
    failures = found.failures(AT - 86_400)
    assert (failures.failed, failures.again) == (1, 1), "a job whose last attempt crashed failed once"
    [counts] = found.counts()
    assert (counts.last_hour.crashed, counts.last_hour.again) == (1, 1)
    assert [group.type for group in failures.groups] == ["KeyError", "Crashed"]
    ended = past(*BEGIN, happened(600, "job.started", **life("b")), happened(1, "broker.died", pid=5))
    assert ended.status().broker.state == "stopped"
    assert ended.running() == []


def test_only_the_last_hour_is_counted() -> None:
    found = past(
        happened(3_700, "job.succeeded", **life("a", duration_ms=1)),
        happened(3_000, "job.summary", task="price", succeeded=250, duration_mean_ms=2.0),
        happened(10, "job.failed", **life("b", error="ValueError: no")),
    )
    assert (found.status().totals.succeeded, found.status().totals.failed) == (250, 1)


def test_lines_that_somebody_wrote_by_hand_do_no_harm() -> None:
    found = past({}, {"event": 7}, {"event": "job.started"}, {"event": "job.progress", "done": "x"}, *BEGIN)
    assert found.status().broker.pid == 5
