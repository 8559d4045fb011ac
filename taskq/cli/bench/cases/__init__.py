"""What `taskq bench` measures: each file has one `CASE`, or several that belong together."""
