"""Tells systemd about this service: the protocol of sd_notify(3), datagrams of lines to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import socket
from collections.abc import MutableMapping

#: A state of nobody's interest must not hold up the loop.
_SEND_TIMEOUT_S = 0.1


class ServiceManager:
    """The service manager of a broker; one that is not there hears nothing.

    Attributes:
        watchdog_s: seconds after which it kills a service that says nothing; None: it does not.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes the variables out of an environment, so that consumers and what they start do not speak for the
        service."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "")
        environment.pop("WATCHDOG_PID", None)  # the guardian's: the broker answers, as it is its loop that may hang
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = int(watchdog_us) / 1e6 if self.is_there and watchdog_us.isdecimal() else None
        self._told: dict[str, str] = {}

    @property
    def is_there(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    def tell(self, **fields: str) -> None:
        """Sends fields such as ``READY="1"``. One that cannot be sent is lost: the service goes on."""
        if not self._address:
            return
        lines = "\n".join(f"{name}={value}" for name, value in fields.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_SEND_TIMEOUT_S)
            try:
                sender.sendto(lines.encode(), self._address)
            except OSError:
                pass  # what it does not hear counts as silence there

    def tell_status(self, text: str) -> None:
        """Sends the line that `systemctl status` shows, if it is another than before."""
        if self._told.get("STATUS") != text:
            self._told["STATUS"] = text
            self.tell(STATUS=text)
