"""A broker's connection to its database, which never makes the loop wait; the rooms above say what is asked."""
