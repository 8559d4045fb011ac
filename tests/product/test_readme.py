"""The README keeps its word: its Python runs as it is pasted, its commands, options, files and links exist, and its
lists
are those of the code."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from fleet import Fleet, running

import taskq
from taskq import testing
from taskq.cli.program import COMMANDS, build
from taskq.model.exits import Exit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
#: The README without its blocks.
PROSE = re.sub(r"^```.*?^```\n", "", README, flags=re.M | re.S)

#: In the code, what has the form of an event's name and is none.
NOT_EVENTS = {"output.jsonl", "queue.id"}
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}


def blocks(language: str) -> list[str]:
    """The blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def snippets() -> dict[str, str]:
    """The blocks of Python, by the file names that their first comments give."""
    found = {}
    for block in blocks("python"):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None, f"this block does not begin with the name of a file:\n{block}"
        assert name[1] not in found, f"two blocks have the name {name[1]}"
        found[name[1]] = block
    return found


# -- the snippets of Python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all snippets, as a user has it who pasted them. Their queues are in it, too."""
    folder = tmp_path / "pasted"
    folder.mkdir()
    for name, block in snippets().items():
        (folder / name).write_text(block)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("TASKQ_URL", "TASKQ_APP"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def printing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The snippet printing.py as a module of this process."""
    monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("printing")
    del sys.modules["printing"]


def run(folder: Path, *command: str) -> str:
    """Runs a command of Python in the folder to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=45, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_each_snippet_is_run_by_a_test_below() -> None:
    pasted = {
        "thumbs.py",
        "client.py",
        "shop.py",
        "printing.py",
        "pages.py",
        "nightly.py",
        "test_shop.py",
        "private.py",
        "ops.py",
    }
    assert set(snippets()) == {*pasted, "tracing.py"}


def test_thumbs_and_its_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "queue"
    monkeypatch.setenv("TASKQ_URL", str(home))
    with running(Fleet(home, f"{folder / 'thumbs.py'}:q")):
        command = next(line for line in command_lines() if line.startswith("taskq enqueue thumbs.py:q"))
        assert run(folder, "-m", *shlex.split(command)) == '"cat.jpg at 256"\n'
        first, second, *mapped = run(folder, "client.py").splitlines()
        assert first == "cat.jpg at 256"
        assert re.fullmatch(r"[0-9a-f]{32} \w+ cat\.jpg at 128", second)
        assert mapped == ["a.jpg at 256", "b.jpg at 256"]


def test_pages(folder: Path) -> None:
    lengths = [len(f"<p>https://example.org/{number}</p>") for number in (1, 2)]
    assert run(folder, "pages.py").splitlines() == [
        f"{lengths[0]} in pages",
        "['<p>https://example.org/1</p>', '<p>https://example.org/2</p>']",
        str(sum(lengths)),
        "0 in log",
    ]


def test_dashboard(folder: Path) -> None:
    code = (
        "import ops, re; from starlette.testclient import TestClient\n"
        "def asked(user): return client.get('/taskq/queues', headers={'X-User': user})\n"
        "with ops.q.fleet(consumers=1), TestClient(ops.app) as client:\n"
        "    ops.q.pause('mail')\n"
        "    print(*(asked(user).status_code for user in ('ann', 'bob', 'eve')), 'value=\"resume\"' in asked('bob').text)\n"
    )
    (folder / "asked.py").write_text(code)
    assert run(folder, "-W", "ignore", "asked.py") == "200 200 403 True\n"


def test_nightly(folder: Path) -> None:
    assert run(folder, "nightly.py") == "['clean_up', 'report.42']\n"


def test_printing(printing: ModuleType) -> None:
    with testing.queue(printing.q) as jobs:
        printed = printing.print_book.enqueue(5)
        refused = printing.print_book.enqueue(501)
        put_off = printing.print_book.enqueue(5, is_printer_on=False)
        jobs.drain(10)
        assert printed.result() == 5
        assert [attempt.number for attempt in printed.info().history] == [1, 2]
        assert refused.state() == "cancelled"
        assert put_off.state() == "scheduled"


def test_tracing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    tracing = importlib.import_module("tracing")
    with testing.queue(tracing.q) as jobs:
        tracing.request_id.set("42")
        tracing.order(7)
        jobs.drain()
        [job] = tracing.q.jobs()
        assert job.meta == {"team": "billing", "tenant": "acme", "request": "42"}
        assert tracing.q.job(job.id).result() == "42"
    del sys.modules["tracing"]


def test_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    shop, private = importlib.import_module("shop"), importlib.import_module("private")
    with testing.queue(private.q):
        arguments = shop.send_mail.enqueue("ann@example.org").info(arguments=True).arguments
        assert (arguments.args, arguments.left_out) == (["***"], None)
    for name in ("shop", "private"):
        del sys.modules[name]


def test_shop(folder: Path) -> None:
    assert "2 passed" in run(folder, "-m", "pytest", "-p", "no:cacheprovider", "-q", "test_shop.py")


def test_a_fleet_for_shop_needs_nothing_else(folder: Path) -> None:
    """Its tasks load in real consumers, and with the resources that a comment names no misfit is reported."""
    needs = re.search(r"taskq (worker --resources gpu=2)", snippets()["shop.py"])
    assert needs is not None
    run(folder, "-m", "taskq", *needs[1].split(), "--drain", "shop.py:q")
    log = run(folder, "-m", "taskq", "logs", "shop.py:q")
    assert "fleet.stopped" in log
    assert "fleet.misfit" not in log


# -- the commands


def command_lines() -> list[str]:
    """The calls of taskq in the blocks of sh, with their comments."""
    parts = [part.strip() for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    return [part.removeprefix(".venv/bin/") for part in parts if re.match(r"(\.venv/bin/)?taskq\b", part)]


def commands_told() -> list[str]:
    """The calls of taskq anywhere: in blocks, in comments of snippets, in running text."""
    in_text = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
    in_snippets = re.findall(r"# .*\b(taskq [a-z]+ --.*)", "\n".join(blocks("python")))
    in_units = re.findall(r"^ExecStart=\S*/(taskq .*)", "\n".join(blocks("ini")), re.M)
    return [*command_lines(), *(code for code in in_text if code.startswith("taskq ")), *in_snippets, *in_units]


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
    told = commands_told()
    assert len(told) >= 20
    for line in told:
        name = line.split()[1]
        assert name in program(), line
        assert options_in(line) <= options_of(program()[name]), line


def test_options_that_stand_alone_are_those_of_some_command() -> None:
    known = set[str]().union(*map(options_of, program().values()))
    alone: list[str] = re.findall(r"`(--[^`]+)`", PROSE)
    assert len(alone) >= 8
    for code in alone:
        assert options_in(code) <= known, code


def test_the_quick_start_is_these_two_commands() -> None:
    """People and machines know them by heart."""
    quick_start = README.partition("## Quick start")[2].partition("\n## ")[0]
    assert re.findall(r"^```sh\n(.*?)\n```$", quick_start, re.M | re.S) == [
        "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/taskq demo",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test,examples]' && .venv/bin/python -m pytest -n 2",
    ]


# -- what else it names


def test_each_file_exists() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", PROSE)
    paths = re.findall(r"\b(?:tests|taskq|examples)/[\w/]+(?:\.\w+)?", PROSE)
    drawn = re.findall(r"\b[a-z]+/[\w/]+\.py", README.partition("## Architecture")[2])
    assert links
    assert drawn
    for path in (*links, *paths, *(f"taskq/{path}" for path in drawn)):
        if not path.startswith("https:"):
            assert (ROOT / path).exists(), path


def test_each_section_that_the_sources_name_exists() -> None:
    sections = set(re.findall(r"^## (.+)$", README, re.M))
    for path in (*ROOT.glob("taskq/**/*.py"), *ROOT.glob("examples/*.py"), *ROOT.glob("*.md")):
        for section in re.findall(r'README(?:,|\'s section)\s+"([^"]+)"', path.read_text()):
            assert section in sections, f"{path.name} names a section {section!r}"


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

    table = README.partition("| about | events |")[2].partition("\n\n")[0]
    listed = re.findall(r"`([a-z]+\.[a-z_]+)`", table)
    assert sorted(listed) == sorted(events)


def test_the_exit_codes_are_those_of_the_code() -> None:
    table = README.partition("## Exit codes")[2].partition("\n## ")[0]
    assert sorted(int(code) for code in re.findall(r"\| (\d+) ", table)) == sorted(Exit)


def test_the_states_are_those_of_the_code() -> None:
    table = README.partition("| state | meaning |")[2].partition("\n\n")[0]
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
    told = re.search(r"more than (\d+) planted bugs", " ".join(README.split()))
    assert told is not None
    assert planted > int(told[1])
    rows = entries(ROOT / "tests" / "faults" / "test_catalogue.py", "CATALOGUE")
    assert f"The {rows} rows of" in " ".join(README.split())
