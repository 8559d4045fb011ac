"""The pages say what is true: commands, options, files and links exist, and tables and references are those of the code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pages import DOCS, PAGES, README, ROOT, blocks, prose_of, shell_lines, table_of, text_of

import taskq
from taskq.cli.program import COMMANDS, build

#: In the code, what has the form of an event's name and is none.
NOT_EVENTS = {"output.jsonl", "queue.id", "queue.process", "queue.publish"}
#: Folders of other projects and of users that pages name.
ELSEWHERE = {"taskq/NAME", "tests/tasks"}
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


# -- the commands


def commands_told(page: str) -> list[str]:
    """The calls of taskq anywhere on a page: in blocks, in comments of Python, in units, in running text."""
    in_blocks = [line.removeprefix(".venv/bin/").partition(" | ")[0] for line in shell_lines(page)]
    in_text = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(page))]
    in_python = re.findall(r"# .*\b(taskq [a-z]+ --.*)", "\n".join(blocks(page, "python")))
    in_units = re.findall(r"^ExecStart=\S*/(taskq .*)", "\n".join(blocks(page, "ini")), re.M)
    return [line for line in (*in_blocks, *in_text, *in_python, *in_units) if re.match(r"taskq [a-z]", line)]


@cache
def program() -> dict[str, Any]:
    """The commands of the program, by their names."""
    groups: list[Any] = [typer.main.get_command(build([name])) for name in COMMANDS]
    return {name: command for group in groups for name, command in group.commands.items()}


def options_of(command: Any) -> set[str]:
    """The names of its options, long and short."""
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def options_in(text: str) -> set[str]:
    """The options that a text names."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def test_each_command_exists_with_its_options() -> None:
    told = [(page, line) for page in PAGES for line in commands_told(page)]
    assert len(told) >= 60
    for page, line in told:
        name = line.split()[1]
        assert name in program(), (page, line)
        assert options_in(line) <= options_of(program()[name]), (page, line)


def test_options_that_stand_alone_are_those_of_some_command() -> None:
    known = set[str]().union(*map(options_of, program().values()))
    alone = [(page, code) for page in PAGES for code in re.findall(r"`(--[^`]+)`", prose_of(page))]
    assert len(alone) >= 30
    for page, code in alone:
        assert options_in(code) <= known, (page, code)


# -- what else they name


@pytest.mark.parametrize("page", [page for page in PAGES if page != README])
def test_each_page_is_in_the_contents_and_its_links_lead_somewhere(page: str) -> None:
    shown = re.findall(r'(?:src|srcset)="([^"]+)"', text_of(page))
    for link in (*re.findall(r"\]\(((?!https?:)[^)#]+)[^)]*\)", text_of(page)), *shown):
        assert (DOCS / link).exists(), link
    parts = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert page in [name for part in parts for entries in part.values() for entry in entries for name in entry.values()]


@pytest.mark.parametrize("page", PAGES)
def test_each_file_of_the_repository_exists(page: str) -> None:
    paths = re.findall(r"\b(?:tests|taskq|examples|tools)/[\w/]+(?:\.\w+)?", prose_of(page))
    drawn = re.findall(r"\b[a-z]+/[\w/]+\.py", text_of(page)) if page == "architecture.md" else []
    for path in ({*paths} - ELSEWHERE) | {f"taskq/{path}" for path in drawn}:
        assert (ROOT / path).exists(), path


def test_each_page_that_the_sources_name_exists() -> None:
    for room in ("taskq", "examples", "tests", "tools"):
        for path in (ROOT / room).rglob("*.py"):
            for page in re.findall(r"docs/([\w-]+\.md)", path.read_text()):
                assert (DOCS / page).exists(), f"{path.name} names docs/{page}"


def test_the_site_is_built_strictly(tmp_path: Path) -> None:
    """Each link leads to a page, and each anchor to a heading."""
    done = subprocess.run(
        [sys.executable, ROOT / "tools/site.py", tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.parent.name for path in (tmp_path / "site").glob("*/index.html")} >= {
        Path(page).stem for page in PAGES if page not in (README, "index.md")
    }


# -- tables that are those of the code


def test_what_is_generated_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run python tools/reference.py, since these are old: {done.stdout}{done.stderr}"


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = re.findall(r"^\| `(\w+)` \|", table_of("install.md", "| extra | what it adds |"), re.M)
    assert sorted(listed) == sorted(project["optional-dependencies"])


def names_logged(tree: ast.AST) -> Iterator[str]:
    """What is given as the name of an event: to a log, to an Event, or in a dict as "event"."""
    for node in ast.walk(tree):
        given: list[ast.AST] = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = list(node.args[:1]) if called in {*LOG_METHODS, "Event"} else []  # or one of two names
            if called == "then":  # a method of the log and its arguments, to be called after the commit
                given = list(node.args[1:2])
        elif isinstance(node, ast.Dict):
            given = [value for key, value in zip(node.keys, node.values, strict=True) if key and _text(key) == "event"]
        yield from (text for expression in given for part in ast.walk(expression) if (text := _text(part)))


def _text(node: ast.AST) -> str:
    """The text of a constant; empty for all else."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_the_events_are_those_of_the_code() -> None:
    """A name in the code counts as an event if it begins as one that is logged somewhere: `job.`, `fleet.` ..."""
    trees = [ast.parse(path.read_text()) for path in Path(taskq.__file__).parent.rglob("*.py")]
    shape = re.compile(r"([a-z]+)\.[a-z_]+")
    families = {found[1] for tree in trees for name in names_logged(tree) if (found := shape.fullmatch(name))}
    texts = {node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    named = [text for text in texts if isinstance(text, str) and text not in NOT_EVENTS]
    events = {text for text in named if (found := shape.fullmatch(text)) and found[1] in families}

    table = table_of("events.md", "| about | events |")
    listed = re.findall(r"`([a-z]+\.[a-z_]+)`", table)
    assert sorted(listed) == sorted(events)


def test_the_states_are_those_of_the_code() -> None:
    table = table_of("life-of-a-job.md", "| state | meaning |")
    assert re.findall(r"^\| `(\w+)` ", table, re.M) == list(taskq.JobState)


def entries(path: Path, suffix: str) -> int:
    """How many entries the tables of a file have: dicts whose names end in this way."""
    count = 0
    for node in ast.parse(path.read_text()).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id.endswith(suffix) and isinstance(value, ast.Dict):
            count += len(value.keys)
    return count


def test_the_proofs_are_counted_right() -> None:
    planted = sum(entries(path, "BUGS") for path in (ROOT / "tests" / "simulation").glob("*.py"))
    proof = " ".join(text_of("proof.md").split())
    told = re.search(r"more than (\d+) planted bugs", proof)
    assert told is not None
    assert planted > int(told[1])
    rows = entries(ROOT / "tests" / "faults" / "test_catalogue.py", "CATALOGUE")
    assert f"The {rows} rows of" in proof
    assert f"[{rows} faults]" in text_of(README)


# -- the repository


def test_the_workflows_run_what_is_there() -> None:
    """Each file that they run exists, and they try each version of Python that the package names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)]
    jobs: dict[str, Any] = {}
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs |= yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job.get("steps", []) if "run" in step]
    run = {word for command in commands for word in re.findall(r"(?:tools|\.ci)/[\w./]+", command)}
    assert run == {".ci/run", "tools/smoke.py"}
    assert [path for path in run if not (ROOT / path).exists()] == []
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == versions
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == {"test", "build"}


def test_the_addresses_of_the_repository_are_the_same_everywhere() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    for path in (ROOT / "mkdocs.yml", *(ROOT / ".github").rglob("*.yml")):
        for url in re.findall(r"https://github\.com/[\w-]+/[\w-]+", path.read_text()):
            assert url == urls["Source"], path
