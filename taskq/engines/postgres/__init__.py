"""The engine that several machines share: a PostgreSQL database, which each machine's broker asks without waiting for
it, and which clients ask directly. Only `broker/parts.py` and the command line may come in."""
