"""`taskq worker`: a plain command line is read without typer, as a fleet has to start fast."""
