"""Your side: TaskQ, Task and Job, waiting, workflows and schedules. Consumers, the command line and tests come in; the
broker never does.
"""
