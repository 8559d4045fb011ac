"""How much was proved in a run: counted by the tests, told in one line before pytest's own last one (conftest.py)."""

from __future__ import annotations

from collections import Counter

#: seeds (simulated lives), crash states (of the disk), kills (of real processes), fuzzed frames
COUNTS: Counter[str] = Counter()
KINDS = ("seeds", "crash states", "kills", "fuzzed frames")


def count(kind: str, number: int = 1) -> None:
    """Counts something that was tried."""
    assert kind in KINDS
    COUNTS[kind] += number


def line() -> str:
    """The line, for a run in which nothing failed: whatever finds a lost job fails."""
    told = ", ".join(f"{COUNTS[kind]:,} {kind}" for kind in KINDS)
    return f"proof: {told}, 0 acknowledged jobs lost"
