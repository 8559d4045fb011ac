"""Runs every example as its user does, in a process of its own, and checks what it tells."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import ModuleType

import httpx
import psutil
import pytest
from PIL import Image
from postgres import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
TESTED = {"customers", "from_multiprocessing", "monte_carlo", "thumbnails", "two_machines", "web_app", "word_index"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the queue, for this process and those it starts."""
    home = tmp_path / "queue"
    monkeypatch.setenv("TASKQ_URL", str(home))
    return home


def run(example: str, *arguments: object) -> str:
    """Runs an example to its end. Returns what it printed, once nothing that it started runs any more."""
    command = [sys.executable, str(EXAMPLES / f"{example}.py"), *map(str, arguments)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        try:
            printed, errors = process.communicate(timeout=120)
        finally:
            process.kill()  # if it has not ended; its fleet ends by itself then
    assert process.returncode == 0, errors
    assert_none_left(process.pid)
    return printed


def assert_none_left(session: int) -> None:
    """Fails if a process of a session goes on for long after its leader's end. A zombie has ended."""
    for pid in psutil.pids():
        try:
            if os.getsid(pid) != session:
                continue
            ending = os.pidfd_open(pid)
        except (ProcessLookupError, PermissionError):
            continue
        has_ended, _, _ = select.select([ending], [], [], 5.0)
        os.close(ending)
        assert has_ended, psutil.Process(pid).cmdline()


def photograph() -> bytes:
    """A real photograph, 640 by 427."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "datasets" / "images" / "china.jpg").read_bytes()


def test_every_example_has_its_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_two_machines(postgres: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is killed, with all its processes, and nothing is lost."""
    monkeypatch.setenv("TASKQ_URL", f"{postgres.url(database)}&lease=2")
    printed = run("two_machines", "--count", 400)
    assert "machine b is killed" in printed
    assert f"{sum(number * number for number in range(400))} is right" in printed
    found = re.search(r"where they ran: a: (\d+), b: (\d+)", printed)
    assert found is not None
    assert sum(map(int, found.groups())) == 400


def test_from_multiprocessing(home: Path) -> None:
    run("thumbnails", "--count", 1, "--to", home.parent / "made")  # jobs of others are not counted
    printed = run("from_multiprocessing")
    assert re.search(r"Hello Ada, from process \d+ -> succeeded", printed)
    assert "APPLE, ORANGE, BANANA" in printed
    assert "[1, 4, 9, 16]" in printed
    spans = [(float(a), float(b)) for a, b in re.findall(r"\| (\d+\.\d) to (\d+\.\d) s", printed)]
    assert len(spans) == 4
    for moment, _ in spans:
        assert sum(began <= moment + 0.05 < ended - 0.05 for began, ended in spans) <= 2
    assert 4.0 <= max(ended for _, ended in spans) < 7.0  # two by two: neither 2 s nor 8 s
    assert "12 jobs succeeded" in printed


@pytest.mark.usefixtures("home")
def test_thumbnails_of_the_sample_photographs(tmp_path: Path) -> None:
    printed = run("thumbnails", "--count", 300, "--to", tmp_path / "made")
    made = sorted((tmp_path / "made").glob("*-*.jpg"))
    assert len(made) == 300
    for path in made[::50]:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert max(image.size) in (64, 128, 192)
    assert "damaged.jpg failed: OSError: image file is truncated" in printed
    assert re.search(r"300 images \(.* MB\) in .* s, [\d,]+ images/s", printed)
    assert f"They are in {tmp_path / 'made'}; 1 failed" in printed
    assert not list((tmp_path / "made").glob("*.tmp"))


@pytest.mark.usefixtures("home")
def test_thumbnails_of_a_folder_that_the_user_names(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "china.jpg").write_bytes(photograph())
    (folder / "notes.txt").write_text("no image\n")
    printed = run("thumbnails", folder, "--to", tmp_path / "made")
    assert "notes.txt failed: UnidentifiedImageError: cannot identify image file" in printed
    (made,) = (tmp_path / "made").iterdir()
    with Image.open(made) as image:
        assert image.size == (256, 171)


@pytest.mark.usefixtures("home")
def test_word_index_finds_the_lines_that_have_all_words() -> None:
    printed = run("word_index", "deque maxlen", "no_such_word_anywhere")
    assert re.search(r"\d files, [\d.]+ MB, [\d,]+ words, indexed in [\d.]+ s:\n[\d.]+ s of work", printed)
    hits = re.findall(r"^    (\S+\.py):(\d+): ", printed, re.M)
    assert hits
    library = Path(os.__file__).parent
    for file, number in hits:
        line = (library / file).read_text("utf-8", errors="replace").split("\n")[int(number) - 1].lower()
        assert "deque" in line
        assert "maxlen" in line
    assert "'no_such_word_anywhere': 0 lines" in printed


@pytest.mark.usefixtures("home")
def test_customers_reports_what_an_independent_calculation_finds() -> None:
    printed = run("customers")  # the figures below were computed with pandas
    assert "23,570 customers, 69,659 purchases" in printed
    assert re.search(r"January +7,846 +49\.9% +3\.10 +113\.07 +\(1\d\d\.\d\d to 1\d\d\.\d\d\)", printed)
    assert re.search(r"February +8,476 +48\.8% +2\.94 +104\.60 +\(", printed)
    assert re.search(r"March +7,248 +49\.8% +2\.82 +100\.24 +\(", printed)
    for average, low, high in re.findall(r"(\d+\.\d\d) +\((\d+\.\d\d) to (\d+\.\d\d)\)", printed):
        assert float(low) < float(average) < float(high) < float(low) + 15


@pytest.mark.usefixtures("home")
def test_monte_carlo_comes_nearer_to_the_theory() -> None:
    printed = run("monte_carlo")
    errors = [float(error) for error in re.findall(r"^ +[\d,]+ +\d\.\d{4} +(0\.\d{4}) ", printed, re.M)]
    assert len(errors) == 9
    assert errors == sorted(errors, reverse=True)
    assert errors[0] / errors[-1] == pytest.approx(16, rel=0.1)  # 256 times the work
    assert re.search(r"simulated 8\.02\d\d \+/- 0\.00\d\d, theory 8\.0214: they agree", printed)


# -- the web application: a real server, real HTTP


@contextmanager
def served(*command: str) -> Iterator[httpx.Client]:
    """A server on a free port, which it tells on standard error; Ctrl-C ends it, with all it started."""
    arguments = [sys.executable, *command, "--port", "0"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            with httpx.Client(base_url=told_url(process), timeout=40) as client:
                yield client
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    assert_none_left(process.pid)


def told_url(process: subprocess.Popen[str]) -> str:
    """Reads the server's lines until it tells where it listens."""
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the server ended: " + "".join(told))


def enqueue(server: httpx.Client, image: bytes) -> str:
    """Uploads an image. Returns the job's id."""
    answer = server.post("/thumbnails", content=image)
    assert answer.status_code == 202
    return str(answer.json()["job"])


def assert_thumbnail(answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(BytesIO(answer.content)) as image:
        assert image.size == (256, 171)


@pytest.fixture
def web_app(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example as a module, for a fleet that this process starts and stops."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "web_app", raising=False)
    yield importlib.import_module("web_app")
    del sys.modules["web_app"]


def test_web_app_accepts_work_while_the_fleet_is_away(web_app: ModuleType) -> None:
    with (
        served("-m", "uvicorn", "--app-dir", str(EXAMPLES), "web_app:app") as server,
        ThreadPoolExecutor(1) as browser,
    ):
        first = enqueue(server, photograph())
        assert server.get(f"/jobs/{first}").json()["state"] == "queued"
        assert server.get(f"/jobs/{first}/result", params={"wait": 0.1}).status_code == 504
        waiting = browser.submit(server.get, f"/jobs/{first}/result", params={"wait": 30})
        with web_app.q.fleet(consumers=1):
            assert_thumbnail(waiting.result())
            assert server.get(f"/jobs/{first}").json()["state"] == "succeeded"

        assert server.get(f"/jobs/{first}").json()["state"] == "succeeded"  # read from the journal
        second = enqueue(server, photograph())
        assert server.get(f"/jobs/{second}").json()["state"] == "queued"
        with web_app.q.fleet(consumers=1):
            assert_thumbnail(server.get(f"/jobs/{second}/result", params={"wait": 30}))
            assert_thumbnail(server.get(f"/jobs/{first}/result"))  # results are kept, too


@pytest.mark.usefixtures("home")
def test_web_app_with_a_fleet_of_its_own_answers_errors_clearly() -> None:
    with served(str(EXAMPLES / "web_app.py")) as server:
        assert_thumbnail(server.get(f"/jobs/{enqueue(server, photograph())}/result"))

        damaged = enqueue(server, b"no image")
        answer = server.get(f"/jobs/{damaged}/result")
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("UnidentifiedImageError: cannot identify image file")
        assert server.get(f"/jobs/{damaged}").json()["state"] == "failed"

        assert server.post("/thumbnails", content=bytes(5_000_000)).status_code == 413
        assert server.get("/jobs/nonsense").status_code == 404
        assert server.get(f"/jobs/{'0' * 32}/result").status_code == 404
