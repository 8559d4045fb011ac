"""The journal of the embedded engine: what it must keep, and SQLite, which keeps it. Only the embedded engine comes
in."""
