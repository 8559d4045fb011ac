"""The pure rules of the dashboard, which `taskq top` uses, too: what somebody should look at, whether the broker keeps
up, how fast jobs come and go, and schedules in words. No I/O, no clock, and nothing of the extra `[web]`."""
