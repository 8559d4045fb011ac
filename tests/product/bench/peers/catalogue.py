"""The peers: what each needs, how it is set up here, and what it promises when its enqueue returns."""

from __future__ import annotations

from typing import NamedTuple


class PeerEntry(NamedTuple):
    """A peer.

    Attributes:
        name: as the command line takes it.
        module: the module with its class `Peer`.
        server: the server that it needs: redis, postgres, or none.
        requirements: the packages from PyPI.
        settings: how its two workers run.
        promise: what has happened to a job when its enqueue returns.
        environment: packages that do not go together are in different ones.
        is_ours: whether it is the taskq of this checkout.
    """

    name: str
    module: str
    server: str
    requirements: tuple[str, ...]
    settings: str
    promise: str
    environment: str = "main"
    is_ours: bool = False


_REDIS = ("redis", "hiredis")
_IN_REDIS = "in Redis' memory, not synced"
_ENTRIES = (
    PeerEntry("taskq", "peer_taskq", "", (), "taskq worker --consumers 2", "synced", is_ours=True),
    PeerEntry(
        "taskq-postgres",
        "peer_taskq_postgres",
        "postgres",
        ("psycopg[binary]",),
        "taskq worker --consumers 2, the queue in PostgreSQL",
        "synced",
        is_ours=True,
    ),
    PeerEntry("huey", "peer_huey", "", ("huey",), "SqliteHuey; huey_consumer -k process -w 2", "synced"),
    PeerEntry("dramatiq", "peer_dramatiq", "redis", ("dramatiq", *_REDIS), "dramatiq -p 2 -t 8", _IN_REDIS),
    PeerEntry(
        "celery",
        "peer_celery",
        "redis",
        ("celery", *_REDIS),
        "-c 2, prefetch 128, no gossip, mingle, heartbeat or events",
        _IN_REDIS,
    ),
    PeerEntry("rq", "peer_rq", "redis", ("rq", *_REDIS), "rq worker-pool -n 2, SimpleWorker", _IN_REDIS),
    PeerEntry("saq", "peer_saq", "redis", ("saq", *_REDIS), "saq --workers 2", _IN_REDIS),
    PeerEntry(
        "procrastinate",
        "peer_procrastinate",
        "postgres",
        ("procrastinate", "psycopg[binary]"),
        "2 x procrastinate worker",
        "synced",
    ),
    PeerEntry(
        "pgqueuer",
        "peer_pgqueuer",
        "postgres",
        ("pgqueuer", "asyncpg"),
        "2 x PgQueuer.run(batch_size=100), asyncpg, pgq autovac",
        "synced",
    ),
    PeerEntry(
        "flexiq", "peer_flexiq", "", ("flexiq",), "SQLite; --pool prefork, 2 workers", "on disk, not synced", "flexiq"
    ),
    PeerEntry("executor", "peer_executor", "", (), "ProcessPoolExecutor(2), submit", "in this process' memory"),
    PeerEntry("pool", "peer_pool", "", (), "multiprocessing.Pool(2), apply_async", "in this process' memory"),
)
PEERS = {entry.name: entry for entry in _ENTRIES}
