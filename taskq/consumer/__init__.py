"""The processes that import your code and run your functions. Nobody imports this room; processes start in it by
name."""
