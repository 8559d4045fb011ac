"""Builds the site of the pages in docs/, strictly: a link or an anchor that leads nowhere ends it with an error.

    python tools/site.py [FOLDER]     # into FOLDER, by default site/

Links that leave docs/, such as ../examples/thumbnails.py, become links into the repository; in a checkout they work as
they are. The builder is Zensical (the extra `docs`).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CONFIG = "mkdocs.yml"


def outward(text: str, repository: str) -> str:
    """The text of a page as the builder takes it: with its links out of docs/ as links into the repository.

    Raises:
        FileNotFoundError: such a link leads nowhere.
    """

    def link(found: re.Match[str]) -> str:
        path = found[1]
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"a page links to {path}, which does not exist")
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({repository}/{kind}/main/{path}{found[2]})"

    text = re.sub(r'(src(?:set)?)="pictures/', r'\1="../pictures/', text)  # pages of the site are folders
    return re.sub(r"\]\(\.\./([^)#]+)((?:#[^)]*)?)\)", link, text)


def build(target: Path) -> int:
    """Builds the site. Returns the exit code of the builder."""
    config = (ROOT / _CONFIG).read_text()
    found = re.search(r"^repo_url: (\S+)$", config, re.M)
    assert found is not None, f"{_CONFIG} has no repo_url"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "docs", folder / "docs")
        for page in (folder / "docs").rglob("*.md"):
            page.write_text(outward(page.read_text(), found[1]))
        (folder / _CONFIG).write_text(config)
        done = subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, check=False)
        if done.returncode == 0:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(folder / "site", target)
    return done.returncode


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"))
