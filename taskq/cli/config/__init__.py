"""The options of a fleet: the table (`options`), where they come from (`sources`, `project`), and `taskq config`."""
