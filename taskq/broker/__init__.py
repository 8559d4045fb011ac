"""The process that runs the fleet of a machine, and the guardian that restarts it. Only the command line and tests
import it.
"""
