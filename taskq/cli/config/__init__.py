"""The options of a fleet: the table of them (`options`), where they come from (`sources`), and `taskq config`."""
