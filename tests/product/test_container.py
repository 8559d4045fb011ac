"""The containers of docs/deploy.md, as far as a machine without Docker has them.

The steps of the Dockerfile run in a copy of this machine: what is written goes to a layer over it (an overlay), and
mounts and processes are those of a container. So the image has the Python and the packages of the tests, and `pip
install` is left out; users, folders, variables, process 1, its signals and the health check are as `docker build` and
`docker run` make them. Schemas say whether compose and Kubernetes take their files.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import kubernetes_validate
import psutil
import pytest
import yaml
from fleet import wait_until
from pages import ROOT, blocks, paste

import taskq

#: Makes the copy in the folder $1, and goes on in it as the command that follows.
ENTER = """
set -e
cd "$1"; shift
mkdir layer root
mount -t tmpfs layer layer; mkdir layer/files layer/work
mount -t overlay overlay -o lowerdir=/,upperdir=layer/files,workdir=layer/work root
mount -t proc proc root/proc; mount --rbind /dev root/dev
exec chroot root "$@"
"""
#: A container begins with some programs that make it.
LONG_S = 60.0
CLIENT = "from thumbs import thumbnail; print(thumbnail.enqueue('cat.jpg').result(timeout=60))"


class Image:
    """What a Dockerfile says."""

    def __init__(self, dockerfile: str) -> None:
        lines = [line.split(None, 1) for line in dockerfile.splitlines() if not line.startswith("#")]
        said = dict(lines)
        self.steps = [each for each in lines if each[0] in ("RUN", "COPY") and "pip install" not in each[1]]
        self.user, self.folder, self.stop_signal = said["USER"], said["WORKDIR"], said["STOPSIGNAL"]
        self.variable = said["ENV"]
        self.command: list[str] = json.loads(said["CMD"])
        self.health: list[str] = json.loads(said["HEALTHCHECK"].partition(" CMD ")[2])

    def build(self, context: Path) -> list[str]:
        """The commands that do its steps, in a shell."""
        return [rest if name == "RUN" else _copy(context, *rest.split()) for name, rest in self.steps]

    def program(self, *command: str) -> list[str]:
        """A command as it runs in a container: as its user, in its folder, with its variables."""
        user = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        return [*user, "env", f"--chdir={self.folder}", self.variable, "HOME=/nowhere", *command]


def _copy(context: Path, file: str, folder: str) -> str:
    return f"mkdir -p {folder} && cp {context / file} {folder}"


class Container:
    """A container that runs."""

    def __init__(self, image: Image, started: subprocess.Popen[str]) -> None:
        self._image = image
        self._started = started

    @property
    def process(self) -> psutil.Process:
        """Process 1, seen from outside."""
        [first] = wait_until(psutil.Process(self._started.pid).children, "process 1")
        return first

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec`."""
        inside = ["nsenter", f"--target={self.process.pid}", "--mount", "--pid", "--root"]
        words = [*inside, *self._image.program(*command)]
        return subprocess.run(words, env=variables(), capture_output=True, text=True, timeout=LONG_S, check=False)

    def stop(self) -> tuple[int, list[str]]:
        """As `docker stop`. Returns the exit code, and the events of the log."""
        self.process.send_signal(signal.Signals[self._image.stop_signal])
        _, log = self._started.communicate(timeout=LONG_S)
        return self._started.returncode, [json.loads(line)["event"] for line in log.splitlines()]


def variables() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@contextmanager
def running(image: Image, context: Path, folder: Path) -> Iterator[Container]:
    """Builds an image and runs it."""
    programs = {Path(sys.executable).parent, Path(sys.base_prefix), Path(taskq.__file__).parent}
    closed = {str(above) for path in programs for above in path.resolve().parents}
    base = [f"chmod a+rx {shlex.join(sorted(closed))}", f"sed -i /:{image.user}:/d /etc/passwd /etc/group"]
    script = ["set -e", *base, *image.build(context), f"exec {shlex.join(image.program(*image.command))}"]
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"]
    words = [*namespaces, "sh", "-c", ENTER, "sh", str(folder), "/bin/sh", "-c", "\n".join(script)]
    with subprocess.Popen(
        words, env=variables(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as started:
        try:
            yield Container(image, started)
        finally:
            started.kill()


def need_overlays(folder: Path) -> None:
    """Skips a test that may not make such a copy here, or in a copy that has no Python: other mounts are not in it."""
    folder.mkdir()
    look = ["ls", sys.executable, taskq.__file__, str(folder)]
    words = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", ENTER, "sh", str(folder), *look]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a copy of this machine, outside of a container without that right")


@pytest.mark.timeout(240)
def test_the_image_is_built_and_runs(tmp_path: Path) -> None:
    need_overlays(tmp_path / "tried")
    (tmp_path / "copy").mkdir()
    [dockerfile] = blocks("deploy.md", "dockerfile")
    image = Image(dockerfile)
    paste("install.md", tmp_path)
    (tmp_path / "requirements.txt").write_text("taskq-fleet\n")
    with running(image, tmp_path, tmp_path / "copy") as container:
        wait_until(lambda: container.run(*image.health).returncode == 0, "a fleet that is ready", LONG_S)
        assert container.process.uids().real == int(image.user)
        [broker] = container.process.children()
        broker.kill()  # process 1 starts another
        done = container.run("python", "-c", CLIENT)
        assert (done.returncode, done.stdout) == (0, "cat.jpg at 256\n"), done.stderr
        code, events = container.stop()
    assert code == 0
    assert events.count("broker.died") == 1
    assert events[-1] == "fleet.stopped"


def test_compose_and_kubernetes_take_their_files(tmp_path: Path) -> None:
    compose, kubernetes = blocks("deploy.md", "yaml")
    kubernetes_validate.validate(yaml.safe_load(kubernetes), kubernetes_validate.latest_version(), strict=True)
    (tmp_path / "compose.yaml").write_text(compose)
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = [tmp_path / "compose.yaml", ROOT / "examples/many_machines/compose.yaml"]
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
