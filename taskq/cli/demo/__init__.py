"""`taskq demo`: an application, and a fleet of it that loses a process."""
