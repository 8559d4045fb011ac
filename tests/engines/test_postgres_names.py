"""The hosts of a database that have to be looked up, and the addresses that a link is given."""

from __future__ import annotations

import threading

import pytest
from psycopg.conninfo import conninfo_to_dict

from taskq.engines.postgres.link.names import Lookup, names_in


def look_up(conninfo: str, hosts: list[str]) -> Lookup:
    """A look-up that is over."""
    lookup = Lookup(conninfo, hosts)
    for thread in threading.enumerate():
        if thread.name == "taskq names":
            thread.join()
    return lookup


@pytest.mark.parametrize(
    ("conninfo", "names"),
    [
        ("host=/run/postgresql dbname=x", []),
        ("dbname=x", []),
        ("host=127.0.0.1,::1", []),
        ("host=db.example.com hostaddr=10.0.0.1", []),
        ("host=db.example.com", ["db.example.com"]),
        ("postgresql://u@10.0.0.1:5432,db.example.com:5433/x", ["10.0.0.1", "db.example.com"]),
    ],
)
def test_only_names_are_looked_up(conninfo: str, names: list[str]) -> None:
    """Not addresses, nor the folders of sockets."""
    assert names_in(conninfo) == names


def test_the_addresses_of_a_name_go_to_libpq_beside_it() -> None:
    """Each with its port, and with the name, against which a certificate is checked."""
    conninfo = "postgresql://u:secret@localhost:5433,10.0.0.1:5434/x?sslmode=verify-full"
    lookup = look_up(conninfo, names_in(conninfo))
    given = conninfo_to_dict(lookup.conninfo or "")
    hosts, addresses, ports = (str(given[name]).split(",") for name in ("host", "hostaddr", "port"))
    assert len(hosts) == len(addresses) == len(ports)
    assert set(zip(hosts[:-1], ports[:-1], strict=True)) == {("localhost", "5433")}
    assert (hosts[-1], addresses[-1], ports[-1]) == ("10.0.0.1", "10.0.0.1", "5434")
    assert given["sslmode"] == "verify-full"


def test_a_name_that_there_is_not_is_an_error() -> None:
    """It does not raise: the link says so, and tries again."""
    lookup = look_up("host=taskq-test.invalid", ["taskq-test.invalid"])
    assert "cannot be looked up" in lookup.error
    assert lookup.conninfo is None
