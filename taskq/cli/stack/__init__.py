"""`taskq stack`: where the consumers are in their code."""
