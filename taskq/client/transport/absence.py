"""A fleet that does not answer: none runs, or its broker is there, but stopped or stuck.

A client that got no answer in time says hello to the broker on another connection, and does not wait for the reply. As
long as there is none, each call knows at once that the broker is silent; the first reply ends that. Whoever waits for
a job rightly hears nothing for a long time: there such a hello shows whether the broker would say something.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import weakref
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path

from taskq.protocol import frames
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.directory import Directory
from taskq.system.platform import is_stopped

logger = logging.getLogger("taskq")

#: While somebody waits, a broker is asked so often whether it still answers.
_LOOK_EVERY_S = 30.0
#: Bounds of the pauses between attempts to reach a broker that is away, and when to tell that it still is.
_RECONNECT_FIRST_S = 0.01
_RECONNECT_LONGEST_S = 0.25
_TELL_AWAY_AFTER_S = 3.0
#: A client whose connection was refused does not try again to hand in jobs for so long: it spools them.
_REFUSED_S = 0.05
#: The directories of which this process has told that their jobs go to the spool, and why.
_told: set[tuple[str, bool]] = set()
#: The directories whose fleets this process runs itself, by `q.fleet()` or an executor; `client/fleet.py` writes it.
run_here: set[Path] = set()


class Absence:
    """What a client knows of a fleet that does not answer."""

    def __init__(self, directory: Directory, reply_timeout_s: float) -> None:
        """
        Args:
            reply_timeout_s: a broker that says nothing for so long is silent.
        """
        self.reply_timeout_s = reply_timeout_s
        self.directory = directory
        self.path = directory.socket_path()  #: Of the socket of its broker.
        self._is_silent = False
        self._refused_until = -inf  # any thread writes it
        self._probe: socket.socket | None = None  # has said hello
        self._asked_at = -inf  # when it did that for somebody who waits
        self._is_told = False  # those who wait know of this silence

    def refused(self) -> None:
        """Nobody listens: a connection was refused."""
        self._refused_until = SYSTEM_CLOCK.monotonic() + _REFUSED_S

    def connected(self) -> None:
        """Somebody listens."""
        self._refused_until = -inf

    @property
    def was_refused(self) -> bool:
        """Whether the last connection was refused, a moment ago."""
        return SYSTEM_CLOCK.monotonic() < self._refused_until

    def begin_silence(self) -> None:
        """The broker did not answer in time."""
        self._is_silent = self._knock()

    @property
    def is_silent(self) -> bool:
        """Whether a broker is there that has said nothing since it did not answer."""
        probe = self._probe
        if not self._is_silent:
            return False
        if probe is None:
            self._is_silent = self._knock()  # too many knocked, when we did last
        elif _has_answered(probe):
            self._is_silent = False
            self._drop_probe()
        return self._is_silent

    def look_while_waiting(self) -> None:
        """For whoever waits for the end of a job, to be called again and again: looks whether the broker answers, which
        takes no time, and tells once if it does not."""
        now, probe = SYSTEM_CLOCK.monotonic(), self._probe
        if not self._is_silent:
            self._is_told = False
            if probe is None and now - self._asked_at >= _LOOK_EVERY_S:
                self._asked_at = now
                self._knock()
            elif probe is not None and _has_answered(probe):
                self._drop_probe()
            elif probe is not None:
                self._is_silent = now - self._asked_at >= self.reply_timeout_s
        if self.is_silent and not self._is_told:
            self._is_told = True
            logger.warning("%s; still waiting", self.describe())

    def _knock(self) -> bool:
        """Says hello, and does not wait for the answer. Returns whether somebody is there."""
        self._drop_probe()
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.setblocking(False)
            probe.connect(os.fspath(self.path))
            probe.send(frames.hello(os.getpid()))
        except BlockingIOError:
            probe.close()
            return True  # so many knock that the kernel keeps no more of them waiting
        except OSError:
            probe.close()
            return False
        self._probe = probe
        weakref.finalize(self, probe.close)  # without a warning, when nobody needs us any more
        return True

    def _drop_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()

    # -- what is told

    def describe_briefly(self) -> str:
        """Who does not answer."""
        return f"broker {self._broker_pid()} does not answer" if self._is_silent else "no fleet answers"

    def describe(self) -> str:
        """Who does not answer, and what to do."""
        if not self._is_silent and self.directory.path in run_here:
            return f"the fleet of this program on {self.directory.path} does not answer: it starts another broker"
        if not self._is_silent:
            return (
                f"no fleet answers on {self.directory.path}: start one with `taskq worker module:app` "
                "(or set TASKQ_URL to the directory of the one that runs)"
            )
        pid = self._broker_pid()
        told = f"broker {pid} holds {self.directory.path} but does not answer"
        if is_stopped(pid):
            return f"{told}: it is stopped, and `kill -CONT {pid}` lets it go on"
        return (
            f"{told} within {self.reply_timeout_s:g} s: it is stuck, or has far too much to do; `kill -9 {pid}` ends "
            "it, the fleet starts another, and no job is lost"
        )

    def _broker_pid(self) -> int:
        with suppress(OSError, ValueError, IndexError):
            return int(self.directory.lock.read_text().split()[0])
        return 0

    def warn_of_spool(self) -> None:
        """Tells, once in a process, that jobs go to the spool. It is no error: they are as safe there."""
        told = str(self.directory.path), self._is_silent
        if told not in _told:
            _told.add(told)
            logger.warning("%s; until then jobs are kept in its spool", self.describe())

    def warn_of_waiting(self) -> None:
        """Tells, once in a long wait, that there is no fleet."""
        logger.warning("%s; still waiting", self.describe())

    def close(self) -> None:
        """Closes the second connection."""
        self._drop_probe()


def _has_answered(probe: socket.socket) -> bool:
    """Whether the broker has said something, or is gone."""
    poll = select.poll()
    try:
        poll.register(probe, select.POLLIN)
    except ValueError:
        return False  # another thread has closed it
    return bool(poll.poll(0))


def reconnect_pauses(absence: Absence, clock: Clock) -> Iterator[float]:
    """The pauses between attempts to reach a broker: a tenth of the time waited so far, so that nobody waits much
    longer than the broker is away. Once in a long wait, tells that there is none."""
    began = clock.monotonic()
    is_told = False
    while True:
        waited_s = clock.monotonic() - began
        if waited_s >= _TELL_AWAY_AFTER_S and not is_told:
            absence.warn_of_waiting()
            is_told = True
        yield min(max(waited_s / 10, _RECONNECT_FIRST_S), _RECONNECT_LONGEST_S)
