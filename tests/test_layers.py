"""Imports go downward only, `import taskq` is light, and public names are there and told."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import taskq

ROOT = Path(taskq.__file__).parent

#: From the bottom up: a module imports from the rows below its own only. `codec`, `log` and `cli` stand for all that is in them.
ROWS = (
    {"limits", "durations", "exits", "functions", "platform", "semaphores", "spawn", "terminal"},
    {"errors", "own_descriptors"},
    {
        "progress",
        "model",
        "codec",
        "usage",
        "wire",
        "spool",
        "locks",
        "counters",
        "inbox",
        "log",
        "descriptors",
        "forkservers",
    },
    {
        "config",
        "exception_text",
        "info",
        "outcome",
        "output",
        "hooks",
        "reports",
        "retries",
        "gates",
        "schedule",
        "flows",
        "holder",
        "silence",
    },
    {"absence", "store", "bands", "store.files", "misfits"},
    {"client", "server", "outbox", "effects", "store.statements", "store.band_numbers"},
    {"overtime", "store.sqlite", "succession"},
    {"core", "items", "context", "clients", "reading"},
    {"aio", "consumer_process", "rules", "streams", "job"},
    {"options", "calls", "submitting", "waiting", "signatures"},
    {"workflows", "mapping"},
    {"task"},
    {"schedules"},
    {"app"},
    {"loader"},
    {"runner", "resolve"},
    {"consumer"},
    {"seats"},
    {"supervisor", "preload"},
    {"narrator", "intake", "handover", "watchers"},
    {"crew", "ledger", "recovery"},
    {"bulk", "timetable"},
    {"requests"},
    {"broker", "stopped"},
    {"broker_process", "guardian"},
    {"fleet"},
    {""},
    {"rehearsal"},
    {"testing"},
    {"pytest_plugin"},
    {"cli"},
    {"__main__"},
)
#: Imports inside functions that lead upward, or past the start: each has its reason beside it in the code.
LATE = {
    ("clients", "aio"),
    ("app", "fleet"),
    ("consumer_process", "consumer"),
    ("consumer", "seats"),
    ("client", "reading"),
}
LATE |= {("pytest_plugin", name) for name in ("clients", "config", "loader", "testing")}


class Import(NamedTuple):
    """One module imports another; names are without `taskq.`, and the package itself is ""."""

    importer: str
    imported: str
    is_late: bool


def module_name(path: Path) -> str:
    """`store.sqlite` for `taskq/store/sqlite.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def modules() -> dict[str, Path]:
    """All modules of taskq."""
    return {module_name(path): path for path in ROOT.rglob("*.py")}


@cache
def imports() -> list[Import]:
    """All imports between them, but those for type checkers only."""
    return [found for name, path in modules().items() for found in imports_of(name, path.read_text())]


def imports_of(importer: str, source: str) -> list[Import]:
    """The imports of one module."""
    found: list[Import] = []

    def visit(node: ast.AST, is_late: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other, is_late)
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {importer}"
            if node.module and node.module.split(".")[0] == "taskq":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}".removeprefix("taskq").removeprefix(".")
                    outer = node.module.removeprefix("taskq").removeprefix(".")
                    found.append(Import(importer, inner if inner in modules() else outer, is_late))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "taskq":
                    found.append(Import(importer, alias.name.removeprefix("taskq").removeprefix("."), is_late))
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_late or is_function)

    visit(ast.parse(source), False)
    return found


def unit(module: str) -> str:
    """The name that stands in ROWS for a module."""
    return module.split(".")[0] if module.split(".")[0] in ("codec", "log", "cli") else module


def row(module: str) -> int:
    """How high a module stands."""
    found = [number for number, names in enumerate(ROWS) if unit(module) in names]
    assert len(found) == 1, f"put {module!r} into one of the ROWS of {__file__}"
    return found[0]


def test_every_module_has_its_row() -> None:
    """A new module must be placed, and a row names nothing that is gone."""
    assert {unit(module) for module in modules()} == set().union(*ROWS)
    for module in modules():
        row(module)


def test_imports_go_downward() -> None:
    """No module imports from its own row, or from above."""
    upward = [
        f"{importer} imports {imported}"
        for importer, imported, is_late in imports()
        if not is_late and unit(importer) != unit(imported) and row(importer) <= row(imported)
    ]
    assert upward == []


def test_late_imports_are_known() -> None:
    """Imports inside functions hide what a module needs: outside the command line they are the ones of LATE."""
    late = {(importer, imported) for importer, imported, is_late in imports() if is_late and unit(importer) != "cli"}
    assert late == LATE


def test_no_cycles() -> None:
    """Nowhere, inside `codec`, `log` and `cli` neither."""
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for importer, imported, is_late in imports():
        if not is_late and importer != imported:
            below[importer].add(imported)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in below[module]:
                visit(other, (*path, module))
            done.add(module)

    for name in modules():
        visit(name, ())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from taskq import wire", [Import("x", "wire", False)]),
        ("from taskq.store import Kept", [Import("x", "store", False)]),
        ("import taskq.store.sqlite", [Import("x", "store.sqlite", False)]),
        ("from taskq import TaskQ", [Import("x", "", False)]),
        ("def f():\n    from taskq.app import TaskQ", [Import("x", "app", True)]),
        ("class C:\n    from taskq import app", [Import("x", "app", False)]),
        ("if TYPE_CHECKING:\n    from taskq.app import TaskQ", []),
        ("try:\n    import taskq.core\nexcept ImportError:\n    pass", [Import("x", "core", False)]),
        ("import os\nfrom taskqueue import x", []),
    ],
)
def test_this_test_sees_imports(source: str, expected: list[Import]) -> None:
    """The parser of imports itself."""
    assert imports_of("x", source) == expected


HEAVY = ("asyncio", "rich", "typer", "structlog", "apsw", "psutil", "multiprocessing", "numpy", "hypothesis")


def loaded_after(code: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after running some code."""
    program = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import taskq",
        "from taskq import *",
        "import taskq\nq = taskq.TaskQ('light')\n@q.task\ndef f(x: int) -> int: return x\nassert f(2) == 2",
    ],
)
def test_importing_taskq_is_light(code: str) -> None:
    """A web application that only enqueues pays for nothing that a fleet needs."""
    assert loaded_after(code) == set()


@pytest.mark.parametrize("name", ["core", "effects", "holder", "overtime"])
def test_the_core_is_pure(name: str) -> None:
    """It imports no clock, no chance and no system."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - {"taskq"}
    assert outside <= {"__future__", "collections", "dataclasses", "enum", "heapq", "itertools", "math", "typing"}


@pytest.mark.parametrize("name", taskq.__all__)
def test_public_names_are_there_and_told(name: str) -> None:
    """Each can be imported, and has a description of its own."""
    value = getattr(taskq, name)
    assert value.__doc__
    assert value.__name__ == name
    if inspect.isclass(value):
        inherited = [base.__doc__ for base in value.__mro__[1:]]
        assert value.__doc__ not in inherited


@pytest.mark.parametrize("name", ["TaskQ", "Task", "Job", "CurrentJob"])
def test_public_methods_are_told(name: str) -> None:
    """Every public method and property of the main classes has a description."""
    members = vars(getattr(taskq, name)).items()
    public = {member: value for member, value in members if not member.startswith("_") and hasattr(value, "__doc__")}
    untold = [member for member, value in public.items() if not value.__doc__ and not inspect.ismemberdescriptor(value)]
    assert untold == []


def test_public_names_are_sorted_out() -> None:
    """No name twice; an unknown one is an ordinary error; completion knows them all."""
    assert len(set(taskq.__all__)) == len(taskq.__all__)
    assert set(taskq.__all__) <= set(dir(taskq))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = taskq.no_such_name  # type: ignore[attr-defined]
