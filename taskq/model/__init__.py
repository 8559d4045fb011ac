"""What a job is: plain data and pure rules. No I/O, no clock, no randomness; imports nothing of taskq, so every room
may come in.
"""
