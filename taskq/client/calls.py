"""The calls of a task, as jobs to submit: arguments packed, times and keys worked out, and the jobs they come after."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from typing import Any, Generic, TypeVar

from taskq.client.job import Job
from taskq.client.options.call_options import PLAIN, CallOptions
from taskq.client.options.functions import TAKES_ANYTHING, Takes
from taskq.client.transport.clients import FleetConnection
from taskq.model.constraints import NO_CONSTRAINTS, Constraints, meta_of
from taskq.model.errors import BadArguments, ConfigError, PayloadTooLarge
from taskq.model.job import new_job_ids
from taskq.model.limits import MAX_INLINE_PAYLOAD_BYTES
from taskq.model.spec import Spec
from taskq.protocol.codec import RESULT_OF_MARK, encode_call, results_in
from taskq.protocol.payloads.filed import size_of, snapshot
from taskq.protocol.submissions import Call

R_co = TypeVar("R_co", covariant=True)

#: The number of ids that are made at once.
_IDS_AT_ONCE = 256
#: Most payloads do not have this byte, and to look for it takes a tenth of the time of looking for two.
_MARK_BEGIN = RESULT_OF_MARK[0]


class CallMaker(Generic[R_co]):
    """Makes the calls of one task with certain options, and the handles of the jobs that these become."""

    def __init__(
        self,
        app: FleetConnection,
        spec: Spec,
        call_options: CallOptions = PLAIN,
        function: Callable[..., Any] | None = None,
        return_caster: Callable[[Any], Any] | None = None,
        takes: Takes = TAKES_ANYTHING,
    ) -> None:
        """
        Args:
            function: of the task, for the names of its parameters; None if it is not known here.
            return_caster: turns the value in a result into what the task returns; None leaves it as it is.
            takes: the arguments that the function takes.

        Raises:
            ConfigError: the application's engine does not support one of the options.
        """
        app.engine.check(spec, call_options)
        self._app = app
        self._spec = spec
        self._call_options = call_options
        self._is_plain = call_options.is_plain
        self._function = function
        self._return_caster = return_caster
        self._takes = takes

    def _options_of_call(self) -> CallOptions:
        """The options of the jobs of one call, with what the application's hooks add to their meta."""
        options, hooks = self._call_options, self._app.enqueue_hooks
        if not hooks:
            return options
        meta = dict(options.meta)
        for hook in hooks:
            if hook(self._spec.task, meta) is not None:
                name = getattr(hook, "__qualname__", hook)
                raise ConfigError(f"on_enqueue: {name} must change the meta in place and return None")
        if meta:
            self._app.engine.check_option(self._spec.task, "meta")
        return replace(options, meta=meta_of(meta))

    def _job(self, job_id: bytes) -> Job[Any]:
        return Job(self._app, job_id, self._return_caster, None, self._spec.keep_result)

    def _jobs(self, ids: Iterable[bytes]) -> list[Job[Any]]:
        """The handles of many jobs: a call of our own for each would take half as long again."""
        app, cast, has_result = repeat(self._app), repeat(self._return_caster), repeat(self._spec.keep_result)
        return list(map(Job, app, ids, cast, repeat(None), has_result))

    def _call(self, args: Sequence[Any], kwargs: dict[str, Any], job_id: bytes | None = None) -> Call:
        takes = self._takes
        if kwargs or not takes.fewest <= len(args) <= takes.most:
            self._check_fits(args, kwargs)
        job_id = job_id or next(new_job_ids(1, self._app.clock.time_ns()))
        payload = self._payload(job_id, args, kwargs)
        is_plain = self._is_plain and not self._app.enqueue_hooks
        constraints = None if is_plain else self._constraints(self._options_of_call(), args, kwargs)
        return self._call_of(job_id, payload, constraints)

    def _constraints(self, options: CallOptions, args: Sequence[Any], kwargs: dict[str, Any]) -> Constraints:
        return options.constraints(self._spec.task, self._function, args, kwargs, self._app.clock.time())

    def _calls(self, arguments: Iterable[Sequence[Any]]) -> Iterator[Call]:
        # one loop for all kinds of calls: generators around each other took longer than the work itself
        options = self._options_of_call()
        has_own_constraints = not options.are_shared
        constraints = None if options.is_plain or has_own_constraints else self._constraints(options, (), {})
        fewest, most = self._takes.fewest, self._takes.most
        for args, job_id in zip(arguments, self._new_ids(), strict=False):
            if type(args) is not tuple:
                self._check_is_sequence(args)
            if not fewest <= len(args) <= most:
                self._check_fits(args, {})
            payload = self._payload(job_id, args, {})
            if type(payload) is not bytes:
                payload = snapshot(payload)  # whoever makes the arguments may use their memory for the next ones
            if has_own_constraints:
                constraints = self._constraints(options, args, {})
            yield self._call_of(job_id, payload, constraints)

    def _new_ids(self) -> Iterator[bytes]:
        """Ids without end, many of them made at once."""
        now_ns = self._app.clock.time_ns
        return chain.from_iterable(new_job_ids(_IDS_AT_ONCE, now_ns()) for _ in repeat(None))

    def _check_is_sequence(self, args: object) -> None:
        if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
            raise ConfigError(
                f"each job of {self._spec.task} needs a tuple of arguments, not {args!r:.60}: write ({args!r:.30},)"
            )

    def _check_fits(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        told = self._takes.misfit(args, kwargs)
        if told is not None:
            raise BadArguments(f"{self._spec.task}{self._takes.signature} does not take these arguments: {told}")

    def _payload(self, job_id: bytes, args: Sequence[Any], kwargs: dict[str, Any]) -> bytes:
        payload = encode_call(job_id, args, kwargs, may_have_file=self._app.engine.has_payload_files)
        if len(payload) > MAX_INLINE_PAYLOAD_BYTES or type(payload) is not bytes:
            self._check_size(size_of(payload))
        return payload

    def _check_size(self, size: int) -> None:
        limit = self._app.engine.max_payload_bytes
        if size > limit:
            raise PayloadTooLarge(
                f"the arguments of {self._spec.task} take {size:,} bytes, the limit is {limit:,}: "
                "pass the path of a file instead"
            )

    def _call_of(self, job_id: bytes, payload: bytes, constraints: Constraints | None) -> Call:
        """A call, which comes after the jobs whose results are among its arguments."""
        if type(payload) is not bytes or (_MARK_BEGIN in payload and RESULT_OF_MARK in payload):
            parents = results_in(payload)
            if not parents:
                return Call(job_id, payload, constraints)
            self._app.engine.check_option(self._spec.task, "after")
            own = constraints or NO_CONSTRAINTS
            after = {**dict(own.after), **dict.fromkeys(parents, False)}
            constraints = replace(own, after=tuple(after.items()))
        return Call(job_id, payload, constraints)
