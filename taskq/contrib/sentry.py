"""Sentry: errors of jobs with what belongs to them, and the queue in its performance pages.

The trace travels in the `meta` of the job, so an error in a job leads to the request that enqueued it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import sentry_sdk
from sentry_sdk.integrations import Integration
from sentry_sdk.tracing import TransactionSource
from sentry_sdk.utils import event_from_exception

from taskq.client.app import TaskQ
from taskq.client.context import CurrentJob
from taskq.client.hooks import for_every_app
from taskq.contrib.told_errors import tell
from taskq.model.errors import Cancel, Retry, Snooze
from taskq.model.job import enqueued_at

_ORIGIN = "auto.queue.taskq"
#: A longer value, such as a large baggage, does not travel: the meta of a job has 4 KiB.
_LONGEST_CHARS = 1024
_FLUSH_S = 5.0


class TaskQIntegration(Integration):
    """Give it to Sentry in the module of the application, before the application is made::

        sentry_sdk.init(dsn=..., traces_sample_rate=0.1, integrations=[TaskQIntegration()])
        q = TaskQ("shop")

    Each attempt is a transaction. An exception is sent as an error, also of an attempt after which the job is retried;
    `Retry`, `Snooze` and `Cancel` are not. Arguments are not sent.
    """

    identifier = "taskq"

    @staticmethod
    def setup_once() -> None:
        """Sentry calls this once for each process."""
        for_every_app(install)


def install(app: TaskQ) -> None:
    """Gives an application the hooks; for one that was made before `sentry_sdk.init`."""
    app.on_enqueue(_publish)
    app.middleware(_process)
    app.on_consumer_stop(_flush)


def _is_off() -> bool:
    return sentry_sdk.get_client().get_integration(TaskQIntegration) is None


def _publish(task: str, meta: dict[str, str]) -> None:
    if _is_off():
        return
    with sentry_sdk.start_span(op="queue.publish", name=task, origin=_ORIGIN) as span:
        span.set_data("messaging.system", "taskq")
        span.set_data("messaging.destination.name", task)
        headers = sentry_sdk.get_current_scope().iter_trace_propagation_headers(span=span)
        meta.update((name, text) for name, text in headers if len(text) <= _LONGEST_CHARS)


def _process(job: CurrentJob) -> Iterator[None]:
    if _is_off():
        yield
        return
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_transaction_name(job.task, source=TransactionSource.TASK)
        scope.set_context("taskq", {"job": job.id, "task": job.task, "attempt": job.attempt})
        transaction = sentry_sdk.continue_trace(
            job.meta, op="queue.process", name=job.task, source=TransactionSource.TASK, origin=_ORIGIN
        )
        with (
            sentry_sdk.start_transaction(transaction),
            sentry_sdk.start_span(op="queue.process", name=job.task, origin=_ORIGIN) as span,
        ):
            span.set_data("messaging.system", "taskq")
            span.set_data("messaging.destination.name", job.task)
            span.set_data("messaging.message.id", job.id)
            span.set_data("messaging.message.retry.count", job.attempt - 1)
            span.set_data("messaging.message.receive.latency", (time.time() - _made_at(job)) * 1e3)
            try:
                yield
            except (Retry, Snooze, Cancel):  # what the job asks for is no error
                raise
            except BaseException as error:
                transaction.set_status("internal_error")
                tell(_capture, error)
                raise
            transaction.set_status("ok")


def _capture(error: BaseException) -> None:
    options = sentry_sdk.get_client().options
    event, hint = event_from_exception(error, options, {"type": "taskq", "handled": False})
    sentry_sdk.capture_event(event, hint)


def _made_at(job: CurrentJob) -> float:
    """When a job was made, in seconds since 1970."""
    return enqueued_at(bytes.fromhex(job.id))


def _flush() -> None:
    sentry_sdk.flush(_FLUSH_S)
