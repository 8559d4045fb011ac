"""Celery applications on a fleet: `application` is for consumers, `loader` for programs that enqueue."""
