"""The way to the queue in a PostgreSQL database: connections, a blocking client and one for asyncio.

Here, and in `taskq.engines.postgres`, the driver (psycopg) is imported: only who has such a URL pays for it.
"""
