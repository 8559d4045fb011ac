"""The pages for builders keep their word: what they name exists, and tests/README.md has the invariants of the judge."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "taskq/README.md", "tests/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_files_that_exist(page: str) -> None:
    paths = re.findall(r"\b(?:tests|taskq|examples)/[\w/]+(?:\.\w+)?|\.ci/\w+", (ROOT / page).read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_invariants_are_those_of_the_judge() -> None:
    """Each function of the judge that begins with a number has its row, with the file that it is in."""
    judged = set()
    for path in (ROOT / "tests/simulation").glob("history*.py"):
        for function in ast.parse(path.read_text()).body:
            if isinstance(function, ast.FunctionDef):
                numbers = re.findall(r"\bI(\d+):", ast.get_docstring(function) or "")
                judged |= {(int(number), path.name) for number in numbers}
    rows = re.findall(r"^\| I(\d+) \| .+ \| (\w+\.py) \|$", (ROOT / "tests/README.md").read_text(), re.M)
    assert [int(number) for number, _ in rows] == sorted(number for number, _ in judged)
    assert {(int(number), name) for number, name in rows} == judged


def test_the_variables_are_those_of_the_tests() -> None:
    """What makes a run larger, or stricter, is read by a test or its support."""
    named = set(re.findall(r"`(TASKQ_\w+?)[=`]", (ROOT / "tests/README.md").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert named
    assert {name for name in named if f'environ.get("{name}"' not in sources} == set()


def test_each_folder_of_the_tests_has_its_row() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert set(re.findall(r"^\| \[(\w+)\]", (ROOT / "tests/README.md").read_text(), re.M)) == folders


@pytest.mark.parametrize("room", ["taskq", "tests", "examples"])
def test_no_source_cites_a_page_that_is_not_there(room: str) -> None:
    """A comment or a docstring that sends its reader to a page sends them to one of the repository."""
    pages = {path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("t*/README.md"))}
    names = {page.rpartition("/")[2] for page in pages}
    cited = {
        f"{path.name}: {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in re.findall(r"\b[A-Z][A-Z_]+\.md\b", path.read_text())
        if name not in names
    }
    assert cited == set()
