"""The options of jobs: how they are written, checked, and worked out for each call."""
