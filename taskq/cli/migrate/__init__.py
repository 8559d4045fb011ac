"""`taskq migrate`: the tables of a queue in a database, and the way there from a directory."""
