"""The README as PyPI shows it: its links and pictures lead into the repository. Hatchling calls this when it packs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute(text: str, source: str) -> str:
    """A text of Markdown whose links and pictures do not depend on where it is shown."""
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/")
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({source}/blob/main/\1)", text)
    return re.sub(r'(src(?:set)?)="(?!https?:)([^"]+)"', rf'\1="{raw}/main/\2"', text)


class Hook(MetadataHookInterface):
    """Fills in `readme`, which pyproject.toml calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text()
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, metadata["urls"]["Source"])}
