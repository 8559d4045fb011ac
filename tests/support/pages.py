"""The README and the pages in docs/: their blocks of Python, written to a folder as a reader has them who pasted them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = "README.md"
PAGES = (README, *sorted(path.name for path in DOCS.glob("*.md")))
#: The pages whose files those of a page import; it says so.
NEEDS = {"testing.md": ["options.md"], "watch.md": ["options.md", "install.md"], "web.md": ["install.md"]}


def text_of(page: str) -> str:
    """The text of a page of docs/, or of the README."""
    return (ROOT / page if page == README else DOCS / page).read_text()


def prose_of(page: str) -> str:
    """The text of a page without its blocks."""
    return re.sub(r"^```.*?^```\n", "", text_of(page), flags=re.M | re.S)


def table_of(page: str, head: str) -> str:
    """The rows of the table of a page that has this head."""
    _, found, rest = text_of(page).partition(head)
    assert found, f"{page} has no table {head}"
    return rest.partition("\n\n")[0]


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a language on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.M | re.S)


def paste(page: str, folder: Path) -> list[str]:
    """Writes each block of Python to the file that its first comment names, and those of the pages that it needs.

    Returns the names of its own files.
    """
    for needed in NEEDS.get(page, []):
        paste(needed, folder)
    names = []
    for block in blocks(page, "python"):
        name = re.match(r"# ([\w/]+\.py)\n", block)
        assert name is not None, f"this block of {page} does not begin with the name of a file:\n{block}"
        path = folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
        names.append(name[1])
    return names


def shell_lines(page: str) -> list[str]:
    """The commands in the blocks of sh of a page, without their comments; those joined by `&&` one by one."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&") if part.strip()]


def run(folder: Path, *command: str, codes: Sequence[int] = (0,), **environment: str) -> str:
    """Runs a command of Python in a folder to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in codes, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def run_line(folder: Path, line: str, **words: str) -> str:
    """Runs a line of a page: a call of taskq, or of Python. Words such as ID are replaced by what they stand for."""
    program, *arguments = (words.get(word, word) for word in shlex.split(line))
    assert program in ("taskq", "python"), line
    return run(folder, *(["-m", "taskq"] if program == "taskq" else []), *arguments)


@contextmanager
def imported(folder: Path, name: str) -> Iterator[ModuleType]:
    """A module of a folder as one of this process, while the block runs."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for module in set(sys.modules) - before:  # also what it has imported from the folder
            if (file := getattr(sys.modules[module], "__file__", None)) and Path(file).is_relative_to(folder):
                del sys.modules[module]
