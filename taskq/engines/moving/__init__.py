"""A queue moves from a directory to a database: how it is read there, what travels, and how it is taken in here."""
