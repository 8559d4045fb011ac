"""The handler of a signal raises in the middle of taskq's own code: its exception comes out as it is, and all goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import pytest
from apps import jobs
from fleet import Fleet, is_in_database

from taskq.model import attempt
from taskq.model.errors import ProtocolError
from taskq.protocol import frames
from taskq.protocol.codec import decode_result, encode_call, encode_result
from taskq.protocol.ops import Op

ID = bytes(16)


class TooLate(ValueError):
    """What a program raises in its own SIGALRM handler; of a kind that bad bytes raise, too."""


@contextmanager
def interrupted(function: str, handler: Any = None) -> Iterator[None]:
    """Has a signal arrive, once, in a function of taskq that begins with a `try`: at the first line in that."""

    def raise_too_late(_number: int, _frame: FrameType | None) -> None:
        raise TooLate("the time is over")

    def on_call(frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_code.co_name != function or not frame.f_globals["__name__"].startswith("taskq"):
            return None
        lines = 0

        def on_line(_frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines
            lines += event == "line"
            if lines == 2:
                sys.settrace(None)
                signal.raise_signal(signal.SIGUSR1)
            return on_line

        return on_line

    before = signal.signal(signal.SIGUSR1, handler or raise_too_late)
    try:
        sys.settrace(on_call)
        yield
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, before)


class Handler:
    """A handler that is an object, or a method of one."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        raise TooLate

    def method(self, _number: int, _frame: FrameType | None) -> None:
        raise TooLate


@pytest.mark.parametrize("handler", [None, Handler(), Handler().method])
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("_decode_envelope", partial(frames.Decoder().feed, frames.frame([Op.OK, 1, None]))),
        ("unpack", partial(attempt.unpack, attempt.pack_success(1.0, 1.0, None))),
        ("_unpackb", partial(decode_result, ID, encode_result(ID, [1, 2]))),
        ("pack_value", partial(encode_call, ID, [1], {})),
        ("pack_value", partial(encode_result, ID, [1])),
    ],
)
def test_what_a_handler_raises_is_no_fault_of_the_bytes(
    function: str, call: Callable[[], object], handler: Any
) -> None:
    with interrupted(function, handler), pytest.raises(TooLate):
        call()


def test_bad_bytes_are_still_refused_while_a_handler_is_installed() -> None:
    with interrupted("nothing"), pytest.raises(ProtocolError, match="not msgpack"):
        frames.Decoder().feed(b"\0\0\0\x08\0\0\0\x04\xc1\xc1\xc1\xc1")


@pytest.mark.usefixtures("shared")
def test_a_client_goes_on_after_an_interruption() -> None:
    job = jobs.add.enqueue(1)
    function = "_send" if is_in_database() else "_decode_envelope"  # in the middle of a question, or of its answer
    for _ in range(3):
        with interrupted(function), pytest.raises(TooLate):
            job.result(timeout=10)
        with interrupted(function), pytest.raises(TooLate):
            jobs.add.enqueue(1)
        with interrupted(function), pytest.raises(TooLate):
            job.info()
        assert job.result(timeout=10) == 2
        assert jobs.add.enqueue(2).result(timeout=10) == 3


@pytest.mark.not_on_postgres("the client of a directory, from inside")
def test_a_loop_goes_on_after_an_interruption(shared: Fleet) -> None:
    told: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        await jobs.add.aenqueue(1)
        with interrupted("_decode_envelope"):
            job = await jobs.add.aenqueue(2)
        assert await job.aresult(timeout=10) == 3
        with interrupted("_decode_envelope"):
            assert await job.aresult(timeout=10) == 3

    asyncio.run(main())
    assert [type(context["exception"]) for context in told] == [TooLate, TooLate]
    assert not list((shared.home / "spool").iterdir()), "the broker was asked again"
