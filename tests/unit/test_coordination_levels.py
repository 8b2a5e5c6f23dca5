"""What of a command reaches the log of a cluster whose brokers may be of older versions."""

from __future__ import annotations

import msgspec
import pytest

from logd.broker.coordination.levels import known_at
from logd.broker.coordination.partition import _decode
from logd.coordination.snapshots import _MAGIC
from logd.coordination.state import CoordinationState
from logd.errors import CorruptionError, NewerFormatError
from logd.metadata.features import CHANGED_OPTIONS_LEVEL, UNCOUNTED_LEVEL
from logd.wire.coordination import (
    Advance,
    Command,
    CompleteItems,
    ConfigureQueue,
    Entry,
    ItemClaim,
    QueueOptions,
    ReleaseItems,
)

CLAIMS = [ItemClaim(item=1, token=2)]
COUNTED = ReleaseItems(queue="q", claims=CLAIMS, reason="why", delay_ms=0)
UNCOUNTED = ReleaseItems(queue="q", claims=CLAIMS, reason="why", delay_ms=0, uncounted=True)


@pytest.mark.parametrize(
    ("level", "known"), [(UNCOUNTED_LEVEL - 1, COUNTED), (UNCOUNTED_LEVEL, UNCOUNTED)]
)
def test_what_an_older_replica_would_pass_over_is_taken_out(level: int, known: Command) -> None:
    assert known_at(level, UNCOUNTED) == known


@pytest.mark.parametrize(
    ("level", "changed"),
    [(CHANGED_OPTIONS_LEVEL - 1, None), (CHANGED_OPTIONS_LEVEL, ["backoff_ms"])],
)
def test_below_the_level_for_it_all_options_of_a_queue_change(
    level: int, changed: list[str] | None
) -> None:
    command = ConfigureQueue(queue="q", options=QueueOptions(), changed=["backoff_ms"])

    assert known_at(level, command) == msgspec.structs.replace(command, changed=changed)


@pytest.mark.parametrize("command", [COUNTED, CompleteItems(queue="q", claims=CLAIMS)])
def test_what_all_know_is_left_alone(command: Command) -> None:
    assert known_at(1, command) is command


def test_a_command_of_a_later_version_is_not_passed_over() -> None:
    """ADR 16: what raises the level of a partition stops those who do not know it."""
    known = msgspec.to_builtins(Entry("", 0, 0, 0, 1, Advance()))
    later = msgspec.to_builtins(Entry("", 0, 0, 0, 2, Advance()))
    assert len(_decode(memoryview(msgspec.msgpack.encode([known, later])))) == 2
    later[-1] = {**later[-1], "c": 255}

    with pytest.raises(CorruptionError, match="255"):
        _decode(memoryview(msgspec.msgpack.encode([known, later])))


def test_no_replica_begins_with_a_state_that_a_later_version_has_kept() -> None:
    kept = CoordinationState().snapshot()
    begin = len(_MAGIC.name)
    later = kept[:begin] + (_MAGIC.format + 1).to_bytes(2, "little") + kept[begin + 2 :]

    with pytest.raises(NewerFormatError, match=f"format {_MAGIC.format + 1}, this version reads"):
        CoordinationState.restore(later)
