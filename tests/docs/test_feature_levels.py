"""The page on operations lists the feature levels that there are."""

from __future__ import annotations

import re
from pathlib import Path

from logd.metadata.features import LEVELS

ROW = re.compile(r"^\| (\d+) \| (.+?) \|$", re.MULTILINE)


def test_the_table_of_levels_is_the_code() -> None:
    document = Path("docs/operations.md").read_text(encoding="utf-8")
    section = document.split("## Upgrading")[1].split("\n## ")[0]

    assert ROW.findall(section) == [(str(level), brought) for level, brought in LEVELS.items()]
