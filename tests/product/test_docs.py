"""The pages in docs/ keep their word: their Python runs as it is pasted, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fleet import Fleet, running
from pages import DOCS, ROOT, paste, run

#: Each page, and the files that its blocks make; each is run below.
PAGES = {
    "executors.md": ["squares.py", "reports.py", "client.py", "others.py"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the queue, for this process and those it starts."""
    home = tmp_path / "queue"
    monkeypatch.setenv("TASKQ_URL", str(home))
    return home


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_each_page_is_linked_and_its_links_lead_somewhere(page: str) -> None:
    text = (DOCS / page).read_text()
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", text):
        assert (DOCS / link).exists(), link
    assert f"](docs/{page})" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_run_by_a_test_below(page: str, tmp_path: Path) -> None:
    assert paste(page, tmp_path) == PAGES[page]


def test_executors(tmp_path: Path, home: Path) -> None:
    paste("executors.md", tmp_path)
    printed = run(tmp_path, "squares.py").splitlines()
    assert printed[:3] == ["17", "[0, 1, 4, 9, 16]", "ran again"]
    assert "seven" in printed[3]
    with running(Fleet(home, f"{tmp_path / 'reports.py'}:q")):
        job_id, total = run(tmp_path, "client.py").splitlines()
        assert re.fullmatch("[0-9a-f]{32}", job_id)
        assert total == "6"
    assert run(tmp_path, "others.py").splitlines() == ["1024", "6"]
