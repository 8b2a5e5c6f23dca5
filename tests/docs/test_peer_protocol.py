"""The page names every frame between brokers, with the number it has in the code."""

from __future__ import annotations

import re
from pathlib import Path

from logd.replication.peer_protocol import TYPE_BY_KIND

ROW = re.compile(r"^\| (\d+) \| (\w+) \| ", re.MULTILINE)


def test_the_table_of_peer_kinds_is_the_code() -> None:
    document = Path("docs/wire_protocol.md").read_text(encoding="utf-8")
    section = document.split("## 11. Between brokers")[1]

    assert ROW.findall(section) == [
        (str(int(kind)), cls.__name__) for kind, cls in sorted(TYPE_BY_KIND.items())
    ]
