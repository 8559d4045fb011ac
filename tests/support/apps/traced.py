"""An application that OpenTelemetry and Sentry watch, and that tells what its own process has sent them."""

from __future__ import annotations

from typing import Any, ClassVar

import sentry_sdk
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from taskq import Retry, TaskQ, current_job
from taskq.client.hooks import no_longer_for_every_app
from taskq.contrib.otel import TaskQInstrumentor
from taskq.contrib.sentry import TaskQIntegration, install

exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))


class Kept(Transport):
    """Keeps what would be sent."""

    sent: ClassVar[list[dict[str, Any]]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.sent += [item.payload.json for item in envelope.items if item.payload.json]


sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    traces_sample_rate=1.0,
    transport=Kept,
    integrations=[TaskQIntegration()],
    default_integrations=False,
    auto_enabling_integrations=False,
)
no_longer_for_every_app(install)  # other tests run in this process
q = TaskQ("traced")
install(q)
TaskQInstrumentor().instrument(app=q, tracer_provider=provider, meter_provider=MeterProvider([reader]))


@q.task
def fine(number: int) -> int:
    return number + 1


@q.task
async def waits(number: int) -> int:
    return number


@q.task(retries=1, backoff=[0])
async def fails() -> None:
    sentry_sdk.add_breadcrumb(message=f"attempt {current_job().attempt}")
    raise ValueError("no paper")


class Mute(ValueError):
    """Has no text."""

    def __str__(self) -> str:
        raise SystemExit(3)


@q.task(retries=0)
def mute() -> None:
    raise Mute


@q.task(retries=1, backoff=[0])
def asks() -> None:
    if current_job().attempt == 1:
        raise Retry()


@q.task
def around(number: int) -> str:
    """Enqueues from inside of a job."""
    return fine.enqueue(number).id


@q.task
def told() -> dict[str, Any]:
    """What this consumer has sent so far."""
    metrics = reader.get_metrics_data()
    named = {m.name for r in metrics.resource_metrics for s in r.scope_metrics for m in s.metrics} if metrics else set()
    return {"spans": spans(), "sentry": plain(Kept.sent), "metrics": sorted(named)}


def spans() -> list[dict[str, Any]]:
    """The spans that have ended in this process."""
    return [_told(span) for span in exporter.get_finished_spans()]


def _told(span: ReadableSpan) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    return {
        "name": span.name,
        "kind": span.kind.name,
        "trace": context.trace_id.to_bytes(16, "big").hex(),
        "id": context.span_id.to_bytes(8, "big").hex(),
        "parent": parent.span_id.to_bytes(8, "big").hex() if parent else None,
        "links": [link.context.trace_id.to_bytes(16, "big").hex() for link in span.links],
        "attributes": dict(span.attributes or {}),
        "status": span.status.status_code.name,
        "events": [event.name for event in span.events],
    }


def plain(value: Any) -> Any:
    """As a job can return it."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
