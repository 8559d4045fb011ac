"""A real fleet whose application hides secrets in the log: they are in no file of it, nor on stderr."""

from __future__ import annotations

from pathlib import Path

from apps import jobs
from fleet import DEADLINE_S, Fleet, running, use

from taskq.model.exits import Exit
from taskq.telemetry.files import LOG_DIRECTORY

SECRET = "4111-1111-1111-1111"
HIDE = f"""
def hide(event):
    for field in ("message", "error", "traceback", "output", "note"):
        if field in event:
            event[field] = event[field].replace("{SECRET}", "****")
    event.pop("meta", None)

def fail(event):
    raise ValueError(str(event))
"""


def leaky(home: Path, function: str) -> Fleet:
    """A fleet after jobs that printed, logged and raised the secret, died of it, and had it in their meta."""
    (home.parent / "hiding.py").write_text(HIDE)
    with running(Fleet(home, consumers=1, log_redact=f"{home.parent / 'hiding.py'}:{function}")) as fleet:
        use(jobs.q, home)
        for job in (
            jobs.fail.options(meta={"card": SECRET}).enqueue(SECRET),
            jobs.say.enqueue(SECRET),
            jobs.say_and_die.enqueue(SECRET),
        ):
            assert job.wait(DEADLINE_S)
    return fleet


def everywhere(fleet: Fleet) -> str:
    """All that the fleet wrote to its log and to stderr."""
    files = sorted((fleet.home / LOG_DIRECTORY).iterdir())
    return "".join(path.read_text() for path in [*files, fleet.errors])


def test_secrets_are_not_in_the_log(home: Path) -> None:
    fleet = leaky(home, "hide")
    assert SECRET not in everywhere(fleet)
    [failed] = fleet.events("job.failed", task="fail")
    assert failed["error"] == "LookupError: ****"
    assert "****" in failed["traceback"]
    assert [event["message"] for event in fleet.events("job.log", task="say")] == ["by print ****", "by log ****"]
    [crashed] = fleet.events("consumer.crashed")
    assert crashed["output"].startswith("last words ****")
    assert not any("meta" in event for event in fleet.events())


def test_a_function_that_fails_loses_no_line_and_shows_no_secret(home: Path) -> None:
    fleet = leaky(home, "fail")
    assert SECRET not in everywhere(fleet)
    events = fleet.events()
    assert {event["redaction_failed"] for event in events} == {"the function raised ValueError"}
    assert {"fleet.started", "job.failed", "job.log", "consumer.crashed", "job.crashed", "fleet.stopped"} <= {
        event["event"] for event in events
    }
    [failed] = fleet.events("job.failed", task="fail")
    assert set(failed) >= {"queue", "task", "job_id", "attempt", "consumer", "pid"}


def test_without_its_function_a_fleet_does_not_start(home: Path) -> None:
    fleet = Fleet(home, log_redact="no_such_module:hide").start(wait=False)
    assert fleet.wait_for_end() == Exit.USAGE
    assert fleet.errors.read_text().splitlines() == [
        "taskq: log-redact='no_such_module:hide': ModuleNotFoundError: No module named 'no_such_module'"
    ]
