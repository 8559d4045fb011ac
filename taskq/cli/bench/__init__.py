"""`taskq bench`: the figures, and the bare skeleton that they are compared with."""
