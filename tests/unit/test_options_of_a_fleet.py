"""The options of a fleet: command line before environment, before pyproject.toml, before the default."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from taskq import ConfigError
from taskq.cli.config.options import FLEET_OPTIONS, FleetOption
from taskq.cli.config.project import Value, app_of, find_project
from taskq.cli.config.sources import misspelt_variables, settings_of, values
from taskq.cli.worker.command import worker
from taskq.model.settings import Settings
from taskq.protocol.link.boot import IN_CONSUMER

NAMES = [option.name for option in FLEET_OPTIONS]
#: For each option a text, and what it makes of the settings.
TEXTS = {
    "consumers": ("3", {"consumers": 3}),
    "threads": ("5", {"threads": 5}),
    "queues": ("high=3, default", {"queues": ("high", "default"), "weights": (("high", 3.0),)}),
    "lane": ("gpu:1; *:2", {"lanes": ((("gpu",), 1), ((), 2)), "consumers": 3}),
    "resources": ("gpu=1,ram=8", {"resources": (("gpu", 1), ("ram", 8))}),
    "drain": ("true", {"drain": True}),
    "stop-timeout": ("2m", {"stop_timeout_s": 120.0}),
    "preload": ("yes", {"preload": True}),
    "max-jobs": ("7", {"max_jobs": 7}),
    "max-memory": ("512", {"max_memory_mb": 512}),
    "durability": ("os", {"durability": "os"}),
    "memory": ("64", {"memory_mb": 64}),
    "keep-results": ("0", {"keep_results_s": 0.0}),
    "log-format": ("json", {"log_format": "json"}),
    "log-level": ("debug", {"log_level": "debug"}),
    "log-size": ("20", {"log_mb": 20}),
    "output-size": ("30", {"output_mb": 30}),
    "log-redact": ("shop_log:hide", {"log_redact": "shop_log:hide"}),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a pyproject.toml, and an environment without variables of ours."""
    for name in list(os.environ):
        if name.startswith("TASKQ_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def project(folder: Path, text: str) -> Path:
    """Writes the table [tool.taskq]."""
    path = folder / "pyproject.toml"
    path.write_text(f"[project]\nname = 'shop'\n[tool.taskq]\n{text}\n")
    return path


def found(**given: str) -> dict[str, Value]:
    """What counts for each option."""
    return {value.name: value for value in values(given, find_project())}


def settings(**given: str) -> Settings:
    """The settings of a fleet that is started here."""
    return settings_of(found(**given).values())


def test_without_a_word_the_defaults_count() -> None:
    assert settings() == Settings()
    assert {value.source for value in found().values()} == {"default"}


@pytest.mark.parametrize("option", FLEET_OPTIONS, ids=NAMES)
def test_the_default_that_is_shown_is_the_one_that_counts(option: FleetOption) -> None:
    assert Settings(**option.read(option.default)) == Settings()


def test_each_option_is_tried_here() -> None:
    assert list(TEXTS) == NAMES
    assert set(worker.__annotations__) - {"app", "reload", "return"} == {
        option.parameter for option in FLEET_OPTIONS
    }  # reload is not one of a fleet


@pytest.mark.parametrize("name", NAMES)
def test_each_place_is_read_in_one_way(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, fields = TEXTS[name]
    expected = Settings(**fields)
    assert settings(**{name: text}) == expected
    variable = "TASKQ_" + name.upper().replace("-", "_")
    monkeypatch.setenv(variable, text)
    assert settings() == expected
    assert found()[name].place == variable
    monkeypatch.setenv(variable, "")
    path = project(folder, f'{name} = "{text}"')
    assert settings() == expected
    assert found()[name].place == f"{name} in {path}"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("consumers = 3", {"consumers": 3}),
        ("drain = true", {"drain": True}),
        ("drain = false", {}),
        ("stop-timeout = 1.5", {"stop_timeout_s": 1.5}),
        ('queues = ["high=3", "default"]', TEXTS["queues"][1]),
        ("queues = { high = 3, default = 1 }", TEXTS["queues"][1]),
        ("resources = { gpu = 1, ram = 8 }", TEXTS["resources"][1]),
        ('lane = ["gpu:1", "*:2"]', TEXTS["lane"][1]),
        ('lane = "mail,images:2"', {"lanes": ((("mail", "images"), 2),)}),
        ('max-jobs = "none"', {}),
    ],
)
def test_values_of_toml(line: str, fields: dict[str, object], folder: Path) -> None:
    project(folder, line)
    assert settings() == Settings(**fields)  # type: ignore[arg-type]


def test_the_order_of_the_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(folder, "threads = 2\nmemory = 32\nmax-jobs = 9\ndrain = true")
    monkeypatch.setenv("TASKQ_THREADS", "3")
    monkeypatch.setenv("TASKQ_MEMORY", "33")
    made = settings(**{"threads": "4", "max-jobs": "none", "drain": "false"})
    assert made == Settings(threads=4, memory_mb=33)
    assert [found(threads="4")[name].source for name in ("threads", "memory", "max-jobs", "log-size")] == [
        "command line",
        "environment",
        "file",
        "default",
    ]


def test_the_nearest_file_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(folder, "threads = 2")
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert settings().threads == 2
    project(folder / "a", "memory = 32")
    assert settings() == Settings(memory_mb=32)
    (folder / "a" / "pyproject.toml").write_text("[project]\nname = 'shop'\n")
    assert settings() == Settings()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("consumres = 3", "unknown key 'consumres'; did you mean consumers?"),
        ("stop_timeout = 3", "unknown key 'stop_timeout'; did you mean stop-timeout?"),
        ("nonsense = 3", "unknown key 'nonsense'; there are: app, consumers, drain"),
        ("consumers = 1.5", "consumers in {path} '1.5': use a whole number"),
        ("consumers = true", "consumers in {path} 'true': use a whole number"),
        ("consumers = -1", "consumers=-1: use 1 to 512 (from consumers in {path})"),
        ("drain = 2", "drain in {path} '2': use true or false"),
        ('stop-timeout = "soon"', "stop-timeout in {path} 'soon': use seconds, or a duration such as 90s"),
        ('max-jobs = "many"', "max-jobs in {path} 'many': use a whole number, or none"),
        ('log-level = "warn"', "log level 'warn': use one of debug, info, warning, error (from log-level in {path})"),
        ('queues = ["a b"]', "queue name 'a b': use A-Z a-z 0-9 _ . - (from queues in {path})"),
        ('queues = "a=x"', "queues in {path} 'a=x': use a name and a number, such as a=2"),
        ('lane = ["gpu"]', "lane in {path} 'gpu': use queues and a number of consumers"),
        ('lane = ["gpu:1"]\nconsumers = 3', "(from consumers in {path}, lane in {path})"),
        ("lane = ", "{path} is not valid TOML"),
        ("[[tool.taskq]]", "{path} is not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_reported_with_its_place(line: str, words: str, folder: Path) -> None:
    path = project(folder, line)
    with pytest.raises(ConfigError, match=re.escape(words.format(path=path))):
        settings()


@pytest.mark.parametrize("text", ["tool.taskq = 3", "[[tool.taskq]]\nthreads = 2"])
def test_what_is_not_a_table(text: str, folder: Path) -> None:
    (folder / "pyproject.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"pyproject.toml: tool.taskq is not a table"):
        settings()


@pytest.mark.parametrize("text", ["", "tool = 3  # taskq", "[tool.ruff]\n[project]\nname = 'taskq'"])
def test_a_file_that_says_nothing_of_us(text: str, folder: Path) -> None:
    (folder / "pyproject.toml").write_text(text)
    assert settings() == Settings()


def test_bad_variables_and_options_are_reported_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_STOP_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="TASKQ_STOP_TIMEOUT 'soon': use seconds"):
        settings()
    assert settings(**{"stop-timeout": "1s"}).stop_timeout_s == 1.0
    with pytest.raises(ConfigError, match="--stop-timeout 'later': use seconds"):
        settings(**{"stop-timeout": "later"})
    with pytest.raises(ConfigError, match=r"consumers=999: use 1 to 512 \(from --consumers\)"):
        settings(consumers="999", **{"stop-timeout": "1s"})


def test_variables_that_are_nearly_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_CONSUMRES", "3")
    monkeypatch.setenv("TASKQ_SERVICE_HOST", "10.0.0.1")  # Kubernetes', of a service that is called taskq
    monkeypatch.setenv("TASKQ_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv(IN_CONSUMER, "1")  # ours: in a job that starts a fleet
    monkeypatch.setenv("TASKQ_THREADS", "3")
    monkeypatch.setenv("TASKQ_REPLY_TIMEOUT", "3")
    assert misspelt_variables() == ["the variable TASKQ_CONSUMRES means nothing; did you mean TASKQ_CONSUMERS?"]


def test_the_application_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert app_of(None) is None
    path = project(folder, 'app = "src/shop.py:q"')
    inner = folder / "docs"
    inner.mkdir()
    monkeypatch.chdir(inner)
    assert app_of(None) == Value("app", f"{folder / 'src' / 'shop.py'}:q", "file", f"app in {path}")
    project(folder, 'app = "shop.tasks:q"')
    assert app_of(None) == Value("app", "shop.tasks:q", "file", f"app in {path}")
    monkeypatch.setenv("TASKQ_APP", "other:q")
    assert app_of(None) == Value("app", "other:q", "environment", "TASKQ_APP")
    assert app_of("mine:q") == Value("app", "mine:q", "command line", "APP")


def test_a_file_of_another_user_does_not_name_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that somebody left in /tmp, above our folder."""
    path = project(folder, 'app = "evil:q"')
    if os.geteuid() == 0:
        os.chown(path, 4712, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigError, match=r"pyproject.toml belongs to user id \d+, and you are \d+"):
        app_of(None)
