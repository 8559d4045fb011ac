"""The pages say what is true: commands, options, files and links exist, and tables and references are those of the code."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from pages import DOCS, PAGES, README, ROOT, blocks, prose_of, shell_lines, table_of, text_of

import taskq
from taskq.cli.program import COMMANDS, build
from taskq.cli.schema import PRINTED
from taskq.telemetry.catalogue import EVENTS, FIELDS, JOB_FIELDS

_spec = importlib.util.spec_from_file_location("logged", ROOT / "tools/logged.py")
assert _spec is not None
assert _spec.loader is not None
logged = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(logged)

#: Folders of other projects and of users that pages name.
ELSEWHERE = {"taskq/NAME", "tests/tasks"}


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


def test_what_each_command_prints_with_json_has_a_schema() -> None:
    printed = {name for name, command in program().items() if "--json" in options_of(command)}
    assert printed == {name.split()[0] for name in PRINTED} | {"logs"}


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


def test_each_event_and_field_that_the_code_logs_is_described_and_no_other() -> None:
    found = logged.events_of_the_code()
    described = [event for events in EVENTS.values() for event in events]
    assert sorted(described) == sorted(found)
    of_events = set[str]().union(*(of_event.fields for of_event in found.values())) - {logged.ANY}
    assert sorted(FIELDS) == sorted(of_events | {"timestamp", "level", "event", "truncated", "redaction_failed"})


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ('log.info("a.b", x=1)', [("a.b", {"info"}, {"x"})]),
        ('self._log.error("a.b" if x else "a.c", x=1)', [("a.b", {"error"}, {"x"}), ("a.c", {"error"}, {"x"})]),
        ('(log.error if x else log.info)("a.b")', [("a.b", {"error", "info"}, set())]),
        ('write = log.debug if x else log.info\n    write("a.b")', [("a.b", {"debug", "info"}, set())]),
        ('name = "a.b"\n    tx.then(self._log.info, name, x=1)', [("a.b", {"info"}, {"x"})]),
        ('log.critical("a.b", exc_info=True)', [("a.b", {"critical"}, {"error", "traceback"})]),
        ('told = {"x": 1}\n    told["y"] = 2\n    log.info("a.b", **told)', [("a.b", {"info"}, {"x", "y"})]),
        ('log.info("a.b", **({"x": 1} if x else {"y": 1, **self.made()}))', [("a.b", {"info"}, {"x", "y", "made"})]),
        ('compose("warning", {"event": "a.b", "x": 1}, 0.0)', [("a.b", {"warning"}, {"x"})]),
        ('return {"level": "warning", "event": "a.b", "x": 1}', [("a.b", {"warning"}, {"x"})]),
        ('Event("job.failed", {"row": x, "n": 1})', [("job.failed", {"error"}, {*JOB_FIELDS, "n"})]),
        ('self.tell("a.b", "error", x=1)', [("a.b", {"error"}, {"x"})]),  # a function of the file, see below
        ('logger.info("a.b")', []),  # of the application
    ],
)
def test_what_code_logs_is_seen(code: str, lines: list[tuple[str, set[str], set[str]]]) -> None:
    text = f"""
def function(self, x):
    {code}

def made(self):
    return {{"made": 1}}

def tell(self, event, level, **fields):
    announce("directory", "json", level, event, **fields)
"""
    assert list(logged.Source("example.py", text, set()).lines()) == lines


@pytest.mark.parametrize("code", ['log.info("a.b", **x.fields())', "log.info(x.event)"])
def test_what_code_logs_is_declared_where_it_cannot_be_seen(code: str) -> None:
    with pytest.raises(logged.Unknown, match=r"example.py: function: x\."):
        list(logged.Source("example.py", f"def function(x):\n    {code}\n", set()).lines())


def test_what_is_declared_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(logged.DECLARED, "gone.py: function: x", ("field",))
    with pytest.raises(logged.Unknown, match=r"gone.py: function: x"):
        logged.events_of_the_code()


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
    """Each file that they run exists, and they try each version of Python that the package names, if not more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [each.rpartition(" ")[2] for each in project["classifiers"] if re.search(r":: 3\.\d+$", each)]
    jobs: dict[str, Any] = {}
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        jobs |= yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job.get("steps", []) if "run" in step]
    run = {word for command in commands for word in re.findall(r"(?:tools|\.ci)/[\w./]+", command)}
    assert run == {".ci/run", "tools/smoke.py"}
    assert [path for path in run if not (ROOT / path).exists()] == []
    for job in ("tests", "wheel"):
        tried = jobs[job]["strategy"]["matrix"]["python"]
        assert set(versions) <= {*tried, jobs["check"]["steps"][1]["with"]["python-version"]}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert set(jobs["publish"]["needs"]) == {"test", "build"}


def test_the_addresses_of_the_repository_are_the_same_everywhere() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    for path in (ROOT / "mkdocs.yml", *(ROOT / ".github").rglob("*.yml")):
        for url in re.findall(r"https://github\.com/[\w-]+/[\w-]+", path.read_text()):
            assert url == urls["Source"], path
