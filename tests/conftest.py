"""Fixtures of the tests that run real fleets."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fleet
import proof
import pytest
from apps import jobs, versioned
from engines import Databases, chosen
from fleet import JOBS, Fleet, Gate, running, use
from hypothesis import HealthCheck, settings
from postgres import Server, running_server

# A shell without job control starts what is in the background with SIGINT ignored, and what is started here inherits it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The thousands of processes of the tests would compile all of taskq again and again without their bytecode.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
    sys.dont_write_bytecode = False

#: The machine may be busy with other tests: how long an example takes says nothing.
settings.register_profile("taskq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("taskq")

#: How many tests were left out with `--engine=postgres`, for each reason.
_LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the choice of the engine."""
    parser.addoption("--engine", choices=("embedded", "postgres"), default="embedded", help="of the end-to-end tests")


def pytest_configure(config: pytest.Config) -> None:
    """Gives each queue a database, if that is wanted."""
    if config.getoption("--engine") == "postgres":
        fleet.databases = databases = Databases()
        config.add_cleanup(databases.close)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the collector of garbage from looking at thousands of tests again and again: they stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves those out that make no sense with another engine: their mark says why."""
    if config.getoption("--engine") == "embedded":
        return
    kept, left_out = chosen(items)
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    config.stash[_LEFT_OUT] = left_out
    items[:] = kept


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Says how many tests were left out for which reason."""
    left_out = config.stash.get(_LEFT_OUT, Counter[str]())
    return [f"{number:5} not on PostgreSQL: {reason}" for reason, number in left_out.most_common()]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Each of several test processes passes on what it has proved."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["proof"] = dict(proof.COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What one of several test processes has proved is added to the rest."""
    proof.COUNTS.update(getattr(node, "workeroutput", {}).get("proof", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Says how much was proved, if everything was run and nothing failed."""
    if exitstatus == pytest.ExitCode.OK and len(proof.COUNTS) == len(proof.KINDS):
        terminalreporter.write_line(proof.line())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory of a queue, which `apps.jobs` uses in this test."""
    home = tmp_path / "queue"
    use(jobs.q, home)
    return home


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Fleet]]:
    """Starts fleets that are stopped and checked at the end of the test."""
    with ExitStack() as stack:
        yield lambda app=JOBS, **options: stack.enter_context(running(Fleet(home, app, **options)))


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet of two consumers for all tests of a file that leave it as they found it."""
    with running(Fleet(tmp_path_factory.mktemp("shared") / "queue")) as fleet:
        yield fleet


@pytest.fixture
def shared(shared_fleet: Fleet) -> Fleet:
    """The shared fleet, which `apps.jobs` uses in this test."""
    use(jobs.q, shared_fleet.home)
    return shared_fleet


@pytest.fixture
def make_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """Makes gates that hold jobs."""
    made: list[Gate] = []

    def make() -> Gate:
        made.append(Gate(tmp_path / f"gate{len(made)}"))
        return made[-1]

    yield make
    for gate in made:
        gate.open()  # in case the test has failed: nothing must wait for ever


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    """A gate that holds jobs."""
    return make_gate()


@pytest.fixture
def version(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which version of `apps.versioned` is imported."""
    version = tmp_path / "version"
    version.write_text("one")
    monkeypatch.setenv("TASKQ_TEST_VERSION", str(version))
    use(versioned.q, home)
    return version


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """The PostgreSQL server of this session. Tests that stop it start it again."""
    with running_server() as server:
        yield server


@pytest.fixture
def database(postgres: Server) -> Iterator[str]:
    """The name of an empty database of that server."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)
