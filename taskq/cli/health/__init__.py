"""`taskq health`: a probe, which has to be quick."""
