"""What of a command reaches the log of a cluster whose brokers may be of older versions."""

from __future__ import annotations

import pytest

from logd.broker.coordination.levels import known_at
from logd.metadata.features import UNCOUNTED_LEVEL
from logd.wire.coordination import Command, CompleteItems, ItemClaim, ReleaseItems

CLAIMS = [ItemClaim(item=1, token=2)]
COUNTED = ReleaseItems(queue="q", claims=CLAIMS, reason="why", delay_ms=0)
UNCOUNTED = ReleaseItems(queue="q", claims=CLAIMS, reason="why", delay_ms=0, uncounted=True)


@pytest.mark.parametrize(
    ("level", "known"), [(UNCOUNTED_LEVEL - 1, COUNTED), (UNCOUNTED_LEVEL, UNCOUNTED)]
)
def test_what_an_older_replica_would_pass_over_is_taken_out(level: int, known: Command) -> None:
    assert known_at(level, UNCOUNTED) == known


@pytest.mark.parametrize("command", [COUNTED, CompleteItems(queue="q", claims=CLAIMS)])
def test_what_all_know_is_left_alone(command: Command) -> None:
    assert known_at(1, command) is command
