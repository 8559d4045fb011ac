"""Executors as in `concurrent.futures`: calls of any function, pickled, for a private fleet or an application's."""
