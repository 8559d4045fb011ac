"""What Prometheus is told: of a fleet in which something of each kind has happened, and of one that is not there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from platform import node
from typing import Any

import httpx
import pytest
from apps import jobs
from fleet import DEADLINE_S, JOBS, Fleet, in_directory, running, url_of, use, wait_until
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from served import free_port
from starlette.testclient import TestClient
from terminal import TASKQ, Here, environment, here, refused

from taskq import TaskQ
from taskq.model.exits import Exit
from taskq.web import Dashboard
from taskq.web.metrics.families import Told, families

__all__ = ["here"]  # a fixture

NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="there is no promtool here: apt-get install prometheus"
)
ROOT = Path(__file__).parents[2]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """The figures in a text that Prometheus can read."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def figure(found: Samples, name: str, **labels: str) -> float:
    """One of the figures."""
    return found[name, frozenset(labels.items())]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet with jobs that succeeded, failed, were retried, crashed and wait."""
    folder = tmp_path_factory.mktemp("metrics")
    with running(Fleet(folder / "queue", consumers=1)) as fleet:
        use(jobs.q, fleet.home)
        made = [
            *(jobs.add.enqueue(number) for number in range(5)),
            jobs.fail.options(queue="mail").enqueue('a "quoted" \\ message'),
            jobs.fail_once.options(backoff=[0]).enqueue(str(folder / "failed")),
            jobs.die_once.enqueue(str(folder / "died"), "kill"),
        ]
        for job in made:
            assert job.wait(20)
        jobs.q.pause("quiet")
        jobs.add.options(queue="quiet").enqueue(1)
        jobs.add.options(delay=3600).enqueue(1)
        fleet.wait_for_totals(enqueued=10, succeeded=7, failed=1, retried=1, crashed=1)
        yield fleet


def told_by(fleet: Fleet) -> Told:
    """What the figures are made of."""
    use(jobs.q, fleet.home)
    client = jobs.q.client
    return Told(client.status(), client.counts(), client.schedules())


def test_what_happened(fleet: Fleet, here: Here) -> None:
    idle = "taskq_consumers", frozenset({("state", "idle")})
    twice = "taskq_attempts_total", frozenset({("queue", "default"), ("task", "fail_once")})

    def settled() -> Samples | None:
        found = samples(here(fleet.home, "metrics").stdout)
        return found if found.get(idle) and found.get(twice) == 2 else None

    found = wait_until(settled, "the consumer after the crash, and both attempts")
    assert figure(found, "taskq_up") == 1
    assert figure(found, "taskq_jobs_enqueued_total", queue="default", task="add") == 6
    assert figure(found, "taskq_jobs_finished_total", queue="default", task="add", state="succeeded") == 5
    assert figure(found, "taskq_jobs_finished_total", queue="mail", task="fail", state="failed") == 1
    assert figure(found, "taskq_attempts_total", queue="default", task="fail_once") == 2
    assert figure(found, "taskq_attempts_retried_total", queue="default", task="fail_once") == 1
    assert figure(found, "taskq_attempts_crashed_total", queue="default", task="die_once") == 1
    assert figure(found, "taskq_jobs", queue="quiet", state="queued") == 1
    assert figure(found, "taskq_jobs", queue="default", state="scheduled") == 1
    assert figure(found, "taskq_queue_paused", queue="quiet") == 1
    assert figure(found, "taskq_queue_paused", queue="default") == 0
    assert figure(found, "taskq_consumer_restarts_total") == 1
    assert figure(found, "taskq_consumers", state="idle") == 1
    machine = "" if in_directory() else node()
    assert 0 < figure(found, "taskq_consumer_cpu_seconds_total", machine=machine, consumer="1") < DEADLINE_S
    assert 0 < figure(found, "taskq_broker_cpu_seconds_total") < DEADLINE_S
    add = {"queue": "default", "task": "add"}
    buckets = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in found.items()
        if name == "taskq_job_run_seconds_bucket" and add.items() <= dict(labels).items()
    ]
    assert buckets == sorted(buckets), "they are cumulative"
    assert (buckets[0][0], buckets[-2][0], buckets[-1]) == (0.001024, 4294.967296, (float("inf"), 5))
    assert figure(found, "taskq_job_run_seconds_count", **add) == 5
    assert 0 < figure(found, "taskq_job_run_seconds_sum", **add) < 5 * DEADLINE_S


@NEEDS_PROMTOOL
def test_prometheus_finds_nothing_to_mend(fleet: Fleet, here: Here) -> None:
    text = here(fleet.home, "metrics").stdout
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


#: What the rules are tried on: a broker that is gone, a backlog that grows, and a task that fails.
CASES = """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'taskq_up{instance="a"}', values: '1x10 0x50'}
      - {series: 'taskq_jobs{instance="a",queue="mail",state="queued"}', values: '2000+10x60'}
      - {series: 'taskq_jobs{instance="a",queue="calm",state="queued"}', values: '2000x60'}
      - {series: 'taskq_jobs{instance="a",queue="shut",state="queued"}', values: '2000+10x60'}
      - {series: 'taskq_queue_paused{instance="a",queue="shut"}', values: '1x60'}
      - {series: 'taskq_jobs_finished_total{instance="a",queue="mail",task="send",state="failed"}', values: '0+2x60'}
      - {series: 'taskq_jobs_finished_total{instance="a",queue="mail",task="send",state="succeeded"}', values: '0+8x60'}
      - {series: 'taskq_schedule_next_fire_timestamp_seconds{instance="a",schedule="nightly"}', values: '0x60'}
    alert_rule_test:
      - {eval_time: 5m, alertname: TaskqDown, exp_alerts: []}
      - {eval_time: 20m, alertname: TaskqDown, exp_alerts: [{exp_labels: {severity: critical, instance: a}, exp_annotations: {
          summary: No broker of taskq answers on a.,
          description: "New jobs go to the spool, and none run. Start the fleet with `taskq worker`; `taskq doctor` says what is wrong."}}]}
      - {eval_time: 50m, alertname: TaskqBacklogGrows, exp_alerts: [{exp_labels: {severity: warning, instance: a, queue: mail, state: queued}, exp_annotations: {
          summary: The backlog of queue mail grows on a.,
          description: "More jobs come in than end. Add consumers, or look at `taskq tasks` for one that has become slow."}}]}
      - {eval_time: 50m, alertname: TaskqJobsFail, exp_alerts: [{exp_labels: {severity: warning, instance: a, task: send}, exp_annotations: {
          summary: 20% of the jobs of task send fail on a.,
          description: "`taskq errors --task send` groups them, with tracebacks."}}]}
      - {eval_time: 9m, alertname: TaskqScheduleLate, exp_alerts: [{exp_labels: {severity: warning, instance: a, schedule: nightly}, exp_annotations: {
          summary: Schedule nightly is five minutes late on a.}}]}
      - {eval_time: 30m, alertname: TaskqScheduleLate, exp_alerts: []}
"""


@NEEDS_PROMTOOL
def test_the_alerts_go_off(fleet: Fleet, tmp_path: Path) -> None:
    rules = ROOT / "examples/prometheus/alerts.yml"
    told = families(told_by(fleet))
    known = {f"{each.name}{suffix}" for each in told for suffix in ("", "_total", "_bucket")}
    assert set(re.findall(r"taskq_\w+", rules.read_text())) <= known, (
        "a rule about a metric that there is not is silent"
    )
    shutil.copy(rules, tmp_path)
    (tmp_path / "cases.yml").write_text(CASES)
    done = subprocess.run(
        ["promtool", "test", "rules", "cases.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.not_on_postgres("the figures of a directory's broker are among them")
def test_its_page_lists_them(fleet: Fleet) -> None:
    table = (ROOT / "docs/metrics.md").read_text().partition("| metric | labels |")[2].partition("\n\n")[0]
    listed = dict(re.findall(r"^\| `(taskq_\w+)` \| ([\w, ]*?) *\|", table, re.MULTILINE))
    named = set(re.findall(r"`(taskq_\w+)`", table))
    told = told_by(fleet)

    def name_of(family: Metric) -> str:
        return f"{family.name}_total" if family.type == "counter" else family.name

    assert sorted(named) == sorted(name_of(family) for family in families(told))
    for family in families(told):
        if family.samples and name_of(family) in listed:
            labels = [name for name in family.samples[0].labels if name != "le"]
            assert sorted(listed[name_of(family)].replace(",", "").split()) == sorted(labels), family.name


def test_on_a_page_of_the_dashboard(fleet: Fleet) -> None:
    q = TaskQ("taskq", url_of(fleet.home))
    with TestClient(Dashboard(q, access=lambda request: "read" if "x-user" in request.headers else None)) as client:
        assert client.get("/metrics").status_code == 403
        answer = client.get("/metrics", headers={"X-User": "ann"})
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert figure(samples(answer.text), "taskq_up") == 1
        openmetrics = client.get("/metrics", headers={"X-User": "ann", "Accept": "application/openmetrics-text"})
        assert openmetrics.text.endswith("# EOF\n")


@pytest.mark.parametrize("place", ["--listen", "--uds"])
def test_served(fleet: Fleet, tmp_path: Path, place: str) -> None:
    path = tmp_path / "metrics.sock"
    where = "127.0.0.1:0" if place == "--listen" else str(path)
    served = subprocess.Popen(
        [*TASKQ, "metrics", place, where], env=environment(fleet.home), stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout is not None
        told = served.stdout.readline().strip()
        transport = httpx.HTTPTransport(uds=str(path)) if place == "--uds" else None
        url = told if place == "--listen" else "http://localhost/metrics"
        with httpx.Client(transport=transport) as client:
            assert figure(samples(client.get(url).text), "taskq_up") == 1
            assert client.get(url.replace("/metrics", "/")).status_code == 404
        if place == "--uds":
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        served.terminate()
        assert served.wait(DEADLINE_S) == 0
        served.stdout.close()
    assert not path.exists()


def test_a_file_for_node_exporter(fleet: Fleet, here: Here, tmp_path: Path) -> None:
    path = tmp_path / "taskq.prom"
    assert here(fleet.home, "metrics", "--textfile", str(path)).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o644
    assert figure(samples(path.read_text()), "taskq_up") == 1
    path.unlink()
    kept = subprocess.Popen([*TASKQ, "metrics", "--textfile", str(path), "--every", "0.1"], env=environment(fleet.home))
    try:
        wait_until(path.exists, "it is written")
        path.unlink()
        wait_until(path.exists, "it is written again")
    finally:
        kept.terminate()
        assert kept.wait(DEADLINE_S) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["taskq.prom"], "nothing half-written is left"


def test_no_fleet_and_what_is_refused(here: Here, tmp_path: Path) -> None:
    home = tmp_path / "queue"
    home.mkdir(mode=0o700)
    found = samples(here(home, "metrics").stdout)
    assert figure(found, "taskq_up") == 0
    for words in (["--listen", "nowhere"], ["--listen", ":99999"], ["--listen", ":0", "--uds", "x"], ["--every", "5"]):
        refused(here(home, "metrics", *words), Exit.USAGE, "--")
    refused(here(home, "metrics", "--textfile", str(tmp_path / "no" / "x")), Exit.USAGE, "--textfile")
    refused(here(home, "metrics", "--uds", str(tmp_path / "no" / "x")), Exit.USAGE, "--uds")
    code = "import sys; sys.modules['prometheus_client'] = None; sys.argv = ['taskq', 'metrics']; from taskq.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, check=False
    )
    refused(done, Exit.USAGE, "pip install 'taskq-fleet[prometheus]'")


def test_a_stopped_fleet_is_not_up(here: Here, tmp_path: Path) -> None:
    with running(Fleet(tmp_path / "queue", JOBS, consumers=1)) as fleet:
        use(jobs.q, fleet.home)
        assert jobs.add.enqueue(1).wait(20)
    found = samples(here(fleet.home, "metrics").stdout)
    assert figure(found, "taskq_up") == 0
    assert figure(found, "taskq_jobs_enqueued_total", queue="default", task="add") == 1, "what it has counted stays"


NEEDS_PROMETHEUS = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="there is no Prometheus here: apt-get install prometheus"
)


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[httpx.Client]:
    """A real one, which reads the figures of a port and the rules for alerts each second; a client of it."""
    port = free_port()
    (folder / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{ROOT / "examples" / "prometheus" / "alerts.yml"}]
scrape_configs: [{{job_name: taskq, static_configs: [{{targets: ["127.0.0.1:{target}"]}}]}}]
"""
    )
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w")) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=DEADLINE_S) as client:
                yield client
        finally:
            process.terminate()


def asked(client: httpx.Client, expression: str) -> list[dict[str, Any]]:
    """What an expression gives at this moment; nothing while Prometheus starts."""
    try:
        answer = client.get("/query", params={"query": expression})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:
        return []
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    result: list[dict[str, Any]] = answer.json()["data"]["result"]
    return result


def expressions() -> list[str]:
    """All that the dashboard asks, of all fleets and queues, over a minute."""
    dashboard = json.loads((ROOT / "examples" / "prometheus" / "grafana.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [re.sub(r"\$(instance|queue)", ".*", each).replace("$__rate_interval", "1m") for each in found]


@NEEDS_PROMETHEUS
@pytest.mark.not_on_postgres("the figures of a directory's broker are among them")
def test_a_real_prometheus_reads_the_figures_the_rules_and_what_the_dashboard_asks(
    fleet: Fleet, tmp_path: Path
) -> None:
    port = free_port()
    command = [*TASKQ, "metrics", "--listen", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, env=environment(fleet.home), stdout=subprocess.DEVNULL) as served:
        try:
            with prometheus(tmp_path, port) as client:
                wait_until(lambda: len(asked(client, "count_over_time(taskq_up[1m]) >= 3")) == 1, "three readings")
                [up] = asked(client, "taskq_up")
                assert up["value"][1] == "1"
                for expression in expressions():
                    assert asked(client, expression) != [], expression
                [group] = client.get("/rules").json()["data"]["groups"]
                assert {rule["health"] for rule in group["rules"]} == {"ok"}
        finally:
            served.terminate()
