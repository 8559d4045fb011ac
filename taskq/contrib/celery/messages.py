"""From a message of Celery to a job, and back: what stands in the place of a connection to a message broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.exceptions import ImproperlyConfigured
from kombu.serialization import dumps, loads, prepare_accept_content
from kombu.utils.json import dumps as json_text
from kombu.utils.json import loads as from_json

from taskq.client.task import Enqueuer
from taskq.contrib.celery.fleet import fleet_of, job_task
from taskq.contrib.celery.options import message_options, moment


class Message(NamedTuple):
    """A message that waits to become a job."""

    app: Celery
    headers: Mapping[str, Any]
    enqueuer: Enqueuer[..., Any]
    arguments: tuple[Any, ...]

    def enqueue(self, **options: Any) -> None:
        """Makes it a job, and notes which."""
        enqueuer = self.enqueuer.options(**options) if options else self.enqueuer
        job = enqueuer.enqueue(*self.arguments)
        due = moment(self.headers.get("eta"))
        fleet_of(self.app).store.note_job(self.headers["id"], job.id, None if due is None else due.timestamp())


class Sender(Protocol):
    """A task that runs, and may keep messages back until it has ended."""

    def keeps(self, message: Message) -> bool:
        """Takes a message, or returns False."""


#: The task that runs here. Written by `running.Running`.
sender: ContextVar[Sender | None] = ContextVar("taskq_celery_sender", default=None)


class FleetAMQP(AMQP):
    """Celery's way to a message broker, which here is a way to the fleet."""

    @cached_property
    def send_task_message(self) -> Callable[..., None]:
        """What `delay`, `apply_async` and the canvas end in."""
        return partial(_send, self.app)

    @property
    def producer_pool(self) -> Any:
        """Celery takes a connection from this; there is none."""
        return _POOL


def _send(
    app: Celery,
    _producer: object,
    name: str,
    message: Any,
    exchange: Any = None,
    routing_key: str | None = None,
    queue: Any = None,
    serializer: str | None = None,
    headers: Mapping[str, Any] | None = None,
    declare: Sequence[Any] | None = None,
    retry_policy: Mapping[str, Any] | None = None,
    **properties: Any,
) -> None:
    """Hands a message over, as Celery calls it. It has told the signal `before_task_publish` before, and tells
    `after_task_publish` afterwards."""
    own_headers, own_properties, body, _event = message
    if "id" not in own_headers:
        raise ImproperlyConfigured("task_protocol = 1 is not supported on taskq: leave it at 2")
    own_headers.update(headers or {})
    own_properties.update({key: value for key, value in properties.items() if key not in _OF_A_CONNECTION})
    queue = _queue_of(app, exchange, routing_key, queue)
    told = {"exchange": "", "routing_key": queue}
    signals.before_task_publish.send(
        sender=name, body=body, declare=declare or [], headers=own_headers, properties=own_properties,
        retry_policy=dict(retry_policy or {}), **told,
    )  # fmt: skip
    enqueuer = (
        fleet_of(app)
        .q.named(job_task(name))
        .options(**message_options(app, own_headers, queue, own_properties.get("priority")))
    )
    content_type, encoding, data = dumps(body, serializer or app.conf.task_serializer)
    envelope = json_text({"headers": own_headers, "properties": own_properties, "queue": queue})
    made = Message(app, own_headers, enqueuer, (envelope, data, content_type, encoding))
    running = sender.get()
    if running is None or not running.keeps(made):
        made.enqueue()
    signals.after_task_publish.send(sender=name, body=body, headers=own_headers, **told)


#: What callers may give that is about a connection to a broker.
_OF_A_CONNECTION = {
    "event_dispatcher", "retry", "delivery_mode", "compression", "exchange_type", "timeout", "confirm_timeout",
}  # fmt: skip


def _queue_of(app: Celery, exchange: Any, routing_key: str | None, queue: Any) -> str:
    """The name of the queue of a message. An exchange stands for the queue that is bound to it with this key."""
    if queue is not None:
        return str(getattr(queue, "name", queue))
    wanted = str(getattr(exchange, "name", exchange) or "")
    for name, known in app.amqp.queues.items():
        if wanted and known.exchange.name == wanted and known.routing_key == routing_key:
            return str(name)
    return str(routing_key or app.conf.task_default_queue) if not wanted else str(app.conf.task_default_queue)


def read_message(
    app: Celery, envelope: str, data: Any, content_type: str, encoding: str
) -> tuple[dict[str, Any], Any, Any]:
    """The request of a message, as Celery's tracer wants it, and the arguments of the task.

    Raises:
        ContentDisallowed: the application does not accept messages of this kind (`accept_content`).
    """
    told = from_json(envelope)
    headers, properties = told["headers"], told["properties"]
    accept = prepare_accept_content(app.conf.accept_content)
    args, kwargs, embedded = loads(data, content_type, encoding, accept=accept)
    request = {
        **headers,
        **(embedded or {}),
        "args": args,
        "kwargs": kwargs,
        "is_eager": False,
        "properties": properties,
        "reply_to": properties.get("reply_to"),
        "correlation_id": properties.get("correlation_id"),
        "delivery_info": {
            "exchange": "",
            "routing_key": told["queue"],
            "priority": properties.get("priority"),
            "redelivered": bool(properties.get("redelivered")),
        },
    }
    if "headers" not in request or request["headers"] is None:
        request["headers"] = headers.get("headers")
    return request, args, kwargs


class _Producer(AbstractContextManager["_Producer"]):
    """What stands for a connection; `_send` needs none."""

    connection = SimpleNamespace(_reraise_as_library_errors=nullcontext)

    def __exit__(self, *_raised: object) -> None: ...


class _Pool:
    """What Celery takes a producer from, with the few attributes that it looks at."""

    connections = SimpleNamespace(connection=SimpleNamespace(transport=SimpleNamespace(driver_type="taskq")))
    limit = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> Any:
        """A producer with a connection that does nothing."""
        return _Producer()

    def force_close_all(self) -> None:
        """Nothing is open."""


_POOL = _Pool()
