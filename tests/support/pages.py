"""The pages in docs/: their blocks of Python, written to a folder as a reader has them who pasted them."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


def paste(page: str, folder: Path) -> list[str]:
    """Writes each block of Python to the file that its first comment names. Returns the names."""
    names = []
    for block in blocks(page, "python"):
        name = re.match(r"# ([\w/]+\.py)\n", block)
        assert name is not None, f"this block of {page} does not begin with the name of a file:\n{block}"
        path = folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
        names.append(name[1])
    return names


def run(folder: Path, *command: str, **environment: str) -> str:
    """Runs a command of Python in a folder to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def imported(folder: Path, name: str) -> Iterator[ModuleType]:
    """A module of a folder as one of this process, while the block runs."""
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        del sys.modules[name]
