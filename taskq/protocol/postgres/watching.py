"""The ends of jobs, for those who wait for them.

Who waits says so in `watches`, commits that, and then looks; a broker commits the end, and then tells those who wait.
So one of the two sees the other. A broker tells them on channels of their own, with the ids of the jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from taskq.model.attempt import read_outcome
from taskq.model.stored import StoredState
from taskq.protocol.endings import Ending
from taskq.protocol.postgres.arrays import uuids
from taskq.protocol.postgres.plans import Query

#: The state in `jobs` of one that has not ended: `queue` says more.
LIVES = 3

_WATCH = "INSERT INTO taskq.watches (id, client) SELECT unnest($1::uuid[]), $2 ON CONFLICT DO NOTHING"
_LOOK = """
    SELECT uuid_send(w.id), j.state, CASE WHEN j.state > 3 THEN j.outcome END
    FROM unnest($1::uuid[]) AS w(id) LEFT JOIN taskq.jobs j ON j.id = w.id WHERE j.state IS DISTINCT FROM 3"""

#: The same for one job: of the two plans that the server knows for the other statement, it makes the one for one job
#: anew each time, which takes longer than the look.
_LOOK_AT_ONE = """
    SELECT uuid_send(w.id), j.state, CASE WHEN j.state > 3 THEN j.outcome END
    FROM (SELECT $1::uuid AS id) AS w LEFT JOIN taskq.jobs j ON j.id = w.id WHERE j.state IS DISTINCT FROM 3"""


def channel_of(schema: str, client: int) -> str:
    """The channel on which a client listens."""
    return f"{schema}_c{client}"


def watch(ids: Sequence[bytes], client: int) -> Query:
    """Says that a client waits for the end of jobs."""
    return Query(_WATCH, (uuids(ids), client))


def look(ids: Sequence[bytes]) -> Query:
    """Those of some jobs that have ended, or that nothing is known of; see `ending_of`."""
    if len(ids) == 1:
        return Query(_LOOK_AT_ONE, (UUID(bytes=ids[0]),))
    return Query(_LOOK, (uuids(ids),))


def ending_of(row: tuple[bytes, int | None, bytes | None]) -> tuple[bytes, Ending | None]:
    """A job in the answer to `look`: its id, and how it ended; None if nothing is known of it."""
    job_id, state, outcome = row
    if state is None:
        return bytes(job_id), None
    return bytes(job_id), Ending(StoredState(state).state, read_outcome(bytes(outcome or b"")))


def ids_in(payload: str) -> list[bytes]:
    """The ids in a notification to a client; none if it is to look at all jobs that it waits for."""
    return [bytes.fromhex(one) for one in payload.split(",")] if payload else []


_TELL = """
    WITH told AS (DELETE FROM taskq.watches WHERE id = ANY($1::uuid[]) RETURNING id, client)
    SELECT pg_notify($2 || '_c' || client, string_agg(replace(id::text, '-', ''), ','))
    FROM (SELECT id, client, row_number() OVER (PARTITION BY client) / 200 AS part FROM told) AS parts
    GROUP BY client, part"""


def tell(ids: Sequence[bytes], channel: str) -> Query:
    """Tells those who wait that jobs have ended, or are gone. To be sent behind the commit.

    Args:
        channel: of the brokers, by which those of clients begin.
    """
    return Query(_TELL, (uuids(ids), channel))
