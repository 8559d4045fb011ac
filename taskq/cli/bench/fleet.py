"""A fleet of the benchmark's own: `taskq worker`, with all defaults, in a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskq.cli.bench.app import BenchApp
from taskq.cli.bench.children import uninterrupted
from taskq.cli.config.options import defaults
from taskq.client.job import Job
from taskq.model.errors import BrokerUnavailable, TaskQError
from taskq.system.platform import die_with_parent

_APP = "taskq.cli.bench.app:q"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.005


class BenchFleet:
    """A fleet that can be started, stopped and started again. What waits in its directory stays.

    Args:
        directory: where it lives.
        consumers: how many it has.
        options: more options of `taskq worker`.
        database: the URL of its queue; empty for one in the directory.
    """

    def __init__(self, directory: Path, consumers: int, options: Sequence[str] = (), database: str = "") -> None:
        if database:
            os.environ["XDG_STATE_HOME"] = str(directory)  # where the fleet of this machine has its socket
        self.app = BenchApp(database or directory)
        self.q = self.app.q
        self._options = [*defaults(), "--log-level", "error", "--stop-timeout", "2", "--consumers", str(consumers)]
        self._options += options
        self._environment = {**os.environ, "TASKQ_URL": database or str(directory)}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process of the command, which is the guardian."""
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Runs the command, and waits for nothing."""
        with uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "taskq", "worker", _APP, *self._options],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the benchmark, which stops its fleets
                preexec_fn=die_with_parent,  # noqa: PLW1509 - other threads only wait here, and hold no lock
            )

    def start(self) -> None:
        """Runs the command, and waits until all consumers can run jobs.

        Raises:
            TaskQError: the fleet does not start.
        """
        self.launch()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process is not None and self._process.poll() is None:
            with suppress(BrokerUnavailable):
                states = [consumer.state for consumer in self.q.client.status().consumers]
                if states and "starting" not in states:
                    return
            time.sleep(_POLL_S)
        raise TaskQError("the fleet of the benchmark did not start: try `taskq demo`, and read what it says")

    def stop(self) -> None:
        """Stops the fleet, unless it has been stopped."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        finally:
            self._process.kill()  # nothing happens if it has ended
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stops the fleet, and closes the connections to it."""
        self.q.client.close()
        self.stop()

    def first_job(self) -> float:
        """Runs the command. Returns the seconds until a job is done that has waited for it in the spool."""
        path = self.q.directory.path / "first"
        path.unlink(missing_ok=True)
        self.app.mark.options(queue="first").enqueue(str(path))
        start = time.perf_counter()
        self.launch()
        while not path.exists():
            if time.perf_counter() - start > _START_TIMEOUT_S:
                raise TaskQError("the fleet of the benchmark did not run its first job")
            time.sleep(0.001)
        return time.perf_counter() - start

    def finish(self, last: Job[Any]) -> None:
        """Waits until no job runs or is queued any more.

        Args:
            last: the job that was enqueued last: asking for the status all the time would cost what is measured.
        """
        last.wait()
        while any(queue.queued or queue.running for queue in self.q.client.status().queues.values()):
            time.sleep(_POLL_S)

    def drain(self, queue: str, last: Job[Any]) -> float:
        """Lets the jobs of a paused queue run. Returns how many seconds they took."""
        start = time.perf_counter()
        self.q.resume(queue)
        self.finish(last)
        return time.perf_counter() - start
