"""What clients are told: about a job, a schedule, a fleet. The broker makes it, `--json` prints it."""
