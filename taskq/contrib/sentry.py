"""Sentry: errors of jobs with what belongs to them, the queue in its performance pages, and check-ins of schedules.

The trace travels in the `meta` of the job, so an error in a job leads to the request that enqueued it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from math import ceil
from typing import Any

import msgpack
import sentry_sdk
from sentry_sdk import utils
from sentry_sdk.crons import capture_checkin
from sentry_sdk.integrations import Integration
from sentry_sdk.tracing import TransactionSource

from taskq.client.app import TaskQ
from taskq.client.context import CurrentJob
from taskq.client.hooks import for_every_app
from taskq.contrib.told_errors import tell
from taskq.model.errors import Cancel, Retry, Snooze
from taskq.model.job import enqueued_at
from taskq.model.schedule import Schedule, fired_id

_ORIGIN = "auto.queue.taskq"
#: A longer value, such as a large baggage, does not travel: the meta of a job has 4 KiB.
_LONGEST_CHARS = 1024
_FLUSH_S = 5.0
#: Sentry's monitors know minutes, and cron expressions of five fields.
_MINUTE_S = 60.0
_CRON_FIELDS = 5
_LONGEST_SLUG = 50
#: What a job asks for, which is not an error.
_WISHES = (Retry, Snooze, Cancel)


class TaskQIntegration(Integration):
    """Give it to Sentry in the module of the application, before the application is made::

        sentry_sdk.init(dsn=..., traces_sample_rate=0.1, integrations=[TaskQIntegration()])
        q = TaskQ("shop")

    Each attempt is a transaction, or a span without a parent if Sentry streams spans. An exception is sent as an error,
    also of an attempt after which the job is retried; `Retry`, `Snooze` and `Cancel` are not. Arguments are not sent.
    """

    identifier = "taskq"

    def __init__(self, *, monitor_schedules: bool = False) -> None:
        """
        Args:
            monitor_schedules: whether the attempts of jobs that schedules in the code have made are check-ins of a
                monitor (Sentry Crons), which is named as the schedule.
        """
        self.monitor_schedules = monitor_schedules

    @staticmethod
    def setup_once() -> None:
        """Sentry calls this once for each process."""
        register = getattr(utils, "_register_control_flow_exception", None)  # newer SDKs have it
        if register is not None:
            register(list(_WISHES))
        for_every_app(install)


def install(app: TaskQ) -> None:
    """Gives an application the hooks; for one that was made before `sentry_sdk.init`."""

    def process(job: CurrentJob) -> Iterator[None]:
        yield from _process(app, job)

    app.on_enqueue(_publish)
    app.middleware(process)
    app.on_consumer_stop(_flush)


def _integration() -> TaskQIntegration | None:
    """The one that was given to Sentry; None if it is off."""
    return sentry_sdk.get_client().get_integration(TaskQIntegration)


def _streams_spans() -> bool:
    """Whether Sentry gets each span when it ends, and not all of a transaction together."""
    options = sentry_sdk.get_client().options
    told = options.get("trace_lifecycle") or (options.get("_experiments") or {}).get("trace_lifecycle")
    return bool(told == "stream")


# -- enqueueing


def _publish(task: str, meta: dict[str, str]) -> None:
    if _integration() is None:
        return
    if _streams_spans():
        with _publish_streamed(task):
            headers = {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
            meta.update((name, text) for name, text in headers.items() if text and len(text) <= _LONGEST_CHARS)
        return
    with sentry_sdk.start_span(op="queue.publish", name=task, origin=_ORIGIN) as span:
        span.set_data("messaging.system", "taskq")
        span.set_data("messaging.destination.name", task)
        found = sentry_sdk.get_current_scope().iter_trace_propagation_headers(span=span)
        meta.update((name, text) for name, text in found if len(text) <= _LONGEST_CHARS)


@contextmanager
def _publish_streamed(task: str) -> Iterator[None]:
    from sentry_sdk import traces  # newer SDKs have it

    if traces.get_current_span() is None:
        yield  # outside of a trace nobody asks for it
        return
    attributes: dict[str, Any] = {
        "sentry.op": "queue.publish",
        "sentry.origin": _ORIGIN,
        "messaging.system": "taskq",
        "messaging.destination.name": task,
    }
    with traces.start_span(name=task, attributes=attributes):
        yield


# -- running


def _process(app: TaskQ, job: CurrentJob) -> Iterator[None]:
    integration = _integration()
    if integration is None:
        yield
        return
    monitor = _monitor_for(app, job) if integration.monitor_schedules else None
    with sentry_sdk.isolation_scope() as scope:
        scope.clear_breadcrumbs()
        scope.set_transaction_name(job.task, source=TransactionSource.TASK)
        scope.set_context("taskq", {"job": job.id, "task": job.task, "attempt": job.attempt})
        checked_in = nullcontext() if monitor is None else _check_in(*monitor)
        with checked_in, (_streamed if _streams_spans() else _in_transaction)(job) as ended:
            try:
                yield
            except _WISHES:
                raise
            except BaseException as error:
                ended(False)
                tell(_capture, error)
                raise
            ended(True)


def _told_of(job: CurrentJob) -> Mapping[str, str | int | float]:
    return {
        "messaging.system": "taskq",
        "messaging.destination.name": job.task,
        "messaging.message.id": job.id,
        "messaging.message.retry.count": job.attempt - 1,
        "messaging.message.receive.latency": (time.time() - _made_at(job)) * 1e3,
    }


@contextmanager
def _in_transaction(job: CurrentJob) -> Iterator[Callable[[bool], None]]:
    """An attempt as a transaction with a span. Yields what is called with whether it went well."""
    transaction = sentry_sdk.continue_trace(
        job.meta, op="queue.process", name=job.task, source=TransactionSource.TASK, origin=_ORIGIN
    )
    with (
        sentry_sdk.start_transaction(transaction),
        sentry_sdk.start_span(op="queue.process", name=job.task, origin=_ORIGIN) as span,
    ):
        for name, value in _told_of(job).items():
            span.set_data(name, value)
        yield lambda is_well: transaction.set_status("ok" if is_well else "internal_error")


@contextmanager
def _streamed(job: CurrentJob) -> Iterator[Callable[[bool], None]]:
    """An attempt as a streamed span, as `_in_transaction`."""
    from sentry_sdk import traces

    traces.continue_trace(job.meta)
    attributes: dict[str, Any] = {
        "sentry.op": "queue.process",
        "sentry.origin": _ORIGIN,
        "sentry.segment.name.source": traces.SegmentNameSource.TASK,
        **_told_of(job),
    }
    with traces.start_span(name=job.task, attributes=attributes, parent_span=None) as span:

        def ended(is_well: bool) -> None:
            span.status = (traces.SpanStatus.OK if is_well else traces.SpanStatus.ERROR).value

        yield ended


def _capture(error: BaseException) -> None:
    options = sentry_sdk.get_client().options
    event, hint = utils.event_from_exception(error, options, {"type": "taskq", "handled": False})
    sentry_sdk.capture_event(event, hint)


def _made_at(job: CurrentJob) -> float:
    """When a job was made, in seconds since 1970."""
    return enqueued_at(bytes.fromhex(job.id))


# -- schedules


def _monitor_for(app: TaskQ, job: CurrentJob) -> tuple[str, dict[str, Any]] | None:
    """The name of the schedule in the code that has made a job by itself, and what Sentry is told of it; None if there
    is none, or Sentry does not know schedules of this kind."""
    job_id, made_at = bytes.fromhex(job.id), _made_at(job)
    for packed in app.schedules.declared:
        schedule, monitor = _read(packed)
        if schedule.spec.task == job.task and fired_id(schedule.name, made_at) == job_id:
            return None if monitor is None else (schedule.name, monitor)
    return None


@cache
def _read(packed: bytes) -> tuple[Schedule, dict[str, Any] | None]:
    """A schedule of the code, of which there are few, and what Sentry is told of it."""
    schedule = Schedule.from_wire(msgpack.unpackb(packed))
    return schedule, _monitor_of(schedule)


def _monitor_of(schedule: Schedule) -> dict[str, Any] | None:
    """What Sentry is told of a schedule; None if it does not know such times."""
    times: dict[str, Any]
    if schedule.cron is not None:
        if len(schedule.cron.split()) != _CRON_FIELDS and not schedule.cron.startswith("@"):
            return None
        times = {"type": "crontab", "value": schedule.cron}
    elif schedule.every_s is not None and schedule.every_s >= _MINUTE_S and not schedule.every_s % _MINUTE_S:
        times = {"type": "interval", "value": int(schedule.every_s // _MINUTE_S), "unit": "minute"}
    else:
        return None
    timeout_s = schedule.spec.timeout_s
    longest = {} if timeout_s is None else {"max_runtime": ceil(timeout_s / _MINUTE_S)}
    return {"schedule": times, "timezone": schedule.zone, **longest}


@contextmanager
def _check_in(name: str, monitor: dict[str, Any]) -> Iterator[None]:
    """Tells Sentry's monitor of a schedule that an attempt has begun, and how it went."""
    told: dict[str, Any] = {
        "monitor_slug": re.sub(r"[^a-z0-9_-]+", "-", name.lower())[:_LONGEST_SLUG],
        "monitor_config": monitor,
    }
    began_at = time.monotonic()
    told["check_in_id"] = capture_checkin(status="in_progress", **told)
    status = "ok"
    try:
        yield
    except (Snooze, Cancel):
        raise
    except BaseException:
        status = "error"
        raise
    finally:
        capture_checkin(status=status, duration=time.monotonic() - began_at, **told)


def _flush() -> None:
    sentry_sdk.flush(_FLUSH_S)
