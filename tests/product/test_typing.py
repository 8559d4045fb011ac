"""The types of the public face, as mypy and pyright see them: right code passes, and each wrong call is an error
there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FILES = Path(__file__).parent / "typing"


def mypy(name: str, cache: Path) -> dict[int, str]:
    """What mypy says of a file, by line."""
    arguments = ["-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", "--no-error-summary", name]
    run = subprocess.run([sys.executable, *arguments], cwd=FILES, capture_output=True, text=True, check=False)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    found = [re.match(rf"{name}:(\d+): error: (.*)", line) for line in run.stdout.splitlines()]
    other = [
        line for line, match in zip(run.stdout.splitlines(), found, strict=True) if not match and ": error:" in line
    ]
    assert other == []
    return {int(match[1]): match[2] for match in found if match}


def pyright(name: str, _cache: Path) -> dict[int, str]:
    """What pyright says about a file, by line. A wrong decorator argument is reported on the decorator's line, as by
    mypy."""
    run = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, name],
        cwd=FILES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr
    told = json.loads(run.stdout)["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in told if one["severity"] == "error"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the runs of this file."""
    return tmp_path_factory.mktemp("mypy")


checkers = pytest.mark.parametrize("check", [mypy, pyright])


@pytest.mark.timeout(400)
@checkers
def test_right_code_passes(check: Callable[[str, Path], dict[int, str]], cache: Path) -> None:
    assert check("right.py", cache) == {}


@pytest.mark.timeout(400)
@checkers
def test_each_wrong_line_is_an_error(check: Callable[[str, Path], dict[int, str]], cache: Path) -> None:
    lines = (FILES / "wrong.py").read_text().splitlines()
    marked = [number for number, line in enumerate(lines, 1) if "# wrong: " in line]
    assert len(marked) > 30
    assert sorted(check("wrong.py", cache)) == marked
