"""The catalogue of failures, with real processes: every fault that we know of has a test, or a reason why it has none.

tests/README.md describes the method. Each test here ends with a fleet that still serves a job.
"""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import apsw
import psutil
import pytest
from apps import jobs
from deaf import Deaf
from fleet import APPS, JOBS, Fleet, Gate, running, starts, use, wait_for_file, wait_until

from taskq import BrokerUnavailable, JobError, JobFailed, JobNotFound, JobState, StoreFull
from taskq.broker.core.core import Core
from taskq.broker.events import EventLog
from taskq.client.transport.blocking import Client
from taskq.engines.contract import Consumers
from taskq.engines.embedded.committer import Committer
from taskq.engines.embedded.journal.sqlite import SQLiteStore
from taskq.engines.embedded.server import Server
from taskq.model.attempt import Attempts, Claim, Verdict, pack_failure
from taskq.model.exits import Exit
from taskq.model.job import new_job_ids
from taskq.model.spec import Spec
from taskq.protocol import frames
from taskq.protocol.link.flight_recorder import FlightRecorder, clear_flight_records, read_flight_records
from taskq.protocol.ops import Op
from taskq.system.directory import Directory
from taskq.telemetry.reader import read

Start = Callable[..., Fleet]


class Row(NamedTuple):
    """A row of the catalogue: what goes wrong, the tests that prove what happens then, and what they leave out."""

    what: str
    tests: tuple[str, ...] = ()
    reason: str = ""


CATALOGUE = {
    1: Row("SIGKILL of an idle consumer", ("test_crashes::test_an_idle_consumer_is_replaced",)),
    2: Row(
        "SIGKILL in the middle of a job",
        (
            "test_crashes::test_killed_by_others_in_a_job",
            "test_crashes::test_a_job_survives_the_death_of_its_process",
            "test_crashes::test_batch_mates_run_once",
        ),
    ),
    3: Row(
        "SIGKILL while a result is written",
        (
            "test_catalogue::test_killed_in_the_middle_of_a_large_result",
            "test_unsent::test_whatever_a_kill_interrupts_only_whole_outcomes_are_read",
            "test_crashes::test_batch_mates_that_ended_just_before_do_not_run_again",
        ),
    ),
    4: Row(
        "SIGKILL between the commit of a result and its acknowledgement",
        ("test_catalogue::test_a_broker_killed_around_the_commit_of_a_result",),
    ),
    5: Row(
        "SIGKILL of the broker at each point",
        (
            "test_catalogue::test_a_broker_killed_around_the_commit_of_a_submission",
            "test_catalogue::test_a_broker_killed_around_the_commit_of_a_result",
            "test_crashes::test_the_broker_dies_idle",
            "test_crashes::test_the_broker_dies_while_jobs_run",
            "test_kill_storm::test_kill_storm",
        ),
    ),
    6: Row("SIGKILL of the guardian", ("test_crashes::test_the_guardian_dies",)),
    7: Row(
        "a producer dies in the middle of a frame",
        ("test_hostile::test_half_frames", "test_clients::test_a_producer_that_is_killed_leaves_whole_jobs"),
    ),
    8: Row(
        "SIGSTOP of a consumer",
        (
            "test_crashes::test_a_stopped_consumer_holds_up_nobody",
            "test_crashes::test_an_idle_consumer_that_is_stopped_does_not_keep_jobs",
            "test_catalogue::test_a_stopped_consumer_is_killed_when_the_time_of_its_job_is_over",
            "test_fairness::test_what_was_sent_to_a_stopped_consumer_goes_to_the_others",
        ),
        "there is no heartbeat: a stopped process is no dead one, so only the timeout of its job ends it",
    ),
    9: Row(
        "SIGCONT of a consumer whose jobs were taken back",
        (
            "test_crashes::test_an_idle_consumer_that_is_stopped_does_not_keep_jobs",
            "test_fairness::test_a_stopped_consumer_that_goes_on_has_jobs_again",
            "test_counters::test_taken_back_jobs_do_not_start",
            "test_counters::test_every_job_is_started_or_taken_back",
            "test_core::test_reports_that_make_no_sense_are_noted",
        ),
        "a job that started is never taken back from a process that lives, so no late result of one can come",
    ),
    10: Row(
        "a task holds the GIL in C",
        (
            "test_catalogue::test_a_job_that_holds_the_gil_is_not_taken_for_dead",
            "test_fleet::test_timeout_in_c_costs_only_its_job",
        ),
    ),
    11: Row(
        "out of memory",
        (
            "test_catalogue::test_a_job_that_runs_out_of_memory",
            "test_crashes::test_a_death_in_a_job_is_reported_and_parks_it",
            "test_core::test_deaths_are_reported_in_words",
            "test_catalogue::test_a_job_that_the_kernel_kills_for_want_of_memory",
        ),
        "the kernel's own kill is provoked in a control group, where the user may make one (root): nothing else is hit",
    ),
    12: Row("segfault", ("test_crashes::test_a_death_in_a_job_is_reported_and_parks_it",)),
    13: Row(
        "os._exit(0), sys.exit and KeyboardInterrupt in a task",
        (
            "test_crashes::test_a_death_in_a_job_is_reported_and_parks_it",
            "test_fleet::test_fails_at_once_and_the_consumer_lives",
        ),
    ),
    14: Row(
        "fork inside a task",
        (
            "test_crashes::test_a_fork_of_a_job_does_not_hide_its_death",
            "test_crashes::test_a_daemon_of_a_job_does_not_hide_its_death",
            "test_fleet::test_the_process_of_a_job_may_fork",
            "test_counters::test_what_a_job_forked_does_not_hold_the_lock",
        ),
    ),
    15: Row("multiprocessing in a task", ("test_fleet::test_the_process_of_a_job_may_fork",)),
    16: Row(
        "a task blocks signals",
        (
            "test_crashes::test_a_job_that_blocks_signals_does_not_outlive_the_stop",
            "test_fleet::test_timeout_that_is_not_obeyed",
        ),
    ),
    17: Row("a task closes descriptors", ("test_crashes::test_a_job_that_closes_descriptors",)),
    18: Row(
        "poison pill",
        (
            "test_catalogue::test_the_deaths_of_a_poison_pill_are_counted_across_brokers",
            "test_crashes::test_a_poison_pill_does_not_hold_up_the_others",
            "test_crashes::test_a_job_that_kills_the_whole_fleet_is_parked",
        ),
    ),
    19: Row(
        "an import error or a crash at the start",
        (
            "test_crashes::test_a_consumer_that_cannot_import",
            "test_fleet::test_an_application_that_does_not_import",
            "test_cli::test_an_application_that_cannot_be_used",
            "test_cli::test_a_broker_that_dies_again_and_again_is_given_up",
        ),
    ),
    20: Row(
        "disk full",
        (
            "test_catalogue::test_a_full_disk_and_back",
            "test_catalogue::test_a_fleet_starts_on_a_full_disk",
            "test_catalogue::test_the_flight_recorder_needs_no_space",
            "test_catalogue::test_what_ends_is_recorded_on_a_disk_too_small_to_set_space_aside",
            "test_catalogue::test_a_job_in_the_spool_of_a_full_disk_is_known",
            "test_journal::test_full_disk_at_every_page",
            "test_crashes::test_a_full_disk_leaves_jobs_in_the_spool",
        ),
    ),
    21: Row("fsync fails", ("test_catalogue::test_a_sync_that_fails_acknowledges_nothing",)),
    22: Row(
        "a directory that is read-only or somebody else's",
        (
            "test_catalogue::test_a_directory_that_may_not_be_written",
            "test_catalogue::test_a_filesystem_that_is_read_only",
            "test_config::test_a_directory_of_somebody_else_is_refused",
            "test_cli::test_a_directory_that_cannot_be_used",
        ),
    ),
    23: Row(
        "a journal that is damaged, cut, empty or gone",
        (
            "test_journal::test_damaged_page_is_found_after_a_crash_of_the_system",
            "test_journal::test_cut_wal_is_found",
            "test_journal::test_marker_without_journal_is_refused",
            "test_journal::test_garbage_is_refused_untouched",
            "test_journal::test_lost_commits_are_found",
            "test_cli::test_a_journal_that_cannot_be_trusted",
        ),
        "there is no `taskq recover`: the error says to restore a backup, and nothing is written to the damaged file",
    ),
    24: Row(
        "the wall clock jumps",
        (
            "test_catalogue::test_a_jump_of_the_wall_clock_neither_repeats_nor_loses",
            "test_catalogue::test_time_limits_do_not_know_the_wall_clock",
            "test_catalogue::test_a_producer_whose_clock_was_set_back",
        ),
        "the system's clock is not set, for the whole machine has it, and libfaketime is not at hand: the committer and "
        "the core are driven with a clock that jumps. A retry is due by the wall clock, so it waits for a clock that "
        "was set back; results are kept by it, so a jump beyond `keep_results` removes them",
    ),
    25: Row(
        "suspend and resume",
        ("test_catalogue::test_a_fleet_that_is_stopped_and_goes_on",),
        "no lease ends by time, and CLOCK_MONOTONIC stands still meanwhile; stopping all processes comes nearest",
    ),
    26: Row(
        "out of descriptors",
        (
            "test_catalogue::test_more_clients_than_descriptors",
            "test_catalogue::test_a_listener_that_was_out_of_descriptors_listens_again_without_a_client_going",
            "test_hostile::test_more_connections_than_are_served",
        ),
    ),
    27: Row(
        "slowloris and half frames",
        (
            "test_catalogue::test_two_hundred_clients_that_say_one_byte",
            "test_hostile::test_the_deadline_of_a_hello",
            "test_hostile::test_the_deadline_of_a_frame",
            "test_hostile::test_one_byte_at_a_time",
        ),
    ),
    28: Row(
        "giant, garbled and HTTP frames",
        (
            "test_hostile::test_bad_beginning",
            "test_hostile::test_bad_request",
            "test_hostile::test_nonsense_in_a_submission",
            "test_frames::test_garbage_is_a_protocol_error_or_waits",
        ),
    ),
    29: Row(
        "a client that does not read",
        (
            "test_hostile::test_a_client_that_never_reads",
            "test_hostile::test_the_deadline_of_a_client_that_does_not_read",
        ),
    ),
    30: Row(
        "a flood of jobs",
        (
            "test_catalogue::test_a_flood_of_jobs_waits_on_disk",
            "test_core::test_memory_is_bounded",
            "test_hostile::test_a_flood_of_small_frames",
        ),
    ),
    31: Row(
        "stale sockets, locks and process ids",
        (
            "test_crashes::test_what_dead_fleets_left_is_no_obstacle",
            "test_counters::test_a_stale_lock_file_is_no_obstacle",
        ),
    ),
    32: Row(
        "two brokers on one directory",
        (
            "test_catalogue::test_of_twenty_fleets_one_lives",
            "test_crashes::test_a_second_fleet_is_refused",
            "test_counters::test_a_lock_is_the_same_through_a_link",
        ),
    ),
    33: Row(
        "reboot and power loss",
        (
            "test_power_loss::test_power_loss_takes_nothing_that_was_promised",
            "test_crashes::test_everything_dies_at_once",
        ),
    ),
    34: Row(
        "versions that differ",
        (
            "test_catalogue::test_clients_of_other_versions",
            "test_catalogue::test_a_journal_of_a_newer_version",
            "test_journal::test_newer_schema_is_refused_untouched",
            "test_frames::test_versions_that_do_not_meet",
            "test_frames::test_later_versions_may_say_more",
        ),
        "transcripts of every release: this is the first one",
    ),
    35: Row(
        "a task that is gone, or takes other arguments",
        ("test_fleet::test_fails_at_once_and_the_consumer_lives",),
        "such a job is parked as failed and keeps its arguments; a command that runs it again does not exist yet",
    ),
    36: Row("a result that is too large", ("test_fleet::test_fails_at_once_and_the_consumer_lives",)),
    37: Row(
        "values that cannot be serialized",
        (
            "test_fleet::test_arguments_that_cannot_travel",
            "test_fleet::test_fails_at_once_and_the_consumer_lives",
            "test_codec::test_every_supported_value_comes_back_equal_and_of_its_type",
            "test_codec::test_what_cannot_be_serialized_is_reported_with_its_place",
        ),
    ),
    38: Row(
        "exceptions that are hard to tell of",
        (
            "test_catalogue::test_exceptions_that_are_hard_to_tell",
            "test_fleet::test_fails_at_once_and_the_consumer_lives",
        ),
    ),
    39: Row(
        "standard output is closed, or the disk of the log is full",
        (
            "test_catalogue::test_a_worker_whose_output_nobody_reads_or_has_closed",
            "test_catalogue::test_a_full_disk_and_back",
            "test_log_setup::test_closed_pipe_is_given_up",
            "test_log_setup::test_dev_full",
            "test_log_sink::test_full_disk_drops_counts_and_tells",
        ),
    ),
    40: Row(
        "a task prints without end",
        (
            "test_catalogue::test_a_job_prints_while_nobody_reads",
            "test_catalogue::test_a_worker_whose_output_nobody_reads_or_has_closed",
            "test_fleet::test_a_flood_of_output_is_bounded_and_reported",
        ),
    ),
    41: Row(
        "the broker starts again under load",
        (
            "test_crashes::test_the_same_job_never_runs_twice_at_a_time",
            "test_crashes::test_whoever_waits_gets_the_answer_of_the_next_broker",
            "test_kill_storm::test_kill_storm",
        ),
    ),
    42: Row(
        "stop: SIGTERM, SIGTERM again, Ctrl-C",
        (
            "test_fleet::test_stop_lets_jobs_end_until_the_deadline",
            "test_fleet::test_a_second_signal_does_not_wait",
            "test_cli::test_control_c_lets_running_jobs_end",
        ),
    ),
    43: Row("process 1 of a container", ("test_catalogue::test_process_one_reaps_orphans_and_stops_in_order",)),
    44: Row(
        "fork of a producer",
        ("test_clients::test_fork_after_connecting", "test_aio::test_a_forked_child_connects_anew"),
    ),
    45: Row(
        "enqueue at the end of the interpreter, in a signal handler, from threads",
        (
            "test_clients::test_enqueue_at_the_end_of_the_interpreter",
            "test_clients::test_enqueue_in_a_signal_handler",
            "test_clients::test_threads_share_an_application",
        ),
    ),
}


@cache
def names_in(file: str) -> frozenset[str]:
    """The names of the tests in a file of this folder."""
    tree = ast.parse(next(Path(__file__).parents[1].rglob(f"{file}.py")).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_the_catalogue_is_complete() -> None:
    """All 45 rows are there, each has a test or a reason, and every test that is named exists."""
    assert list(CATALOGUE) == list(range(1, 46))
    assert all(row.what and (row.tests or row.reason) for row in CATALOGUE.values())
    named = {name for row in CATALOGUE.values() for name in row.tests}
    missing = [name for name in named if name.partition("::")[2] not in names_in(name.partition("::")[0])]
    assert not missing
    proofs = {name for name in names_in("test_catalogue") if name.startswith("test_")}
    in_the_table = {name.partition("::")[2] for name in named if name.startswith("test_catalogue::")}
    assert proofs - in_the_table == {"test_the_catalogue_is_complete"}


# -- helpers


def serves() -> bool:
    """Whether the fleet of `jobs.q` runs jobs and answers."""
    assert list(jobs.add.map(range(20), timeout=15)) == list(range(1, 21))
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process took the SIGSTOP that it was sent."""
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def stop_process(fleet: Fleet, pid: int) -> None:
    """Sends SIGSTOP and waits until it holds."""
    fleet.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), f"process {pid} stopped")


def counted(path: Path) -> dict[str, int]:
    """How often each label was recorded."""
    labels = [start.label for start in starts(path)]
    return {label: labels.count(label) for label in labels}


def dropping_privileges() -> list[str]:
    """What to put before a command so that permissions hold for it. The user 65534 could not read our Python, if that
    is in the home of root; so a root stays root, without the right to override permissions."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("root may write everywhere, and there is no setpriv to give that up")
    rights = "-dac_override,-dac_read_search"
    return [tool, f"--bounding-set={rights}", f"--inh-caps={rights}"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small filesystem, which can be filled: 48 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this user may not mount a filesystem: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills the disk with a file, but leaves this many bytes. Returns the file."""
    path = disk / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with suppress(OSError):
        while os.write(descriptor, bytes(1 << 20)):
            pass
    os.ftruncate(descriptor, max(0, path.stat().st_size - leave))
    os.close(descriptor)
    return path


# -- processes that stop and go on


@pytest.mark.parametrize("which", ["broker", "all"])
def test_a_fleet_that_is_stopped_and_goes_on(
    shared: Fleet, gate: Gate, tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients wait for a broker that is stopped for a moment, or a machine that was suspended; nothing is lost or runs
    twice. What they do when it takes longer: see test_absence."""
    monkeypatch.setattr(jobs.q, "reply_timeout", 60.0)
    use(jobs.q, shared.home)
    shared.wait_ready()
    path = tmp_path / "starts"
    held = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    broker = shared.broker_pid
    pids = [broker] if which == "broker" else [process.pid for process in shared.processes()]
    with ThreadPoolExecutor(8) as pool:
        for pid in pids:
            stop_process(shared, pid)
        try:
            made = [pool.submit(jobs.note.enqueue, str(path), f"note{number}") for number in range(8)]
            wait_until(lambda: all(future.running() for future in made), "the producers at work")
            gate.open()
            if which == "broker":
                starts(path, 2)  # the job has ended, and nobody has been told
            assert not any(future.done() for future in made)
        finally:
            for pid in pids:
                shared.kill(pid, signal.SIGCONT)
        for future in made:
            future.result(15).result(timeout=15)
    assert held.result(timeout=15) == "held"
    assert (held.info().attempts, held.info().crashes) == (1, 0)
    assert counted(path) == {"held": 1, "held-end": 1, **{f"note{number}": 1 for number in range(8)}}
    assert shared.broker_pid == broker
    assert serves()


def test_a_stopped_consumer_is_killed_when_the_time_of_its_job_is_over(
    shared: Fleet, gate: Gate, tmp_path: Path
) -> None:
    """SIGSTOP holds off the soft signal, not SIGKILL."""
    path = tmp_path / "starts"
    job = jobs.hold.options(timeout=0.3, retries=0).enqueue(gate.path, str(path))
    [first] = starts(path, 1)
    stop_process(shared, first.pid)
    with pytest.raises(JobFailed) as caught:
        job.result(timeout=15)
    assert caught.value.error_type == "TimedOut"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert serves()


def test_a_job_that_holds_the_gil_is_not_taken_for_dead(shared: Fleet, gate: Gate, tmp_path: Path) -> None:
    """No thread of the consumer can give a sign of life: it is left alone, and only the hard timeout ends such a
    job."""
    shared.wait_ready()
    path, stuck_path = tmp_path / "starts", tmp_path / "stuck"
    kills = shared.count("consumer.killed")
    job = jobs.hold_gil.enqueue(str(path), gate.path)
    [first] = starts(path, 1)
    stuck = jobs.overdue.enqueue(str(stuck_path), "in-c")
    with pytest.raises(JobFailed, match="TimedOut"):
        stuck.result(timeout=15)
    assert serves()
    assert job.state() is JobState.RUNNING
    gate.open()
    assert job.result(timeout=15) == "held"
    assert (job.info().attempts, job.info().crashes) == (1, 0)
    assert first.pid in shared.consumer_pids()
    assert [event["pid"] for event in shared.events("consumer.killed")[kills:]] == [starts(stuck_path)[0].pid]


# -- jobs that end badly


def waits_in(pid: int) -> str:
    """Where in the kernel a process waits."""
    place = Path(f"/proc/{pid}/wchan").read_text()
    if place == "0" and psutil.Process(pid).status() == psutil.STATUS_SLEEPING:
        pytest.skip("this system does not tell where in the kernel a process waits")
    return place


def test_killed_in_the_middle_of_a_large_result(shared: Fleet, tmp_path: Path) -> None:
    """Half a frame has left the consumer when it is killed: it is dropped, and the job runs again, to a whole
    result."""
    path = tmp_path / "starts"
    broker = shared.broker_pid
    gate = Gate(tmp_path / "late")
    job = jobs.large_result.enqueue(str(path), gate.path, 3_000_000)
    [first] = starts(path, 1)
    stop_process(shared, broker)
    try:
        gate.open()
        wait_until(lambda: "sock_alloc_send" in waits_in(first.pid), "the consumer in the middle of its frame")
        shared.kill(first.pid)
    finally:
        shared.kill(broker, signal.SIGCONT)
    assert job.result(timeout=15) == bytes(3_000_000)
    assert (job.info().attempts, job.info().crashes) == (2, 1)
    assert shared.broker_pid == broker
    assert serves()


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group whose processes may use 96 MiB together, under version 1 or 2 of the kernel's interface."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = parent / f"taskq-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this user may make no control group, so no kernel can be made to kill for memory: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("the kernel gives control groups here no limit of memory")
        (group / limit).write_text(str(96 * 1024 * 1024))
        yield group
    finally:
        group.rmdir()


def test_a_job_that_the_kernel_kills_for_want_of_memory(start: Start, small_group: Path) -> None:
    """None of our processes sent that SIGKILL: the error and the log say where it came from, and the fleet goes on."""
    fleet = start(consumers=1)
    with pytest.raises(JobFailed, match="killed by SIGKILL, since memory ran out") as caught:
        jobs.outgrow_group.enqueue(str(small_group)).result(timeout=15)
    assert caught.value.error_type == "Crashed"
    crash = fleet.wait_for("consumer.crashed")
    assert (crash["signal"], crash["out_of_memory"]) == ("SIGKILL", True)
    assert jobs.add.enqueue(1).result(timeout=10) == 2


def test_a_job_that_runs_out_of_memory(shared: Fleet) -> None:
    """MemoryError is an error like others: the consumer lives."""
    before = shared.wait_ready().consumer_pids()
    with pytest.raises(JobFailed, match="MemoryError"):
        jobs.run_out_of_memory.enqueue().result(timeout=15)
    assert shared.consumer_pids() == before
    assert serves()


@pytest.mark.parametrize(
    ("how", "error"), [("does not unpickle", "NeedsTwo"), ("recursive", "RecursionError"), ("huge", "ValueError")]
)
def test_exceptions_that_are_hard_to_tell(shared: Fleet, how: str, error: str) -> None:
    """An error is sent as text, which is cut if it is too long."""
    before = shared.wait_ready().consumer_pids()
    with pytest.raises(JobFailed) as caught:
        jobs.raise_oddly.enqueue(how).result(timeout=15)
    assert caught.value.error_type.endswith(error)
    assert len(str(caught.value)) < 100_000
    assert shared.consumer_pids() == before
    assert serves()


def test_the_deaths_of_a_poison_pill_are_counted_across_brokers(start: Start, gate: Gate, tmp_path: Path) -> None:
    """The process of a job dies, then with it its broker, then again the process: three deaths, and it is parked."""
    fleet = start().wait_ready()
    path = tmp_path / "starts"
    pill = jobs.hold.options(max_crashes=3).enqueue(gate.path, str(path))
    fleet.kill(starts(path, 1)[0].pid)
    starts(path, 2)
    fleet.kill(fleet.broker_pid)
    fleet.kill(starts(path, 3)[2].pid)
    with pytest.raises(JobFailed, match="Crashed"):
        pill.result(timeout=15)
    assert (pill.info().attempts, pill.info().crashes) == (3, 3)
    assert [start.attempt for start in starts(path)] == [1, 2, 3]
    assert serves()


# -- the broker dies at a chosen point


class Faults:
    """Makes the broker of a fleet fail at a point; see `apps/faults/sitecustomize.py`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = {"PYTHONPATH": str(APPS / "faults"), "TASKQ_TEST_FAULTS": str(folder)}

    def ask_for(self, name: str) -> Path:
        """The next broker at this point fails."""
        path = self.folder / name
        path.touch()
        return path


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    """Makes a broker fail at a point."""
    return Faults(tmp_path / "faults")


POINTS = ("kill-before-commit", "kill-after-commit")


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_killed_around_the_commit_of_a_submission(
    start: Start, faults: Faults, tmp_path: Path, point: str
) -> None:
    """The producer sends its job again, and it is one job, whether the first time was written or not."""
    fleet = start(environment=faults.environment).wait_ready()
    wait_until(lambda: fleet.count("fleet.started"), "the fleet")
    path = tmp_path / "starts"
    asked = faults.ask_for(point)
    job = jobs.note.enqueue(str(path), "noted")
    assert job.result(timeout=15) == "noted"
    assert not asked.exists()
    fleet.wait_for("broker.died", signal="SIGKILL")
    assert serves()
    assert counted(path) == {"noted": 1}
    assert fleet.totals()["enqueued"] == 21


@pytest.mark.parametrize("point", POINTS)
def test_a_broker_killed_around_the_commit_of_a_result(
    start: Start, faults: Faults, gate: Gate, tmp_path: Path, point: str
) -> None:
    """A job whose result was committed does not run again, although nobody was told; one whose result was not committed
    does."""
    fleet = start(consumers=1, environment=faults.environment)
    path = tmp_path / "starts"
    job = jobs.hold.enqueue(gate.path, str(path))
    starts(path, 1)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(job.result, 15)
        wait_until(lambda: fleet.status() and result.running(), "somebody who waits")
        asked = faults.ask_for(point)
        gate.open()
        assert result.result(20) == "held"
    assert not asked.exists()
    fleet.wait_for("broker.died", signal="SIGKILL")
    runs = 1 if point == "kill-after-commit" else 2
    assert counted(path) == {"held": runs, "held-end": runs}
    assert fleet.totals()["succeeded"] == 1
    assert serves()


def test_a_sync_that_fails_acknowledges_nothing(home: Path, faults: Faults, tmp_path: Path) -> None:
    """A commit that may be lost is not acknowledged: the fleet ends, and the job goes to the spool, once and
    durably."""
    fleet = Fleet(home, environment=faults.environment)
    fleet.expected.add("store.failed")
    fleet.start().wait_ready()
    assert serves()
    broken = faults.ask_for("eio")
    job = jobs.note.enqueue(str(tmp_path / "starts"), "noted")
    assert fleet.wait_for_end() == Exit.JOURNAL
    assert "the disk is broken" in fleet.wait_for("store.failed")["error"]
    assert jobs.q.client.is_spooled(bytes.fromhex(job.id))
    broken.unlink()
    again = Fleet(home)
    again.expected.add("store.failed")  # the log still tells of it
    with running(again):
        assert job.result(timeout=15) == "noted"
        assert serves()
    assert counted(tmp_path / "starts") == {"noted": 1}


# -- disks and directories


def test_a_full_disk_and_back(disk: Path, gate: Gate, tmp_path: Path) -> None:
    """New jobs are refused, running jobs end and are recorded, and as soon as there is space all goes on, in the same
    processes."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue")) as fleet:
        fleet.wait_ready()
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
        pids = [fleet.broker_pid, *fleet.consumer_pids()]
        path = tmp_path / "starts"
        held = jobs.hold.enqueue(gate.path, str(path))
        waiting = jobs.note.enqueue_many([(str(path), f"note{number}") for number in range(50)])
        starts(path, 1)
        filler = fill(disk)
        enqueue_until_full()
        gate.open()
        assert held.result(timeout=15) == "held"
        assert [job.result(timeout=15) for job in waiting] == [f"note{number}" for number in range(50)]
        filler.unlink()

        wait_until(is_enqueued, "room for new jobs")
        assert [fleet.broker_pid, *fleet.consumer_pids()] == pids
        assert serves()


def test_what_ends_is_recorded_on_a_disk_too_small_to_set_space_aside(disk: Path, gate: Gate, tmp_path: Path) -> None:
    """Producers fill the disk while a job runs, and nothing is set aside: the fleet lives, and the job's result is
    recorded, at the latest when there is space."""
    use(jobs.q, disk / "queue")
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    fleet = Fleet(disk / "queue", consumers=1)
    fleet.errors = tmp_path / "stderr"
    with running(fleet):
        broker, path = fleet.broker_pid, tmp_path / "starts"
        held = jobs.hold.enqueue(gate.path, str(path))
        starts(path, 1)
        enqueue_until_full()
        gate.open()
        starts(path, 2)
        begin = time.monotonic()
        while time.monotonic() < begin + 0.5:  # more than the job's outcome takes to arrive
            assert fleet.client.status().broker.pid == broker
            time.sleep(0.02)
        subprocess.run(["mount", "-o", "remount,size=120m", str(disk)], check=True)
        assert held.result(timeout=5) == "held"
        assert fleet.broker_pid == broker
        wait_until(is_enqueued, "room for new jobs")
        assert serves()


def enqueue_until_full() -> None:
    """Enqueues until the disk is full."""
    with pytest.raises(StoreFull):
        for _ in range(200):
            jobs.echo.enqueue(os.urandom(300_000))


def is_enqueued() -> bool:
    """Whether a job is taken in now."""
    with suppress(StoreFull):
        return bool(jobs.add.enqueue(1))
    return False


def test_a_fleet_starts_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """What waits in the journal is run and recorded with the space that was set aside; the spool is taken in later."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue", queues=("other",))):
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
        waiting = jobs.add.enqueue_many([(number,) for number in range(50)])
    spooled = [jobs.echo.enqueue(bytes(300_000)) for _ in range(10)]
    filler = fill(disk)
    fleet = Fleet(disk / "queue")
    fleet.errors = tmp_path / "stderr"
    with running(fleet, wait=False):
        fleet.wait_ready()
        assert [job.result(timeout=15) for job in waiting] == list(range(1, 51))
        filler.unlink()
        wait_until(lambda: not list((disk / "queue" / "spool").iterdir()), "the spool taken in")
        assert [len(job.result(timeout=15)) for job in spooled] == [300_000] * 10
        assert serves()


def test_the_flight_recorder_needs_no_space(disk: Path) -> None:
    """A broker that starts on a full disk empties the file that is there."""
    path = disk / "running.map"
    clear_flight_records(path, 4)
    FlightRecorder(path, 1).started(bytes(range(16)), 1)
    assert read_flight_records(path)
    fill(disk)
    clear_flight_records(path, 4)
    assert read_flight_records(path) == []
    FlightRecorder(path, 4).started(bytes(range(16)), 1)
    assert read_flight_records(path)


def test_a_job_in_the_spool_of_a_full_disk_is_known(disk: Path, tmp_path: Path) -> None:
    """It was acknowledged: whoever waits for it waits until there is space, and whoever asks hears that it is
    queued."""
    use(jobs.q, disk / "queue")
    with running(Fleet(disk / "queue")):
        wait_until((disk / "queue" / "journal.ballast").exists, "space set aside")
    spooled = [jobs.echo.enqueue(bytes(300_000)) for _ in range(10)]
    filler = fill(disk)
    fleet = Fleet(disk / "queue")
    fleet.errors = tmp_path / "stderr"
    with running(fleet, wait=False), ThreadPoolExecutor(1) as pool:
        fleet.wait_ready()
        result = pool.submit(spooled[-1].result, 15)
        infos = [job.info() for job in spooled]
        assert {(info.task, info.queue) for info in infos} == {("echo", "default")}
        assert (infos[-1].state, infos[-1].attempts) == (JobState.QUEUED, 0)
        with pytest.raises(StoreFull, match="when there is room"):
            spooled[-1].cancel()
        with pytest.raises(JobNotFound):
            jobs.q.job(bytes(16).hex()).info()
        filler.unlink()
        assert result.result(20) == bytes(300_000)
        assert spooled[0].state() is JobState.SUCCEEDED
        assert serves()


@pytest.mark.parametrize("what", ["", "spool", "log", "journal.db"])
def test_a_directory_that_may_not_be_written(home: Path, what: str) -> None:
    """A fleet that cannot write where it must says so in one line that names the place, and ends. Then the place is
    repaired."""
    SQLiteStore(Directory(home).create().journal).close()
    spooled = jobs.add.enqueue(1)
    place = home / what
    mode = place.stat().st_mode
    place.chmod(0o500 if place.is_dir() else 0o400)
    command = [*dropping_privileges(), sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--drain"]
    environment = {**os.environ, "TASKQ_URL": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    place.chmod(mode)
    told = [line for line in done.stderr.splitlines() if line.startswith("taskq: ")]
    assert "Traceback" not in done.stderr
    if what == "log":
        assert done.returncode == Exit.OK, "the log is not worth a job"
    else:
        assert done.returncode in (Exit.DIRECTORY, Exit.JOURNAL), done.stderr
        assert len(told) == 1
        assert str(place) in told[0]
        assert "cannot be written" in told[0], told
    fleet = Fleet(home, consumers=1)
    fleet.expected.add("store.failed")  # the log still tells of it
    with running(fleet):
        assert spooled.result(timeout=15) == 2
        assert serves()


def test_a_filesystem_that_is_read_only(disk: Path) -> None:
    """Fleets and producers are told that the kernel has made the disk read-only."""
    home = disk / "queue"
    use(jobs.q, home)
    Directory(home).create()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    fleet = Fleet(home)
    fleet.errors = disk.parent / "stderr"
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.DIRECTORY
    assert f"{home} cannot be written" in fleet.errors.read_text()
    with pytest.raises(BrokerUnavailable, match="cannot be written"):
        jobs.add.enqueue(1)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with running(Fleet(home, consumers=1)):
        assert serves()


# -- clocks


def come_due(committer: Committer, wall: float) -> None:
    """The clock shows this."""
    committer.come_due(wall)
    committer.commit(0.0, wall)


def test_a_jump_of_the_wall_clock_neither_repeats_nor_loses(home: Path) -> None:
    """A retry is due by the wall clock: not before its time on a clock set back, once on one set forward."""
    directory = Directory(home).create()
    store, core = SQLiteStore(directory.journal), Core()
    committer = Committer(store, core, cast(Server, Deaf()), cast(EventLog, Deaf()), directory, cast(Consumers, Deaf()))
    wall = 1e9
    [job_id] = new_job_ids(1)
    core.joined(1, 0.0)
    core.submitted(store.submit(Spec("add"), [job_id], [b"payload"]))
    core.dispatch(0.0, 0.0)
    outcome = pack_failure(wall, 0.0, JobError("Error", "no"))
    core.settled(1, Attempts([1], [Verdict.FAILED], [5], [outcome]), 0.0, wall)
    committer.collect(0.0)
    committer.commit(0.0, wall)
    committer.tell(0.0)
    for jumped in (wall - 1e8, wall, wall + 0.4):
        come_due(committer, jumped)
        assert core.dispatch(0.0, 0.0) == []
    come_due(committer, wall + 1e8)
    assert [row.id for batch in core.dispatch(1.0, 0.0) for row in batch.rows] == [job_id]
    for jumped in (wall - 1e8, wall, wall + 2e8):
        come_due(committer, jumped)
        assert core.dispatch(2.0, 0.0) == []
    store.close()


def test_time_limits_do_not_know_the_wall_clock(home: Path) -> None:
    """The core knows limits in monotonic seconds only: a job is late when these are over, and not earlier."""
    directory = Directory(home).create()
    with closing(SQLiteStore(directory.journal)) as store:
        core = Core()
        core.joined(1, 100.0)
        core.submitted(store.submit(Spec("add", timeout_s=10.0), list(new_job_ids(1)), [b"payload"]))
        core.dispatch(100.0, 0.0)
        claims = [Claim(1, 100.0)]
        assert core.check_time(1, claims, 109.9) == []
        assert core.check_time(1, claims, 110.0) == [(1, "signal")]


class ClockOnTheWall:
    """A clock that was set to a time, and shows that; spans are real."""

    monotonic, sleep = staticmethod(time.monotonic), staticmethod(time.sleep)

    def __init__(self, at_ns: int) -> None:
        self._at_ns = at_ns

    def time_ns(self) -> int:
        """What it was set to."""
        return self._at_ns

    def time(self) -> float:
        """The same in seconds."""
        return self._at_ns / 1e9


def test_a_producer_whose_clock_was_set_back(shared: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids begin with the time; jobs whose ids are older than all others, or in the future, run like others."""
    now_ns = time.time_ns()
    year_ns = 365 * 86_400 * 10**9
    for jumped_ns in (now_ns + year_ns, now_ns - year_ns, now_ns):
        monkeypatch.setattr(jobs.q, "clock", ClockOnTheWall(jumped_ns))
        made = jobs.echo.enqueue_many([(number,) for number in range(20)])
        assert [job.result(timeout=15) for job in made] == list(range(20))
        assert abs(made[0].info().enqueued_at - jumped_ns / 1e9) < 1.0
    monkeypatch.undo()
    assert serves()


# -- clients


def connect(home: Path, first: bytes) -> socket.socket:
    """A raw connection, on which the first bytes were sent."""
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(15)
    raw.connect(str(home / "taskq.sock"))
    with suppress(BrokenPipeError):  # it was refused already
        raw.sendall(first)
    return raw


def cpu_s(pid: int) -> float:
    """The processor time that a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_more_clients_than_descriptors(start: Start) -> None:
    """A broker out of descriptors goes on serving those who are connected, at rest, and takes the others in later."""
    fleet = start().wait_ready()
    pid = fleet.broker_pid
    existing = Client(Directory(fleet.home)).connect()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (psutil.Process(pid).num_fds() + 40, before[1]))
    with ExitStack() as stack:
        for _ in range(80):
            stack.enter_context(closing(connect(fleet.home, frames.hello(1))))
        fleet.wait_for("client.rejected")
        used_s, began = cpu_s(pid), time.monotonic()
        while time.monotonic() < began + 1.5:  # longer than the broker's own rounds
            assert existing.request(Op.STATUS)["broker"]["pid"] == pid
            time.sleep(0.1)
        assert cpu_s(pid) - used_s < 0.4, "it does not spin"
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    existing.close()
    assert serves()
    assert fleet.broker_pid == pid
    assert fleet.count("broker.died") == 0


def test_a_listener_that_was_out_of_descriptors_listens_again_without_a_client_going(start: Start) -> None:
    """Descriptors may also become free in other ways, and perhaps there is no client that could leave."""
    fleet = start().wait_ready()
    fleet.client.close()
    pid = fleet.broker_pid
    fleet.client.close()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    wait_until(lambda: clients_of(fleet) == 0, "no client")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    with closing(connect(fleet.home, frames.hello(1))) as raw:
        fleet.wait_for("client.rejected")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        raw.settimeout(3)
        assert frames.Decoder().feed(raw.recv(65536))[0][0][0] == Op.HELLO
    assert serves()


def clients_of(fleet: Fleet) -> int:
    """How many connections to the broker's socket there are."""
    path = str(fleet.home / "taskq.sock")
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(path) and line.split()[5] == "03" for line in lines)


def test_two_hundred_clients_that_say_one_byte(shared: Fleet) -> None:
    """They cost the others nothing: the round trips of an honest client stay as they were."""

    def round_trips_s() -> list[float]:
        took_s = []
        for _ in range(40):
            begin = time.monotonic()
            assert jobs.add.enqueue(1).result(timeout=15) == 2
            took_s.append(time.monotonic() - begin)
        return took_s

    alone = statistics.median(round_trips_s())
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(closing(connect(shared.home, frames.hello(1)[:1])))
        beside = statistics.median(round_trips_s())
    assert beside < 3 * alone + 0.01
    assert serves()


def test_clients_of_other_versions(shared: Fleet) -> None:
    """A client that also speaks our version is served; another one is told which side must be upgraded."""
    lowest, highest = frames.VERSIONS
    with closing(connect(shared.home, frames.frame([Op.HELLO, frames.MAGIC, lowest, highest + 98, 1]))) as raw:
        assert frames.Decoder().feed(raw.recv(65536))[0][0][0] == Op.HELLO
    newer, older = (highest + 1, highest + 2), (lowest - 1, lowest - 1)
    for versions, remedy in ((newer, "upgrade taskq in the fleet"), (older, "upgrade taskq in the client")):
        with closing(connect(shared.home, frames.frame([Op.HELLO, frames.MAGIC, *versions, 1]))) as raw:
            envelope, _ = frames.Decoder().feed(raw.recv(65536))[0]
        assert envelope[:3] == [Op.ERROR, 0, "ProtocolError"]
        assert remedy in envelope[3]
    assert serves()


def test_a_journal_of_a_newer_version(home: Path, tmp_path: Path) -> None:
    """It is refused, in words, and not a byte of it changes; the version that wrote it finds all jobs."""
    with running(Fleet(home, consumers=1)):
        job = jobs.add.enqueue(1)
        assert job.result(timeout=15) == 2
    journal = home / "journal.db"
    with closing(apsw.Connection(str(journal))) as db:
        [(version,)] = db.execute("PRAGMA user_version").fetchall()
        db.execute(f"PRAGMA user_version={version + 1}")
    content = journal.read_bytes()
    fleet = Fleet(home)
    fleet.expected.add("store.failed")
    fleet.start(wait=False)
    assert fleet.wait_for_end() == Exit.JOURNAL
    assert "written by a newer taskq" in fleet.errors.read_text()
    assert journal.read_bytes() == content
    with closing(apsw.Connection(str(journal))) as db:
        db.execute(f"PRAGMA user_version={version}")
    again = Fleet(home, consumers=1)
    again.expected.add("store.failed")  # the log still tells of it
    with running(again):
        assert job.result(timeout=15) == 2
        assert serves()


def test_a_flood_of_jobs_waits_on_disk(start: Start) -> None:
    """Ten times the memory that the broker may hold waits, and it does not grow by that."""
    fleet = start(consumers=1, queues=("served",), memory_mb=8)
    before = fleet.status()["broker"]["rss_bytes"]
    jobs.echo.enqueue_many((bytes(100_000),) for _ in range(1_000))
    status = fleet.status()
    assert status["queues"]["default"]["queued"] == 1_000
    assert status["broker"]["rss_bytes"] - before < 70 * 1024 * 1024  # 8, and SQLite's cache of 32, and what it reads
    assert jobs.add.options(queue="served").enqueue(1).result(timeout=15) == 2


# -- fleets


def test_of_twenty_fleets_one_lives(home: Path) -> None:
    """Started at once on one directory, half of them through a link: all but one say who has it, and end."""
    home.mkdir(mode=0o700)
    link = home.parent / "link"
    link.symlink_to(home)
    fleets = [Fleet(link if number % 2 else home, consumers=1) for number in range(20)]
    for number, fleet in enumerate(fleets):
        fleet.errors = home.parent / f"{number}.stderr"
        fleet.start(wait=False)

    def living() -> list[Fleet]:
        return [fleet for fleet in fleets if psutil.Process(fleet.guardian_pid).status() != psutil.STATUS_ZOMBIE]

    wait_until(lambda: len(living()) == 1, "the end of the others", 40.0)
    [last] = living()
    last.wait_ready()
    assert serves()
    assert last.count("fleet.started") == 1
    others = [fleet for fleet in fleets if fleet is not last]
    assert {fleet.wait_for_end() for fleet in others} == {Exit.ALREADY_RUNNING}
    assert all(f"broker process {last.broker_pid}" in fleet.errors.read_text() for fleet in others)
    last.finish()


# -- output


def test_a_job_prints_while_nobody_reads(shared: Fleet, tmp_path: Path) -> None:
    """The broker is stopped while a job prints more than its pipe holds: the job waits, and goes on with the broker."""
    shared.wait_ready()
    gate = Gate(tmp_path / "gate")
    path = tmp_path / "starts"
    broker = shared.broker_pid
    job = jobs.print_behind.enqueue(str(path), gate.path, 20_000)
    [first] = starts(path, 1)
    stop_process(shared, broker)
    try:
        gate.open()
        wait_until(lambda: "pipe_write" in waits_in(first.pid), "a full pipe")
    finally:
        shared.kill(broker, signal.SIGCONT)
    assert job.result(timeout=15) == 20_000
    assert job.info().attempts == 1
    assert shared.broker_pid == broker
    assert serves()


def test_a_worker_whose_output_nobody_reads_or_has_closed(home: Path) -> None:
    """Its standard output and error are first a full pipe, and then a closed one: jobs run, and the log file has
    everything."""
    command = [sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--log-level", "debug"]
    environment = {**os.environ, "TASKQ_URL": str(home)}
    reader, writer = os.pipe()
    worker = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True
    )
    os.close(writer)
    try:
        assert jobs.print_much.enqueue(5_000).result(timeout=15) is None  # 5,000 lines are far more than a pipe holds
        os.close(reader)
        last = jobs.print_much.enqueue(100)
        assert last.result(timeout=15) is None
        assert serves()
        wait_until(lambda: any(found.get("job_id") == last.id for found in read(home)), "the job in the log")
    finally:
        worker.terminate()
        assert worker.wait(15) == 0


# -- process 1


def test_process_one_reaps_orphans_and_stops_in_order(home: Path, tmp_path: Path) -> None:
    """In a container the guardian is process 1: what jobs leave behind does not stay as zombies, and SIGTERM stops."""
    container = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*container, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a namespace of processes")
    command = [*container, sys.executable, "-m", "taskq", "worker", JOBS, "--consumers", "1", "--log-format", "json"]
    environment = {**os.environ, "TASKQ_URL": str(home)}
    with (home.parent / "container.stderr").open("wb") as errors:
        outer = psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True)
    try:
        for number in range(3):
            jobs.leave_orphan.enqueue(str(tmp_path / "orphans")).result(timeout=15)
            wait_for_file(tmp_path / "orphans", number + 1)
        [guardian] = outer.children()
        assert guardian.exe() == psutil.Process().exe()
        wait_until(lambda: not any(map(is_zombie, outer.children(recursive=True))), "no zombies")
        assert serves()
        guardian.terminate()
        assert outer.wait(15) == 0
    finally:
        for process in outer.children(recursive=True) if outer.is_running() else []:
            process.kill()
    assert [event["event"] for event in read(home)][-1] == "fleet.stopped"
    assert json.loads((home.parent / "container.stderr").read_text().splitlines()[-1])["event"] == "fleet.stopped"


def is_zombie(process: psutil.Process) -> bool:
    """Whether a process has ended and was not reaped."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
