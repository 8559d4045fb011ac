"""Pure dispatch: which job runs where, under which limits, and what becomes of it. No clock, no I/O, no randomness."""
