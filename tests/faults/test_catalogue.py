"""The catalogue of failures, with real processes: every fault that we know of has a test, or a reason why it has none.

tests/README.md describes the method. This is the table; the tests are in test_catalogue_processes.py, _disks.py and
_clients.py, and in other files. Each ends with a fleet that still serves a job.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.not_on_postgres("no queue is asked")


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
            "test_catalogue_processes::test_killed_in_the_middle_of_a_large_item",
            "test_unsent::test_whatever_a_kill_interrupts_only_whole_outcomes_are_read",
            "test_crashes::test_batch_mates_that_ended_just_before_do_not_run_again",
        ),
    ),
    4: Row(
        "SIGKILL between the commit of a result and its acknowledgement",
        ("test_catalogue_disks::test_a_broker_killed_around_the_commit_of_a_result",),
    ),
    5: Row(
        "SIGKILL of the broker at each point",
        (
            "test_catalogue_disks::test_a_broker_killed_around_the_commit_of_a_submission",
            "test_catalogue_disks::test_a_broker_killed_around_the_commit_of_a_result",
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
            "test_catalogue_processes::test_a_stopped_consumer_is_killed_when_the_time_of_its_job_is_over",
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
            "test_catalogue_processes::test_a_job_that_holds_the_gil_is_not_taken_for_dead",
            "test_fleet::test_timeout_in_c_costs_only_its_job",
        ),
    ),
    11: Row(
        "out of memory",
        (
            "test_catalogue_processes::test_a_job_that_runs_out_of_memory",
            "test_crashes::test_a_death_in_a_job_is_reported_and_parks_it",
            "test_core::test_deaths_are_reported_in_words",
            "test_catalogue_processes::test_a_job_that_the_kernel_kills_for_want_of_memory",
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
            "test_catalogue_processes::test_the_deaths_of_a_poison_pill_are_counted_across_brokers",
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
            "test_catalogue_disks::test_a_full_disk_and_back",
            "test_catalogue_disks::test_a_fleet_starts_on_a_full_disk",
            "test_catalogue_disks::test_the_flight_recorder_needs_no_space",
            "test_catalogue_disks::test_what_ends_is_recorded_on_a_disk_too_small_to_set_space_aside",
            "test_catalogue_disks::test_a_job_in_the_spool_of_a_full_disk_is_known",
            "test_journal::test_full_disk_at_every_page",
            "test_crashes::test_a_full_disk_leaves_jobs_in_the_spool",
        ),
    ),
    21: Row("fsync fails", ("test_catalogue_disks::test_a_sync_that_fails_acknowledges_nothing",)),
    22: Row(
        "a directory that is read-only or somebody else's",
        (
            "test_catalogue_disks::test_a_directory_that_may_not_be_written",
            "test_catalogue_disks::test_a_filesystem_that_is_read_only",
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
            "test_catalogue_clients::test_a_jump_of_the_wall_clock_neither_repeats_nor_loses",
            "test_catalogue_clients::test_time_limits_do_not_know_the_wall_clock",
            "test_catalogue_clients::test_a_producer_whose_clock_was_set_back",
        ),
        "the system's clock is not set, for the whole machine has it, and libfaketime is not at hand: the committer and "
        "the core are driven with a clock that jumps. A retry is due by the wall clock, so it waits for a clock that "
        "was set back; results are kept by it, so a jump beyond `keep_results` removes them",
    ),
    25: Row(
        "suspend and resume",
        ("test_catalogue_processes::test_a_fleet_that_is_stopped_and_goes_on",),
        "no lease ends by time, and CLOCK_MONOTONIC stands still meanwhile; stopping all processes comes nearest",
    ),
    26: Row(
        "out of descriptors",
        (
            "test_catalogue_clients::test_more_clients_than_descriptors",
            "test_catalogue_clients::test_a_listener_that_was_out_of_descriptors_listens_again_without_a_client_going",
            "test_hostile::test_more_connections_than_are_served",
        ),
    ),
    27: Row(
        "slowloris and half frames",
        (
            "test_catalogue_clients::test_two_hundred_clients_that_say_one_byte",
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
            "test_catalogue_clients::test_a_flood_of_jobs_waits_on_disk",
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
            "test_catalogue_processes::test_of_twenty_fleets_one_lives",
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
            "test_catalogue_clients::test_clients_of_other_versions",
            "test_catalogue_clients::test_a_journal_of_a_newer_version",
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
            "test_catalogue_processes::test_exceptions_that_are_hard_to_tell",
            "test_fleet::test_fails_at_once_and_the_consumer_lives",
        ),
    ),
    39: Row(
        "standard output is closed, or the disk of the log is full",
        (
            "test_catalogue_processes::test_a_worker_whose_output_nobody_reads_or_has_closed",
            "test_catalogue_disks::test_a_full_disk_and_back",
            "test_log_setup::test_closed_pipe_is_given_up",
            "test_log_setup::test_dev_full",
            "test_log_sink::test_full_disk_drops_counts_and_tells",
        ),
    ),
    40: Row(
        "a task prints without end",
        (
            "test_catalogue_processes::test_a_job_prints_while_nobody_reads",
            "test_catalogue_processes::test_a_worker_whose_output_nobody_reads_or_has_closed",
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
    43: Row(
        "process 1 of a container", ("test_catalogue_processes::test_process_one_reaps_orphans_and_stops_in_order",)
    ),
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
    proofs = {
        f"{path.stem}::{name}"
        for path in Path(__file__).parent.glob("test_catalogue_*.py")
        for name in names_in(path.stem)
        if name.startswith("test_")
    }
    assert proofs <= named
