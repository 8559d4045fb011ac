"""What is asked of the operating system: directories, locks, processes, memory. Every room above may come in."""
