"""The command `manage.py taskq`."""
