"""`taskq doctor`: what is wrong with a queue's place, and what to do."""
