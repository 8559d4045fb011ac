"""The function of an application that takes secrets out of the log: what is written of an event, whatever it does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskq.telemetry.files import log_path
from taskq.telemetry.reader import read
from taskq.telemetry.record import TEXT_MAX_CHARS
from taskq.telemetry.redaction import RedactionError, load_redaction
from taskq.telemetry.setup import configure

SECRET = "secret 4711"
CLOSED_FD = 999


def written(directory: Path, redaction: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """What is in the file of an event that has a secret in several places, without its time."""
    log, fanout = configure(directory, "json", stderr_fd=CLOSED_FD, redaction=redaction)
    log.error(
        "job.failed", queue="mail", job_id="0" * 32, pid=7, error=f"E: {SECRET}", meta={"a": SECRET}, items=[1, SECRET]
    )
    fanout.close()
    assert fanout.dropped == 0
    [event] = read(directory)
    assert len(event.pop("timestamp")) == 27
    return event


def test_it_changes_an_event_in_place(tmp_path: Path) -> None:
    def hide(event: dict[str, Any]) -> None:
        event["error"] = event["error"].replace(SECRET, "***")
        event["meta"]["a"] = event["items"][1] = "***"
        event.update(level="debug", event="job.log", timestamp="now", added=1)

    expected = {
        "queue": "mail",
        "job_id": "0" * 32,
        "pid": 7,
        "error": "E: ***",
        "meta": {"a": "***"},
        "items": [1, "***"],
    }
    assert written(tmp_path, hide) == {"level": "error", "event": "job.failed", **expected, "added": 1}
    assert SECRET not in log_path(tmp_path).read_text()


def test_what_it_leaves_is_plain_and_bounded_again(tmp_path: Path) -> None:
    def hide(event: dict[str, Any]) -> None:
        del event["items"]
        event.update(error=None, meta={1: object}, long="x" * 2 * TEXT_MAX_CHARS, path=Path("x"))

    event = written(tmp_path, hide)
    assert {"items", "error"} & set(event) == set()
    assert event["meta"] == {"1": "<class 'object'>"}
    assert event["long"].endswith("characters cut]")
    assert event["path"] == "PosixPath('x')"


def fails(event: dict[str, Any]) -> None:
    raise KeyError(event["error"])


def ends(event: dict[str, Any]) -> None:
    sys.exit(event["error"])


def makes_another(event: dict[str, Any]) -> dict[str, Any]:
    return {**event, "error": "***"}


def fails_when_it_has_spoilt_the_event(event: dict[str, Any]) -> None:
    event["queue"] = event.pop("error")
    raise RecursionError(SECRET)


@pytest.mark.parametrize(
    ("redaction", "why"),
    [
        (fails, "the function raised KeyError"),
        (ends, "the function raised SystemExit"),
        (makes_another, "the function returned a dict, not None: it must change it in place"),
        (fails_when_it_has_spoilt_the_event, "the function raised RecursionError"),
    ],
)
def test_if_it_fails_the_line_is_there_without_the_secret(
    tmp_path: Path, redaction: Callable[[dict[str, Any]], object], why: str
) -> None:
    names = {"level": "error", "event": "job.failed", "queue": "mail", "job_id": "0" * 32, "pid": 7}
    assert written(tmp_path, redaction) == {**names, "redaction_failed": why}
    assert SECRET not in log_path(tmp_path).read_text()


def test_it_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "found_redaction.py").write_text("def hide(event): event['found'] = 1\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    for reference in ("found_redaction:hide", "found_redaction.py:hide", f"{tmp_path}/found_redaction.py:hide"):
        event: dict[str, Any] = {}
        load_redaction(reference)(event)
        assert event == {"found": 1}
    assert sys.path == before
    assert os.getcwd() not in before


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("hide", "use module:function or path/to/file.py:function"),
        (":hide", "use module:function"),
        ("no_such_module:hide", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("no_such_file.py:hide", "FileNotFoundError"),
        ("json:hide", "AttributeError: module 'json' has no attribute 'hide'"),
        ("json:__name__", "__name__ is not an ordinary function"),
        ("os:getcwd", "TypeError: too many positional arguments"),
        ("wrong_redaction.py:hide", "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_had_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, told: str
) -> None:
    (tmp_path / "wrong_redaction.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RedactionError, match="log-redact=") as caught:
        load_redaction(reference)
    assert told in str(caught.value)
