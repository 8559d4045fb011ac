"""Jobs without a fleet, for your tests, by the code that fleets run. What tests use is handed on here; the rest stays
inside."""

from taskq.testing.jobs import Clock, Enqueued, Jobs, inline, queue

__all__ = ["Clock", "Enqueued", "Jobs", "inline", "queue"]
