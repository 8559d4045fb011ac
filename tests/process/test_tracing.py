"""OpenTelemetry and Sentry: what they are sent by a program that enqueues, and by the consumer of a real fleet."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk
from apps import traced
from fleet import APPS, Fleet, running, use
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from taskq import Job, JobFailed, TaskQ, testing
from taskq.client.hooks import no_longer_for_every_app
from taskq.contrib.otel import TaskQInstrumentor
from taskq.contrib.sentry import TaskQIntegration, install

Told = dict[str, Any]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    home = tmp_path_factory.mktemp("traced") / "queue"
    app = f"{APPS / 'traced.py'}:q"
    paths = f"{APPS.parent}:{APPS.parent.parent}"
    with running(Fleet(home, app, consumers=1, environment={"PYTHONPATH": paths})) as fleet:
        use(traced.q, home)
        yield fleet


def ended(job: Job[Any]) -> str:
    """The id of a job that has ended."""
    assert job.wait(20)
    return job.id


def spans_of(told: Told, job_id: str) -> list[Told]:
    return [span for span in told["spans"] if span["attributes"].get("messaging.message.id") == job_id]


def events_of(told: Told, job_id: str) -> list[Told]:
    return [event for event in told["sentry"] if event.get("contexts", {}).get("taskq", {}).get("job") == job_id]


def test_an_attempt_belongs_to_the_trace_in_which_the_job_was_enqueued(fleet: Fleet) -> None:
    traced.exporter.clear()
    job_id = ended(traced.fine.enqueue(1))
    [made] = traced.spans()
    assert (made["name"], made["kind"]) == ("enqueue fine", "PRODUCER")
    told = traced.told.enqueue().result(timeout=20)
    [ran] = spans_of(told, job_id)
    assert (ran["name"], ran["kind"], ran["status"]) == ("process fine", "CONSUMER", "UNSET")
    assert (ran["trace"], ran["parent"]) == (made["trace"], made["id"])
    assert ran["attributes"]["messaging.system"] == "taskq"
    assert ran["attributes"]["taskq.attempt"] == 1
    assert told["metrics"] == ["messaging.client.consumed.messages", "messaging.process.duration"]


def test_a_job_that_a_job_enqueues_is_in_the_same_trace(fleet: Fleet) -> None:
    outer = traced.around.enqueue(4)
    inner_id = outer.result(timeout=20)
    assert traced.q.job(inner_id).wait(20)
    told = traced.told.enqueue().result(timeout=20)
    [first], [second] = spans_of(told, outer.id), spans_of(told, inner_id)
    assert first["trace"] == second["trace"]
    between = next(span for span in told["spans"] if span["id"] == second["parent"])
    assert (between["name"], between["parent"]) == ("enqueue fine", first["id"])


def test_an_error_is_told_for_each_attempt_and_a_wish_is_none(fleet: Fleet) -> None:
    failed = traced.fails.enqueue()
    with pytest.raises(JobFailed):
        failed.result(timeout=20)
    asked = ended(traced.asks.enqueue())
    told = traced.told.enqueue().result(timeout=20)
    attempts = spans_of(told, failed.id)
    assert [span["attributes"]["taskq.attempt"] for span in attempts] == [1, 2]
    for span in attempts:
        assert (span["status"], span["events"]) == ("ERROR", ["exception"])
        assert span["attributes"]["error.type"] == "ValueError"
    first, second = spans_of(told, asked)
    assert first["attributes"]["taskq.wish"] == "retry"
    assert {first["status"], second["status"]} == {"UNSET"}
    errors = [event for event in events_of(told, failed.id) if "exception" in event]
    assert [event["contexts"]["taskq"]["attempt"] for event in errors] == [1, 2]
    for event in errors:
        assert event["exception"]["values"][-1]["value"] == "no paper"
        crumbs = [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
        assert crumbs == [f"attempt {event['contexts']['taskq']['attempt']}"], "each attempt has its own"
        assert event["exception"]["values"][-1]["mechanism"] == {"type": "taskq", "handled": False}
    assert [event for event in events_of(told, asked) if "exception" in event] == []


def test_an_error_without_a_text_is_the_jobs_error_all_the_same(fleet: Fleet) -> None:
    job = traced.mute.enqueue()
    with pytest.raises(JobFailed) as failed:
        job.result(timeout=20)
    assert failed.value.error_type == "Mute"
    [span] = spans_of(traced.told.enqueue().result(timeout=20), job.id)
    assert (span["status"], span["attributes"]["error.type"]) == ("ERROR", "Mute")


def test_sentry_leads_from_the_request_to_the_attempt(fleet: Fleet) -> None:
    traced.Kept.sent.clear()
    with sentry_sdk.start_transaction(op="http.server", name="POST /orders"):
        job_id = ended(traced.waits.enqueue(7))
    [request] = [event for event in traced.Kept.sent if event.get("type") == "transaction"]
    [publish] = request["spans"]
    assert (publish["op"], publish["description"]) == ("queue.publish", "waits")
    told = traced.told.enqueue().result(timeout=20)
    [attempt] = events_of(told, job_id)
    assert (attempt["type"], attempt["transaction"]) == ("transaction", "waits")
    assert attempt["transaction_info"] == {"source": "task"}
    trace = attempt["contexts"]["trace"]
    assert (trace["trace_id"], trace["parent_span_id"]) == (
        request["contexts"]["trace"]["trace_id"],
        publish["span_id"],
    )
    assert trace["status"] == "ok"
    [process] = attempt["spans"]
    assert process["op"] == "queue.process"
    assert process["data"]["messaging.message.id"] == job_id
    assert process["data"]["messaging.message.retry.count"] == 0
    assert process["data"]["messaging.message.receive.latency"] >= 0


def test_a_large_baggage_does_not_keep_a_job_from_being_enqueued(fleet: Fleet) -> None:
    token = context.attach(baggage.set_baggage("cart", "x" * 5_000))
    try:
        job = traced.fine.enqueue(1)
    finally:
        context.detach(token)
    meta = job.info().meta
    assert "traceparent" in meta
    assert len(meta.get("baggage", "")) <= 1024


def test_with_links_an_attempt_begins_a_trace_of_its_own(tmp_path: Path) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = TaskQInstrumentor()
    instrumentor.uninstrument()
    try:
        q = TaskQ("linked", tmp_path / "linked")
        instrumentor.instrument(app=q, tracer_provider=provider, use_span_links=True)
        task = q.task(name="linked")(_double)
        with testing.inline(q):
            assert task.enqueue(2).result(timeout=30) == 4
        made, ran = exporter.get_finished_spans()
        assert made.name == "enqueue linked"
        assert ran.parent is None
        assert [link.context.trace_id for link in ran.links] == [made.context.trace_id]
        instrumentor.uninstrument()
        exporter.clear()
        with testing.inline(q):
            assert task.enqueue(2).result(timeout=30) == 4
        assert exporter.get_finished_spans() == ()
    finally:
        instrumentor.instrument(app=traced.q, tracer_provider=traced.provider)


@pytest.fixture
def sent() -> Iterator[list[Told]]:
    """What a client of Sentry that streams spans and monitors schedules is given."""
    kept: list[Told] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Envelope) -> None:
            kept.extend(item.payload.json for item in envelope.items if item.payload.json)

    client = sentry_sdk.Client(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        transport=Kept,
        integrations=[TaskQIntegration(monitor_schedules=True)],
        default_integrations=False,
        auto_enabling_integrations=False,
        trace_lifecycle="stream",
    )
    no_longer_for_every_app(install)
    before = sentry_sdk.get_client()
    sentry_sdk.get_global_scope().set_client(client)
    try:
        yield kept
    finally:
        sentry_sdk.get_global_scope().set_client(before)


def test_sentry_gets_streamed_spans(sent: list[Told]) -> None:
    q = TaskQ("streamed", url="/proc/nonexistent")
    install(q)
    double, fails = q.task(name="double")(_double), q.task(name="fails", retries=0)(_fails)
    with testing.inline(q, raise_errors=False), sentry_sdk.isolation_scope():
        with sentry_sdk.traces.start_span(name="POST /orders", parent_span=None):
            good = double.enqueue(2)
        bad = fails.enqueue()
    sentry_sdk.flush()
    spans = {told_of(span, "sentry.op"): span for event in sent for span in event.get("items", ())}
    streamed = [span for event in sent for span in event.get("items", ()) if told_of(span, "messaging.system")]
    publish = next(span for span in streamed if told_of(span, "sentry.op") == "queue.publish")
    [first] = [span for span in streamed if told_of(span, "messaging.message.id") == good.id]
    [second] = [span for span in streamed if told_of(span, "messaging.message.id") == bad.id]
    assert None in spans, "the request"
    assert publish["name"] == first["name"] == "double"
    assert (first["trace_id"], first["parent_span_id"]) == (publish["trace_id"], publish["span_id"])
    assert (first["status"], second["status"]) == ("ok", "error")
    assert told_of(first, "messaging.message.retry.count") == 0
    [error] = [event for event in sent if event.get("exception")]
    assert error["contexts"]["taskq"]["job"] == bad.id
    assert error["contexts"]["trace"]["trace_id"] == second["trace_id"]


def told_of(span: Told, name: str) -> Any:
    """An attribute of a streamed span."""
    return span["attributes"].get(name, {}).get("value")


def test_schedules_check_in(sent: list[Told]) -> None:
    """With the times of the schedule; jobs that somebody enqueues by hand do not."""
    q = TaskQ("watched", url="/proc/nonexistent")
    install(q)
    good = q.periodic("*/30 * * * *", name="Clean.Up")(q.task(name="good", timeout=90)(_nothing))
    q.periodic(every="5m", name="bad")(q.task(name="bad", retries=0)(_fails))
    q.periodic(every="50s", name="often")(q.task(name="often")(_nothing))
    with testing.queue(q) as jobs:
        good.enqueue()
        jobs.clock.advance(1_800)
        jobs.drain()
    checks = [event for event in sent if event.get("type") == "check_in"]
    clean = [check for check in checks if check["monitor_slug"] == "clean-up"]
    assert [check["status"] for check in clean] == ["in_progress", "ok"]
    assert clean[0]["check_in_id"] == clean[1]["check_in_id"]
    assert clean[0]["monitor_config"] == {
        "schedule": {"type": "crontab", "value": "*/30 * * * *"},
        "timezone": "UTC",
        "max_runtime": 2,
    }
    bad = [check for check in checks if check["monitor_slug"] == "bad"]
    assert {check["status"] for check in bad} == {"in_progress", "error"}
    assert bad[0]["monitor_config"]["schedule"] == {"type": "interval", "value": 5, "unit": "minute"}
    assert len(clean) + len(bad) == len(checks)


def _nothing() -> None:
    pass


def _fails() -> None:
    raise ValueError("no paper")


def test_opentelemetry_instrument_finds_it() -> None:
    [entry] = [each for each in entry_points(group="opentelemetry_instrumentor") if each.name == "taskq"]
    assert entry.load() is TaskQInstrumentor


def _double(number: int) -> int:
    return 2 * number
