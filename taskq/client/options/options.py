"""The options of tasks and jobs: the table of all there are, and the one place where they are read and checked.

What all jobs of a task have in common becomes its `Spec`, and travels; what depends on the call or is code of the
application becomes its `CallOptions`, and stays on this side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import UnionType
from typing import Any, Final, Literal, TypedDict, Union, get_args, get_origin, get_type_hints

from taskq.client.options import readers
from taskq.client.options.call_options import PLAIN, Backoff, CallOptions, ErrorTypes, Unique
from taskq.client.options.keys import Key, check_key
from taskq.model.constraints import meta_of
from taskq.model.errors import ConfigError
from taskq.model.spec import SPEC_FIELDS, Spec


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
            function ``(attempt, error) -> seconds`` can only be given to a task. It is called in the consumer, with the
            number of the attempt and the exception (after a kill for a time limit there is none, and the default
            counts).
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
    What travels with it
        meta (dict of texts): a small map, up to 4 KiB, for request ids, tenants, tags: seen in the job
            (`current_job().meta`), in `Job.info`, in lists and in the log. With `options` it is added to that of the
            task; functions of `TaskQ.on_enqueue` may add to both.
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
    meta: Mapping[str, str]
    after: Iterable[Any] | Mapping[Any, Literal["fail", "continue"]] | None
    on_success: bool
    concurrency: int | None
    rate: str | None
    limit_by: Key | None
    ordered_by: Key | None
    resources: Mapping[str, int] | None
    max_queued: int | None
    when_full: Literal["raise", "wait"]


def option_types(name: str) -> set[object]:
    """The types of the values that an option of a job takes; none if there is no such option."""
    hint = get_type_hints(JobOptions).get(name)
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType, Literal) else (hint,)
    return {type(part) if isinstance(part, str) else part for part in parts}  # the parts of a Literal are texts


#: Options that are fields of something: the name of the option, that of the field, and how its value is read (None: as
#: it is).
Fields = Mapping[str, tuple[str, Callable[[Any], Any] | None]]

_SPEC_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "backoff": readers.backoff_steps,
    "memory_limit": readers.memory_limit,
    "rate": readers.rate,
    "resources": readers.resources,
}
_OF_SPEC: Final[Fields] = {option: (field, _SPEC_READERS.get(option)) for option, field in SPEC_FIELDS.items()}

_OF_CALL: Final[Fields] = {
    "delay": ("due", readers.delay),
    "at": ("due", readers.at),
    "expires": ("expires", readers.expires),
    "unique": ("unique", readers.unique),
    "limit_by": ("limit_by", None),
    "ordered_by": ("ordered_by", None),
    "meta": ("meta", meta_of),
    "after": ("after", readers.after),
    "when_full": ("waits_for_room", readers.when_full),
    "on_success": ("on_success", readers.on_success),
    "backoff": ("backoff", readers.backoff_function),
    "retry_on": ("retry_on", partial(readers.error_types, "retry_on")),
    "give_up_on": ("give_up_on", partial(readers.error_types, "give_up_on")),
}


def refuse_for_task(options: JobOptions) -> None:
    """Refuses what makes no sense for any task, before its function is known.

    Raises:
        ConfigError: an option is for single jobs only.
        TypeError: there is no such option.
    """
    refuse_unknown(options, JobOptions)
    if "after" in options or "on_success" in options:
        raise ConfigError(
            "after= and on_success= are for single jobs, not for a task: give them with options() instead"
        )
    if "at" in options:
        raise ConfigError("at= is one moment for all jobs of the task: give it with options(at=...) instead")


def options_of_task(
    name: str,
    function: Callable[..., Any],
    options: JobOptions,
    retry_on: ErrorTypes | None,
    give_up_on: ErrorTypes,
) -> tuple[Spec, CallOptions]:
    """Reads the options of a task, as `TaskQ.task` takes them; `refuse_for_task` has let them pass.

    Raises:
        ConfigError: an option makes no sense, by itself or with the others.
    """
    given: dict[str, Any] = {**options, "give_up_on": give_up_on}
    if retry_on is not None:
        given["retry_on"] = retry_on
    return _changed(Spec(name), PLAIN, given, function)


def options_of_call(
    spec: Spec, call_options: CallOptions, options: JobOptions, function: Callable[..., Any] | None
) -> tuple[Spec, CallOptions]:
    """Changes the options of a task's jobs, as `Enqueuer.options` does.

    Args:
        function: of the task, or None if it is not known here.

    Raises:
        ConfigError: an option makes no sense, by itself, with the others, or for single jobs.
        TypeError: there is no such option.
    """
    refuse_unknown(options, JobOptions)
    if "backoff" in options and call_options.backoff is not None:
        raise ConfigError(f"the backoff of {spec.task} is a function, which takes precedence: a list has no effect")
    if callable(options.get("backoff")):
        raise ConfigError("a backoff function cannot travel with a job: give it to the task, or use a list of seconds")
    return _changed(spec, call_options, options, function)


def _changed(
    spec: Spec, call_options: CallOptions, given: Mapping[str, Any], function: Callable[..., Any] | None
) -> tuple[Spec, CallOptions]:
    of_spec, of_call = fields_of(given, _OF_SPEC), fields_of(given, _OF_CALL)
    if of_spec:
        spec = replace(spec, **of_spec)
    if "meta" in of_call:
        of_call["meta"] = meta_of({**dict(call_options.meta), **dict(of_call["meta"])})
    if of_call:
        call_options = replace(call_options, **of_call)
    _check_keys(call_options, given, function)
    _check_retries(spec, call_options, given)
    if given.get("delay") is not None and given.get("at") is not None:
        raise ConfigError("delay= and at= both say when the job runs: give one of them")
    if call_options.limit_by is not None and spec.concurrency is None and spec.rate is None:
        raise ConfigError("limit_by= needs a limit to apply to: give concurrency= or rate= as well")
    if call_options.waits_for_room and spec.max_queued is None:
        raise ConfigError("when_full= needs a queue with a limit: give max_queued= as well")
    return spec, call_options


def fields_of(options: Mapping[str, Any], known: Fields) -> dict[str, Any]:
    """The values of the fields that are given; the defaults of the others are those of the fields. Where two options
    are about one field, the one that is not None counts."""
    found: dict[str, Any] = {}
    for name, (field, read) in known.items():
        if name in options:
            value = options[name] if read is None else read(options[name])
            if found.get(field) is None:
                found[field] = value
    return found


def refuse_unknown(options: Mapping[str, Any], known: type) -> None:
    """Raises TypeError if an option is not one of a TypedDict."""
    names = known.__annotations__
    unknown = [name for name in options if name not in names]
    if unknown:
        raise TypeError(f"no such option: {unknown[0]!r}; there are {', '.join(sorted(names))}")


def _check_keys(call_options: CallOptions, given: Mapping[str, Any], function: Callable[..., Any] | None) -> None:
    """Raises ConfigError if a key that is given cannot be made for the task."""
    if "unique" in given:
        check_key("unique", call_options.unique and call_options.unique.by, function)
    for name in ("limit_by", "ordered_by"):
        if name in given:
            check_key(name, given[name], function)


def _check_retries(spec: Spec, call_options: CallOptions, given: Mapping[str, Any]) -> None:
    """Raises ConfigError if options for another attempt have no effect."""
    for kind in call_options.retry_on or ():
        if issubclass(kind, call_options.give_up_on):
            raise ConfigError(f"retry_on={kind.__name__} has no effect: give_up_on= names it too, and takes precedence")
    if given.get("retries") == 0:
        for name in ("backoff", "retry_on", "give_up_on"):
            if given.get(name):
                raise ConfigError(f"{name}= has no effect with retries=0: leave it out, or allow retries")
    if given.get("crash_queue") is None:
        return
    if spec.crash_queue == spec.queue:
        raise ConfigError(
            f"crash_queue={spec.crash_queue!r} is the task's own queue: name another one, or leave it out"
        )
    if spec.max_crashes == 1 and spec.memory_limit_bytes is None:
        raise ConfigError("crash_queue= has no effect with max_crashes=1: the first crash ends the job, so allow more")
