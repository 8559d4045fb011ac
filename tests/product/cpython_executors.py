"""CPython's tests of executors with `taskq.Executor`: `python -m unittest tests/product/cpython_executors.py`.

They are in the package `test` of a whole CPython (from 3.12 on in this form), which many installations leave out, and
take a minute or two; so pytest does not collect this file.
"""

from __future__ import annotations

import unittest

import test.test_concurrent_futures.util as cpython
from test.test_concurrent_futures import executor, test_as_completed, test_init, test_shutdown, test_wait

import taskq

#: These run a program that does `from concurrent.futures import Executor`, and gets the abstract class. The first and
#: the third are shown by tests/process/test_executor.py; the second prints in a worker, whose output is in the log.
BY_NAME = ("test_submit_after_interpreter_shutdown", "test_interpreter_shutdown", "test_hang_gh83386")


class OursMixin(cpython.ExecutorMixin):
    """The executor under test."""

    executor_type = taskq.Executor


for tests in (
    executor.ExecutorTest,
    test_as_completed.AsCompletedTests,
    test_wait.WaitTests,
    test_shutdown.ExecutorShutdownTest,
    test_init.InitializerMixin,
    test_init.FailingInitializerMixin,
):
    cpython.create_executor_tests(globals(), tests, executor_mixins=(OursMixin,))

for name in BY_NAME:
    reason = "it imports the class from concurrent.futures by name"
    setattr(globals()["OursExecutorShutdownTest"], name, unittest.skip(reason)(unittest.TestCase.id))
