"""What a peer can do."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

DIRECTORY = Path(os.environ["PEERS_DIRECTORY"])
REDIS = os.environ.get("PEERS_REDIS", "")
POSTGRES = os.environ.get("PEERS_POSTGRES", "")


def script(name: str) -> str:
    """A program of the environment."""
    return str(Path(sys.executable).with_name(name))


class Peer:
    """A queue with two worker processes.

    Attributes:
        packages: those whose versions are told.
        has_bulk: whether it can enqueue many jobs with one call.
        is_in_process: whether its workers belong to the process that enqueues.
    """

    packages: Sequence[str] = ()
    has_bulk = False
    is_in_process = False

    def workers(self) -> list[list[str]]:
        """The commands that together run two worker processes."""
        return []

    def open(self) -> None:
        """Prepares it for what follows."""

    def close(self) -> None:
        """Ends what `open` began."""

    def hold(self) -> bool:
        """Keeps jobs from running while workers are up. False: it cannot, so its workers are stopped instead."""
        return False

    def enqueue(self, numbers: Sequence[int]) -> None:
        """Enqueues the job `mark` for each number, with one call each."""
        raise NotImplementedError

    def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Enqueues them with the call that it has for many."""
        raise NotImplementedError

    def round_trip(self) -> None:
        """Enqueues `ping`, and waits for its result in the way that it has for that."""
        raise NotImplementedError
