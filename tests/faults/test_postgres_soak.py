"""Three machines and a database in network namespaces, everything at random: tests/postgres_soak.py, as long as
TASKQ_SOAK_MINUTES says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hosts import need_namespaces

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

sys.path.append(str(Path(__file__).parents[1]))

MINUTES = float(os.environ.get("TASKQ_SOAK_MINUTES", "30"))


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 400)
def test_machines_under_fire() -> None:
    need_namespaces()
    from postgres_soak import soak

    wrong, counts = soak(MINUTES * 60, os.environ.get("TASKQ_STORM_SEED", "20"))
    assert wrong == [], counts
