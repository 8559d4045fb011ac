"""What a server says when it does not let somebody in, as one sentence that says what to do. For clients and brokers;
no password is ever in it, since libpq puts none into its messages.
"""

from __future__ import annotations

import re
from typing import Final

#: What libpq puts before the words of each server that it has tried.
_TRIED: Final = re.compile(
    r'connection to server (?:at "(?P<host>[^"]*)"(?: \([^)]*\))?, port \d+|on socket "(?P<socket>[^"]*)") failed: '
)
_SEVERITY: Final = re.compile(r"^(?:FATAL|ERROR|PANIC):\s+")
#: Words of servers and of libpq, and what follows from them.
_ADVICE: Final = (
    ("no pg_hba.conf entry", "let the role in with a line in the pg_hba.conf of the server"),
    ("password authentication failed", "mend the password in the URL, in PGPASSWORD or in ~/.pgpass"),
    ("no password supplied", "give one in the URL, in PGPASSWORD or in ~/.pgpass"),
    ('database "', "make it with `createdb`, or mend its name in the URL"),
    ('role "', "make it with `createuser`, or mend its name in the URL"),
    ("starting up", "wait until the server is up"),
    ("not yet accepting", "wait until the server is up"),
    ("too many", "raise max_connections of the server, or let clients go through pgbouncer"),
    ("remaining connection slots", "raise max_connections of the server, or let clients go through pgbouncer"),
    ("session is read-only", "name the primary in the URL as well"),
    ("read-only transaction", "name the primary in the URL, or all servers with target_session_attrs=read-write"),
    ("certificate verify failed", "name the authority that signed the server's certificate by sslrootcert= in the URL"),
    ("root certificate file", "name the authority that signed the server's certificate by sslrootcert= in the URL"),
    ("does not match host name", "write the host in the URL as the certificate of the server names it"),
    ("does not support SSL", "turn ssl on in the server, or leave out sslmode= in the URL"),
    ("could not translate host name", "mend the host in the URL"),
    ("Connection refused", "start the server, or mend the host and the port in the URL"),
)  # fmt: skip
#: What pgbouncer says of the settings that come with a connection.
UNKNOWN_OPTIONS: Final = "unsupported startup parameter: options"
#: A standby that cannot be written.
STANDBY: Final = (
    "this is a read-only standby: name the primary in the URL, or all servers with target_session_attrs=read-write"
)
#: A pooler stands before the server.
POOLED: Final = (
    "this is a connection pooler, such as pgbouncer, and a fleet listens for notifications: give the workers the "
    "address of the server itself; clients may go through the pooler"
)


def sentence(text: str) -> str:
    """What went wrong when somebody connected, or sent a statement, and what to do.

    Args:
        text: as libpq tells it, of one server or of several that were tried.
    """
    told = _by_server(text.strip())
    advice = next((what for words, what in _ADVICE if any(words in own for own in told)), "")
    if UNKNOWN_OPTIONS in text:
        return POOLED
    return "; ".join(told) + (f": {advice}" if advice else "")


def _by_server(text: str) -> list[str]:
    """The words of each server that was tried; the servers are named if they say different things."""
    starts = [*_TRIED.finditer(text)]
    if not starts:
        return [_SEVERITY.sub("", text.partition("\n")[0])]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    words = [
        _SEVERITY.sub("", text[start.end() : end].strip().partition("\n")[0])
        for start, end in zip(starts, ends, strict=True)
    ]
    if len(set(words)) == 1:
        return words[:1]
    return [f"{start['host'] or start['socket']}: {own}" for start, own in zip(starts, words, strict=True)]
