"""Django: a backend for `django.tasks` (Django 6) and for its backport django-tasks, and `manage.py taskq`."""
