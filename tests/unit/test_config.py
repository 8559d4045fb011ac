"""Where a queue lives, and settings that make sense."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ
from taskq.model.errors import ConfigError, DirectoryError
from taskq.model.limits import MAX_CONSUMERS, MAX_SOCKET_PATH_BYTES
from taskq.model.settings import Settings, default_consumers
from taskq.system.directory import Directory, private_directory, queue_directory
from taskq.system.place import Place, place_of


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's environment does not matter here."""
    monkeypatch.delenv("TASKQ_URL", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


# -- where a queue lives


def test_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a word it is there, by the queue's name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert queue_directory("thumbs") == tmp_path / ".local" / "state" / "taskq" / "thumbs"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert queue_directory("thumbs") == tmp_path / ".local" / "state" / "taskq" / "thumbs"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert queue_directory("thumbs") == tmp_path / "state" / "taskq" / "thumbs"


def test_url_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the program says counts most, then TASKQ_URL."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TASKQ_URL", str(tmp_path / "environment"))
    assert queue_directory("q") == tmp_path / "environment"
    assert queue_directory("q", str(tmp_path / "url")) == tmp_path / "url"
    monkeypatch.setenv("TASKQ_URL", "")
    assert queue_directory("q") == tmp_path / "state" / "taskq" / "q"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/srv/q", "/srv/q"),
        ("file:///srv/q", "/srv/q"),
        ("file:/srv/q", "/srv/q"),
        ("file://localhost/srv/q", "/srv/q"),
        ("file:///srv/with%20space", "/srv/with space"),
        ("/srv/with space", "/srv/with space"),
        ("/srv/50%20", "/srv/50%20"),
        ("~/q", "{home}/q"),
    ],
)
def test_paths_and_urls(url: str, path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path is taken as it is, a URL is read as one."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert queue_directory("q", url) == Path(path.format(home=tmp_path / "home"))


@pytest.mark.parametrize("url", ["relative/q", "./q", "..", "file:q", "file:./q"])
def test_a_relative_place_is_refused(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Producer and fleet stand in different directories, and would have different queues."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"url='.*' is relative.*use an absolute path, such as '/"):
        TaskQ("q", url)
    monkeypatch.setenv("TASKQ_URL", url)
    with pytest.raises(ConfigError, match=r"TASKQ_URL='.*' is relative"):
        TaskQ("q")
    assert not list(tmp_path.iterdir())


def test_a_relative_state_directory_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the specification of these directories says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert queue_directory("q") == tmp_path / ".local" / "state" / "taskq" / "q"


def test_a_directory_with_a_null_byte_is_refused() -> None:
    """The system has no such path."""
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        Directory(Path("/srv/q\0"))


@pytest.mark.parametrize("url", ["redis://u:secret@localhost/0", "mysql://u:secret@x/y", "http://x", "sqlite:///x"])
def test_urls_of_other_engines(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused, with the engine that exists, and without the password that such a URL may have."""
    scheme = url.partition("://")[0]
    expected = f"{scheme}://...: there is no such engine; the only one is .* file:///path URL"
    with pytest.raises(ConfigError, match=f"^url={expected}") as refused:
        queue_directory("q", url)
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("TASKQ_URL", url)
    with pytest.raises(ConfigError, match=f"^TASKQ_URL={expected}"):
        TaskQ("q")


def test_a_directory_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"another machine.*file:///path"):
        queue_directory("q", "file://otherhost/srv")


def test_a_database_has_a_directory_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Socket, lock and log of this machine's fleet are there: one for each database and schema."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("TASKQ_URL", "postgresql://ann:secret@db.example:5432/shop?sslmode=require")
    place = place_of("shop")
    assert place.database is not None
    assert place.database.schema == "taskq_shop"
    assert place.directory.path.parent == tmp_path / "taskq"
    assert place.directory.path.name.startswith("taskq_shop@")
    assert place_of("other").directory.path != place.directory.path
    named = place_of("x", "postgres://bob@db.example:5432/shop?schema=taskq_shop")
    assert named.directory.path == place.directory.path
    assert place_of("shop", "/srv/q").database is None


@pytest.mark.parametrize(
    ("url", "shown", "conninfo"),
    [
        (
            "postgresql://ann:s%40cret@db:5432/shop?sslmode=require&schema=s",
            "postgresql://ann@db:5432/shop?sslmode=require&schema=s",
            "postgresql://ann:s%40cret@db:5432/shop?sslmode=require",
        ),
        ("postgres://ann@/shop?host=/run/pg&password=secret", "postgresql://ann@/shop?host=/run/pg", None),
        ("postgresql:///shop?sslpassword=secret", "postgresql:///shop", None),
        ("postgresql://db1:1,db2:2/shop?target_session_attrs=read-write", None, None),
    ],
)
def test_a_url_of_a_database_is_shown_without_its_password(url: str, shown: str | None, conninfo: str | None) -> None:
    database = place_of("shop", url).database
    assert database is not None
    assert str(database) == repr(database) == database.shown == (shown or url)
    assert database.conninfo == (conninfo or url.replace("postgres:", "postgresql:"))
    path, wire = place_of("shop", url).to_wire()
    assert Place.from_wire(path, wire).database == database


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://ann:sec@ret@db/shop", "write @ as %40"),
        ("postgresql://ann:sec#ret@db/shop", "write @ as %40"),
        ("postgresql://ann:secret@db/shop?schema=pg_secrets", "the schema 'pg_secrets' cannot be used"),
        ("postgresql://ann:secret@db/shop?schema=" + "x" * 49, "of 1 to 48"),
        ("postgresql://ann:secret@db/shop?schema", "not a URL"),
        ("postgresql://ann:secret@[db/shop", "not a URL"),
    ],
)
def test_urls_of_a_database_that_make_no_sense(url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error does not show the password."""
    monkeypatch.setenv("TASKQ_URL", url)
    with pytest.raises(ConfigError, match=told) as refused:
        place_of("shop")
    assert str(refused.value).startswith("TASKQ_URL=postgresql://...: ")
    assert "secret" not in str(refused.value).replace("pg_secrets", "")
    assert "sec@" not in str(refused.value)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 65, "ä", "a\n", None, 3])
def test_names_that_make_no_sense(name: Any) -> None:
    """A name becomes the name of a directory, so it is checked, even where a URL says which."""
    with pytest.raises(ConfigError, match="use 1 to 64"):
        queue_directory(name, "/srv/q")


# -- the directory


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    """Whatever the umask, it and what is in it are for its owner alone."""
    before = os.umask(0)
    try:
        directory = Directory(tmp_path / "a" / "b" / "q").create()
    finally:
        os.umask(before)
    for path in (directory.path, directory.spool, directory.log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert directory.create() is directory


def test_parents_are_not_changed(tmp_path: Path) -> None:
    """A directory of the user's that was there before keeps its mode."""
    tmp_path.chmod(0o755)
    Directory(tmp_path / "q").create()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o701, 0o750, 0o777])
def test_open_directories_are_refused(tmp_path: Path, mode: int) -> None:
    """Others could read or replace jobs; the message has the remedy."""
    directory = Directory(tmp_path / "q").create()
    directory.path.chmod(mode)
    with pytest.raises(DirectoryError, match=f"chmod 700 {directory.path}"):
        directory.check()
    with pytest.raises(DirectoryError, match="chmod 700"):
        directory.create()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the user id that the file system tells."""
    directory = Directory(tmp_path / "q").create()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DirectoryError, match=f"belongs to user id {os.getuid()}"):
        directory.check()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    """A file, a path below a file, or nothing at all."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DirectoryError, match="not a directory"):
        Directory(file).check()
    with pytest.raises(DirectoryError, match=r"cannot make the directory.*TASKQ_URL"):
        Directory(file / "q").create()
    with pytest.raises(DirectoryError, match="cannot use the directory"):
        Directory(tmp_path / "nothing").check()


# -- the socket


def long_path(home: Path, name: str = "q") -> Path:
    """A path that is too long for a socket."""
    path = home
    while len(os.fsencode(path)) < MAX_SOCKET_PATH_BYTES:
        path = path / ("x" * 40)
    path = path / name
    path.mkdir(parents=True)
    return path


def test_a_short_path_has_its_socket_inside() -> None:
    """The usual case."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        assert Directory(Path(home)).socket_path() == Path(os.path.realpath(home)) / "taskq.sock"


def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path) -> None:
    """At a short path that the kernel takes, and that every client finds."""
    path = long_path(tmp_path)
    found = Directory(path).socket_path()
    assert len(os.fsencode(found)) <= MAX_SOCKET_PATH_BYTES
    assert found == Directory(path).socket_path()
    assert found != Directory(long_path(tmp_path, "other")).socket_path()
    private_directory(found.parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(found))
    found.unlink()


def test_the_longest_direct_path_can_be_bound() -> None:
    """At the limit the socket is in the directory, and one byte more puts it elsewhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        room = MAX_SOCKET_PATH_BYTES - len(os.fsencode(os.path.realpath(home))) - len("//taskq.sock")
        fits, too_long = Path(home) / ("x" * room), Path(home) / ("x" * (room + 1))
        fits.mkdir()
        too_long.mkdir()
        inside = Directory(fits).socket_path()
        assert inside.parent == Path(os.path.realpath(fits))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(inside))
        assert Directory(too_long).socket_path().parent != Path(os.path.realpath(too_long))


def test_the_socket_is_the_same_through_a_link(tmp_path: Path) -> None:
    """Whether the link or what it leads to is the long one, both sides meet."""
    long = long_path(tmp_path)
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        short_link = Path(home) / "link"
        short_link.symlink_to(long)
        assert Directory(short_link).socket_path() == Directory(long).socket_path()
        short = Path(home) / "short"
        short.mkdir()
        long_link = long / "link"
        long_link.symlink_to(short)
        assert Directory(long_link).socket_path() == Directory(short).socket_path()


def test_a_prepared_directory_for_the_socket_is_refused(tmp_path: Path) -> None:
    """In a directory that all may write to, somebody else could have made it first."""
    mine = tmp_path / "mine"
    private_directory(mine)
    private_directory(mine)
    assert stat.S_IMODE(mine.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name in ("link", "open"):
        with pytest.raises(DirectoryError, match="mode 700"):
            private_directory(tmp_path / name)


def test_a_file_in_the_place_of_that_directory_is_refused(tmp_path: Path) -> None:
    """It is an error of ours as well."""
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryError, match="mode 700"):
        private_directory(tmp_path / "file")


def test_the_filesystem_is_known(tmp_path: Path) -> None:
    """For the refusal of network file systems: on Linux the mount table tells."""
    found = Directory(tmp_path).filesystem()
    assert found == found.strip()
    if Path("/proc/self/mountinfo").exists():
        assert Directory(Path("/proc")).filesystem() == "proc"


# -- settings


def test_the_defaults_make_sense() -> None:
    """As many consumers as CPUs, and everything safe."""
    settings = Settings()
    assert settings.consumers == default_consumers() >= 1
    assert settings.durability == "power"
    assert settings.queues == ()


def test_settings_travel_as_plain_data() -> None:
    """From the guardian to the broker, and nothing is lost."""
    settings = Settings(consumers=3, queues=["b", "a"], max_jobs=5, durability="os", log_level="debug")  # type: ignore[arg-type]
    assert Settings(**settings.to_dict()) == settings
    assert settings.queues == ("b", "a")


def test_settings_do_not_change() -> None:
    """They are made once."""
    with pytest.raises(AttributeError):
        Settings().consumers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"consumers": -1}, f"consumers=-1: use 1 to {MAX_CONSUMERS}"),
        ({"consumers": MAX_CONSUMERS + 1}, f"use 1 to {MAX_CONSUMERS}"),
        ({"consumers": "2"}, "consumers='2': use a whole number"),
        ({"consumers": None}, "consumers=None: use a whole number"),
        ({"consumers": 1.5}, "consumers=1.5: use a whole number"),
        ({"memory_mb": "256"}, "memory_mb='256': use a whole number"),
        ({"keep_results": 1e5}, "keep_results=100000.0: use a whole number"),
        ({"stop_timeout_s": "30s"}, "stop_timeout_s='30s': use a number of seconds"),
        ({"threads": 0}, "threads=0: use 1 to 1,000"),
        ({"threads": 1_001}, "threads=1001: use 1 to 1,000"),
        ({"queues": ("fine", "not fine")}, "queue name 'not fine'"),
        ({"queues": "mail"}, "queues='mail': use a list of names"),
        ({"max_jobs": 0}, "max_jobs=0: use 1 or more"),
        ({"max_memory_mb": 0}, "max_memory_mb.*: use 1 or more"),
        ({"stop_timeout_s": -1}, "stop_timeout_s=-1: use 0 or more seconds"),
        ({"stop_timeout_s": float("nan")}, "stop_timeout_s=nan"),
        ({"memory_mb": 7}, "memory_mb=7: use 8 or more"),
        ({"keep_results": -1}, "keep_results.*: use 0 or more"),
        ({"keep_results_s": -1}, "keep_results.*: use 0 or more"),
        ({"durability": "maybe"}, "durability='maybe': use power, os or memory"),
        ({"log_format": "xml"}, "log format 'xml': use auto, console or json"),
        ({"log_level": "loud"}, "log level 'loud': use one of debug, info, warning, error"),
        ({"stderr_level": "loud"}, "stderr level 'loud'"),
    ],
)
def test_settings_that_make_no_sense(fields: dict[str, Any], told: str) -> None:
    """They are refused, and the message says what would do."""
    with pytest.raises(ConfigError, match=told):
        Settings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"consumers": 1},
        {"consumers": MAX_CONSUMERS},
        {"threads": 1_000},
        {"max_jobs": 1},
        {"stop_timeout_s": 0},
        {"memory_mb": 8},
        {"keep_results": 0, "keep_results_s": 0},
        {"stderr_level": "critical"},
    ],
)
def test_settings_at_the_limits(fields: dict[str, Any]) -> None:
    """They are taken."""
    settings = Settings(**fields)
    assert {name: getattr(settings, name) for name in fields} == fields
