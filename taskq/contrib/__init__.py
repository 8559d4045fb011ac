"""Adapters to other libraries: one file or room for each, which alone imports that library. Nothing imports them."""
