"""Two machines share one queue in PostgreSQL, and one of them is killed. Nothing is lost.

    pip install 'taskq-fleet[postgres]'
    TASKQ_URL=postgresql://user@host/database python examples/two_machines.py

Both fleets run on this machine, each in a state directory of its own, as two machines have. On real ones, export the
same TASKQ_URL on each and run `taskq worker examples/two_machines.py:q`.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from taskq import BrokerUnavailable, TaskQ, as_completed

q = TaskQ("two_machines")


@q.task
def square(number: int) -> tuple[str, int]:
    """Takes 10 ms, and says on which machine it ran."""
    time.sleep(0.01)
    return os.environ.get("MACHINE", "?"), number * number


def start_machine(name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Starts a fleet as another machine would; its broker, its consumers and its log are its own."""
    environment = {**os.environ, "MACHINE": name, "XDG_STATE_HOME": str(folder / name)}
    command = [sys.executable, "-m", "taskq", "worker", f"{__file__}:q", "--consumers", "2", "--log-level", "error"]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def lose(machine: subprocess.Popen[bytes]) -> None:
    """Kills all processes of a fleet: no other broker starts there, and nobody hands its jobs back."""
    for pid in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(ProcessLookupError):
            if os.getsid(pid) == machine.pid:
                os.kill(pid, signal.SIGKILL)
    machine.wait()


def main(count: int) -> None:
    """Runs jobs on two machines, and kills one of them on the way."""
    with tempfile.TemporaryDirectory() as folder:
        machines = {name: start_machine(name, Path(folder)) for name in ("a", "b")}
        try:
            run(count, machines)
        finally:
            for machine in machines.values():
                if machine.poll() is None:
                    machine.terminate()
                    machine.wait()


def machines_up() -> int:
    """How many machines there are; none as long as the first of them has not made the tables."""
    try:
        return len(q.status().machines)
    except BrokerUnavailable:
        return 0


def run(count: int, machines: dict[str, subprocess.Popen[bytes]]) -> None:
    """Enqueues jobs, and tells where they ran."""
    while machines_up() < len(machines):
        time.sleep(0.1)
    jobs = square.enqueue_many((number,) for number in range(count))
    ran: Counter[str] = Counter()
    total = 0
    print(f"{count} jobs for machines a and b")
    for done, job in enumerate(as_completed(jobs), 1):
        machine, value = job.result()
        ran[machine] += 1
        total += value
        if done == count // 4:
            print(
                f"after {done} jobs, machine b is killed; its jobs run again when 30 s have passed without a sign of it"
            )
            lose(machines["b"])
    print(f"{total} is {'right' if total == sum(number * number for number in range(count)) else 'wrong'}")
    print("where they ran: " + ", ".join(f"{machine}: {number}" for machine, number in sorted(ran.items())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two machines share one queue, and one of them is killed.")
    parser.add_argument("--count", type=int, default=1_000, help="how many jobs")
    main(parser.parse_args().count)
