"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_fleet import ENGINES, Place, ScriptedClock, ScriptedFleet


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each engine, on an empty place."""
    kind: type[Place] = request.param
    return kind(tmp_path / "home")


@pytest.fixture
def fleet(engine: Place) -> Iterator[ScriptedFleet]:
    """A fleet whose consumers are scripted."""
    yield (fleet := ScriptedFleet(engine, ScriptedClock()))
    fleet.close()
