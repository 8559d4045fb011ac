"""The engine of one machine: clients at a Unix socket, one commit for all that a tick decides, SQLite behind it."""
