"""Copies of a journal while it is used, and what can be saved of one that is damaged."""
