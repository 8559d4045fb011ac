"""`taskq why`, `taskq errors`, `taskq tasks`: what jobs of a fleet do, fail of, and wait for."""
