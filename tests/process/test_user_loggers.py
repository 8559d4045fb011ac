"""An application that has configured `logging` or structlog keeps its configuration in the consumers; one that has not
gets its lines as events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet import DEADLINE_S, Fleet, running, url_of

from taskq import TaskQ

HEAD = """
import logging, logging.config, sys
import structlog
from taskq import TaskQ
q = TaskQ("spoken")
"""
SPEAK = """
@q.task
def speak():
    logging.getLogger("shop").debug("shop debug")
    logging.getLogger("shop.cart").info("shop info")
    logging.getLogger("shop").warning("shop warning")
    logging.getLogger("audit").info("audit info")
    logging.getLogger("other").info("other info")
    logging.getLogger("other").warning("other warning")
    structlog.get_logger().info("structlog info", size=3)
"""


def spoken(folder: Path, configuration: str) -> list[dict[str, Any]]:
    """What a fleet logs for a job that speaks, with an application that is configured in some way: the lines of the
    job, without what all lines have."""
    (folder / "spoken.py").write_text(HEAD + configuration.replace("FOLDER", str(folder)) + SPEAK)
    home = folder / "queue"
    q = TaskQ("spoken", url=url_of(home))
    with running(Fleet(home, f"{folder / 'spoken.py'}:q", consumers=1)) as fleet:
        job = q.enqueue("speak")
        job.result(DEADLINE_S)
    common = {"timestamp", "event", "queue", "task", "job_id", "attempt", "consumer", "pid"}
    return [{name: value for name, value in line.items() if name not in common} for line in fleet.events("job.log")]


def test_what_is_configured_when_the_code_is_imported(tmp_path: Path) -> None:
    """Handlers, formatters, levels, a logger that does not propagate, and structlog's processors."""
    lines = spoken(
        tmp_path,
        """
logging.config.dictConfig({
    "version": 1,
    "formatters": {"short": {"format": "%(levelname)s|%(name)s|%(message)s"}},
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "short"},
        "file": {"class": "logging.FileHandler", "filename": "FOLDER/audit.log", "formatter": "short"},
    },
    "loggers": {"shop": {"level": "DEBUG"}, "audit": {"level": "INFO", "handlers": ["file"], "propagate": False}},
    "root": {"level": "WARNING", "handlers": ["console"]},
})
structlog.configure(
    processors=[structlog.processors.add_log_level, structlog.processors.LogfmtRenderer(key_order=["level", "event"])],
    logger_factory=structlog.PrintLoggerFactory(sys.stdout),
)
""",
    )
    assert [line["message"] for line in lines] == [
        "DEBUG|shop|shop debug",
        "INFO|shop.cart|shop info",
        "WARNING|shop|shop warning",
        "WARNING|other|other warning",
        'level=info event="structlog info" size=3',
    ]
    assert all(line == {"level": "info", "message": line["message"]} for line in lines)
    assert (tmp_path / "audit.log").read_text() == "INFO|audit|audit info\n"


def test_what_is_configured_for_one_logger(tmp_path: Path) -> None:
    """It prints what it would print elsewhere, and once; what the others log comes as events, from info on."""
    lines = spoken(
        tmp_path,
        """
console = logging.StreamHandler()
console.setFormatter(logging.Formatter("%(levelname)s|%(message)s"))
logging.getLogger("shop").addHandler(console)
logging.getLogger("audit").addHandler(logging.FileHandler("FOLDER/audit.log"))
logging.getLogger("audit").propagate = False
logging.getLogger("other").addHandler(logging.NullHandler())
""",
    )
    assert lines[:-1] == [
        {"level": "info", "message": "WARNING|shop warning"},
        {"level": "info", "message": "other info", "logger": "other"},
        {"level": "warning", "message": "other warning", "logger": "other"},
    ]
    assert "structlog info" in lines[-1]["message"]
    assert (tmp_path / "audit.log").read_text() == "", "its level is that of Python's root logger: warning"


def test_what_is_configured_when_a_consumer_starts(tmp_path: Path) -> None:
    lines = spoken(
        tmp_path,
        """
@q.on_consumer_start
def configure():
    logging.getLogger("early").info("before")
    logging.basicConfig(format="%(name)s|%(message)s", level="ERROR")
    logging.getLogger("shop").setLevel("INFO")
""",
    )
    assert [line["message"] for line in lines[:-1]] == ["shop.cart|shop info", "shop|shop warning"]


def test_what_is_not_configured(tmp_path: Path) -> None:
    lines = spoken(tmp_path, "")
    assert lines[:-1] == [
        {"level": "info", "message": "shop info", "logger": "shop.cart"},
        {"level": "warning", "message": "shop warning", "logger": "shop"},
        {"level": "info", "message": "audit info", "logger": "audit"},
        {"level": "info", "message": "other info", "logger": "other"},
        {"level": "warning", "message": "other warning", "logger": "other"},
    ]
