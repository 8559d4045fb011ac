"""Limits that hold over all fleets: which jobs wait for them, and what of them this fleet may use. No I/O."""
