"""The options of tasks and jobs, as they are written: read, checked, and sorted into `Spec` and `CallOptions`.

What all jobs of a task have in common becomes the Spec, and travels; what depends on the call becomes CallOptions, and
stays with the producer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypedDict

from taskq.client.options.call_options import CallOptions, Key, Unique
from taskq.client.options.functions import signature_of
from taskq.client.options.retries import Backoff, read_backoff
from taskq.model.errors import ConfigError
from taskq.model.spec import Spec
from taskq.model.units import UNITS_S, bytes_of_text
from taskq.protocol.codec import ResultOf

_RATE: Final = re.compile(r"(\d[\d_]*) */ *(\d*\.?\d*) *(s|m|h|d)[a-z]*\Z")


class JobOptions(TypedDict, total=False):
    """The options of a job: ``@q.task(...)`` sets them for all jobs of a task, ``task.options(...)`` for some.

    Where it runs
        queue (str): the queue's name. Default "default".
        priority (int): jobs of higher priority in a queue run first, jobs of equal priority in the order in which they
            came. Default 0.
    When it runs
        delay (seconds or timedelta): it does not start before this time has passed.
        at (aware datetime): it does not start before this moment. Not together with delay, and only with `options`.
        expires (seconds, timedelta or aware datetime): if it has not started by then, it ends as expired.
    Retries
        retries (int): how many times a job that raised is run again. Default 3, because most errors in the background
            are temporary. Use 0 for none.
        backoff (list of seconds, or function): how long to wait before each retry. Default: 1 s, 2 s, 4 s ... up to 10
            minutes, with jitter (`taskq.model.job.backoff_s`). The last of a list counts for all later retries. A
            function ``(attempt, error) -> seconds`` is for tasks only. It is called in the consumer, with the number of
            the attempt and the exception (after a kill for a time limit there is none, and the default counts).
        max_crashes (int): after this number of deaths of the process that ran it (segfault, out of memory), a job is
            set aside as failed. Default 3.
        crash_queue (str): after a death of its process, or an attempt over its memory_limit, a job is run from this
            queue, where it harms no other job, and where consumers may have more memory.
    Time and memory
        timeout (seconds or None): the longest time for one attempt. Then `JobTimeout` is raised in the job, and 2 s
            later its process is killed, even in the middle of C code.
        cpu_timeout (seconds or None): the most CPU time for one attempt, including its child processes. It works like
            timeout, but raises `CpuTimeout`. It is measured every 50 ms.
        memory_limit (bytes, or a text such as "512MB"): the most memory for the job's process, including that of the
            application. On Linux, a call that wants more raises MemoryError, which ends the attempt as ``MemoryLimit``.
            A process that gets more nevertheless, its children included, is killed within 50 ms. The job is retried, as
            after any failure.
    Uniqueness
        unique (True, a list of parameters, a function of the arguments, a text, or `Unique`): while a job of the task
            with the same key has not ended, `enqueue` returns that job instead of making another one.
    Results
        result (bool): False drops what the function returns, whatever it is; `Job.result` then returns None.
    Dependencies (only with `options`)
        after (a list of jobs, or a dict of jobs and "fail" or "continue"): it waits until these have ended. With
            "fail", as in a list, it ends as cancelled if one of them does not succeed; with "continue" it runs anyway.
            A job among the arguments stands for its result, and counts as one of these.
        on_success (bool): for use inside a job: enqueued when that job succeeds, and only then. With `unique`, a job
            that is left out ends as cancelled.
    Limits
        concurrency (int): the most jobs of the task that run at once in the fleet.
        rate (str such as "100/m" or "5/10s"): the most jobs of the task that start within any such span of time.
        limit_by (like unique): concurrency and rate count for each key separately.
        ordered_by (like unique): jobs of the task with the same key run one after the other, in the order in which they
            became queued. The next one starts when the one before has ended for good, retries included.
        resources (dict such as {"gpu": 1}): what an attempt takes of the fleet's capacities (`--resources gpu=2`).
        max_queued (int): the most jobs that may be queued in the queue; when it is full, it accepts no more.
        when_full ("raise" or "wait"): what `enqueue` does when the queue is full. Default "raise": `QueueFull`.
    """

    queue: str
    priority: int
    delay: float | timedelta | None
    at: datetime | None
    expires: float | timedelta | datetime | None
    retries: int
    backoff: Backoff
    max_crashes: int
    crash_queue: str | None
    timeout: float | None
    cpu_timeout: float | None
    memory_limit: int | str | None
    unique: Key | Unique | None
    result: bool
    after: Iterable[Any] | Mapping[Any, Literal["fail", "continue"]] | None
    on_success: bool
    concurrency: int | None
    rate: str | None
    limit_by: Key | None
    ordered_by: Key | None
    resources: Mapping[str, int] | None
    max_queued: int | None
    when_full: Literal["raise", "wait"]


def apply_options(
    spec: Spec, rules: CallOptions, options: Mapping[str, Any], function: Callable[..., Any] | None
) -> tuple[Spec, CallOptions]:
    """Changes what is asked for a task's jobs.

    Args:
        function: of the task, or None if it is not known here.

    Raises:
        ConfigError: an option makes no sense, or not with the others.
        TypeError: there is no such option.
    """
    refuse_unknown(options, JobOptions)
    of_spec = fields_of(options, _OF_SPEC)
    changed = replace(spec, **of_spec) if of_spec else spec
    _check_again(changed, options)
    rules = replace(rules, **_rules_of(options, function))
    if rules.delay_s is not None and rules.at is not None:
        raise ConfigError("delay= and at= both say when it runs: give one of them")
    if rules.limit_by is not None and changed.concurrency is None and changed.rate is None:
        raise ConfigError("limit_by= says for what concurrency= and rate= count: give one of these as well")
    if rules.waits_for_room and changed.max_queued is None:
        raise ConfigError("when_full= says what is done when max_queued= jobs wait: give that as well")
    return changed, rules


#: Options that are fields of something: by their name, that of the field, and how they are read (None: as they are).
Fields = Mapping[str, tuple[str, Callable[[Any], Any] | None]]


def fields_of(options: Mapping[str, Any], known: Fields) -> dict[str, Any]:
    """The values of those fields of which something is said; the defaults of the others stand where the fields do."""
    return {
        field: options[name] if read is None else read(options[name])
        for name, (field, read) in known.items()
        if name in options
    }


def refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    """Raises TypeError if an option is none of those of a TypedDict."""
    names = known.__annotations__
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"no such option: {unknown[0]!r}; there are {', '.join(sorted(names))}")


def _check_again(spec: Spec, options: Mapping[str, Any]) -> None:
    """Raises ConfigError if options for another attempt have no effect."""
    if options.get("backoff") is not None and options.get("retries") == 0:
        raise ConfigError("backoff= has no effect with retries=0: leave it out, or allow retries")
    if options.get("crash_queue") is None:
        return
    if spec.crash_queue == spec.queue:
        raise ConfigError(f"crash_queue={spec.crash_queue!r} is its own queue: name another one, or leave it out")
    if spec.max_crashes == 1 and spec.memory_limit_bytes is None:
        raise ConfigError("crash_queue= has no effect with max_crashes=1: a job ends with its first crash then")


def _backoff_of(value: Any) -> tuple[float, ...] | None:
    steps_s, function = read_backoff(value)
    if function is not None:
        raise ConfigError("a backoff function cannot travel with a job: give it to the task, or use a list of seconds")
    return steps_s


def _rules_of(options: Mapping[str, Any], function: Callable[..., Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "delay" in options:
        found["delay_s"] = _seconds_of("delay", options["delay"])
        found["at"] = None
    if "at" in options:
        found["at"] = _time_of("at", options["at"])
        if "delay" not in options:
            found["delay_s"] = None
    if "expires" in options:
        is_time = isinstance(options["expires"], datetime)
        found["expires_at"] = _time_of("expires", options["expires"]) if is_time else None
        found["expires_s"] = None if is_time else _seconds_of("expires", options["expires"])
    if "unique" in options:
        found["unique"] = unique = _unique_of(options["unique"])
        _check_key("unique", None if unique is None else unique.by, function)
    for name in ("limit_by", "ordered_by"):
        if name in options:
            found[name] = options[name]
            _check_key(name, options[name], function)
    if "when_full" in options:
        if options["when_full"] not in ("raise", "wait"):
            raise ConfigError(f'when_full={options["when_full"]!r}: use "raise" or "wait"')
        found["waits_for_room"] = options["when_full"] == "wait"
    if "after" in options:
        found["after"] = _after_of(options["after"])
    if "on_success" in options:
        if not isinstance(options["on_success"], bool):
            raise ConfigError(f"on_success={options['on_success']!r}: use True or False")
        found["on_success"] = options["on_success"]
    return found


def _after_of(value: Any) -> tuple[tuple[bytes, bool], ...]:
    """What a job comes after, each with whether it goes on if that does not succeed. Of two policies "fail" counts."""
    if value is None:
        return ()
    if isinstance(value, (ResultOf, str, bytes)) or not isinstance(value, Iterable):
        raise ConfigError(f"after={value!r:.80}: use a list of jobs, as enqueue returns them, or a dict with policies")
    policies = value if isinstance(value, Mapping) else dict.fromkeys(value, "fail")
    after: dict[bytes, bool] = {}
    for job, policy in policies.items():
        if policy not in ("fail", "continue"):
            raise ConfigError(f'after={{{job!r:.80}: {policy!r:.80}}}: the policy is "fail" or "continue"')
        jobs = [job] if isinstance(job, ResultOf) else getattr(job, "jobs", None)
        if not isinstance(jobs, list) or not all(isinstance(one, ResultOf) for one in jobs):
            raise ConfigError(f"after: {job!r:.80} is not a job: use what enqueue returned")
        for one in jobs:
            after[one._id] = policy == "continue" and after.get(one._id, True)
    return tuple(after.items())


def _time_of(name: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ConfigError(f"{name}={value!r}: use a datetime with a time zone, such as datetime.now(UTC)")
    if value.tzinfo is None:
        raise ConfigError(
            f"{name}={value!r} has no time zone, so nobody knows which moment it is: "
            "add one, as in datetime(2030, 1, 1, tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    return value.timestamp()


def _seconds_of(name: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
        raise ConfigError(f"{name}={value!r}: use seconds, or a timedelta, of 0 or more")
    return float(seconds)


def _rate_of(value: object) -> tuple[int, float] | None:
    if value is None:
        return None
    found = _RATE.match(value) if isinstance(value, str) else None
    if found is None or found[2] == ".":
        raise ConfigError(f'rate={value!r}: use a number of starts and a time, such as "100/m" or "5/10s"')
    return int(found[1]), float(found[2] or 1) * UNITS_S[found[3]]


def _resources_of(value: object) -> tuple[tuple[str, int], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ConfigError(f'resources={value!r}: use a dict of names and whole numbers, as in {{"gpu": 1}}')
    return tuple(sorted(value.items(), key=str))


def _unique_of(value: Any) -> Unique | None:
    if value is None or value is False:
        return None
    return value if isinstance(value, Unique) else Unique(by=value)


def _check_key(name: str, key: object, function: Callable[..., Any] | None) -> None:
    """Raises ConfigError unless a key can be made for the task."""
    if key is None or key is True or callable(key):
        return
    if isinstance(key, str):
        _check_text(name, key, function)
        return
    if not isinstance(key, Sequence) or not key or not all(isinstance(part, str) for part in key):
        raise ConfigError(
            f"{name}={key!r}: use True (all arguments), a list of parameters, a function of the arguments, or a text"
        )
    if function is None:
        return
    signature = signature_of(function)
    if signature is None:
        raise ConfigError(
            f"{name}={key!r}: the task does not tell its parameters: use True (all arguments), a function of the "
            "arguments, or a text"
        )
    known = signature.parameters
    missing = [part for part in key if part not in known]
    if missing:
        raise ConfigError(f"{name}={key!r}: the task has no parameter {missing[0]!r} (it has: {', '.join(known)})")


def _check_text(name: str, key: str, function: Callable[..., Any] | None) -> None:
    """A text is one key for all jobs of a task; the name of a parameter alone is meant as the list of that one."""
    signature = None if function is None else signature_of(function)
    if signature is not None and key in signature.parameters:
        raise ConfigError(
            f"{name}={key!r} would be one key for all jobs of the task: write {name}=[{key!r}] for one of each {key}"
        )


#: Options that are fields of Spec: their names there, and how they are read.
_OF_SPEC: Final[Fields] = {
    "queue": ("queue", None),
    "priority": ("priority", None),
    "retries": ("retries", None),
    "backoff": ("backoff_s", _backoff_of),
    "max_crashes": ("max_crashes", None),
    "crash_queue": ("crash_queue", None),
    "timeout": ("timeout_s", None),
    "result": ("keep_result", None),
    "cpu_timeout": ("cpu_timeout_s", None),
    "memory_limit": ("memory_limit_bytes", lambda value: bytes_of_text(value, "memory_limit")),
    "concurrency": ("concurrency", None),
    "rate": ("rate", _rate_of),
    "resources": ("resources", _resources_of),
    "max_queued": ("max_queued", None),
}
