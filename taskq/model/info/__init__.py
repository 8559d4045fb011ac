"""What clients learn about a job, a schedule, a fleet. The broker makes it, and `--json` prints it."""
