"""What users get: the wheel is built, installed into an environment that knows nothing of the checkout, and used there.

Other tests run the checkout, where a file that the wheel lacks is found all the same: SQL, entry points, what processes
are started with, what is imported by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from fleet import wait_until
from processes import lives

pytestmark = pytest.mark.timeout(400)  # pip may have to fetch the packer

ROOT = Path(__file__).parents[2]
#: Longer than any command here takes on a busy machine.
DEADLINE_S = 100.0

APP = """
import os, signal
from pathlib import Path
from taskq import TaskQ

q = TaskQ("installed")

@q.task
def add(a: int, b: int) -> int:
    return a + b

@q.task
def pid() -> int:
    return os.getpid()

@q.task
def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"
"""
SCRIPT = """
from app import add, q
import taskq

if __name__ == "__main__":
    with q.fleet(consumers=2):
        print(sum(add.starmap([(1, 2), (3, 4)])), taskq.__file__)
"""
TESTS = """
from app import add

def test_queued(taskq_queue):
    add.enqueue(1, 2)
    taskq_queue.assert_enqueued(add, 1, 2)

def test_inline(taskq_inline):
    assert add.enqueue(1, 2).result() == 3

def test_real(taskq_fleet):
    assert add.enqueue(1, 2).result(timeout=30) == 3
"""
#: Makes the journal that taskq left behind when its format had an older version.
OLD_JOURNAL = """
import sys
from importlib.resources import files

import apsw, msgpack
from taskq.model.spec import Spec
from taskq.protocol.codec import encode_call

version, path = int(sys.argv[1]), sys.argv[2]
names = ["schema.sql", "upgrade_2.sql"][:version]
scripts = [files("taskq.engines.embedded.journal").joinpath(name).read_text() for name in names]
db = apsw.Connection(path)
db.execute(f"BEGIN; {'; '.join(scripts)}; PRAGMA user_version={version}; COMMIT")
db.execute("INSERT INTO specs VALUES (3, ?)", (msgpack.packb(Spec("add").to_wire()),))
if version == 1:
    db.execute("INSERT INTO queues VALUES (7, 'default')")
else:
    db.execute("INSERT INTO bands VALUES (7, 'default', 0, ?)", (msgpack.packb([]),))
place = "queue" if version == 1 else "band"
job_id = bytes([1]) * 16
db.execute(
    f"INSERT INTO jobs (seq, id, spec, {place}, state, payload) VALUES (1, ?, 3, 7, 0, ?)",
    (job_id, encode_call(job_id, (20, 22), {})),
)
print(job_id.hex())
"""


class Installed(NamedTuple):
    """The wheel, installed."""

    wheel: Path
    environment: Path  # of Python
    project: Path  # of a user: the folder of an application

    def run(self, *command: str, home: str = "queue") -> str:
        """Runs a command of the environment in the user's project; returns what it printed."""
        done = subprocess.run(
            [self.environment / "bin" / command[0], *command[1:]],
            cwd=self.project,
            env=self.variables(home),
            capture_output=True,
            check=False,
            text=True,
            timeout=DEADLINE_S,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def variables(self, home: str) -> dict[str, str]:
        """The environment of a user who has installed nothing else."""
        return {
            "PATH": f"{self.environment / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.project),
            "LANG": "C.UTF-8",
            "TASKQ_URL": str(self.project / home),
        }

    @contextmanager
    def fleet(self, *options: str, home: str = "queue") -> Iterator[None]:
        """Runs `taskq worker` in the user's project; it must end in good order, and with no process left."""
        log = self.project / f"{home}.log"
        with log.open("wb") as errors:
            worker = subprocess.Popen(
                [
                    self.environment / "bin" / "taskq",
                    "worker",
                    "app:q",
                    "--consumers",
                    "1",
                    "--log-format",
                    "json",
                    *options,
                ],
                cwd=self.project,
                env=self.variables(home),
                stdin=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            wait_until(lambda: '"consumer.started"' in log.read_text(), "a consumer", DEADLINE_S)
            yield
            family = psutil.Process(worker.pid).children(recursive=True)
            worker.terminate()
            assert worker.wait(DEADLINE_S) == 0, log.read_text()
            assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait(DEADLINE_S)

    def enqueue(self, *arguments: str, home: str = "queue") -> Any:
        """Enqueues a job from another process; returns its result."""
        return json.loads(self.run("taskq", "enqueue", "app:q", *arguments, "--wait", home=home))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a fresh environment. Its dependencies are those of the environment of this test, and nothing else
    of that is to be seen."""
    place = tmp_path_factory.mktemp("wheel")
    wheel = _built(place)
    environment = place / "environment"
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    _pip("--python", str(environment / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    _show_dependencies(place / "dependencies", packages)
    project = place / "project"
    project.mkdir()
    (project / "app.py").write_text(APP)
    return Installed(wheel, environment, project)


def _built(place: Path) -> Path:
    """The wheel, built from a copy of what is packed: without the packer, pip gets it as for any other project."""
    source = place / "source"
    shutil.copytree(ROOT / "taskq", source / "taskq", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tools/pypi_readme.py"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "tests" / "unit", source / "tests" / "unit", ignore=shutil.ignore_patterns("__pycache__"))
    isolation = ["--no-build-isolation"] if find_spec("hatchling") else []
    _pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(place), str(source))
    [wheel] = place.glob("*.whl")
    return wheel


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr


def _show_dependencies(folder: Path, packages: Path) -> None:
    """Makes what is installed here visible there, but for taskq itself and what leads to a checkout."""
    folder.mkdir()
    for place in map(Path, sys.path):
        if place.name not in ("site-packages", "dist-packages"):
            continue
        for entry in place.iterdir():
            is_own = entry.name.removeprefix("_").startswith(("taskq", "_editable"))
            if not is_own and entry.suffix != ".pth" and entry.name != "__pycache__":
                link = folder / entry.name
                if not link.is_symlink():
                    link.symlink_to(entry)
    (packages / "dependencies.pth").write_text(f"{folder}\n")


def test_it_holds_what_it_must_and_nothing_else(installed: Installed) -> None:
    """The package with its SQL, the files of its pages and the mark that it is typed, two entry points, the licence: no
    tests, no examples."""
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
        info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
        metadata = wheel.read(f"{info}/METADATA").decode()
    kinds = (".py", ".sql", ".html", ".css", ".js", ".svg")
    package = {path for path in (ROOT / "taskq").rglob("*") if path.suffix in kinds or path.name == "py.typed"}
    own = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    assert names == {str(path.relative_to(ROOT)) for path in package} | own
    assert "[console_scripts]\ntaskq = taskq.cli:main\n" in entry_points
    assert "[pytest11]\ntaskq = taskq.testing.pytest_plugin" in entry_points
    assert "\nRequires-Python: >=3.11\n" in metadata
    readme = metadata.partition("\n\n")[2]
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert "# taskq\n" in readme
    links = [*re.findall(r"\]\(([^)]+)\)", readme), *re.findall(r'(?:src|srcset)="([^"]+)"', readme)]
    assert len(links) > 40
    assert [link for link in links if not link.startswith("https://")] == [], "where PyPI shows it there are no files"


def test_the_checkout_is_not_to_be_seen(installed: Installed) -> None:
    """Else this file would prove nothing."""
    found = installed.run("python", "-c", "import sys, taskq; print(taskq.__file__, *sys.path, sep='\\n')").split("\n")
    assert found[0].startswith(str(installed.environment))
    assert not [place for place in found if place.startswith(str(ROOT)) and "site-packages" not in place]


def test_the_command(installed: Installed) -> None:
    assert "Run a fleet" in installed.run("taskq", "--help")
    version = installed.run("taskq", "--version")
    assert installed.run("python", "-m", "taskq", "--version") == version
    assert version.strip() in installed.wheel.name.replace("taskq_fleet-", "taskq ")


@pytest.mark.parametrize("options", [(), ("--preload",), ("--threads", "2")], ids=["plain", "preload", "threads"])
def test_a_fleet(installed: Installed, options: Sequence[str]) -> None:
    """Jobs from other processes, a job that kills its process, and a consumer that is killed."""
    home = f"queue{''.join(options)}"
    with installed.fleet(*options, home=home):
        assert installed.enqueue("add", "1", "2", home=home) == 3
        assert installed.enqueue("die_once", f"{home}.mark", home=home) == "lived"
        consumer = psutil.Process(installed.enqueue("pid", home=home))
        consumer.kill()
        wait_until(lambda: not lives(consumer), "the consumer's end")
        assert installed.enqueue("pid", home=home) != consumer.pid
        status = json.loads(installed.run("taskq", "status", "app:q", "--json", home=home))
        assert status["totals"]["succeeded"] == 4
        assert "succeeded" in installed.run("taskq", "status", "app:q", home=home)
        assert "job.crashed" in installed.run("taskq", "logs", "app:q", home=home)


def test_a_fleet_within_a_program(installed: Installed) -> None:
    (installed.project / "program.py").write_text(SCRIPT)
    total, file = installed.run("python", "program.py", home="within").split()
    assert (total, file.startswith(str(installed.environment))) == ("10", True)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_journal_is_brought_up_to_date(installed: Installed, version: int) -> None:
    home = f"version{version}"
    (installed.project / home).mkdir(mode=0o700)
    journal = str(installed.project / home / "journal.db")
    job_id = installed.run("python", "-c", OLD_JOURNAL, str(version), journal).strip()
    with installed.fleet(home=home):
        result = f"from app import q; print(q.job({job_id!r}).result(timeout=30))"
        assert installed.run("python", "-c", result, home=home) == "42\n"


def test_the_pytest_plugin(installed: Installed) -> None:
    """Its fixtures are there without a line in a conftest.py."""
    (installed.project / "test_app.py").write_text(TESTS)
    (installed.project / "pytest.ini").write_text("[pytest]\ntaskq_app = app:q\npythonpath = .\n")
    told = installed.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py")
    assert "3 passed" in told


def test_the_demo(installed: Installed) -> None:
    assert "nothing lost" in installed.run("taskq", "demo")
