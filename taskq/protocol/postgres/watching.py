"""The ends of jobs, for those who wait for them.

Who waits says so in `watches`, commits that, and then looks; a broker commits the end, and then tells those who wait.
So one of the two sees the other. A broker tells them on channels of their own, with the ids of the jobs; and with their
endings, where these are small and the client is one that reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import SystemRandom
from typing import Final, NamedTuple
from uuid import UUID

from taskq.model.attempt import read_outcome
from taskq.model.stored import StoredState
from taskq.protocol.endings import Ending
from taskq.protocol.postgres.arrays import uuids
from taskq.protocol.postgres.plans import Query

#: The state in `jobs` of one that has not ended: `queue` says more.
LIVES = 3
#: A client with this number, or a higher one, reads endings in notifications; those of older versions have lower ones.
READS_ENDINGS: Final = 1 << 62

_WATCH = "INSERT INTO taskq.watches (id, client) SELECT unnest($1::uuid[]), $2 ON CONFLICT DO NOTHING"
_LOOK = """
    SELECT uuid_send(w.id), j.state, CASE WHEN j.state > 3 THEN j.outcome END
    FROM unnest($1::uuid[]) AS w(id) LEFT JOIN taskq.jobs j ON j.id = w.id WHERE j.state IS DISTINCT FROM 3"""

#: The same for one job: of the two plans that the server knows for the other statement, it makes the one for one job
#: anew each time, which takes longer than the look.
_LOOK_AT_ONE = """
    SELECT uuid_send(w.id), j.state, CASE WHEN j.state > 3 THEN j.outcome END
    FROM (SELECT $1::uuid AS id) AS w LEFT JOIN taskq.jobs j ON j.id = w.id WHERE j.state IS DISTINCT FROM 3"""


def new_client() -> int:
    """A number for a client, by which nobody can guess its channel."""
    return READS_ENDINGS + SystemRandom().getrandbits(62)


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


class Word(NamedTuple):
    """What a notification says of a job: as a row of `look`, but of one that may have ended, the state is None."""

    id: bytes
    state: int | None = None
    outcome: bytes | None = None


def words_in(payload: str) -> list[Word]:
    """What a notification to a client says; nothing if it is to look at all jobs that it waits for."""
    parts = [part.split(":") for part in payload.split(",")] if payload else []
    return [
        Word(bytes.fromhex(job_id), int(own[0]), bytes.fromhex(own[1])) if own else Word(bytes.fromhex(job_id))
        for job_id, *own in parts
    ]


#: $1: jobs that have ended, or have new items; $2: the channel of brokers. Behind the commit: who waits then looks, and
#: who looks later sees it. A notification takes 8,000 bytes.
_TELL: Final = f"""
    WITH told AS (DELETE FROM taskq.watches WHERE id = ANY ($1::uuid[]) RETURNING id, client),
    said AS (
        SELECT client, replace(told.id::text, '-', '') || CASE
            WHEN client >= {READS_ENDINGS} AND j.state > {LIVES} AND octet_length(j.outcome) <= 160
            THEN ':' || j.state || ':' || encode(j.outcome, 'hex') ELSE '' END AS word,
            row_number() OVER (PARTITION BY client) / 20 AS part
        FROM told LEFT JOIN LATERAL (SELECT state, outcome FROM taskq.jobs WHERE id = told.id LIMIT 1) AS j ON true)
    SELECT pg_notify($2 || '_c' || client, string_agg(word, ',')) FROM said GROUP BY client, part"""


def tell(ids: Sequence[bytes], channel: str) -> Query:
    """Tells those who wait that jobs have ended, or are gone. To be sent behind the commit.

    Args:
        channel: of the brokers, by which those of clients begin.
    """
    return Query(_TELL, (uuids(ids), channel))
