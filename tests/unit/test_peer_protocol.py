"""Brokers of two versions speak the highest one that both know."""

from __future__ import annotations

import pytest

from logd.replication import peer_protocol
from logd.replication.peer_protocol import version_in_common


@pytest.mark.parametrize(
    ("highest", "lowest", "common"),
    [
        (3, 2, 3),
        (2, 2, 2),
        (2, 1, 2),
        (4, 3, 3),
        (9, 2, 3),
        (3, None, 3),
        (1, 1, None),
        (1, None, None),
        (5, 4, None),
        (4, None, None),
        (2, 3, None),
    ],
)
def test_versions_two_and_three_meet_others(
    monkeypatch: pytest.MonkeyPatch, highest: int, lowest: int | None, common: int | None
) -> None:
    monkeypatch.setattr(peer_protocol, "PEER_PROTOCOL_VERSION", 3)
    monkeypatch.setattr(peer_protocol, "PEER_PROTOCOL_VERSION_MIN", 2)

    assert version_in_common(highest, lowest) == common
