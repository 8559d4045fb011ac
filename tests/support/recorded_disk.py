"""The disk of the simulated world: it remembers all commits, and a power cut takes those that were not synced."""

from __future__ import annotations

from collections.abc import Callable

from taskq.engines.embedded.journal.memory_records import Changes, Contents, Disk


class RecordedDisk(Disk):
    """What was committed survives the death of the broker; what was synced survives a power cut."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[Changes] = []
        self.synced = 0  # how many of them
        self.syncs = True  # each commit, as with SQLite's synchronous=FULL

    def write(self, changes: Changes) -> None:
        self.commits.append(changes)
        if self.syncs:
            self.synced = len(self.commits)

    def read(self) -> Contents:
        contents = Contents()
        for changes in self.commits:
            contents.apply(changes)
        return contents

    def lose_power(self, choose: Callable[[int, int], int]) -> None:
        """Keeps the synced commits, and as many of the others as `choose(fewest, most)` says."""
        kept = choose(self.synced, len(self.commits))
        del self.commits[kept:]
        self.synced = len(self.commits)
