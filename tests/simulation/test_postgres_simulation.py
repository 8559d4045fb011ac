"""Lives of several machines that share a real PostgreSQL server; and their judge, tried with known bugs, each of which
must be found."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from planted_postgres_bugs import BUGS
from postgres import Server
from postgres_simulation import KINDS, Lives

#: How many lives `pytest -m soak` lives. `python tests/simulation/postgres_simulation.py --seeds 100000` goes on.
SEEDS = int(os.environ.get("TASKQ_SEEDS", "2000")) // 10
#: A life of each kind is always lived; with limits one that has found a bug.
ALWAYS = [(kind, 0) for kind in dict.fromkeys(KINDS) if not kind.startswith("limits")]
ALWAYS.append(("limits parted", 3))
#: Within so many lives each planted bug must be found.
ENOUGH = 60
#: The bugs that are always looked for; all of them by `pytest -m soak`.
OFTEN = frozenset(
    {
        "no fence in the settlement",
        "leases that do not look at each other",
        "the last come first",
        "a limit that ignores other machines",
    }
)


@pytest.fixture(scope="module")
def lives(postgres: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    return Lives(postgres, tmp_path_factory.mktemp("lives"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("kind", "seed"), ALWAYS)
def test_nothing_goes_wrong_in_some_lives(lives: Lives, kind: str, seed: int) -> None:
    assert lives.judge(seed, kind) == []


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_nothing_goes_wrong_in_many_lives(lives: Lives) -> None:
    """A failing seed is lived again by `python tests/simulation/postgres_simulation.py --from SEED --seeds 1`."""
    wrong = {seed: lines for seed in range(SEEDS) if (lines := lives.judge(seed))}
    assert wrong == {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.soak) for name in BUGS]
)
def test_planted_bugs_are_found(lives: Lives, name: str) -> None:
    bug = BUGS[name]
    with bug.planted():
        for seed in range(bug.seed, bug.seed + ENOUGH):
            if {line.partition(":")[0] for line in lives.judge(seed, bug.kind)} & bug.breaks:
                return
    pytest.fail(f"not found in {ENOUGH} lives")
