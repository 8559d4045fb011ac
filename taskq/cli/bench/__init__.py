"""`taskq bench`: figures of this machine, each beside its limit. `cases/` says what is measured, one file each."""
