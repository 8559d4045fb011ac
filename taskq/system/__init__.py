"""What taskq asks the operating system for: directories, locks, processes, memory. Every room above may come in."""
