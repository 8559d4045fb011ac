"""The names of hosts, looked up beside the broker's loop: libpq would stand still for as long as a name server is
silent."""

from __future__ import annotations

import ipaddress
import socket
from threading import Thread

from psycopg.conninfo import conninfo_to_dict, make_conninfo


def names_in(conninfo: str) -> list[str]:
    """The hosts of a connection string if some have to be looked up; none if all are addresses or folders, or their
    addresses are given."""
    given = conninfo_to_dict(conninfo)
    hosts = str(given.get("host") or "").split(",")
    return hosts if "hostaddr" not in given and any(map(_is_name, hosts)) else []


def _is_name(host: str) -> bool:
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


class Lookup:
    """Looks up the hosts of a connection string in a thread of its own, which ends by itself."""

    def __init__(self, conninfo: str, hosts: list[str]) -> None:
        """
        Args:
            conninfo: the connection string.
            hosts: what `names_in` has found in it.
        """
        self._conninfo = conninfo
        self._hosts = hosts
        self._addresses: list[list[str]] | None = None
        self.error = ""  # why it was in vain
        Thread(target=self._run, name="taskq names", daemon=True).start()

    def _run(self) -> None:
        try:
            self._addresses = [_addresses_of(host) for host in self._hosts]
        except OSError as error:
            self.error = f"the name of the database's host cannot be looked up: {error.strerror or error}"

    @property
    def conninfo(self) -> str | None:
        """The connection string with the addresses; None as long as they are not known."""
        if self._addresses is None:
            return None
        ports = str(conninfo_to_dict(self._conninfo).get("port") or "").split(",")
        hosts, found, of_each = list[str](), list[str](), list[str]()
        for place, (host, addresses) in enumerate(zip(self._hosts, self._addresses, strict=True)):
            hosts += [host] * len(addresses)
            found += addresses
            of_each += [ports[min(place, len(ports) - 1)]] * len(addresses)
        return make_conninfo(
            self._conninfo, host=",".join(hosts), hostaddr=",".join(found), port=",".join(of_each) or None
        )


def _addresses_of(host: str) -> list[str]:
    if not _is_name(host):
        return [host if host and not host.startswith(("/", "@")) else ""]
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
