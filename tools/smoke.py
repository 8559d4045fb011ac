"""Builds the wheel and the source distribution, and tries them in empty environments, as users have them.

    python tools/smoke.py                    # with every Python from 3.11 on that is found here
    python tools/smoke.py --python 3.13      # with this one; can be repeated
    python tools/smoke.py --lowest           # with the oldest dependencies that pyproject.toml allows, and all extras
    python tools/smoke.py --dist dist        # what was built is left in this folder; what is there already is tried

It needs uv. No test of the checkout is run: only what the distribution has can be seen.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
#: Extras that are there for those who build taskq.
FOR_BUILDERS = {"dev", "docs", "examples", "test"}
_DEADLINE_S = 240.0

_APP = """
import os, signal, sys
from pathlib import Path
from taskq import TaskQ, chain

q = TaskQ("smoke")

@q.task
def add(a: int, b: int) -> int:
    return a + b

@q.task
def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "lived"

if __name__ == "__main__":
    with q.fleet(consumers=2):
        assert sum(add.starmap([(1, 2), (3, 4)])) == 10
        assert die_once.enqueue("mark").result(timeout=60) == "lived"
        assert chain(add.step(1, 2), add.step(3)).enqueue().result(timeout=60) == 6
        assert q.status().totals.succeeded == 5
    print("smoke", sys.version.split()[0])
"""
#: What the extras add, as modules.
_MODULES = """
import taskq.web, taskq.web.metrics.families, taskq.web.server
import taskq.contrib.celery, taskq.contrib.flask, taskq.contrib.joblib, taskq.contrib.starlette
import taskq.contrib.otel, taskq.contrib.sentry, taskq.client.executors.private
import cloudpickle, numpy, psycopg, watchfiles
from django.conf import settings
settings.configure()
import taskq.contrib.django.backend
"""


class Failed(Exception):
    """A command has not done what it should; the text says which, and what it printed."""


def run(*command: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command to its end; returns what it printed. Raises Failed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=None if environment is None else dict(environment),
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def uv(*words: object) -> str:
    """Runs uv."""
    return run(sys.executable, "-m", "uv", *words)


def built(folder: Path) -> tuple[Path, Path]:
    """The wheel and the source distribution in a folder, built if they are not there."""
    if not list(folder.glob("*.whl")):
        uv("build", "--quiet", "--out-dir", folder, ROOT)
    [wheel], [source] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def interpreter(version: str) -> str | None:
    """The path of a Python on this machine, also one of pyenv that is not active, or None. Nothing is downloaded."""
    try:
        return uv("python", "find", "--no-python-downloads", "--system", version).strip()
    except Failed:
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
        return next((str(path) for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python"))), None)


def dependencies(extras: Sequence[str]) -> list[str]:
    """What pyproject.toml asks for, with these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *(each for extra in extras for each in optional[extra])]


def try_it(python: str, distribution: Path, folder: Path, is_lowest: bool = False) -> str:
    """Installs a distribution into an empty environment and uses it; returns what the program printed."""
    environment, project = folder / "environment", folder / "project"
    project.mkdir(parents=True)
    uv("venv", "--quiet", "--python", python, environment)
    install = ("pip", "install", "--quiet", "--python", environment)
    if is_lowest:
        optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = folder / "wanted.txt"
        wanted.write_text("\n".join(dependencies(sorted(set(optional) - FOR_BUILDERS))))
        uv(*install, "--resolution", "lowest-direct", "--only-binary", ":all:", "--requirements", wanted)
    uv(*install, distribution)

    (project / "app.py").write_text(_APP)
    variables = {
        "PATH": f"{environment / 'bin'}:/usr/bin:/bin",
        "HOME": str(project),
        "LANG": "C.UTF-8",
        "TASKQ_URL": str(project / "queue"),
    }
    told = run(environment / "bin/python", "app.py", cwd=project, environment=variables)
    for command in ("worker app.py:q --drain", "enqueue app.py:q add 1 2", "status app.py:q", "logs app.py:q", "demo"):
        run(environment / "bin/taskq", *command.split(), cwd=project, environment=variables)
    typed = "import taskq, pathlib; print((pathlib.Path(taskq.__file__).parent / 'py.typed').exists(), taskq.__file__)"
    is_typed, place = run(environment / "bin/python", "-c", typed, cwd=project, environment=variables).split()
    if is_typed != "True" or not place.startswith(str(environment)):
        raise Failed(f"{distribution.name} has no py.typed, or another taskq was imported: {place}")
    if is_lowest:
        run(environment / "bin/python", "-c", _MODULES, cwd=project, environment=variables)
    return told.strip()


def main() -> int:
    """Returns an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", action="append", help="a version or a path; can be repeated")
    parser.add_argument("--lowest", action="store_true", help="with the oldest dependencies, and all extras")
    parser.add_argument("--dist", type=Path, help="the folder of what is built")
    wanted = parser.parse_args()
    os.environ.pop("VIRTUAL_ENV", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, source = built((wanted.dist or folder / "dist").absolute())
        versions = wanted.python or (VERSIONS[:1] if wanted.lowest else VERSIONS)
        tried = 0
        for version in versions:
            python = interpreter(version)
            if python is None:
                print(f"Python {version} is not here")
                continue
            for distribution in (wheel,) if wanted.lowest or tried else (wheel, source):
                kind = distribution.name.removeprefix("taskq_fleet-")
                place = folder / re.sub(r"\W", "_", f"{version}-{kind}")
                told = try_it(python, distribution, place, wanted.lowest)
                print(f"{told}: {distribution.name}{', oldest dependencies' if wanted.lowest else ''}", flush=True)
            tried += 1
    return 0 if tried and (tried == len(versions) or not wanted.python) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(str(error))
