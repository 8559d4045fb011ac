"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ENGINES
from scripted_fleet import Place, ScriptedFleet


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that needs something is run on the engines that have it: `@pytest.mark.needs("unique")`."""
    if "engine" in metafunc.fixturenames:
        needed = {name for mark in metafunc.definition.iter_markers("needs") for name in mark.args}
        kinds = {name: kind for name, kind in ENGINES.items() if not needed & kind.unsupported}
        metafunc.parametrize("engine", kinds.values(), ids=kinds, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each engine, on an empty place."""
    kind: type[Place] = request.param
    server = (request.getfixturevalue("postgres"),) if kind.needs_server else ()
    yield (place := kind(tmp_path / "home", *server))
    place.close()


@pytest.fixture
def fleet(engine: Place) -> Iterator[ScriptedFleet]:
    """A fleet whose consumers are scripted."""
    yield (fleet := ScriptedFleet(engine, engine.clock()))
    fleet.close()
    refused = [fields for event, fields in fleet.told.log.told if event == "database.refused"]
    assert not refused, "the server understands all statements"
