"""The house: rooms that import downward only, files that can be held in the head, a pure core, a light `import
taskq`."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import taskq
from taskq.cli.program import COMMANDS

ROOT = Path(taskq.__file__).parent

#: What each room may import, beside itself. A new module needs no new row, only the right room.
ROOMS: dict[str, set[str]] = {
    "model": set(),
    "telemetry": set(),
    "system": {"model"},
    "protocol": {"model", "system"},
    "engines": {"model", "system", "protocol", "telemetry"},
    "client": {"model", "system", "protocol"},
    "broker": {"model", "telemetry", "system", "protocol", "engines"},
    "consumer": {"model", "system", "protocol", "client"},
    "testing": {"model", "system", "protocol", "engines", "client", "broker", "consumer"},
    "web": {"model", "telemetry", "client", ""},
    "contrib": {"model", "telemetry", "client", "web", "testing"},
    "cli": {"model", "telemetry", "system", "client", "broker", "web", ""},
    "": set(),  # the public names, each imported when it is first used
    "__main__": {"cli"},
}
#: Imports inside functions, outside the command line, and why each is late.
LATE = {
    ("broker.parts", "engines.moving.intake"): "it needs psycopg, which is an extra",
    ("broker.parts", "engines.postgres.engine"): "it needs psycopg, which is an extra",
    ("broker.parts", "engines.postgres.opening"): "it needs psycopg, which is an extra",
    ("broker.small", "broker.guardian"): "the guardian is small most of the time",
    ("client.app", "client.executors.executor"): "few programs have an executor",
    ("client.app", "client.executors.pickled_calls"): "few programs have an executor",
    ("client.app", "client.fleet"): "a web application never runs a fleet",
    ("client.executors.private", "client.fleet"): "`from taskq import *` must not import multiprocessing",
    ("client.transport.blocking", "client.transport.reading"): "only a stopped fleet is read",
    ("client.transport.clients", "client.transport.aio"): "asyncio takes 40-70 ms",
    ("client.transport.clients", "client.transport.postgres.aio"): "only who has a database needs its driver",
    ("client.transport.clients", "client.transport.postgres.blocking"): "only who has a database needs its driver",
    ("client.transport.clients", "client.transport.postgres.lent.within"): "only who has a database needs its driver",
    ("client.transport.postgres.queue", "client.transport.postgres.fleets"): "who only enqueues asks nothing",
    ("client.transport.postgres.queue", "client.transport.postgres.reasons"): "who only enqueues asks nothing",
    ("client.transport.postgres.queue", "client.transport.postgres.scheduling"): "who only enqueues asks nothing",
    ("client.transport.postgres.queue", "protocol.jobs"): "who only enqueues asks nothing",
    ("client.transport.quick", "protocol.counts"): "a probe asks for less",
    ("client.transport.operations", "model.info.why"): "who only enqueues asks nothing",
    ("client.transport.operations", "protocol.counts"): "who only enqueues asks nothing",
    ("client.transport.operations", "protocol.jobs"): "who only enqueues asks nothing",
    ("client.transport.operations", "protocol.schedules"): "who only enqueues asks nothing",
    ("client.transport.operations", "protocol.status"): "who only enqueues asks nothing",
    ("protocol.jobs", "model.info.job"): "a broker writes the answers, and reads none",
    ("protocol.jobs", "protocol.codec"): "a broker does not decode the arguments of jobs",
    ("consumer.process", "consumer.event_loop"): "asyncio takes 40-70 ms",
    ("web.dashboard", "web.metrics.text"): "it needs an extra of its own",
    ("testing.pytest_plugin", "client.transport.clients"): "the plugin is loaded in every test run, used or not",
    ("testing.pytest_plugin", "client.loader"): "the plugin is loaded in every test run, used or not",
    ("testing.pytest_plugin", "system.directory"): "the plugin is loaded in every test run, used or not",
    ("testing.pytest_plugin", "testing"): "the plugin is loaded in every test run, used or not",
}
#: Imports from above, for type checkers alone, and why.
FOR_TYPES = {
    ("", "client"): "the public names, each imported when it is first used",
    ("", "model"): "the public names, each imported when it is first used",
}
#: These hand names on; every other package is one docstring.
HAND_ON = {"", "protocol.codec", "testing", "cli", "web"}
MOST_FILES_IN_A_ROOM = 15
MOST_LINES_OF_A_FILE = 600
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS_OF_A_CONSTRUCTOR = 7
#: Longer than that still; a file that was divided leaves this set.
TO_BE_DIVIDED: set[str] = set()


class Import(NamedTuple):
    """One module imports another; names are without `taskq.`, and the package itself is ""."""

    importer: str
    imported: str
    is_late: bool
    is_for_types: bool = False


def module_name(path: Path) -> str:
    """`model.job` for `taskq/model/job.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def modules() -> dict[str, Path]:
    """All modules of taskq."""
    return {module_name(path): path for path in ROOT.rglob("*.py")}


@cache
def imports() -> list[Import]:
    """All imports between them."""
    return [found for name, path in modules().items() for found in imports_of(name, path.read_text())]


def imports_of(importer: str, source: str) -> list[Import]:
    """The imports of one module."""
    found: list[Import] = []

    def visit(node: ast.AST, is_late: bool, is_for_types: bool) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            is_otherwise = ast.unparse(node.test).startswith("not ")
            for child in node.body:
                visit(child, is_late, not is_otherwise)
            for child in node.orelse:
                visit(child, is_late, is_otherwise)
            return
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in {importer}"
            if node.module and node.module.split(".")[0] == "taskq":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}".removeprefix("taskq").removeprefix(".")
                    outer = node.module.removeprefix("taskq").removeprefix(".")
                    found.append(Import(importer, inner if inner in modules() else outer, is_late, is_for_types))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "taskq":
                    imported = alias.name.removeprefix("taskq").removeprefix(".")
                    found.append(Import(importer, imported, is_late, is_for_types))
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, is_late or is_function, is_for_types)

    visit(ast.parse(source), False, False)
    return found


def room(module: str) -> str:
    """The room of a module."""
    return module.split(".")[0]


def test_every_module_is_in_a_room() -> None:
    """The top level holds rooms and nothing else."""
    assert {room(module) for module in modules()} == set(ROOMS)


def test_imports_go_downward() -> None:
    """No room imports from one that is not below it, for type checkers neither; FOR_TYPES are the only exceptions."""
    upward = {
        (importer, room(imported), is_for_types)
        for importer, imported, _, is_for_types in imports()
        if room(importer) != room(imported) and room(imported) not in ROOMS[room(importer)]
    }
    assert upward == {(importer, imported, True) for importer, imported in FOR_TYPES}


def test_one_place_of_the_fleet_half_knows_the_engines() -> None:
    """The loop, the core and the consumers know the contract alone. (`rescue` is for where there is no fleet.)"""
    knows = {
        importer
        for importer, imported, *_ in imports()
        if room(importer) == "broker" and imported.startswith("engines.") and imported != "engines.contract"
    }
    assert knows == {"broker.parts", "broker.rescue"}


def commits_of(path: Path) -> list[str]:
    """Where a file commits: the calls of `commit` on something that is called a store or a journal."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    owners = [ast.unparse(call.value) for call in calls if isinstance(call, ast.Attribute) and call.attr == "commit"]
    return [owner for owner in owners if owner.endswith(("store", "journal"))]


def test_one_place_commits() -> None:
    """What is to be durable is staged with the committer; a journal itself commits only when it opens and closes."""
    engines = {name: path for name, path in modules().items() if not name.startswith("engines.embedded.journal")}
    assert {name for name, path in engines.items() if commits_of(path)} == {"engines.embedded.committer"}


def test_late_imports_have_a_reason() -> None:
    """Imports inside functions hide what a module needs: outside the command line they are the ones of LATE."""
    late = {(importer, imported) for importer, imported, is_late, _ in imports() if is_late and room(importer) != "cli"}
    assert late == set(LATE)


def test_no_cycles() -> None:
    """Nowhere, inside a room neither, and counting imports that are late or for type checkers alone."""
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for importer, imported, *_ in imports():
        if importer != imported:
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
        ("from taskq.protocol import frames", [Import("x", "protocol.frames", False)]),
        ("from taskq.model.stored import StoredState", [Import("x", "model.stored", False)]),
        ("import taskq.model.job", [Import("x", "model.job", False)]),
        ("from taskq import TaskQ", [Import("x", "", False)]),
        ("def f():\n    from taskq.client.app import TaskQ", [Import("x", "client.app", True)]),
        ("class C:\n    from taskq.client import app", [Import("x", "client.app", False)]),
        ("if TYPE_CHECKING:\n    import taskq.model.job", [Import("x", "model.job", False, is_for_types=True)]),
        ("if TYPE_CHECKING: ...\nelse:\n    import taskq.model.job", [Import("x", "model.job", False)]),
        ("if not TYPE_CHECKING:\n    import taskq.model.job", [Import("x", "model.job", False)]),
        ("try:\n    import taskq.model.job\nexcept ImportError:\n    pass", [Import("x", "model.job", False)]),
        ("import os\nfrom taskqueue import x", []),
    ],
)
def test_this_test_sees_imports(source: str, expected: list[Import]) -> None:
    """The parser of imports itself."""
    assert imports_of("x", source) == expected


# -- sizes


def packages() -> list[str]:
    """All packages of taskq, the package itself included."""
    return [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", packages())
def test_a_room_says_what_it_is_about(package: str) -> None:
    """Its `__init__.py` has a docstring, and imports nothing unless it hands names on; it holds few files."""
    path = modules()[package]
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if package not in HAND_ON:
        assert len(tree.body) == 1, "a room's own file is its docstring"
    assert len([other for other in path.parent.glob("*.py") if other != path]) <= MOST_FILES_IN_A_ROOM


def test_files_can_be_held_in_the_head() -> None:
    """None is longer than 600 lines."""
    sizes = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name for name, size in sizes.items() if size > MOST_LINES_OF_A_FILE} == TO_BE_DIVIDED


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    assert function.end_lineno is not None
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    assert first.end_lineno is not None
    described = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - described


def test_functions_can_be_held_in_the_head() -> None:
    """None is longer than 60 lines; the options of a command are not counted."""
    long = {
        f"{name}.{function.name}": lines_of(function)
        for name, path in modules().items()
        for function in functions(ast.parse(path.read_text()))
        if lines_of(function) > MOST_LINES_OF_A_FUNCTION and room(name) != "cli"
    }
    assert long == {}


# -- the map


MAP = ROOT / "README.md"
#: What the map announces as planned. A room that has been built becomes a row of the map, and leaves this set.
PLANNED: set[str] = set()
PLANNED_CLASSES: set[str] = set()


def rows_of_the_map(heading: str) -> list[list[str]]:
    """The rows of the table in a section of the map, each a list of cells."""
    section = MAP.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]


def test_the_map_names_what_is_there() -> None:
    """Each file and folder of taskq that it names exists, and what it calls planned does not."""
    named = set(
        re.findall(r"(?<![\w/.])[a-z_]+/(?:[\w/]+\.\w+|(?:[a-z_]+/)*)", re.sub(r"\(\.\./.*?\)", "", MAP.read_text()))
    )
    named = {path for path in named if not path.startswith("tests/")}
    assert len(named) > 40
    assert {path for path in named if not (ROOT / path).exists()} == PLANNED


def test_the_map_names_what_the_code_defines() -> None:
    """Each class, function or constant that it names is there, and what it calls planned is not."""
    defined = {"TaskQ", "STORES", "ENGINES"}  # the last two are those of tests
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
    named = set(re.findall(r"`(?:\w+\.)?(\w+)(?<!\.py)`", MAP.read_text()))
    assert len(named) > 30
    assert named - defined == PLANNED_CLASSES


def test_the_map_has_the_rooms() -> None:
    """Its table is ROOMS."""
    rooms = {cells[0].strip("`/"): cells[-1] for cells in rows_of_the_map("The rooms")}
    below = {name: set() if told == "nothing of taskq" else set(told.split(", ")) for name, told in rooms.items()}
    assert below == {name: others - {""} for name, others in ROOMS.items() if name not in ("", "__main__")}


def test_the_way_of_a_job_is_that_of_the_code() -> None:
    """Each file on it has one of the functions or classes that its row names, and each of these is in one."""
    for _, files, names in rows_of_the_map("The way of a job"):
        wanted = set(re.findall(r"`(\w+)`", names))
        for path in re.findall(r"`(.+?)`", files):
            tree = ast.parse((ROOT / path).read_text())
            here = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert here & set(re.findall(r"`(\w+)`", names)), f"{path} has none of {names}"
            wanted -= here
        assert not wanted


def parameters_of(method: ast.FunctionDef) -> int:
    """How many parameters a method has, without `self`."""
    return len(method.args.posonlyargs) + len(method.args.args) + len(method.args.kwonlyargs) - 1


def test_constructors_can_be_held_in_the_head() -> None:
    """None takes more than seven parameters: a class that needs more does too much."""
    long = {
        f"{name}.{node.name}": parameters_of(function)
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and room(name) != "cli"
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if parameters_of(function) > MOST_PARAMETERS_OF_A_CONSTRUCTOR
    }
    assert long == {}


# -- purity


PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "typing",
}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("broker.core.")])
def test_the_core_is_pure(name: str) -> None:
    """It imports no clock, no randomness and nothing of the system, and of taskq only the model."""
    tree = ast.parse(modules()[name].read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {other.split(".")[0] for other in names} - {"taskq"} <= PURE
    own = {".".join(other.split(".")[1:3]) for other in names if other.startswith("taskq.")}
    assert {place for place in own if not place.startswith("model")} <= {"broker.core"}


def imported_names(path: Path) -> set[str]:
    """The modules that a file imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


#: In the rooms where time is simulated, these alone look at that of the system, and why.
LOOKS_AT_THE_TIME = {
    "broker.guardian": "it waits for processes",
    "broker.watch": "it waits for a process, and for the terminal",
    "testing.clock": "it begins with the present",
}


def test_the_clock_is_handed_in() -> None:
    """In the rooms that a simulated world runs, nothing imports `time`: a clock is handed to what needs one."""
    simulated = {name: path for name, path in modules().items() if room(name) in ("broker", "engines", "testing")}
    assert {name for name, path in simulated.items() if "time" in imported_names(path)} == set(LOOKS_AT_THE_TIME)


# -- tests


TESTS = Path(__file__).parents[1]


def test_test_files_do_not_import_one_another() -> None:
    """What several of them need is in tests/support (or, of the simulated world, in tests/simulation)."""
    files = list(TESTS.rglob("test_*.py"))
    assert len(files) > 50
    names = {path.stem for path in files} | {"conftest"}
    found = {path.name: shared for path in files if (shared := imported_names(path) & names)}
    assert found == {}


#: What waits for the clock, or starts a process.
SLOW = {"sleep", "fork", "forkpty", "posix_spawn", "Popen", "Process", "Pool", "ProcessPoolExecutor", "system"}


@pytest.mark.parametrize("folder", ["unit", "engines"])
def test_fast_tests_start_no_process_and_do_not_sleep(folder: str) -> None:
    """A contributor runs them all day; what takes a process is in tests/process."""
    found = set()
    for path in (TESTS / folder).glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
        found |= {f"{path.name}: {name}" for name in names & SLOW}
        found |= {f"{path.name}: {name}" for name in imported_names(path) & {"subprocess", "fleet", "terminal"}}
    assert found == set()


HEAVY = ("asyncio", "rich", "typer", "structlog", "apsw", "psutil", "multiprocessing", "numpy", "hypothesis")


def loaded_after(code: str, names: Sequence[str] = HEAVY) -> set[str]:
    """Those of some modules that a fresh interpreter has loaded after running some code."""
    program = f"{code}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
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


@pytest.mark.parametrize("module", ["taskq.cli.status.quick", "taskq.cli.health.probe"])
def test_what_has_to_answer_at_once_loads_little(module: str) -> None:
    """Each of these takes a millisecond or more, and the two have 50 beside Python's start."""
    slow = ("ast", "ctypes", "dataclasses", "inspect", "json", "shutil", "tempfile", "textwrap")
    assert loaded_after(f"import {module}", (*HEAVY, *slow)) == set()


#: What a program that only enqueues does not load.
NOT_TO_ENQUEUE = (
    *HEAVY,
    "taskq.broker",
    "taskq.cli",
    "taskq.client.fleet",
    "taskq.client.transport.aio",
    "taskq.client.transport.reading",
    "taskq.consumer",
    "taskq.engines",
    "taskq.model.settings",
    "taskq.model.info.counts",
    "taskq.model.info.job",
    "taskq.model.info.schedule",
    "taskq.model.info.status",
    "taskq.protocol.jobs",
    "taskq.protocol.status",
    "taskq.telemetry",
    "taskq.testing",
)


def test_to_enqueue_is_light(tmp_path: Path) -> None:
    """What is about asking a fleet, running one or running jobs is not imported on the way of a job into the queue."""
    code = f"import taskq\nq = taskq.TaskQ('light', {str(tmp_path / 'queue')!r})\n@q.task\ndef f(x: int): ...\nf.enqueue(2)"
    assert loaded_after(code, NOT_TO_ENQUEUE) == set()
    assert len(list((tmp_path / "queue").rglob("*.jobs"))) == 1  # in the spool, as no fleet runs


def test_the_list_of_commands_is_light() -> None:
    """`taskq --help` imports no command: only rich, which draws it."""
    code = """
import contextlib, io, sys
from taskq.cli import program
sys.argv = ["taskq", "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    program.run()
"""
    commands = {f"taskq.cli.{module}" for module, _, _ in COMMANDS.values()} - {"taskq.cli.common"}
    assert loaded_after(code, [*HEAVY, *commands, "taskq.client", "taskq.broker"]) <= {"rich", "typer"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    """Its sentences are those with which the docstring of the command begins."""
    module, _, summary = COMMANDS[name]
    function = getattr(import_module(f"taskq.cli.{module}"), name)
    assert summary == (inspect.getdoc(function) or "").partition("\n\n")[0]


def test_a_broker_is_light() -> None:
    """It imports nothing of the client, and decodes no values."""
    others = ("taskq.cli", "taskq.client", "taskq.consumer", "taskq.model.info.job", "taskq.protocol.codec", "asyncio")
    assert loaded_after("import taskq.broker.process", others) == set()


def test_importing_the_log_is_light() -> None:
    """The logger brings neither rich nor asyncio with it, and both can be imported afterwards."""
    code = (
        "import sys, taskq.telemetry.setup, structlog;"
        "assert not {'rich', 'asyncio', 'ssl', 'twisted'} & set(sys.modules);"
        "import asyncio, rich.console;"
        "assert structlog.stdlib.asyncio.sleep is asyncio.sleep"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", taskq.__all__)
def test_public_names_are_there_and_documented(name: str) -> None:
    """Each can be imported, and has a description of its own."""
    value = getattr(taskq, name)
    assert value.__doc__
    assert value.__name__ == name
    if inspect.isclass(value):
        inherited = [base.__doc__ for base in value.__mro__[1:]]
        assert value.__doc__ not in inherited


@pytest.mark.parametrize("name", ["TaskQ", "Task", "Job", "CurrentJob"])
def test_public_methods_are_documented(name: str) -> None:
    """Every public method and property of the main classes has a description."""
    members = vars(getattr(taskq, name)).items()
    public = {member: value for member, value in members if not member.startswith("_") and hasattr(value, "__doc__")}
    unreported = [
        member for member, value in public.items() if not value.__doc__ and not inspect.ismemberdescriptor(value)
    ]
    assert unreported == []


def test_public_names_are_sorted_out() -> None:
    """No name twice; an unknown one is an ordinary error; completion knows them all."""
    assert len(set(taskq.__all__)) == len(taskq.__all__)
    assert set(taskq.__all__) <= set(dir(taskq))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = taskq.no_such_name  # type: ignore[attr-defined]
