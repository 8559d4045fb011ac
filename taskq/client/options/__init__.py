"""What can be asked of a job, how it is checked, and how it is worked out for each call."""
