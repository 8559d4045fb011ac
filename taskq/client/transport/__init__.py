"""The way to a fleet: connections, a blocking client and one for asyncio."""
