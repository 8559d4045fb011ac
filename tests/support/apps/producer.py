"""A producer of the kill storm: enqueues storms of jobs until a number of them is acknowledged, and notes each of these
durably.

Run as: producer.py DIRECTORY OUTPUT ACKNOWLEDGED COUNT SEED. Killed and started again it goes on where its notes end.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from apps import jobs

from taskq.system.directory import Directory


def main(home: str, output: str, acknowledged: str, count: str, seed: str) -> None:
    jobs.q.use_directory(Directory(Path(home)))
    notes = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    known = Path(acknowledged).read_bytes().count(b"\n")
    chance = random.Random(f"{seed} {known}")
    while known < int(count):
        number = min(chance.choice((1, 20, 60)), int(count) - known)
        if number == 1:
            made = [jobs.storm.enqueue(output, known)]
        else:
            made = jobs.storm.enqueue_many([(output, known + position) for position in range(number)])
        os.write(notes, "".join(f"{job.id}\n" for job in made).encode())
        os.fsync(notes)
        known += number
        made[-1].wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
