"""Applications of Celery on real fleets: what Celery promises, and what happens when processes are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from apps import celery_app
from apps.celery_app import add, app, fail, total
from celery import Celery, chain, chord, group, states
from celery.exceptions import ChordError, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.result import AsyncResult, GroupResult
from celery.schedules import BaseSchedule, crontab, schedule
from fleet import APPS, Fleet, environment_of, running, use, wait_for_file, wait_until

from taskq import AppError, ConfigError
from taskq.client.loader import load_app
from taskq.contrib.celery.application import application_of
from taskq.contrib.celery.beat import cron_of, times_of
from taskq.contrib.celery.fleet import fleet_of
from taskq.contrib.celery.options import rate_of
from taskq.contrib.celery.store import Store

pytestmark = pytest.mark.not_on_postgres("Celery applications: what they keep besides jobs is in a directory")

APP = "apps.celery_app:app"
TIMEOUT_S = 20
PATH = {"PYTHONPATH": str(APPS.parent)}
LOADER = "taskq.contrib.celery.loader:Loader"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where signals and the schedule of the application leave their notes."""
    return tmp_path_factory.mktemp("celery") / "notes"


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory, notes: Path) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("celery") / "queue"
    with running(Fleet(home, APP, environment={**PATH, "CELERY_NOTES": str(notes)})) as fleet:
        yield fleet


@pytest.fixture
def fleet(_shared: Fleet) -> Fleet:
    """One fleet for all tests, those that kill its processes included; this program enqueues on it."""
    use_fleet(_shared.home)
    return _shared


def use_fleet(home: Path) -> None:
    use(fleet_of(app).q, home)


# -- what works as before


def test_the_canvas(fleet: Fleet) -> None:
    assert add.delay(1, 2).get(TIMEOUT_S) == 3
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(TIMEOUT_S) == 10
    assert group(add.s(n, n) for n in range(5))().get(TIMEOUT_S) == [0, 2, 4, 6, 8]
    assert chord([add.s(n, n) for n in range(5)], total.s())().get(TIMEOUT_S) == 20
    assert (group(add.s(1, 1), add.s(2, 2)) | total.s() | add.s(100))().get(TIMEOUT_S) == 106
    assert chord([group(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], celery_app.add.s([]))().parent is not None
    assert add.chunks(zip(range(4), range(4), strict=True), 2)().get(TIMEOUT_S) == [[0, 2], [4, 6]]
    assert add.starmap([(1, 2), (3, 4)]).delay().get(TIMEOUT_S) == [3, 7]
    assert celery_app.replaced.delay(5).get(TIMEOUT_S) == 16


def test_links(fleet: Fleet, tmp_path: Path) -> None:
    path = str(tmp_path / "links")
    celery_app.note.apply_async(("first", path), link=celery_app.note.si("linked", path)).get(TIMEOUT_S)
    assert wait_for_file(Path(path), 2) == ["first", "linked"]
    failing = fail.apply_async(link_error=celery_app.note.si("error", path))
    with pytest.raises(ArithmeticError, match="as wished"):
        failing.get(TIMEOUT_S)
    assert wait_for_file(Path(path), 3)[-1] == "error"


def test_errors_end_chains_and_chords(fleet: Fleet) -> None:
    broken = chain(add.s(1, 1), fail.s(), add.s(1))()
    with pytest.raises(ArithmeticError):
        broken.get(TIMEOUT_S)
    assert broken.state == states.FAILURE
    broken = chord([add.s(1, 1), fail.s()], total.s())()
    with pytest.raises(ArithmeticError):
        broken.get(TIMEOUT_S)
    wait_until(lambda: isinstance(broken.result, ChordError), "the end of the body")


def test_a_failure_is_told_to_taskq_and_not_repeated(fleet: Fleet) -> None:
    result = fail.delay()
    with pytest.raises(ArithmeticError):
        result.get(TIMEOUT_S)
    job_id = fleet_of(app).store.job_of(result.id)
    told = fleet.wait_for("job.failed", job_id=job_id)
    assert told["error"] == "ArithmeticError: as wished"
    assert told["attempt"] == 1
    assert fleet_of(app).q.job(job_id).info().meta == {"celery_id": result.id}
    assert "ArithmeticError: as wished" in result.traceback
    assert "celery/app/trace" not in told["traceback"]  # of the task alone


def test_retries(fleet: Fleet, tmp_path: Path) -> None:
    assert celery_app.third_time.delay().get(TIMEOUT_S) == 2
    result = celery_app.tried.delay(str(tmp_path / "tries"))
    with pytest.raises(ArithmeticError):
        result.get(TIMEOUT_S)
    assert (tmp_path / "tries").read_text().split() == ["0", "1", "2"]
    assert celery_app.rejects_once.delay().get(TIMEOUT_S) is True


def test_states_and_what_results_know(fleet: Fleet, tmp_path: Path) -> None:
    result = celery_app.tells_progress.delay(str(tmp_path / "go"))
    wait_until(lambda: result.state == "PROGRESS", "the custom state")
    assert result.info == {"done": 1}
    (tmp_path / "go").touch()
    assert result.get(TIMEOUT_S) == "done"
    assert AsyncResult(result.id, app=app).successful()
    assert result.name == "apps.celery_app.tells_progress"
    last = chain(add.s(1, 1), add.s(1))()
    assert last.get(TIMEOUT_S) == 3
    assert last.parent.get(TIMEOUT_S) == 2
    assert [child.get(TIMEOUT_S) for child in last.parent.children] == [3]
    saved = group(add.s(1, 1), add.s(2, 2))()
    saved.save()
    assert GroupResult.restore(saved.id, app=app).get(timeout=TIMEOUT_S) == [2, 4]
    result.forget()
    assert fleet_of(app).store.get(app.backend.get_key_for_task(result.id)) is None


def test_an_ignored_result_is_not_kept(fleet: Fleet, tmp_path: Path) -> None:
    result = celery_app.ignored.delay(str(tmp_path / "ran"))
    wait_for_file(tmp_path / "ran")
    fleet.wait_for("job.succeeded", job_id=fleet_of(app).store.job_of(result.id))
    assert AsyncResult(result.id, app=app).state == states.PENDING


def test_queues_and_priorities(fleet: Fleet) -> None:
    result = celery_app.routed.delay()
    assert result.get(TIMEOUT_S) == ["mail", 7]
    assert fleet_of(app).q.job(fleet_of(app).store.job_of(result.id)).info().queue == "mail"
    assert celery_app.routed.apply_async(queue="other", priority=1).get(TIMEOUT_S) == ["other", 1]
    assert app.send_task("apps.celery_app.add", (1, 2)).get(TIMEOUT_S) == 3


def test_time_limits(fleet: Fleet) -> None:
    assert celery_app.cleans_up.delay().get(TIMEOUT_S) == "cleaned up"
    with pytest.raises(TimeLimitExceeded):
        celery_app.too_long.delay().get(TIMEOUT_S)


def test_expiry_and_revoking_before_the_start(fleet: Fleet) -> None:
    late = add.apply_async((1, 1), countdown=0.3, expires=0.1)
    with pytest.raises(TaskRevokedError, match="expired"):
        late.get(TIMEOUT_S)
    waiting = add.apply_async((1, 1), countdown=600)
    assert waiting.state == states.PENDING
    waiting.revoke()
    assert waiting.state == states.REVOKED
    app.control.revoke("chosen-id")
    assert AsyncResult("chosen-id", app=app).state == states.REVOKED
    with pytest.raises(TaskRevokedError):
        add.apply_async((1, 1), task_id="chosen-id").get(TIMEOUT_S)


def test_revoking_a_running_task(fleet: Fleet, tmp_path: Path) -> None:
    result = celery_app.waits.delay(str(tmp_path / "started"), str(tmp_path / "never"))
    wait_for_file(tmp_path / "started")
    [active] = app.control.inspect().active().values()
    assert result.id in {each["id"] for each in active}
    result.revoke(terminate=True)
    assert result.state == states.REVOKED
    with pytest.raises(TaskRevokedError, match="terminated"):
        result.get(TIMEOUT_S)
    assert add.delay(1, 1).get(TIMEOUT_S) == 2


def test_remote_control(fleet: Fleet) -> None:
    inspect = app.control.inspect()
    assert [*inspect.ping().values()] == [{"ok": "pong"}]
    assert "apps.celery_app.add" in next(iter(inspect.registered().values()))
    result = add.apply_async((1, 1), countdown=600)
    [told] = [
        each for [tasks] in [inspect.scheduled().values()] for each in tasks if each["request"]["id"] == result.id
    ]
    assert told["request"]["args"] == [1, 1]
    assert next(iter(inspect.query_task(result.id).values()))[result.id][0] == "scheduled"
    stamped = add.s(1, 1)
    stamped.stamp(customer="seven")
    waiting = stamped.apply_async(countdown=600)
    app.control.revoke_by_stamped_headers({"customer": ["seven"]})
    assert (waiting.state, result.state) == (states.REVOKED, states.PENDING)
    result.revoke()
    with pytest.raises(NotImplementedError, match="another --consumers"):
        app.control.pool_grow(2)


def test_signals_and_the_schedule(fleet: Fleet, notes: Path) -> None:
    add.delay(20, 22).get(TIMEOUT_S)
    wait_until(lambda: {"process", "success 42", "beat"} <= {*notes.read_text().splitlines()}, "all notes")
    assert {"each-second", "celery.backend_cleanup"} <= {each.name for each in fleet_of(app).q.schedules.list()}


def test_a_program_enqueues_without_a_change(fleet: Fleet) -> None:
    script = "from apps.celery_app import add; print(add.delay(3, 4).get(timeout=20))"
    environment = {**os.environ, **PATH, "CELERY_LOADER": LOADER, **environment_of(fleet.home)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.returncode) == ("7\n", 0), done.stderr


# -- when processes are killed


def test_a_chord_survives_the_death_of_consumers(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.count("job.succeeded", task="apps.celery_app.total")
    marks = [str(tmp_path / f"mark{n}") for n in range(3)]
    result = chord([celery_app.killed_once.s(mark, n) for n, mark in enumerate(marks)], total.s())()
    assert result.get(TIMEOUT_S) == 3
    assert [len(Path(mark).read_text().splitlines()) for mark in marks] == [2, 2, 2]
    ended = "job.succeeded"
    wait_until(lambda: fleet.count(ended, task="apps.celery_app.total") == before + 1, "the line of the log")


def test_a_task_that_must_not_be_repeated_fails_when_its_process_dies(fleet: Fleet, tmp_path: Path) -> None:
    mark, errors = tmp_path / "mark", tmp_path / "errors"
    result = celery_app.killed.apply_async((str(mark),), link_error=celery_app.note.si("told", str(errors)))
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        result.get(TIMEOUT_S)
    assert mark.read_text() == "start\n"
    assert wait_for_file(errors) == ["told"]
    broken = chord([add.s(1, 1), celery_app.killed.s(str(mark))], total.s())()
    with pytest.raises(WorkerLostError):
        broken.get(TIMEOUT_S)
    wait_until(lambda: isinstance(broken.result, ChordError), "the end of the body")


def test_a_chord_and_tasks_to_come_survive_the_whole_fleet(fleet: Fleet, tmp_path: Path) -> None:
    started, go = str(tmp_path / "started"), str(tmp_path / "go")
    result = chord([celery_app.waits.s(started, go, n) for n in (1, 2, 3)], total.s())()
    later = add.apply_async((1, 2), eta=datetime.now(UTC) + timedelta(seconds=2))
    far = add.apply_async((1, 2), countdown=3600)
    wait_for_file(Path(started), 2)
    fleet.kill_all()
    Path(go).touch()
    fleet.start()
    assert result.get(TIMEOUT_S) == 6
    assert later.get(TIMEOUT_S) == 3
    assert fleet_of(app).q.job(fleet_of(app).store.job_of(far.id)).state() == "scheduled"
    far.revoke()


def test_the_broker_is_killed_in_the_middle_of_chains(fleet: Fleet) -> None:
    plus = celery_app.plus  # it may be repeated: one that may not ends with the process in which it runs
    results = [chain(plus.s(n, 0), *[plus.s(1)] * 5)() for n in range(10)]
    fleet.kill(fleet.broker_pid)
    assert [result.get(TIMEOUT_S) for result in results] == [n + 5 for n in range(10)]


# -- what is refused, and small rules


def test_what_is_not_supported_is_refused_when_the_fleet_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Dusk(BaseSchedule):
        """As Celery's `solar`, which needs another package."""

    astronomer = Celery("astronomer")
    astronomer.conf.beat_schedule = {"dusk": {"task": "x", "schedule": Dusk()}}
    with pytest.raises(ConfigError, match=r"beat_schedule\['dusk'\]: Dusk is not supported"):
        application_of(astronomer)
    monkeypatch.setenv("TASKQ_URL", "postgresql://nowhere.invalid/queue")
    with pytest.raises(ConfigError, match="set TASKQ_URL to a directory"):
        application_of(Celery("spread"))


def test_an_application_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_URL", str(tmp_path))
    (tmp_path / "proj.py").write_text("from celery import Celery\napp = Celery('proj')\nother = 1\n")
    assert load_app(f"{tmp_path / 'proj.py'}:app").name == "proj"
    with pytest.raises(AppError, match="is a int, not a TaskQ"):
        load_app(f"{tmp_path / 'proj.py'}:other")


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "without_celery.py").write_text("from celery import Celery\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(
        AppError, match=r"imports 'celery', which is not installed here: pip install 'taskq-fleet\[celery\]'"
    ):
        load_app("without_celery:app")


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("redis://", "FleetBackend"),
        (None, "FleetBackend"),
        ("rpc://", "FleetBackend"),
        ("file:///", "FilesystemBackend"),
    ],
)
def test_a_result_backend_that_needs_no_broker_stays(backend: str | None, kind: str, tmp_path: Path) -> None:
    named = f"file://{tmp_path}" if backend == "file:///" else backend
    other = Celery("other", backend=named, set_as_current=False)
    fleet_of(other)
    assert type(other.backend).__name__ == kind


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (crontab(), "* * * * *"),
        (crontab(minute="*/15", hour="8-10"), "0,15,30,45 8,9,10 * * *"),
        (crontab(minute=0, hour=0, day_of_week="mon,fri"), "0 0 * * 1,5"),
        (crontab(minute=0, hour=0, day_of_month="1", month_of_year="*/6"), "0 0 1 1,7 *"),
        (crontab(minute=0, hour=0, day_of_month="1-7", day_of_week="mon"), "0 0 * * 1"),
    ],
)
def test_a_crontab_is_a_cron_expression(when: crontab, expected: str) -> None:
    assert cron_of(when) == expected


def test_times_of_a_schedule() -> None:
    assert times_of(app, "x", crontab(minute=5)) == ("5 * * * *", {"timezone": "Europe/Berlin"})
    assert times_of(app, "x", schedule(timedelta(seconds=30))) == (None, {"every": timedelta(seconds=30)})
    assert times_of(app, "x", 30.0) == (None, {"every": timedelta(seconds=30)})


@pytest.mark.parametrize(("rate", "expected"), [(10, "10/s"), ("100/m", "100/m"), ("0.5/s", "1/2s"), ("3/h", "3/h")])
def test_a_rate_limit(rate: object, expected: str) -> None:
    assert rate_of(rate) == expected


def test_only_the_last_part_of_a_chord_calls_the_body_however_often_parts_say_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "celery.db", 60)
    assert store.end_part("g", "first", 1, "b") is None
    store.begin_chord("g", 2)
    assert store.end_part("g", "first", 1, "b") is None
    assert store.end_part("g", "second", 0, "a") == ["a", "b"]
    assert store.end_part("g", "first", 1, "b") is None
    assert store.end_part("g", "second", 0, "a") == ["a", "b"]
    store.begin_chord("g", 2)
    store.grow_chord("g")
    assert [store.end_part("g", part, 0, part) for part in ("1", "2")] == [None, None]
    assert store.end_part("g", "3", 1, "3") == ["1", "2", "3"]


def test_old_entries_are_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "celery.db", 0.0)
    store.put(b"key", "value")
    store.note_job("later", "job", 4e9)
    store.note_job("now", "job")
    store.clean_up()
    assert (store.get(b"key"), store.job_of("now"), store.job_of("later")) == (None, None, "job")
