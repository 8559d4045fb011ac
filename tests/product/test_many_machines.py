"""The example with two fleets and a web application: its compose file, run without Docker, each service on a host of
its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from hosts import Host, Network, need_namespaces
from postgres import need_server, running_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "many_machines"
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
        with web.inside(), httpx.Client(base_url=f"http://{web.address}:8000", timeout=30) as http:
            until_it_answers(http)
            jobs = [http.post(f"/orders/{number}").json()["job"] for number in range(60)]
            written = {finished(http, jobs[0])}
            lose(fleets[0])
            jobs += [http.post(f"/orders/{number}").json()["job"] for number in range(60, 100)]
            written |= {finished(http, job) for job in jobs}
    assert {text.split(",")[0] for text in written} == {f"invoice {number}" for number in range(100)}
    assert {text.rpartition(" ")[2] for text in written} == {"fleet-a", "fleet-b"}


def until_it_answers(http: httpx.Client) -> None:
    """Waits until the web application takes an order, which needs the tables that a fleet makes."""
    give_up_at = time.monotonic() + 30
    while True:
        try:
            if http.post("/orders/0").status_code == 202:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


def finished(http: httpx.Client, job: str) -> str:
    """Waits for the invoice of an order."""
    give_up_at = time.monotonic() + 30
    while (found := http.get(f"/jobs/{job}").json())["state"] != "succeeded":
        assert time.monotonic() < give_up_at, found
        time.sleep(0.02)
    return str(found["invoice"])
