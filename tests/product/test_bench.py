"""`taskq bench`: what it prints, and that it leaves nothing behind. Its figures are not tested: they depend on the
machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from json_schema import misfits
from terminal import TASKQ, environment, taskq

from taskq.cli.bench.catalogue import CASES
from taskq.cli.schema import PRINTED, schema_of
from taskq.model.exits import Exit

SKELETON = Path(__file__).parent / "bench" / "skeleton.py"
PEERS = Path(__file__).parent / "bench" / "peers"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for the benchmark, which must be empty again in the end."""
    path = tmp_path / "place"
    path.mkdir()
    yield path
    assert list(path.iterdir()) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", CASES)
def test_each_part_has_its_figures(part: str, place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """All rows of the case are measured, as JSON that fits its schema, and drawn; nothing is left in a database."""
    picture = tmp_path / "figures.svg"
    which = [part]
    if part == "database":
        server, name = request.getfixturevalue("postgres"), request.getfixturevalue("database")
        which = ["--url", server.url(name)]
    done = subprocess.run(
        [
            *TASKQ,
            "bench",
            *which,
            "--quick",
            "--rounds",
            "1",
            "--json",
            "--directory",
            str(place),
            "--svg",
            str(picture),
        ],
        env=environment(None),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    report = json.loads(done.stdout)
    assert misfits(report, schema_of(PRINTED["bench"])) == []
    if part == "database":
        with server.connect(name) as connection:
            schemas = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'taskq%'"
            assert connection.execute(schemas).fetchall() == []
    left_out = {each["what"] for each in report["left_out"]}
    measured = {figure["name"] for figure in report["figures"]}
    assert measured <= {row.name for row in CASES[part].rows}
    assert {row.name for row in CASES[part].rows if row.limits} - measured <= left_out | _NOT_QUICK
    for figure in report["figures"]:
        assert figure["value"]["low"] <= figure["value"]["median"] <= figure["value"]["high"]
    assert measured <= {text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")}


#: What takes too long for a quick run.
_NOT_QUICK = {"64 processes", "20 MB there and back", "100 MB there and back"}


def test_the_table_fits_a_narrow_terminal(place: Path) -> None:
    """In a pipe it has no colours; both sides of a comparison are there."""
    done = taskq(None, "bench", "start", "--quick", "--rounds", "1", "--directory", str(place))
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert "\x1b" not in done.stdout
    assert "all consumers killed, to the next job" in done.stdout
    assert "process pool" in done.stdout


def test_what_it_refuses(place: Path, tmp_path: Path) -> None:
    """A part that does not exist, and folders that are not there, before anything is measured."""
    for words, code, told in (
        (["rountrip"], Exit.USAGE, "did you mean roundtrip?"),
        (["--directory", str(tmp_path / "none")], Exit.DIRECTORY, "--directory: there is no directory"),
        (["database"], Exit.USAGE, "which database? name it with --url"),
        (["--url", "postgresql://me:secret@host/db"], Exit.USAGE, "PGPASSWORD"),
        (["bulk", "--url", "postgresql://me@host/db"], Exit.USAGE, "measures the part database alone"),
        (["--svg", str(tmp_path / "none" / "a.svg")], Exit.DIRECTORY, "--svg: there is no directory"),
    ):
        done = taskq(None, "bench", *words)
        assert (done.returncode, done.stdout) == (code, "")
        assert told in done.stderr


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="taskq-") as path:
        yield Path(path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_in_the_middle_leaves_no_process(how: signal.Signals, tmp_path: Path, short_tmp: Path) -> None:
    """Fleets, limits and producers end with it; after Ctrl-C and SIGTERM its files are gone, too."""
    program = subprocess.Popen(
        [*TASKQ, "bench", "producers", "roundtrip", "--rounds", "1000", "--directory", str(tmp_path)],
        env=environment(None, TMPDIR=str(short_tmp)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = _family_of(program, at_least=6)
    program.send_signal(how)
    _, told = program.communicate(timeout=120)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    if how != signal.SIGKILL:  # after that, a process that was just starting may complain
        assert told == ""
        assert program.returncode in (130, 143)
        assert [*tmp_path.iterdir(), *short_tmp.iterdir()] == []


def _family_of(program: subprocess.Popen[str], at_least: int) -> list[psutil.Process]:
    """The processes below one, when there are enough."""
    while program.poll() is None:
        family: list[psutil.Process] = psutil.Process(program.pid).children(recursive=True)
        if len(family) >= at_least:
            return family
    raise AssertionError(program.communicate())


@pytest.mark.parametrize("module", ["peer_taskq", "peer_executor", "peer_pool"])
def test_a_peer_is_measured(module: str, tmp_path: Path) -> None:
    """Those that need neither packages nor a server; the figures that each can have are there."""
    variables = {"PEERS_DIRECTORY": str(tmp_path), "PEERS_BOARD": str(tmp_path / "board"), "PYTHONPATH": str(PEERS)}
    command = [sys.executable, str(PEERS / "measure.py"), module, "0.05"]
    # a fleet that inherited the descriptors, and outlived the measurement, would keep this from ending
    done = subprocess.run(
        command, env={**environment(None), **variables}, capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert {"single", "round_trip_p50", "start_s", "memory_mb"} <= set(found)
    assert ("enqueue" in found) == (module == "peer_taskq")
    assert all(value > 0 for key, value in found.items() if key not in ("versions", "cpu_us"))


@pytest.mark.parametrize("victim", ["nobody", "leader", "worker", "program"])
def test_the_skeleton_leaves_no_process_and_no_complaint(victim: str, tmp_path: Path) -> None:
    """It ends by SIGKILL; multiprocessing would complain of its semaphores as leaked."""
    path = tmp_path / "program.py"
    path.write_text(
        f"""
import sys
from pathlib import Path
from taskq.cli.bench.limits.service import Service, ServiceClient
service = Service([{str(SKELETON)!r}, "2"], Path({str(tmp_path)!r}))
ServiceClient(service.path).run(2_000)
print(service.pid, flush=True)
sys.stdin.readline()
service.close()
"""
    )
    program = subprocess.Popen(
        [sys.executable, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    leader = psutil.Process(int(program.stdout.readline()))
    workers = [child for child in leader.children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    victims = {"leader": leader.pid, "worker": workers[0].pid, "program": program.pid}
    if victim in victims:
        os.kill(victims[victim], signal.SIGKILL)
    _, told = program.communicate("\n", timeout=120)
    assert told == ""
    _, alive = psutil.wait_procs([leader, *workers], timeout=20)
    assert not alive
