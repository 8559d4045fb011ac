"""The README keeps its word: it is short, its two commands are those that people know by heart, and what it names exists."""

from __future__ import annotations

import re

from pages import README, ROOT, blocks, prose_of, text_of


def test_it_can_be_read_in_a_few_minutes() -> None:
    assert len(text_of(README).splitlines()) <= 150


def test_the_quick_start_is_these_two_commands() -> None:
    """People and machines know them by heart."""
    quick_start = text_of(README).partition("## Quick start")[2].partition("\n## ")[0]
    assert re.findall(r"^```sh\n(.*?)\n```$", quick_start, re.M | re.S) == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/taskq demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test,examples]' && .venv/bin/python -m pytest -n 3",
    ]


def test_the_installing_page_has_the_same_commands_and_the_same_example() -> None:
    assert blocks("install.md", "sh")[:2] == blocks(README, "sh")[:2]
    assert blocks("install.md", "python")[0] == blocks(README, "python")[0]


def test_each_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose_of(README))
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text_of(README))
    assert links
    for path in (*links, *shown):
        if not path.startswith("https:"):
            assert (ROOT / path).exists(), path


def test_each_promise_has_its_proof() -> None:
    table = text_of(README).partition("| promise | proof |")[2].partition("\n\n")[0]
    rows = table.strip().splitlines()[1:]
    assert len(rows) == 5
    for row in rows:
        assert re.search(r"\]\((?:tests|docs)/", row), row
