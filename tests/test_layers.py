"""The layers: imports go downward only, and importing taskq stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import taskq

ROOT = Path(taskq.__file__).parent

#: From the bottom up. A module imports from lines above its own, never from below or beside.
LAYERS = """
errors limits exits platform
model
wire outcome config codec context spool log
counters locks output
store
store.sqlite client
app aio core
loader
runner resolve
consumer
preload supervisor
narrator server
ledger crew
requests
broker
broker_process guardian
fleet
cli
""".strip().splitlines()

RANKS = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}

#: Imports inside functions that go upward: what only some programs use is imported when they use it.
LATE = {("app", "aio"), ("app", "fleet")}


def _layer(module: str) -> str:
    name = module.removeprefix("taskq.")
    return name if name in RANKS else name.split(".")[0]


def _modules() -> list[tuple[str, Path]]:
    found = []
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            found.append((name, path))
    return found


def _imports(path: Path) -> list[tuple[str, bool]]:
    """The taskq modules that a file imports, and whether at its top."""
    tree = ast.parse(path.read_text())
    at_the_top = {id(node) for node in tree.body}
    typing_only = {
        id(child)
        for node in tree.body
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.body
    }
    imported = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "taskq":
            names = [f"taskq.{alias.name}" for alias in node.names] if node.module == "taskq" else [str(node.module)]
            imported += [(name, id(node) in at_the_top) for name in names]
    return imported


def test_every_module_has_a_layer() -> None:
    """A new module must be given its place."""
    assert {_layer(name) for name, _ in _modules()} <= set(RANKS)


def test_imports_go_downward_only() -> None:
    """No module imports from its own layer or one above, so no cycle can begin."""
    upward = []
    for name, path in _modules():
        own = _layer(name)
        for target, is_at_the_top in _imports(path):
            other = _layer(target)
            if other not in RANKS or other == own or (not is_at_the_top and (own, other) in LATE):
                continue  # a public name of the package; a sibling in its own folder
            if RANKS[other] >= RANKS[own]:
                upward.append(f"{name} -> {target}")
    assert upward == []


def test_importing_taskq_is_cheap() -> None:
    """An application that only enqueues pays for no event loop, terminal, logger or database."""
    heavy = ["asyncio", "rich", "typer", "structlog", "apsw", "psutil", "numpy"]
    code = f"import sys; from taskq import TaskQ; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_are_there_and_documented() -> None:
    """Each name in __all__ leads to something that says what it is."""
    assert [name for name in taskq.__all__ if not getattr(taskq, name).__doc__] == []
