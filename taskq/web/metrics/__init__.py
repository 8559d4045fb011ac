"""What Prometheus is told of a fleet, on a page of the dashboard or by `taskq metrics`. It needs the extra
`[prometheus]`, and not `[web]`."""
