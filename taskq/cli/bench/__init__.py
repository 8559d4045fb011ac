"""`taskq bench`: figures of this machine."""
