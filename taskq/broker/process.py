"""The broker process, from its start to its exit code. The guardian starts it, and writes the set-up to a socket."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys

from taskq.broker.loop import Broker
from taskq.model.errors import AlreadyRunning, ConfigError, JournalError, StoreFull, TooFewDescriptors
from taskq.model.exits import Exit
from taskq.model.limits import MIB
from taskq.model.settings import Settings
from taskq.protocol.guardian import MAX_PACKET_BYTES, Failed, Setup, pack_notice
from taskq.system.clock import SYSTEM_CLOCK, Clock
from taskq.system.descriptors import provide
from taskq.system.locks import take_broker_lock
from taskq.system.platform import name_process
from taskq.system.signals import signals_as_bytes
from taskq.telemetry.journald import print_error
from taskq.telemetry.redaction import RedactionError, load_redaction
from taskq.telemetry.setup import configure
from taskq.telemetry.sink import DEFAULT_KEEP


def main(descriptor: int, clock: Clock = SYSTEM_CLOCK) -> None:
    """Runs a broker; the target of its process.

    Args:
        descriptor: of the socket to the guardian.
        clock: the only one that the broker uses.
    """
    # at once: the guardian forwards signals to a broker that is still starting, too; its loop reads them later
    signals = signals_as_bytes((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    guardian = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    packet = guardian.recv(MAX_PACKET_BYTES)
    if not packet:
        os._exit(Exit.OK)  # the application could not be imported, and the guardian has said so
    code, message = _run(guardian, signals, Setup.read(packet), clock)
    if message:
        print_error(message)
        guardian.send(pack_notice(Failed(code, message)))
    # nothing is left to clean up, and multiprocessing would wait for feeder threads
    sys.stderr.flush()
    os._exit(code)


def _run(guardian: socket.socket, signals: socket.socket, setup: Setup, clock: Clock) -> tuple[Exit, str]:
    place, settings = setup.place, Settings(**setup.settings)
    directory = place.directory
    name_process(f"broker [{setup.title}]")
    # Thousands of rows live here at a time, none in a cycle: at the default threshold the collector looks at all of
    # them again and again. A look at the 5,000 new ones takes a millisecond.
    gc.freeze()
    gc.set_threshold(5_000, 200, 50)
    gc.enable()  # it was off while modules were imported, of which nothing goes
    try:
        provide(settings.consumers)
        take_broker_lock(directory.lock, setup.guardian_pid)
        files = DEFAULT_KEEP + 1
        log, fanout = configure(
            directory.path,
            settings.log_format,
            settings.log_level,
            stderr_level=settings.stderr_level,
            max_bytes=settings.log_mb * MIB // files,
            output_max_bytes=settings.output_mb * MIB // files,
            redaction=load_redaction(settings.log_redact) if settings.log_redact else None,
        )
        try:
            Broker(place, setup.app, setup.title, settings, log, clock).run(guardian, signals)
        except (JournalError, StoreFull) as error:
            log.critical("store.failed", error=str(error))
            return Exit.JOURNAL, str(error)
        except ConfigError:
            raise  # reported below: another broker would fail in the same way
        except Exception as error:
            # a bug: the guardian starts another broker, on a journal that has all that was acknowledged
            log.critical("broker.failed", exc_info=True)
            return Exit.FAILED, f"the broker failed: {type(error).__name__}: {error}"
        finally:
            fanout.close()
    except AlreadyRunning as error:
        return Exit.ALREADY_RUNNING, str(error)
    except (TooFewDescriptors, RedactionError) as error:
        return Exit.USAGE, str(error)
    except ConfigError as error:
        return Exit.DIRECTORY, str(error)
    except OSError as error:
        return Exit.DIRECTORY, f"{error.filename or directory.path}: {error.strerror or error}"
    return Exit.OK, ""
