"""The promise, under fire: 20,000 jobs while consumers, brokers and producers are killed at random.

Producers note every acknowledged job in a file of their own, durably; jobs note their starts and ends. In the end the
notes and the journal must agree: nothing acknowledged is lost, nothing runs twice without a death in between.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import proof
import pytest
from fleet import APPS, Fleet, Started, running, starts, wait_until

from taskq import JobState
from taskq.model.stored import StoredState

pytestmark = pytest.mark.not_on_postgres(
    "the journal is its witness; test_postgres_storm.py is the storm over a database"
)

JOBS = 20_000
PRODUCERS = 2
KILLS = 50
SEED = os.environ.get("TASKQ_STORM_SEED", "20")


class Producer:
    """A process that enqueues; started again whenever it was killed."""

    def __init__(self, fleet: Fleet, output: Path, number: int) -> None:
        self.acknowledged = output.parent / f"acknowledged{number}"
        arguments = [fleet.home, output, self.acknowledged, JOBS // PRODUCERS, f"{SEED} {number}"]
        self._command = [sys.executable, str(APPS / "producer.py"), *map(str, arguments)]
        self.start()

    def start(self) -> None:
        """Starts it, or starts it again."""
        self.process = subprocess.Popen(self._command)

    @property
    def is_done(self) -> bool:
        """Whether all its jobs are acknowledged; fails if it ended otherwise."""
        code = self.process.poll()
        assert code in (None, 0), "a producer meets no error, whatever is killed"
        return code == 0

    def kill(self) -> None:
        """Kills it with SIGKILL and starts it again."""
        self.process.kill()
        self.process.wait()
        proof.count("kills")
        self.start()

    def ids(self) -> list[str]:
        """The jobs that were acknowledged to it."""
        return self.acknowledged.read_text().split()


def history(output: Path) -> list[Started]:
    """All that jobs noted."""
    return [line for path in output.iterdir() for line in starts(path)]


def progress(output: Path) -> int:
    """About how many jobs ended so far: a job notes some 130 bytes."""
    return sum(path.stat().st_size for path in output.iterdir()) // 130


def kill_one(fleet: Fleet, producers: list[Producer], chance: random.Random) -> str:
    """Kills something; returns what."""
    alive = [producer for producer in producers if not producer.is_done]
    role = chance.choices(("consumer", "broker", "producer"), weights=(5, 3, 3 if alive else 0))[0]
    if role == "producer":
        chance.choice(alive).kill()
        return role
    status = fleet.status()
    pids = [status["broker"]["pid"]] if role == "broker" else [one["pid"] for one in status["consumers"]]
    if not pids:
        return kill_one(fleet, producers, chance)
    try:
        fleet.kill(chance.choice(pids))
    except ProcessLookupError:
        return kill_one(fleet, producers, chance)
    return role


@pytest.mark.timeout(600)
def test_kill_storm(tmp_path: Path) -> None:
    """See the head of this file."""
    chance = random.Random(SEED)
    output = tmp_path / "output"
    output.mkdir()
    begin = time.monotonic()
    with running(Fleet(tmp_path / "queue", log_level="info")) as fleet:
        producers = [Producer(fleet, output, number) for number in range(PRODUCERS)]
        kills: Counter[str] = Counter()
        try:
            for number in range(KILLS):
                due = (JOBS - 2_000) * number // KILLS + chance.randrange(JOBS // KILLS)
                wait_until(lambda due=due: progress(output) >= due, f"progress to {due}")
                kills[kill_one(fleet, producers, chance)] += 1
            wait_until(lambda: all(producer.is_done for producer in producers), "the producers' end", 120.0)
        finally:
            for producer in producers:
                producer.process.kill()
                producer.process.wait()
        acknowledged = {job_id for producer in producers for job_id in producer.ids()}
        endings = check_acknowledged(fleet, acknowledged)
        wait_until(lambda: not any(map(any_left, fleet.status()["queues"].values())), "all queues empty")
        totals = fleet.totals()
        living = fleet.wait_ready().consumer_pids()
        took_s = time.monotonic() - begin
    assert len(acknowledged) == JOBS
    rows = rows_of(fleet)
    assert sum(rows.values()) == totals["enqueued"]
    assert totals["enqueued"] == totals["succeeded"] + totals["failed"] + totals["cancelled"]
    assert rows.get(StoredState.SUCCEEDED, 0) == totals["succeeded"]
    assert rows.get(StoredState.FAILED, 0) == totals["failed"]
    again = check_history(history(output), acknowledged, endings, living)
    print(
        f"\nseed {SEED}: {sum(kills.values())} kills ({dict(kills)}) in {took_s:.1f} s; acknowledged {len(acknowledged)}, "
        f"enqueued {totals['enqueued']}, succeeded {totals['succeeded']}, parked {totals['failed']}, "
        f"deaths charged {totals['crashed']}, started again {again['started']}, ended again {again['ended']}, lost 0"
    )
    assert sum(kills.values()) == KILLS


def any_left(counts: dict[str, int]) -> bool:
    """Whether a queue has jobs that have not ended."""
    return any(counts.values())


def check_acknowledged(fleet: Fleet, acknowledged: set[str]) -> dict[str, JobState]:
    """Every acknowledged job ends: it succeeds, or is parked after three deaths of its process."""
    states: dict[str, JobState] = {}
    with fleet.client.watching(bytes.fromhex(job_id) for job_id in acknowledged) as endings:
        while endings.waiting:
            job_id, ending = endings.next(20.0)
            assert ending is not None, f"{job_id.hex()} was acknowledged and is lost"
            states[job_id.hex()] = ending.state
            if ending.state is not JobState.SUCCEEDED:
                assert ending.outcome.error is not None
                assert (ending.state, ending.outcome.error.type) == (JobState.FAILED, "Crashed")
                assert fleet.client.info(job_id).crashes == 3
    return states


def rows_of(fleet: Fleet) -> dict[int, int]:
    """The rows in the journal of a fleet that has ended, by state."""
    with sqlite3.connect(f"file:{fleet.home / 'journal.db'}?mode=ro", uri=True) as journal:
        return dict(journal.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())


def check_history(
    lines: list[Started], acknowledged: set[str], endings: dict[str, JobState], living: list[int]
) -> Counter[str]:
    """What jobs did agrees with what is known of them. Returns how many ran more than once."""
    last_of_process: dict[int, float] = defaultdict(float)
    began: dict[str, list[Started]] = defaultdict(list)
    ended: dict[str, list[Started]] = defaultdict(list)
    for line in lines:
        last_of_process[line.pid] = max(last_of_process[line.pid], line.at)
        (began if line.label == "start" else ended)[line.job_id].append(line)
    missing = [job_id for job_id in acknowledged if endings[job_id] is JobState.SUCCEEDED and not ended[job_id]]
    assert not missing, "succeeded without having run to its end"
    for job_id, found in began.items():
        found.sort(key=lambda line: line.at)
        for one, other in itertools.pairwise(found):
            assert one.pid != other.pid, f"{job_id} ran twice in one process"
            assert one.pid not in living, f"{job_id} ran again though the process that had it lives"
            assert last_of_process[one.pid] < other.at, f"{job_id} ran in two processes at a time"
            assert other.attempt in (one.attempt, one.attempt + 1)
    again = Counter(started=sum(len(found) > 1 for found in began.values()))
    again["ended"] = sum(len(found) > 1 for found in ended.values())
    return again
