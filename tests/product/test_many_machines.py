"""The example with two fleets and a web application: its compose file, run without Docker, each service on a host of
its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from fleet import wait_until
from hosts import Host, Network, need_namespaces
from postgres import need_server, running_server

from taskq import BrokerUnavailable, TaskQ

EXAMPLE = Path(__file__).parents[2] / "examples" / "many_machines"
#: Longer than anything here takes on a busy machine.
DEADLINE_S = 60.0
#: What makes the user and the database of the image `postgres`.
_SETUP = "CREATE ROLE {POSTGRES_USER} LOGIN; CREATE DATABASE {POSTGRES_DB} OWNER {POSTGRES_USER}"


def services() -> dict[str, Any]:
    """The services of the compose file."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]
    return found


def test_the_compose_file() -> None:
    """Services wait for healthy ones that there are, named volumes exist, and grace is longer than --stop-timeout."""
    text = (EXAMPLE / "compose.yaml").read_text()
    whole, found = yaml.safe_load(text), services()
    assert set(found) == {"db", "fleet-a", "fleet-b", "web"}
    for name, service in found.items():
        assert set(service) <= {
            "build", "image", "command", "environment", "volumes", "healthcheck", "depends_on", "ports", "restart",
            "stop_grace_period", "hostname",
        }, name  # fmt: skip
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in found[other]
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in whole["volumes"]
        if "--stop-timeout" in service.get("command", ()):
            after = service["command"][service["command"].index("--stop-timeout") + 1]
            assert int(service["stop_grace_period"].removesuffix("s")) >= int(after) + 10
    copied = re.findall(r"^COPY (\S+)", (EXAMPLE / "Dockerfile").read_text(), re.M)
    assert all((EXAMPLE / name).exists() for name in copied)


@contextmanager
def started(service: dict[str, Any], host: Host, database: Host, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command of a service on a host, as its container would."""
    program, *arguments = service["command"]
    home = folder / f"host{host.number}"
    environment = {
        **os.environ,
        "TASKQ_URL": service["environment"]["TASKQ_URL"].replace("@db/", f"@{database.address}/").replace("=10", "=2"),
        "MACHINE": service.get("hostname", "web"),
        "XDG_STATE_HOME": str(home),
    }
    home.mkdir()
    command = [*host.prefix, sys.executable, "-m", program, *arguments]
    process = subprocess.Popen(command, cwd=EXAMPLE, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        lose(process)


def lose(process: subprocess.Popen[bytes]) -> None:
    """Kills all processes of a machine."""
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == process.pid:
                os.kill(pid, 9)
        except ProcessLookupError:
            pass
    process.wait()


@pytest.mark.timeout(180)
def test_it_loses_nothing_with_a_machine(tmp_path: Path) -> None:
    """The commands of the compose file, on four hosts; one of the fleets is killed under load."""
    need_namespaces()
    need_server()
    found = services()
    with Network() as network, ExitStack() as stack:
        database, first, second, web = (network.host() for _ in range(4))
        server = stack.enter_context(
            running_server(settings={"listen_addresses": database.address}, prefix=database.prefix)
        )
        server.allow_network()
        with server.connect() as connection:
            for statement in _SETUP.format(**found["db"]["environment"]).split("; "):
                connection.execute(statement.encode())
        fleets = [
            stack.enter_context(started(found[name], host, database, tmp_path))
            for name, host in (("fleet-a", first), ("fleet-b", second))
        ]
        stack.enter_context(started(found["web"], web, database, tmp_path))
        q = TaskQ("shop", server.url(found["db"]["environment"]["POSTGRES_DB"]))
        wait_until(lambda: both_are_ready(q), "two fleets of two consumers", DEADLINE_S)
        with web.inside(), httpx.Client(base_url=f"http://{web.address}:8000", timeout=30) as http:
            wait_until(lambda: answers(http), "the web application", DEADLINE_S)
            numbers, written = count(), set[str]()

            def order(orders: int) -> list[str]:
                return [http.post(f"/orders/{next(numbers)}").json()["job"] for _ in range(orders)]

            def both_have_written() -> bool:
                written.update(finished(http, job) for job in order(20))
                return {text.rpartition(" ")[2] for text in written} == {"fleet-a", "fleet-b"}

            wait_until(both_have_written, "invoices of both fleets", DEADLINE_S)
            jobs = order(60)
            lose(fleets[0])
            jobs += order(40)
            written |= {finished(http, job) for job in jobs}
    assert {text.split(",")[0] for text in written} == {f"invoice {number}" for number in range(next(numbers))}


def both_are_ready(q: TaskQ) -> bool:
    """Whether two fleets are heard of, and all of their consumers have imported the application."""
    try:
        status = q.status()
    except BrokerUnavailable:
        return False  # the first fleet has not made the tables yet
    ready = [consumer for consumer in status.consumers if consumer.state != "starting"]
    return (len(status.machines), len(ready)) == (2, 4)


def answers(http: httpx.Client) -> bool:
    """Whether the web application is there."""
    try:
        return http.get("/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


def finished(http: httpx.Client, job: str) -> str:
    """Waits for the invoice of an order."""

    def invoice() -> str | None:
        return http.get(f"/jobs/{job}").json().get("invoice")

    return str(wait_until(invoice, f"the end of job {job}", DEADLINE_S))
