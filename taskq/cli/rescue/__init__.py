"""`taskq backup` and `taskq recover`."""
