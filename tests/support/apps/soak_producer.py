"""A producer of the soak: enqueues, notes what it means to do and what was acknowledged, and reads every end.

Started again after a kill, it goes on where its notes end.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from soak_app import digest, q

from taskq.client.transport.blocking import Client
from taskq.model.errors import BrokerUnavailable, EnqueueError, JobNotFound, ResultTimeout

MOST_OPEN = 3_000
#: How often each task is chosen; those of ALONE come one at a time.
OFTEN = {"work": 800, "fail": 10, "fail_once": 20, "limited": 60, "ordered": 40, "rated": 20, "urgent": 40}
ALONE = {"die_once": 6, "die": 2, "unreadable": 10, "hang": 2, "hang_in_c": 2, "steal": 2, "chatter": 4}


class Producer:
    """One producer, and its file."""

    def __init__(self, notes: Path, number: int, jobs_per_s: float) -> None:
        self._path = notes / f"producer-{number}"
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._random = random.Random(os.urandom(8))
        self._jobs_per_s = jobs_per_s
        self._open: dict[bytes, bool] = {}  # jobs whose end was not read yet: whether they were acknowledged
        self._stop = notes / "stop"
        for line in self._path.read_bytes().splitlines():
            kind, job_id, *_ = json.loads(line)
            if kind in ("intent", "acked"):
                self._open[bytes.fromhex(job_id)] = kind == "acked"
            else:
                self._open.pop(bytes.fromhex(job_id), None)

    def _note(self, lines: list[list[Any]]) -> None:
        now = time.monotonic()
        os.write(self._file, b"".join(json.dumps([*line, now]).encode() + b"\n" for line in lines))

    def run(self) -> None:
        """Until the file `stop` is there, and then until all has ended."""
        time.sleep(1.0)  # what the one before us sent last is read first
        while self._open or not self._stop.exists():
            if not self._stop.exists() and len(self._open) < MOST_OPEN:
                self._enqueue()
            self._read_ends(0.2 if self._stop.exists() else 0.05)

    def _enqueue(self) -> None:
        count = self._random.choice((1, 1, 1, 5, 20, 100))
        if self._random.random() < 0.002:
            count = 5_000  # a flood
        weights = {**OFTEN, **(ALONE if count == 1 else {})}
        [name] = self._random.choices(list(weights), weights=list(weights.values()))
        seconds = 0.0 if count > 5 else self._random.choice((0.0, 0.001, 0.01, 0.3))
        task = q.tasks[name]
        arguments = [(self._random.randrange(10**9), self._text(name), seconds) for _ in range(count)]
        calls = list(task._calls(arguments))
        self._note(
            [["intent", call.id.hex(), digest(a[0], len(a[1])), name] for call, a in zip(calls, arguments, strict=True)]
        )
        try:
            q.client.submit(task._spec, iter(calls))
            self._note([["acked", call.id.hex()] for call in calls])
            is_acked = True
        except (EnqueueError, BrokerUnavailable):
            is_acked = False  # nothing is promised; some may be there all the same
        self._open.update(dict.fromkeys((call.id for call in calls), is_acked))
        time.sleep(count / self._jobs_per_s)

    def _text(self, name: str) -> str:
        if name in ("limited", "ordered"):
            return f"key {self._random.randrange(10**12) if self._random.random() < 0.9 else 0}"
        return "x" * self._random.choice((0, 10, 200))

    def _read_ends(self, patience_s: float) -> None:
        client = q.client
        give_up_at = time.monotonic() + patience_s
        with client.watching(list(self._open)) as endings:
            while endings.waiting and time.monotonic() < give_up_at + 2.0:
                try:
                    job_id, ending = endings.next(max(0.001, give_up_at - time.monotonic()))
                except ResultTimeout:
                    return
                if ending is None:
                    self._note([["lost" if self._open.pop(job_id) else "absent", job_id.hex()]])
                    continue
                self._read_one(client, job_id)

    def _read_one(self, client: Client, job_id: bytes) -> None:
        try:
            info = client.info(job_id)
        except (BrokerUnavailable, JobNotFound):
            return  # asked again
        error = "" if info.error is None else f"{info.error.type} {info.error.message}"
        outcome = sha256(f"{info.started_at} {info.duration_s} {error}".encode()).hexdigest()[:12]
        self._note([["read", job_id.hex(), info.state.value, info.attempts, info.crashes, outcome]])
        self._open.pop(job_id, None)


if __name__ == "__main__":
    Producer(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).run()
