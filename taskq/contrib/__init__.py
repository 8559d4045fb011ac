"""Adapters to other libraries: one file for each, which alone imports that library. Nothing in taskq imports them."""
