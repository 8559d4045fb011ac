"""OpenTelemetry: a span when a job is enqueued, and one for each attempt, in whatever process it runs.

Names and attributes follow the semantic conventions for messaging (1.44), which are still marked as in development. The
context travels in the `meta` of the job.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined, unused-ignore]
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from taskq.client.app import TaskQ
from taskq.client.context import CurrentJob
from taskq.client.hooks import for_every_app, no_longer_for_every_app
from taskq.contrib.told_errors import tell
from taskq.model.errors import Cancel, Retry, Snooze

#: A longer value, such as a large baggage, does not travel: the meta of a job has 4 KiB.
_LONGEST_CHARS = 1024
_SYSTEM = {"messaging.system": "taskq"}
_FLUSH_MS = 5_000


class TaskQInstrumentor(BaseInstrumentor):  # type: ignore[misc, unused-ignore]
    """Traces the applications of this process. `opentelemetry-instrument` finds it by itself; else::

        TaskQInstrumentor().instrument()  # before `q = TaskQ(...)`
        TaskQInstrumentor().instrument(app=q)  # or after it

    Keyword arguments of `instrument`:
        app: the only application to trace; by default all that are made from now on.
        tracer_provider, meter_provider: in place of the global ones.
        use_span_links: an attempt begins a trace of its own with a link to the one in which the job was enqueued,
            instead of being part of it.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        return ("taskq-fleet >= 0.1",)

    def _instrument(self, **kwargs: Any) -> None:
        self._tracing = _Tracing(
            kwargs.get("tracer_provider"), kwargs.get("meter_provider"), kwargs.get("use_span_links", False)
        )
        app = kwargs.get("app")
        if app is None:
            for_every_app(self._tracing.install)
        else:
            self._tracing.install(app)

    def _uninstrument(self, **_kwargs: Any) -> None:
        no_longer_for_every_app(self._tracing.install)
        self._tracing.is_on = False


class _Tracing:
    """The hooks of the applications that are traced."""

    def __init__(self, tracer_provider: Any, meter_provider: Any, use_span_links: bool) -> None:
        self.is_on = True
        self._provider = tracer_provider
        self._use_span_links = use_span_links
        self._tracer = trace.get_tracer(__name__, tracer_provider=tracer_provider)
        meter = metrics.get_meter(__name__, meter_provider=meter_provider)
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Calls that enqueued jobs.")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Attempts.")
        self._duration = meter.create_histogram("messaging.process.duration", "s", "How long attempts ran.")

    def install(self, app: TaskQ) -> None:
        """Gives an application the hooks."""
        app.on_enqueue(self.enqueue)
        app.middleware(self.process)
        app.on_consumer_stop(self.flush)

    def enqueue(self, task: str, meta: dict[str, str]) -> None:
        """A span that says where the job was made; its context travels with the job."""
        if not self.is_on:
            return
        operation = {"messaging.operation.name": "enqueue", "messaging.operation.type": "create"}
        attributes = {**_SYSTEM, **operation, "taskq.task": task}
        with self._tracer.start_as_current_span(f"enqueue {task}", kind=SpanKind.PRODUCER, attributes=attributes):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            meta.update((name, text) for name, text in carrier.items() if len(text) <= _LONGEST_CHARS)
        self._sent.add(1, {**_SYSTEM, "messaging.operation.name": "enqueue", "taskq.task": task})

    def process(self, job: CurrentJob) -> Iterator[None]:
        """A span around an attempt."""
        if not self.is_on:
            yield
            return
        made_in = propagate.extract(job.meta)
        links = [trace.Link(trace.get_current_span(made_in).get_span_context())] if self._use_span_links else []
        attributes: dict[str, str | int] = {
            **_SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.message.id": job.id,
            "taskq.task": job.task,
            "taskq.attempt": job.attempt,
        }
        labels = {**_SYSTEM, "messaging.operation.name": "process", "taskq.task": job.task}
        with self._tracer.start_as_current_span(
            f"process {job.task}",
            context=Context() if links else made_in,
            kind=SpanKind.CONSUMER,
            links=links,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            began_at = time.perf_counter()
            try:
                yield
            except (Retry, Snooze, Cancel) as wish:
                span.set_attribute("taskq.wish", type(wish).__name__.lower())  # what the job asks for is no error
                raise
            except BaseException as error:
                span.set_status(StatusCode.ERROR)
                labels["error.type"] = "_OTHER"  # as the conventions say for one whose name cannot be told
                tell(partial(_tell, span, labels), error)
                raise
            finally:
                self._consumed.add(1, labels)
                self._duration.record(time.perf_counter() - began_at, labels)

    def flush(self) -> None:
        """Sends what is left, when a consumer ends."""
        provider = self._provider or trace.get_tracer_provider()
        if hasattr(provider, "force_flush"):  # not the one that does nothing
            provider.force_flush(_FLUSH_MS)


def _tell(span: Span, labels: dict[str, Any], error: BaseException) -> None:
    labels["error.type"] = type(error).__qualname__
    span.set_attribute("error.type", labels["error.type"])
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, str(error)))
