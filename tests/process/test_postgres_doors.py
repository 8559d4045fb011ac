"""How one gets in to a database: roles, passwords, certificates, several addresses, a pooler; and what keeps one out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from traceback import format_exception
from typing import Any

import psycopg
import pytest
from apps import jobs
from fleet import JOBS, running, use, wait_until
from machines import SCHEMA, MachineFleet, use_database
from postgres import Server, need_server
from psycopg import errors
from terminal import Here, here, refused, taskq

from taskq import BrokerUnavailable, ConfigError, TaskQ, Unique, chain
from taskq.engines.postgres.migrate import grants_for, migrate
from taskq.model.exits import Exit

pytestmark = pytest.mark.not_on_postgres("it has a database in each run")

__all__ = ["here"]  # a fixture
q = jobs.q
#: Found nowhere else.
PASSWORD = "gEheim-4711"


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that lets nobody in over a network without TLS and a password."""
    need_server()
    names = {"ssl": "on", "listen_addresses": "127.0.0.1,::1", "port": str(free_port())}
    server = Server(settings=names)
    try:
        data = server.folder / "data"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"]
        made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        files = ["-keyout", data / "server.key", "-out", data / "server.crt"]
        subprocess.run(["openssl", "req", "-x509", *made, *subject, *files], check=True, capture_output=True)
        for name in ("server.key", "server.crt"):
            shutil.chown(data / name, data.owner(), data.group())
        (data / "server.key").chmod(0o600)
        (data / "pg_hba.conf").write_text("local all all trust\nhostssl all all all scram-sha-256\n")
        server.start()
        with server.connect() as connection:
            for role in ("crew", "web"):
                connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'".encode())
        yield server
    finally:
        server.remove()


@pytest.fixture
def tables(guarded: Server) -> Iterator[str]:
    """The name of a database with tables, which a worker may use as crew, and a client as web."""
    name = guarded.create_database()
    with guarded.connect(name) as connection:
        migrate(connection, SCHEMA)
        for role in ("crew", "web"):
            connection.execute(grants_for(role, SCHEMA, may_work=role == "crew").encode())
    yield name
    guarded.drop_database(name)


@pytest.fixture(autouse=True)
def at_home(home: Path) -> Iterator[None]:
    """Whatever queue a test has used last, the next one begins in its directory."""
    yield
    q.client.close()
    use(q, home)


def by_tls(server: Server, database: str, role: str, *, host: str = "localhost", password: str = PASSWORD) -> str:
    """The URL over the network."""
    certificate = server.folder / "data" / "server.crt"
    return (
        f"postgresql://{role}:{password}@{host}:{server.port}/{database}?sslmode=verify-full&sslrootcert={certificate}"
    )


def test_a_role_that_may_only_enqueue(guarded: Server, tables: str, tmp_path: Path) -> None:
    """It enqueues in all ways and waits for results; it sees no arguments, and changes nothing that is there."""
    with running(MachineFleet(tmp_path / "a", by_tls(guarded, tables, "crew"))) as fleet:
        use_database(q, tmp_path / "a", by_tls(guarded, tables, "web", host="[::1]"))
        assert jobs.add.enqueue(1, 2).result(20) == 3
        assert [job.result(20) for job in jobs.add.enqueue_many((number,) for number in range(50))][-1] == 50
        assert list(jobs.count.enqueue(5).items()) == list(range(5))
        assert chain(jobs.add.step(1, 2), jobs.add.step(10)).enqueue().result(20) == 13
        late = jobs.add.options(delay=3600, unique=Unique("once")).enqueue(7)
        assert jobs.add.options(unique=Unique("once")).enqueue(8).id == late.id
        assert asyncio.run(result_of_loop()) == 5
        for forbidden in (late.cancel, late.purge, late.info, q.jobs, lambda: q.pause("default"), q.retry_failed):
            with pytest.raises(BrokerUnavailable, match=r"the role may not .*permission denied for table"):
                forbidden()
        with psycopg.connect(guarded.dsn(tables, "web"), autocommit=True) as connection:
            for sql in ("SELECT payload FROM taskq.jobs", "SELECT * FROM taskq.beats", "DELETE FROM taskq.queue"):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(sql.replace("taskq.", f"{SCHEMA}.").encode())
        with guarded.connect(tables) as connection:
            over_network = "application_name LIKE 'taskq%' AND client_addr IS NOT NULL"
            rows = connection.execute(
                f"SELECT DISTINCT usename::text, ssl FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE {over_network}"
            )
            assert sorted(rows) == [("crew", True), ("web", True)]
        check_secrecy(fleet, tmp_path, by_tls(guarded, tables, "crew"))
    assert PASSWORD not in fleet.errors.read_text()


async def result_of_loop() -> Any:
    """As a web server on asyncio does it."""
    job = await jobs.add.aenqueue(2, 3)
    return await job.aresult(20)


def check_secrecy(fleet: MachineFleet, folder: Path, url: str) -> None:
    """Nobody finds the password in the processes of a fleet, its files, or what commands print."""
    listed = subprocess.run(["ps", "axww", "-o", "pid,args"], capture_output=True, text=True, check=True).stdout
    assert str(fleet.broker_pid) in listed
    assert PASSWORD not in listed
    for file in fleet.home.rglob("*"):
        assert not file.is_file() or PASSWORD.encode() not in file.read_bytes(), file
    where = {"TASKQ_URL": url, "XDG_STATE_HOME": str(folder / "a")}
    for command in (["config"], ["status", "--json"], ["doctor"], ["migrate"], ["jobs"]):
        done = taskq(None, *command, JOBS, **where)
        assert done.returncode == Exit.OK, done
        assert PASSWORD not in done.stdout + done.stderr


def test_what_keeps_one_out(guarded: Server, tables: str, tmp_path: Path, here: Here, monkeypatch: Any) -> None:
    """A client, a command and a worker get the same sentence, which says what to do and has no password."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    right = by_tls(guarded, tables, "crew")
    wrong = {
        by_tls(
            guarded, tables, "crew", password="n0t-this"
        ): "password authentication failed for user .crew.: mend the",
        by_tls(guarded, "nowhere", "crew"): "database .nowhere. does not exist: make it with `createdb`",
        right.partition("&sslrootcert")[0] + "&sslrootcert=/dev/null": "certificate .*: name the authority",
        right.replace("verify-full", "disable"): r"no pg_hba.conf entry .*: let the role in",
        right.replace("localhost", "127.0.0.1:1,[::1]").replace(PASSWORD, "n0t-this"): (
            "127.0.0.1: Connection refused.*; ::1: password authentication failed"
        ),
    }
    for url, told in wrong.items():
        with pytest.raises(BrokerUnavailable, match=told) as error:
            TaskQ("tests", url, reply_timeout=1).enqueue("add", 1)
        assert "n0t-this" not in "".join(format_exception(error.value))
        refused(here(url, "migrate", JOBS), Exit.NO_FLEET)
    done = taskq(None, "worker", JOBS, TASKQ_URL=next(iter(wrong)), XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == Exit.JOURNAL
    assert "password authentication failed for user" in done.stderr
    assert "n0t-this" not in done.stderr
    for typo in (f"postgresql://me:se/{PASSWORD}@host/database", f"postgresql:/me:{PASSWORD}@host/database"):
        with pytest.raises(ConfigError, match=r"%40|postgresql://user:password@host") as told:
            TaskQ("tests", typo)
        assert PASSWORD not in str(told.value)


def test_a_server_that_starts_and_one_that_stands_by(tmp_path: Path) -> None:
    """Both are waited for: jobs come in, and run, when the server can take them."""
    need_server()
    as_made = {
        "max_connections": "100",
        "max_worker_processes": "8",
        "wal_retrieve_retry_interval": "50ms",
    }  # a standby must not have less
    server = Server(settings={"restore_command": "sleep 1000", **as_made})
    url = server.url()
    q_there = TaskQ("tests", url, reply_timeout=0.3)
    data = server.folder / "data"
    try:
        (data / "standby.signal").touch()
        server.start(wait=False)
        wait_until((server.folder / f".s.PGSQL.{server.port}").exists, "it listens")
        with pytest.raises(BrokerUnavailable, match=r"starting up: wait until the server is up"):
            q_there.enqueue("add", 1)
        server.stop(signal.SIGQUIT)
        server.set("restore_command", "false")
        server.start()
        fleet = MachineFleet(tmp_path / "a", url)
        fleet.start(wait=False)
        fleet.wait_for("database.away", error="this is a read-only standby: name the primary in the URL, or all "
                       "servers with target_session_attrs=read-write")  # fmt: skip
        with server.connect() as connection:
            connection.execute("SELECT pg_promote()")
        fleet.wait_ready()
        use_database(q, tmp_path / "a", url)
        assert jobs.add.enqueue(1, 2).result(20) == 3
        fleet.finish()
        server.stop()
        (data / "standby.signal").touch()
        server.start()
        with pytest.raises(BrokerUnavailable, match="takes no jobs: this is a read-only standby: name the primary"):
            q_there.enqueue("add", 1)
    finally:
        server.remove()


# -- a pooler


@pytest.fixture
def pooler(postgres: Server) -> Iterator[str]:
    """The host and port of a pgbouncer in transaction mode. It refuses settings that it does not know."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("TASKQ_TEST_POSTGRES") == "required":
            pytest.fail("pgbouncer is not installed")
        pytest.skip("no pgbouncer is installed: apt-get install pgbouncer")
    port, settings = free_port(), postgres.folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={postgres.folder} port={postgres.port} user=postgres\n[pgbouncer]\npool_mode = transaction\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\ndefault_pool_size = 3\n"
    )
    settings.chmod(0o644)
    user = postgres.folder.owner()
    process = subprocess.Popen(
        [program, "-q", "-u", user, settings] if os.geteuid() == 0 else [program, "-q", settings]
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers, "pgbouncer listens")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_clients_behind_a_pooler(pooler: str, postgres: Server, database: str, tmp_path: Path) -> None:
    """They do everything there, with looks in place of notifications; a fleet says that it must not be there."""
    behind = f"postgresql://postgres@{pooler}/{database}"
    with running(MachineFleet(tmp_path / "a", postgres.url(database))):
        use_database(q, tmp_path / "a", behind)
        found = [job.result(20) for job in jobs.add.enqueue_many((number,) for number in range(1_000))]
        assert found == list(range(1, 1_001))
        assert [jobs.add.enqueue(number).result(20) for number in range(20)] == list(range(1, 21))
        assert list(jobs.count.enqueue(5).items()) == list(range(5))
        assert chain(jobs.add.step(1, 2), jobs.add.step(10)).enqueue().result(20) == 13
        assert asyncio.run(result_of_loop()) == 5
        late = jobs.add.options(delay=3600, unique=Unique("once")).enqueue(7)
        assert jobs.add.options(unique=Unique("once")).enqueue(8).id == late.id
        assert late.cancel()
        assert q.status().machines
        with psycopg.connect(behind, prepare_threshold=None) as connection:
            with q.within(connection):
                inside = jobs.add.enqueue(4, 5)
            connection.rollback()
            with q.within(connection):
                kept = jobs.add.enqueue(4, 6)
        assert kept.result(20) == 10
        with pytest.raises(LookupError):
            inside.info()
    done = taskq(None, "worker", JOBS, TASKQ_URL=behind, XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == Exit.JOURNAL
    assert "this is a connection pooler, such as pgbouncer" in done.stderr
