"""Ids, specs, errors and delays."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.model.errors import (
    AppError,
    BrokerUnavailable,
    ConfigError,
    DirectoryError,
    EnqueueError,
    JobFailed,
    JobNotFound,
    JobTimeout,
    PayloadError,
    PayloadTooLarge,
    ResultTimeout,
    StoreFull,
    TaskQError,
)
from taskq.model.job import (
    BACKOFF_FIRST_S,
    BACKOFF_LONGEST_S,
    FINAL_STATES,
    JobError,
    JobState,
    backoff_s,
    enqueued_at,
    new_job_ids,
)
from taskq.model.limits import MAX_QUEUE_NAME_CHARS, MAX_TASK_NAME_CHARS
from taskq.model.spec import Spec
from taskq.model.stored import FIRST_FINAL, StoredState

# -- ids


def test_ids_of_a_batch_are_unique_and_sorted() -> None:
    """In the order in which they were made, however many."""
    ids = list(new_job_ids(20_000))
    assert len(set(ids)) == 20_000
    assert ids == sorted(ids)
    assert {len(job_id) for job_id in ids} == {16}


def test_ids_of_many_batches_are_unique() -> None:
    """Also those of the same millisecond, which begin with the same time."""
    batches = [list(new_job_ids(10)) for _ in range(2_000)]
    ids = [job_id for batch in batches for job_id in batch]
    assert len(set(ids)) == len(ids)


def test_ids_of_later_times_are_greater() -> None:
    """They sort by the time of enqueueing, to the microsecond or so."""
    [earlier] = new_job_ids(1)
    at = time.time_ns()
    while time.time_ns() < at + 50_000:
        pass
    [later] = new_job_ids(1)
    assert earlier < later


def test_the_time_is_read_back() -> None:
    """To the millisecond."""
    before = time.time()
    [job_id] = new_job_ids(1)
    assert before - 0.002 <= enqueued_at(job_id) <= time.time()


def test_ids_are_uuids_of_version_7() -> None:
    """So other tools can read their time."""
    for job_id in new_job_ids(50):
        uuid = UUID(bytes=job_id)
        assert uuid.version == 7
        assert uuid.variant == "specified in RFC 4122"


def test_no_ids() -> None:
    """An empty batch is none."""
    assert list(new_job_ids(0)) == []


# -- specs


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"task": "a"},
        {"task": "x" * MAX_TASK_NAME_CHARS},
        {"task": "pkg.mod:Class.method-2"},
        {"queue": "q" * MAX_QUEUE_NAME_CHARS},
        {"queue": "a.b-c_D9"},
        {"retries": 0},
        {"retries": 1_000_000},
        {"timeout_s": None},
        {"timeout_s": 0.001},
        {"timeout_s": 86_400},
        {"max_crashes": 1},
        {"max_crashes": 1_000_000},
    ],
)
def test_specs_that_are_fine(fields: dict[str, Any]) -> None:
    """They are taken, and survive their way through the wire and the journal."""
    spec = Spec(**{"task": "t", **fields})
    again = Spec.from_wire(msgpack.unpackb(msgpack.packb(spec.to_wire())))
    assert again == spec
    assert hash(again) == hash(spec)


BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    ({"task": ""}, "task name"),
    ({"task": "x" * (MAX_TASK_NAME_CHARS + 1)}, "task name"),
    ({"task": "has space"}, "task name"),
    ({"task": "line\n"}, "task name"),
    ({"task": "ünï"}, "task name"),
    ({"task": None}, "task name"),
    ({"task": b"bytes"}, "task name"),
    ({"queue": ""}, "queue name"),
    ({"queue": "q" * (MAX_QUEUE_NAME_CHARS + 1)}, "queue name"),
    ({"queue": "../up"}, "queue name"),
    ({"queue": "a:b"}, "queue name"),
    ({"queue": "a\n"}, "queue name"),
    ({"queue": 7}, "queue name"),
    ({"retries": -1}, "retries"),
    ({"retries": 1_000_001}, "retries"),
    ({"retries": 1.0}, "retries"),
    ({"retries": True}, "retries"),
    ({"retries": None}, "retries"),
    ({"timeout_s": 0}, "timeout"),
    ({"timeout_s": -1.0}, "timeout"),
    ({"timeout_s": float("nan")}, "timeout"),
    ({"timeout_s": float("inf")}, "timeout"),
    ({"timeout_s": "5"}, "timeout"),
    ({"timeout_s": True}, "timeout"),
    ({"max_crashes": 0}, "max_crashes"),
    ({"max_crashes": -1}, "max_crashes"),
    ({"max_crashes": 1.5}, "max_crashes"),
    ({"max_crashes": False}, "max_crashes"),
    ({"max_crashes": 1_000_001}, "max_crashes"),
    ({"priority": 1.0}, "priority"),
    ({"priority": True}, "priority"),
    ({"priority": 1_001}, "priority"),
    ({"backoff_s": ()}, "backoff"),
    ({"backoff_s": (1.0, -1)}, "backoff"),
    ({"backoff_s": (False,)}, "backoff"),
    ({"backoff_s": (float("nan"),)}, "backoff"),
    ({"backoff_s": 5}, "backoff"),
    ({"keep_result": 1}, "result"),
    ({"cpu_timeout_s": 0}, "cpu_timeout"),
    ({"memory_limit_bytes": 1000}, "memory_limit"),
    ({"memory_limit_bytes": 2.0**30}, "memory_limit"),
    ({"crash_queue": "a b"}, "queue name"),
    ({"concurrency": 0}, "concurrency"),
    ({"concurrency": True}, "concurrency"),
    ({"max_queued": 0}, "max_queued"),
    ({"rate": (0, 60.0)}, "rate"),
    ({"rate": (10, 0)}, "rate"),
    ({"rate": (10,)}, "rate"),
    ({"rate": "10/m"}, "rate"),
]


@pytest.mark.parametrize("resources", [(("gpu", 0),), (("gpu", True),), (("g p u", 1),), (("gpu",),), ("gpu",)])
def test_resources_that_make_no_sense(resources: Any) -> None:
    """A name, and how much."""
    with pytest.raises(ConfigError, match='^resources: .* as in {"gpu": 1}'):
        Spec("t", resources=resources)


FULL_SPEC = Spec(
    "t",
    "q",
    1,
    2.0,
    3,
    priority=-5,
    backoff_s=(0, 1.5),
    keep_result=False,
    cpu_timeout_s=1.0,
    memory_limit_bytes=1 << 30,
    crash_queue="big",
    concurrency=2,
    rate=(100, 60.0),
    resources=(("gpu", 1),),
    max_queued=10,
)


def test_options_travel_by_name() -> None:
    """All of them; and a plain job's description is short."""
    travelled = msgpack.unpackb(msgpack.packb(FULL_SPEC.to_wire()))
    assert Spec.from_wire(travelled) == FULL_SPEC
    assert len(Spec("t").to_wire()) == 5
    with pytest.raises(ConfigError, match="newer than this fleet"):
        Spec.from_wire([*Spec("t").to_wire(), {"colour": "red"}])


@pytest.mark.parametrize(("fields", "told"), BAD_SPECS)
def test_specs_that_make_no_sense(fields: dict[str, Any], told: str) -> None:
    """They are refused, and the message says what would do."""
    with pytest.raises(ConfigError, match=f"^{told}.*: use "):
        Spec(**{"task": "t", **fields})


@pytest.mark.parametrize(("fields", "_told"), BAD_SPECS)
def test_specs_from_the_wire_are_checked(fields: dict[str, Any], _told: str) -> None:
    """A peer's are checked like a caller's."""
    values = {"task": "t", "queue": "q", "retries": 0, "timeout_s": None, "max_crashes": 1, **fields}
    with pytest.raises(ConfigError):
        Spec.from_wire([*list(values.values())[:5], dict(list(values.items())[5:])])


@given(
    st.none()
    | st.integers()
    | st.text()
    | st.dictionaries(st.text(), st.integers())
    | st.lists(st.none() | st.text() | st.integers() | st.floats() | st.lists(st.none()) | st.just({}), max_size=7)
)
def test_any_fields_from_the_wire(fields: object) -> None:
    """A Spec or a ConfigError, nothing else."""
    try:
        wire = Spec.from_wire(fields).to_wire()
        assert wire == fields or [*wire, {}] == fields
    except ConfigError:
        pass


# -- states


def test_states_agree_with_the_store() -> None:
    """Each state that is kept is known to clients, and final in both or in none."""
    for kept in StoredState:
        assert kept.state.is_final == (kept >= FIRST_FINAL)
    assert {kept.state for kept in StoredState} == set(JobState) - {JobState.RUNNING}
    assert {state for state in JobState if state.is_final} == FINAL_STATES


# -- delays


@given(job_id=st.binary(min_size=16, max_size=16), failures=st.integers(1, 1_000_000))
def test_delays_are_bounded(job_id: bytes, failures: int) -> None:
    """Doubling from a second to ten minutes, less up to a half."""
    longest = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 40), BACKOFF_LONGEST_S)
    assert longest / 2 <= backoff_s(job_id, failures) <= longest
    assert backoff_s(job_id, failures) == backoff_s(job_id, failures)


def test_jobs_that_fail_together_do_not_come_back_together() -> None:
    """The delays of a batch are spread over the whole range."""
    delays = sorted(backoff_s(job_id, 5) for job_id in new_job_ids(2_000))
    assert delays[0] < 8.3
    assert delays[-1] > 15.7
    assert max(later - earlier for earlier, later in pairwise(delays)) < 0.2


# -- errors


def test_job_errors_go_through_the_wire() -> None:
    """All fields, in order."""
    error = JobError("ValueError", "no", "trace", 3, "SIGKILL", ["last"])
    assert JobError(*msgpack.unpackb(msgpack.packb(error.to_wire()))) == error
    assert len(error.to_wire()) == 6, "as earlier versions stored it"
    full = replace(error, module="shop.errors", causes=["KeyError: 'x'"])
    assert JobError(*msgpack.unpackb(msgpack.packb(full.to_wire()))) == full


def test_the_dotted_type_of_an_error() -> None:
    """With its module, but for what is built in or taskq's own."""
    assert JobError("Declined", "no", module="shop.errors").dotted_type == "shop.errors.Declined"
    assert JobError("ValueError", "no", module="builtins").dotted_type == "ValueError"
    assert JobError("Crashed", "died").dotted_type == "Crashed"


def test_job_failed_tells_all() -> None:
    """The message names job, type and text, and has the remote traceback if there was one."""
    error = JobFailed("ab" * 16, "ValueError", "bad size", "Traceback: line 1")
    assert f"job {'ab' * 16} failed: ValueError: bad size" in str(error)
    assert str(error).endswith("Traceback: line 1")
    assert "traceback" not in str(JobFailed("ab" * 16, "Crashed", "died"))


def test_job_failed_can_be_pickled() -> None:
    """It may have to travel to another process."""
    error = JobFailed("id", "Declined", "bad", "trace", "shop.errors", ["KeyError: 'x'"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.job_id, again.error_type) == (str(error), "id", "Declined")
    assert (again.error_module, again.error_causes) == ("shop.errors", ("KeyError: 'x'",))


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (PayloadError, (EnqueueError, TypeError)),
        (PayloadTooLarge, (EnqueueError, ValueError)),
        (StoreFull, (EnqueueError,)),
        (BrokerUnavailable, (TaskQError, ConnectionError)),
        (ResultTimeout, (TaskQError, TimeoutError)),
        (JobNotFound, (TaskQError, LookupError)),
        (ConfigError, (TaskQError, ValueError)),
        (AppError, (ConfigError,)),
        (DirectoryError, (ConfigError,)),
    ],
)
def test_errors_can_be_caught_by_their_usual_names(error: type[Exception], bases: tuple[type, ...]) -> None:
    """The built-in name that fits works, and so does the root of all."""
    assert issubclass(error, (*bases,))
    assert all(issubclass(error, base) for base in (*bases, TaskQError))


def test_a_job_does_not_swallow_its_timeout() -> None:
    """`except Exception` lets it through."""
    assert not issubclass(JobTimeout, Exception)


def test_the_hash_of_a_spec_does_not_travel() -> None:
    """Texts have other hashes in another process."""
    spec = Spec("t", "mail", timeout_s=3.0, resources=(("gpu", 1),))
    again = pickle.loads(pickle.dumps(spec))
    assert again in {spec}
    assert hash(spec) not in spec.__reduce__()[1]
    assert Spec("t", "mail") not in {spec}
