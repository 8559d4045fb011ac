"""The engines that the conformance suite asks, a line for each."""

from __future__ import annotations

from scripted_database import PostgresPlace
from scripted_fleet import MemoryPlace, Place, SQLitePlace

ENGINES: dict[str, type[Place]] = {
    "embedded, SQLite": SQLitePlace,
    "embedded, memory": MemoryPlace,
    "PostgreSQL": PostgresPlace,
}
