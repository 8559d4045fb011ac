"""Several machines on this one: network namespaces on a bridge, whose links are cut as a test says.

Network   the bridge; nothing of it is left when it is closed, or when the test process is killed
Host      a machine: `prefix` before a command runs it there

The namespaces have no names: each lives as long as the process that was made with it. Files, and Unix sockets with
them, are those of the real machine, so a test itself reaches a database on any host by its socket.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import pytest

_NETWORK = "10.77.0"
#: No card has it: what is sent there is lost.
_NOBODY = "02:00:00:00:00:99"


def _enter(descriptor: int) -> None:
    assert ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) == 0, os.strerror(ctypes.get_errno())


class Host:
    """A machine with an address of its own."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.address = f"{_NETWORK}.{number}"
        self.holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"\n"
        self.do("ip link set lo up")

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--")

    def do(self, command: str) -> None:
        """Runs a command there."""
        done = subprocess.run([*self.prefix, *command.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """What the calling thread connects while the block runs, it connects from there."""
        with open("/proc/thread-self/ns/net") as here, open(f"/proc/{self.holder.pid}/ns/net") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def close(self) -> None:
        """The machine is gone, with its network; its processes are those of a test."""
        self.holder.kill()
        self.holder.wait()
        assert self.holder.stdout is not None
        self.holder.stdout.close()


class Network:
    """A bridge, itself in a namespace, with a cable to each host."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bridge = self._made(Host(0))
        self._bridge.do("ip link add bridge type bridge")
        self._bridge.do("ip link set bridge up")
        self._hosts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _made(self, host: Host) -> Host:
        self._stack.callback(host.close)
        return host

    def host(self) -> Host:
        """One more machine."""
        self._hosts += 1
        host = self._made(Host(self._hosts))
        self._bridge.do(f"ip link add port{host.number} type veth peer name card netns {host.holder.pid}")
        self._bridge.do(f"ip link set port{host.number} master bridge up")
        host.do(f"ip address add {host.address}/24 dev card")
        host.do("ip link set card up")
        return host

    def cut(self, host: Host) -> None:
        """Nothing goes from this host or to it, and nobody is told."""
        self._bridge.do(f"ip link set port{host.number} nomaster")

    def mend(self, host: Host) -> None:
        """It is connected again."""
        self._bridge.do(f"ip link set port{host.number} master bridge")

    @staticmethod
    def lose(sender: Host, receiver: Host) -> None:
        """What one host sends to another is lost; the other way is open."""
        sender.do(f"ip neighbour replace {receiver.address} lladdr {_NOBODY} dev card nud permanent")

    @staticmethod
    def lose_no_more(sender: Host, receiver: Host) -> None:
        """That way is open again."""
        sender.do(f"ip neighbour del {receiver.address} dev card")


def need_namespaces() -> None:
    """Skips a test that may not make network namespaces here."""
    allowed = os.geteuid() == 0 and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0
    if not allowed:
        pytest.skip("only root may make network namespaces, outside of a container without that right")
