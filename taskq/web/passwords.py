"""Names and passwords in a file: who may see a dashboard that is not reached by a link alone."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from taskq.model.errors import ConfigError
from taskq.web.access import Access, Visitor, rights_of

_FORM = "write a line NAME:RIGHTS:PASSWORD for each; RIGHTS is all, read, or names such as retry,pause"


class _Known(NamedTuple):
    password: bytes  # its hash
    visitor: Visitor


class Passwords:
    """Asks browsers for a name and a password (HTTP Basic): a resolver for `access=`."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: a file with a line ``NAME:RIGHTS:PASSWORD`` for each visitor, which others may not read.

        Raises:
            ConfigError: it cannot be read, or others may read it, or a line makes no sense.
        """
        self._known = dict(_read(path))

    def __call__(self, request: Request) -> Access:
        """Says what the sender of a request may do. Raises HTTPException for a browser to ask for a password."""
        name, password = _credentials(request.headers.get("authorization", ""))
        known = self._known.get(name)
        expected = known.password if known else sha256(b"").digest()
        is_right = hmac.compare_digest(sha256(password.encode()).digest(), expected)
        if known is None or not is_right:
            headers = {"WWW-Authenticate": 'Basic realm="taskq", charset="UTF-8"'}
            raise HTTPException(401, "Give your name and your password.", headers)
        return known.visitor


def _credentials(header: str) -> tuple[str, str]:
    kind, _, packed = header.partition(" ")
    if kind.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return name, password


def _read(path: Path) -> list[tuple[str, _Known]]:
    try:
        mode = os.stat(path).st_mode
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--auth {path}: it cannot be read ({error}); {_FORM}") from None
    if mode & 0o077:
        raise ConfigError(f"--auth {path}: other users may read it: chmod 600 {path}")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        rights, _, password = rest.partition(":")
        if not (name and rights and password):
            raise ConfigError(f"--auth {path}, line {number}: {_FORM}")
        access = rights if rights in ("all", "read") else rights.split(",")
        found.append((name, _Known(sha256(password.encode()).digest(), Visitor(name, rights_of(access)))))
    if not found:
        raise ConfigError(f"--auth {path}: nobody is in it: {_FORM}")
    return found
